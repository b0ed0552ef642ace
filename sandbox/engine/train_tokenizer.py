#!/usr/bin/env python3
"""Make the simulator's own vocabulary: byte-level BPE, 4096 entries, from texts of this repository.

    python sandbox/engine/train_tokenizer.py docs README.md > sandbox/engine/sim/tokenizer.json

The sentences that the simulator itself writes count much, so that its answers are about one token a word. The result
depends on the texts only; it is kept in the tree because the token counts of tests hang on it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandbox.engine.sim import text
from sandbox.engine.sim.tokenizer import WORDS, byte_letters

SIZE = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OWN_WEIGHT = 40


def texts(paths: list[str]) -> Iterator[str]:
    """The phrases of the answers, then every text file below the paths."""
    for _ in range(OWN_WEIGHT):
        yield from text.phrases()
    for path in map(Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in (".md", ".py", ".yml") and file.is_file():
                yield file.read_text(encoding="utf-8")


def train(texts: Iterator[str], size: int, special: tuple[str, ...]) -> dict[str, Any]:
    """A vocabulary of `size` entries from texts, in the layout of `tokenizer.json`."""
    letters = byte_letters()
    counts: dict[tuple[str, ...], int] = {}
    for page in texts:
        for word in WORDS.findall(page):
            key = tuple(letters[byte] for byte in word.encode())
            counts[key] = counts.get(key, 0) + 1
    words = [(list(word), count) for word, count in counts.items()]
    pairs: dict[tuple[str, str], int] = {}
    places: dict[tuple[str, str], set[int]] = {}
    for number, (word, count) in enumerate(words):
        for pair in itertools.pairwise(word):
            pairs[pair] = pairs.get(pair, 0) + count
            places.setdefault(pair, set()).add(number)
    merges: list[tuple[str, str]] = []
    while len(merges) < size - 256 - len(special) and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for number in sorted(places.pop(best)):
            word, count = words[number]
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) - count
            joined, at = [], 0
            while at < len(word):
                if tuple(word[at : at + 2]) == best:
                    joined.append(best[0] + best[1])
                    at += 2
                else:
                    joined.append(word[at])
                    at += 1
            words[number] = (joined, count)
            for pair in itertools.pairwise(joined):
                pairs[pair] = pairs.get(pair, 0) + count
                places.setdefault(pair, set()).add(number)
        pairs = {pair: count for pair, count in pairs.items() if count > 0}
    return _file([*letters, *(left + right for left, right in merges)], merges, special)


def _file(vocabulary: list[str], merges: list[tuple[str, str]], special: tuple[str, ...]) -> dict[str, Any]:
    first = len(vocabulary)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": first + n, "content": word} | marks for n, word in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {word: number for number, word in enumerate(vocabulary)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


if __name__ == "__main__":
    json.dump(train(texts(sys.argv[1:]), SIZE, SPECIAL), sys.stdout, ensure_ascii=False, indent=0)
    sys.stdout.write("\n")
