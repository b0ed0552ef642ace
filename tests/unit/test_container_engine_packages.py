"""Which packages the role container_engine takes on which operating system: its variables, without any host."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

VARS = Path(__file__).parents[2] / "roles/container_engine/vars"


def variables(system: dict[str, str | None]) -> dict:
    """What the role reads of its own files on a host with these facts of node_info."""
    candidates = yaml.safe_load((VARS / "main.yml").read_text())["_container_engine_candidates"]["files"]
    templar = Templar(loader=DataLoader(), variables={"container_engine_system": system})
    names = [templar.template(trust_as_template(name)) for name in candidates]
    return yaml.safe_load(next((VARS / name) for name in names if (VARS / name).exists()).read_text())


@pytest.mark.parametrize(
    ("identity", "version", "family", "manager", "packages"),
    [
        ("debian", "11", "debian", "apt", ["docker.io"]),
        ("debian", "12", "debian", "apt", ["docker.io"]),
        ("debian", "13", "debian", "apt", ["docker.io", "docker-cli"]),
        ("debian", None, "debian", "apt", ["docker.io", "docker-cli"]),
        ("ubuntu", "22.04", "debian", "apt", ["docker.io"]),
        ("ubuntu", "24.04", "debian", "apt", ["docker.io"]),
        ("uos", "20", "debian", "apt", ["docker.io"]),
        ("openEuler", "22.03", "rhel", "dnf", ["docker"]),
        ("openEuler", "24.03", "rhel", "dnf", ["docker"]),
        ("kylin", "V10", "rhel", "dnf", ["docker-engine"]),
        ("fedora", "42", "rhel", "dnf", ["moby-engine"]),
        ("centos", "9", "rhel", "dnf", ["docker-ce", "docker-ce-cli", "containerd.io"]),
        ("rocky", "9.4", "rhel", "dnf", ["docker-ce", "docker-ce-cli", "containerd.io"]),
    ],
)
def test_packages_of_a_system(
    identity: str, version: str | None, family: str, manager: str, packages: list[str]
) -> None:
    found = variables({"id": identity, "version": version, "family": family})
    assert found["_container_engine_manager"] == manager
    assert found["_container_engine_distribution"] == packages
    assert found["_container_engine_client"] == ["python3-requests"]
