"""The command of the experiments: ``python -m sar_gen experiment CONFIG.toml``, and ``experiment augmentation``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sar_gen.cli_common import Json, print_json, settings_with, stopped_by_signals, table
from sar_gen.errors import InputError


def experiment(
    config: Annotated[Path, typer.Argument(help="TOML file (see sar_gen/training/configs), or 'augmentation'.")],
    minutes: Annotated[float | None, typer.Option(help="Do as much as fits; the next call goes on.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this row, and what it needs; may be repeated.")] = None,
    list_stages: Annotated[bool, typer.Option("--list", help="List the stages and end.")] = False,
    data: Annotated[Path | None, typer.Option(help="Manifest or its folder, instead of the file's.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of all that is made, instead of the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of table and pictures, instead of the file's.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Json = False,
) -> None:
    """Train and evaluate every strategy of a config, and write the comparison table; a later call goes on.

    'augmentation', or a file with `generated` in it, tells instead what a generated set is worth to a classifier.
    """
    from sar_gen.training.config import read_config, says
    from sar_gen.training.experiment import Experiment, ExperimentConfig, listing

    if str(config) == "augmentation" or says(config, "generated") is not None:
        if only or list_stages or device is not None:
            raise InputError("This experiment has no stages and no device; leave out --only, --list and --device.")
        _augmentation(config, minutes, {"real": data, "work": work, "output": out}, as_json)
        return
    settings = settings_with(device=device)
    found = dataclasses.replace(
        read_config(config, ExperimentConfig), **_given({"data": data, "work": work, "output": out})
    )
    made = Experiment(found, settings, lambda text: print(text, file=sys.stderr, flush=True))
    rows = tuple(only or ())
    if list_stages:
        stages = made.stages(rows)
        print_json([dataclasses.asdict(stage) for stage in stages]) if as_json else table(listing(stages))
        return
    made.run(minutes=minutes, only=rows)
    if as_json:
        print_json(made.report())
    else:
        print((found.output / "table.md").read_text(encoding="utf-8"))


def _augmentation(config: Path, minutes: float | None, places: dict[str, Path | None], as_json: bool) -> None:
    from sar_gen.training.augmentation import CONFIG, AugmentationConfig, run
    from sar_gen.training.config import read_config

    path = CONFIG if str(config) == "augmentation" else config
    found = dataclasses.replace(read_config(path, AugmentationConfig), **_given(places))
    report = run(
        found,
        minutes=minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
        stop=stopped_by_signals().is_set,
    )
    if as_json:
        print_json(report)
    else:
        print((found.output / "table.md").read_text(encoding="utf-8"))


def _given(places: dict[str, Path | None]) -> dict[str, Any]:
    """Return the paths that were given on the command line."""
    return {name: path.expanduser().resolve() for name, path in places.items() if path is not None}
