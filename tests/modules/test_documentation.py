"""Every module says what it takes: its documentation parses, and has the options of its argument_spec."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import fragment_loader
from ansible.utils.plugin_docs import get_docstring

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "library").glob("*.py"))
_TYPES = {"str", "int", "float", "bool", "dict", "list", "path", "raw"}


class AskedError(Exception):
    """What a module asked AnsibleModule for."""


def _specification(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    """The arguments that a module gives to AnsibleModule; None for one that an action plugin does the work of."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "main"):
        return None

    def asked(**options: Any) -> None:
        raise AskedError(options)

    monkeypatch.setattr(module, "AnsibleModule", asked)
    with pytest.raises(AskedError) as caught:
        module.main()
    return dict(caught.value.args[0])


def _documented(path: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    fragment_loader.add_directory(str(ROOT / "plugins" / "doc_fragments"))
    document, examples, returned, _ = get_docstring(str(path), fragment_loader, verbose=True)
    assert document, f"{path.name} has no DOCUMENTATION"
    assert isinstance(returned, dict), f"{path.name} has no RETURN"
    return document, examples, returned


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_documentation_is_whole(path: Path) -> None:
    document, examples, returned = _documented(path)
    assert document["module"] == path.stem
    assert document["short_description"]
    assert document["description"]
    assert set(document["attributes"]) >= {"check_mode", "diff_mode", "idempotent"}
    plays = DataLoader().load(examples)
    assert any(path.stem in task for task in plays), f"the example of {path.stem} does not show it"
    for name, entry in {**document.get("options", {}), **returned}.items():
        assert entry["description"], name
        assert entry.get("type", "str") in _TYPES, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_options_are_those_of_the_module(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = _documented(path)[0].get("options", {})
    asked = _specification(path, monkeypatch) or {"argument_spec": {}, "supports_check_mode": True}
    spec = asked["argument_spec"]
    assert set(spec) <= set(documented)
    rest = set(documented) - set(spec)
    action = ROOT / "plugins" / "action" / path.name
    unknown = {name for name in rest if not action.exists() or f'"{name}"' not in action.read_text()}
    assert unknown == set(), "neither the module nor its action plugin knows them"
    for name, entry in spec.items():
        told = documented[name]
        assert told.get("type", "str") == entry.get("type", "str"), name
        assert told.get("default") == entry.get("default"), name
        assert bool(told.get("required")) == bool(entry.get("required")), name
        assert told.get("choices") == (list(entry["choices"]) if entry.get("choices") else None), name
        assert told.get("elements") == entry.get("elements"), name
    support = _documented(path)[0]["attributes"]["check_mode"]["support"]
    assert (support != "none") == bool(asked.get("supports_check_mode"))
