"""Keys and TLS in plans and files: who has to know what, and that nothing else tells it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ascent import access, generations, planner
from ascent_controller import loader, planning, render

KEYS = ("client-one-4f2a9c7be1d0", "client-two.77aa01bb+23cc")
ENGINE = "engine-9d8c7b6a5f4e3d2c1b0a"
GUARD = {"api_key": True, "tls": True, "name": None, "root": "/etc/ascent", "image": "example.org/nginx:1"}
PD = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3"
SINGLE = "qwen3.5-397b-a17b-w8a8-128k-a3"


def plan_of(recipe: str, hosts: int = 3, **guard: Any) -> dict[str, Any]:
    """A plan of a recipe for stand-in hosts; no ``guard`` is a cluster as it always was."""
    plan, findings = planning.prepare(recipe, planning.stand_ins(hosts), cluster="c", guard=guard or None)
    assert plan is not None, findings
    return plan


def named(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in [*plan["processes"], *plan["jobs"]] if one["name"] == name)


@pytest.fixture(scope="module")
def pd() -> dict[str, Any]:
    return plan_of(PD, **GUARD)


def texts(plan: dict[str, Any], name: str) -> dict[str, str]:
    return access.secret_files(
        named(plan, name), client_keys=KEYS, engine_key=ENGINE, certificate="CERT", private_key="KEY"
    )


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_without_keys_and_tls_is_what_it_was() -> None:
    plan = plan_of(PD)
    assert plan == plan_of(PD, **{**GUARD, "api_key": False, "tls": False})
    assert "access" not in plan
    assert not any("secrets" in one for one in plan["processes"])
    assert plan["endpoint"]["url"].startswith("http://")


def test_a_gateway_takes_the_routers_port_and_the_router_the_next(pd: dict[str, Any]) -> None:
    gateway, router = named(pd, "gateway"), named(pd, "router")
    assert pd["endpoint"] == {"url": "https://192.0.2.1:8010", "process": "gateway"}
    assert [port["first"] for port in gateway["ports"]] == [8010]
    assert [port["first"] for port in router["ports"]] == [8011]
    assert gateway["starts_after"] == ["router"]
    assert pd["processes"][-1] == gateway
    assert gateway["container"]["image"] == "example.org/nginx:1"
    assert gateway["container"]["network"] == "host"
    assert not gateway["container"]["privileged"]
    assert not gateway["container"]["devices"]
    assert pd["access"] == {"api_key": True, "tls": True, "name": None, "by": "gateway"}


@pytest.mark.parametrize(("recipe", "address"), [(PD, "192.0.2.1"), ("qwen3-235b-a22b-w8a8-pd-1p1d-a3", "127.0.0.1")])
def test_a_router_behind_a_gateway_leaves_its_host_only_where_decode_calls_it(recipe: str, address: str) -> None:
    router = named(plan_of(recipe, 4 if address == "127.0.0.1" else 3, **GUARD), "router")
    host = next(line for line in router["argv"] if line[0] == "--host")
    assert host == ["--host", address]
    assert router["health"].startswith(f"http://{address}:")


def test_engines_end_tls_themselves_where_clients_ask_them() -> None:
    plan = plan_of(SINGLE, 1, **GUARD)
    head = plan["processes"][0]
    assert ["--ssl-certfile", "/run/ascent/secrets/tls.crt"] in head["argv"]
    assert ["--ssl-keyfile", "/run/ascent/secrets/tls.key"] in head["argv"]
    assert ["--enable-ssl-refresh"] in head["argv"]
    assert head["health"].startswith("https://")
    assert plan["endpoint"]["url"].startswith("https://")
    assert head["secrets"]["files"] == ["env", "tls.crt", "tls.key"]
    assert plan["access"]["by"] == "engine"


def test_engines_behind_a_router_speak_plainly_to_it(pd: dict[str, Any]) -> None:
    head = named(pd, "decode-0-head")
    assert head["health"].startswith("http://")
    assert head["secrets"]["files"] == ["env"]
    assert not any(word.startswith("--ssl") for line in head["argv"] for word in line)


def test_only_who_needs_a_secret_has_one(pd: dict[str, Any]) -> None:
    assert {one["name"]: one.get("secrets", {}).get("files") for one in pd["processes"]} == {
        "prefill-0-head": ["env"],
        "decode-0-head": ["env"],
        "decode-0-headless-1": None,
        "router": ["env"],
        "gateway": ["keys.conf", "backend.conf", "tls.crt", "tls.key"],
    }


def test_secrets_are_mounted_read_only_and_their_directories_not_made_by_others(pd: dict[str, Any]) -> None:
    for process in pd["processes"]:
        mounts = [one for one in (process["container"]["mounts"]) if one["target"] == access.MOUNT]
        if "secrets" in process:
            source = f"/etc/ascent/c/secrets/{process['name']}"
            assert mounts == [{"source": source, "target": access.MOUNT, "read_only": True}]
        else:
            assert not mounts
    assert not any("/secrets/" in path for host in pd["hosts"].values() for path in host["directories"])


def test_turning_keys_on_restarts_the_processes_that_have_them_and_no_others() -> None:
    plain, keyed = plan_of(PD), plan_of(PD, **{**GUARD, "tls": False})
    before = {one["name"]: one["definition"] for one in plain["processes"]}
    after = {one["name"]: one["definition"] for one in keyed["processes"]}
    assert {name for name in before if before[name] != after[name]} == {"prefill-0-head", "decode-0-head", "router"}
    assert plain["hash"] != keyed["hash"]


def test_dynamo_is_guarded_by_its_gateway_alone() -> None:
    plan = plan_of("qwen3-32b-disagg-6p2d-h200", 2, **{**GUARD, "tls": False})
    assert {one["name"] for one in plan["processes"] if "secrets" in one} == {"gateway"}
    assert named(plan, "frontend")["ports"][0]["first"] == named(plan, "gateway")["ports"][0]["first"] + 1


# -- files -------------------------------------------------------------------------------------------------------------


def test_engines_and_routers_read_the_engine_key_under_their_own_names(pd: dict[str, Any]) -> None:
    assert texts(pd, "decode-0-head") == {"env": f"export VLLM_API_KEY={ENGINE}\n"}
    assert texts(pd, "router") == {"env": f"export OPENAI_API_KEY={ENGINE}\n"}


def test_jobs_that_are_clients_show_a_clients_key() -> None:
    recipe = "qwen3.5-397b-a17b-w8a8-128k-a3"
    plan = plan_of(recipe, 1, **GUARD)
    jobs = [one for one in plan["jobs"] if not one["devices"]]
    assert jobs, "the recipe has lost its jobs"
    for job in jobs:
        assert texts(plan, job["name"]) == {"env": f"export OPENAI_API_KEY={KEYS[0]}\n"}


def test_the_gateways_files(pd: dict[str, Any]) -> None:
    made = texts(pd, "gateway")
    assert (made["tls.crt"], made["tls.key"]) == ("CERT", "KEY")
    assert made["backend.conf"] == f'proxy_set_header Authorization "Bearer {ENGINE}";\n'
    patterns = [re.compile(line.split('"')[1].removeprefix("~")) for line in made["keys.conf"].splitlines()]
    for key, pattern in zip(KEYS, patterns, strict=True):
        assert pattern.search(f"Bearer {key}")
        assert pattern.search(f"bearer {key}")
        for wrong in (f"Bearer {key}x", f"Bearer x{key}", f"Bearer {key.upper()}", f"Basic {key}", "Bearer ", key):
            assert not pattern.search(wrong), wrong
    assert not patterns[1].search("Bearer client-twoX77aa01bb+23cc"), "a dot is a dot"


def test_the_gateways_configuration_offers_what_clients_need(pd: dict[str, Any]) -> None:
    (config,) = (one["text"] for one in named(pd, "gateway")["files"])
    assert "listen 192.0.2.1:8010 ssl;" in config
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in config
    assert config.count("proxy_pass") == 2, "the API, and the health path without a key"
    assert "return 401" in config
    assert "return 404" in config
    assert "proxy_buffering off;" in config
    assert config.count("{") == config.count("}")
    plain = access.gateway_config(address="a", port=1, backend="b:2", health="/h", key=False, tls=True)
    assert "401" not in plain
    assert "include" not in plain
    clear = access.gateway_config(address="a", port=1, backend="b:2", health="/h", key=True, tls=False)
    assert "listen a:1;" in clear
    assert "ssl" not in clear


def test_scripts_and_plans_have_no_secret_and_read_it_from_its_file(pd: dict[str, Any]) -> None:
    everything = json.dumps(pd) + json.dumps(render.files(pd))
    assert not any(secret in everything for secret in (*KEYS, ENGINE))
    script = render.files(pd)["node-02"]["decode-0-head.sh"]
    assert "\n. /run/ascent/secrets/env\n" in script
    assert "secrets" not in render.files(pd)["node-03"]["decode-0-headless-1.sh"]
    by_hand = render.files(pd)["node-02"]["decode-0-head.docker.sh"]
    assert "-v /etc/ascent/c/secrets/decode-0-head:/run/ascent/secrets:ro" in by_hand


# -- another key -------------------------------------------------------------------------------------------------------


def decided(plan: dict[str, Any], key: str) -> dict[str, str]:
    digests = dict.fromkeys(generations.images_of(plan), "sha256:1")
    made = generations.decide(plan, digests, {}, access.fingerprints(plan, key))
    return {name: entry["definition"] for name, entry in made["processes"].items()}


def test_another_engine_key_restarts_those_that_read_it_and_makes_no_new_plan(pd: dict[str, Any]) -> None:
    before, after = decided(pd, ENGINE), decided(pd, ENGINE + "x")
    assert {name for name in before if before[name] != after[name]} == {"prefill-0-head", "decode-0-head", "router"}
    assert decided(pd, ENGINE) == before


def test_fingerprints_tell_nothing_of_the_key(pd: dict[str, Any]) -> None:
    marks = set(access.fingerprints(pd, ENGINE).values())
    assert len(marks) == 1
    assert ENGINE not in str(marks)
    other = {**pd, "cluster": "other"}
    assert marks.isdisjoint(access.fingerprints(other, ENGINE).values()), "the same key shows on no other cluster"


# -- asking ------------------------------------------------------------------------------------------------------------


def test_each_server_is_shown_its_own_key(pd: dict[str, Any]) -> None:
    keys = access.server_keys(pd, KEYS[0], ENGINE)
    assert keys == {
        "http://192.0.2.1:30060": ENGINE,
        "http://192.0.2.2:30050": ENGINE,
        "https://192.0.2.1:8010": KEYS[0],
    }
    assert access.key_of("https://192.0.2.1:8010/v1/models", keys) == KEYS[0]
    assert access.key_of("https://192.0.2.9:8010/v1/models", keys) is None
    assert access.server_keys(plan_of(PD), KEYS[0], ENGINE) == {}
    single = plan_of(SINGLE, 1, **GUARD)
    assert set(access.server_keys(single, KEYS[0], ENGINE).values()) == {ENGINE}


@pytest.mark.parametrize(("bind", "address"), [("node", "192.0.2.1"), ("any", "0.0.0.0"), (None, "0.0.0.0")])
def test_where_engines_listen_is_the_recipes_or_told(bind: str | None, address: str) -> None:
    recipe = dict(loader.load(SINGLE).recipe or {})
    assert recipe["args"]["host"] == "0.0.0.0"
    if bind:
        recipe["security"] = {"bind": bind}
    hosts = planning.stand_ins(1)
    hardware = loader.load(SINGLE).hardware
    made = planner.plan(recipe, hardware, hosts)
    assert ["--host", address] in made["processes"][0]["argv"]
