"""How far one long copy is, in words: share, size, rate, time left."""

from __future__ import annotations

__all__ = ["Progress"]

import time
from collections.abc import Callable

from ascent.weights_job import amount
from ascent_controller import console

#: Rates are of so many seconds past: shorter ones jump, longer ones hide that a line has become slow.
_WINDOW = 20.0


class Progress:
    """Tells through ``say`` at most every so many seconds how far ``what``, of ``total`` bytes, is.

    Nothing is told of what ends within the first of these spans.
    """

    def __init__(
        self,
        what: str,
        total: int,
        say: Callable[[str], None],
        *,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self._what, self._total, self._say, self._every, self._clock = what, total, say, every, clock
        self._told = clock()
        self._past: list[tuple[float, int]] = [(self._told, 0)]

    def add(self, size: int) -> None:
        """So many bytes more are done."""
        self.done += size
        now = self._clock()
        if now - self._told < self._every:
            return
        self._told = now
        self._past = [*(one for one in self._past if one[0] >= now - _WINDOW), (now, self.done)]
        self._say(f"{self._what}: {self.text()}")

    def text(self) -> str:
        """Share and size, then rate and time left as far as they are known."""
        share = int(100 * self.done / self._total) if self._total else 100
        text = f"{share} % of {amount(self._total)}"
        (first, before), (last, after) = self._past[0], self._past[-1]
        rate = (after - before) / (last - first) if last > first else 0.0
        if rate > 0:
            text += f", {amount(rate)}/s, {console.seconds(max(0.0, self._total - self.done) / rate)} left"
        return text
