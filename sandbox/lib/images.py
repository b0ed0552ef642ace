"""The images of the sandbox. Each tag is made of everything that went into the image: nothing is built twice."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sandbox.lib.engine import LABEL, Engine
from sandbox.lib.plan import DEFAULT_SUITE, SUITES, SandboxError

ROOT = Path(__file__).resolve().parent.parent
BASE_PACKAGES = ("ca-certificates", "python3")
MIRROR_VARIABLE = "ASCENT_SANDBOX_DEBIAN_MIRROR"
# Options of the machine's own apt that its mirror may need; they are used while building only.
APT_OPTIONS = re.compile(r"^Acquire::(Check-Valid-Until|Check-Date|Retries|https?::Proxy\b.*) ")
REPOSITORY = "ascent-sandbox"


@dataclass(frozen=True)
class Images:
    """Full names of the images; `engine` is None where the checkout has no sandbox/engine/Dockerfile.

    `real` is the image of the real engine, which is built only where it is asked for.

    By release of Debian: `nodes`, and `repositories` with the packages of releases other than the services' own.
    """

    base: str
    nodes: Mapping[str, str]
    repositories: Mapping[str, str]
    services: str
    engine: str | None
    real: str | None = None

    def names(self) -> list[str]:
        """The names of all."""
        engines = [name for name in (self.engine, self.real) if name]
        return [self.base, *self.nodes.values(), *self.repositories.values(), self.services, *engines]


# The release in the tag of an image of vLLM-Ascend; its tags for hardware and system come after it.
RELEASE = re.compile(r"/vllm-ascend:(v\d+\.\d+\.\d+(?:rc\d+)?(?:\.post\d+)?)(?:-|$)")


def release_named(image: str) -> str | None:
    """The release of vLLM-Ascend that an image's name asks for, such as v0.18.0; None where it names none."""
    match = RELEASE.search(image)
    return match.group(1) if match else None


def digest(parts: Iterable[bytes]) -> str:
    """Twelve hex digits over parts, each with its length, so that no two lists of parts look alike."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)}:".encode() + part)
    return total.hexdigest()[:12]


def digest_files(paths: Iterable[Path], *more: str) -> str:
    """A digest over names, execute bits and contents of files, and over more text."""
    parts = [text.encode() for text in more]
    for path in sorted(paths):
        parts += [path.name.encode(), bytes([path.stat().st_mode & 0o100 != 0]), path.read_bytes()]
    return digest(parts)


def copy_sources(dockerfile: str) -> list[str]:
    """The paths that the COPY lines of a Dockerfile take from the build context."""
    found: list[str] = []
    for line in dockerfile.splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not any(word.startswith("--from") for word in words):
            found += [word for word in words[1:-1] if not word.startswith("--")]
    return found


def mirror(suite: str) -> str | None:
    """The Debian mirror to build a release from: the variable for it or for all, or the one this machine itself uses.

    None: debootstrap's default. Releases leave the mirrors for the archive some time after their support has ended.
    """
    for variable in (f"{MIRROR_VARIABLE}_{suite.upper()}", MIRROR_VARIABLE):
        if os.environ.get(variable):
            return os.environ[variable]
    release = Path("/etc/os-release")
    if not release.exists() or "ID=debian" not in release.read_text().splitlines():
        return None
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"],
        check=False,
        capture_output=True,
        text=True,
    )
    for line in shown.stdout.splitlines():
        site, _, own = line.partition(" ")
        if own in SUITES:
            return site
    return None


def apt_options() -> str:
    """The machine's apt options that its mirror may need, as a configuration file."""
    try:
        shown = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "".join(f"{line}\n" for line in shown.splitlines() if APT_OPTIONS.match(line))


class Builder:
    """Builds what is missing, and says so through `say`."""

    def __init__(self, engine: Engine, say: Callable[[str], None]) -> None:
        """`say` is called with one line for each image that has to be built."""
        self.engine, self.say = engine, say

    def build(self, suites: Iterable[str] = (DEFAULT_SUITE,)) -> Images:
        """All images that nodes of these releases of Debian need, built where their tag is missing."""
        nodes, systems = {}, {}
        sources = [path for path in (ROOT / "node").iterdir() if path.is_file()]
        for suite in sorted({DEFAULT_SUITE, *suites}):
            systems[suite] = self._image("os", {"BASE": self._base(suite)})
            nodes[suite] = self._image("node", {"OS": systems[suite]}, sources)
        base = self._base(DEFAULT_SUITE)
        kernel = platform.release()
        services = self._image("services", {"BASE": base, "OS": systems[DEFAULT_SUITE], "KERNEL": kernel})
        wanted = [ROOT / "images/services" / name for name in ("packages.txt", "make_repository.py")]
        repositories = {
            suite: self._image("repository", {"OS": system, "SUITE": suite, "KERNEL": kernel}, wanted, "services")
            for suite, system in systems.items()
            if suite != DEFAULT_SUITE
        }
        return Images(base, nodes, repositories, services, self._engine(base))

    def gateway(self) -> str:
        """What guards a router: nginx and bash, laid out as nginx's own image."""
        return self._image("gateway", {"BASE": self._base(DEFAULT_SUITE)})

    def hccl_test(self, suites: Iterable[str], folder: Literal["bin", "nccl"] = "bin") -> dict[str, bytes]:
        """The collective test programs by their paths in their folder, compiled on each of these releases of Debian.

        ``nccl`` are those of nccl-tests, ``bin`` CANN's.
        """
        programs: dict[str, bytes] = {}
        for suite in sorted(suites):
            tag = self.hccl_test_image(suite)
            container = self.engine.run("create", f"--label={LABEL}=build", tag, "true").stdout.strip()
            try:
                packed = self.engine.run("cp", f"{container}:/build/{folder}", "-", text=False).stdout
            finally:
                self.engine.run("rm", "--force", container)
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                for member in tar:
                    if file := tar.extractfile(member):
                        programs[f"{folder}-{suite}-{platform.machine()}/{Path(member.name).name}"] = file.read()
        return programs

    def hccl_test_image(self, suite: str = DEFAULT_SUITE) -> str:
        """An image with MPI and the collective test programs, in /build/bin."""
        sources = [path for path in (ROOT / "hccl_test").iterdir() if path.is_file()]
        return self._image("hccl_test", {"BASE": self._base(suite)}, sources)

    def _exists(self, tag: str) -> bool:
        return self.engine.run("image", "inspect", tag, check=False).returncode == 0

    def _base(self, suite: str) -> str:
        site, options = mirror(suite), apt_options()
        config = ROOT / "images/base/dpkg.cfg"
        tag = f"{REPOSITORY}/base:{digest_files([config], suite, *BASE_PACKAGES, site or '', options)}"
        if self._exists(tag):
            return tag
        if not shutil.which("debootstrap"):
            raise SandboxError("debootstrap is not installed. On Debian: sudo apt-get install debootstrap")
        self.say(f"building the base image (Debian {suite}, about 40 s)")
        with tempfile.TemporaryDirectory(dir=self.engine.root, prefix="rootfs-") as directory:
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", suite, directory]
            log = self.engine.root / f"debootstrap-{suite}.log"
            with log.open("wb") as file:
                done = subprocess.run([*command, *([site] if site else [])], check=False, stdout=file, stderr=file)
            if done.returncode:
                tail = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise SandboxError(
                    f"debootstrap of {suite} from {site or 'its default mirror'} failed:\n  " + "\n  ".join(tail) + "\n"
                    f"  A release that has left the mirrors is in Debian's archive: name a copy of it with "
                    f"{MIRROR_VARIABLE}_{suite.upper()}"
                )
            root = Path(directory)
            shutil.copy(config, root / "etc/dpkg/dpkg.cfg.d/90sandbox")
            (root / "etc/apt/apt.conf.d/99host").write_text(options)
            shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
            (root / "var/cache/apt/archives/partial").mkdir(parents=True)
            with subprocess.Popen(
                ["tar", "--directory", directory, "--create", "--one-file-system", "."], stdout=subprocess.PIPE
            ) as packed:
                self.engine.run("import", "-", tag, stdin=packed.stdout)
            if packed.returncode:
                raise SandboxError(f"packing the base image failed: tar ended with {packed.returncode}")
        return tag

    def _image(
        self,
        name: str,
        arguments: Mapping[str, str],
        sources: Iterable[Path] = (),
        folder: str = "",
    ) -> str:
        """Builds sandbox/images/`name` with the machine's apt options, and `sources` in a folder, by default `name`."""
        sources, folder = list(sources), folder or name
        files = [*(ROOT / "images" / name).iterdir(), *sources]
        texts = [f"{key}={value}" for key, value in arguments.items()]
        tag = f"{REPOSITORY}/{name}:{digest_files(files, *texts)}"
        if self._exists(tag):
            return tag
        self.say(f"building the {name} image")
        with tempfile.TemporaryDirectory(dir=self.engine.root, prefix="build-") as directory:
            context = Path(directory)
            shutil.copytree(ROOT / "images" / name, context, dirs_exist_ok=True)
            (context / "host-apt.conf").write_text(apt_options())
            (context / folder).mkdir()
            for source in sources:
                shutil.copy(source, context / folder)
            self._docker_build(name, context, tag, arguments)
        return tag

    def _engine(self, base: str) -> str | None:
        """Builds sandbox/engine/Dockerfile, whose COPY lines name files by their paths in the checkout."""
        dockerfile = ROOT / "engine/Dockerfile"
        if not dockerfile.is_file():
            return None
        checkout = ROOT.parent
        files = [dockerfile]
        for source in copy_sources(dockerfile.read_text(encoding="utf-8")):
            found = [checkout / source] if (checkout / source).is_file() else (checkout / source).rglob("*")
            files += [path for path in found if path.is_file() and "__pycache__" not in path.parts]
        names = sorted(str(path.relative_to(checkout)) for path in files)
        tag = f"{REPOSITORY}/engine:{digest_files(files, base, *names)}"
        if self._exists(tag):
            return tag
        self.say("building the engine image")
        with tempfile.TemporaryDirectory(dir=self.engine.root, prefix="build-") as directory:
            context = Path(directory)
            for name in names:
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(checkout / name, context / name)
            shutil.copy(dockerfile, context / "Dockerfile")
            self._docker_build("engine", context, tag, {"BASE": base})
        return tag

    def engine_release(self, engine: str, version: str) -> str:
        """The engine image as another release of vLLM-Ascend: one small layer on it."""
        dockerfile = ROOT / "engine/release/Dockerfile"
        tag = f"{REPOSITORY}/engine-release:{digest_files([dockerfile], engine, version)}"
        if not self._exists(tag):
            self.say(f"building the engine image as {version}")
            self._docker_build("engine-release", dockerfile.parent, tag,
                               {"ENGINE": engine, "VLLM_ASCEND_VERSION": version})  # fmt: skip
        return tag

    def _docker_build(self, name: str, context: Path, tag: str, arguments: Mapping[str, str]) -> None:
        # The machine's network, because the nodes' own leads nowhere else.
        options = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        done = self.engine.run(
            "build", "--network=host", "--force-rm", "--tag", tag, *options, str(context), check=False
        )
        log = self.engine.root / f"build-{name}.log"
        log.write_text(done.stdout + done.stderr)
        if done.returncode:
            tail = (done.stdout + done.stderr).strip().splitlines()[-15:]
            raise SandboxError(f"building the {name} image failed (all of it: {log}):\n  " + "\n  ".join(tail))
