"""Brings the packages of `ascent.packages` onto a host: checks, drains, installs, remembers what is unfinished."""

from __future__ import annotations

__all__ = ["LOG", "Run"]

import hashlib
import os
import re
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from . import cann, command, device_users, packages, versions
from .errors import ParseError
from .files import Tree
from .findings import failed, finding, message
from .node import Node

LOG = "/var/log/ascend_seclog/ascend_install.log"
#: CANN's parts log to files of their own.
_LOGS = {
    "toolkit": "/var/log/ascend_seclog/ascend_toolkit_install.log",
    "kernels": "/var/log/ascend_seclog/ascend_kernels_install.log",
    "nnal": "/var/log/ascend_seclog/ascend_nnal_install.log",
}
_TAIL_CHARACTERS = 4000
_MISMATCH = re.compile(r"not compatible|not match|mismatch|incompatib", re.I)


class StoppedError(Exception):
    """A finding ends the run."""


class Run:
    """One call of the module ``npu_package``; see there for the arguments."""

    def __init__(
        self,
        node: Node,
        packages: Sequence[Mapping[str, Any]],
        directory: str,
        *,
        cluster: str = "",
        drain: bool = False,
        container_program: str = "docker",
        check: bool = False,
    ) -> None:
        self.node, self.tree = node, Tree(node.root)
        self.wanted, self.directory = packages, directory
        self.cluster, self.drain, self.program, self.check = cluster, drain, container_program, check
        self.machine = os.uname().machine
        self.findings: List[Dict[str, Any]] = []
        self.steps: List[Dict[str, Any]] = []
        self.done: List[Dict[str, Any]] = []
        self.drained: List[str] = []
        self.reboot = False
        self.installer: Optional[Dict[str, str]] = None

    def result(self) -> Dict[str, Any]:
        """Does all of it and reports."""
        self.steps = packages.due(
            self.wanted, packages.installed(self.tree, self.machine), packages.read_record(self.tree), self._status()
        )
        try:
            if self.steps:
                self._apply()
        except StoppedError:
            pass
        return self.report()

    def report(self) -> Dict[str, Any]:
        """The module's result."""
        shown = self.steps if self.check else self.done
        bad = failed(self.findings)
        report: Dict[str, Any] = {
            "changed": bool(shown or self.drained),
            "failed": bad,
            "steps": shown,
            "reboot_required": self.reboot,
            "drained": self.drained,
            "findings": self.findings,
            "diff": self._diff(shown),
        }
        if self.installer:
            report["installer"] = self.installer
        if bad:
            report["msg"] = message(self.findings)
        return report

    def _diff(self, steps: Sequence[Mapping[str, Any]]) -> List[Dict[str, str]]:
        def lines(key: str) -> str:
            return "".join(f"{step['component']} {step[key] or 'not installed'}\n" for step in steps)

        if not steps:
            return []
        after = lines("version")
        if self.check and any(step["component"] in packages.HARDWARE for step in steps):
            after += "reboot if an installer asks for it\n"
        header = "packages below /usr/local/Ascend"
        return [{"before_header": header, "after_header": header, "before": lines("from"), "after": after}]

    def _tell(self, id: str, summary: str, **details: str) -> None:
        self.findings.append(finding(id, "error", summary, stage="provision", **details))

    def _stop(self, id: str, summary: str, **details: str) -> None:
        self._tell(id, summary, **details)
        raise StoppedError

    def _info(self) -> Dict[str, Any]:
        try:
            return versions.parse_install_info(self.tree.read("/etc/ascend_install.info") or "")
        except ParseError:
            return {}

    def _status(self) -> Optional[str]:
        """How the driver's last installation ended; None where the file has no such line, as with older drivers."""
        status = self._info().get("status")
        return None if status is None else str(status)

    # -- before anything is changed ------------------------------------------------------------------------------------

    def _apply(self) -> None:
        hardware = any(step["component"] in packages.HARDWARE for step in self.steps)
        users = device_users.find(self.node, self.program) if hardware else []
        if self.check:
            if users and not (self.drain and all(user["cluster"] == self.cluster for user in users)):
                self.findings.append({**self._busy(users), "severity": "warning"})
            return
        for step in self.steps:
            self._verify(step)
        for step in self.steps:
            self._self_check(step)
        if users:
            self._free(users)
        for step in self.steps:
            self._install(step)
        self._fits()

    def _path(self, step: Mapping[str, Any]) -> str:
        return os.path.join(self.directory, str(step["file"]))

    def _verify(self, step: Mapping[str, Any]) -> None:
        """The file is there and is the one that the listing names."""
        place, digest = self.tree.path(self._path(step)), hashlib.sha256()
        try:
            with open(place, "rb") as stream:
                for piece in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(piece)
        except OSError as error:
            self._stop(
                "A21",
                f"the package {step['file']} can't be read on this host",
                evidence=f"{self._path(step)}: {error.strerror}",
                fix="Deploy again; the package is then brought once more.",
            )
        if digest.hexdigest() != step["sha256"]:
            self._stop(
                "A21",
                f"the package {step['file']} is damaged: its SHA-256 is not the one that SHA256SUMS names",
                evidence=f"{self._path(step)}: wanted {step['sha256']}, found {digest.hexdigest()}",
                cause="The file was changed or cut off on its way, or SHA256SUMS belongs to another file.",
                fix="Compare sha256sum of the file in its source with the vendor's figure; correct one of them in the "
                "source, then deploy again. Nothing was installed.",
            )

    def _call(self, step: Mapping[str, Any], *options: str) -> Tuple[int, str]:
        """Runs the package; for what goes on top of the toolkit, in its environment."""
        argv = ["bash", self.tree.path(self._path(step)), *options]
        home = cann.find(self.tree, self.machine) if step["component"] in packages.CANN[1:] else None
        if home and home["environment"]:
            argv = ["bash", "-c", '. "$0"; exec "$@"', str(home["environment"]), *argv]
        code, out, err = self.node.runner(argv, self.node.timeout)
        return code, f"{out}\n{err}" if err.strip() else out

    def _self_check(self, step: Mapping[str, Any]) -> None:
        """The package's own check. That it does not go with what this very run replaces is no reason to stop."""
        code, output = self._call(step, "--check")
        if code == 0 and "ERR_NO:" not in output:
            return
        words = packages.cause(output, "")
        replaced = {one["component"] for one in self.steps} >= set(packages.HARDWARE)
        if replaced and _MISMATCH.search(words):
            return
        self.installer = {"output": output[-_TAIL_CHARACTERS:], "log": ""}
        self._stop(
            "A24",
            f"the package {step['file']} refuses this host in its own check",
            evidence=f"{step['file']} --check ended with {code}: {words}",
            fix="Nothing was installed. Correct what the package names, then deploy again.",
        )

    def _busy(self, users: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
        ours = [user for user in users if self.cluster and user["cluster"] == self.cluster]
        what = ", ".join(f"{step['component']} {step['version']}" for step in self.steps)
        if ours and len(ours) == len(users):
            fix = "Let the run stop this cluster's containers: -e npu_driver_drain=true; the launch starts them again."
        else:
            fix = "Stop what uses the devices (kill the pids, stop the containers), then deploy again."
        return finding(
            "A14",
            "error",
            f"{what} can't be installed while the devices are in use",
            stage="provision",
            evidence=device_users.describe(users),
            cause="A driver can't be replaced under a process that has a device open.",
            fix=f"{fix} Nothing was installed.",
        )

    def _free(self, users: Sequence[Mapping[str, Any]]) -> None:
        """Stops this cluster's containers when told to, and refuses while anybody is left."""
        ours = sorted({str(user["container"]) for user in users if self.cluster and user["cluster"] == self.cluster})
        if self.drain and ours:
            code, out, err = self.node.runner([self.program, "stop", *ours], self.node.timeout)
            if code:
                self._stop(
                    "A14",
                    f"the containers {', '.join(ours)} could not be stopped",
                    evidence=err.strip() or out.strip() or f"{self.program} stop ended with {code}",
                    fix="Stop them by hand, then deploy again. Nothing was installed.",
                )
            self.drained = ours
            users = device_users.find(self.node, self.program)
        if users:
            self.findings.append(self._busy(users))
            raise StoppedError

    # -- installers ----------------------------------------------------------------------------------------------------

    def _install(self, step: Dict[str, Any]) -> None:
        component = step["component"]
        record = packages.read_record(self.tree)
        began = {key: step[key] for key in ("component", "version", "from", "file")}
        began["since"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        packages.write_record(self.tree, {**record, "unfinished": began})
        log = _LOGS.get(component, LOG)
        before = len(self.tree.read(log) or "")
        code, output = self._call(step, *packages.arguments(step))
        verdict = packages.outcome(code, output)
        present = packages.installed(self.tree, self.machine)[component]
        if verdict == "failed":
            self._failed(step, code, output, (self.tree.read(log) or "")[before:], present)
        if present is None or (step["from"] is not None and present == step["from"] != step["version"]):
            self._failed(step, code, f"{output}\nits files say {present or 'nothing'} after it", "", present)
        record["installed"][component] = {"sha256": step["sha256"], "version": present}
        if verdict == "reboot":
            self.reboot = True
            boot_id = (self.tree.read("/proc/sys/kernel/random/boot_id") or "").strip()
            waiting = record["reboot"] if (record["reboot"] or {}).get("boot_id") == boot_id else {"packages": {}}
            record["reboot"] = {"boot_id": boot_id, "packages": {**waiting["packages"], component: step["version"]}}
        packages.write_record(self.tree, {**record, "unfinished": None})
        self.done.append(step)

    def _failed(self, step: Mapping[str, Any], code: int, output: str, log: str, present: Optional[str]) -> None:
        words = packages.cause(output, log)
        if code == command.TIMED_OUT:
            words = f"no end after {self.node.timeout:g} s"
        info = self._info()
        path = str(info.get("path") or cann.BASE)
        so_far = "".join(f" {one['component']} {one['version']} was installed before it." for one in self.done)
        back = packages.way_back(step, present, self._status(), path)
        self.installer = {"output": output[-_TAIL_CHARACTERS:], "log": log[-_TAIL_CHARACTERS:]}
        change = f"from {step['from']} to {step['version']}" if step["from"] else str(step["version"])
        self._stop(
            "A24",
            f"{step['action']} of {step['component']} {change} failed",
            evidence=f"{step['file']} ended with {code}: {words}; log: {_LOGS.get(str(step['component']), LOG)}",
            cause=words,
            fix=f"{back[0].upper()}{back[1:]}{so_far}",
        )

    def _fits(self) -> None:
        """Driver and firmware of the disk say of each other that they fit."""
        base = str(self._info().get("path") or cann.BASE)
        try:
            driver = versions.parse_driver(self.tree.read(f"{base}/driver/version.info") or "")
            firmware = versions.parse_firmware(self.tree.read(f"{base}/firmware/version.info") or "")
        except ParseError:
            return
        if versions.firmware_fits(driver, firmware) is False:
            self._tell(
                "A07",
                f"firmware {firmware['version']} and driver {driver['version']} are installed and do not fit",
                evidence=f"driver takes {driver['firmware_range']}; firmware takes {firmware['driver_prefixes']}",
                cause="The packages of the source are not of one release.",
                fix="Put driver and firmware of one release into the source, then deploy again.",
            )
