"""Words in, words out: a tokenizer of word pieces and answers in plain English that depend on the prompt.

There is no language model here. An answer opens with a fact where the prompt asks for one that is known (a sum, a
capital), and goes on with sentences put together from the phrase lists below, in an order drawn from a hash of the
prompt.
At temperature 0 the same prompt always gets the same answer.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from zlib import crc32

VOCABULARY = 151_936
# Up to seven letters, a leading space included, or one other character: about 1.3 pieces a word, as real tokenizers.
PIECE = re.compile(r" ?[A-Za-z]{1,7}| ?\d{1,3}|\s|[^\sA-Za-z\d]")

SUBJECTS = """Artificial intelligence|A careful engineer|The research community|Every large project|A modern hospital
Good documentation|The next generation of tools|A small team|Public transport|The history of science|An honest count
Open collaboration|The energy market|A patient teacher|Clear language|The design of a bridge|Reliable software
A fair comparison|The medical field|Long experience|A simple experiment|The open ocean|Urban planning|A good library"""
VERBS = """will reshape|depends on|rarely ignores|brings together|slowly improves|has always needed|makes room for
can explain|often begins with|quietly supports|learns from|should respect|gives meaning to|grows through
teaches us about|protects|opens the way to|balances|draws strength from|builds upon"""
OBJECTS = """the way people work|patient observation|many small decisions|shared knowledge|the limits of memory
better forecasts for farmers|safe and affordable housing|new forms of art|the needs of older people|clean water
practical skills|faster diagnosis of illness|the curiosity of children|trust between neighbours|stable power networks
careful use of materials|honest debate|the rhythm of the seasons|lessons from past failures|clear goals
quiet places to think|tests that anyone can repeat|cheap and steady transport|respect for evidence"""
ENDINGS = """in ways that few expected|over the coming decades|when the facts are checked twice|beyond the laboratory
without asking for attention|across many countries|as soon as costs come down|even under heavy load
once the basics are in place|with surprising speed|from one generation to the next|where others saw only noise
and that is worth remembering|provided that someone pays attention|as the numbers clearly show|on an ordinary day
if we keep our promises|at every scale|long after the first success|while leaving room for doubt"""
LINKS = ("", "In practice, ", "At the same time, ", "For this reason, ", "Over time, ", "More importantly, ", "Still, ")
CAPITALS = {"france": "Paris", "germany": "Berlin", "japan": "Tokyo", "china": "Beijing", "italy": "Rome"}


def _phrases(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


def pieces(text: str) -> list[str]:
    """Text cut into tokens; joined together they are the text again."""
    return PIECE.findall(text)


def token_id(piece: str) -> int:
    """A stable id for a piece."""
    return crc32(piece.encode()) % VOCABULARY


def seed_of(prompt: str, temperature: float, seed: int | None) -> int:
    """Where the answer starts: the prompt alone at temperature 0, else the request's seed or chance."""
    drawn = seed if seed is not None else random.getrandbits(32)
    chance = 0 if temperature == 0 else drawn
    return int.from_bytes(hashlib.sha256(f"{chance}\n{prompt}".encode()).digest()[:8], "big")


def answer(prompt: str, seed: int) -> Iterator[tuple[str, bool]]:
    """Endless pieces of an answer, each with whether a model could end here."""
    rng = random.Random(seed)  # noqa: S311 -- repeatable text, not a secret
    lists = [_phrases(text) for text in (SUBJECTS, VERBS, OBJECTS, ENDINGS)]
    enough = rng.randint(4, 9)
    opening = _fact(prompt)
    if opening:
        yield from ((piece, False) for piece in pieces(opening))
    count = 0
    while True:
        for entries in lists:
            rng.shuffle(entries)
        for parts in zip(*lists, strict=False):
            link = LINKS[count % len(LINKS)]
            subject = parts[0] if not link else parts[0][0].lower() + parts[0][1:]
            sentence = pieces(f" {link}{subject} {' '.join(parts[1:])}.")
            count += 1
            for position, piece in enumerate(sentence, 1):
                yield piece, position == len(sentence) and count >= enough


def _fact(prompt: str) -> str:
    """A short true answer to the few questions that checks like to ask."""
    last = prompt[-400:].lower()
    if sums := re.findall(r"(\d{1,6})\s*([+*x-])\s*(\d{1,6})", last):
        left, sign, right = sums[-1]
        result = {"+": int(left) + int(right), "-": int(left) - int(right)}.get(sign, int(left) * int(right))
        return f" {result}."
    for country, capital in CAPITALS.items():
        if f"capital of {country}" in last:
            return f" {capital}."
    return ""
