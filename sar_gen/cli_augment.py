"""The command that makes augmentation sets: ``python -m sar_gen augment PLAN.toml``."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sar_gen.cli_common import Json, Progress, print_json, settings_with, stopped_by_signals, table

if TYPE_CHECKING:
    from sar_gen.augment.run import Outcome, State


def augment(
    plan: Annotated[Path, typer.Argument(help="TOML file; see sar_gen/augment/plan.py for its keys.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the set, instead of the plan's.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; one on a GPU, else as many as cores and memory allow, if left out."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Work through Ray: 'local' starts it on this machine, an address joins a cluster."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option("--gpus-per-worker", help="With --ray; one where there are GPUs, if left out.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="End after so long; the next call goes on.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Json = False,
) -> None:
    """Make an augmentation set by a plan, or go on with it; Ctrl+C loses nothing."""
    from sar_gen.augment.plan import read_plan
    from sar_gen.augment.run import augment as make

    settings = settings_with(device=device)
    chosen = read_plan(plan)
    if out is not None:
        chosen = dataclasses.replace(chosen, out=out.expanduser().resolve())
    line = _Line()
    made = make(
        chosen, plan.read_text(encoding="utf-8"), settings, workers=workers, ray=ray, gpus_per_worker=gpus_per_worker,
        minutes=minutes, stop=stopped_by_signals(), say=line.progress.say, show=line.show,
        show_guides=lambda done, total: line.progress.show(f"Checking guide {done:,} of {total:,}"),
    )  # fmt: skip
    line.progress.show("")
    if as_json:
        print_json(_document(made))
    else:
        _print(made)
    if made.stopped and not made.finished:
        raise typer.Abort


class _Line:
    """Progress: patches, rate a minute, time left, share rejected; on a terminal one line, else one a minute."""

    WINDOW = 60.0

    def __init__(self) -> None:
        self.progress = Progress()
        self._seen: deque[tuple[float, int]] = deque()
        self._shown = time.monotonic()

    def show(self, state: State) -> None:
        now = time.monotonic()
        self._seen.append((now, state.fresh))
        while len(self._seen) > 2 and self._seen[0][0] < now - self.WINDOW:
            self._seen.popleft()
        if self.progress.live:
            self.progress.show(self.text(state))
        elif now - self._shown >= self.WINDOW:
            self._shown = now
            self.progress.say(self.text(state))

    def text(self, state: State) -> str:
        """Return the line."""
        line = f"{state.decided:,} of {state.total:,} patches"
        (start, before), (now, done) = self._seen[0], self._seen[-1]
        if now > start and done > before:
            rate = (done - before) / (now - start)
            line += f", {60 * rate:.3g} a minute, {_duration((state.total - state.decided) / rate)} left"
        attempts = state.made + state.rejected
        line += f", {state.rejected / attempts:.0%} of attempts rejected" if state.rejected else ""
        return line + (f", {state.missing:,} missing" if state.missing else "")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _document(made: Outcome) -> dict[str, Any]:
    state = made.state
    return {
        "folder": str(made.folder),
        "finished": made.finished,
        "stopped": made.stopped,
        **dataclasses.asdict(state),
        "seconds": round(made.seconds, 3),
        "patches_a_minute": round(60 * state.fresh / made.seconds, 2) if made.seconds else None,
        "workers": made.workers,
        "classes": made.classes,
        "verdicts": made.reports,
    }


def _print(made: Outcome) -> None:
    header = ("class", "asked", "made", "missing", "rejected attempts")
    keys = ("asked", "made", "missing", "rejected")
    table([header, *((name, *(f"{count[key]:,}" for key in keys)) for name, count in made.classes.items())])
    state = made.state
    if state.fresh:
        rate = 60 * state.fresh / made.seconds
        print(f"{state.fresh:,} patches in {_duration(made.seconds)} ({rate:.3g} a minute, {made.workers}).")
    if not made.finished:
        left = state.total - state.decided
        print(f"{left:,} of {state.total:,} patches are left; the same call goes on where this one ended.")
        return
    if state.missing:
        print(
            f"{state.missing:,} patches are MISSING: the gate rejected every attempt. Allow more (gate.measures), try "
            "more often (gate.attempts), or ask for fewer."
        )
    print(f"{made.folder} is complete: manifest.jsonl, shards, report.html; its card is README.md.")
