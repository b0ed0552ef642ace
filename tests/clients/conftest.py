"""Public clients as they are published, each in a virtual environment of its own, cached between runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.images.services import hub
from sandbox.lib import plan, site_files
from tests.unit.engine_harness import ROOT, Process, free_ports, make_machine, serve

MODEL = "tiny-org/Tiny-0.5B"
TOKENIZER = "tiny-org/tokenizer"
# Large enough that a client writes several times: huggingface_hub takes 10 MiB at once.
SHARD_BYTES = 24 << 20


def environment(name: str) -> Path:
    """The `bin` of the virtual environment that requirements/`name`.txt describes, made where it is missing."""
    requirements = Path(__file__).parent / "requirements" / f"{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascent-clients"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    directory = cache / f"{name}-{key}"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
            pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement"]
            subprocess.run([*pip, str(requirements)], check=True)
            (directory / "complete").touch()
    return directory / "bin"


@dataclass
class Site:
    """The site's server on loopback, plain and over TLS."""

    plain: hub.Site
    secure: hub.Site
    certificate: Path

    @property
    def url(self) -> str:
        """Where clients of plain HTTP go."""
        return f"http://127.0.0.1:{self.plain.server_address[1]}"

    @property
    def tls_port(self) -> int:
        """Where clients that know only HTTPS go."""
        return int(self.secure.server_address[1])

    def spoil(self, *rules: dict[str, object]) -> None:
        """Puts rules in force and forgets what was asked so far."""
        self.plain.faults.set(list(rules))
        self.plain.log.clear()

    def sent(self, name: str) -> list[tuple[str | None, int, int]]:
        """Range, status and bytes of each answer that carried content of a file, in order."""
        gets = [line for line in self.plain.log if line["method"] == "GET" and "/info?" not in line["path"]]
        lines = [line for line in gets if name in line["path"]]
        return [(line["range"], line["status"], line["bytes"]) for line in lines if line["status"] in (200, 206)]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of the model."""
        root = self.plain.root / "hub" / MODEL / revision
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("srv")
    model = {"id": MODEL, "tags": ["v1"], "shards": 2, "shard_bytes": SHARD_BYTES}
    variables = {"sandbox_subnet": "198.18.0.0/18", "sandbox_services": "198.18.0.2", "sandbox_profile": "a3"}
    wanted = plan.from_variables(
        "c", {**variables, "sandbox_hub_models": [model]}, {"a3-01": {"ansible_host": "198.18.0.11"}}
    )
    for file in site_files.site_files(wanted):
        path = root / Path(file.path).relative_to("/srv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    tokenizer = root / "hub" / TOKENIZER / "main"
    tokenizer.mkdir(parents=True)
    shutil.copy(ROOT / "sandbox/engine/sim/tokenizer.json", tokenizer)
    (tokenizer / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 262144,
                # Benchmarks count a chat request's tokens as the engine does.
                "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
                "{% endfor %}<|im_start|>assistant\n",
            }
        )
    )
    certificate, key = hub.make_certificate(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])
    with hub.Site(root, "127.0.0.1") as plain, hub.Site(root, "127.0.0.1", shared=plain) as secure:
        secure.use_tls(certificate, key)
        for server in (plain, secure):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(plain, secure, certificate)
        for server in (plain, secure):
            server.shutdown()


@pytest.fixture
def site(_site: Site) -> Site:
    """The site without faults."""
    _site.spoil()
    return _site


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """The environment of a client: a home of its own, no proxy, no telemetry."""
    keep = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
    return keep | quiet | {"HOME": str(tmp_path / "home"), "no_proxy": "*", "NO_PROXY": "*"}


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one engine of the simulator, five times as fast as its model of time."""
    directory = tmp_path_factory.mktemp("simulator")
    port = free_ports(1)
    arguments = ["-tp", "4", "--max-model-len", "4096", "--max-num-seqs", "64"]
    argv = serve(port, *arguments)
    process = Process(make_machine(directory / "machine"), argv, directory / "log", {"SIM_SPEED": "5"})
    try:
        process.wait_for("Application startup complete", 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.process.kill()
        process.process.wait()
