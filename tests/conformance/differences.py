"""Known differences: (engine, check) → why the check does not hold there. Nothing else may differ."""

from __future__ import annotations

#: Engines are those that `Deployment.differences` names.
KNOWN: dict[tuple[str, str], str] = {}
