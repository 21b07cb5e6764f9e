"""What is kept in memory beside what is in use, within a budget: the least recently used goes first."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Entry:
    thing: Any
    size: int
    drop: Callable[[], None] | None


class Kept:
    """Things by key with their sizes in bytes, the one used last at the end."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(entry.size for entry in self._entries.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(tuple(self._entries))

    def get(self, key: Hashable) -> Any:
        """Return a thing, which counts as used now; ``None`` where it is not kept."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        return entry.thing

    def take(self, key: Hashable) -> Any:
        """Return a thing and keep it no longer, without dropping it; ``None`` where it is not kept."""
        entry = self._entries.pop(key, None)
        return None if entry is None else entry.thing

    def put(self, key: Hashable, thing: Any, size: int, drop: Callable[[], None] | None = None) -> None:
        """Keep a thing; ``make_room`` first.

        Args:
            key: to find it by; what was kept under it is dropped.
            thing: not ``None``.
            size: bytes.
            drop: called once when it goes; letting go of it is enough when left out.
        """
        self.discard(key)
        self._entries[key] = _Entry(thing, size, drop)

    def make_room(self, size: int, budget: int) -> bool:
        """Let the least recently used go until ``size`` bytes more are within the budget.

        Args:
            size: bytes; 0 brings what is kept within the budget.
            budget: bytes.

        Returns:
            Whether they are; nothing goes for what is larger than the whole budget.
        """
        if size > budget:
            return False
        while self._entries and self.size + size > budget:
            self.drop_oldest()
        return True

    def drop_oldest(self) -> bool:
        """Let the least recently used go; tells whether there was one."""
        for key in self._entries:
            self.discard(key)
            return True
        return False

    def discard(self, key: Hashable) -> None:
        """Let a thing go, if it is kept."""
        entry = self._entries.pop(key, None)
        if entry is not None and entry.drop is not None:
            entry.drop()

    def clear(self) -> None:
        """Let everything go."""
        while self.drop_oldest():
            pass


def give_back() -> None:
    """Give memory that nobody uses back to the machine: the host's, pinned or not, and the GPU's."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()
    if sys.platform == "linux":
        # The C library keeps freed blocks of less than 32 MB for itself, gigabytes of them after a large model.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
