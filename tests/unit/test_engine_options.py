"""The option table read from the engine's sources, and the parser made of it."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys

import pytest

from sandbox.engine.sim.options import deprecated, load_table, make_parser
from tests.unit.engine_harness import ROOT

SPECULATIVE = '{"method": "qwen3_5_mtp", "num_speculative_tokens": 3, "enforce_eager": true}'
KV = json.dumps(
    {
        "kv_connector": "MooncakeLayerwiseConnector",
        "kv_buffer_device": "npu",
        "kv_role": "kv_consumer",
        "kv_port": "36010",
        "kv_connector_extra_config": {
            "prefill": {"dp_size": 8, "tp_size": 2},
            "decode": {"dp_size": 16, "tp_size": 2},
        },
    }
)
# The decode command of the hardest published recipe, flag by flag.
DECODE = f"""vllm serve some/model
--host 192.0.2.12 --port 30050 --headless --no-enable-prefix-caching --enable-expert-parallel --data-parallel-size 16
--data-parallel-size-local 8 --data-parallel-start-rank 8 --data-parallel-address 192.0.2.12 --max-num-seqs 32
--data-parallel-rpc-port 6884 --tensor-parallel-size 2 --seed 1024 --distributed-executor-backend mp
--served-model-name qwen3.5 --max-model-len 16384 --max-num-batched-tokens 128 --trust-remote-code
--quantization ascend --no-disable-hybrid-kv-cache-manager --async-scheduling
--gpu-memory-utilization 0.96 --speculative-config|{SPECULATIVE}
--additional-config|{{"recompute_scheduler_enable":true,"enable_cpu_binding":true,"enable_fused_mc2":1}}
--compilation-config|{{"cudagraph_mode":"FULL_DECODE_ONLY"}} --kv-transfer-config|{KV}"""

TABLES = {
    path.stem.removeprefix("vllm-"): json.loads(path.read_text())
    for path in sorted((ROOT / "catalog/engine_options").glob("vllm-0.*.json"))
}


def minor(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def words(text: str) -> list[str]:
    """Split at blanks, except in a JSON value, which follows a bar."""
    found: list[str] = []
    for line in text.replace(" --", "\n--").splitlines():
        name, bar, value = line.partition("|")
        found += [name, value.strip()] if bar else name.split()
    return found[1:]


@pytest.fixture(scope="module")
def parser():
    return make_parser(load_table(), "0.21.0")


def test_table_knows_the_engine():
    table = load_table()
    options = {option["name"]: option for option in table["options"]}
    assert table["version"] == "0.21.0"
    assert len(options) > 200
    assert options["--tensor-parallel-size"] == {
        "name": "--tensor-parallel-size",
        "aliases": ["-tp"],
        "group": "ParallelConfig",
        "default": 1,
        "kind": "integer",
    }
    assert options["--headless"]["kind"] == "flag"
    assert options["--enable-prefix-caching"] | {"group": ""} == {
        "name": "--enable-prefix-caching", "aliases": [], "group": "", "kind": "boolean", "default": None,
    }  # fmt: skip
    assert options["--dtype"]["choices"][0] == "auto"
    assert options["--max-model-len"]["kind"] == "human-integer-or-auto"
    assert table["configs"]["KVTransferConfig"]["kv_role"]["choices"][:2] == ["kv_producer", "kv_both"]
    assert "FULL_DECODE_ONLY" in table["configs"]["CompilationConfig"]["cudagraph_mode"]["members"]
    assert "--disable-log-requests" not in options, "removed long before this release"


@pytest.mark.parametrize(
    ("option", "first", "last"),
    [
        ("--rope-scaling", "0.11", "0.11"),
        ("--guided-decoding-backend", "0.11", "0.11"),
        ("--disable-log-requests", "0.11", "0.15"),
        ("--swap-space", "0.11", "0.17"),
        ("--api-server-count", "0.11", "0.32"),
        ("--headless", "0.11", "0.32"),
        ("--no-such-option", None, None),
        ("--nnodes", "0.13", "0.32"),
        ("--data-parallel-external-lb", "0.13", "0.32"),
        ("--grpc", "0.21", "0.32"),
        ("--enable-scale-out", "0.32", "0.32"),
    ],
)
def test_options_come_and_go_with_the_releases(option, first, last):
    has = [name for name, table in TABLES.items() if any(o["name"] == option for o in table["options"])]
    assert has == [name for name in TABLES if first and minor(first) <= minor(name) <= minor(last)]


def test_every_table_is_whole():
    assert [*TABLES] == ["0.11", "0.13", "0.15", "0.17", "0.18", "0.21", "0.23", "0.27", "0.32"]
    for name, table in TABLES.items():
        assert table["version"].startswith(f"{name}.")
        assert table["version"] in table["origin"]
        assert datetime.date.fromisoformat(table["read"])
        names = [option["name"] for option in table["options"]]
        assert names == sorted(set(names)), name
        named = {option["config"] for option in table["options"] if "config" in option}
        assert named == set(table["configs"])
        assert {"CompilationConfig", "SpeculativeConfig", "KVTransferConfig", "KVEventsConfig"} <= named
        assert "use_inductor" not in table["configs"]["KVTransferConfig"]
        assert "cudagraph_capture_sizes" in table["configs"]["CompilationConfig"]
        assert "traced_files" not in table["configs"]["CompilationConfig"], "filled in by the class alone"


def test_seed_command_is_accepted(parser):
    args = parser.parse_args(words(DECODE))
    assert (args.model_tag, args.data_parallel_start_rank, args.tensor_parallel_size) == ("some/model", 8, 2)
    assert args.speculative_config["num_speculative_tokens"] == 3
    assert args.kv_transfer_config["kv_port"] == "36010"
    assert args.enable_prefix_caching is False
    assert args.disable_hybrid_kv_cache_manager is False


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ("--max_model_len 16k", "max_model_len", 16000),
        ("--max-model-len 16K", "max_model_len", 16384),
        ("--max-model-len auto", "max_model_len", -1),
        ("-tp 8", "tensor_parallel_size", 8),
        ("--tensor-par 8", "tensor_parallel_size", 8),
        ("--served-model-name a b", "served_model_name", ["a", "b"]),
        ("--compilation-config.cudagraph_mode full", "compilation_config", {"cudagraph_mode": "full"}),
        ("--speculative_config None", "speculative_config", None),
    ],
)
def test_spellings(parser, given, name, value):
    assert getattr(parser.parse_args(["serve", "m", *given.split()]), name) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--foo"], "vllm: error: unrecognized arguments: --foo"),
        (["--port", "x"], "vllm serve: error: argument --port: invalid int value: 'x'"),
        (["--dtype", "int3"], "argument --dtype: invalid choice: 'int3'"),
        (["--speculative-config", "{x}"], "argument --speculative-config/-sc: Value {x} cannot be converted"),
        (["--additional-config", "{x}"], "argument --additional-config: Value {x} cannot be converted"),
        (["--hf-overrides", "{'a': 1}"], "argument --hf-overrides: Value {'a': 1} cannot be converted"),
        (["--compilation-config", "{x}"], "Invalid JSON"),
        (["--compilation-config", '{"cudagraph_mode": "SOME"}'], "Invalid cudagraph_mode: 'SOME'"),
        (["--kv-transfer-config", '{"kv_conector": "X"}'], "kv_conector\n  Unexpected keyword argument"),
        (["--kv-transfer-config", '{"kv_connector": "X"}'], "Please specify kv_role when kv_connector is set"),
        (["--kv-transfer-config", '{"kv_connector": "X", "kv_role": "P"}'], "Input should be 'kv_producer'"),
        (["--kv-transfer-config", '{"kv_port": "a"}'], "kv_port\n  Input should be a valid integer"),
        (["--max-num-batched-tokens", "1.5K"], "Did you mean to use 1.5k instead?"),
    ],
)
def test_bad_arguments_end_with_status_2(parser, capsys, given, message):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["serve", "m", *given])
    assert ended.value.code == 2
    error = capsys.readouterr().err.replace("-sc/--speculative-config", "--speculative-config/-sc")
    assert error.startswith("usage: vllm")
    assert message in error


def test_generator_follows_the_rules_of_type_hints(tmp_path):
    """A small tree with one of each kind of hint."""
    config = tmp_path / "vllm/config"
    config.mkdir(parents=True)
    (config / "some.py").write_text(
        "from typing import Literal\n"
        "Mode = Literal['fast', 'slow']\n"
        "class Level(enum.Enum):\n    LOW = 1\n    HIGH = 2\n"
        "@config\nclass Inner:\n    level: Level = Level.LOW\n    count: int | None = None\n"
        "    made: int = field(default=0, init=False)\n    shared: ClassVar[int] = 1\n"
        "@config\nclass SomeConfig:\n    made: int = field(default=0, init=False)\n"
        "    mode: Mode = 'fast'\n    free: Mode | str = 'x'\n    on: bool = True\n    max_model_len: int = None\n"
        "    many: list[str] | None = None\n    kv_bytes: int = 1\n    share: float = Field(default=0.5, gt=0)\n"
        "    inner: Inner = Field(default_factory=Inner)\n"
    )
    methods = "QuantizationMethods = Literal['awq']\n"
    (tmp_path / "vllm/model_executor/layers/quantization").mkdir(parents=True)
    (tmp_path / "vllm/model_executor/layers/quantization/__init__.py").write_text(methods)
    adds = "".join(
        f"        group.add_argument('--{name.replace('_', '-')}', **kw['{name}'])\n"
        for name in ("mode", "free", "on", "max_model_len", "kv_bytes", "many", "share", "inner")
    )
    (tmp_path / "vllm/engine").mkdir()
    (tmp_path / "vllm/engine/arg_utils.py").write_text(
        "def _compute_kwargs(cls):\n    for name in cls:\n        if name == 'max_model_len':\n"
        "            kwargs[name]['type'] = human_readable_int_or_auto\n"
        "        elif name in {'kv_bytes'}:\n            kwargs[name]['type'] = human_readable_int\n"
        "class EngineArgs:\n    def add_cli_args(parser):\n        kw = get_kwargs(SomeConfig)\n"
        "        group = parser.add_argument_group(title='Some')\n"
        + adds
        + "        group.add_argument('--mode-again', default=kw['mode']['default'], deprecated=True)\n"
        "        for arg, type in [('--old-text', str), ('--old-count', int)]:\n"
        "            group.add_argument(arg, type=type, help=f'{arg} is old', deprecated=True)\n"
        "class AsyncEngineArgs:\n    quiet: bool = True\n    def add_cli_args(parser):\n"
        "        parser.add_argument('--log', '-l', action='store_true', help='x')\n"
        "        parser.add_argument('--loud', action=argparse.BooleanOptionalAction,\n"
        "            default=not AsyncEngineArgs.quiet)\n"
    )
    (tmp_path / "vllm/entrypoints/openai").mkdir(parents=True)
    (tmp_path / "vllm/entrypoints/openai/cli_args.py").write_text(
        "@config\nclass FrontendArgs:\n    port: int = 8000\n"
        "def make_arg_parser(parser):\n    parser.add_argument('--headless', action='store_true', default=False)\n"
    )
    script = ROOT / "catalog/engine_options/generate.py"
    made = subprocess.run(
        [sys.executable, script, "tree", tmp_path, "9.9", "a test"], capture_output=True, text=True, check=True
    ).stdout
    table = json.loads(made)
    found = {o.pop("name"): {k: v for k, v in o.items() if k not in ("aliases", "group")} for o in table["options"]}
    assert found == {
        "--free": {"default": "x", "kind": "string"},
        "--headless": {"kind": "flag", "default": False},
        "--inner": {"default": None, "kind": "config", "config": "Inner"},
        "--kv-bytes": {"default": 1, "kind": "human-integer"},
        "--log": {"kind": "flag", "default": False},
        "--loud": {"kind": "boolean", "default": False},
        "--many": {"default": None, "kind": "string", "nargs": "+", "optional": True},
        "--max-model-len": {"default": None, "kind": "human-integer-or-auto"},
        "--mode": {"default": "fast", "kind": "string", "choices": ["fast", "slow"]},
        "--mode-again": {"default": "fast", "kind": "string", "deprecated": True},
        "--old-count": {"default": None, "kind": "integer", "deprecated": True},
        "--old-text": {"default": None, "kind": "string", "deprecated": True},
        "--on": {"default": True, "kind": "boolean"},
        "--port": {"default": 8000, "kind": "integer"},
        "--share": {"default": 0.5, "kind": "number"},
    }
    assert (table["version"], table["origin"]) == ("9.9", "a test")
    assert datetime.date.fromisoformat(table["read"])
    assert table["configs"] == {
        "Inner": {"level": {"members": ["LOW", "HIGH"]}, "count": {"types": ["integer", "null"]}}
    }


def test_the_release_decides_which_options_there_are(monkeypatch):
    assert load_table()["version"] == "0.21.0"
    versions = {"0.11.0": "0.11", "0.12.1": "0.11", "v0.18.0rc1": "0.18", "0.22.1": "0.21", "0.9.1": "0.11"}
    assert {given: load_table(given)["version"].rpartition(".")[0] for given in versions} == versions
    assert load_table("1.0.0")["version"] == TABLES["0.32"]["version"]
    with pytest.raises(ValueError, match="is no version"):
        load_table("main")
    monkeypatch.setenv("SIM_OPTIONS", str(ROOT / "catalog/engine_options/vllm-0.13.json"))
    assert load_table("0.21.0")["version"] == "0.13.0"


def test_an_old_release_takes_its_own_options(capsys):
    scaling = ["serve", "m", "--rope-scaling", '{"rope_type": "yarn"}']
    assert make_parser(TABLES["0.11"], "0.11.0").parse_args(scaling).rope_scaling == {"rope_type": "yarn"}
    with pytest.raises(SystemExit):
        make_parser(TABLES["0.13"], "0.13.0").parse_args(scaling)
    assert "unrecognized arguments: --rope-scaling" in capsys.readouterr().err
    given = ["serve", "m", "--no_eplb-log-balancedness", "--num-redundant-experts=4", "-tp", "2"]
    assert deprecated(TABLES["0.11"], given) == ["--no-eplb-log-balancedness", "--num-redundant-experts"]
    assert deprecated(TABLES["0.21"], given) == []
