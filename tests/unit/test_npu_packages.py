"""What the roles npu_driver, cann, gpu_driver and reboot decide on the controller."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from ascent.errors import AscentError
from ascent.findings import finding
from ascent_controller import npu_packages
from ascent_controller.loader import ROOT
from tests.unit.test_packages import BOTH, NOTHING, SUM, npu

DRIVER, FIRMWARE = "Ascend-hdk-A3-npu-driver_{}_linux-aarch64.run", "Ascend-hdk-A3-npu-firmware_{}.run"
FILES = {DRIVER.format("25.5.2"): SUM, FIRMWARE.format("7.8.0.6.201"): SUM}
ASK = {"source": "/srv", "components": ["driver", "firmware"], "chip": "A3", "machine": "aarch64"}


def facts(**changes: object) -> dict:
    """A whole node, `ascent_node`."""
    whole = npu(
        tool="/usr/local/bin/npu-smi",
        info={"devices": [{}] * 16},
        error=None,
        install={"status": "complete"},
        cann=None,
    )
    whole["driver"] = {**whole["driver"], "firmware_range": None}
    whole["firmware"] = {**whole["firmware"], "driver_prefixes": None}
    return {
        "npu": {**whole, **changes},
        "system": {"boot_id": "b1", "machine": "aarch64"},
        "container_engine": {"containers": []},
    }


def decide(observed: dict, **more: object) -> dict:
    return npu_packages.decide(observed["npu"], "n1", **{**ASK, "files": FILES, **more})


def ids(findings: list[dict]) -> list[str]:
    return [item["id"] for item in findings]


# -- which packages ----------------------------------------------------------------------------------------------------


def test_a_right_node_lacks_nothing() -> None:
    decision = decide(facts())
    assert (decision["due"], decision["findings"]) == ([], [])
    assert npu_packages.verdict(facts(), "n1", decision=decision) == []


def test_a_bare_node_lacks_both_and_is_not_blamed_for_it() -> None:
    bare = facts(driver=None, firmware=None, live=None, tool=None, info=None, install=None, error="no npu-smi")
    decision = decide(bare)
    assert [step["component"] for step in decision["due"]] == ["driver", "firmware"]
    assert npu_packages.verdict(bare, "n1", decision=decision) == []
    assert ids(npu_packages.verdict(bare, "n1")) == ["A01", "A01", "A01"]


def test_what_the_source_does_not_have_is_named() -> None:
    decision = decide(facts(), chip="910b")
    assert (decision["due"], ids(decision["findings"])) == ([], ["B19", "B19"])
    assert DRIVER.format("25.5.2") in decision["findings"][0]["evidence"]


def test_a_newer_driver_stays_and_is_told() -> None:
    newer = facts(driver={"version": "26.0", "component_version": "26.0"}, live={"driver": "26.0", "firmware": None})
    decision = decide(newer)
    assert (decision["due"], ids(decision["findings"])) == ([], ["package-older"])
    assert decide(newer, wanted={"driver": "25.5.2"})["due"][0]["from"] == "26.0"


def test_parts_of_an_older_cann_are_not_put_on_a_newer_toolkit() -> None:
    listing = {f"Ascend-cann-{part}_8.5.0_linux-aarch64.run": SUM for part in ("toolkit", "nnal")}
    newer = facts(cann={"version": "9.0.0", "kernels": None, "nnal": None})
    assert decide(newer, files=listing, components=["toolkit", "nnal"])["due"] == []


def test_a_source_without_a_listing_says_how_to_write_it(tmp_path: Path) -> None:
    told = npu_packages.decide(None, "n1", **{**ASK, "source": str(tmp_path)})
    assert (told["due"], ids(told["findings"])) == ([], ["B19"])
    assert "sha256sum *.run > SHA256SUMS" in told["findings"][0]["evidence"]


def test_listings_of_a_directory_and_of_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{SUM}  {DRIVER.format('25.5.2')}\n")
    assert npu_packages.listing(str(tmp_path)) == {DRIVER.format("25.5.2"): SUM}

    def handler(*arguments: object) -> http.server.SimpleHTTPRequestHandler:
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert npu_packages.url(url)
        assert npu_packages.listing(f"{url}/") == {DRIVER.format("25.5.2"): SUM}
        with pytest.raises(AscentError, match="404"):
            npu_packages.listing(f"{url}/elsewhere")
        server.shutdown()


def test_chips_come_from_the_hardware_profile() -> None:
    assert [npu_packages.chip(name) for name in ("atlas-800-a2", "atlas-800-a3", "dev-box", "h200", "none")] == [
        "910b",
        "A3",
        "910b",
        "",
        "",
    ]


# -- what stands against a driver --------------------------------------------------------------------------------------


def test_a_reboot_to_come_is_told_only_where_it_does_not_come() -> None:
    stale = facts(live={"driver": "25.0.1", "firmware": "7.8.0.6.201"})
    assert npu_packages.verdict(stale, "n1", decision=decide(stale)) == []
    (told,) = npu_packages.verdict(stale, "n1")
    assert (told["id"], told["severity"]) == ("A02", "warning")
    stale["container_engine"]["containers"] = [{"name": "decode-0", "state": "running"}]
    (told,) = npu_packages.verdict(stale, "n1", decision=decide(stale))
    assert "decode-0 would be stopped" in told["cause"]
    assert npu_packages.verdict(stale, "n1", decision=decide(stale), drain=True) == []


def test_a_version_that_a_reboot_did_not_bring_is_an_error() -> None:
    record = {
        **NOTHING,
        "reboot": {"boot_id": "b0", "packages": {"driver": "25.5.2"}},
        "installed": {"driver": {"sha256": SUM, "version": "25.5.2"}},
    }
    stale = facts(live={"driver": "25.0.1", "firmware": "7.8.0.6.201"}, packages=record)
    (told,) = npu_packages.verdict(stale, "n1", decision=decide(stale))
    assert (told["id"], told["evidence"]) == ("A23", "driver 25.5.2 is on the disk, 25.0.1 is live")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("driver build fail, /lib/modules/5.10/build: No such file or directory", "A15"),
        ("[ERROR]ERR_NO:0x0094;ERR_DES: another one", "A16"),
        ("insmod: Key was rejected by service", "A18"),
        ("free space only 12M, cannot install driver package", "D16"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 8 (apt)", "B16"),
        ("something nobody knows", "A24"),
    ],
)
def test_a_failure_is_named_after_its_cause(text: str, expected: str) -> None:
    (told,) = npu_packages.explained([finding("A24", "error", "failed", fix="The way back.")], text)
    assert told["id"] == expected
    assert told["fix"].endswith("The way back.")


def test_other_findings_stay_as_they_are() -> None:
    busy = finding("A14", "error", "in use")
    assert npu_packages.explained([busy], "Key was rejected by service") == [busy]


def test_distribution_packages_that_fail() -> None:
    assert npu_packages.prerequisite_findings({}, "n1", "5.10") == []
    (told,) = npu_packages.prerequisite_findings(
        {"msg": "No package matching 'linux-headers-5.10' is available"}, "n1", "5.10"
    )
    assert (told["id"], told["host"]) == ("A15", "n1")


# -- reboots -----------------------------------------------------------------------------------------------------------


def plan(instances: dict[str, list[str]], kinds: dict[str, str] | None = None) -> dict:
    """A plan of instances (``pool-number`` to hosts); the first host of each is its head, ``kinds`` adds more."""
    hosts = list(dict.fromkeys(host for members in instances.values() for host in members))
    processes = [
        {"kind": "headless" if number else "head", "host": host}
        for members in instances.values()
        for number, host in enumerate(members)
    ]
    processes += [{"kind": kind, "host": host} for host, kind in (kinds or {}).items()]
    return {
        "hosts": {host: {} for host in hosts},
        "processes": processes,
        "instances": [
            {"name": name, "pool": name.rpartition("-")[0], "hosts": members} for name, members in instances.items()
        ],
    }


TWO_REPLICAS = {"serve-0": ["a", "b"], "serve-1": ["c", "d"]}


@pytest.mark.parametrize(
    ("instances", "asking", "size", "expected"),
    [
        (TWO_REPLICAS, "abcd", 1, ["b", "d", "a", "c"]),
        # One node of each replica at a time, heads last.
        (TWO_REPLICAS, "abcd", 4, ["bd", "ac"]),
        (TWO_REPLICAS, "abcd", "50%", ["bd", "ac"]),
        (TWO_REPLICAS, "ab", 4, ["b", "a"]),
        # The only instance of its pool is down with its first node.
        ({"serve-0": ["a", "b", "c", "d"]}, "abcd", 2, ["bc", "d", "a"]),
        ({"serve-0": ["a", "b", "c", "d"]}, "abcd", "100%", ["bcd", "a"]),
        ({"prefill-0": ["a"], "decode-0": ["b", "c"]}, "abc", 3, ["c", "ab"]),
        ({"serve-0": ["a", "b"]}, "ab", "1%", ["b", "a"]),
        ({"serve-0": ["a", "b"]}, "", 2, []),
    ],
)
def test_batches(instances: dict, asking: str, size: int | str, expected: list[str]) -> None:
    found = npu_packages.reboot_batches(plan(instances), list(asking), size)
    assert ["".join(batch) for batch in found] == expected


def test_a_router_s_host_comes_last() -> None:
    found = npu_packages.reboot_batches(plan({"serve-0": ["a", "b", "c"]}, {"c": "router"}), "abc", 1)
    assert found == [["b"], ["a"], ["c"]]


@pytest.mark.parametrize("size", ["0", "none", "-1", "0%", ""])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(AscentError, match="reboot_batch"):
        npu_packages.reboot_batches(plan(TWO_REPLICAS), "ab", size)


def test_who_asks_and_who_serves() -> None:
    stale = facts(live={"driver": "25.0.1", "firmware": None})
    serving = facts(live={"driver": "25.0.1", "firmware": None})
    serving["container_engine"]["containers"] = [{"name": "decode-0", "state": "running"}]
    hosts = {"a": stale, "b": facts(), "c": serving}
    seen = {name: {"ascent_node": node} for name, node in hosts.items()}
    where = plan({"serve-0": ["a", "b", "c", "d"]})
    assert npu_packages.reboots(where, seen) == ["a"]
    assert npu_packages.reboots(where, seen, drain=True) == ["a", "c"]


def test_a_reboot_is_proven() -> None:
    after = {**facts(), "system": {"boot_id": "b2"}}
    assert npu_packages.reboot_proof(facts(), after, "n1", devices=16) == []


@pytest.mark.parametrize(
    ("after", "expected", "words"),
    [
        (None, ["A22"], "did not come back"),
        (facts(), ["A22"], "was not rebooted"),
        ({**facts(info={"devices": [{}] * 15}), "system": {"boot_id": "b2"}}, ["A10"], "15 of 16 devices"),
        ({**facts(live={"driver": "25.0.1", "firmware": None}), "system": {"boot_id": "b2"}}, ["A23"], "not active"),
        ({**facts(info=None, live=None, error="-8005"), "system": {"boot_id": "b2"}}, ["A01"], "does not list"),
    ],
)
def test_a_reboot_that_did_not_do_its_work(after: dict | None, expected: list[str], words: str) -> None:
    told = npu_packages.reboot_proof(facts(), after, "n1", error="timed out", devices=16)
    assert ids(told) == expected
    assert words in told[0]["summary"]
    assert all(item["fix"] and item["severity"] == "error" for item in told)


# -- CANN and NVIDIA ---------------------------------------------------------------------------------------------------


def test_cann_that_is_whole_or_not() -> None:
    whole = {
        "version": "8.5.0",
        "arch": "aarch64",
        "path": "/c",
        "environment": "/c/set_env.sh",
        "kernels": "8.5.0",
        "nnal": {"version": "8.5.0", "path": "/n", "environment": "/n/set_env.sh"},
    }
    done = {"due": [], "findings": []}
    parts = ["toolkit", "kernels", "nnal"]
    assert npu_packages.cann_verdict(facts(cann=whole), "n1", done, parts) == []
    broken = {**whole, "arch": "x86_64", "nnal": {**whole["nnal"], "environment": None}}
    assert ids(npu_packages.cann_verdict(facts(cann=broken), "n1", done, parts)) == ["B01", "B07"]
    assert npu_packages.cann_verdict(facts(cann=broken), "n1", {"due": BOTH, "findings": []}, parts) == []


GPU = {"tool": "/usr/bin/nvidia-smi", "driver": "570.86.15", "error": None, "devices": [{"index": 0, "name": "H200"}]}


@pytest.mark.parametrize(
    ("gpu", "asked", "expected"),
    [
        (GPU, {"minimum": "570.10", "devices": 1}, []),
        (GPU, {"minimum": "580.65.06"}, ["A08"]),
        (GPU, {"devices": 8}, ["A10"]),
        (None, {}, ["A01"]),
        ({**GPU, "driver": None, "error": "NVML: Driver/library version mismatch"}, {"minimum": "1.0"}, ["A01"]),
    ],
)
def test_nvidia_s_driver_is_judged(gpu: dict | None, asked: dict, expected: list[str]) -> None:
    assert ids(npu_packages.gpu_findings(gpu, "n1", **asked)) == expected


# -- distribution packages ---------------------------------------------------------------------------------------------

VARS = ROOT / "roles" / "npu_driver" / "vars"


@pytest.mark.parametrize(
    ("system", "file", "manager", "headers"),
    [
        ({"id": "debian", "family": "debian"}, "debian.yml", "apt", "linux-headers-5.10.0-216"),
        ({"id": "ubuntu", "family": "debian"}, "debian.yml", "apt", "linux-headers-5.10.0-216"),
        ({"id": "kylin", "family": "debian"}, "debian.yml", "apt", "linux-headers-5.10.0-216"),
        ({"id": "openEuler", "family": "rhel"}, "openeuler.yml", "dnf", "kernel-devel-5.10.0-216"),
        ({"id": "kylin", "family": "rhel"}, "kylin.yml", "dnf", "kernel-devel-5.10.0-216"),
        ({"id": "centos", "family": "rhel"}, "rhel.yml", "dnf", "kernel-devel-5.10.0-216"),
        ({"id": "rocky", "family": "rhel"}, "rhel.yml", "dnf", "kernel-devel-5.10.0-216"),
        ({"id": "sles", "family": "suse"}, None, None, None),
        ({"id": None, "family": None}, None, None, None),
    ],
)
def test_every_family_has_its_packages(
    system: dict, file: str | None, manager: str | None, headers: str | None
) -> None:
    """No such hosts are at hand but Debian's, so what the role would ask their package managers for is read here."""
    known = {"npu_driver_observed": {"system": {"os": system, "kernel": "5.10.0-216"}}, "role_path": str(VARS.parent)}

    def rendered(name: str, key: str) -> Any:
        for each in ("main.yml", name):
            known.update(DataLoader().load_from_file(str(VARS / each), trusted_as_template=True))
        return Templar(DataLoader(), known).template(known[key])

    names = rendered("main.yml", "_npu_driver_candidates")["files"]
    found = next((name for name in names if (VARS / name).is_file()), None)
    assert found == file
    if found:
        assert rendered(found, "_npu_driver_manager") == manager
        assert headers in rendered(found, "_npu_driver_headers")
        assert {"gcc", "make", "pciutils"} <= set(rendered(found, "_npu_driver_tools"))
