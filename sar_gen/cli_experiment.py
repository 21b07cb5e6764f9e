"""The command that compares fine-tuning strategies: ``python -m sar_gen experiment CONFIG.toml``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sar_gen.cli_common import Json, print_json, table
from sar_gen.settings import Settings


def experiment(
    config: Annotated[Path, typer.Argument(help="TOML file; see sar_gen/training/configs/experiment-*.toml.")],
    minutes: Annotated[float | None, typer.Option(help="Do as much as fits; the next call goes on.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this row, and what it needs; may be repeated.")] = None,
    list_stages: Annotated[bool, typer.Option("--list", help="List the stages and end.")] = False,
    data: Annotated[Path | None, typer.Option(help="Manifest or its folder, instead of the file's.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of all that is made, instead of the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of table and pictures, instead of the file's.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Json = False,
) -> None:
    """Train and evaluate every strategy of a config, and write the comparison table; a later call goes on."""
    from sar_gen.training.config import read_config
    from sar_gen.training.experiment import Experiment, ExperimentConfig, listing

    settings = Settings.from_env()
    if device is not None:
        settings = dataclasses.replace(settings, device=device)
    places = {"data": data, "work": work, "output": out}
    changes: dict[str, Any] = {name: path.expanduser().resolve() for name, path in places.items() if path is not None}
    found = dataclasses.replace(read_config(config, ExperimentConfig), **changes)
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
