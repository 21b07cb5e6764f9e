"""Our way and the plain way in one process, alternating, so that a busy machine hits both."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of one way over the rounds, and the most memory in one of them, bytes, where it was measured."""

    name: str
    median: float
    low: float
    high: float
    memory: int | None = None


@dataclass(frozen=True)
class Bench:
    """Ways that do the same work; ``ratio`` is the median of a round's ratio to the first way, by name.

    ``facts`` are what else was found, as JSON data.
    """

    title: str
    rounds: int
    timings: tuple[Timing, ...]
    ratio: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)


def alternate(title: str, ways: dict[str, Callable[[], object]], rounds: int) -> Bench:
    """Time each way once a round, after one untimed round; the first way is the plain one.

    Args:
        title: of the table.
        ways: by name; one that returns a float has measured its seconds itself, one that returns seconds and bytes
            its memory too.
        rounds: that are timed.
    """
    memory: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            own = way()
            took = time.perf_counter() - started
            if not i:
                continue
            if isinstance(own, tuple):
                own, grown = own
                memory[name] = max(grown, memory.get(name, 0))
            seconds[name].append(own if isinstance(own, float) else took)
    plain = next(iter(ways))
    timings = tuple(
        Timing(name, statistics.median(s), min(s), max(s), memory.get(name)) for name, s in seconds.items()
    )
    ratio = {
        name: statistics.median(a / b for a, b in zip(s, seconds[plain], strict=True)) for name, s in seconds.items()
    }
    return Bench(title, rounds, timings, ratio)


@contextmanager
def growth(device: str, every: float = 0.005) -> Iterator[Callable[[], int]]:
    """Give a function that tells, afterwards, by how many bytes memory grew at most: the GPU's, or the process's."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    import psutil

    process, over = psutil.Process(), threading.Event()
    before = most = int(process.memory_info().rss)

    def look() -> None:
        nonlocal most
        while not over.wait(every):
            most = max(most, int(process.memory_info().rss))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: max(0, most - before)
        most = max(most, int(process.memory_info().rss))
    finally:
        over.set()
        watcher.join()
