#!/usr/bin/python
"""Thin module around ascent.engine_config."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_engine
short_description: Configure and run the Docker engine, in one call
description:
  - Merges settings into C(/etc/docker/daemon.json), and sees to it that the service is enabled, running and answering.
  - Settings the engine can take over while running are reloaded. Others need a restart, which happens only while no
    container runs, or with O(restart_ok).
  - If the engine does not come up with the new file, the old one is put back.
  - Where the engine is not installed yet, check mode predicts; otherwise that is an error.
options:
  state:
    description: Whether our settings are merged in, or taken out again. V(absent) leaves engine and service alone.
    type: str
    choices: [present, absent]
    default: present
  daemon:
    description: Settings of daemon.json. Mappings are merged, lists get what they lack, other values are replaced.
    type: dict
    default: {}
  registry_mirrors:
    description: URLs added to C(registry-mirrors).
    type: list
    elements: str
    default: []
  insecure_registries:
    description: HOST:PORT or networks added to C(insecure-registries).
    type: list
    elements: str
    default: []
  restart_ok:
    description: Restart the engine when a setting needs it, even if that stops containers.
    type: bool
    default: false
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Run the engine
  container_engine:
    daemon:
      live-restore: true
    insecure_registries: [198.51.100.10:5000]
"""

RETURN = r"""
findings:
  description: A restart that is still to come (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
steps:
  description: What was done to the service, or would be in check mode, in systemctl's verbs.
  returned: always
  type: list
  elements: str
restart_required:
  description: True while a changed setting waits for a restart.
  returned: always
  type: bool
missing_python:
  description: Python packages that Ansible's Docker modules need and this host's Python lacks.
  returned: always
  type: list
  elements: str
"""

import json

from ansible.module_utils.ascent import engine_config, host_facts
from ansible.module_utils.ascent.errors import AscentError, ToolError
from ansible.module_utils.ascent.files import Tree
from ansible.module_utils.basic import AnsibleModule

ROOT = "/"
SERVICE = "docker.service"
DAEMON_FILE = "/etc/docker/daemon.json"
STATE_FILE = "/var/lib/ascent/container_engine.json"
PROPERTIES = "LoadState,ActiveState,UnitFileState,ActiveEnterTimestampMonotonic"


def observe(module: AnsibleModule, tree: Tree) -> dict:
    """The file, the service and the number of running containers."""
    systemctl = module.get_bin_path("systemctl", required=True)
    _, out, _ = module.run_command([systemctl, "show", SERVICE, "--property", PROPERTIES], check_rc=True)
    service = engine_config.parse_service(out)
    saved = tree.read(STATE_FILE)
    return {
        "text": tree.read(DAEMON_FILE),
        "source": DAEMON_FILE,
        "service": service,
        "containers": count_containers(module) if service["active"] == "active" else 0,
        "saved": json.loads(saved) if saved else {"schema": 1, "undo": [], "pending": ""},
    }


def count_containers(module: AnsibleModule) -> int:
    """How many containers run. ToolError when the engine does not answer."""
    docker = module.get_bin_path("docker", required=True)
    rc, out, err = module.run_command([docker, "ps", "--quiet"])
    if rc:
        raise ToolError("docker ps", f"the engine's service is active but it does not answer: {err.strip()}", rc)
    return len(out.split())


def apply(module: AnsibleModule, tree: Tree, observed: dict, decided: dict) -> None:
    """Write the file and drive the service; put the old file back when the engine does not come up with the new one."""
    if decided["steps"] and observed["service"]["loaded"] == "not-found":
        raise AscentError(f"wanted {SERVICE}, found no such unit; install the engine first (role container_engine)")
    if decided["saved"] != observed["saved"]:
        tree.write_file(STATE_FILE, json.dumps(decided["saved"], indent=1, sort_keys=True) + "\n")
    if decided["write"]:
        put(tree, decided["text"])
    try:
        drive(module, decided["steps"])
    except ToolError as error:
        if not decided["write"]:
            raise
        put(tree, observed["text"])
        tree.write_file(STATE_FILE, json.dumps(observed["saved"], indent=1, sort_keys=True) + "\n")
        drive(module, ["restart"])
        raise ToolError("docker", f"{error}. {DAEMON_FILE} was put back; changed were {decided['keys']}") from None


def put(tree: Tree, text: str | None) -> None:
    """Make daemon.json hold ``text``, or be gone."""
    if text is None:
        tree.remove(DAEMON_FILE)
    else:
        tree.write_file(DAEMON_FILE, text)


def drive(module: AnsibleModule, steps: list) -> None:
    """Run systemctl verbs, then ask the engine itself. ToolError with the journal's last lines when one fails."""
    systemctl = module.get_bin_path("systemctl", required=True)
    for step in steps:
        if step in ("start", "restart"):
            # systemd counts starts and refuses after a few; the count is about crashes, not about us.
            module.run_command([systemctl, "reset-failed", SERVICE])
        rc, _, err = module.run_command([systemctl, step, SERVICE])
        if rc:
            _, journal, _ = module.run_command(["journalctl", "--unit", SERVICE, "--lines", "5", "--output", "cat"])
            raise ToolError(f"systemctl {step} {SERVICE}", f"{err.strip()} Journal: {journal.strip()}", rc)
    if steps:
        count_containers(module)


def main() -> None:
    """Observe, plan, apply."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "daemon": {"type": "dict", "default": {}},
            "registry_mirrors": {"type": "list", "elements": "str", "default": []},
            "insecure_registries": {"type": "list", "elements": "str", "default": []},
            "restart_ok": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    result = {
        "changed": False,
        "findings": [],
        "steps": [],
        "restart_required": False,
        "missing_python": host_facts.missing_python(),
        "diff": [],
    }
    tree = Tree(ROOT)
    try:
        observed = observe(module, tree)
        settings = engine_config.wanted(given["daemon"], given["registry_mirrors"], given["insecure_registries"])
        if given["state"] == "absent":
            settings = {}
        decided = engine_config.plan(settings, observed, given["restart_ok"])
        if given["state"] == "absent":
            decided["steps"] = [step for step in decided["steps"] if step in ("reload", "restart")]
        result.update(
            changed=bool(decided["write"] or decided["steps"]),
            findings=decided["findings"],
            steps=decided["steps"],
            restart_required=decided["restart_required"],
            diff=diff(observed, decided),
        )
        if not module.check_mode:
            apply(module, tree, observed, decided)
            if given["state"] == "absent" and not decided["restart_required"]:
                tree.remove(STATE_FILE)
    except (AscentError, OSError, ValueError) as error:
        problem = engine_config.invalid(error, DAEMON_FILE)
        result["findings"] = [problem] if problem else []
        module.fail_json(msg=f"container engine: {error}", **result)
    module.exit_json(**result)


def diff(observed: dict, decided: dict) -> list:
    """daemon.json and the service, before and after."""
    parts = []
    if decided["write"]:
        parts.append((DAEMON_FILE, observed["text"] or "", decided["text"] or ""))
    if decided["steps"]:
        before = f"{observed['service']['active']}, {observed['service']['enabled']}\n"
        parts.append((SERVICE, before, f"{before}{', '.join(decided['steps'])}\n"))
    return [{"before_header": name, "after_header": name, "before": old, "after": new} for name, old, new in parts]


if __name__ == "__main__":
    main()
