"""Processes that make a set and kill themselves (SIGKILL) at one point of the work."""

import os
import signal
from collections.abc import Callable
from typing import Any

import torch

from sar_gen.augment import card, judge, run, store
from sar_gen.augment import journal as journals
from sar_gen.augment.plan import Plan
from sar_gen.settings import Settings

POINTS: dict[str, Callable[[], None]] = {}


def point(function: Callable[[], None]) -> Callable[[], None]:
    POINTS[function.__name__] = function
    return function


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner: Any, name: str, number: int, instead: Callable[..., Any] = die) -> None:
    """Call ``instead`` in place of a function's call of that number; calls before it are the function's own."""
    original, calls = getattr(owner, name), []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        return instead(*args, **kwargs) if len(calls) == number else original(*args, **kwargs)

    setattr(owner, name, wrapper)


@point
def patch_without_line() -> None:
    """The second patch is on disk, its line is not."""
    on_call(journals.Journal, "add", 2)


@point
def torn_line() -> None:
    """The third line is there by half."""

    def half(journal: Any, lines: Any) -> None:
        file = os.open(journal.path, os.O_WRONLY | os.O_APPEND)
        os.write(file, store._json_line(lines[0])[:100])
        die()

    on_call(journals.Journal, "add", 2, half)


@point
def within_a_patch() -> None:
    """A patch's temporary file is there, the patch is not."""
    on_call(store.os, "replace", 2)


@point
def shard_not_written() -> None:
    """All slots of the first shard are decided."""
    on_call(store, "write_shard", 1)


@point
def shard_without_index() -> None:
    """A shard is there, the index does not know of it."""
    on_call(store, "write_index", 1)


@point
def manifest_without_labels() -> None:
    """The set is made, the manifest written."""
    on_call(store.Store, "_labels", 1)


@point
def no_report() -> None:
    on_call(judge, "judge", 1)


@point
def half_a_card() -> None:
    on_call(card, "readme", 1)


def make(plan: Plan, settings: Settings, killed_at: str | None) -> None:
    """Make a set, or die at a point of ``POINTS``."""
    torch.set_num_threads(1)
    if killed_at is not None:
        POINTS[killed_at]()
    run.augment(plan, "plan", settings, workers=1)


def make_by_hand(plan: Plan, settings: Settings) -> None:
    """Make a set and say so; to be killed from outside."""
    run.augment(plan, "plan", settings, workers=1, show=lambda state: print(state.decided, flush=True))
