#!/usr/bin/python
"""Thin module around ascent.image_pulls, ascent.image_service and the engine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_pull
short_description: Bring images to this host by digest, all in one call
description:
  - What the host has by digest, under any name, is not touched. The rest is pulled by digest and also gets the tag of
    its reference, so that C(docker image prune) leaves it and people find it.
  - An image without O(images[].spread) comes from its registry. The others come by a small service on this host, which
    asks the hosts above it, or the registry itself, and serves the hosts below it (see C(ascent.image_server)).
  - The service runs on where there are hosts below, and ends by O(state=absent), or ten minutes after the last request.
  - A pull that fails is a finding; the host keeps no part of the image but what a repeated call can use.
options:
  state:
    description: V(present) brings the images, V(absent) ends the service and removes its store.
    type: str
    choices: [present, absent]
    default: present
  images:
    description: The images.
    type: list
    elements: dict
    default: []
    suboptions:
      reference:
        description: Full reference, as recipes give it.
        type: str
        required: true
      digest:
        description: Its digest. Empty where a dry run can't know it.
        type: str
      spread:
        description: Whether it comes by the hosts of the cluster.
        type: bool
        default: false
      upstreams:
        description: Addresses of the hosts above, nearest first. None for the host that has it from elsewhere.
        type: list
        elements: str
        default: []
      below:
        description: Addresses of the hosts below.
        type: list
        elements: str
        default: []
  archive:
    description: Whether the parts of the images lie in O(store) already, and no registry is asked.
    type: bool
    default: false
  address:
    description: This host's own address in the network of the hosts.
    type: str
    default: 127.0.0.1
  port:
    description: Port of the service.
    type: int
    default: 28950
  store:
    description: Directory in which parts of images wait.
    type: path
    default: /var/lib/ascent/images
  machine:
    description: Machine that the images have to be for, as C(uname -m) prints it. Empty compares nothing.
    type: str
    default: ""
  config:
    description: Docker's file of logins.
    type: path
    default: ~/.docker/config.json
  host:
    description: Name of this host in findings.
    type: str
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Bring the engine image
  image_pull:
    images:
      - reference: quay.io/ascend/vllm-ascend:v0.21.0rc1-a3
        digest: sha256:0000000000000000000000000000000000000000000000000000000000000000
"""

RETURN = r"""
names:
  description: Name by which the host has each image, by reference. Those of a dry run may be names to come.
  returned: always
  type: dict
received:
  description: Bytes by where the host's service got them from, a registry's name or a host's address.
  returned: always
  type: dict
serving:
  description: Whether the service goes on, for the hosts below.
  returned: always
  type: bool
findings:
  description: Images that could not be had (docs/architecture.md, section 2).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.ascent import engine_api, image_pulls, image_service
from ansible.module_utils.ascent.errors import AscentError
from ansible.module_utils.ascent.findings import message
from ansible.module_utils.basic import AnsibleModule

IMAGE = {
    "reference": {"type": "str", "required": True},
    "digest": {"type": "str"},
    "spread": {"type": "bool", "default": False},
    "upstreams": {"type": "list", "elements": "str", "default": []},
    "below": {"type": "list", "elements": "str", "default": []},
}


def main() -> None:
    """Look, predict or pull."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "images": {"type": "list", "elements": "dict", "default": [], "options": IMAGE},
            "archive": {"type": "bool", "default": False},
            "address": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 28950},
            "store": {"type": "path", "default": "/var/lib/ascent/images"},
            "machine": {"type": "str", "default": ""},
            "config": {"type": "path", "default": "~/.docker/config.json"},
            "host": {"type": "str"},
        },
        supports_check_mode=True,
    )
    given = module.params
    result = {"changed": False, "names": {}, "received": {}, "serving": False, "findings": [], "diff": []}
    service = image_service.Service(module.run_command, given["store"], given["port"])
    try:
        if given["state"] == "absent":
            result["changed"] = service.exists()
            if not module.check_mode:
                service.remove()
        else:
            present(module, service, result)
    except (AscentError, OSError, ValueError) as error:
        module.fail_json(msg=f"image pull: {error}", **result)
    if result["findings"]:
        module.fail_json(msg=message(result["findings"]), **result)
    module.exit_json(**result)


def present(module: AnsibleModule, service: image_service.Service, result: dict) -> None:
    """Bring what is missing."""
    given = module.params
    engine = engine_api.Engine(engine_api.SOCKET)
    try:
        information = engine.information()
    except engine_api.EngineError:
        if not module.check_mode:
            raise
        # The engine itself is still to come, and so are the images.
        information = None
    pull = image_pulls.Pull(engine, information or {}, given)
    missing = pull.look() if information is not None else given["images"]
    result["names"] = pull.names
    result["changed"] = bool(missing)
    result["diff"] = [
        {
            "before_header": "images",
            "after_header": "images",
            "before": "",
            "after": f"{one['reference']} {one['digest']}\n",
        }
        for one in missing
    ]
    if module.check_mode:
        return
    serving = [one for one in given["images"] if one["spread"]]
    if serving:
        result["serving"] = any(one["below"] for one in serving)
        service.start(pull.configuration(given["store"]))
    try:
        for image in missing:
            problem = pull.bring(image, service.errors if image["spread"] else list)
            if problem:
                result["findings"].append(problem)
        if serving:
            result["received"] = service.status()["received"]
    finally:
        if serving and not result["serving"]:
            full = any(one["id"] == "D16" for one in result["findings"])
            # What came already spares the next attempt the way, unless there is no room for it.
            service.remove(keep_store=bool(result["findings"]) and not full)


if __name__ == "__main__":
    main()
