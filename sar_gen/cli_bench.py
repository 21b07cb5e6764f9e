"""``python -m sar_gen bench [NAME]``: measured claims, as tables or JSON."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sar_gen.cli_common import Json, Progress, print_json, table
from sar_gen.errors import InputError, SarGenError
from sar_gen.settings import Settings

TRAIN, SCENES = "train", "scenes"
PANEL = "Only for train"
ModelSize = StrEnum("ModelSize", ["full", "tiny"])


def bench(
    name: Annotated[str, typer.Argument(help="What to measure: generate, quality, scenes or train.")] = "generate",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    size: Annotated[
        ModelSize | None,
        typer.Option(
            help="SDXL of random weights: its true size, or a tiny one. Default: full.", rich_help_panel=PANEL
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Joined by commas: STRATEGY, plain:STRATEGY, check:STRATEGY. Default: what tells most.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Patches a step. Default: 1.", min=1, rich_help_panel=PANEL)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file that rows are added to; those in it are not run again.", rich_help_panel=PANEL),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for random weights (13 GB at full size), kept.", rich_help_panel=PANEL),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no row after so long.", rich_help_panel=PANEL)] = None,
    as_json: Json = False,
) -> None:
    """Measure the studio against the plain way on this machine, in one run."""
    settings = Settings.from_env()
    if device is not None:
        settings = dataclasses.replace(settings, device=device)
    if name == TRAIN:
        _train(settings, size, rows, batch, out, work, minutes, as_json)
        return
    from sar_gen.bench import BENCHES

    if name not in (*BENCHES, SCENES):
        raise InputError(f"There is no bench {name!r}; choose one of {', '.join((*BENCHES, SCENES, TRAIN))}.")
    for option, value in (
        ("size", size),
        ("rows", rows),
        ("batch", batch),
        ("out", out),
        ("work", work),
        ("minutes", minutes),
    ):
        if value is not None:
            raise InputError(f"--{option} is an option of the bench train; leave it out for {name}.")
    if name == SCENES:
        _scenes(settings, as_json)
        return
    results = BENCHES[name](settings)
    if as_json:
        print_json([result.to_json() for result in results])
        return
    for result in results:
        print(f"{result.title}; {result.rounds} rounds")
        lines = [("way", "median s", "from", "to", "ratio")]
        lines += [
            (t.name, f"{t.median:.3f}", f"{t.low:.3f}", f"{t.high:.3f}", f"{result.ratio[t.name]:.3f}")
            for t in result.timings
        ]
        table(lines)


def _scenes(settings: Settings, as_json: bool) -> None:
    from sar_gen.bench.scenes import bench_scenes

    progress = Progress()
    scenes = bench_scenes(settings, say=progress.show)
    progress.show("")
    if as_json:
        print_json([scene.to_json() for scene in scenes])
        return
    lines = [("scene", "pixels", "seconds", "peak MB", "seams in columns", "in rows")]
    for scene in scenes:
        seams = ("-", "-") if scene.seams is None else tuple(f"{value:.2f}" for value in scene.seams)
        peak = f"{scene.peak / 1e6:.0f}" if scene.peak else "-"
        lines.append((scene.name, f"{scene.side} x {scene.side}", f"{scene.seconds:.1f}", peak, seams[0], seams[1]))
    table(lines)


def _train(
    settings: Settings,
    size: ModelSize | None,
    rows: str | None,
    batch: int | None,
    out: Path | None,
    work: Path | None,
    minutes: float | None,
    as_json: bool,
) -> None:
    from sar_gen.bench.train import ROWS, Plan, bench_train

    progress = Progress()
    found = bench_train(
        settings,
        Plan(size="tiny" if size == ModelSize.tiny else "full", batch=batch or 1),
        rows=ROWS if rows is None else [name.strip() for name in rows.split(",")],
        out=out,
        work=work,
        minutes=minutes,
        say=progress.say,
    )
    if as_json:
        print_json(found.to_json())
    else:
        print(found.title)
        table(found.table())
        for sentence in found.sentences():
            print(sentence)
    if found.failed:
        raise SarGenError(f"What was loaded is not what was trained: {', '.join(found.failed)}.")
