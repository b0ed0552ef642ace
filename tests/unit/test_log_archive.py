"""The archive of all nodes' logs: complete, and without secrets."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from ascent import log_archive
from tests.unit.playbook_runs import play

KEY = "opensesame"
SCRIPT = f"export HF_TOKEN={KEY}2\nexec vllm serve /m \\\n  --api-key {KEY} \\\n  --port 8000\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node's files."""
    current = tmp_path / "etc/ascent/c/generations/3"
    current.mkdir(parents=True)
    (current / "serve-0-head.sh").write_text(SCRIPT)
    (tmp_path / "etc/ascent/c/current").symlink_to("generations/3")
    (tmp_path / "var/lib/ascent/c").mkdir(parents=True)
    (tmp_path / "var/lib/ascent/c/good.json").write_text("{}")
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    return tmp_path


def run(argv: Sequence[str]) -> tuple[int, str, str]:
    """A node with one container, without the vendor's tool."""
    if argv[0] == "npu-smi":
        return 127, "", "npu-smi: not found"
    answers = {
        ("docker", "ps", "--all", "--filter"): "ascent-c-serve-0-head\n",
        ("docker", "logs", "--timestamps", "--tail"): f"GET /v1/models key {KEY}\nINFO max_tokens=50\n",
        ("docker", "inspect", "ascent-c-serve-0-head"): json.dumps(
            [{"Config": {"Env": [f"MY_TOKEN={KEY}3", "HCCL_BUFFSIZE=1024"]}}]
        ),
    }
    return 0, next((text for start, text in answers.items() if tuple(argv[: len(start)]) == start), "x\n"), "warned\n"


def test_it_has_logs_settings_files_and_reasons(root: Path) -> None:
    texts = log_archive.collect("c", run, root=str(root))
    assert "max_tokens=50" in texts["containers/ascent-c-serve-0-head.log"]
    assert "warned" in texts["containers/ascent-c-serve-0-head.log"], "an engine logs to both outputs"
    assert "HCCL_BUFFSIZE=1024" in texts["containers/ascent-c-serve-0-head.json"]
    assert "npu-smi: not found" in texts["npu-smi.txt"]
    assert texts["files/etc/os-release"] == "ID=debian\n"
    assert "files/var/lib/ascent/c/good.json" in texts
    assert "--port 8000" in texts["files/etc/ascent/c/current/serve-0-head.sh"]


def systemd(argv: Sequence[str]) -> tuple[int, str, str]:
    """A node of units: what is asked comes back with the answer."""
    asked = " ".join(argv)
    told = {
        "show": f'Id=x\nEnvironment=HOME=/root HF_TOKEN={KEY}4 "OTHER_TOKEN={KEY} 5"\nNRestarts=3\n',
        "cat": f"# /etc/systemd/system/x\n[Service]\nEnvironment=HF_TOKEN={KEY}4\n",
    }
    if argv[0] == "docker":
        return (0, "", "") if argv[1] == "ps" else (1, "", "no daemon\n")
    what = next((text for word, text in told.items() if word in argv), f"the engine says {KEY}4")
    return 0, f"{asked}\n{what}\n", ""


@pytest.fixture
def units_of_two_clusters(root: Path) -> Path:
    """Units of cluster ``c`` and of ``c-b``, whose names begin alike, and of somebody else."""
    place = root / "etc/systemd/system"
    place.mkdir(parents=True)
    for cluster, process in (("c", "serve-0-head"), ("c", "serve-0-headless-1"), ("c-b", "serve-0-head")):
        (place / f"ascent-{cluster}-{process}.service").write_text(f"[Unit]\nX-Ascent-Cluster={cluster}\n")
    (place / "ascent-c-mine.service").write_text("[Unit]\nDescription=of somebody\n")
    (place / "ssh.service").write_text("[Unit]\nX-Ascent-Cluster=c\n")
    return root


def test_each_unit_of_the_cluster_has_a_log_of_its_own(units_of_two_clusters: Path) -> None:
    texts = log_archive.collect("c", systemd, root=str(units_of_two_clusters), lines=7)
    mine = {name: text for name, text in texts.items() if name.startswith("units/")}
    assert {name.rpartition(".")[0] for name in mine} == {
        "units/ascent-c-serve-0-head",
        "units/ascent-c-serve-0-headless-1",
    }
    for process in ("serve-0-head", "serve-0-headless-1"):
        log = mine[f"units/ascent-c-{process}.log"]
        assert f"--unit=ascent-c-{process}.service --lines=7 " in log, "one that says much takes nothing from others"
        assert "[Service]" in mine[f"units/ascent-c-{process}.service"]
        assert "NRestarts=3" in mine[f"units/ascent-c-{process}.txt"]
    asked = json.dumps(texts)
    assert "c-b" not in asked
    assert "ascent-c-*" not in asked


def test_secrets_of_units_are_hidden(units_of_two_clusters: Path) -> None:
    everything = json.dumps(log_archive.collect("c", systemd, root=str(units_of_two_clusters)))
    assert "the engine says" in everything
    assert KEY not in everything


def test_no_secret_is_in_it_anywhere(root: Path) -> None:
    assert KEY not in json.dumps(log_archive.collect("c", run, root=str(root)))


def test_what_the_files_of_secrets_hold_is_hidden_wherever_it_stands(root: Path) -> None:
    kept = {
        "serve-0-head/env": "export VLLM_API_KEY=engine.key+of-this-cluster\n",
        "gateway/keys.conf": '"~^(?i:bearer) client\\.key\\+of-somebody$" 1;\n',
        "gateway/backend.conf": 'proxy_set_header Authorization "Bearer engine.key+of-this-cluster";\n',
        "gateway/tls.key": "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n",
        "gateway/tls.crt": "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n",
    }
    for name, text in kept.items():
        path = root / "etc/ascent/c/secrets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    said = "engine.key+of-this-cluster client.key+of-somebody MIGHAgEAMBMGByqGSM49 MIIBszCCAVmgAwIBAgIU Authorization"
    texts = log_archive.collect("c", lambda argv: (0, "one\n" if "ps" in argv else said, ""), root=str(root))
    assert not any("secrets/" in name for name in texts)
    everything = json.dumps(texts)
    for secret in ("engine.key+of-this-cluster", "client.key+of-somebody", "MIGHAgEAMBMGByqGSM49"):
        assert secret not in everything
    assert "MIIBszCCAVmgAwIBAgIU" in everything, "a certificate is no secret"
    assert "Authorization" in everything


def test_of_a_long_log_the_end_is_kept(root: Path) -> None:
    text = log_archive.collect("c", run, root=str(root), limit=10)["containers/ascent-c-serve-0-head.log"]
    assert "were left out" in text
    assert text.endswith("50\nwarned\n")


def test_it_is_packed_for_its_owner_alone() -> None:
    data = log_archive.pack({"a/b.txt": "text"}, "n1", 1767225600)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (entry,) = archive.getmembers()
        assert (entry.name, entry.mode) == ("n1/a/b.txt", 0o600)


def test_all_nodes_come_into_one_archive(tmp_path: Path) -> None:
    packed = base64.b64encode(log_archive.pack({"a.txt": "text"}, "whatever", 0)).decode()
    outcome = play(
        tmp_path,
        f"""
- hosts: clusters
  gather_facts: false
  tasks:
    - keep_logs:
        collected: {{n1: {{archive: "{packed}"}}, n2: {{archive: "{packed}"}}}}
        dest: "{tmp_path}/out/logs.tar.gz"
      run_once: true
""",
    )
    assert outcome.rc == 0, outcome.output
    kept = tmp_path / "out" / "logs.tar.gz"
    assert kept.stat().st_mode & 0o777 == 0o600
    with tarfile.open(kept) as archive:
        assert sorted(archive.getnames()) == ["n1/a.txt", "n2/a.txt"]
