"""Boots, shows and removes one sandbox. What runs is found by labels, never by a file that could be stale."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandbox.engine.ray import image as ray_image
from sandbox.lib.engine import LABEL, Engine, inotify_instances
from sandbox.lib.images import Builder, Images, release_named
from sandbox.lib.node_files import (
    File,
    accelerator_files,
    archive,
    identity_files,
    model_files,
    repository_directory,
    state,
)
from sandbox.lib.plan import Node, Sandbox, SandboxError
from sandbox.lib.site_files import site_files
from sandbox.real import image as real_image

READY_TIMEOUT_S = 90
# Of systemd, dbus, logind and, where it is installed, containerd; all nodes share those of one user of the machine.
INOTIFY_INSTANCES = 6
SERVICES = "services"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# systemd needs the first and its own temporary file systems; the node's container engine needs the rest.
NODE_OPTIONS = (
    "--cap-add=SYS_ADMIN",
    "--cap-add=NET_ADMIN",
    "--cap-add=SYS_PTRACE",
    "--cap-add=NET_RAW",
    "--cap-add=SYS_NICE",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    # A control group name space of its own: whatever the node starts ends and is cleaned up with it.
    "--cgroupns=private",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    # As on a server: installers unpack themselves there and run.
    "--tmpfs=/tmp:exec",
    "--volume=/var/lib/docker",
    # For file systems of a given size: boot mounts files as disks.
    "--device-cgroup-rule=b 7:* rwm",
    "--device-cgroup-rule=c 10:237 rwm",
    # As on a server of this size, where half of the memory may be shared; it is a limit, not a reservation.
    "--shm-size=512g",
    "--env=container=docker",
    "--restart=always",
)


class Cluster:
    """One sandbox as it is wanted (`sandbox`), in the checkout it belongs to, on the daemon that runs it."""

    def __init__(self, sandbox: Sandbox, checkout: Path, engine: Engine, say: Callable[[str], None]) -> None:
        """Looks at nothing yet; `say` gets one line for each step of `up` and `down`."""
        self.sandbox, self.checkout, self.engine, self.say = sandbox, checkout, engine, say
        self.directory = checkout / ".sandbox" / sandbox.name
        self.key = self.directory / "id_ed25519"
        self.known_hosts = self.directory / "known_hosts"
        self.tiny_models: dict[str, bytes] = {}

    # -- names ---------------------------------------------------------------------------------------------------------

    def container(self, name: str) -> str:
        """The container's name of a node or of the services."""
        return f"{self.sandbox.name}.{name}"

    def _labels(self, name: str, definition: str) -> list[str]:
        labels = {
            LABEL: self.sandbox.name,
            f"{LABEL}.node": name,
            f"{LABEL}.checkout": str(self.checkout),
            f"{LABEL}.definition": definition,
        }
        return [f"--label={key}={value}" for key, value in labels.items()]

    # -- up ------------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Brings the sandbox up, or repairs what is missing of it. Raises SandboxError when it can't."""
        if self.engine.start():
            self.say("started the sandbox's Docker daemon")
            # Containers found now are what a crashed session left; the daemon revives them.
            if leftovers := self.engine.remove():
                self.say(f"removed {leftovers} containers that an earlier session left behind")
        try:
            self._bring_up()
        except BaseException:
            if not self.engine.sandboxes():
                self.engine.stop()
            raise

    def _bring_up(self) -> None:
        images = Builder(self.engine, self.say).build(node.suite for node in self.sandbox.nodes)
        if self.sandbox.engine_ray and images.engine:
            images = replace(images, engine=ray_image.build(self.engine, self.say, images.engine))
        if self.sandbox.real_images or self.sandbox.tiny_models:
            images = replace(images, real=real_image.build(self.engine, self.say, images.base))
            if self.sandbox.tiny_models:
                self.tiny_models = real_image.tiny_models(self.engine, str(images.real), self.sandbox.tiny_models)
        present = self._own_containers()
        self._check_room(present)
        self._make_network()
        for volume in self._shares():
            self.engine.run("volume", "create", f"--label={LABEL}={self.sandbox.name}", volume)
        self._make_keys()
        with ThreadPoolExecutor(max_workers=8) as pool:
            services = pool.submit(self._start_services, present.get(SERVICES), images)
            started = list(
                pool.map(lambda node: self._start_node(node, present.get(node.name), images), self.sandbox.nodes)
            )
            services.result()
            made = [node.name for node, new in zip(self.sandbox.nodes, started, strict=True) if new]
            if made:
                self.say(f"started {', '.join(made)}")
            waits = [
                pool.submit(self._wait_for, node, new) for node, new in zip(self.sandbox.nodes, started, strict=True)
            ]
            self._publish(images)
            for wait in waits:
                wait.result()
        self.say(f"all {len(self.sandbox.nodes)} nodes are running and answer over ssh")

    def _own_containers(self) -> dict[str, dict[str, Any]]:
        """The sandbox's containers by node name. Refuses those of another checkout, unless that one is gone."""
        found = self.engine.containers(self.sandbox.name)
        for other in sorted({each["Config"]["Labels"][f"{LABEL}.checkout"] for each in found} - {str(self.checkout)}):
            if not Path(other).is_dir():
                self.say(f"removing the sandbox of {other}, which is no more")
                self.engine.remove(self.sandbox.name)
                return {}
            raise SandboxError(
                f"a sandbox named {self.sandbox.name} of another checkout is up: {other}\n"
                f"  fix: run `sandbox/cluster.py down` there, or give this one another group name and sandbox_subnet"
            )
        return {each["Config"]["Labels"][f"{LABEL}.node"]: each for each in found}

    def _check_room(self, present: dict[str, dict[str, Any]]) -> None:
        """Raises SandboxError when the machine has too few inotify instances: systemd then hangs while it starts."""
        starting = [
            node
            for node in self.sandbox.nodes
            if node.name not in present or not present[node.name]["State"]["Running"]
        ]
        held, most = inotify_instances()
        needed = INOTIFY_INSTANCES * len(starting)
        if held + needed > most:
            raise SandboxError(
                f"{len(starting)} nodes take up to {needed} inotify instances; of the {most} that this machine allows "
                f"one user, {held} are taken\n  fix: take another sandbox down, boot fewer nodes, or raise the "
                f"machine's fs.inotify.max_user_instances"
            )

    def _make_network(self) -> None:
        if self.engine.networks(self.sandbox.name):
            return
        done = self.engine.run(
            "network",
            "create",
            f"--subnet={self.sandbox.subnet}",
            f"--gateway={self.sandbox.gateway}",
            f"--label={LABEL}={self.sandbox.name}",
            f"ascent-{self.sandbox.name}",
            check=False,
        )
        if done.returncode:
            others = ", ".join(sorted(self.engine.sandboxes() - {self.sandbox.name})) or "none"
            raise SandboxError(
                f"can't create the network {self.sandbox.subnet}: {done.stderr.strip()}\n"
                f"  other sandboxes that are up: {others}; each needs a sandbox_subnet of its own"
            )

    def _make_keys(self) -> None:
        """The controller's key and each node's host key, made before the first connection so that none is on trust."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.key.exists():
            self._keygen(self.key, f"ascent-sandbox-{self.sandbox.name}")
        lines = []
        for node in self.sandbox.nodes:
            host_key = self._host_key(node)
            if not host_key.exists():
                host_key.parent.mkdir(parents=True, exist_ok=True)
                self._keygen(host_key, node.name)
            kind, public = host_key.with_suffix(".pub").read_text().split()[:2]
            lines.append(f"{node.address},{node.name} {kind} {public}\n")
        self.known_hosts.write_text("".join(lines))

    @staticmethod
    def _keygen(path: Path, comment: str) -> None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)], check=True, input=b""
        )

    def _host_key(self, node: Node) -> Path:
        return self.directory / "host_keys" / node.name / "ssh_host_ed25519_key"

    def _start_services(self, present: dict[str, Any] | None, images: Images) -> None:
        content = archive(site_files(self.sandbox))
        options = self.packages_options()
        definition = hashlib.sha256(content + images.services.encode() + repr(options).encode()).hexdigest()[:12]
        if present and present["Config"]["Labels"][f"{LABEL}.definition"] != definition:
            self.engine.run("rm", "--force", present["Id"])
            present = None
        if present is None:
            name = self.container(SERVICES)
            self.engine.run(
                "create",
                f"--name={name}",
                f"--hostname={SERVICES}",
                f"--network=ascent-{self.sandbox.name}",
                f"--ip={self.sandbox.services}",
                f"--volume=ascent-sandbox-{self.sandbox.name}-registry:/var/lib/registry",
                "--restart=always",
                *options,
                *self._labels(SERVICES, definition),
                images.services,
            )
            self.engine.run("cp", "-", f"{name}:/", input=content, text=False)
            self.engine.run("start", name)
        elif not present["State"]["Running"]:
            self.engine.run("start", present["Id"])
        deadline = time.monotonic() + READY_TIMEOUT_S
        urls = [f"http://{self.sandbox.registry}/v2/", f"http://{self.sandbox.services}/debian/Packages"]
        while not all(_answers(url) for url in urls):
            if time.monotonic() > deadline:
                logs = self.engine.run("logs", "--tail=5", self.container(SERVICES), check=False)
                raise SandboxError(f"the site's services do not answer at {urls}: {logs.stdout}{logs.stderr}")
            time.sleep(0.1)
        for suite, repository in images.repositories.items():
            self._offer_packages(suite, repository)

    def _offer_packages(self, suite: str, image: str) -> None:
        """Puts the packages of a release of Debian where the site's web server finds them."""
        services = self.container(SERVICES)
        directory, mark = f"/srv/{repository_directory(suite)}", image.rpartition(":")[2]
        if self.engine.run("exec", services, "test", "-e", f"{directory}/{mark}", check=False).returncode == 0:
            return
        source = self.engine.run("create", *self._labels(f"packages-{suite}", image), image, "true").stdout.strip()
        try:
            self.engine.run("exec", services, "mkdir", "-p", directory)
            self.engine.run("cp", "-", f"{services}:{directory}", input=self._packed(source, "/srv/."), text=False)
            self.engine.run("exec", services, "touch", f"{directory}/{mark}")
        finally:
            self.engine.run("rm", "--force", source)

    def _packed(self, container: str, path: str) -> bytes:
        """Files of a container as a tar archive."""
        return self.engine.run("cp", f"{container}:{path}", "-", text=False).stdout

    def packages_options(self) -> list[str]:
        """How the services see the directory of packages. Raises SandboxError when there is none."""
        if self.sandbox.packages is None:
            return []
        directory = self.checkout / self.sandbox.packages
        if not directory.is_dir():
            raise SandboxError(f"sandbox_packages is {self.sandbox.packages}, but {directory} is not a directory")
        return [f"--volume={directory.resolve()}:/srv/packages:ro"]

    def _node_archive(self, node: Node) -> bytes:
        host_key = self._host_key(node)
        files = accelerator_files(state(self.sandbox, node))
        files += identity_files(
            self.sandbox,
            node,
            self.key.with_suffix(".pub").read_text(),
            host_key.read_bytes(),
            host_key.with_suffix(".pub").read_bytes(),
        )
        for model in self.sandbox.models:
            files += model_files(model)
        files += [File(path, content) for path, content in self.tiny_models.items()]
        return archive(files)

    def _shares(self) -> dict[str, str]:
        """Volumes that all nodes mount, with their directories."""
        name = f"ascent-sandbox-{self.sandbox.name}-share"
        return {f"{name}{path.replace('/', '-')}": path for path in self.sandbox.shares}

    def _start_node(self, node: Node, present: dict[str, Any] | None, images: Images) -> bool:
        """Makes a node that does not exist, or starts one that is stopped; True when the node is new."""
        content = self._node_archive(node)
        identity = hashlib.sha256(self.key.read_bytes() + self._host_key(node).read_bytes()).hexdigest()[:12]
        image = images.nodes[node.suite]
        options = (*NODE_OPTIONS, *(f"--volume={volume}:{path}" for volume, path in self._shares().items()))
        definition = hashlib.sha256(content + image.encode() + repr(options).encode()).hexdigest()[:12]
        if present and present["Config"]["Labels"][f"{LABEL}.identity"] != identity:
            self.say(f"{node.name}: its keys are gone from {self.directory}; making the node anew")
            self.engine.run("rm", "--force", "--volumes", present["Id"])
            present = None
        if present:
            if present["Config"]["Labels"][f"{LABEL}.definition"] != definition:
                self.say(f"{node.name}: made from an older definition; `down` and `up` would renew it")
            if not present["State"]["Running"]:
                self.engine.run("start", present["Id"])
                self.say(f"{node.name}: was stopped; started it")
            return False
        name = self.container(node.name)
        peers = [f"--add-host={peer.name}:{peer.address}" for peer in self.sandbox.nodes if peer is not node]
        self.engine.run(
            "create",
            f"--name={name}",
            f"--hostname={node.name}",
            f"--network=ascent-{self.sandbox.name}",
            f"--ip={node.address}",
            # Names outside the site end in an error at once instead of a wait for an answer that can't come.
            f"--dns={self.sandbox.services}",
            *peers,
            *options,
            *self._labels(node.name, definition),
            f"--label={LABEL}.identity={identity}",
            image,
        )
        self.engine.run("cp", "-", f"{name}:/", input=content, text=False)
        self.engine.run("start", name)
        return True

    def _wait_for(self, node: Node, new: bool) -> None:
        """Waits until systemd has started everything and ssh lets us in. Raises SandboxError with the reason if not."""
        name = self.container(node.name)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            waiting = ("timeout", "10", "systemctl", "is-system-running", "--wait")
            system = self.engine.run("exec", name, *waiting, check=False)
            if system.stdout.strip() == "running":
                break
            if system.stdout.strip() == "degraded":
                failed = self.engine.run("exec", name, "systemctl", "--failed", "--plain", "--no-legend", check=False)
                raise SandboxError(f"{node.name}: units failed at boot:\n{failed.stdout}")
            if time.monotonic() > deadline or self._restarts(name):
                logs = self.engine.run("logs", "--tail=5", name, check=False)
                raise SandboxError(f"{node.name} does not boot: {(logs.stdout + logs.stderr + system.stderr).strip()}")
            time.sleep(0.2)
        if new:
            self.engine.run("exec", name, "apt-get", "update", "-qq")
        while (ssh := subprocess.run(self.ssh(node, "true"), check=False, capture_output=True, text=True)).returncode:
            if time.monotonic() > deadline:
                raise SandboxError(f"{node.name} runs, but ssh to {node.address} fails: {ssh.stderr.strip()}")
            time.sleep(0.2)

    def _restarts(self, name: str) -> bool:
        """Whether a container that should be up keeps ending instead."""
        container = self.engine.inspect("container", [name])[0]
        return container["RestartCount"] > 1 and container["State"]["ExitCode"] != 0

    def ssh(self, node: Node, *command: str, options: Iterable[str] = ("-o", "BatchMode=yes")) -> list[str]:
        """The ssh command line to a node, with its host key checked."""
        return [
            "ssh",
            *("-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "ControlPath=none", "-o", "ConnectTimeout=5"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes", *options),
            f"root@{node.address}",
            *command,
        ]

    def _publish(self, images: Images) -> None:
        """Makes the engine images available in the site's registry under every name that recipes ask for."""
        if images.engine is None:
            self.say("no sandbox/engine/Dockerfile here: the registry offers no engine image")
        else:
            builder = Builder(self.engine, self.say)
            for name in self.sandbox.engine_images:
                release = release_named(name)
                self._publish_as(builder.engine_release(images.engine, release) if release else images.engine, [name])
        if self.sandbox.gateway_images:
            self._publish_as(Builder(self.engine, self.say).gateway(), self.sandbox.gateway_images)
        if images.real is not None:
            self._publish_as(images.real, self.sandbox.real_images)

    def _publish_as(self, image: str, names: Iterable[str]) -> None:
        image_id = self.engine.inspect("image", [image])[0]["Id"]
        for name in names:
            repository, _, tag = name.rpartition(":")
            if _published(self.sandbox.registry, repository, tag) == image_id:
                continue
            self.say(f"publishing {image} as {name}")
            full = f"{self.sandbox.registry}/{name}"
            self.engine.run("tag", image, full)
            try:
                self.engine.run("push", "--quiet", full)
            finally:
                self.engine.run("rmi", "--no-prune", full, check=False)

    # -- power ---------------------------------------------------------------------------------------------------------

    def power_off(self, node: Node) -> None:
        """Takes the power from a node: all its processes end at once, and nothing starts it but `power_on` or `up`."""
        container = self._container_of(node)
        if not container["State"]["Running"]:
            raise SandboxError(f"{node.name} is off already")
        self.engine.run("kill", "--signal=KILL", container["Id"])

    def power_on(self, node: Node) -> None:
        """Gives a node its power back and waits until it is up."""
        container = self._container_of(node)
        if container["State"]["Running"]:
            raise SandboxError(f"{node.name} is on already")
        self.engine.run("start", container["Id"])
        self._wait_for(node, new=False)

    def _container_of(self, node: Node) -> dict[str, Any]:
        found = self.engine.inspect("container", [self.container(node.name)]) if self.engine.pid() else []
        if not found:
            raise SandboxError(f"{node.name} does not exist; `sandbox/cluster.py up` makes it")
        return found[0]

    # -- down ----------------------------------------------------------------------------------------------------------

    def down(self) -> None:
        """Removes the sandbox, and stops the daemon when no other one is up. Images and the registry's content stay."""
        if self.engine.used():
            if self.engine.start():
                # The daemon was gone without a `down`: all it still knows of is left over.
                self.engine.remove()
            self._own_containers()
            removed = self.engine.remove(self.sandbox.name)
            self.say(f"removed {removed} containers of {self.sandbox.name}, their volumes and their network")
            others = self.engine.sandboxes()
            if others:
                self.say(f"the daemon goes on for {', '.join(sorted(others))}")
            else:
                self.engine.stop()
                self.say("stopped the sandbox's Docker daemon")
        else:
            self.say("no sandbox was ever up here")
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()

    # -- status --------------------------------------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """One row for each node: `node`, `address`, `profile`, `devices`, `state`, `ssh` (whether it lets us in)."""
        running = self.engine.pid() is not None
        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(lambda node: self._node_status(node, running), self.sandbox.nodes))

    def _node_status(self, node: Node, running: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"node": node.name, "address": node.address, "profile": node.profile["name"]}
        row["os"] = node.suite
        row |= {"devices": node.device_count, "state": "absent", "ssh": False}
        if not running:
            return row
        found = self.engine.inspect("container", [self.container(node.name)])
        if found and found[0]["State"]["Running"]:
            system = self.engine.run("exec", self.container(node.name), "systemctl", "is-system-running", check=False)
            row["state"] = system.stdout.strip() or "booting"
            row["ssh"] = subprocess.run(self.ssh(node, "true"), check=False, capture_output=True).returncode == 0
        elif found:
            row["state"] = "off"
        return row

    def node(self, name: str) -> Node:
        """The node of a name. Raises SandboxError with the names there are."""
        for node in self.sandbox.nodes:
            if node.name == name:
                return node
        raise SandboxError(f"no node {name}; there are {', '.join(node.name for node in self.sandbox.nodes)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 -- our own services, by http
            return True
    except OSError:
        return False


def _published(registry: str, repository: str, tag: str) -> str | None:
    """The image id that a name has in the registry; None when it has none."""
    url = f"http://{registry}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, headers={"Accept": MANIFEST})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 -- our own registry, by http
            return json.load(answer)["config"]["digest"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise SandboxError(f"registry {registry}: {error}") from error
