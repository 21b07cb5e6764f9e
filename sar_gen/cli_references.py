"""The commands of the sets of real SAR."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sar_gen import references as reference_module
from sar_gen.cli_common import (
    Encoding,
    Json,
    RangeOption,
    ScaleOption,
    finite,
    pixel_meaning,
    plain,
    print_json,
    table,
)
from sar_gen.settings import Settings

references_app = typer.Typer(help="The sets of real SAR.", invoke_without_command=True)


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
    folder: Path,
    name: Annotated[str, typer.Option(help="Name of the set.")],
    encoding: Encoding = None,
    scale: ScaleOption = None,
    db_range: RangeOption = None,
    polarisation: Annotated[str | None, typer.Option(help="VV, VH, HH or HV, where it is known.")] = None,
    credit: Annotated[str, typer.Option(help="Whose data; shown with every report.")] = "",
) -> None:
    """Add a folder of real patches as a set."""
    meaning = pixel_meaning(encoding, scale, db_range)
    info = reference_module.add_reference(
        folder, name, meaning, Settings.from_env(), polarisation=polarisation, credit=credit
    )
    print(f"Added {info.name}: {info.count} patches.")


@references_app.command("remove")
def references_remove(name: str) -> None:
    """Forget a set that you added; its folder stays."""
    reference_module.remove_reference(name, Settings.from_env())
    print(f"Removed {name}.")
