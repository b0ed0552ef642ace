"""Takes secrets out of text that leaves a host: logs, scripts, command lines."""

from __future__ import annotations

__all__ = ["HIDDEN", "mask"]

import re
from typing import Iterable, Match

#: What stands in place of a secret.
HIDDEN = "***"

# Words that make a name that of a secret, whatever else is in it; a token may be one of a text, see `_of_text`.
_SURE = (
    r"password|passwd|passphrase|sshpass|(?<![a-z])pass(?![a-z])|(?<=_)pwd(?![a-z])|secret|credential"
    r"|(?:api|access|account|auth|deploy|encryption|private|session|signing|ssh)[_-]?key|(?<![a-z])auth(?![\w-])"
)
# No name is longer; without an end, a log line made of such words would take minutes.
_NAME = rf"(?P<name>[\w-]{{0,80}}(?:{_SURE}|token)[\w-]{{0,80}})"
_VALUE = r"""(?P<value>\[[^\]\n]*\]|\\"[^"\\\n]*\\"|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|(?!\{)[^\s,;}\])&"']+)"""
_SURELY = re.compile(f"(?i){_SURE}")

# Engines and tokenizers have tokens of their own: those that mark a place in a text, and figures that count them.
_MARKS = (
    "accepted|added|audio|bonus|bos|cached|cls|decode|draft|eod|eoi|eos|eot|extra|first|generated|generation|image|input"
    "|inter|language|last|mask|max|min|new|next|num|output|pad|per|placeholder|prefill|prompt|sampled|sep|special|start"
    "|stop|think|tool|unk|video|vision"
)
_OF_TEXT = re.compile(
    rf"(?i)(?:^|[_-])(?:{_MARKS})[_-]?token|tokeni[sz]|token[_-]?(?:budget|count|embed|ids?|index|indices|latency|len|level"
    r"|limit|num|position|prob|rate|size|strs?|throughput|type|usage)"
)
_TOKENS, _SECRET_TOKENS = (
    re.compile(r"(?i)tokens"),
    re.compile(r"(?i)(?:access|api|auth|bearer|hf|refresh|secret)[_-]?tokens"),
)
_MARK_BEFORE = re.compile(rf"(?i)(?:^|[^\w-])(?:{_MARKS})\s+$")
# 151645, 12.5ms, <|im_end|>, [PAD], [1, 2]
_TEXT_VALUE = re.compile(r"-?\d{1,7}(?:\.\d+)?(?:ms|s|%)?|<.*>|\[[A-Z]+\]|\[[\d\s,.-]*\]")

# What says whether there is a secret, and is none.
_SAID = frozenset(("", "true", "false", "none", "null", "yes", "no", "on", "off", HIDDEN))
_PLACE = re.compile(r"(?i)[_-](?:file|path|dir|directory)$")


def _of_text(match: Match[str]) -> bool:
    """Whether a name with nothing but ``token`` in it, or its value, is about a text."""
    name, value = match.group("name"), match.group("value").strip("\\\"'")
    if _OF_TEXT.search(name) or (_TOKENS.search(name) and not _SECRET_TOKENS.search(name)):
        return True
    before = match.string[max(0, match.start("name") - 16) : match.start("name")]
    return bool(_TEXT_VALUE.fullmatch(value) or _MARK_BEFORE.search(before))


def _hide(match: Match[str]) -> str:
    """What is found by `_NAME` and `_VALUE`, without the value where that is a secret."""
    name, whole = match.group("name"), match.group()
    if match.group("value").strip("\\\"'").lower() in _SAID or _PLACE.search(name):
        return whole
    if not _SURELY.search(name) and _of_text(match):
        return whole
    return whole[: match.start("value") - match.start()] + HIDDEN + whole[match.end("value") - match.start() :]


_BY_NAME = (
    # NAME=value, "name": "value", name: value, also with quotes that are quoted themselves
    re.compile(rf"""(?i)(?<![\w-]){_NAME}\\?["']?\s*[=:]\s*(?:(?:basic|bearer|digest)\s+)?{_VALUE}"""),
    # --api-key value
    re.compile(rf"(?i)(?<!\S)--{_NAME}\s+(?!-){_VALUE}"),
    # ["--api-key", "value"]
    re.compile(rf"""(?i)["']--{_NAME}["']\s*,\s*{_VALUE}"""),
)
_BY_FORM = (
    # Authorization: Bearer value, of any length
    (
        re.compile(
            r"""(?i)(\bauthorization\\?["']?\s*[=:]\s*\\?["']?(?:(?:apikey|basic|bearer|digest|negotiate|token)\s+)?)"""
            r"""(?!(?:apikey|basic|bearer|digest|negotiate|token)\b)[^\s,;}\]"'\\]+"""
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)(\bbearer\s+)(?!(?:tokens?|auth\w*|scheme|format|header)\b)[A-Za-z0-9._~+/=-]+"), rf"\1{HIDDEN}"),
    # Words follow "basic" as well; what is encoded has capitals or digits.
    (re.compile(r"(?i)(\bbasic\s+)(?=\S*(?-i:[0-9=A-Z]))[A-Za-z0-9+/=_-]{6,}"), rf"\1{HIDDEN}"),
    # https://user:value@host, where the value may have any of /:@ in it; http://host:8000/a@b has none
    (re.compile(r"""(://[^\s/:@"'<>]*:)(?!\d{1,5}(?:[/?#]|$))(?:(?!://)[^\s"'<>])+(?=@[\w\[])"""), rf"\1{HIDDEN}"),
    # Tokens that their form gives away
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"), HIDDEN),
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
    for pattern, instead in _BY_FORM:
        text = pattern.sub(instead, text)
    for pattern in _BY_NAME:
        text = pattern.sub(_hide, text)
    return text
