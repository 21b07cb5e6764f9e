"""The commands of the networks that read guides, and the guides of ``generate``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sar_gen import checkpoints, guide_networks
from sar_gen.cli_common import Json, Progress, plain, print_json, table
from sar_gen.errors import InputError
from sar_gen.guide_networks import NetworkSpec
from sar_gen.request import GUIDE_KINDS, Guide
from sar_gen.settings import Settings

guides_app = typer.Typer(help="The networks that read guides.", invoke_without_command=True)
Value = TypeVar("Value")


@guides_app.callback()
def guides_default(context: typer.Context) -> None:
    """List the networks when no command is given."""
    if context.invoked_subcommand is None:
        guides_list()


@guides_app.command("list")
def guides_list(as_json: Json = False) -> None:
    """List the networks."""
    settings = Settings.from_env()
    rows = [{**_json(network), "on_disk": _on_disk(network)} for network in _known(settings).values()]
    if as_json:
        print_json(rows)
        return
    header = ("id", "family", "base", "reads", "default for", "on disk", "title")
    lines = [
        (
            row["id"],
            row["family"],
            row["base"],
            ", ".join(row["kinds"]),
            ", ".join(row["default_for"]) or "-",
            "yes" if row["on_disk"] else "no",
            row["title"],
        )
        for row in rows
    ]
    table([header, *lines])


@guides_app.command("show")
def guides_show(network: str, as_json: Json = False) -> None:
    """Show a network's card."""
    data = _json(_one(network, Settings.from_env()))
    if as_json:
        print_json(data)
        return
    table([(name, plain(value)) for name, value in data.items() if value not in (None, "", [], {}, ())])


@guides_app.command("add")
def guides_add(
    source: Annotated[str, typer.Argument(help="Folder of a diffusers ControlNet or T2I-Adapter, or its hub id.")],
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of guide that it reads: map, optical or sar; may be repeated.")
    ] = None,
    palette: Annotated[str, typer.Option(help="Palette of the maps that it reads.")] = "studio",
    base: Annotated[str | None, typer.Option(help="Base that it was trained on.")] = None,
    name: Annotated[str | None, typer.Option("--id", help="Id in the catalogue.")] = None,
) -> None:
    """Add a ControlNet or T2I-Adapter of your own."""
    spec = guide_networks.add_network(
        source, Settings.from_env().here(), base=base, kinds=kind or (), palette=palette, id=name
    )
    print(f"Added {spec.id} ({spec.family}, on {spec.base}), which reads {', '.join(spec.kinds)}.")


@guides_app.command("remove")
def guides_remove(network: str) -> None:
    """Take a network that you added out of the catalogue; its files stay."""
    guide_networks.remove_network(network, Settings.from_env().here())
    print(f"Removed {network}.")


@guides_app.command("pull")
def guides_pull(network: str, as_json: Json = False) -> None:
    """Download a network's weights; a download that was cut goes on where it ended."""
    settings = Settings.from_env().here()
    spec = _one(network, settings)
    progress = Progress()
    folder = guide_networks.pull(spec, settings, lambda state: progress.show(str(state)))
    progress.show("")
    print_json({"id": spec.id, "folder": str(folder)}) if as_json else print(f"{spec.id} is in {folder}")


@guides_app.command("measure")
def guides_measure(
    network: str,
    data: Annotated[Path, typer.Argument(help="Prepared data set (folder or manifest) with optical halves.")],
    kind: Annotated[list[str] | None, typer.Option(help="Kinds to measure; all that it reads if left out.")] = None,
    count: Annotated[int, typer.Option(help="Held-out places of each kind.")] = 32,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the checkpoint's if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table, the JSON and a sheet of pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how a network is followed on held-out pairs, beside no guide, another place's guide and real SAR."""
    from sar_gen.training.guide_evaluation import markdown, measure, write

    settings = Settings.from_env().here()
    progress = Progress()
    found = measure(_one(network, settings), data, settings, kinds=kind, count=count, steps=steps, say=progress.show)
    progress.show("")
    if out is not None:
        write(found, out)
    print_json(found.to_json()) if as_json else print(markdown(found))


def read_guides(
    paths: Sequence[Path],
    kinds: Sequence[str],
    ways: Sequence[str],
    weights: Sequence[float],
    starts: Sequence[float],
    ends: Sequence[float],
    palettes: Sequence[str],
    settings: Settings,
) -> tuple[Guide, ...]:
    """Read the guides of ``generate``: each option once for all guides, or once a guide in their order.

    Raises:
        InputError: an option is there neither once nor once a guide, or a file cannot be used.
    """
    from sar_gen.guides import read_guide

    count = len(paths)
    each: list[Sequence[Any]] = [
        _each("kind", kinds, "map", count),
        _each("way", ways, None, count),
        _each("weight", weights, 1.0, count),
        _each("start", starts, 0.0, count),
        _each("end", ends, 1.0, count),
        _each("palette", palettes, "auto", count),
    ]
    guides = []
    for path, kind, way, weight, start, end, palette in zip(paths, *each, strict=True):
        if kind not in GUIDE_KINDS:
            raise InputError(f"The guide kind {kind!r} is unknown; choose one of {', '.join(GUIDE_KINDS)}.")
        guide = read_guide(path, kind, settings.max_pixels, palette)
        guides.append(dataclasses.replace(guide, way=way, weight=weight, start=start, end=end))
    return tuple(guides)


def _each(name: str, values: Sequence[Value], default: Value | None, count: int) -> Sequence[Value | None]:
    if values and not count:
        raise InputError(f"--guide-{name} is there without a guide; give its picture with --guide.")
    if len(values) <= 1:
        return [values[0] if values else default] * count
    if len(values) != count:
        raise InputError(
            f"--guide-{name} is there {len(values)} times for {count} guide{'s' if count != 1 else ''}; give it once, "
            "or once for each guide in their order."
        )
    return values


def _known(settings: Settings) -> dict[str, NetworkSpec]:
    return guide_networks.networks(settings, checkpoints.catalogue(settings))


def _one(name: str, settings: Settings) -> NetworkSpec:
    known = _known(settings)
    if name not in known:
        raise InputError(
            f"The network {name!r} is unknown; choose one of {', '.join(known) or 'none, there is none'}."
        )
    return known[name]


def _on_disk(network: NetworkSpec) -> bool:
    try:
        return not guide_networks.missing_files(network)
    except InputError:  # its files are here and refused; using it says why
        return False


def _json(network: NetworkSpec) -> dict[str, Any]:
    data = dataclasses.asdict(network)
    return {**data, "path": None if network.path is None else str(network.path)}
