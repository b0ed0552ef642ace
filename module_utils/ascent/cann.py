"""Finds CANN on a host: toolkit, operator packages, NNAL, and the environment script of each. Nothing is guessed.

Up to 8.3 the toolkit lies in ``ascend-toolkit/<version>/<arch>-linux``, from 8.5 in ``cann-<version>``, both below
``/usr/local/Ascend``, with links beside them. Real paths are told: a link that moves does not change what was said.
"""

from __future__ import annotations

__all__ = ["BASE", "find"]

import os
import re
from typing import Any, Dict, Iterator, List, Optional

from .errors import ParseError
from .files import Tree
from .versions import parse_cann, sort_key

BASE = "/usr/local/Ascend"
_TOOLKIT_INFO = "ascend_toolkit_install.info"
#: Says which operator package is installed: its own file from 8.5 on, before that one of the folder's parts.
_KERNEL_INFOS = ("{arch}-linux/ascend_ops_install.info", "ascend_ops_install.info", "opp_kernel/version.info")


def find(tree: Tree, machine: str, base: str = BASE) -> Optional[Dict[str, Any]]:
    """The newest CANN below ``base`` for ``machine`` (``uname -m``), None where there is no toolkit.

    ``{"version", "arch", "path", "environment", "kernels", "nnal"}``: ``environment`` is the script to source, None
    where there is none; ``kernels`` is the operator package's version or None; ``nnal`` is ``{"version", "path",
    "environment"}`` or None. A toolkit for another architecture is told as it is: ``arch`` differs from the machine.
    """
    found = [one for place in _places(tree, machine, base) for one in _toolkit(tree, place)]
    if not found:
        return None
    # Of equal versions the first place counts, in the order in which the vendor's own scripts look.
    best = max(found, key=lambda one: sort_key(str(one["version"])))
    home = _home(best["path"], base)
    return {
        **best,
        "environment": _environment(tree, best["path"], base),
        "kernels": _kernels(tree, home, best["path"], machine),
        "nnal": _nnal(tree, base),
    }


def _places(tree: Tree, machine: str, base: str) -> List[str]:
    links = (f"{base}/ascend-toolkit/latest", f"{base}/cann")
    places = [path for link in links for path in (f"{link}/{machine}-linux", link)]
    # A link may still lead to an older release, or be gone.
    for pattern in (f"{base}/cann-*", f"{base}/cann-*/*-linux", f"{base}/ascend-toolkit/*/*-linux"):
        places += tree.glob(pattern)
    return places


def _toolkit(tree: Tree, place: str) -> Iterator[Dict[str, Any]]:
    text = tree.read(f"{place}/{_TOOLKIT_INFO}")
    if text is None:
        return
    try:
        info = parse_cann(text)
    except ParseError:
        return
    yield {"version": info["version"], "arch": info["arch"], "path": _real(tree, place)}


def _real(tree: Tree, path: str) -> str:
    """The path with its links followed, as the host sees it."""
    root = os.path.realpath(tree.root)
    real = os.path.realpath(tree.path(path))
    return "/" + os.path.relpath(real, root) if root != "/" else real


def _home(path: str, base: str) -> str:
    """The folder of one release: ``path`` without the part for the architecture."""
    parent = os.path.dirname(path)
    return parent if path.endswith("-linux") and parent != base else path


def _environment(tree: Tree, path: str, base: str) -> Optional[str]:
    """The nearest ``set_env.sh`` from ``path`` upwards, below ``base``."""
    while path.startswith(base + "/"):
        if tree.exists(f"{path}/set_env.sh"):
            return f"{path}/set_env.sh"
        path = os.path.dirname(path)
    return None


def _kernels(tree: Tree, home: str, path: str, machine: str) -> Optional[str]:
    for place in (home, path):
        for name in _KERNEL_INFOS:
            text = tree.read(f"{place}/{name.format(arch=machine)}")
            # The older file's Version is an internal number; the release stands in version_dir.
            match = re.search(r"^(?:version_dir|version)=(\S+)$", text or "", re.M)
            if match:
                return match.group(1)
    return None


def _nnal(tree: Tree, base: str) -> Optional[Dict[str, Any]]:
    latest = f"{base}/nnal/atb/latest"
    if not os.path.isdir(tree.path(latest)):
        return None
    real = _real(tree, latest)
    script = f"{base}/nnal/atb/set_env.sh"
    return {
        # Its folder is named after the release; the file inside has another shape with each of them.
        "version": os.path.basename(real),
        "path": real,
        "environment": script if tree.exists(script) else None,
    }
