"""A whole augmentation set: plan in, folder out; goes on where a call before ended, however it ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sar_gen import checkpoints
from sar_gen.augment import card, judge
from sar_gen.augment.maker import Made, StopError
from sar_gen.augment.plan import Plan
from sar_gen.augment.recipe import Recipe, check_every_guide, recipe_of
from sar_gen.augment.store import Store
from sar_gen.errors import InputError
from sar_gen.settings import Settings

Say = Callable[[str], None]
MOST_NOTICES = 8
"""Sentences of the engine that are said; the rest would drown the others."""
BASE_BYTES, WEIGHT_TIMES = 1_000_000_000, 3.0
"""What a process needs on a CPU: the libraries, and so many times the weight files (float32 of float16, and work)."""


@dataclass(frozen=True)
class State:
    """Where a set is.

    Attributes:
        total: patches asked for.
        decided: made or missing.
        fresh: decided by this call.
        made: patches that are there.
        missing: patches that no attempt brought.
        rejected: attempts that the gate rejected.
    """

    total: int
    decided: int
    fresh: int
    made: int
    missing: int
    rejected: int


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Attributes:
        folder: of the set.
        finished: whether every patch is decided and all files are written.
        stopped: the user stopped it.
        state: where the set is.
        classes: counts by class (``Store.counts``).
        seconds: that patches were made in.
        workers: in words.
        reports: verdict by class, of a finished set.
    """

    folder: Path
    finished: bool
    stopped: bool
    state: State
    classes: dict[str, dict[str, int]]
    seconds: float
    workers: str
    reports: dict[str, str]


def augment(
    plan: Plan,
    plan_text: str,
    settings: Settings,
    *,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_worker: float | None = None,
    minutes: float | None = None,
    stop: threading.Event | None = None,
    say: Say = lambda _: None,
    show: Callable[[State], None] = lambda _: None,
    show_guides: Callable[[int, int], None] = lambda _done, _total: None,
) -> Outcome:
    """Make an augmentation set, or go on with it.

    Args:
        plan: what to make.
        plan_text: as the user wrote it.
        settings: where things are.
        workers: processes; ``None``: one on a GPU, and on a CPU as many as cores and memory allow.
        ray: ``local``, or the address of a Ray cluster; ``None`` works without Ray.
        gpus_per_worker: of Ray's workers; ``None``: one where this machine or the cluster has GPUs.
        minutes: end after so long; the next call goes on.
        stop: set it to end within a denoising step; nothing is lost.
        say: is told what a user should know.
        show: is told where the set is, after each unit.
        show_guides: is told how many guides were checked.

    Raises:
        InputError: the plan, or what it names, cannot be used; found before any work.
        SarGenError: the folder cannot be written, or the engine failed; the next call goes on.
    """
    stop = threading.Event() if stop is None else stop
    recipe = recipe_of(plan, settings)
    for warning in recipe.warnings:
        say(warning)
    store = Store(plan.out, recipe, plan_text)
    with closing(store):
        if store.journal_dropped:
            say(f"{store.journal_dropped} lines of the journal were cut off or lack their file; they are made again.")
        if store.new:
            check_every_guide(recipe, settings, show_guides)
        units = store.slots.undone(store.journal.decided)
        fresh, seconds, how = 0, 0.0, "nothing was left to make"
        if len(units):
            how, source = _source(recipe, settings, units, stop, workers, ray, gpus_per_worker, say)
            began = time.monotonic()
            fresh = _write_all(store, source, stop, minutes, say, show)
            seconds = time.monotonic() - began
        reports: dict[str, str] = {}
        if store.finished:
            if fresh or not card.written(store):
                say("Writing manifest, labels, report and card.")
                store.finish()
                card.write(store, settings, judge.judge(store, settings, say))
            reports = card.verdicts(store)
        return Outcome(
            plan.out, store.finished, stop.is_set(), _state(store, fresh), store.counts(), seconds, how, reports
        )


def _write_all(
    store: Store, source: Iterator[Made], stop: threading.Event, minutes: float | None, say: Say,
    show: Callable[[State], None],
) -> int:  # fmt: skip
    """Write what comes until all is done, the time is over or the user stops; return how many slots were decided."""
    began, fresh, said = time.monotonic(), 0, set[str]()
    show(_state(store, 0))
    try:
        for made in source:
            fresh += store.add(made.decisions)
            for notice in made.notices:
                if notice not in said and len(said) < MOST_NOTICES:
                    said.add(notice)
                    say(notice)
            show(_state(store, fresh))
            if stop.is_set() or (minutes is not None and time.monotonic() - began > 60 * minutes):
                break
    except StopError:
        pass
    finally:
        source.close()  # type: ignore[attr-defined] # a generator: it ends its processes
    return fresh


def _state(store: Store, fresh: int) -> State:
    counts = np.bincount(store.state, minlength=3)
    rejected = int(store.rejected.sum(dtype=np.int64))
    return State(len(store.state), int(counts[1] + counts[2]), fresh, int(counts[1]), int(counts[2]), rejected)


def _source(
    recipe: Recipe, settings: Settings, units: Sequence[int] | Any, stop: threading.Event, workers: int | None,
    ray: str | None, gpus: float | None, say: Say,
) -> tuple[str, Iterator[Made]]:  # fmt: skip
    """Return how patches are made, in words, and what makes them."""
    if workers is not None and workers < 1:
        raise InputError(f"The number of workers is {workers}; give 1 or more.")
    if gpus is not None and ray is None:
        raise InputError("GPUs a worker are asked of Ray; give --ray too, or leave out --gpus-per-worker.")
    if ray is not None:
        from sar_gen.augment.on_ray import on_ray

        return on_ray(recipe, settings, units, stop, address=ray, workers=workers, gpus=gpus)
    from sar_gen.augment.workers import in_processes, in_this_process

    gpu = _has_gpu(settings)
    if gpu and recipe.plan.batch == 1:
        say("The plan makes one patch a request, which leaves a GPU idle; one with batch = 16 is faster there.")
    count = min(workers or (1 if gpu else default_workers(recipe, settings)), len(units))
    if count == 1:
        return "one process", in_this_process(recipe, settings, units, stop)
    return f"{count} processes", in_processes(recipe, settings, units, stop, count)


def _has_gpu(settings: Settings) -> bool:
    if settings.device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available())


def default_workers(recipe: Recipe, settings: Settings) -> int:
    """Return how many processes make patches on a CPU: as many as cores and free memory allow."""
    catalogue = checkpoints.catalogue(settings)
    names = {name for one in recipe.classes for name in (one.checkpoint, catalogue[one.checkpoint].base)}
    sizes = [checkpoints.weight_bytes(catalogue[name], settings) for name in names if name in catalogue]
    each = BASE_BYTES + WEIGHT_TIMES * sum(sizes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // recipe.plan.threads, int(psutil.virtual_memory().available // each)))
