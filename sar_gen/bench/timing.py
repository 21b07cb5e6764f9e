"""Our way and the plain way in one process, alternating, so that a busy machine hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of one way over the rounds."""

    name: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bench:
    """Ways that do the same work; ``ratio`` is the median of a round's ratio to the first way, by name."""

    title: str
    rounds: int
    timings: tuple[Timing, ...]
    ratio: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)


def alternate(title: str, ways: dict[str, Callable[[], object]], rounds: int) -> Bench:
    """Time each way once a round, after one untimed round; the first way is the plain one."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if i:
                seconds[name].append(time.perf_counter() - started)
    plain = next(iter(ways))
    timings = tuple(Timing(name, statistics.median(s), min(s), max(s)) for name, s in seconds.items())
    ratio = {
        name: statistics.median(a / b for a, b in zip(s, seconds[plain], strict=True)) for name, s in seconds.items()
    }
    return Bench(title, rounds, timings, ratio)
