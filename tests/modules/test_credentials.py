"""The module that keeps secret files on a node: modes, what it says, and when a gateway is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from library import credentials

SECRET = "s3cret-s3cret-s3cret"
ENV = f"export VLLM_API_KEY={SECRET}\n"


class Docker:
    """A container engine on which one gateway runs or not."""

    def __init__(self, running: bool = True, accepts: bool = True) -> None:
        self.running, self.accepts = running, accepts
        self.calls: list[list[str]] = []

    def __call__(self, _module: Any, argv: list[str], **_: Any) -> tuple[int, str, str]:
        self.calls.append(argv[1:])
        if argv[1] == "inspect":
            return (0, "true\n", "") if self.running else (1, "", "no such object")
        if argv[1] == "exec":
            return (0, "", "") if self.accepts else (1, "", "cannot load certificate")
        return 0, "", ""

    @property
    def told(self) -> int:
        return sum(call[0] == "kill" for call in self.calls)


@pytest.fixture(autouse=True)
def docker(monkeypatch: pytest.MonkeyPatch) -> Docker:
    engine = Docker()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda self, argv, **more: engine(self, argv, **more))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda *_, **__: "/usr/bin/docker")
    return engine


Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(run_module: Callable[..., dict[str, Any]]) -> Call:
    """Call the module; whatever it says is searched for the secret."""

    def run(root: Path, secrets: Any, *, check: bool = False, **more: Any) -> dict[str, Any]:
        result = run_module(credentials, {"root": str(root), "secrets": secrets, **more}, check=check, diff=True)
        assert SECRET not in str(result)
        return result

    return run


def tree(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mode & 0o7777 for path in sorted(root.rglob("*"))}


def test_files_are_for_root_alone_and_a_second_call_changes_nothing(call: Call, tmp_path: Path, docker: Docker) -> None:
    root = tmp_path / "secrets"
    result = call(root, {"head": {"env": ENV}})
    assert (result["changed"], result["written"], result["reloaded"]) == (True, ["head/env"], False)
    assert (root / "head/env").read_text() == ENV
    assert root.stat().st_mode & 0o7777 == 0o700
    assert tree(root) == {"head": 0o700, "head/env": 0o600}
    assert call(root, {"head": {"env": ENV}})["changed"] is False
    assert docker.calls == []


def test_a_dry_run_says_it_and_writes_nothing(call: Call, tmp_path: Path, docker: Docker) -> None:
    result = call(tmp_path / "secrets", {"head": {"env": ENV}}, check=True)
    assert result["changed"] is True
    assert result["diff"][0]["after"] == "(a secret)\n"
    assert not (tmp_path / "secrets").exists()


def test_modes_that_somebody_loosened_are_put_right(call: Call, tmp_path: Path, docker: Docker) -> None:
    call(tmp_path, {"head": {"env": ENV}})
    os.chmod(tmp_path / "head/env", 0o644)
    os.chmod(tmp_path / "head", 0o755)
    assert call(tmp_path, {"head": {"env": ENV}})["changed"] is True
    assert tree(tmp_path) == {"head": 0o700, "head/env": 0o600}


def test_what_is_no_longer_wanted_goes(call: Call, tmp_path: Path, docker: Docker) -> None:
    root = tmp_path / "secrets"
    call(root, {"head": {"env": ENV, "tls.key": "a private key"}, "old": {"env": ENV}})
    result = call(root, {"head": {"env": ENV}})
    assert result["written"] == ["head/tls.key", "old/env"]
    assert tree(root) == {"head": 0o700, "head/env": 0o600}
    assert call(root, {})["changed"] is True
    assert not root.exists()
    assert call(root, {})["changed"] is False


GATEWAY = {"process": "gateway", "container": "ascent-c-gateway"}


def test_a_gateway_reads_new_files_once_and_engines_do_not_matter_to_it(
    call: Call, tmp_path: Path, docker: Docker
) -> None:
    root = tmp_path / "secrets"
    docker.running = False
    assert call(root, {"gateway": {"keys.conf": "keys of day 1"}, "head": {"env": ENV}}, gateway=GATEWAY)["changed"]
    docker.running = True
    assert not call(root, {"gateway": {"keys.conf": "keys of day 1"}, "head": {"env": ENV}}, gateway=GATEWAY)["changed"]
    assert docker.told == 0
    result = call(root, {"gateway": {"keys.conf": "keys of day 2"}, "head": {"env": ENV}}, gateway=GATEWAY)
    assert (result["reloaded"], docker.told) == (True, 1)
    assert docker.calls[-1] == ["kill", "--signal", "HUP", "ascent-c-gateway"]
    assert not call(root, {"gateway": {"keys.conf": "keys of day 2"}, "head": {"env": ENV}}, gateway=GATEWAY)["changed"]
    result = call(root, {"gateway": {"keys.conf": "keys of day 2"}, "head": {"env": ENV + "#"}}, gateway=GATEWAY)
    assert (result["changed"], result["reloaded"], docker.told) == (True, False, 1)


def test_a_run_that_was_cut_off_before_the_gateway_was_told_is_made_good(
    call: Call, tmp_path: Path, docker: Docker
) -> None:
    call(tmp_path, {"gateway": {"keys.conf": "keys of day 1"}}, gateway=GATEWAY)
    (tmp_path / "gateway/keys.conf").write_text("keys of day 2")
    os.chmod(tmp_path / "gateway/keys.conf", 0o600)
    result = call(tmp_path, {"gateway": {"keys.conf": "keys of day 2"}}, gateway=GATEWAY)
    assert (result["written"], result["reloaded"]) == ([], True)


def test_files_that_the_gateway_refuses_fail_and_are_tried_again(call: Call, tmp_path: Path, docker: Docker) -> None:
    call(tmp_path, {"gateway": {"tls.crt": "certificate 1"}}, gateway=GATEWAY)
    docker.accepts = False
    docker.calls.clear()
    result = call(tmp_path, {"gateway": {"tls.crt": "certificate 2"}}, gateway=GATEWAY)
    assert result["failed"]
    assert "refuses its new files" in result["msg"]
    assert docker.told == 0
    docker.accepts = True
    assert call(tmp_path, {"gateway": {"tls.crt": "certificate 2"}}, gateway=GATEWAY)["reloaded"] is True


def test_without_its_action_plugin_it_says_so(call: Call, tmp_path: Path, docker: Docker) -> None:
    assert "through its action plugin" in call(tmp_path, None)["msg"]
