"""The commands of the sets of real SAR."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from sar_gen import references as reference_module
from sar_gen.cli_common import (
    BandOption,
    Encoding,
    Json,
    NodataOption,
    PatchEncoding,
    RangeOption,
    Rate,
    ScaleOption,
    band_of,
    pixel_meaning,
    plain,
    print_json,
    table,
)
from sar_gen.patches import PixelMeaning
from sar_gen.reference_build import FolderOptions
from sar_gen.settings import Settings

references_app = typer.Typer(help="The sets of real SAR.", invoke_without_command=True)
pull_app = typer.Typer(help="Fetch real open data as a set.", no_args_is_help=True)
references_app.add_typer(pull_app, name="pull")


@references_app.callback()
def references_default(context: typer.Context) -> None:
    """List the sets when no command is given."""
    if context.invoked_subcommand is None:
        references_list()


@references_app.command("list")
def references_list(as_json: Json = False) -> None:
    """List the sets of real SAR."""
    infos = [dataclasses.asdict(info) for info in reference_module.list_references(Settings.from_env())]
    if as_json:
        print_json(infos)
        return
    header = ("name", "patches", "polarisation", "encoding", "pictures", "title")
    table(
        [
            header,
            *(
                (
                    info["name"],
                    str(info["count"]),
                    str(info["polarisation"] or "unknown"),
                    info["encoding"],
                    "yes" if info["has_patches"] else "no",
                    info["title"],
                )
                for info in infos
            ),
        ]
    )


@references_app.command("show")
def references_show(name: str, as_json: Json = False) -> None:
    """Show a set's facts and measures."""
    import numpy as np

    from sar_gen.quality.report import finite
    from sar_gen.quality.statistics import GLCM_NAMES

    reference = reference_module.load_reference(name, Settings.from_env())
    statistics = reference.statistics
    centres = (np.arange(statistics.histograms.shape[1]) + 0.5) / statistics.histograms.shape[1]
    weights = statistics.histograms.sum(0) / statistics.histograms.sum()
    mean = float((centres * weights).sum())
    data = {
        "name": reference.name,
        "title": reference.title,
        "patches": len(statistics.groups),
        "groups": len(set(statistics.groups)),
        "encoding": reference.encoding,
        "polarisation": reference.polarisation,
        "scale": None if reference.scale is None else dataclasses.asdict(reference.scale),
        "amplitude_mean": mean,
        "amplitude_std": float(np.sqrt((centres**2 * weights).sum() - mean**2)),
        "enl_median": finite(np.nanmedian(statistics.enl)) if np.isfinite(statistics.enl).any() else None,
        "glcm": {
            key: finite(value) for key, value in zip(GLCM_NAMES, np.nanmean(statistics.glcm, axis=0), strict=True)
        },
        "credit": reference.credit,
        "licence": reference.licence,
        "note": reference.note,
    }
    print_json(data) if as_json else table([(key, plain(value)) for key, value in data.items()])


@references_app.command("add")
def references_add(
    folder: Annotated[Path, typer.Argument(help="Folder with the patches.")],
    name: Annotated[str, typer.Option(help="Name of the set.")],
    encoding: Encoding = None,
    scale: ScaleOption = None,
    db_range: RangeOption = None,
    polarisation: Annotated[str | None, typer.Option(help="VV, VH, HH or HV, where it is known.")] = None,
    credit: Annotated[str, typer.Option(help="Whose data; shown with every report.")] = "",
    licence: Annotated[str, typer.Option(help="On what terms.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", help="Read subfolders too.")] = False,
    group_by_folder: Annotated[
        bool, typer.Option("--group-by-folder", help="Patches in folders of one name share ground.")
    ] = False,
    scale_by_folder: Annotated[
        bool,
        typer.Option("--scale-by-folder", help="One mean and std a first-level subfolder, not one for the set."),
    ] = False,
    band: BandOption = None,
    tile: Annotated[
        int | None, typer.Option(help="Cut every file, a large raster, into squares of so many pixels.")
    ] = None,
    nodata: NodataOption = None,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out files that cannot be used, and say how many.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a folder of real patches as a set; a call that was cut off is gone on with by the same call."""
    options = FolderOptions(
        recursive,
        "folder" if group_by_folder else "patch",
        "folder" if scale_by_folder else "set",
        skip_unusable,
        band_of(band),
        tile,
    )
    settings = Settings.from_env()
    meaning = pixel_meaning(encoding, scale, db_range, nodata)
    rate = Rate(("Taking the scale", "Measuring") if _pools(meaning) else ("Measuring",), "patches")
    info = reference_module.add_reference(
        folder,
        name,
        meaning,
        settings,
        polarisation=polarisation,
        credit=credit,
        licence=licence,
        options=options,
        progress=rate.show,
    )
    rate.end()
    _print_added(info, settings, as_json)


@references_app.command("export")
def references_export(
    name: str,
    file: Annotated[Path, typer.Argument(help="The file to write, for example my-forest.sarref.")],
    with_patches: Annotated[
        bool, typer.Option("--with-patches", help="Put in the patches that are shown, not only statistics.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a set as one file to share."""
    digest = reference_module.export_reference(name, file, Settings.from_env(), with_patches=with_patches)
    facts = {"name": name, "file": str(file), "bytes": file.stat().st_size, "sha256": digest}
    print_json(facts) if as_json else print(f"{file} ({facts['bytes']:,} bytes), SHA-256 {digest}")


@references_app.command("import")
def references_import(
    file: Annotated[Path, typer.Argument(help="A .sarref file that somebody exported.")],
    name: Annotated[str | None, typer.Option(help="Name of the set, in place of its own.")] = None,
    as_json: Json = False,
) -> None:
    """Add a set from a file that somebody shared."""
    settings = Settings.from_env()
    _print_added(reference_module.import_reference(file, settings, name=name), settings, as_json)


PULL_PHASES = ("Reading", "Taking the scale", "Measuring")
Bbox = Annotated[str, typer.Option(help="west,south,east,north in degrees.")]
Pulled = Annotated[str, typer.Option("--name", help="Name of the set.")]
From = Annotated[str | None, typer.Option("--from", help="First day, YYYY-MM-DD.")]
To = Annotated[str | None, typer.Option("--to", help="Last day, YYYY-MM-DD.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Most acquisitions, newest first.")]
Size = Annotated[int, typer.Option(help="Side of a patch in pixels.")]
Polarisation = Annotated[str, typer.Option(help="VV, VH, HH or HV: one for the set.")]


@pull_app.command("umbra")
def references_pull_umbra(
    bbox: Bbox,
    name: Pulled,
    first: From = None,
    last: To = None,
    limit: Limit = 4,
    polarisation: Polarisation = "VV",
    size: Size = 256,
    index: Annotated[Path | None, typer.Option(help="Index file of umbra-py; its own if left out.")] = None,
    as_json: Json = False,
) -> None:
    r"""Umbra open data: X band, under a metre, CC BY 4.0. Needs: pip install "umbra-py\[load]"."""
    from sar_gen.open_data.scenes import Search, parse_bbox
    from sar_gen.open_data.umbra import pull_umbra

    settings = Settings.from_env()
    rate = Rate(PULL_PHASES, "patches")
    info = pull_umbra(
        Search(parse_bbox(bbox), first, last, polarisation, limit),
        name,
        settings,
        size=size,
        index=index,
        say=rate.progress.say,
        progress=rate.show,
    )
    rate.end()
    _print_added(info, settings, as_json)


@pull_app.command("s1-rtc")
def references_pull_s1_rtc(
    bbox: Bbox,
    name: Pulled,
    first: From = None,
    last: To = None,
    limit: Limit = 4,
    polarisation: Polarisation = "VV",
    size: Size = 256,
    collection: Annotated[str, typer.Option(help="Collection of the catalogue.")] = "sentinel-1-rtc",
    catalogue: Annotated[str | None, typer.Option("--stac", help="STAC API; Planetary Computer if left out.")] = None,
    encoding: Annotated[
        PatchEncoding | None, typer.Option(help="What the pixels are, where the catalogue does not say it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sentinel-1 RTC (gamma0, C band, 10 m) from a STAC catalogue. Needs: pip install rasterio."""
    from sar_gen.open_data.scenes import Search, parse_bbox
    from sar_gen.open_data.stac import DEFAULT_URL, pull_s1_rtc

    settings = Settings.from_env()
    rate = Rate(PULL_PHASES, "patches")
    info = pull_s1_rtc(
        Search(parse_bbox(bbox), first, last, polarisation, limit),
        name,
        settings,
        size=size,
        url=catalogue or DEFAULT_URL,
        collection=collection,
        encoding=None if encoding is None else encoding.value,  # type: ignore[arg-type]
        progress=rate.show,
    )
    rate.end()
    _print_added(info, settings, as_json)


@references_app.command("remove")
def references_remove(name: str) -> None:
    """Forget a set that you added, imported or pulled; a folder of your own stays."""
    reference_module.remove_reference(name, Settings.from_env())
    print(f"Removed {name}.")


def _print_added(info: reference_module.ReferenceInfo, settings: Settings, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(info))
        return
    print(f"Added {info.name}: {info.count} patches.")
    note = reference_module.load_reference(info.name, settings).note
    if note:
        print(note, file=sys.stderr)


def _pools(meaning: PixelMeaning | None) -> bool:
    """Return whether a scale is taken from the patches, in a pass of its own."""
    return meaning is not None and meaning.needs_scale and meaning.scale == "pool"
