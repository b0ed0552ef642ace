#!/usr/bin/env python3
r"""Make the simulator's own vocabulary: byte-level BPE, 4096 entries, from texts of this repository.

    python sandbox/engine/train_tokenizer.py docs README.md roles module_utils plugins recipes \
        > sandbox/engine/sim/tokenizer.json

The sentences that the simulator itself writes and frequent English words count much, so that a word is about a token.
The result depends on the texts only; it is kept in the tree because the token counts of tests hang on it.
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
# Frequent English words, which the technical texts of a repository lack.
COMMON = """the of and to in is that it was for on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many some so
these would other into has more her two like him see time could no make than first been its who now people my made
over did down only way find use may water long little very after words called just where most know get through back
much before go good new write our me man too any day same right look think also around another came come work three
word must because does part even place well such here take why help put different away again off went old number great
tell men say small every found still between name should home big give air line set own under read last never us left
end along while might next sound below saw something thought both few those always show large often together asked
house world going want school important until form food keep children feet land side without boy once animal life
enough took four head above kind began almost live page got earth need far hand high year mother light country father
let night picture being study second soon story since white ever paper hard near sentence better best across during
today however sure knew try told young sun thing whole hear example heard several change answer room sea against top
turned learn point city play toward five himself usually money seen car morning given group question office government
system company program problem fact month lot book eye job business issue service friend power hour game member law
team minute idea body parent face level door woman child state family student week case area future capital history
science music river mountain summer winter doctor nature energy market language table letter color plan order tree
church reason north south east west machine computer network model data"""


def texts(paths: list[str]) -> Iterator[str]:
    """The phrases of the answers, then every text file below the paths."""
    for _ in range(OWN_WEIGHT):
        yield from text.phrases()
        yield " " + COMMON.replace("\n", " ")
        yield from COMMON.split()
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
