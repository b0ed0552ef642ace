"""Known differences: (engine, check) → why the check does not hold there. Nothing else may differ."""

from __future__ import annotations

_FORM = (
    "the simulator is vLLM 0.21, which refuses this while it reads the body's form (type Bad Request); 0.32, the real "
    "engine here, refuses it afterwards (BadRequestError)"
)
#: Engines are those that `Deployment.differences` names.
KNOWN: dict[tuple[str, str], str] = {
    ("simulator", "check_missing_prompt"): _FORM,
    ("simulator", "check_stream_options_without_stream"): _FORM,
}
