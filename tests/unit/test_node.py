from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest

from ascent import command, node, planner, weights

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
OPENEULER = 'NAME="openEuler"\nID="openEuler"\nVERSION_ID="22.03"\n'
TCP = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100\n"
    "   1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100\n"
)
TCP6 = "  sl  local_address\n   0: 00000000000000000000000000000000:753C 00000000000000000000000000000000:0000 0A 0 0\n"
IP = (
    "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever\n"
    "2: enp67s0f0    inet 192.0.2.11/24 brd 192.0.2.255 scope global enp67s0f0\\       valid_lft forever\n"
)
INSPECT = [
    {
        "Id": "abc",
        "Name": "/ascent-decode-0",
        "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True, "StartedAt": "2026-01-01T00:00:00Z"},
        "Config": {"Image": "image:1", "Labels": {"ascent.process": "decode-0"}},
        "RestartCount": 4,
        "Image": "sha256:1",
    }
]


def files(root: Path, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(text)


class Programs:
    """Stands in for the node's programs: answers by the words of the call, and keeps the calls."""

    def __init__(self, answers):
        self.answers = answers
        self.calls = []

    def __call__(self, argv, timeout):
        self.calls.append(list(argv))
        line = " ".join(argv)
        for words, answer in self.answers.items():
            if words in line:
                return answer.pop(0) if isinstance(answer, list) else answer
        return command.MISSING, "", f"{argv[0]}: not found"


@pytest.fixture
def root(tmp_path):
    texts = {
        "/etc/os-release": OPENEULER,
        "/proc/meminfo": "MemTotal:       2097152 kB\nMemAvailable:   1048576 kB\n",
        "/proc/sys/kernel/random/boot_id": "0f0f\n",
        "/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
        "/proc/sys/net/ipv4/ip_local_reserved_ports": "6884,23010-23025\n",
        "/proc/net/tcp": TCP,
        "/proc/net/tcp6": TCP6,
        "/usr/local/bin/npu-smi": "",
        "/usr/local/Ascend/driver/tools/hccn_tool": "",
        "/etc/ascend_install.info": (TRANSCRIPTS / "files/ascend_install.info").read_text(),
        "/usr/local/Ascend/driver/version.info": (TRANSCRIPTS / "files/driver-version.info").read_text(),
        "/usr/local/Ascend/firmware/version.info": (TRANSCRIPTS / "files/firmware-version.info").read_text(),
        "/etc/hccn.conf": "address_0=198.51.100.7\n",
        "/etc/ascent/c1/generations/2/manifest.json": '{"number": 2}',
        "/etc/ascent/c1/generations/10/manifest.json": '{"number": 10}',
        "/etc/ascent/c1/generations/11/manifest.json": "{half",
        "/var/lib/ascent/c1/fabric.json": '{"ok": true}',
        "/etc/environment": 'https_proxy="http://user:secret@proxy.example:3128"\n',
        "/sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n",
        "/sys/class/infiniband/mlx5_0/ports/1/link_layer": "Ethernet\n",
        "/sys/class/infiniband/mlx5_0/device/net/ens1f0/mtu": "4200\n",
        "/root/.docker/config.json": '{"proxies": {"default": {"noProxy": "192.0.2.0/24"}}}',
    }
    for number in (*range(16), "_manager"):
        texts[f"/dev/davinci{number}"] = ""
    files(tmp_path, texts)
    (tmp_path / "etc/ascent/c1/current").symlink_to("generations/10")
    return tmp_path


def make(root, **answers):
    programs = Programs(
        {
            **answers,
            "npu-smi info -t health": (0, (TRANSCRIPTS / "npu-smi/health-warning.txt").read_text(), ""),
            "npu-smi info -t board": (0, (TRANSCRIPTS / "npu-smi/board.txt").read_text(), ""),
            "npu-smi info": (0, (TRANSCRIPTS / "npu-smi/a3-98.txt").read_text(), ""),
            "ip -o addr": (0, IP, ""),
            "docker version": (0, "26.1.0\n", ""),
            "docker images": (0, f"q.io/e@sha256:{'1' * 64}\n<none>@sha256:{'2' * 64}\nlocal@<none>\n", ""),
            "docker ps": (
                0,
                '{"ID":"abc","Names":"x","Labels":"a=b,ascent.cluster=c1,ascent.process=p"}\n'
                '{"ID":"def","Names":"theirs","Labels":"ascent.cluster=c10"}\n',
                "",
            ),
            "docker inspect": (0, json.dumps(INSPECT), ""),
        }
    )
    programs.answers.update(answers)
    return node.Node(str(root), programs, environment={"http_proxy": "http://proxy.example:3128"}), programs


def test_everything_of_a_node(root):
    reader, programs = make(root)
    facts = node.gather(reader, "c1", disk_paths=["/var/lib/docker"])
    assert facts["system"]["os"] == {"id": "openEuler", "version": "22.03", "family": "rhel"}
    assert (facts["system"]["memory_mb"], facts["system"]["boot_id"]) == (2048, "0f0f")
    assert facts["system"]["sysctls"]["net.ipv4.ip_local_port_range"] == "32768 60999"
    assert facts["system"]["proxies"] == {
        "http_proxy": "http://proxy.example:3128",
        "https_proxy": "http://***@proxy.example:3128",
        "no_proxy": "192.0.2.0/24",
    }
    assert {"nic": "enp67s0f0", "address": "192.0.2.11", "prefix": 24} in facts["network"]["addresses"]
    assert facts["network"]["listening"] == [22, 30012]
    ports = [{"number": 1, "state": "ACTIVE", "link_layer": "Ethernet"}]
    assert facts["network"]["hcas"] == [{"name": "mlx5_0", "nics": ["ens1f0"], "ports": ports}]
    assert facts["network"]["ephemeral"] == [32768, 60999]
    assert facts["disk"]["/var/lib/docker"]["total_mb"] > 0
    assert len(facts["npu"]["info"]["devices"]) == 16
    assert facts["npu"]["device_files"][:2] == ["/dev/davinci0", "/dev/davinci1"]
    assert facts["npu"]["device_files"][-1] == "/dev/davinci_manager"
    assert (facts["npu"]["driver"]["version"], facts["npu"]["firmware"]["version"]) == ("25.2.0", "7.7.0.6.236")
    assert facts["npu"]["hccn"] == {"0": {"address": "198.51.100.7"}}
    assert facts["npu"]["error"] is None
    assert (facts["npu"]["packages"]["unfinished"], facts["npu"]["cann"], facts["gpu"]) == (None, None, None)
    assert facts["container_engine"]["images"] == [f"q.io/e@sha256:{'1' * 64}"]
    assert facts["container_engine"]["others"] == ["theirs"]
    container = facts["container_engine"]["containers"][0]
    assert (container["name"], container["state"], container["exit_code"]) == ("ascent-decode-0", "exited", 137)
    assert (container["labels"], container["restarts"]) == ({"ascent.process": "decode-0"}, 4)
    assert (facts["state"]["current"], facts["state"]["fabric"]) == (10, {"ok": True})
    assert [one["number"] for one in facts["state"]["generations"]] == [2, 10]
    assert "11/manifest.json" in facts["state"]["error"]
    assert facts["weights"] is None
    assert not any("hccn_tool" in call[0] for call in programs.calls)
    json.dumps(facts)


def test_bare_node_is_nulls_with_reasons_not_an_error(tmp_path):
    reader = node.Node(str(tmp_path), Programs({}), environment={})
    facts = node.gather(reader, "c1", node.SUBSETS, weights_directory="/models/m")
    assert facts["npu"]["tool"] is None
    assert "/usr/local/bin/npu-smi" in facts["npu"]["error"]
    assert facts["container_engine"]["installed"] is False
    assert facts["network"]["addresses"] == []
    assert facts["weights"]["present"] is False
    nothing = dict.fromkeys(("current", "fabric", "smoke_bench", "good", "error"))
    assert facts["state"] == {
        **nothing, "generations": [], "secrets": [], "files": {}, "loose": [], "plan_hash": None,
    }  # fmt: skip


def test_what_a_container_has_beyond_its_image_is_told_by_name(root):
    listed = '{"ID":"abc","Names":"x","Labels":"ascent.cluster=c1","Image":"image@sha256:9"}\n'
    image = {"Id": "sha256:1", "Config": {"Env": ["PATH=/bin", "A=1"], "Entrypoint": ["/init"]}}
    config = {**INSPECT[0]["Config"], "Env": ["PATH=/bin", "A=2", "TOKEN=secret"], "Entrypoint": ["/init"]}
    told = json.dumps([{**INSPECT[0], "Config": config}, image])
    reader, programs = make(root, **{"docker ps": (0, listed, ""), "docker inspect": (1, told, "no such object")})
    (container,) = node.gather(reader, "c1", ["container_engine"])["container_engine"]["containers"]
    assert (container["made"]["env"], container["made"]["entrypoint"]) == (["A", "TOKEN"], None)
    assert "secret" not in json.dumps(container)
    assert ["docker", "inspect", "abc", "image@sha256:9"] in programs.calls, "one call for both"


def test_a_plan_tells_whether_it_is_what_was_written(root):
    place = root / "etc/ascent/c1/generations/10"
    plan = {"cluster": "c1", "hosts": {"ä": 1}}
    plan["hash"] = planner.digest(plan)

    def state():
        reader, _ = make(root)
        return node.gather(reader, "c1", ["state"])["state"]

    for text in (json.dumps(plan, indent=2, ensure_ascii=False), json.dumps(plan)):
        (place / "plan.json").write_text(text, encoding="utf-8")
        assert state()["plan_hash"] == plan["hash"], "whatever its spaces"
    (place / "plan.json").write_text(json.dumps({**plan, "cluster": "c2"}))
    assert state()["plan_hash"] not in (None, plan["hash"]), "it may say of itself what it wants"
    (place / "plan.json").write_text("[half")
    assert state()["plan_hash"] is None


def test_files_that_others_may_write_are_told(root):
    place = root / "etc/ascent/c1/generations/10"
    for name, mode in (("a.sh", 0o666), ("b.sh", 0o750), ("c.sh", 0o660), ("manifest.json", 0o640)):
        (place / name).touch()
        (place / name).chmod(mode)
    reader, _ = make(root)
    assert node.gather(reader, "c1", ["state"])["state"]["loose"] == ["10/a.sh", "10/c.sh"]


def test_tool_failure_is_told_with_its_code(root):
    text = (TRANSCRIPTS / "npu-smi/error-8005.txt").read_text()
    reader, _programs = make(root, **{"npu-smi info": (187, text, "")})
    npu = node.gather(reader, "c1", ["npu"])["npu"]
    assert npu["info"] is None
    assert "-8005" in npu["error"]


def test_what_is_live_is_told_beside_what_is_on_the_disk(root):
    reader, _programs = make(root)
    npu = node.gather(reader, "c1", ["npu"])["npu"]
    assert set(npu["live"]) == {"driver", "firmware", "compatibility"}
    assert npu["live"]["driver"] == npu["info"]["driver_version"]
    assert npu["live"]["firmware"]
    assert npu["incomplete"] is False
    warned = (0, (TRANSCRIPTS / "npu-smi/a2-warning-footer.txt").read_text(), "")
    reader, _programs = make(root, **{"npu-smi info": warned})
    assert node.gather(reader, "c1", ["npu"])["npu"]["incomplete"] is True


def test_nvidia_devices_are_read_or_their_driver_is_said_to_fail(root):
    files(root, {"/usr/bin/nvidia-smi": ""})
    line = "0, NVIDIA H200, GPU-1, 570.86.15, 143771, 4\n"
    reader, programs = make(root, **{"--query-gpu": (0, line, "")})
    gpu = node.gather(reader, "c1", ["npu"])["gpu"]
    assert (gpu["driver"], gpu["error"]) == ("570.86.15", None)
    assert gpu["devices"] == [
        {"index": 0, "name": "NVIDIA H200", "uuid": "GPU-1", "memory_total_mb": 143771, "memory_used_mb": 4}
    ]
    programs.answers["--query-gpu"] = (9, "NVIDIA-SMI has failed", "")
    gpu = node.gather(reader, "c1", ["npu"])["gpu"]
    assert (gpu["driver"], gpu["error"]) == (None, "NVIDIA-SMI has failed")
    programs.answers["--query-gpu"] = (0, "no devices were found\n", "")
    assert "expected 6 columns" in node.gather(reader, "c1", ["npu"])["gpu"]["error"]


def test_unhealthy_device_brings_its_codes(root):
    table = (TRANSCRIPTS / "npu-smi/a2-99.txt").read_text()
    detail = (0, (TRANSCRIPTS / "npu-smi/health-warning.txt").read_text(), "")
    reader, _programs = make(root, **{"-t health": detail, "npu-smi info": (0, table, "")})
    health = node.gather(reader, "c1", ["npu"])["npu"]["health"]
    assert [(one["npu_id"], one["error_codes"]) for one in health] == [(1, ["80E01801", "80E01802"])]


def test_run_kills_what_does_not_answer_and_its_children():
    code, _out, err = command.run([sys.executable, "-c", "import os; os.system('sleep 60')"], 0.3)
    assert code == command.TIMED_OUT
    assert "no answer within 0.3 s" in err
    assert command.run(["no-such-program-here"], 1)[0] == command.MISSING
    code, out, _err = command.run([sys.executable, "-c", "import os; print(os.environ['LC_ALL'])"], 10)
    assert (code, out) == (0, "C\n")


def shard(path: Path, size: int = 64, cut: int = 0) -> None:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    data = struct.pack("<Q", len(header)) + header + b"\0" * size
    path.write_bytes(data[: len(data) - cut])


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for number in (1, 2):
        shard(tmp_path / f"model-{number}.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / weights.INDEX).write_text(json.dumps(index))
    return tmp_path


def test_complete_weights(model):
    found = weights.inspect(str(model))
    assert (found["complete"], found["missing"], found["pointers"], found["truncated"]) == (True, [], [], [])
    assert found["bytes"] == sum(os.path.getsize(model / f"model-{number}.safetensors") for number in (1, 2))


@pytest.mark.parametrize(
    ("harm", "key", "expected"),
    [
        (lambda model: (model / "model-2.safetensors").unlink(), "missing", ["model-2.safetensors"]),
        (lambda model: (model / "config.json").unlink(), "missing", ["config.json"]),
        (lambda model: (model / weights.INDEX).write_text("{}"), "missing", [weights.INDEX]),
        (lambda model: shard(model / "model-1.safetensors", cut=1), "truncated", ["model-1.safetensors"]),
        (lambda model: (model / "model-1.safetensors").write_bytes(b""), "truncated", ["model-1.safetensors"]),
        (lambda model: (model / "model-1.safetensors").write_bytes(b"\xff" * 99), "truncated", ["model-1.safetensors"]),
        (
            lambda model: (model / "model-1.safetensors").write_text("version 1 of a pointer\noid x\n"),
            "pointers",
            ["model-1.safetensors"],
        ),
    ],
)
def test_broken_weights_are_named(model, harm, key, expected):
    harm(model)
    found = weights.inspect(str(model))
    assert found["complete"] is False
    assert found[key] == expected


def test_weights_of_a_hugging_face_cache(tmp_path):
    place = tmp_path / "models--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    files = place / "snapshots" / commit
    files.mkdir(parents=True)
    (files / "config.json").write_text("{}")
    shard(files / "model.safetensors")
    found = weights.inspect(str(place))
    assert (found["complete"], found["directory"]) == (True, str(place))
    # Two commits: the branch says which one the client takes.
    (place / "snapshots" / ("f" * 40)).mkdir()
    assert weights.inspect(str(place))["complete"] is False
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit + "\n")
    assert weights.inspect(str(place))["complete"] is True
    assert weights.inspect(str(files))["complete"] is True


def test_weights_without_index(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert weights.inspect(str(tmp_path))["missing"] == ["model.safetensors"]
    shard(tmp_path / "model.safetensors")
    assert weights.inspect(str(tmp_path))["complete"] is True
    assert weights.inspect(str(tmp_path / "absent"))["present"] is False
