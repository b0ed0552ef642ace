"""Production code does not know of the sandbox: an inventory is the only difference."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("deploy.yml", "group_vars", "library", "module_utils", "playbooks", "plugins", "recipes", "roles", "catalog")
#: Its name, the simulator's own variables and server name, its site's control path, the files of its nodes.
WORDS = re.compile(
    # apt's own word for the user that it downloads as is none of ours.
    r"(?<!APT::)sandbox|\bSIM_[A-Z]|ascent-engine-simulator|/_site/|dcmi/(state|leases)|/\.sandbox-disks",
    re.IGNORECASE,
)


def mentions(root: Path, files: list[str]) -> list[str]:
    """`file:line: text` of every line that mentions the sandbox, and every file whose name does."""
    found = [name for name in files if WORDS.search(name)]
    for name in files:
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        found += [f"{name}:{number}: {line}" for number, line in enumerate(text.splitlines(), 1) if WORDS.search(line)]
    return found


def test_no_room_of_production_code_mentions_it() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", *ROOMS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    # Scenarios are tests of a role and lie with it; the role itself knows nothing.
    files = [name for name in listed if (ROOT / name).is_file() and "/molecule/" not in name]
    assert {Path(name).parts[0] for name in files} == set(ROOMS), "every room has files"
    assert mentions(ROOT, files) == []


def test_a_mention_is_found_in_text_and_in_names(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("fine\nwhen: inventory_dir is search('Sandbox')\n")
    (tmp_path / "sandbox_only.yml").write_text("fine\n")
    (tmp_path / "b.py").write_text("env['SIM_FAIL']\nMAXIM_X = SIMPLE_X\n")
    assert mentions(tmp_path, ["a.yml", "b.py", "sandbox_only.yml"]) == [
        "sandbox_only.yml",
        "a.yml:2: when: inventory_dir is search('Sandbox')",
        "b.py:1: env['SIM_FAIL']",
    ]
