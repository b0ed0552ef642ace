"""The plan of a sandbox, and the files its nodes start with."""

import io
import ipaddress
import json
import struct
import tarfile
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.lib import images, node_files, plan

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "sandbox/node/state.schema.json").read_text())
VARIABLES = {"sandbox_subnet": "198.18.0.0/16", "sandbox_services": "198.18.0.2", "sandbox_profile": "a3"}
HOSTS = {"a3-01": {"ansible_host": "198.18.0.11"}, "a3-02": {"ansible_host": "198.18.0.12"}}


def sandbox(**changes):
    return plan.from_variables("a3-cluster", {**VARIABLES, **changes}, HOSTS)


def test_the_repository_s_own_inventory_is_three_a3_nodes():
    found = plan.from_inventory(ROOT / "inventories/sandbox")
    assert found.name == "a3-cluster"
    assert [(node.name, node.address, node.device_count) for node in found.nodes] == [
        ("a3-01", "198.18.0.11", 16),
        ("a3-02", "198.18.0.12", 16),
        ("a3-03", "198.18.0.13", 16),
    ]
    assert "quay.io/ascend/vllm-ascend:v0.21.0rc1-a3" in found.engine_images
    assert found.registry == "198.18.0.2:5000"


def test_what_the_first_host_has_for_itself_is_not_the_others(tmp_path):
    (tmp_path / "hosts.yml").write_text(
        "all: {children: {clusters: {children: {one: {vars: {sandbox_subnet: 198.18.0.0/18, sandbox_profile: a2,"
        " sandbox_services: 198.18.0.2},"
        " hosts: {a: {ansible_host: 198.18.0.11, sandbox_os: trixie, sandbox_disks: {/srv: 16M}},"
        " b: {ansible_host: 198.18.0.12}}}}}}}"
    )
    first, second = plan.from_inventory(tmp_path).nodes
    assert (first.suite, dict(first.disks)) == ("trixie", {"/srv": 16})
    assert (second.suite, dict(second.disks)) == ("bookworm", {})


def test_a_group_has_to_be_named_when_there_are_two(tmp_path):
    (tmp_path / "hosts.yml").write_text(
        """
all:
  children:
    clusters:
      children:
        one:
          vars: {sandbox_subnet: 198.18.0.0/16, sandbox_services: 198.18.0.2, sandbox_profile: a2}
          hosts: {n1: {ansible_host: 198.18.0.11}}
        two:
          vars: {sandbox_subnet: 198.19.0.0/16, sandbox_services: 198.19.0.2, sandbox_profile: a3}
          hosts: {n2: {ansible_host: 198.19.0.11, sandbox_profile: a2}}
        real: {hosts: {r1: {ansible_host: 192.0.2.1}}}
"""
    )
    with pytest.raises(plan.SandboxError, match="one, two"):
        plan.from_inventory(tmp_path)
    assert plan.from_inventory(tmp_path, "two").nodes[0].profile["name"] == "a2"


def test_directories_may_be_one_file_system_on_all_nodes():
    assert sandbox().shares == ()
    assert sandbox(sandbox_shares=["/mnt/models"]).shares == ("/mnt/models",)
    for wrong in ("/", "mnt", "/mnt/a b", {"/mnt": 1}):
        with pytest.raises(plan.SandboxError, match="/mnt/models"):
            sandbox(sandbox_shares=[wrong])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sandbox_subnet": "10.0.0.0/16"}, "198.18.0.0/15 or 100.64.0.0/10"),
        ({"sandbox_subnet": "198.18.0.0/24"}, "/16"),
        ({"sandbox_services": "198.18.0.11"}, "more than one"),
        ({"sandbox_services": "198.19.0.2"}, "outside"),
        ({"sandbox_profile": "a9"}, "a2, a3"),
        ({"sandbox_os": "buster"}, "bookworm, trixie, bullseye"),
        ({"sandbox_clock_offset": "soon"}, "number of seconds"),
        ({"sandbox_disks": {"/var/log": "64 MB"}}, "a directory and a size"),
        ({"sandbox_disks": {"/": "64M"}}, "a directory and a size"),
        ({"sandbox_profile": "cpu", "sandbox_driver": "25.2.0"}, "has no driver"),
        ({"sandbox_models": ["nameless"]}, "organisation/name"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, words):
    with pytest.raises(plan.SandboxError, match=words):
        sandbox(**changes)


@pytest.mark.parametrize("address", ["198.18.0.1", "198.18.1.11", "192.0.2.1", "", "a3-01"])
def test_a_node_outside_the_first_256_addresses_is_refused(address):
    with pytest.raises(plan.SandboxError, match="n1: ansible_host"):
        plan.from_variables("c", VARIABLES, {"n1": {"ansible_host": address}})


@given(st.sets(st.integers(3, 254), min_size=1, max_size=12))
def test_all_addresses_of_a_sandbox_are_different_and_in_its_subnet(numbers):
    hosts = {f"n{number}": {"ansible_host": f"198.18.0.{number}"} for number in numbers}
    found = plan.from_variables("c", VARIABLES, hosts)
    addresses = [found.gateway, found.services]
    for node in found.nodes:
        addresses.append(node.address)
        for device in node_files.state(found, node)["devices"]:
            addresses += [device["roce"]["address"], device["vnic"]["address"]]
    assert len(set(addresses)) == len(addresses)
    assert all(ipaddress.IPv4Address(address) in found.subnet for address in addresses)


def test_the_device_addresses_follow_the_documented_rule():
    found = sandbox()
    device = node_files.state(found, found.nodes[1])["devices"][3]
    assert (device["roce"]["address"], device["vnic"]["address"]) == ("198.18.12.4", "198.18.12.132")


@pytest.mark.parametrize("profile", sorted(path.stem for path in plan.PROFILES.glob("*.yml")))
def test_the_state_of_a_new_node_fits_the_schema(profile):
    found = sandbox(sandbox_profile=profile)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for node in found.nodes:
        jsonschema.validate(node_files.state(found, node), SCHEMA)


def test_the_schema_refuses_a_misspelt_key_and_an_unknown_health():
    found = sandbox()
    state = node_files.state(found, found.nodes[0])
    for change in ({"healt": "OK"}, {"health": "Fine"}):
        broken = json.loads(json.dumps(state))
        broken["devices"][0].update(change)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_identifiers_in_a_super_pod_are_unique_over_all_nodes():
    found = sandbox()
    sdids = [device["sdid"] for node in found.nodes for device in node_files.state(found, node)["devices"]]
    assert len(set(sdids)) == len(sdids) == 32


def test_safetensors_can_be_read_back():
    content = node_files.safetensors({"a": (2, 3), "b": (4,)})
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header["b"] == {"dtype": "BF16", "shape": [4], "data_offsets": [12, 20]}
    assert len(content) == 8 + length + 20


def test_a_model_lies_where_modelscope_puts_it_and_its_index_names_files_that_are_there():
    files = {file.path: file for file in node_files.model_files({"id": "Org/Name-1.5B", "config": {"model_type": "x"}})}
    root = "/root/.cache/modelscope/hub/models/Org"
    assert files[f"{root}/Name-1.5B"].link == "Name-1___5B"
    index = json.loads(files[f"{root}/Name-1___5B/model.safetensors.index.json"].content)
    assert {f"{root}/Name-1___5B/{shard}" for shard in index["weight_map"].values()} <= set(files)
    assert json.loads(files[f"{root}/Name-1___5B/config.json"].content)["model_type"] == "x"


def test_the_archive_has_every_file_with_its_mode_and_leaves_system_directories_alone():
    files = [node_files.File("/etc/ssh/key", b"secret", 0o600), *node_files.model_files({"id": "a/b", "config": {}})]
    with tarfile.open(fileobj=io.BytesIO(node_files.archive(files))) as tar:
        members = {member.name: member for member in tar.getmembers()}
        assert tar.extractfile("etc/ssh/key").read() == b"secret"
    assert members["etc/ssh/key"].mode == 0o600
    assert "etc" not in members
    assert "etc/ssh" not in members
    assert members["root/.cache"].isdir()


def test_a_tag_changes_with_content_name_and_argument(tmp_path):
    one = tmp_path / "one"
    one.write_text("x")
    first = images.digest_files([one], "a")
    assert first == images.digest_files([one], "a")
    assert first != images.digest_files([one], "b")
    one.write_text("y")
    assert first != images.digest_files([one], "a")
    assert images.digest([b"ab", b"c"]) != images.digest([b"a", b"bc"])


def test_copy_lines_name_what_a_build_needs():
    text = "FROM x\nCOPY --chmod=755 a b/c /to/\nCOPY --from=other /srv /srv\nRUN COPY\n"
    assert images.copy_sources(text) == ["a", "b/c"]


def test_a_host_has_an_operating_system_a_clock_and_disks_of_its_own():
    hosts = {
        "plain": {"ansible_host": "198.18.0.11"},
        "special": {
            "ansible_host": "198.18.0.12",
            "sandbox_os": "bullseye",
            "sandbox_clock_offset": -2.5,
            "sandbox_disks": {"/var/lib/docker": "8G", "/var/log": "64M"},
        },
    }
    plain, special = plan.from_variables("c", VARIABLES, hosts).nodes
    assert (plain.suite, plain.clock_offset_s, plain.disks) == ("bookworm", 0.0, {})
    assert (special.suite, special.clock_offset_s) == ("bullseye", -2.5)
    assert special.disks == {"/var/lib/docker": 8192, "/var/log": 64}
    found = sandbox()
    files = {file.path: file.content for file in node_files.identity_files(found, special, "key", b"", b"")}
    assert struct.unpack("=q", files["/etc/sandbox/clock"]) == (-2_500_000_000,)
    assert b"/debian-bullseye ./" in files["/etc/apt/sources.list"]
    assert b"/debian ./" in node_files.identity_files(found, plain, "key", b"", b"")[3].content


def test_a_server_as_it_is_delivered_has_a_configuration_but_no_driver():
    found = sandbox(sandbox_driver="none", sandbox_firmware="none")
    state = node_files.state(found, found.nodes[0])
    jsonschema.validate(state, SCHEMA)
    paths = {file.path for file in node_files.accelerator_files(state)}
    assert paths == {"/usr/local/dcmi/state.json", "/etc/hccn.conf"}


def test_another_driver_is_on_the_disk_live_and_in_the_tool():
    found = sandbox(sandbox_driver="24.1.0")
    state = node_files.state(found, found.nodes[0])
    assert state["driver"]["version"] == state["tool_version"] == "24.1.0"
    files = {file.path: file.content for file in node_files.accelerator_files(state)}
    assert files["/usr/local/Ascend/driver/version.info"].startswith(b"Version=24.1.0\n")


def test_servers_with_gpus_have_their_tool_and_servers_without_accelerators_none():
    paths = {}
    for profile in ("gpu", "cpu"):
        found = sandbox(sandbox_profile=profile)
        files = node_files.accelerator_files(node_files.state(found, found.nodes[0]))
        paths[profile] = {file.path for file in files} - {"/usr/local/dcmi/state.json"}
    assert paths == {"gpu": {"/usr/bin/nvidia-smi"}, "cpu": set()}


def test_the_name_of_an_engine_image_says_which_release_it_is():
    named = {
        "quay.io/ascend/vllm-ascend:v0.21.0rc1-a3": "v0.21.0rc1",
        "m.example.org/quay.io/ascend/vllm-ascend:v0.18.0-openeuler": "v0.18.0",
        "quay.io/ascend/vllm-ascend:v0.23.0.post1": "v0.23.0.post1",
        "quay.io/ascend/vllm-ascend:nightly-main": None,
        "example.org/engine:v1.2.3": None,
    }
    assert {name: images.release_named(name) for name in named} == named
