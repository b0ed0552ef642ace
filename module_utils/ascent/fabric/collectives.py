"""Judging collectives: whether they are to be run, and what the hosts that spoil them have. Pure."""

from __future__ import annotations

__all__ = ["busy", "gate", "judge", "torch"]

from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .. import hccl_test, nccl_tests
from ..collectives import COLLECTIVES
from ..findings import finding
from ..generations import running_of

_STAGE = "verify"
_TOOLS = {"ascend": "hccl_test", "nvidia": "nccl-tests"}
#: What HCCL's return codes at the start of a test say: the finding, what it means, and what to do.
_CODES = {
    7: (
        "C23",
        "a process of an earlier collective test holds the device's port",
        "hccl_test was stopped on one node only, or another job uses the device.",
        "Find it with `npu-smi info` and `fuser -v /dev/davinci*` there, stop it by its pid, and verify again.",
    ),
    9: (
        "C01",
        "ranks could not connect over the device network in time",
        "A device of the named host is hung, its link is dead, or TLS switches differ.",
        "Read the other findings of this stage first; then hccn_tool -i DEVICE -link -g and -tls -g there.",
    ),
    19: (
        "C10",
        "the device can not listen on its own address",
        "The device's link is down, or its address is missing.",
        "There: hccn_tool -i DEVICE -link -g and -ip -g.",
    ),
}
_PROBLEMS = {
    "launcher": (
        "C24",
        "the MPI daemon does not start",
        "MPI is not installed there, or not the same as on the node that starts the tests.",
        "Install the same MPI on all nodes; `mpirun --version` on each tells.",
    ),
    "no-device": (
        "A01",
        "the test programs see no device",
        "The driver is not loaded, or CANN's environment was not set.",
        "npu-smi info on that host; source CANN's set_env.sh and run the test program by hand.",
    ),
    "login": (
        "collectives-login",
        "the node that starts the tests can not log in",
        "The ssh server refuses the user, or a filter is in the way.",
        "Set fabric_collectives_user to one that may log in with a key; see AllowUsers and PermitRootLogin of sshd.",
    ),
}


def busy(nodes: Mapping[str, Optional[Mapping[str, Any]]], hosts: Iterable[str]) -> Dict[str, List[str]]:
    """By host the containers and units of ours that run there, of those hosts that have any."""
    found: Dict[str, List[str]] = {}
    for name in hosts:
        running = [str(one["name"]) for one in running_of(nodes.get(name)) if one["state"] == "running"]
        if running:
            found[name] = running
    return found


def gate(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Optional[Mapping[str, Any]]],
    wanted: str,
    depth: str,
    hosts: Collection[str],
    collectives: Sequence[str] = (),
) -> Dict[str, Any]:
    """Whether collectives are run.

    ``{"due", "hosts", "starter", "tool", "collectives", "programs", "busy", "findings"}``.

    ``wanted`` is ``auto`` (not on a cluster that serves, not at depth ``quick``), ``force`` or ``never``. The tests use
    all memory and time of the devices, so processes of ours that run there are a reason to leave them alone.
    """
    members = [name for name, host in plan["hosts"].items() if host["devices"] and host["vendor"] in _TOOLS]
    chosen = [name for name in members if name in hosts]
    vendors = sorted({plan["hosts"][name]["vendor"] for name in chosen})
    names = list(collectives) or list(COLLECTIVES if depth == "deep" else COLLECTIVES[:1])
    result: Dict[str, Any] = {"due": False, "hosts": chosen, "starter": None, "tool": None, "findings": []}
    result.update(collectives=names, programs=[], busy={})
    why = ""
    if wanted == "never" or not chosen or depth == "quick":
        return result
    running = busy(nodes, chosen)
    result["busy"] = running
    if len(vendors) > 1:
        why = f"the cluster has devices of several vendors: {', '.join(vendors)}"
    elif running and wanted != "force":
        first = sorted(running)[0]
        why = f"the cluster is serving ({running[first][0]} on {first})"
    if why:
        result["findings"] = [
            finding(
                "collectives-skipped",
                "info",
                f"no collectives were run: {why}",
                stage=_STAGE,
                evidence="; ".join(f"{name}: {', '.join(some)}" for name, some in sorted(running.items())),
                cause="They would take the devices' memory and time from what runs there.",
                fix="Stop the cluster first, or run them all the same with -e fabric_collectives=force.",
            )
        ]
        return result
    tool = _TOOLS[vendors[0]]
    programs = (nccl_tests if tool == "nccl-tests" else hccl_test).PROGRAMS
    result.update(due=True, starter=chosen[0], tool=tool, programs=[programs[name] for name in names])
    return result


def _names(culprit: Mapping[str, Any]) -> str:
    hosts = list(culprit["hosts"])
    word = {"node": "", "pair": "the pair ", "set": "together "}[culprit["kind"]]
    return word + " and ".join(hosts) if len(hosts) < 3 else word + ", ".join(hosts)


def _finding(culprit: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """What one culprit has, by how its run ended."""
    at = culprit.get("at")
    host = at[0] if at else culprit["hosts"][0] if len(culprit["hosts"]) == 1 else None
    where = f"{at[0]} device {at[1]}" if at else _names(culprit)
    when = " in the burn-in" if culprit["phase"] == "burn-in" else ""
    ran = f"{culprit['collective']}{when}"
    evidence = f"{ran} over {', '.join(culprit['runs'])}: {culprit['text'] or culprit['outcome']}"
    known = _CODES.get(culprit.get("retcode") or 0) or _PROBLEMS.get(culprit.get("problem") or "")
    if culprit["outcome"] == "slow":
        own = [run for run in runs if set(culprit["hosts"]) <= set(run["hosts"]) and run["outcome"] == "slow"]
        own = [run for run in own if run["phase"] == culprit["phase"]] or own
        best = [
            run
            for run in runs
            if own and run["phase"] == own[-1]["phase"] and run["collective"] == culprit["collective"]
            if run["outcome"] == "ok" and run["rows"]
        ]
        if own and own[-1]["rows"] and best:
            mine, theirs = own[-1]["rows"][-1], min(run["rows"][-1]["us"] for run in best)
            size = f"{mine['bytes'] / 2**20:g} MiB"
            evidence = (
                f"{ran} over {', '.join(own[-1]['hosts'])}: the collective test is slow:"
                f" {mine['us'] / 1e3:.3g} ms for {size} ({mine['gbs']:.3g} GB/s) where the best takes"
                f" {theirs / 1e3:.3g} ms"
            )
        name, what, cause, fix = (
            "C28",
            "collectives are slow",
            "A link at a lower rate or with retransmissions, a throttled device, or a process beside the test.",
            "Compare hccn_tool -speed, -stat and -optical and npu-smi info of this host with another one.",
        )
    elif culprit["outcome"] == "wrong":
        name, what, cause, fix = (
            "collective-wrong-result",
            "a collective gives wrong data",
            "A device's memory or link damages data: no engine may run on it.",
            "npu-smi info -t ecc and -t health of the device; take the host out of the cluster and have it repaired.",
        )
    elif known:
        name, what, cause, fix = known
    elif culprit["outcome"] == "timeout":
        name, what, cause, fix = (
            "C27",
            "a collective does not end",
            "A device hangs in an operator, or its links are dead in a way that pings don't show.",
            "npu-smi info -t health and dmesg on this host; reset the device or reboot, then verify again.",
        )
    else:
        name, what, cause, fix = (
            "collective-failed",
            "a collective test fails",
            "See the program's own words.",
            "Run the test program by hand on the named hosts.",
        )
    return finding(name, "error", f"{what}: {where}", host=host, stage=_STAGE, evidence=evidence, cause=cause, fix=fix)


def judge(plan: Mapping[str, Any], collectives: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    """``{"findings", "metrics"}`` over ``ascent_collectives``; None where nothing was to be run."""
    del plan
    if collectives is None:
        return {"findings": [], "metrics": {}}
    if not collectives["ran"]:
        missing = "; ".join(f"{host}: {', '.join(what)}" for host, what in sorted(collectives["missing"].items()))
        told = finding(
            "collectives-skipped",
            "info",
            f"no collectives were run: {collectives['why']}",
            stage=_STAGE,
            evidence=missing,
            cause="The test programs come with CANN's toolkit and are compiled against an MPI that all nodes have.",
            fix="Install MPI on all nodes, compile tools/hccl_test of CANN, or set fabric_collectives_programs.",
        )
        return {"findings": [told], "metrics": {}}
    runs: List[Mapping[str, Any]] = list(collectives["runs"])
    findings = [_finding(culprit, runs) for culprit in collectives["culprits"]]
    if collectives.get("absent"):
        findings.append(
            finding(
                "collectives-skipped",
                "info",
                f"collectives that were not run: {', '.join(collectives['absent'])}",
                stage=_STAGE,
                evidence="not every node has their test programs",
                cause="Not every release of the test programs has all of them, or not all were compiled.",
                fix="Compile the test programs of one release on all nodes; the others were run.",
            )
        )
    metrics: Dict[str, Any] = {"collectives_seconds": collectives["seconds"], "collectives_runs": len(runs)}
    best: Dict[str, Dict[str, Dict[str, float]]] = {}
    for run in runs:
        if run["outcome"] == "ok" and run["rows"] and run["phase"] not in ("bisect", "burn-in"):
            last, first = run["rows"][-1], run["rows"][0]
            entry = best.setdefault(run["collective"], {}).setdefault(run["phase"], {"gbs": 0.0, "us": first["us"]})
            entry.update(gbs=max(entry["gbs"], last["gbs"]), us=min(entry["us"], first["us"]))
    metrics["collectives"] = best
    loaded = [run for run in runs if run["phase"] == "burn-in"]
    if loaded:
        metrics["burn_in"] = _burn_in(loaded)
    return {"findings": findings, "metrics": metrics}


def _burn_in(runs: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """What hosts did under load: seconds, runs, and of each collective the least and the most GB/s."""
    rates: Dict[str, List[float]] = {}
    for run in runs:
        if run["rows"]:
            rates.setdefault(run["collective"], []).append(float(run["rows"][-1]["gbs"]))
    return {
        "seconds": round(sum(float(run["seconds"]) for run in runs), 1),
        "runs": len(runs),
        "gbs": {name: {"least": min(some), "most": max(some)} for name, some in sorted(rates.items())},
    }


def torch(trials: Mapping[str, Optional[Mapping[str, Mapping[str, Any]]]]) -> Dict[str, Any]:
    """``{"findings", "metrics"}`` over ``{host: ascent_torch}``: what ran in the engine's image, by instance."""
    by_instance: Dict[str, List[Tuple[str, Mapping[str, Any]]]] = {}
    for host, told in trials.items():
        for one in (told or {}).values():
            by_instance.setdefault(one["instance"], []).append((host, one))
    findings: List[Dict[str, Any]] = []
    rows: Dict[str, Any] = {}
    for instance, entries in sorted(by_instance.items()):
        absent = [(host, one["text"]) for host, one in entries if one["outcome"] == "absent"]
        bad = [(host, one["text"]) for host, one in entries if one["outcome"] not in ("ok", "absent")]
        table: Sequence[Mapping[str, Any]] = next((one["rows"] for _, one in entries if one["rows"]), [])
        if table:
            rows[instance] = {"gbs": table[-1]["gbs"], "us": table[0]["us"]}
        if absent:
            findings.append(
                finding(
                    "torch-skipped",
                    "info",
                    f"no collective of torch.distributed was run for {instance}: {absent[0][1]}",
                    stage=_STAGE,
                    evidence=", ".join(host for host, _ in absent),
                    cause="The engine's image is not on the node yet, or has no torch.",
                    fix="Run --tags provision first.",
                )
            )
        elif bad:
            hosts = sorted({host for host, _ in bad})
            findings.append(
                finding(
                    "torch-collective",
                    "error",
                    f"a collective of torch.distributed fails over the hosts of {instance}: {', '.join(hosts)}",
                    host=hosts[0] if len(hosts) == 1 else None,
                    stage=_STAGE,
                    evidence="; ".join(f"{host}: {text}" for host, text in bad[:2]),
                    cause="A variable, a network card or a mount of the recipe, where other collectives pass.",
                    fix="Look at the host whose ranks failed first; the others only waited for them.",
                )
            )
    return {"findings": findings, "metrics": {"torch_collective": rows} if rows else {}}
