"""Whether a host is large and new enough: system, Python, memory, disk, limits, container engine, architecture."""

from __future__ import annotations

__all__ = ["check", "container_engine", "of_plan"]

import json
import re
from typing import Any, Dict, List, Optional, Set, Tuple

from ..generations import images_of
from ..text import size_mb
from .common import (
    ARCHITECTURES,
    SHOWN,
    Context,
    Facts,
    Findings,
    chips_are,
    container,
    error,
    gib,
    info,
    listed,
    part,
    warning,
)
from .table import family_of

_MIN_SHM_MB = 1024
_MIN_PYTHON = (3, 9)
#: Engines open a file for every shard, socket and worker; containers of a rank with 16 workers hold thousands.
_MIN_FILES = 65536
#: Each worker of an engine runs some hundred threads.
_MIN_PIDS = 8192
_DEFAULT_ROOT = "/var/lib/docker"


def check(context: Context, host: str, node: Facts) -> Findings:
    """What stands against one host."""
    return [
        *_system(context, host, node),
        *_python(host, node),
        *_memory(context, host, node),
        *_store_memory(context, host, node),
        *_shared_memory(context, host, node),
        *_disk(context, host, node),
        *_limits(context, host, node),
        *container_engine(context.plan, host, node),
        *_names(context, host, node),
        *_service_user(context, host, node),
    ]


def of_plan(context: Context) -> Findings:
    """What stands against the plan's containers, and against what the inventory says of the hosts."""
    return _small_containers(context.plan) + _architectures(context)


# -- system ------------------------------------------------------------------------------------------------------------


def _begins(version: str, wanted: str) -> bool:
    return bool(re.match(re.escape(wanted) + r"(?![0-9])", version, re.I))


def _system(context: Context, host: str, node: Facts) -> Findings:
    """Operating system and kernel against what the vendor of the hardware lists."""
    planned = context.plan["hosts"][host]
    family = family_of(context.table, planned["hardware"])
    system = part(node, "system")
    name, version = str(part(system, "os").get("id") or ""), str(part(system, "os").get("version") or "")
    if not chips_are("ascend", planned) or family is None or not family.get("systems") or not name:
        return []
    if f"{name} {version}".lower() in {one.lower() for one in context.accepted_systems}:
        return []
    machine = system.get("machine")
    fitting = [
        one
        for one in family["systems"]
        if one["id"] == name.lower()
        and machine in one["machines"]
        and any(_begins(version, wanted) for wanted in one["versions"])
    ]
    if not fitting:
        here = [one for one in family["systems"] if machine in one["machines"]]
        return [
            warning(
                "system-unlisted",
                host,
                f"{name} {version} of {host} is not among the systems that the vendor lists for {planned['hardware']}",
                f"listed for {machine}: "
                + ("; ".join(f"{one['id']} {'/'.join(one['versions'])}" for one in here) or "none"),
                "The driver is built and tested for the systems on the vendor's list.",
                f"Install a listed system; or add '{name} {version}' to preflight_accepted_systems once it has proved"
                " to work.",
            )
        ]
    kernel = str(system.get("kernel") or "")
    kernels = [one for entry in fitting for one in entry["kernels"] or [""]]
    if not kernel or any(_begins(kernel, one) or not one for one in kernels):
        return []
    return [
        warning(
            "kernel-unlisted",
            host,
            f"kernel {kernel} of {host} is not one that the vendor lists with {name} {version}",
            f"listed: {listed(kernels)}",
            "The driver's modules are built for the running kernel, and were tested with the listed ones.",
            f"Boot a listed kernel; or add '{name} {version}' to preflight_accepted_systems once this one has proved"
            " to work.",
        )
    ]


def _python(host: str, node: Facts) -> Findings:
    python = part(node, "system").get("python")
    if not python or tuple(int(one) for one in re.findall(r"[0-9]+", python)[:2]) >= _MIN_PYTHON:
        return []
    return [
        error(
            "python-too-old",
            host,
            f"{host} runs Ascent's modules on Python {python}",
            "wanted 3.9 or newer",
            "The interpreter is that of an old distribution.",
            "Install a newer Python beside it and name it in ansible_python_interpreter.",
        )
    ]


# -- memory ------------------------------------------------------------------------------------------------------------


def _usable_mb(node: Facts) -> Tuple[Optional[int], str]:
    """Memory that engines can have, in MB, and how it comes about; None where it was not read."""
    system = part(node, "system")
    total = system.get("memory_mb")
    if total is None:
        return None, ""
    huge = system.get("hugepages_mb") or 0
    limit = part(system, "cgroup").get("memory_max_mb")
    words = f"MemTotal {total} MB" + (f", {huge} MB of it in huge pages" if huge else "")
    if limit is not None and limit < total - huge:
        return limit, f"{words}; the cgroup of all containers is limited to {limit} MB"
    return total - huge, words


def _memory(context: Context, host: str, node: Facts) -> Findings:
    found = []
    usable, words = _usable_mb(node)
    huge = part(node, "system").get("hugepages_mb") or 0
    if usable is not None and usable < context.memory_gb * 1024:
        found.append(
            error(
                "D28",
                host,
                f"{host} has {gib(usable)} of memory for engines, {context.memory_gb:g} GiB are wanted",
                words,
                "Weights and pinned buffers pass through the host's memory.",
                "Use a larger host, free huge pages, lift the limit; or lower preflight_memory_gb for a small model.",
            )
        )
    if usable is not None and huge > part(node, "system")["memory_mb"] / 2:
        found.append(
            warning(
                "D15",
                host,
                f"huge pages keep {gib(huge)} of {host} from everything else",
                words,
                "vm.nr_hugepages was set for another purpose, or for a larger host.",
                "Lower vm.nr_hugepages to what the KV pool's guide asks for, or to 0 where none is used.",
            )
        )
    return found


def _store_memory(context: Context, host: str, node: Facts) -> Findings:
    """Host memory against what clients of a KV store take of it: a segment and a buffer for every rank."""
    memory, _ = _usable_mb(node)
    wanted, told = 0.0, []
    for process in context.plan["processes"]:
        texts = [one["text"] for one in process["files"] if one["path"].rpartition("/")[2] == "mooncake.json"]
        if process["host"] != host or not texts or not process["devices"]:
            continue
        config = json.loads(texts[0])
        each = sum(size_mb(config.get(key, 0)) or 0 for key in ("global_segment_size", "local_buffer_size"))
        wanted += each * len(process["devices"])
        told.append(f"{process['name']}: {len(process['devices'])} ranks of {each / 1024:g} GiB")
    if memory is None or wanted <= memory:
        return []
    return [
        error(
            "store-memory",
            host,
            f"the KV store takes {gib(wanted)} of {host}, which has {gib(memory)} of memory",
            "; ".join(told[:SHOWN]),
            "Every rank gives the store a segment of host memory, and keeps a buffer.",
            "Lower kv_store.config.global_segment_size in the recipe, or run fewer ranks on the host.",
        )
    ]


def _shared_memory(context: Context, host: str, node: Facts) -> Findings:
    """The host's /dev/shm where containers use it, and its memory against the sizes that containers may fill."""
    mine = [one for one in context.plan["processes"] if one["host"] == host and one["devices"]]
    found = []
    shared = [one["name"] for one in mine if not container(one) or container(one).get("ipc") == "host"]
    size = part(node, "system").get("shm_mb")
    if shared and size is not None and size < _MIN_SHM_MB:
        found.append(
            error(
                "D13",
                host,
                f"{host} has {size} MB of shared memory, {_MIN_SHM_MB} are wanted",
                f"df /dev/shm; used by {listed(shared)}",
                "The workers of an engine exchange messages through /dev/shm; a small one ends them with a bus error.",
                "mount -o remount,size=16G /dev/shm, and the same in /etc/fstab; or give the containers a shm_size.",
                "shared_memory",
            )
        )
    sizes = {one["name"]: size_mb(container(one).get("shm_size") or 0) or 0 for one in mine}
    usable, words = _usable_mb(node)
    if usable is not None and sum(sizes.values()) > usable:
        found.append(
            warning(
                "D13",
                host,
                f"containers of {host} may fill {gib(sum(sizes.values()))} of shared memory, it has {gib(usable)}",
                "; ".join(f"{name}: {gib(one)}" for name, one in list(sizes.items())[:SHOWN]) + f"; {words}",
                "Shared memory is taken from the host's memory as it fills.",
                "Lower container.shm_size in the recipe; 1g is what the guides use.",
            )
        )
    return found


def _small_containers(plan: Facts) -> Findings:
    """Containers whose shared memory is too small for the workers' messages."""
    small = [
        process["name"]
        for process in plan["processes"]
        if process["devices"] and (size_mb(container(process).get("shm_size", "1g")) or _MIN_SHM_MB) < _MIN_SHM_MB
    ]
    if not small:
        return []
    return [
        error(
            "D13",
            None,
            f"less than 1 GiB of shared memory: {listed(small)}",
            "; ".join(
                f"{one['name']}: {one['container']['shm_size']}" for one in plan["processes"] if one["name"] in small
            ),
            "The workers of an engine exchange messages through /dev/shm; a small one ends them with a bus error.",
            "Set container.shm_size to 1g or more in the recipe.",
        )
    ]


# -- disk --------------------------------------------------------------------------------------------------------------


#: An image of nginx, unpacked, with room.
_GATEWAY_MB = 512.0


def _image_mb(context: Context, image: str) -> Tuple[float, str]:
    """What an image takes on disk: as on a node that has it, else as much as an engine's image may take."""
    known = [
        part(node, "container_engine", "inspected").get(image) or {}
        for node in context.nodes.values()
        if node is not None
    ]
    sizes = [one["bytes"] for one in known if one.get("bytes")]
    if sizes:
        return max(sizes) / 2**20, "as on another node"
    mine = {one["kind"] for one in context.plan["processes"] if container(one).get("image") == image}
    if mine == {"gateway"}:
        return _GATEWAY_MB, "allowed for nginx"
    return context.image_gb * 1024, "allowed for an image of unknown size"


def _needs(context: Context, host: str, node: Facts) -> List[Tuple[str, float, str]]:
    """What this host still has to store: ``(path, MB, what)``."""
    needs: List[Tuple[str, float, str]] = []
    root = str(part(node, "container_engine").get("data_root") or _DEFAULT_ROOT)
    present = part(node, "container_engine").get("inspected") or {}
    seen: Set[str] = {
        image for one in part(node, "state").get("generations", ()) for image in one.get("images") or ()
    } | {image for image, found in present.items() if found}
    for image in images_of(context.plan, host):
        if image not in seen:
            size, why = _image_mb(context, image)
            needs.append((root, size, f"image {image}: {gib(size)} {why}"))
    weights = node.get("weights")
    if weights and not weights["complete"] and context.weights_bytes:
        size = max(0.0, (context.weights_bytes - weights["bytes"]) / 2**20)
        model = context.plan["model"]["id"]
        needs.append((weights["directory"], size, f"weights of {model}: {gib(size)} of the catalogue's figures"))
    return needs


def _disk(context: Context, host: str, node: Facts) -> Findings:
    """Free space against images and weights that are not there yet, summed up where they share a file system."""
    disks = part(node, "disk")
    by_disk: Dict[Any, List[Tuple[str, float, str]]] = {}
    for path, size, what in _needs(context, host, node):
        if disks.get(path):
            by_disk.setdefault(disks[path].get("device", path), []).append((path, size, what))
    found = []
    for needs in by_disk.values():
        disk = disks[needs[0][0]]
        wanted = sum(size for _, size, _ in needs)
        if disk["free_mb"] < wanted:
            paths = list(dict.fromkeys(path for path, _, _ in needs))
            found.append(
                error(
                    "D16",
                    host,
                    f"{host} has {gib(disk['free_mb'])} free for {' and '.join(paths)}, {gib(wanted)} are wanted",
                    "; ".join(what for _, _, what in needs) + f"; {disk['free_mb']} of {disk['total_mb']} MB free",
                    "Old images, layers, logs or models fill the file system.",
                    "docker system df, docker image prune; du -xsh on the rest; or move data-root or the cache"
                    " directory.",
                )
            )
    return found


# -- limits, container engine, user ------------------------------------------------------------------------------------


def _limits(context: Context, host: str, node: Facts) -> Findings:
    """Limits that a container of this host gets and an engine runs into."""
    mine = [one for one in context.plan["processes"] if one["host"] == host and one["devices"]]
    bare = [one["name"] for one in mine if container(one) and "nofile" not in (container(one).get("ulimits") or {})]
    system = part(node, "system")
    files = part(system, "limits", "container_engine").get("nofile")
    found = []
    if bare and files is not None and files < _MIN_FILES:
        found.append(
            warning(
                "D14",
                host,
                f"containers of {host} may open {files} files, engines want {_MIN_FILES}",
                f"soft limit of the container engine's service; used by {listed(bare)}",
                "The service was given a low LimitNOFILE, and containers inherit it.",
                "systemctl edit containerd docker with LimitNOFILE=1048576; or container.ulimits.nofile in the recipe.",
            )
        )
    pids = part(system, "cgroup").get("pids_max")
    if mine and pids is not None and pids < _MIN_PIDS:
        found.append(
            warning(
                "D14",
                host,
                f"all containers of {host} together may run {pids} threads, engines want {_MIN_PIDS} or more",
                "pids.max of the cgroup above the containers",
                "The slice of the container engine has a limit for tasks.",
                "systemctl set-property system.slice TasksMax=infinity",
            )
        )
    return found


def container_engine(plan: Facts, host: str, node: Facts) -> Findings:
    """Whether a host that needs one has a container engine that runs, and that Ansible's modules can ask."""
    engine = node.get("container_engine")
    wanted = any(container(one) for one in plan["processes"] if one["host"] == host)
    if engine is None or not wanted:
        return []
    if engine.get("running"):
        return [
            error(
                "container-engine",
                host,
                f"Ansible's Docker modules lack the Python module {module} on {host}",
                f"the container engine {engine.get('version')} runs",
                "The engine was installed without what Ansible asks it through.",
                f"Run the provision stage: ansible-playbook deploy.yml -l {plan['cluster']} --tags provision,launch",
                "container_engine",
            )
            for module in engine.get("missing_python", ())
        ]
    state = "does not run" if engine.get("installed") else "is not installed"
    return [
        error(
            "container-engine",
            host,
            f"the container engine {state} on {host}",
            str(engine.get("error") or "docker version gave nothing"),
            "It was never installed or its service has failed.",
            f"systemctl status docker, or: ansible-playbook deploy.yml -l {plan['cluster']} --tags provision,launch",
            "container_engine",
        )
    ]


def _names(context: Context, host: str, node: Facts) -> Findings:
    """Containers of somebody else that have a name of the plan: the launch would take their place."""
    planned = {container(one).get("name") for one in context.plan["processes"] if one["host"] == host}
    taken = sorted(str(one) for one in planned & set((node.get("container_engine") or {}).get("others", ())))
    if not taken:
        return []
    return [
        error(
            "D32",
            host,
            f"{host} has containers that are not of this cluster under names of the plan: {listed(taken)}",
            f"without the label ascent.cluster={context.plan['cluster']}",
            "They were made by hand, or the inventory calls this cluster as an earlier one was called.",
            f"Look at them (docker inspect {taken[0]}), then docker rename or docker rm them.",
        )
    ]


def _service_user(context: Context, host: str, node: Facts) -> Findings:
    """The user that the driver's device files belong to."""
    npu = part(node, "npu")
    if not chips_are("ascend", context.plan["hosts"][host]) or not npu.get("driver") or "user" not in npu:
        return []
    user = npu["user"]
    name = part(npu, "install").get("user") or "HwHiAiUser"
    if user and user["uid"] is not None and user["group_gid"] is not None:
        return []
    return [
        # Engines run as root and don't mind; the driver's next installer does.
        info(
            "A17",
            host,
            f"{host} has no {'user' if not user or user['uid'] is None else 'group'} {name},"
            " to whom the driver's devices belong",
            "/etc/passwd and /etc/group",
            "The accounts of the host were replaced after the driver was installed.",
            f"groupadd {name}; useradd -g {name} {name}, with the ids of the other nodes",
        )
    ]


def _architectures(context: Context) -> Findings:
    """Hosts whose arch the inventory gives otherwise than they say. The inventory counts: it is given on purpose.

    An image that is really of another architecture than its host is refused by the stage that pulls it (B07).
    """
    differ = []
    for host, planned in context.plan["hosts"].items():
        machine = part(context.nodes.get(host), "system").get("machine")
        arch = planned.get("arch")
        if machine and arch and ARCHITECTURES.get(arch, arch) != ARCHITECTURES.get(machine, machine):
            differ.append(f"{host}: arch {arch}, uname -m {machine}")
    if not differ:
        return []
    return [
        info(
            "arch-differs",
            None,
            f"the inventory's arch counts for {len(differ)} hosts that say otherwise",
            listed(differ),
            "The inventory's arch is wrong, or it is meant to differ, as for a rehearsal on other machines.",
            "Leave arch out of the inventory to take what the hosts say.",
        )
    ]
