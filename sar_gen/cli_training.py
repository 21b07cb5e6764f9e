"""The commands of the training room."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sar_gen.cli_common import (
    BandOption,
    Json,
    NodataOption,
    PatchEncoding,
    RangeOption,
    Rate,
    band_of,
    plain,
    print_json,
    settings_with,
    stopped_by_signals,
    table,
)
from sar_gen.cli_experiment import experiment
from sar_gen.errors import InputError
from sar_gen.settings import Settings


def add_commands(app: typer.Typer) -> None:
    """Add the commands of training to the command line."""
    app.command()(prepare)
    app.command()(train)
    app.command()(experiment)


def prepare(
    source: Annotated[Path, typer.Argument(help="A raster, or a folder of rasters; its subfolders are acquisitions.")],
    out: Annotated[Path, typer.Argument(help="Folder of the data set; the same call goes on with one cut off.")],
    tile: Annotated[int, typer.Option(help="Side of a patch in pixels.")] = 256,
    stride: Annotated[
        int | None, typer.Option(help="Pixels from one patch to the next; the tile if left out.")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="Mean and std that normalise: 'image' (of each raster), 'acquisition' (of each folder), or the pair "
            "itself, as 'MEAN,STD'."
        ),
    ] = "acquisition",
    encoding: Annotated[
        PatchEncoding | None,
        typer.Option(help="What the pixels are; complex signal says it itself."),
    ] = None,
    db_range: RangeOption = None,
    band: BandOption = None,
    nodata: NodataOption = None,
    polarisation: Annotated[str | None, typer.Option(help="VV, VH, HH or HV, where no name says it.")] = None,
    groups: Annotated[
        str,
        typer.Option(
            help="What lies in one split: 'block' divides rasters, with gaps; 'image' and 'acquisition' keep a raster "
            "or a folder whole."
        ),
    ] = "block",
    block: Annotated[int, typer.Option(help="Side of a block in patches.")] = 4,
    gap: Annotated[int | None, typer.Option(help="Pixels between blocks; an eighth of the tile if left out.")] = None,
    split: Annotated[tuple[float, float, float], typer.Option(help="Shares of train, validation and reference.")] = (
        0.8,
        0.1,
        0.1,
    ),
    captions: Annotated[
        str | None,
        typer.Option(help="A CSV file (file, terrain, caption), 'attributes', or 'vlm:' and a hub id or folder."),
    ] = None,
    optical: Annotated[
        Path | None, typer.Option(help="Folder of co-registered optical pictures of the rasters' names.")
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Write WebDataset tar shards of so many patches.")] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="A Parquet manifest, not JSON lines.")] = False,
    seed: Annotated[int, typer.Option(help="Of splits, captions and order.")] = 0,
    sen12: Annotated[
        bool,
        typer.Option("--sen12", help="SOURCE holds s1_pairs.csv and s1_scenes.csv: write a manifest of its pictures."),
    ] = False,
    pack: Annotated[
        float | None, typer.Option(help="With --sen12: copy the pictures too, at most so many MiB in all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn large SAR rasters into a data set: normalised patches, splits that share no ground, captions."""
    if sen12:
        _print(_prepare_sen12(source, out, pack, seed), as_json)
        return
    from sar_gen.training.prepare import PrepareOptions
    from sar_gen.training.prepare import prepare as make

    if pack is not None:
        raise InputError("Only --sen12 packs pictures; leave out --pack.")
    if groups not in ("block", "image", "acquisition"):
        raise InputError(f"The groups {groups!r} are unknown; choose block, image or acquisition.")
    chosen = cast(Any, None if encoding is None else encoding.value)
    options = PrepareOptions(
        tile=tile, stride=stride, scale=_scale(scale), encoding=chosen, db_range=db_range, band=band_of(band),
        nodata=nodata, polarisation=polarisation, groups=cast(Any, groups), block=block, gap=gap, split=split,
        captions=captions, optical=optical, shards=shards, parquet=parquet, seed=seed,
    )  # fmt: skip
    rate = Rate(("Cutting",), "patches")
    made = make(
        source,
        out,
        options,
        max_pixels=Settings.from_env().max_pixels,
        progress=rate.show,
        say=rate.progress.say,
    )
    rate.end()
    _print(made, as_json)


def train(
    config: Annotated[Path, typer.Argument(help="TOML file; see sar_gen/training/config.py for its keys.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state, where there is one.")] = False,
    minutes: Annotated[float | None, typer.Option(help="End after so long; the next call goes on.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    as_json: Json = False,
) -> None:
    """Train a strategy on a base; Ctrl+C writes a state to go on from."""
    from sar_gen.training.config import TrainingConfig, read_config, says

    settings = settings_with(device=device)
    if says(config, "strategy") == "turbo":
        _distil(config, settings, resume, minutes, as_json)
        return
    chosen = read_config(config, TrainingConfig)
    from sar_gen.training import loop

    result = loop.train(
        chosen, settings, resume=resume, minutes=minutes, stop=stopped_by_signals().is_set,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    if int(os.environ.get("RANK", 0)):
        return  # one of several processes; the first one speaks
    if as_json:
        losses = {"first": result.losses[0], "last": result.losses[-1]} if result.losses else {}
        data = dataclasses.asdict(result) | {"folder": str(result.folder) if result.folder else None}
        print_json(data | {"losses": losses, "work": str(chosen.work)})
    elif result.folder is not None:
        how = f"--guide-way {result.folder.name}" if "control" in result.trainable else "its id"
        print(f"{result.folder} is ready; choose it by {how}.")


def _distil(config: Path, settings: Settings, resume: bool, minutes: float | None, as_json: bool) -> None:
    from sar_gen.training.config import read_config
    from sar_gen.training.distil import DistilConfig, distil

    result = distil(
        read_config(config, DistilConfig), settings, resume=resume, minutes=minutes, stop=stopped_by_signals().is_set,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    if as_json:
        print_json(dataclasses.asdict(result) | {"folder": str(result.folder) if result.folder else None})
    elif result.folder is not None:
        print(f"{result.folder} is ready; choose it by its id.")


def _prepare_sen12(source: Path, out: Path, limit: float | None, seed: int) -> dict[str, Any]:
    """Write the manifest; to pack, it is first written beside and its pictures are then copied."""
    import tempfile

    from sar_gen.training import sen12

    if limit is None:
        return sen12.prepare_sen12(source, out, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        sen12.prepare_sen12(source, Path(folder), seed=seed)
        return sen12.pack(Path(folder), out, round(limit * 2**20))


def _scale(text: str) -> Any:
    from sar_gen.amplitude import Scale

    if text in ("image", "acquisition"):
        return text
    numbers = re.split(r"[ ,]+", text.strip())
    try:
        mean, std = (float(number) for number in numbers)
    except ValueError as error:
        raise InputError(f"The scale {text!r} is unknown; give image, acquisition, or MEAN,STD.") from error
    return Scale(mean, std, "given by the user")


def _print(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    table([(name, plain(value)) for name, value in summary.items() if value not in ({}, [], None)])
