"""Makers on this machine: in this process, or in several.

Each way yields units as they are done, in any order; what is ahead of the writer is bounded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from sar_gen.augment.maker import Made, Maker, StopError
from sar_gen.augment.recipe import Recipe
from sar_gen.errors import SarGenError
from sar_gen.settings import Settings
from sar_gen.training.batches import ahead

AHEAD = 2
"""Units a process that wait for it or for the writer."""
LOST = 3
"""Times that processes may be lost in a row, without a unit in between, before it is given up."""


def in_this_process(recipe: Recipe, settings: Settings, units: Sequence[int], stop: threading.Event) -> Iterator[Made]:
    """Yield the units as they are made here; the first attempts are made ahead while others are judged and written.

    Raises:
        StopError: ``stop`` was set.
        InputError, SarGenError: a unit cannot be made.
    """
    maker = Maker(recipe, settings, stop)
    for begun in ahead((int(unit) for unit in units), maker.first):
        yield maker.decide(begun)


def in_processes(
    recipe: Recipe, settings: Settings, units: Sequence[int], stop: threading.Event, count: int
) -> Iterator[Made]:
    """Yield the units as ``count`` processes make them; what a process that was lost had is made again.

    Raises:
        StopError: ``stop`` was set.
        InputError, SarGenError: a unit cannot be made, or processes are lost again and again.
    """
    left = dict.fromkeys(int(unit) for unit in units)
    lost = 0
    while left:
        before = len(left)
        try:
            for made in _pool(recipe, settings, list(left), stop, count):
                del left[made.unit]
                yield made
        except BrokenProcessPool as error:
            lost = 0 if len(left) < before else lost + 1
            if lost >= LOST:
                raise SarGenError(
                    "A process that makes patches was ended from outside again and again (too little memory?); use "
                    "fewer (--workers)."
                ) from error


def _pool(recipe: Recipe, settings: Settings, units: list[int], stop: threading.Event, count: int) -> Iterator[Made]:
    # Not forked from here: torch's threads do not survive a fork. A server that has imported it once, and has no
    # threads, gives workers that begin at once and share the libraries' memory.
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload(["sar_gen.augment.preload"])
    # Closing the pipe stops the workers, and so does the end of this process. (An Event would wait for ever for a
    # worker that was killed while it waited.)
    listen, speak = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(recipe, settings, listen))
    waiting: set[Future[Made]] = set()
    rest = iter(units)
    try:
        while True:
            while len(waiting) < AHEAD * count and (unit := next(rest, None)) is not None:
                waiting.add(pool.submit(_make, unit))
            if not waiting:
                return
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            if stop.is_set():
                raise StopError
            for future in done:
                yield future.result()
    finally:
        speak.close()
        pool.shutdown(wait=True, cancel_futures=True)
        listen.close()


_maker: Maker | None = None
_given: tuple[Any, ...] = ()


def _begin(recipe: Recipe, settings: Settings, listen: Connection) -> None:
    """Begin a process: it ends with its parent, and leaves Ctrl+C to it."""
    global _given
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()

    def watch() -> None:
        with suppress(EOFError, OSError):
            listen.recv()
        stop.set()
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _given = (recipe, settings, stop)


def _make(unit: int) -> Made:
    global _maker
    if _maker is None:
        _maker = Maker(*_given)
    return _maker.make(unit)
