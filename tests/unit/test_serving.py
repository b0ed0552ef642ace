from __future__ import annotations

import copy
import functools

import pytest

from ascent import planner, serving
from tests.unit import planning_inputs as inputs


@functools.cache
def _plan():
    return planner.plan(inputs.recipe(inputs.PD), inputs.hardware(), inputs.hosts(3), cluster="a3-cluster")


@pytest.fixture
def plan():
    return copy.deepcopy(_plan())


@pytest.fixture
def nodes(plan):
    return {
        host: {
            "container_engine": {
                "installed": True,
                "running": True,
                "containers": [
                    {
                        "name": process["container"]["name"],
                        "state": "running",
                        "exit_code": 0,
                        "labels": {"ascent.process": process["name"]},
                        "restarts": 0,
                    }
                    for process in plan["processes"]
                    if process["host"] == host
                ],
            }
        }
        for host in plan["hosts"]
    }


@pytest.fixture
def endpoints(plan):
    return [
        {"name": one["instance"] or one["name"], "host": one["host"], "url": one["health"], "ok": True, "error": None}
        for one in plan["processes"]
        if one["health"]
    ]


def container(nodes, plan, process):
    host = next(one["host"] for one in plan["processes"] if one["name"] == process)
    containers = nodes[host]["container_engine"]["containers"]
    return next(one for one in containers if one["labels"]["ascent.process"] == process), containers, host


def test_serving_cluster_is_clean(plan, nodes, endpoints):
    assert serving.judge(plan, nodes, endpoints) == []


def headless(plan):
    return next(process for process in plan["processes"] if process["kind"] == "headless")


def test_exited_process_names_instance_node_code_and_fix(plan, nodes, endpoints):
    process = headless(plan)
    one, _containers, host = container(nodes, plan, process["name"])
    one.update(state="exited", exit_code=137)
    (item,) = serving.judge(plan, nodes, endpoints)
    assert (item["id"], item["severity"], item["host"]) == ("process-exited", "error", host)
    assert process["instance"] in item["summary"]
    assert "exit code 137" in item["summary"]
    assert "memory" in item["cause"]
    assert "ansible-playbook deploy.yml -l a3-cluster --tags launch" in item["fix"]


def test_missing_container_and_its_silent_endpoint_are_one_finding(plan, nodes, endpoints):
    head = plan["processes"][0]
    one, containers, host = container(nodes, plan, head["name"])
    containers.remove(one)
    endpoint = next(each for each in endpoints if each["name"] == head["instance"])
    endpoint.update(ok=False, error="connection refused")
    (item,) = serving.judge(plan, nodes, endpoints)
    assert (item["id"], item["host"]) == ("process-missing", host)


def test_running_container_with_a_silent_endpoint(plan, nodes, endpoints):
    endpoints[0].update(ok=False, error="no answer within 10 s")
    (item,) = serving.judge(plan, nodes, endpoints)
    assert (item["id"], item["host"]) == ("D07", endpoints[0]["host"])
    assert "no answer within 10 s" in item["evidence"]


def test_router_that_is_down_is_called_the_router(plan, nodes, endpoints):
    router = next(endpoint for endpoint in endpoints if "router" in endpoint["name"])
    router.update(ok=False, error="HTTP 500")
    (item,) = serving.judge(plan, nodes, endpoints)
    assert item["id"] == "E12"
    assert item["summary"].startswith("the router")


def test_unreadable_host_explains_its_endpoints(plan, nodes, endpoints):
    head = plan["processes"][0]
    nodes[head["host"]] = None
    for endpoint in endpoints:
        if endpoint["host"] == head["host"]:
            endpoint.update(ok=False, error="no route")
    (item,) = serving.judge(plan, nodes, endpoints)
    assert (item["id"], item["host"]) == ("host-unreadable", head["host"])


def test_dead_container_engine_is_one_finding_for_a_host(plan, nodes, endpoints):
    host = plan["processes"][0]["host"]
    nodes[host]["container_engine"].update(running=False, containers=[])
    (item,) = serving.judge(plan, nodes, endpoints)
    assert (item["id"], item["host"]) == ("container-engine", host)


def test_restart_loop_is_a_warning(plan, nodes, endpoints):
    one, _containers, _host = container(nodes, plan, plan["processes"][0]["name"])
    one["restarts"] = 5
    (item,) = serving.judge(plan, nodes, endpoints)
    assert (item["id"], item["severity"]) == ("D33", "warning")
