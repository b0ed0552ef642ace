"""Trials of torch.distributed: the engine's own process with another program, and what is read of them."""

from __future__ import annotations

import subprocess

from ascent import planner
from ascent_controller import torch_trial
from tests.unit import planning_inputs as inputs


def plan_of(name):
    recipe = inputs.recipe(name)
    return planner.plan(recipe, inputs.hardware(), inputs.hosts(inputs.hosts_needed(recipe)), cluster="test")


def test_each_host_runs_the_engines_script_with_the_collective_in_its_place():
    plan = plan_of("qwen3-235b-a22b-dp2")
    first, second = torch_trial.trials(plan, 29555, 90)
    assert (first["instance"], first["host"] != second["host"]) == ("serve-0", True)
    script = second["files"][f"{second['name']}.sh"]
    assert "--backend hccl" in script
    assert f"--address {plan['hosts'][first['host']]['node_ip']} --port 29555" in script
    assert "--world 16 --first 8 --local 8" in script
    # The recipe's own environment and the way into CANN's are there, the engine is not.
    assert "export HCCL_BUFFSIZE=1024" in script
    assert "set_env.sh" in script
    assert "vllm serve" not in script
    docker = second["files"][f"{second['name']}.docker.sh"]
    assert f"--name {second['container']}" in docker
    assert second["container"].endswith("-fabric")
    for text in second["files"].values():
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    inside = script.split("<<'EOF'\n")[1].split("\nEOF")[0]
    compile(inside, "torch_collective.py", "exec")


def test_instances_on_one_host_each_have_nothing_to_try():
    assert torch_trial.trials(plan_of("qwen3-8b-a2"), 29555, 90) == []
