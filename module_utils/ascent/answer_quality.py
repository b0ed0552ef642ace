"""Whether generated text is language at all.

A wrong quantisation flag, a broken kernel or mixed-up KV blocks leave an endpoint that answers HTTP 200 with noise
(fault G01). The signs are coarse on purpose: a good answer must never be called garbage.
"""

from __future__ import annotations

__all__ = ["judge", "same_writing"]

import collections
import re
import unicodedata
from typing import Any, Dict, Iterable, List, Optional, Sequence

# Fewer words or characters than these prove nothing.
_MIN_WORDS = 8
_MIN_TRIPLES = 16
_MIN_CHARACTERS = 16
_SCRIPT_SHARE = 0.05
_TORN = 2
_DISTINCT_TRIPLES = 0.25
# A text is of one writing system when this share of its letters is, and has left it when less than this share is.
_OWN_SHARE, _LEFT_SHARE = 0.9, 0.2
# Scripts without spaces between words: each character counts as one.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]"
)


def _script(character: str) -> str:
    """The writing system of a letter; Chinese and Japanese count as one, since they share characters."""
    name = unicodedata.name(character, "UNKNOWN").split()[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA", "FULLWIDTH", "IDEOGRAPHIC") else name


def _scripts(characters: Iterable[str]) -> Dict[str, float]:
    """The share of each writing system in the letters of a text."""
    letters = [character for character in characters if character.isalpha()]
    counted = collections.Counter(_script(letter) for letter in letters)
    return {script: number / len(letters) for script, number in counted.items()}


def same_writing(text: str, other: str) -> bool:
    """Whether all letters of a text are of writing systems that another text has as well; figures are of any.

    >>> same_writing("Paris 12", "What is the capital of France?"), same_writing("\u5df4\u9ece", "Say it in Chinese.")
    (True, False)
    """
    return set(_scripts(text)) <= set(_scripts(other))


def _language(visible: Sequence[str], asked: str) -> Optional[str]:
    """Why an answer isn't in the writing of its question; None where it is, or where nothing can be told."""
    question = [character for character in asked if character.isalpha()]
    letters = [character for character in visible if character.isalpha()]
    if min(len(question), len(letters)) < _MIN_CHARACTERS:
        return None
    wanted, share = max(_scripts(question).items(), key=lambda item: item[1])
    found = _scripts(letters)
    if share < _OWN_SHARE or found.get(wanted, 0.0) >= _LEFT_SHARE:
        return None
    other = max(found.items(), key=lambda item: item[1])[0]
    return f"asked in {wanted.lower()} letters, answered in {other.lower()}"


def judge(text: str, asked: str = "") -> Dict[str, Any]:
    """``{"garbage": bool, "reasons": [text]}`` for one answer; ``asked`` is its question, where the language counts.

    >>> judge("The sky is blue because air scatters blue light more than red.")
    {'garbage': False, 'reasons': []}
    >>> judge("!" * 40)["garbage"]
    True
    """
    reasons: List[str] = []
    visible = [character for character in text if not character.isspace()]
    if not visible:
        return {"garbage": True, "reasons": ["the answer is empty"]}

    broken = sum(
        1 for character in visible if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Co", "Cn")
    )
    if broken / len(visible) > 0.05:
        reasons.append(f"{broken} of {len(visible)} characters are undecodable or control characters")
    # The last character may be cut where the tokens end; one within the text, a model may have learnt from bad pages.
    elif (torn := text.rstrip().rstrip("\ufffd").count("\ufffd")) >= _TORN:
        reasons.append(f"{torn} characters within the text are undecodable")

    character, count = collections.Counter(visible).most_common(1)[0]
    if len(visible) >= _MIN_CHARACTERS and count / len(visible) > 0.5:
        reasons.append(f"{character!r} is {count} of {len(visible)} characters")

    words = _WORD.findall(text.lower())
    if len(words) >= _MIN_WORDS:
        word, count = collections.Counter(words).most_common(1)[0]
        if count / len(words) > 0.5:
            reasons.append(f"{word!r} is {count} of {len(words)} words")
    triples = list(zip(words, words[1:], words[2:]))
    if len(triples) >= _MIN_TRIPLES and len(set(triples)) / len(triples) < _DISTINCT_TRIPLES:
        reasons.append(f"only {len(set(triples))} of {len(triples)} word triples are distinct")

    letters = [letter for letter in visible if letter.isalpha()]
    mixed = sorted(script for script, share in _scripts(letters).items() if share > _SCRIPT_SHARE)
    if len(letters) >= _MIN_CHARACTERS and len(mixed) > 2:
        reasons.append(f"{len(mixed)} scripts are mixed: {', '.join(script.lower() for script in mixed)}")
    elif language := _language(visible, asked):
        reasons.append(language)
    return {"garbage": bool(reasons), "reasons": reasons}
