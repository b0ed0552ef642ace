"""How far an engine's start is, read from its log lines.

The lines are vLLM's and those of its Ascend plugin, as of releases 0.11 to 0.23. Workers and engine cores put their
name before a line, ``(EngineCore_DP3 pid=311)`` or ``(Worker_TP1 pid=312)``; the process is as far as the slowest.
"""

from __future__ import annotations

__all__ = ["PHASES", "Progress", "parse", "source"]

import re
from typing import Any, Dict, Optional, Tuple

#: In order. ``joining``: waiting for data-parallel ranks; ``cache``: profiling and allocating the KV cache.
PHASES = ("started", "joining", "weights", "cache", "graphs", "api", "ready")

_SOURCE = re.compile(
    r"\((?P<source>(?:EngineCore|EngineCore_\w+|Worker|Worker_\w+|VllmWorker\S*))(?: rank=\d+)?(?: pid=\d+)?\)"
)
_WAITING = re.compile(r"Waiting for (\d+) local, (\d+) remote core engine", re.IGNORECASE)
_PHASE_LINES: Tuple[Tuple[str, re.Pattern[str]], ...] = tuple(
    (phase, re.compile(pattern, re.IGNORECASE))
    for phase, pattern in (
        ("ready", r"Application startup complete|Uvicorn running on"),
        ("api", r"Starting vLLM API server|Started server process|Waiting for application startup"),
        ("graphs", r"Captur\w+ [\w ]*graphs?\b|Graph captur\w+ (?:finished|took)"),
        (
            "cache",
            r"Loading (?:model )?weights took|Model loading took|Available KV cache memory|KV cache size|init engine",
        ),
        ("weights", r"Loading \w+ checkpoint shards|Starting to load model|Loading (?:model )?weights"),
        ("joining", r"data parallel engine|DP Coordinator|headless mode"),
    )
)
_DONE = re.compile(r"Graph captur\w+ (?:finished|took)", re.IGNORECASE)
_PERCENT = re.compile(r"(\d{1,3})\s?%")


def source(line: str) -> Optional[str]:
    """The worker or engine core that said a line, None for the process itself.

    >>> source("(EngineCore_DP3 pid=311) INFO all is well")
    'EngineCore_DP3'
    """
    found = _SOURCE.search(line)
    return found.group("source") if found else None


def parse(line: str) -> Optional[Dict[str, Any]]:
    """What a line says of the start: ``{"source", "phase", "percent", "waiting"}``, or None.

    ``source`` is the worker or engine core that said it (None for the process itself), ``percent`` belongs to the
    phase, ``waiting`` is (local, remote) ranks that have not reported yet. A progress bar that redraws itself counts as
    its last state.
    """
    text = line.rstrip().rpartition("\r")[2]
    found: Dict[str, Any] = {
        "source": source(text),
        "phase": None,
        "percent": None,
        "waiting": None,
    }
    waiting = _WAITING.search(text)
    if waiting:
        found.update(source=None, phase="joining", waiting=(int(waiting.group(1)), int(waiting.group(2))))
        return found
    for phase, pattern in _PHASE_LINES:
        if pattern.search(text):
            percent = _PERCENT.search(text)
            found["phase"] = phase
            if phase in ("weights", "graphs") and percent:
                found["percent"] = min(100, int(percent.group(1)))
            if _DONE.search(text):
                found["percent"] = 100
            return found
    return None


class Progress:
    """How far one process is, from its lines so far. ``ranks`` is the data-parallel size of its group, 0 if unknown."""

    def __init__(self, ranks: int = 0) -> None:
        self.ranks = ranks
        self.remote: Optional[int] = None
        self._own = 0
        self._sources: Dict[Optional[str], Tuple[int, int]] = {}

    def feed(self, line: str) -> bool:
        """Take in a line; True when it told of progress, which a repeated line does not."""
        found = parse(line)
        if found is None:
            return False
        before = (self.position, self.remote, dict(self._sources))
        if found["waiting"] is not None:
            self.remote = found["waiting"][1]
        index = PHASES.index(found["phase"])
        if found["phase"] in ("joining", "api", "ready"):
            self._own = max(self._own, index)
        else:
            key = found["source"]
            self._sources[key] = max(self._sources.get(key, (0, 0)), (index, found["percent"] or 0))
        return (self.position, self.remote, self._sources) != before

    @property
    def position(self) -> Tuple[int, int]:
        """(index into `PHASES`, percent of it); the slowest worker's, unless the process itself is further.

        Progress bars of some releases name no worker. They tell the percent of the phase that the workers are in, and
        hold nobody back who has gone on.
        """
        named = [position for source, position in self._sources.items() if source is not None]
        unnamed = self._sources.get(None, (0, 0))
        slowest = min(named) if named else unnamed
        if unnamed[0] == slowest[0]:
            slowest = max(slowest, unnamed)
        return max(slowest, (self._own, 0))

    @property
    def phase(self) -> str:
        """The present phase."""
        return PHASES[self.position[0]]

    def text(self) -> str:
        """A few words for a progress line.

        >>> progress = Progress(16)
        >>> progress.feed("Waiting for 8 local, 8 remote core engine proc(s) to start.")
        True
        >>> progress.text()
        'joining, 8 of 16 ranks'
        """
        index, percent = self.position
        words = PHASES[index]
        if words in ("weights", "graphs"):
            words += f" {percent} %"
        if self.remote and self.ranks and index < PHASES.index("api"):
            words += f", {self.ranks - self.remote} of {self.ranks} ranks"
        return words
