"""The KV cache of one rank: blocks, prefix hashing and least-recently-used eviction.

A block holds the KV of `block_size` tokens. A full block is known by a hash over its tokens and all before it, so a
request whose prompt starts like an earlier one takes that one's blocks. A block that nobody uses stays in the cache
until its room is needed: the one that was let go first is taken first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def hash_blocks(tokens: Sequence[int], size: int, parent: bytes, salt: str = "") -> list[bytes]:
    """Hashes of the full blocks of `tokens`, which follow the block `parent` (empty at the start of a request)."""
    found = []
    for start in range(0, len(tokens) - size + 1, size):
        data = array("q", tokens[start : start + size]).tobytes()
        if not parent:
            data += salt.encode()
        parent = blake2b(data, digest_size=16, key=parent).digest()
        found.append(parent)
    return found


class BlockPool:
    """`total` blocks of `size` tokens. Blocks are numbers; a block in use has a count of users."""

    def __init__(self, total: int, size: int, caching: bool) -> None:
        self.total, self.size, self.caching = total, size, caching
        self.fresh = 0  # blocks from here on were never used
        self.users: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # used before, by nobody now; first to go first
        self.by_hash: dict[bytes, int] = {}
        self.hash_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return self.total - self.fresh + len(self.idle)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return 1 - self.free / self.total if self.total else 0.0

    def lookup(self, hashes: Sequence[bytes]) -> list[int]:
        """The cached blocks of the longest known prefix, not yet taken."""
        found = []
        for value in hashes if self.caching else ():
            block = self.by_hash.get(value)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """Use cached blocks once more."""
        for block in blocks:
            self.idle.pop(block, None)
            self.users[block] = self.users.get(block, 0) + 1

    def idle_among(self, blocks: Sequence[int]) -> int:
        """How many of these blocks count as free now, though sharing them would take them."""
        return sum(block in self.idle for block in blocks)

    def take(self, count: int) -> list[int] | None:
        """New blocks, at the price of the cached ones that were let go first; None when there are too few."""
        if count > self.free:
            return None
        taken = []
        for _ in range(count):
            if self.fresh < self.total:
                block, self.fresh = self.fresh, self.fresh + 1
            else:
                block, _nothing = self.idle.popitem(last=False)
                self._forget(block)
            self.users[block] = 1
            taken.append(block)
        return taken

    def remember(self, block: int, value: bytes) -> None:
        """Let later requests find a block that has become full."""
        if self.caching and value not in self.by_hash and block not in self.hash_of:
            self.by_hash[value], self.hash_of[block] = block, value

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a request's blocks. Its last ones are evicted first: a prefix is worth more than its end."""
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block]:
                continue
            del self.users[block]
            self.idle[block] = None
            if block not in self.hash_of:
                self.idle.move_to_end(block, last=False)

    def reset(self) -> bool:
        """Forget all cached prefixes; only possible while no block is in use."""
        if self.users:
            return False
        self.by_hash.clear()
        self.hash_of.clear()
        return True

    def _forget(self, block: int) -> None:
        value = self.hash_of.pop(block, None)
        if value is not None:
            del self.by_hash[value]
