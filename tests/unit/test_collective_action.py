"""What the controller hands to the module that runs collectives."""

from __future__ import annotations

import importlib.util

import pytest

from ascent_controller.loader import ROOT

_SPEC = importlib.util.spec_from_file_location("collective_test_action", ROOT / "plugins/action/collective_test.py")
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
Action = _MODULE.ActionModule


def plan(nics, env=(), hardware="atlas-800-a2"):
    hosts = {name: {"nic": nic, "hardware": hardware} for name, nic in nics.items()}
    processes = [
        {"host": host, "devices": [0], "env": [{"name": name, "value": value} for name, value in pairs]}
        for host, pairs in dict(env).items()
    ]
    return {"hosts": hosts, "processes": processes}


def test_ranks_of_hccl_take_the_plans_network_cards():
    told = Action._variables(plan({"a": "ens1", "b": "eth0"}), ["a", "b"], "hccl_test", 120)
    # With = before them names are exact: eth0 does not take eth01.
    assert told == {"HCCL_CONNECT_TIMEOUT": 120, "HCCL_SOCKET_IFNAME": "=ens1,eth0"}
    assert Action._variables(plan({"a": None}), ["a"], "hccl_test", 5) == {"HCCL_CONNECT_TIMEOUT": 5}
    assert Action._nics(plan({"a": None, "b": "eth0"}), ["a", "b"]) == ["eth0"]


def test_ranks_of_nccl_take_the_recipes_variables_where_all_hosts_have_the_same():
    env = {
        "a": [("NCCL_IB_HCA", "mlx5_0"), ("NCCL_IB_GID_INDEX", "3"), ("OMP_NUM_THREADS", "1")],
        "b": [("NCCL_IB_HCA", "mlx5_0"), ("NCCL_IB_GID_INDEX", "5")],
        "c": [("NCCL_DEBUG", "INFO")],
    }
    told = Action._variables(plan({"a": "eth0", "b": "eth0", "c": "eth0"}, env), ["a", "b"], "nccl-tests", 120)
    assert told == {"NCCL_SOCKET_IFNAME": "=eth0", "NCCL_IB_HCA": "mlx5_0"}


@pytest.mark.parametrize(
    ("hardware", "floors"),
    [
        ("atlas-800-a2", {"node": {"all_reduce": 20}, "pairs": {"all_reduce": 5}}),
        ("atlas-800-a3", {"node": {"all_reduce": 20}, "pairs": {"all_reduce": 10}}),
        ("h200", {}),
        ("unknown", {}),
    ],
)
def test_floors_are_those_of_the_hardware(hardware, floors):
    groups = Action._groups(plan({"a": "eth0", "b": "eth0"}, hardware=hardware), ["a", "b"], None)
    assert groups == [{"hosts": ["a", "b"], "floors": floors}]


def test_hosts_of_different_hardware_are_no_measure_for_each_other():
    mixed = plan({"a": "eth0", "b": "eth0", "c": "eth0"})
    mixed["hosts"]["b"]["hardware"] = "atlas-800-a3"
    groups = Action._groups(mixed, ["a", "b", "c"], {"node": {"all_reduce": 1}})
    assert [group["hosts"] for group in groups] == [["a", "c"], ["b"]]
    assert all(group["floors"] == {"node": {"all_reduce": 1}} for group in groups)
    assert [group["floors"] for group in Action._groups(mixed, ["a"], {})] == [{}]
