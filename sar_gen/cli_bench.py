"""``python -m sar_gen bench [NAME]``: measured claims, as tables or JSON."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sar_gen.cli_common import Json, Progress, print_json, settings_with, table
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.settings import Settings

if TYPE_CHECKING:
    from sar_gen.bench import Bench

GENERATE, TRAIN, SCENES, SWITCH, START = "generate", "train", "scenes", "switch", "start"
PANEL, SHARED = "Only for train", "For generate, switch and train"
OPTIONS = {
    "patches": (GENERATE,),
    "size": (GENERATE, TRAIN, SWITCH),
    "rows": (TRAIN,),
    "batch": (TRAIN,),
    "out": (GENERATE, TRAIN, SWITCH, START),
    "work": (GENERATE, TRAIN, SWITCH),
    "minutes": (TRAIN,),
}
"""The benches that an option is for."""
ModelSize = StrEnum("ModelSize", ["full", "tiny"])


def bench(
    name: Annotated[
        str, typer.Argument(help="What to measure: generate, quality, scenes, start, switch or train.")
    ] = "generate",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    size: Annotated[
        ModelSize | None,
        typer.Option(
            help="SDXL of random weights: its true size, or a tiny one. Default: full for train, else the checkpoint.",
            rich_help_panel=SHARED,
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
        typer.Option(
            help="JSON file for the results; train adds rows to it and does not run those in it again.",
            rich_help_panel="For generate, start, switch and train",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is made (13 GB at full size, 15 for switch), kept.", rich_help_panel=SHARED
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no row after so long.", rich_help_panel=PANEL)] = None,
    patches: Annotated[
        int | None,
        typer.Option(
            help="Measure instead what each switch gains and does to so many patches a prompt.",
            min=1,
            rich_help_panel="Only for generate",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the studio against the plain way on this machine, in one run."""
    settings = settings_with(device=device)
    if name == TRAIN:
        _train(settings, size, rows, batch, out, work, minutes, as_json)
        return
    from sar_gen.bench import BENCHES

    if name not in (*BENCHES, SCENES):
        raise InputError(f"There is no bench {name!r}; choose one of {', '.join((*BENCHES, SCENES, TRAIN))}.")
    given = {
        "size": size,
        "rows": rows,
        "batch": batch,
        "out": out,
        "work": work,
        "minutes": minutes,
        "patches": patches,
    }
    for option, value in given.items():
        if value is not None and name not in OPTIONS[option]:
            benches = ", ".join(OPTIONS[option])
            raise InputError(f"--{option} is for the bench {benches}; leave it out for {name}.")
    if name == SCENES:
        _scenes(settings, as_json)
        return
    chosen = None if size is None else _size(size)
    if patches is not None:
        _effects(settings, patches, chosen, work, out, as_json)
        return
    if name == SWITCH:
        from sar_gen.bench.switch import bench_switch

        results = bench_switch(settings, chosen, work)
    elif name == GENERATE:
        from sar_gen.bench.generate import bench_generate

        results = bench_generate(settings, chosen, work)
    else:
        results = BENCHES[name](settings)
    data = [result.to_json() for result in results]
    if out is not None:
        write_atomic(out, json.dumps(data, indent=1).encode())
    if as_json:
        print_json(data)
        return
    for result in results:
        print(f"{result.title}; {result.rounds} rounds")
        table(_lines(result))
    for fact, value in results[-1].facts.items():
        print(f"{fact.replace('_', ' ')}: {value}")


def _lines(result: Bench) -> list[tuple[str, ...]]:
    """Return a result as the lines of a table; memory is a column where it was measured."""
    measured = any(timing.memory is not None for timing in result.timings)
    lines = [("way", "median s", "from", "to", "ratio", *(("memory MB",) if measured else ()))]
    for t in result.timings:
        seconds = (f"{t.median:.3f}", f"{t.low:.3f}", f"{t.high:.3f}", f"{result.ratio[t.name]:.3f}")
        memory = (("-" if t.memory is None else f"{t.memory / 1e6:.0f}"),) if measured else ()
        lines.append((t.name, *seconds, *memory))
    return lines


def _size(size: ModelSize | None) -> Literal["full", "tiny"]:
    return "tiny" if size == ModelSize.tiny else "full"


def _effects(
    settings: Settings,
    patches: int,
    size: Literal["full", "tiny"] | None,
    work: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from sar_gen.bench.effects import bench_effects

    if size is not None:
        raise InputError(
            "Random weights make noise, which has no distance to real SAR; leave out --size or --patches."
        )
    progress = Progress()
    found = bench_effects(settings, patches, work, progress.show)
    progress.show("")
    if out is not None:
        write_atomic(out, json.dumps(found.to_json(), indent=1).encode())
    if as_json:
        print_json(found.to_json())
        return
    print(found.title)
    table(found.table())
    for sentence in found.sentences():
        print(sentence)


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
        Plan(size=_size(size), batch=batch or 1),
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
