"""Filters that turn plan values into what Ansible's modules take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ascent import access, engine_imports, generations, npu, preflight, units, upgrade
from ascent.findings import finding, in_a_line
from ascent_controller import checking, provisioning, render, rescues, tuning

DOCUMENTATION = r"""
name: ascent_mounts
short_description: Bind mounts of a plan process in the form community.docker takes
"""


def ascent_mounts(mounts: Sequence[Mapping[str, Any]], *extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plan's mounts, then ``extra`` ones, as ``community.docker.docker_container`` wants them.

    >>> ascent_mounts([{"source": "/root/.cache", "target": "/root/.cache", "read_only": False}])
    [{'type': 'bind', 'source': '/root/.cache', 'target': '/root/.cache', 'read_only': False}]
    """
    return [
        {"type": "bind", "source": mount["source"], "target": mount["target"], "read_only": bool(mount["read_only"])}
        for mount in (*mounts, *extra)
    ]


def ascent_published(container: Mapping[str, Any]) -> list[str]:
    """The ports that a container on a bridge network publishes, under their own numbers.

    >>> ascent_published({"publish": [8113]})
    ['8113:8113']
    """
    return [f"{port}:{port}" for port in container["publish"]]


def ascent_ulimits(container: Mapping[str, Any]) -> list[str]:
    """The plan's limits as ``NAME:SOFT`` or ``NAME:SOFT:HARD``.

    >>> ascent_ulimits({"ulimits": {"memlock": "-1"}})
    ['memlock:-1']
    """
    return [f"{name}:{limit}" for name, limit in container["ulimits"].items()]


def ascent_device_requests(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``--gpus`` asks of the container engine, as ``community.docker.docker_container`` wants it.

    >>> ascent_device_requests({"gpus": "device=0,1"})
    [{'device_ids': ['0', '1'], 'capabilities': [['gpu']]}]
    >>> ascent_device_requests({"gpus": "all"}), ascent_device_requests({"gpus": None})
    ([{'count': -1, 'capabilities': [['gpu']]}], [])
    """
    wanted = container["gpus"]
    if not wanted:
        return []
    which = {"count": -1} if wanted == "all" else {"device_ids": wanted.removeprefix("device=").split(",")}
    return [{**which, "capabilities": [["gpu"]]}]


def ascent_conf_image(plan: Mapping[str, Any], host: str) -> str | None:
    """The image of the first process on ``host`` whose container reads ``/etc/hccn.conf``; None where none does.

    >>> mounts = [{"source": "/etc/hccn.conf", "target": "/etc/hccn.conf", "read_only": True}]
    >>> plan = {"processes": [{"host": "a", "container": {"image": "engine:1", "mounts": mounts}}]}
    >>> ascent_conf_image(plan, "a"), ascent_conf_image(plan, "b")
    ('engine:1', None)
    """
    for process in plan["processes"]:
        container = process.get("container") or {}
        if process["host"] == host and any(mount["target"] == npu.CONF for mount in container.get("mounts", ())):
            return str(container["image"])
    return None


def ascent_test_container(plan: Mapping[str, Any], host: str) -> dict[str, Any]:
    """The image in which collective tests may be on ``host``, and with what a container of it is started.

    ``{"image": reference or None, "options": [words of docker run]}``: the engine's image, with the devices of all of
    the host's engines, on the host's network. None where no engine of the host runs in a container.
    """
    engines = [one for one in plan["processes"] if one["host"] == host and one["devices"] and one.get("container")]
    if not engines:
        return {"image": None, "options": []}
    first = engines[0]["container"]
    merged = {**first, "network": "host", "publish": []}
    for key in ("devices", "mounts"):
        merged[key] = []
        for entry in (entry for one in engines for entry in one["container"][key]):
            if entry not in merged[key]:
                merged[key].append(entry)
    if merged["gpus"]:
        merged["gpus"] = "all"
    words = [word for option in render.container_options(merged) for word in option]
    return {"image": first["image"], "options": words}


def ascent_locked_images(
    plan: Mapping[str, Any], facts: Iterable[Mapping[str, Any]], node: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every image of the plan's processes by the digest that the cluster has locked for it (`provisioning.lock`).

    ``facts`` has every host's ``ansible_facts``. Names are those of the host whose fact ``ascent_node`` is ``node``.
    """
    states = [(host.get("ascent_node") or {}).get("state") for host in facts]
    digests = {reference: generations.locked_digest(reference, states) for reference in generations.images_of(plan)}
    return ascent_images_by_digest(digests, node)


def ascent_images_by_digest(digests: Mapping[str, str | None], node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Images by reference under the names of the host whose fact ``ascent_node`` is ``node`` (`provisioning.lock`)."""
    present = (node.get("container_engine") or {}).get("images") or []
    return {reference: provisioning.lock(reference, digest, present) for reference, digest in digests.items()}


def ascent_good_generations(plan: Mapping[str, Any], facts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Which generations passed, the running one included; None when that is known already (`generations.passed`).

    ``facts`` has every host's ``ansible_facts``.
    """
    seen = list(facts)
    launched = next((host["ascent_generation"]["number"] for host in seen if "ascent_generation" in host), None)
    return generations.passed(plan, [(host.get("ascent_node") or {}).get("state") for host in seen], launched)


def ascent_collected(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What `node_logs` returned by host, as far as hosts could be reached."""
    found = {host: hostvars[host].get("__logs") or {} for host in hosts}
    return {host: {"archive": logs["archive"]} for host, logs in found.items() if "archive" in logs}


def ascent_upgrade_outcome(
    hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], announced: Mapping[str, Any], outage: Any
) -> dict[str, Any]:
    """How an upgrade ended (`upgrade.outcome`), from what its tasks left as variables of ``hosts``."""
    seen = [hostvars[host] for host in hosts]
    undone = any(host.get("__upgrade_undone") for host in seen)
    known = seen[0]["ansible_facts"]
    back = undone and all(host.get("__upgrade_back") for host in seen)
    return upgrade.outcome(
        known["ascent_generation"]["number"],
        known["ascent_kept"]["number"] if back else None,
        announced["expected_seconds"],
        outage,
        rescues.reasons(hostvars, hosts, "upgrade") if undone else (),
        stuck=undone and not back,
    )


def ascent_rolled_back(
    number: int, kept: int, hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]
) -> list[dict[str, Any]]:
    """What to tell of a launch that failed and was undone: generation ``number`` is generation ``kept`` again."""
    why = rescues.reasons(hostvars, hosts, "launch")
    return [
        *why,
        finding(
            "launch-rolled-back",
            "error",
            f"the launch failed; generation {kept} serves again, as generation {number}",
            stage="launch",
            evidence=in_a_line(why),
            cause="launch_rollback_on_failure is set.",
            fix="Correct the recipe or the node, then run --tags launch,check.",
        ),
    ]


def ascent_units(
    processes: Iterable[Mapping[str, Any]], generation: Mapping[str, Any], root: str, cluster: str, stop_seconds: int
) -> list[dict[str, str]]:
    """Units of systemd for the plan's ``processes``: name and text. ``root`` holds the generations' scripts."""
    made = []
    for process in processes:
        decided = generation["processes"][process["name"]]
        labels = {
            "cluster": cluster,
            "process": process["name"],
            "generation": decided["since"],
            "definition": decided["definition"],
        }
        script = f"{root}/{decided['since']}/{process['name']}.sh"
        text = units.text(process["unit"], script, labels, managed=render.MANAGED, stop_seconds=stop_seconds)
        made.append({"name": process["unit"]["name"], "text": text})
    return made


def ascent_environments_differ(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Findings on hosts whose engine environment is not that of the others, from what the role registered on each."""
    versions = {}
    for host in hosts:
        made = host.get("__engine_environment_made") or {}
        found = made if made.get("present") else host.get("__engine_environment_found") or {}
        if found.get("present"):
            versions[str(host["inventory_hostname"])] = {"python": found["python"], **found["installed"]}
    told = engine_imports.odd_ones("environment-differs", "the engine's environment", versions)
    return [{**item, "stage": "provision"} for item in told]


def ascent_import_findings(hosts: Iterable[Mapping[str, Any]], engine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`engine_imports.judge` of what the role engine registered on each host."""
    results = {str(host["inventory_hostname"]): host.get("__engine_imports") for host in hosts}
    return engine_imports.judge(
        {name: found if found and "versions" in found else None for name, found in results.items()}, engine
    )


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "ascent_bench_due": checking.bench_due,
            "ascent_bench_load": checking.bench_load,
            "ascent_bench_setting": checking.bench_setting,
            "ascent_endpoint_host": checking.endpoint_host,
            "ascent_good_generations": ascent_good_generations,
            "ascent_health_endpoints": checking.health_endpoints,
            "ascent_images_by_digest": ascent_images_by_digest,
            "ascent_images_of": generations.images_of,
            "ascent_collected": ascent_collected,
            "ascent_conf_image": ascent_conf_image,
            "ascent_test_container": ascent_test_container,
            "ascent_host_names": tuning.host_names,
            "ascent_host_needs": tuning.needs,
            "ascent_environments_differ": ascent_environments_differ,
            "ascent_import_findings": ascent_import_findings,
            "ascent_read": checking.read,
            "ascent_units": ascent_units,
            "ascent_unread": checking.unread,
            "ascent_upgrade_outcome": ascent_upgrade_outcome,
            "ascent_device_requests": ascent_device_requests,
            "ascent_locked_images": ascent_locked_images,
            "ascent_mounts": ascent_mounts,
            "ascent_preflight_repairs": preflight.repairs,
            "ascent_published": ascent_published,
            "ascent_server_keys": access.server_keys,
            "ascent_rolled_back": ascent_rolled_back,
            "ascent_traffic_engines": checking.traffic_engines,
            "ascent_ulimits": ascent_ulimits,
            "ascent_version_urls": checking.version_urls,
        }
