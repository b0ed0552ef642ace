"""A byte-level BPE tokenizer in plain Python, read from a `tokenizer.json`.

A model that brings a file of this kind is tokenized with it; every other model with the small vocabulary beside this
module, which `train_tokenizer.py` made. Text is cut into words by a pattern, a word's bytes are merged by rank.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BUILT_IN = Path(__file__).with_name("tokenizer.json")
# What the usual patterns say with \p{L} and \p{N}: the first is that of the Qwen family, the second GPT-2's.
LETTER, OTHER = r"[^\W\d_]", r"(?:[^\s\w]|_)"
WORDS = re.compile(
    rf"'(?:[sdmtSDMT]|[rR][eE]|[vV][eE]|[lL]{{2}})|(?:[^\r\n\w]|_)?{LETTER}+|\d| ?{OTHER}+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS_GPT2 = re.compile(rf"'(?:[sdmt]|re|ve|ll)| ?{LETTER}+| ?\d+| ?{OTHER}+|\s+(?!\S)|\s+")
MOST_CACHED = 50_000  # words


@functools.cache
def byte_letters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, others = [""] * 256, 0
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + others)
            others += 1
    return letters


class Tokenizer:
    """Text to token ids and back. `eos` ends an answer; `longest` is the most characters that one token stands for."""

    def __init__(self, data: dict[str, Any]) -> None:
        model = data.get("model") or {}
        if model.get("type") != "BPE" or not _byte_level(data):
            raise ValueError("not a byte-level BPE tokenizer")
        letters = byte_letters()
        from_letter = {letter: byte for byte, letter in enumerate(letters)}
        self.special = {entry["content"]: int(entry["id"]) for entry in data.get("added_tokens") or []}
        self.ids: dict[str, int] = dict(model["vocab"])
        pairs = (tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"])
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.pieces: dict[int, bytes] = {
            number: bytes(from_letter[letter] for letter in word)
            for word, number in self.ids.items()
            if word not in self.special
        }
        self.pieces |= {number: word.encode() for word, number in self.special.items()}
        self.names = {number: word for word, number in (self.ids | self.special).items()}
        self.size = max(self.pieces) + 1
        self.eos = next((self.special[n] for n in ("<|im_end|>", "<|endoftext|>", "</s>") if n in self.special), None)
        self.longest = max(map(len, self.pieces.values()))
        self.pattern = WORDS if '"Regex"' in json.dumps(data.get("pre_tokenizer")) else WORDS_GPT2
        self.split = re.compile("(" + "|".join(map(re.escape, self.special)) + ")") if self.special else None
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; marks of the vocabulary inside it count as one token each."""
        if self.split is None:
            return [number for word in self.pattern.findall(text) for number in self._word(word)]
        found: list[int] = []
        for part in self.split.split(text):
            if part in self.special:
                found.append(self.special[part])
            else:
                for word in self.pattern.findall(part):
                    found.extend(self._word(word))
        return found

    def _word(self, word: str) -> list[int]:
        known = self.cache.get(word)
        if known is None:
            if len(self.cache) >= MOST_CACHED:
                self.cache.clear()
            known = self.cache[word] = [self.ids[part] for part in self._merge(word)]
        return known

    def _merge(self, word: str) -> list[str]:
        letters = byte_letters()
        parts = [letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in itertools.pairwise(parts)]
            best = min(ranks)
            if best == len(self.ranks):
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """Text of token ids; bytes that are no text become replacement characters. ValueError for unknown ids."""
        marks = set() if special else set(self.special.values())
        try:
            return b"".join(self.pieces[number] for number in ids if number not in marks).decode(errors="replace")
        except KeyError as error:
            raise ValueError(f"Token id {error.args[0]} is out of vocabulary") from None

    def words(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary's own spelling of each token."""
        return [self.names[number] for number in ids]


def _byte_level(data: dict[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([data.get("pre_tokenizer"), data.get("decoder")])


@functools.cache
def load(directory: Path | None = None) -> Tokenizer:
    """The tokenizer of a model's folder, or the built-in one where there is none that can be read."""
    for path in [directory / "tokenizer.json"] if directory else []:
        try:
            return Tokenizer(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            break
    return Tokenizer(json.loads(BUILT_IN.read_text(encoding="utf-8")))


class Decoder:
    """Text of a growing list of tokens: characters whose last bytes are still to come wait."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.held = tokenizer, b""

    def feed(self, number: int) -> str:
        """The text that one more token completes; marks of the vocabulary have none."""
        if number in self.tokenizer.special.values():
            return ""
        self.held += self.tokenizer.pieces[number]
        try:
            text, self.held = self.held.decode(), b""
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                text, self.held = self.held.decode(errors="replace"), b""
            else:
                text, self.held = self.held[: error.start].decode(), self.held[error.start :]
        return text
