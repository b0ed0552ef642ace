"""Answers in plain English that depend on the prompt.

There is no language model here. An answer opens with a fact where the prompt asks for one that is known (a sum, a
capital), and goes on with sentences put together from the phrase lists below, in an order drawn from a hash of the
prompt. At temperature 0 the same prompt always gets the same answer.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator

from .tokenizer import Tokenizer

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


def phrases() -> Iterator[str]:
    """Everything that answers are put together from, as it stands inside a sentence."""
    for entries in (SUBJECTS, VERBS, OBJECTS, ENDINGS):
        yield from (f" {phrase}" for phrase in _phrases(entries))
        yield from (f" {phrase[0].lower()}{phrase[1:]}" for phrase in _phrases(entries))
    yield from (f" {link}" for link in LINKS)


def seed_of(prompt: str, temperature: float, seed: int | None) -> int:
    """Where the answer starts: the prompt alone at temperature 0, else the request's seed or chance."""
    drawn = seed if seed is not None else random.getrandbits(32)
    chance = 0 if temperature == 0 else drawn
    return int.from_bytes(hashlib.sha256(f"{chance}\n{prompt}".encode()).digest()[:8], "big")


def answer(tokenizer: Tokenizer, seed: int, opening: str = "", lead: str = " ") -> Iterator[tuple[int, bool]]:
    """Endless token ids of an answer, each with whether a model could end before it.

    `opening` is said first, `lead` separates the answer from its prompt (nothing in a chat).
    """
    rng = random.Random(seed)  # noqa: S311 -- repeatable text, not a secret
    lists = [_phrases(text) for text in (SUBJECTS, VERBS, OBJECTS, ENDINGS)]
    enough = rng.randint(4, 9)
    if opening:
        yield from ((number, False) for number in tokenizer.encode(f"{lead}{opening}"))
        lead = " "
    count = 0
    while True:
        for entries in lists:
            rng.shuffle(entries)
        for parts in zip(*lists, strict=False):
            link = LINKS[count % len(LINKS)]
            subject = parts[0] if not link else parts[0][0].lower() + parts[0][1:]
            sentence = tokenizer.encode(f"{lead}{link}{subject} {' '.join(parts[1:])}.")
            yield from ((number, at == 0 and count >= enough) for at, number in enumerate(sentence))
            lead = " "
            count += 1


def garbage(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[int, bool]]:
    """Endless tokens without sense, as an engine with broken weights or a broken KV transfer writes them."""
    rng = random.Random(seed)  # noqa: S311
    letters = range(min(256, tokenizer.size))
    while True:
        yield rng.choice(letters) if rng.random() < 0.3 else rng.randrange(tokenizer.size), False


def loop(tokenizer: Tokenizer, seed: int, lead: str = " ") -> Iterator[tuple[int, bool]]:
    """One short phrase for ever, as an engine writes that has lost its place."""
    ids = tokenizer.encode(f"{lead}{_phrases(OBJECTS)[seed % len(_phrases(OBJECTS))]}.")
    while True:
        yield from ((number, False) for number in ids)


def foreign(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[int, bool]]:
    """Sound sentences in a language that nobody asked for."""
    rng = random.Random(seed)  # noqa: S311
    parts = [
        "我们的工作需要耐心",
        "清楚的目标帮助每个人",
        "城市的未来取决于水",
        "孩子们喜欢新的东西",
        "研究者很少忽略事实",
    ]
    while True:
        rng.shuffle(parts)
        yield from ((number, False) for number in tokenizer.encode("\uff0c".join(parts) + "\u3002"))


def fact(prompt: str) -> str:
    """A short true answer to the few questions that checks like to ask; empty for all others."""
    last = prompt[-400:].lower()
    if sums := re.findall(r"(\d{1,6})\s*([+*x-])\s*(\d{1,6})", last):
        left, sign, right = sums[-1]
        result = {"+": int(left) + int(right), "-": int(left) - int(right)}.get(sign, int(left) * int(right))
        return f"{result}."
    for country, capital in CAPITALS.items():
        if f"capital of {country}" in last:
            return f"{capital}."
    return ""
