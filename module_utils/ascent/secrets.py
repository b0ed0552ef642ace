"""Takes secrets out of text that leaves a host: logs, scripts, command lines."""

from __future__ import annotations

__all__ = ["HIDDEN", "mask"]

import re
from typing import Iterable

#: What stands in place of a secret.
HIDDEN = "***"

# Words that end a name of a secret. Figures of an engine count tokens, and a tokenizer is none of them.
_NAME = r"[\w-]*(?:pass(?:word|wd|phrase)?(?![a-z])|token(?!s|iz)|secret|api[_-]?key|credential|private[_-]?key)[\w-]*"
_VALUE = r"""(?:\[[^\]\n]*\]|"[^"\n]*"|'[^'\n]*'|[^\s,;}\])&"']+)"""
_PATTERNS = (
    # NAME=value, "name": "value", name: value
    (re.compile(rf"""(?i)((?<![\w-]){_NAME}["']?\s*[=:]\s*){_VALUE}"""), rf"\1{HIDDEN}"),
    # --api-key value
    (re.compile(rf"(?i)((?<!\S)--{_NAME}\s+(?!-)){_VALUE}"), rf"\1{HIDDEN}"),
    # Authorization: Bearer value
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1{HIDDEN}"),
    # https://user:value@host
    (re.compile(r"(://[^\s/:@]+:)[^\s/@]+(?=@)"), rf"\1{HIDDEN}"),
    # Tokens that their form gives away
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{20,})\b"), HIDDEN),
    (
        re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        rf"-----BEGIN \1-----\n{HIDDEN}\n-----END \1-----",
    ),
)


def mask(text: str, known: Iterable[str] = ()) -> str:
    """The text without what looks like a secret, and without the ``known`` ones wherever they stand.

    >>> mask("--api-key sk1 --max-num-batched-tokens 8192 HF_TOKEN=abc")
    '--api-key *** --max-num-batched-tokens 8192 HF_TOKEN=***'
    """
    for secret in sorted({one for one in known if len(one) >= 4}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
