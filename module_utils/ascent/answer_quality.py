"""Whether generated text is language at all.

A wrong quantisation flag, a broken kernel or mixed-up KV blocks leave an endpoint that answers HTTP 200 with noise
(fault G01). The signs are coarse on purpose: a good answer must never be called garbage.
"""

from __future__ import annotations

__all__ = ["judge"]

import collections
import re
import unicodedata
from typing import Any, Dict, List

# Fewer words or characters than these prove nothing.
_MIN_WORDS = 8
_MIN_TRIPLES = 16
_MIN_CHARACTERS = 16
_SCRIPT_SHARE = 0.05
_DISTINCT_TRIPLES = 0.25


def _script(character: str) -> str:
    """The writing system of a letter; Chinese and Japanese count as one, since they share characters."""
    name = unicodedata.name(character, "UNKNOWN").split()[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA", "FULLWIDTH", "IDEOGRAPHIC") else name


def judge(text: str) -> Dict[str, Any]:
    """``{"garbage": bool, "reasons": [text]}`` for one answer.

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

    character, count = collections.Counter(visible).most_common(1)[0]
    if len(visible) >= _MIN_CHARACTERS and count / len(visible) > 0.5:
        reasons.append(f"{character!r} is {count} of {len(visible)} characters")

    words = re.findall(r"\w+|[^\w\s]", text.lower())
    if len(words) >= _MIN_WORDS:
        word, count = collections.Counter(words).most_common(1)[0]
        if count / len(words) > 0.5:
            reasons.append(f"{word!r} is {count} of {len(words)} words")
    triples = list(zip(words, words[1:], words[2:]))
    if len(triples) >= _MIN_TRIPLES and len(set(triples)) / len(triples) < _DISTINCT_TRIPLES:
        reasons.append(f"only {len(set(triples))} of {len(triples)} word triples are distinct")

    letters = [letter for letter in visible if letter.isalpha()]
    scripts = collections.Counter(_script(letter) for letter in letters)
    mixed = sorted(script for script, number in scripts.items() if number / len(letters) > _SCRIPT_SHARE)
    if len(letters) >= _MIN_CHARACTERS and len(mixed) > 2:
        reasons.append(f"{len(mixed)} scripts are mixed: {', '.join(script.lower() for script in mixed)}")
    return {"garbage": bool(reasons), "reasons": reasons}
