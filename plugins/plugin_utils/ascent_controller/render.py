"""From a plan to files: scripts, plan.json and the picture. Pure; nothing is read but the templates beside the role."""

from __future__ import annotations

__all__ = ["FINGERPRINT", "MANAGED", "container_options", "files", "plan_text", "tree"]

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ascent import shell
from ascent_controller import plan_picture

#: First lines of every generated file, by which its owner can be told.
MANAGED = "Ansible managed: made by Ascent from a recipe; change the recipe, not this file"
FINGERPRINT = "# ascent:generation"

_TEMPLATES = Path(__file__).resolve().parents[3] / "roles" / "generation" / "templates"


def files(plan: Mapping[str, Any], host: str | None = None) -> dict[str, dict[str, str]]:
    """The scripts of a plan by host and file name; of one ``host`` only if it is named.

    Every process and every job gives ``<process>.sh``, which runs inside the image, and ``<process>.docker.sh``, which
    runs that one in a container by hand. Engines outside containers have the first only: it runs as it stands. Hosts
    without a process are there with an empty mapping. The same plan gives the same bytes.
    """
    result: dict[str, dict[str, str]] = {name: {} for name in plan["hosts"] if host in (None, name)}
    for process in [*plan["processes"], *plan.get("jobs", [])]:
        if process["host"] not in result:
            continue
        here = result[process["host"]]
        here[f"{process['name']}.sh"] = _template("process.sh.j2").render(
            managed=MANAGED,
            plan=plan,
            process=process,
            role=_role(process),
            needs=_needs(process),
            command="\n".join(shell.command_lines(process["argv"], prefix="exec ")),
        )
        if process["container"]:
            here[f"{process['name']}.docker.sh"] = _template("docker.sh.j2").render(
                managed=MANAGED, plan=plan, process=process, command=_docker_run(process)
            )
    return result


def plan_text(plan: Mapping[str, Any]) -> str:
    """``plan.json``, the same wherever it is written."""
    return json.dumps(plan, indent=2, ensure_ascii=False) + "\n"


def tree(plan: Mapping[str, Any]) -> dict[str, str]:
    """All files of a rendered folder by relative path: the hosts' scripts, ``plan.json`` and ``plan.svg``."""
    result = {f"{host}/{name}": text for host, texts in files(plan).items() for name, text in texts.items()}
    result["plan.json"] = plan_text(plan)
    result["plan.svg"] = plan_picture.svg(plan)
    return result


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701 - shell scripts, quoted by ascent.shell; HTML escaping would break them
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["word"] = shell.word
    environment.filters["export_line"] = shell.export_line
    environment.filters["heredoc"] = shell.heredoc
    return environment.get_template(name)


def _needs(process: Mapping[str, Any]) -> str:
    """Where a script belongs, for who runs it elsewhere."""
    container = process["container"]
    return f"this script runs inside {container['image']}" if container else "install CANN, or set engine.source"


#: What a process beside the engines is, by its kind.
_KINDS = {
    "router": "the router that clients talk to",
    "frontend": "the frontend that clients talk to",
    "gateway": "the gateway before the router: API keys and TLS",
    "kv-store": "master of the KV store",
    "indexer": "index of what is cached where",
    "tokenizer": "tokenizer for the router",
    "discovery": "where processes find each other",
    "metadata": "metadata of the KV store",
    "service": "a service beside the engines",
    "job": "a job that runs once",
}


def _role(process: Mapping[str, Any]) -> str:
    """One line that tells a reader of the script what this process is."""
    parallel = process["parallel"]
    if parallel is None:
        return _KINDS[process["kind"]]
    who = f"{process['kind']} of {process['role']} instance {process['instance']}"
    if process["kind"] in ("worker", "ray-head", "ray-worker") and parallel["nodes"] > 1:
        return f"{who}, node {parallel['node_rank']} of {parallel['nodes']}"
    first = parallel["start_rank"]
    last = first + parallel["data_local"] - 1
    ranks = f"data parallel rank {first}" if first == last else f"data parallel ranks {first} to {last}"
    return f"{who}, {ranks} of {parallel['data']}"


def container_options(container: Mapping[str, Any]) -> list[list[str]]:
    """What ``docker run`` is given for a process's container, an option of its words each; no name and no image."""
    # The bridge is the container engine's own default.
    options: list[list[str]] = [[f"--net={container['network']}"]] if container["network"] != "bridge" else []
    options += [["-p", f"{port}:{port}"] for port in container["publish"]]
    if container.get("init"):
        options.append(["--init"])
    if container["ipc"]:
        options.append([f"--ipc={container['ipc']}"])
    if container["shm_size"]:
        options.append([f"--shm-size={container['shm_size']}"])
    if container["privileged"]:
        options.append(["--privileged=true"])
    options += [["--cap-add", name] for name in container["capabilities"]]
    options += [["--ulimit", f"{name}={limit}"] for name, limit in container["ulimits"].items()]
    limits = [name for name in ("memory", "cpuset_cpus", "cpuset_mems") if name in container]
    options += [[f"--{name.replace('_', '-')}={container[name]}"] for name in limits]
    if container["gpus"]:
        # The option takes comma separated values, so a value with commas has quotes of its own.
        options.append(["--gpus", container["gpus"] if container["gpus"] == "all" else f'"{container["gpus"]}"'])
    options += [["--device", device] for device in container["devices"]]
    for mount in container["mounts"]:
        mode = ":ro" if mount["read_only"] else ""
        options.append(["-v", f"{mount['source']}:{mount['target']}{mode}"])
    return options


def _docker_run(process: Mapping[str, Any]) -> str:
    container = process["container"]
    run = [["docker", "run", "--rm"], ["--name", container["name"]]]
    lines = shell.command_lines([*run, *container_options(container)])
    script = f'    -v "$here"/{shell.word(process["name"])}.sh:{shell.word(container["script"])}:ro'
    image = "    " + " ".join(shell.word(part) for part in [container["image"], *container["command"]])
    return " \\\n".join([*(line.removesuffix(" \\") for line in lines), script, image])
