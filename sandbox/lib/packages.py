"""Builds driver, firmware and CANN packages as self-extracting archives, as the vendor names and lays them out."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.lib.node_files import File, driver_tree, firmware_tree
from sandbox.lib.plan import SandboxError
from sandbox.node import driver_info

ROOT = Path(__file__).resolve().parent.parent
INSTALLER = ROOT / "packages/installer.py"
HCCL_TEST = ROOT / "hccl_test"
MAKESELF_HEADER = Path("/usr/share/makeself/makeself-header.sh")
# How packages name the chips of a profile's layout.
CHIPS = {"a2": "910b", "a3": "A3", "310p": "310p", "950": "950"}
DRIVERS = ("25.2.0", "25.5.2")
FIRMWARES = ("7.7.0.6.236", "7.8.0.6.201")
CANNS = ("8.3.RC2", "8.5.0")
# From this release on CANN lies in a folder of another name.
NEW_LAYOUT = (8, 5)
# makeself's own verbs stay its own; everything else is for the installer, as with the vendor's archives.
ARGUMENTS = """\
case " \\$* " in
    *" --noexec "*|*" --info "*|*" --list "*|*" --tar "*|*" --dumpconf "*|*" --phase2 "*) ;;
    *" --quiet "*) quiet=y; noprogress=y; set -- -- "\\$@" ;;
    *) set -- -- "\\$@" ;;
esac
"""


@dataclass(frozen=True)
class Package:
    """One package: its file name, what `package.json` says, its files below the installation path and elsewhere."""

    name: str
    description: Mapping[str, Any]
    files: Sequence[File]


def _hdk(chip: str) -> str:
    """How the names of a chip's driver and firmware begin."""
    return f"Atlas-{chip}-hdk" if chip == "A3" else f"Ascend-hdk-{chip}"


def driver(chip: str, arch: str, base: Mapping[str, Any], version: str) -> Package:
    """A driver package like `base`, of another version."""
    package = {**base, "version": version}
    name = f"{_hdk(chip)}-npu-driver_{version}_linux-{arch}.run"
    return Package(name, _description("driver", version, name, package=package), driver_tree(package))


def firmware(chip: str, base: Mapping[str, Any], version: str) -> Package:
    """A firmware package like `base`, of another version."""
    package = {**base, "version": version}
    name = f"{_hdk(chip)}-npu-firmware_{version}.run"
    return Package(name, _description("firmware", version, name, package=package), firmware_tree(package))


def cann_home(version: str, arch: str) -> str:
    """Where the toolkit of a version lies, below the installation path."""
    numbers = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
    return f"cann-{version}" if numbers >= NEW_LAYOUT else f"ascend-toolkit/{version}/{arch}-linux"


def toolkit(arch: str, version: str, test_programs: Mapping[str, bytes]) -> Package:
    """CANN's toolkit, with `hccl_test`: its source, and `test_programs` by their paths in its folder."""
    home = cann_home(version, arch)
    new = home.startswith("cann-")
    script = f"{home}/set_env.sh" if new else "ascend-toolkit/set_env.sh"
    links = {"ascend-toolkit/latest": f"../{home}" if new else version}
    if new:
        links["cann"] = home
    name = f"Ascend-cann-toolkit_{version}_linux-{arch}.run"
    below = f"{driver_info.DEFAULT_PATH}/{home}"
    info = (
        f"package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion=V100R001C23SPC001B255\n"
        f"compatible_version=[V100R001C15],[V100R001C18],[V100R001C19],[V100R001C20],[V100R001C21],[V100R001C23]\n"
        f"arch={arch}\nos=linux\npath={below}\n"
    )
    library = b"sandbox placeholder, not a library\n"
    files = [
        File(f"{below}/ascend_toolkit_install.info", info.encode()),
        File(f"{below}/lib64/libascendcl.so", library),
        File(f"{below}/lib64/libhccl.so", library),
        File(f"{driver_info.DEFAULT_PATH}/{script}", _environment(new).encode()),
        *(
            File(f"{below}/tools/hccl_test/{path.name}", path.read_bytes(), 0o755 if path.suffix == ".sh" else 0o644)
            for path in sorted(HCCL_TEST.iterdir())
            if path.is_file() and path.name != "Dockerfile"
        ),
        *(File(f"{below}/tools/hccl_test/{path}", content, 0o755) for path, content in test_programs.items()),
    ]
    more = {
        "home": home,
        "mark": f"{home}/ascend_toolkit_install.info",
        "owned": [home] if new else [f"ascend-toolkit/{version}"],
        "links": links,
        "environment": _sourced(home),
        "size_mb": 64,
    }
    return Package(name, _description("toolkit", version, name, **more), files)


def _environment(new: bool) -> str:
    """CANN's environment script; it reads the driver's place from a file that has to be there."""
    path = f"{driver_info.DEFAULT_PATH}/{'cann' if new else 'ascend-toolkit/latest'}"
    return (
        "# Environment of CANN; to be sourced.\n"
        f"export ASCEND_TOOLKIT_HOME={path}\n"
        f"export ASCEND_HOME_PATH={path}\n"
        'driver_path=$(grep "Driver_Install_Path_Param" /etc/ascend_install.info | cut -d= -f2-)\n'
        "export LD_LIBRARY_PATH=${driver_path}/driver/lib64/common:${driver_path}/driver/lib64/driver:"
        f"{path}/lib64:$LD_LIBRARY_PATH\n"
        f"export PATH={path}/bin:$PATH\n"
        f"export ASCEND_OPP_PATH={path}/opp\n"
        "unset driver_path\n"
    )


def kernels(chip: str, arch: str, version: str) -> Package:
    """CANN's operator packages of a chip, which go on top of the toolkit of the same version."""
    home = cann_home(version, arch)
    kind = f"{chip}-ops" if home.startswith("cann-") else f"kernels-{chip}"
    title = "Atlas-A3-cann-kernels" if kind == "kernels-A3" else f"Ascend-cann-{kind}"
    name = f"{title}_{version}_linux-{arch}.run"
    operators = f"{home}/opp/built-in/op_impl/ai_core/tbe/kernel/{chip.lower()}"
    if home.startswith("cann-"):
        own, info = f"{home}/{arch}-linux", "ascend_ops_install.info"
        content = f"package_name={title}\nversion={version}\narch={arch}\nos=linux\n"
    else:
        # An internal number, and the release beside it.
        own, info = f"ascend-toolkit/{version}/opp_kernel", "version.info"
        content = f"Version=8.0.T5.0.B028\nversion_dir={version}\n"
    mark, owned = f"{own}/{info}", [own, operators]
    more = {"home": home, "mark": mark, "owned": owned, "links": {}, "environment": _sourced(home), "size_mb": 64}
    base = driver_info.DEFAULT_PATH
    files = [File(f"{base}/{mark}", content.encode()), File(f"{base}/{operators}/kernel.o", b"sandbox placeholder\n")]
    return Package(name, _description("kernels", version, name, **more), files)


def nnal(arch: str, version: str) -> Package:
    """CANN's acceleration libraries."""
    home = cann_home(version, arch)
    name = f"Ascend-cann-nnal_{version}_linux-{arch}.run"
    owned = f"nnal/atb/{version}"
    library = b"sandbox placeholder, not a library\n"
    base = driver_info.DEFAULT_PATH
    script = (
        "# Environment of the transformer library; to be sourced.\n"
        f"export ATB_HOME_PATH={base}/nnal/atb/latest/atb/cxx_abi_1\n"
        "export LD_LIBRARY_PATH=$ATB_HOME_PATH/lib:$LD_LIBRARY_PATH\n"
    )
    files = [
        File(f"{base}/{owned}/atb/cxx_abi_1/lib/libatb.so", library),
        File(f"{base}/{owned}/atb/cxx_abi_0/lib/libatb.so", library),
        File(f"{base}/{owned}/version.info", f"Version={version}\n".encode()),
        File(f"{base}/nnal/atb/set_env.sh", script.encode()),
    ]
    more = {
        "home": home,
        "mark": f"{owned}/version.info",
        "owned": [owned],
        "links": {"nnal/atb/latest": version},
        "environment": "nnal/atb/set_env.sh",
        "size_mb": 32,
    }
    return Package(name, _description("nnal", version, name, **more), files)


def _sourced(home: str) -> str:
    """The environment script of the toolkit that an installer asks to source."""
    return "cann/set_env.sh" if home.startswith("cann-") else "ascend-toolkit/set_env.sh"


def _description(kind: str, version: str, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "version": version, "label": name.removesuffix(".run"), **more}


def for_profiles(
    profiles: Iterable[Mapping[str, Any]],
    *,
    arch: str = "",
    drivers: Sequence[str] = DRIVERS,
    firmwares: Sequence[str] = FIRMWARES,
    canns: Sequence[str] = CANNS,
    test_programs: Mapping[str, bytes] | None = None,
) -> list[Package]:
    """All packages for servers of some profiles, each once; those without Ascend devices need none."""
    arch = arch or platform.machine()
    packages: dict[str, Package] = {}
    for profile in profiles:
        if profile["accelerator"] != "ascend":
            continue
        chip = CHIPS[profile["layout"]]
        made = [driver(chip, arch, profile["driver"], version) for version in drivers]
        made += [firmware(chip, profile["firmware"], version) for version in firmwares]
        for version in canns:
            made += [
                toolkit(arch, version, test_programs or {}),
                kernels(chip, arch, version),
                nnal(arch, version),
            ]
        packages |= {package.name: package for package in made}
    return list(packages.values())


def header(original: str) -> str:
    """Makeself's own header, changed so that options reach the installer. Raises SandboxError where it does not fit."""
    mark = 'initargs="\\$@"\n'
    if original.count(mark) != 1:
        raise SandboxError(
            f"{MAKESELF_HEADER} is not of a known makeself (2.4 or 2.5): it has {original.count(mark)} lines {mark!r}"
        )
    return original.replace(mark, mark + ARGUMENTS)


def write(packages: Iterable[Package], directory: Path, say: Callable[[str], None]) -> list[Path]:
    """Writes packages into a directory, lists all that it holds in `SHA256SUMS`, and returns where they are."""
    if not shutil.which("makeself") or not MAKESELF_HEADER.is_file():
        raise SandboxError("makeself is not installed. On Debian: sudo apt-get install makeself")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(prefix="ascent-packages-") as scratch:
        patched = Path(scratch) / "header.sh"
        patched.write_text(header(MAKESELF_HEADER.read_text(encoding="utf-8")), encoding="utf-8")
        for package in packages:
            say(f"packing {package.name}")
            root = Path(scratch) / package.name
            lay_out(package, root)
            target = directory / package.name
            command = ["makeself", "--header", str(patched), "--gzip", "--sha256", "--nomd5", "--nocrc", "--nox11"]
            # The same content gives the same package, whenever it is packed.
            command += ["--export-conf", "--tar-quietly", "--packaging-date", "2026-01-01", "--tar-extra"]
            command += ["--mtime=@0 --sort=name --owner=0 --group=0 --numeric-owner"]
            command += [str(root), str(target), str(package.description["label"]), "./install.sh"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SandboxError(f"makeself of {package.name} failed: {(done.stderr or done.stdout).strip()}")
            written.append(target)
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(directory.glob("*.run"))
    ]
    (directory / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return written


def lay_out(package: Package, root: Path) -> None:
    """Writes what goes into a package's archive into an empty directory."""
    root.mkdir(parents=True)
    (root / "package.json").write_text(json.dumps(package.description, indent=1) + "\n", encoding="utf-8")
    shutil.copy(INSTALLER, root / "installer.py")
    script = root / "install.sh"
    script.write_text('#!/bin/sh\nexec python3 "$(dirname "$0")/installer.py" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    base = driver_info.DEFAULT_PATH + "/"
    for file in package.files:
        below = f"files/{file.path.removeprefix(base)}" if file.path.startswith(base) else f"root{file.path}"
        target = root / below
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
        target.chmod(file.mode)
