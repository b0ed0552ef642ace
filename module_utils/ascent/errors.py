"""The errors that Ascent's own code raises.

::

    AscentError
    ├── ParseError    a tool's output or a file does not have a known shape; names the line
    ├── ToolError     a tool said itself that it failed; carries its return code
    └── InputError    inventory, recipe or catalogue is wrong; carries findings
"""

from __future__ import annotations

__all__ = ["AscentError", "InputError", "ParseError", "ToolError"]

from typing import Any, Dict, List, Optional


class AscentError(Exception):
    """Base of every error that Ascent raises on purpose."""


class ParseError(AscentError):
    """Text of a known source that does not fit any known shape.

    ``line_number`` counts from 1; ``line`` is the text that did not fit. Both are None when no single line is at fault.
    """

    def __init__(self, source: str, reason: str, line_number: Optional[int] = None, line: Optional[str] = None) -> None:
        self.source = source
        self.reason = reason
        self.line_number = line_number
        self.line = line
        place = source if line_number is None else f"{source}, line {line_number}"
        super().__init__(f"{place}: {reason}" if line is None else f"{place}: {reason}: {line!r}")


class ToolError(AscentError):
    """A tool that ran and reported its own failure. ``ret`` is the code it printed or exited with, or None."""

    def __init__(self, tool: str, message: str, ret: Optional[int] = None) -> None:
        self.tool = tool
        self.ret = ret
        super().__init__(f"{tool}: {message}")


class InputError(AscentError):
    """Bad input, found before anything was touched; ``findings`` has every mistake, not just the first."""

    def __init__(self, findings: List[Dict[str, Any]]) -> None:
        self.findings = findings
        super().__init__("; ".join(item["summary"] for item in findings))
