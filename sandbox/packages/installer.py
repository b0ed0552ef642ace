#!/usr/bin/env python3
"""What runs inside the sandbox's `.run` packages: installs, upgrades, checks and removes what the package carries.

`package.json` beside it says what that is: `kind` (driver, firmware, toolkit, kernels, nnal), `version`, `label`, and
for driver and firmware the `package` that state.schema.json describes. `files/` holds the files by their paths below
the installation path, `root/` those of fixed places. Options, words, exit codes and logs are those of the vendor's
installers: 0 installed and live, 2 installed and waiting for a reboot, 1 failed. Runs on a node: standard library only,
Python 3.9.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, NoReturn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append("/usr/local/lib/sandbox")
sys.path.append("/usr/local/dcmi")

import driver_info  # noqa: E402 -- the path has to be set first
import node_state  # noqa: E402

GREEN, RED, YELLOW, PLAIN = "\033[32m", "\033[31m", "\033[33m", "\033[0m"
LOG_DIRECTORY = "var/log/ascend_seclog"
FREE_MB = {"driver": 300, "firmware": 32}
DEVICES = re.compile(r"/dev/(?:davinci|devmm_svm|hisi_hdc)")
TRY = "Try './xxx.run --help' for more information."
UNINSTALL = """\
#!/bin/sh
exec python3 "$(dirname "$0")/installer.py" --uninstall "$@"
"""
HELP = """Usage: {name} [options]
Options:
  --help | -h                       Print this message
  --version                         Print the version of the package
  --check                           Check the archive, and whether the package fits what is installed
  {modes}
  --upgrade                         Upgrade what is installed
  --uninstall                       Remove what is installed
  --install-path=<path>             Install there, by default /usr/local/Ascend
  --install-for-all                 Let all users use it
  --quiet                           Ask nothing
{more}"""


class InstallError(Exception):
    """The end of an installation: its code as the tool prints it, if it has one, and why."""

    def __init__(self, text: str, code: str = "", status: int = 1) -> None:
        super().__init__(f"ERR_NO:{code};ERR_DES:{text}" if code else text)
        self.status = status


class Installer:
    """What driver, firmware and CANN installers have in common: the log, the lock, the questions."""

    modes: ClassVar[dict[str, str]] = {}
    flags: tuple[str, ...] = ()
    valued: tuple[str, ...] = ("--install-path",)
    log_name = "ascend_install.log"

    def __init__(self, package: dict[str, Any]) -> None:
        self.package, self.kind, self.version = package, package["kind"], package["version"]
        self.name = self.kind.capitalize()
        self.given: set[str] = set()
        self.values: dict[str, str] = {}
        self.words: list[str] = []
        self.started = self.now()

    @staticmethod
    def now() -> str:
        """The time as the logs have it."""
        return time.strftime("%Y-%m-%d %H:%M:%S")

    def on(self, path: str) -> Path:
        """A file of the node."""
        return node_state.on_node(path.lstrip("/"))

    def log(self, text: str) -> None:
        """One line of the log file."""
        directory = self.on(LOG_DIRECTORY)
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        path = directory / self.log_name
        with path.open("a", encoding="utf-8") as file:
            file.write(f"[{self.name}] [{self.now()}] {text}\n")
        path.chmod(0o640)

    def say(self, text: str, colour: str = "") -> None:
        """One line for the user and for the log; only the words are coloured, and only for the user."""
        level, bracket, rest = text.partition("]")
        shown = f"{level}{bracket}{colour}{rest}{PLAIN if colour else ''}"
        print(f"[{self.name}] [{self.now()}] {shown}", flush=True)
        self.log(re.sub(r"\033\[[0-9]*m", "", text))

    def parse(self, words: list[str]) -> None:
        """Reads the command line. Raises InstallError on an option that is unknown or contradicts another."""
        self.words = words
        for word in words:
            option, equals, value = word.partition("=")
            if equals and option in self.valued:
                if not value:
                    raise InstallError(f"{option[2:]} is null, install failed", "0x0003")
                self.values[option] = value
            elif word in self.modes or word in self.flags or word in COMMON:
                self.given.add(word)
            else:
                raise InstallError(
                    f" Unrecognized parameters: {word}. Try './xxx.run --help' for more information.", "0x0004"
                )
        chosen = [word for word in words if word in self.modes or word in ("--upgrade", "--uninstall")]
        if len(set(chosen)) != 1 and not self.given & {"--version", "--check", "--help", "-h"}:
            raise InstallError(f" Unrecognized parameters. {TRY}", "0x0004")

    def ask(self, question: str) -> None:
        """Waits for y or n on standard input, for as long as it takes; n ends the program in good order."""
        self.say(f"[INFO]{question} [y/n] ")
        while True:
            answer = sys.stdin.readline()
            if answer.strip().lower() in ("y", "n"):
                break
            self.say("[ERROR]ERR_NO:0x0002;ERR_DES:input error, please input again!")
            if not answer:
                # Closed input: the real loop spins, ours leaves the processor to others.
                time.sleep(1)
        if answer.strip().lower() == "n":
            self.say("[INFO]Stop installation!")
            self.end(0)

    def end(self, status: int) -> NoReturn:
        """Ends the program."""
        print(f"[{self.name}] [{self.now()}] [INFO]End time: {self.now()}", flush=True)
        self.log(f"[INFO]End time: {self.now()}")
        sys.exit(status)

    def record(self, success: bool) -> None:
        """One line of the operation log."""
        operation = (
            "Uninstall" if "--uninstall" in self.given else "Upgrade" if "--upgrade" in self.given else "Install"
        )
        level = {"Install": "SUGGESTION", "Upgrade": "MINOR", "Uninstall": "MAJOR"}[operation]
        path = self.on(f"{LOG_DIRECTORY}/operation.log")
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(
                f"{operation} {level} root {self.started} 127.0.0.1 {self.package['label']} "
                f"{'success' if success else 'failed'} install_mode={' '.join(sorted(self.given))}; "
                f"cmdlist={' '.join(self.words)}.\n"
            )
        path.chmod(0o640)

    def base(self) -> str:
        """The installation path. Raises InstallError where it can't be one."""
        path = self.values.get("--install-path", driver_info.DEFAULT_PATH)
        if not re.fullmatch(r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+/?", path):
            raise InstallError("install-path input error, install failed", "0x0003")
        if not self.on(path).is_dir() and not self.on(os.path.dirname(path.rstrip("/"))).is_dir():
            parent = os.path.dirname(path.rstrip("/"))
            raise InstallError(
                f"install path {parent} not exists,runpackage only support create one level of directory,"
                f"need create {parent}.",
                "0x0003",
            )
        return path.rstrip("/")

    def check_space(self, base: str, needed_mb: int) -> None:
        """Raises InstallError where the disk lacks the space that the installation takes."""
        place = self.on(base)
        while not place.exists():
            place = place.parent
        found = os.statvfs(place)
        free = found.f_bavail * found.f_frsize >> 20
        if free <= needed_mb:
            raise InstallError(
                f"free space only {free}M, cannot install {self.kind} package (greater than {needed_mb}M), "
                "please make sure enough space under the installation path"
            )

    def copy(self, base: str) -> None:
        """Copies the package's files below the installation path, and those of fixed places to theirs."""
        for tree, target in (("files", base), ("root", "/")):
            source = HERE / tree
            if source.is_dir():
                shutil.copytree(source, self.on(target), dirs_exist_ok=True, symlinks=True)

    def run(self) -> int:
        """Does what the command line asks for and returns the exit status."""
        raise NotImplementedError

    def main(self, words: list[str]) -> int:
        """Runs the installer and returns its exit status."""
        try:
            self.parse(words)
            if self.given & {"--help", "-h"}:
                modes = "\n  ".join(f"{word:<33} {text}" for word, text in self.modes.items())
                more = "".join(f"  {word}\n" for word in (*self.flags, *(f"{each}=<...>" for each in self.valued[1:])))
                print(HELP.format(name=self.package["label"], modes=modes, more=more))
                return 0
            if os.geteuid() != 0:
                raise InstallError(
                    "do not have root permission, operation failed, please use root permission!", "0x0093"
                )
            with self.on("run/ascend_install.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = "There is already a process being executed"
                    raise InstallError(
                        f"{text},please do not execute multiple tasks at the same time", "0x0094"
                    ) from None
                self.say(f"[INFO]Start time: {self.started}")
                self.say(f"[INFO]LogFile: /{LOG_DIRECTORY}/{self.log_name}")
                self.say(f"[INFO]OperationLogFile: /{LOG_DIRECTORY}/operation.log")
                self.log(f"[INFO]UserCommand: {self.package['label']} {' '.join(words)}")
                if "--version" in self.given:
                    self.say(f"[INFO]{self.kind} version :{self.version}")
                    self.end(0)
                status = self.run()
        except InstallError as failed:
            print(f"[{self.name}] [{self.now()}] [ERROR]{failed}", flush=True)
            with contextlib.suppress(OSError):
                self.log(f"[ERROR]{failed}")
                self.record(success=False)
            return failed.status
        self.record(success=True)
        return self.end(status)


COMMON = ("--help", "-h", "--version", "--check", "--upgrade", "--uninstall", "--quiet", "--install-for-all")


class HardwareInstaller(Installer):
    """Driver or firmware: what is installed lies on the disk, what is live in the node's state."""

    modes: ClassVar[dict[str, str]] = {
        "--full": "Install all of it",
        "--run": "Install what running takes",
        "--docker": "Install what a container takes",
        "--devel": "Install what development takes",
    }
    flags = ("--force",)
    valued = ("--install-path", "--install-username", "--install-usergroup")

    def __init__(self, package: dict[str, Any]) -> None:
        super().__init__(package)
        self.info = driver_info.values(self.text(driver_info.INSTALL_INFO))

    def text(self, path: str) -> str:
        """A file's text, empty where there is none."""
        found = self.on(path)
        return found.read_text(encoding="utf-8") if found.is_file() else ""

    @property
    def installed_path(self) -> str:
        """Where the last installation was; empty where there is none."""
        return self.info.get(f"{self.name}_Install_Path_Param", "")

    def installed_version(self) -> str:
        """The version that is on the disk, or an empty text."""
        found = driver_info.values(self.text(f"{self.installed_path}/{self.kind}/version.info"))
        return found.get("package_version") or found.get("Version", "")

    def run(self) -> int:
        """Does what the command line asks for and returns the exit status."""
        if self.on("etc/HiAI_install.info").exists():
            # The real script leaves with the status of its last command, which is 0.
            text = (
                "Operation failed, An all-in-one RUN package is found, which needs to be uninstalled before proceeding."
            )
            raise InstallError(text, "0x0094", status=0)
        state = node_state.read()
        fault = state["faults"]["installer"]
        if fault and "after" not in fault:
            raise InstallError(fault["text"], fault["code"] or "")
        if "--check" in self.given:
            return self.check()
        if "--uninstall" in self.given:
            return self.uninstall(state)
        return self.install(state)

    def check(self) -> int:
        """`--check`: whether the package goes with what is installed of the other kind."""
        problem = self.mismatch()
        if problem:
            raise InstallError(problem)
        self.say(f"[INFO]{self.name} package version compatibility check passed.")
        return 0

    def mismatch(self) -> str:
        """Why the package does not go with the installed one of the other kind; empty where it does or none is."""
        other = "firmware" if self.kind == "driver" else "driver"
        path = self.info.get(f"{other.capitalize()}_Install_Path_Param", driver_info.DEFAULT_PATH)
        text = self.text(f"{path}/{other}/version.info")
        if not text:
            return ""
        read = driver_info.firmware_package if other == "firmware" else driver_info.driver_package
        mine, theirs = self.package["package"], read(text)
        driver, firmware = (mine, theirs) if self.kind == "driver" else (theirs, mine)
        low, high = (numbers(bound) for bound in driver.get("compatible_firmware", ["0", "999"]))
        prefixes = firmware.get("compatible_drivers", [driver["version"]])
        if low <= numbers(firmware["version"])[:3] <= high and any(map(driver["version"].startswith, prefixes)):
            return ""
        return (
            f"{self.kind} package {self.version} and the installed {other} {theirs['version']} are not compatible, "
            f"firmware range [{','.join(driver.get('compatible_firmware', []))}], drivers {','.join(prefixes)}"
        )

    def user(self) -> tuple[str, str]:
        """The user and group that the driver runs as. Raises InstallError where they can't be those."""
        given = [self.values.get(f"--install-user{part}") for part in ("name", "group")]
        if (given[0] is None) != (given[1] is None):
            raise InstallError("Username and usergroup are not specified at the same time.", "0x0004")
        if given[0] == "root" and "--install-for-all" not in self.given:
            raise InstallError("username not permission for root", "0x0091")
        last = self.info.get("UserName"), self.info.get("UserGroup")
        if given[0] is not None and last[0] and (given[0], given[1]) != last:
            text = "The user and group are not same with last installation,do not support overwriting installation"
            raise InstallError(text, "0x0095")
        name, group = given[0] or last[0] or "HwHiAiUser", given[1] or last[1] or "HwHiAiUser"
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            raise InstallError(f"{name} not exists! Please add {name}", "0x0091") from None
        try:
            members = grp.getgrnam(group)
        except KeyError:
            raise InstallError(f"{group} group not exists! Please add {group} group", "0x0091") from None
        if members.gr_gid != user.pw_gid and name not in members.gr_mem:
            raise InstallError(f"{group} not right! Please check the relatianship of {name} and {group}", "0x0096")
        return name, group

    def check_occupied(self, state: dict[str, Any]) -> None:
        """Raises InstallError while somebody uses a device."""
        if "--force" in self.given or state["driver"] is None:
            return
        users = [f"process {lease['pid']} {lease['name']}" for lease in node_state.leases()]
        users += [f"process {process['pid']} {process['name']}" for process in state["processes"]]
        users += open_devices() + device_containers()
        if not users:
            return
        for each in users:
            self.log(f"[WARNING]{each} uses a davinci node")
        text = "The davinci nodes are occupied by some processes, please stop processes and install or uninstall again"
        self.log(f"[ERROR]{text}.")
        print(f"[{self.name}] [{self.now()}] [ERROR]{RED}{text}, details in : /{LOG_DIRECTORY}/{self.log_name} {PLAIN}")
        self.say(
            f"[INFO]If you want to install or uninstall the {self.kind} forcibly, add the force parameter. "
            "For details, see [--help]."
        )
        self.record(success=False)
        self.end(1)

    def install(self, state: dict[str, Any]) -> int:
        """Installs or upgrades; 0 where the new version is live, 2 where it takes a reboot."""
        mode = next(
            (word[2:] for word in self.modes if word in self.given), self.info.get(f"{self.name}_Install_Type", "full")
        )
        self.say("[WARNING]Do not power off or restart the system during the installation/upgrade", YELLOW)
        name, group = self.user()
        if "--install-path" not in self.values and self.installed_path:
            self.values["--install-path"] = self.installed_path
        base = self.base()
        self.check_space(base, FREE_MB[self.kind])
        if (
            self.kind == "firmware"
            and mode != "docker"
            and state["driver"] is None
            and not self.info.get("Driver_Install_Type")
        ):
            raise InstallError("The driver package is not installed, please install the driver package first")
        problem = self.mismatch()
        if problem:
            self.say(f"[WARNING]{problem}", YELLOW)
        before = self.installed_version()
        if before and "--quiet" not in self.given and "--upgrade" not in self.given:
            self.ask(
                f"{self.name} package has been installed on the path {self.installed_path}, the version is {before}, "
                f"and the version of this package is {self.version},do you want to continue? "
            )
        if self.kind == "driver":
            self.check_occupied(state)
        if before and self.installed_path != base:
            shutil.rmtree(self.on(f"{self.installed_path}/{self.kind}"), ignore_errors=True)
        changes = {
            "UserName": name,
            "UserGroup": group,
            f"{self.name}_Install_Type": mode,
            f"{self.name}_Install_Path_Param": base,
        }
        if self.kind == "driver":
            for_all = "yes" if "--install-for-all" in self.given else "no"
            changes |= {"Driver_Install_For_All": for_all, "Driver_Install_Mode": "normal", "Driver_Install_Status": ""}
        self.write_info(changes)
        self.copy(base)
        fault = state["faults"]["installer"]
        if fault and fault.get("after") == "files":
            raise InstallError(fault["text"], fault["code"] or "")
        script = self.on(f"{base}/{self.kind}/script")
        script.mkdir(parents=True, exist_ok=True)
        for part in ("installer.py", "package.json"):
            shutil.copy(HERE / part, script / part)
        (script / "uninstall.sh").write_text(
            '#!/bin/sh\nexec python3 "$(dirname "$0")/installer.py" --uninstall "$@"\n'
        )
        (script / "uninstall.sh").chmod(0o500)
        if self.kind == "driver":
            self.write_info({"Driver_Install_Status": "complete"})
        done = "upgraded" if "--upgrade" in self.given else "installed"
        if (
            mode in ("docker", "devel")
            or state["installer"]["hot_reset"]
            or (self.kind == "driver" and state["driver"] is None)
        ):
            if mode not in ("docker", "devel"):
                load()
            self.say(
                f"[INFO]{self.name} package {done} successfully! The new version takes effect immediately. ", GREEN
            )
            return 0
        if self.kind == "driver":
            with node_state.changed() as changing:
                # The tools on the disk are the new ones already.
                changing["tool_version"] = self.version
        what = {
            "driver": "Reboot needed for installation/upgrade to take effect! ",
            "firmware": "Reboot now or after driver installation for the installation/upgrade to take effect. ",
        }[self.kind]
        self.say(f"[INFO]{self.name} package {done} successfully! {PLAIN}{RED}{what}", GREEN)
        return 2

    def uninstall(self, state: dict[str, Any]) -> int:
        """Removes what is installed. What is live stays so until a reboot."""
        base = self.installed_path
        if not base:
            text = f"{self.name} package is not installed on this device, uninstall failed"
            raise InstallError(text, "0x0080")
        if self.kind == "driver":
            self.check_occupied(state)
            self.on("usr/local/bin/npu-smi").unlink(missing_ok=True)
        shutil.rmtree(self.on(f"{base}/{self.kind}"), ignore_errors=True)
        self.write_info(dict.fromkeys((key for key in self.info if key.startswith(self.name)), ""))
        if not any(key.endswith("_Install_Type") for key in self.info):
            self.on(driver_info.INSTALL_INFO).unlink(missing_ok=True)
        if state["installer"]["hot_reset"]:
            load()
            self.say(
                f"[INFO]{self.name} package uninstalled successfully! Uninstallation takes effect immediately. ", GREEN
            )
        else:
            self.say(
                f"[INFO]{self.name} package uninstalled successfully! {PLAIN}{RED}"
                "Reboot needed for uninstallation to take effect! ",
                GREEN,
            )
        return 0

    def write_info(self, changes: dict[str, str]) -> None:
        """Changes /etc/ascend_install.info."""
        path = self.on(driver_info.INSTALL_INFO)
        path.write_text(driver_info.install_text(changes, self.text(driver_info.INSTALL_INFO)), encoding="utf-8")
        path.chmod(0o644)
        self.info = driver_info.values(self.text(driver_info.INSTALL_INFO))


class CannInstaller(Installer):
    """A part of CANN: files below the installation path, live as soon as they are there."""

    modes: ClassVar[dict[str, str]] = {
        "--install": "Install it",
        "--full": "Install it",
        "--devel": "Install it",
        "--run": "Install it",
    }
    flags = ("--whitelist", "--pylocal", "--force", "--noexec")

    def __init__(self, package: dict[str, Any]) -> None:
        super().__init__(package)
        self.name = {"toolkit": "Toolkit", "kernels": "Ops", "nnal": "Nnal"}[self.kind]
        self.log_name = f"ascend_{self.kind}_install.log"

    @property
    def title(self) -> str:
        """What the package calls itself."""
        return re.split(r"_[0-9]", self.package["label"])[0]

    def run(self) -> int:
        """Does what the command line asks for and returns the exit status."""
        base = self.base()
        if "--check" in self.given:
            self.say("[INFO]Check the package successfully.")
            return 0
        if "--uninstall" in self.given:
            return self.uninstall(base)
        if "--quiet" not in self.given:
            self.ask("Do you accept the end user license agreement to install this package?")
        self.check_space(base, self.package["size_mb"])
        if self.kind != "toolkit" and not self.on(f"{base}/{self.home()}").is_dir():
            raise InstallError(
                f"{self.title} {self.version} takes the toolkit of the same version below {base}, and it is not there; "
                "please install the toolkit first"
            )
        # The package's own name for the processor stays where the machine has another one.
        self.copy(base)
        for link, target in self.package["links"].items():
            place = self.on(f"{base}/{link}")
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_symlink() or place.exists():
                place.unlink()
            place.symlink_to(target)
        self.choose_binaries(base)
        self.say(f"[INFO]{self.title} install success", "")
        self.say(f"[INFO]Please make sure that the environment is set: source {base}/{self.package['environment']}")
        return 0

    def home(self) -> str:
        """Where the toolkit of this version is, below the installation path."""
        return self.package["home"]

    def choose_binaries(self, base: str) -> None:
        """Shows the test programs of this system's release where the vendor's build leaves them."""
        tests = self.on(f"{base}/{self.home()}/tools/hccl_test")
        release = driver_info.values(self.on("etc/os-release").read_text()).get("VERSION_CODENAME", "")
        built = tests / f"bin-{release}-{platform.machine()}"
        if built.is_dir() and not (tests / "bin").exists():
            (tests / "bin").symlink_to(built.name)

    def uninstall(self, base: str) -> int:
        """Removes what the package has installed, and links that then lead nowhere."""
        if not self.on(f"{base}/{self.package['mark']}").exists():
            raise InstallError(f"{self.title} {self.version} is not installed below {base}, uninstall failed", "0x0080")
        for path in self.package["owned"]:
            shutil.rmtree(self.on(f"{base}/{path}"), ignore_errors=True)
        for link in self.package["links"]:
            place = self.on(f"{base}/{link}")
            if place.is_symlink() and not place.exists():
                place.unlink()
        self.say(f"[INFO]{self.title} uninstall success")
        return 0


def numbers(version: str) -> list[int]:
    """A dotted version for comparison; words such as `rc1` count as their digits."""
    return [int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")]


def open_devices() -> list[str]:
    """The processes that have one of the driver's device files open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if DEVICES.match(target):
            found.append(f"process {link.parts[2]} ({target})")
    return sorted(set(found))


def device_containers() -> list[str]:
    """The running containers that were given one of the driver's device files."""
    docker = shutil.which("docker")
    if not docker:
        return []
    ids = subprocess.run([docker, "ps", "-q"], check=False, capture_output=True, text=True).stdout.split()
    if not ids:
        return []
    shown = subprocess.run([docker, "inspect", *ids], check=False, capture_output=True, text=True).stdout
    return [
        f"container {container['Name'].lstrip('/')}"
        for container in json.loads(shown or "[]")
        if any(DEVICES.match(device["PathOnHost"]) for device in container["HostConfig"].get("Devices") or ())
    ]


def load() -> None:
    """Makes what is on the disk live, as a hot reset does."""
    boot = node_state.on_node("usr/local/lib/sandbox/boot")
    if subprocess.run([str(boot), "load"], check=False).returncode:
        raise InstallError("the new driver does not load")


def main(words: list[str]) -> int:
    """Runs the installer of the package beside this program."""
    # What is installed is for others to read, whatever the archive's own caution.
    os.umask(0o022)
    package = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    kind = HardwareInstaller if package["kind"] in FREE_MB else CannInstaller
    return kind(package).main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
