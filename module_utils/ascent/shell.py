r"""Words and lines of shell scripts: quoting that a reader can follow and a shell can't misread.

>>> word("expandable_segments:True"), word('{"a": 1}')
('expandable_segments:True', '\'{"a": 1}\'')
"""

from __future__ import annotations

__all__ = ["command_lines", "export_line", "heredoc", "word"]

import re
from typing import Any, List, Mapping, Sequence

#: Characters that no POSIX shell treats specially anywhere in a word. `~` and `=` are left out on purpose: a leading
#: tilde expands, and `a=b` as the first word of a command is an assignment; an option may hold `=`.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_@%+:,./-]+|--?[A-Za-z0-9_@%+:,./=-]+)\Z")


def word(text: str) -> str:
    """``text`` as one shell word: bare where that is safe, else in single quotes.

    Raises ValueError for a NUL character, which no program argument can carry.
    """
    if "\0" in text:
        raise ValueError("a shell word can't contain a NUL character")
    if _PLAIN.match(text):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def export_line(item: Mapping[str, Any]) -> str:
    """The `export` of one environment entry of the plan.

    ``{"name", "value"}`` sets; ``{"name", "prepend"}`` goes before the old value with a colon, and without a colon when
    there is no old value: an empty entry in a search path means the working directory.
    """
    name = item["name"]
    if "prepend" in item:
        return f'export {name}={word(item["prepend"])}"${{{name}:+:${{{name}}}}}"'
    return f"export {name}={word(item['value'])}"


def heredoc(item: Mapping[str, Any]) -> str:
    """Lines that write ``item["text"]`` to ``item["path"]``, every character as it stands.

    The text ends with a newline, since a line of the script does.
    """
    lines = str(item["text"]).rstrip("\n").split("\n")
    mark = "EOF"
    while mark in lines:
        mark += "_"
    return "\n".join([f"cat > {word(item['path'])} <<'{mark}'", *lines, mark])


def command_lines(argv: Sequence[Sequence[str]], prefix: str = "") -> List[str]:
    """One command over several lines: one entry of ``argv`` a line, a backslash at the end of all but the last.

    ``prefix`` (`exec `) opens the first line; the others are indented by four spaces.
    """
    lines = [" ".join(word(part) for part in entry) for entry in argv]
    lines[0] = prefix + lines[0]
    lines[1:] = ["    " + line for line in lines[1:]]
    return [line + " \\" for line in lines[:-1]] + [lines[-1]]
