"""The studio's abilities as commands. Results go to stdout (one JSON document with ``--json``), all else to stderr."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sar_gen import checkpoints as catalogue_module
from sar_gen import references as reference_module
from sar_gen.cli_augment import augment
from sar_gen.cli_bench import bench
from sar_gen.cli_common import (
    BandOption,
    Encoding,
    Json,
    NodataOption,
    Progress,
    RangeOption,
    ScaleOption,
    band_of,
    pixel_meaning,
    plain,
    print_json,
    table,
)
from sar_gen.cli_grid import GridOption, ResumeOption, go_on_with_grid, make_grid
from sar_gen.cli_guides import guides_app, read_guides
from sar_gen.cli_references import references_app
from sar_gen.cli_serve import serve
from sar_gen.cli_training import add_commands
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.patches import Patch, PixelMeaning, read_folder, read_patch, read_tiles
from sar_gen.profiles import read_switches
from sar_gen.request import (
    DEFAULT_STRENGTH,
    Done,
    Failed,
    GenerationRequest,
    Judged,
    Loading,
    Notice,
    Queued,
    Saved,
    Selected,
    Step,
    Stopped,
    scene_size,
)
from sar_gen.runs import RunRecord
from sar_gen.settings import Settings
from sar_gen.studio import Studio

if TYPE_CHECKING:
    from sar_gen.comparison import Comparison
    from sar_gen.quality.report import Measure, QualityReport
    from sar_gen.quality.semantic import SarClip
    from sar_gen.selection import Selection

app = typer.Typer(
    name="sar_gen",
    help="Generate SAR patches from text and judge them beside real SAR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
checkpoints_app = typer.Typer(help="The catalogue of checkpoints.", invoke_without_command=True)
runs_app = typer.Typer(help="What was made.", invoke_without_command=True)
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(guides_app, name="guides")
app.add_typer(references_app, name="references")
app.add_typer(runs_app, name="runs")
add_commands(app)
app.command()(bench)
app.command()(serve)
app.command()(augment)


def main() -> None:
    """Run the command line; a known error is one line on stderr, with exit status 2 for bad input and 1 for ours."""
    try:
        app(standalone_mode=False)
    except InputError as error:
        sys.exit(_fail(str(error), 2))
    except SarGenError as error:
        sys.exit(_fail(str(error), 1))
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_fail("Stopped; the patches that were finished are kept.", 130))
    except Exception as error:
        # Typer's own complaints about options carry a ready message and exit status 2.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        sys.exit(_fail(message(), 2))


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to generate.")] = "",
    checkpoint: Annotated[str | None, typer.Option(help="Catalogue id; `checkpoints list` shows them.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Fine-tuning strategy on the same base.")] = None,
    count: Annotated[int, typer.Option(help="Number of patches; patch i uses seed + i.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first patch.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the card's default if left out.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is without.")] = None,
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    scheduler: Annotated[str, typer.Option(help="default, dpm++, ddim or euler.")] = "default",
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    guide: Annotated[
        list[Path] | None, typer.Option(help="Image that steers the scene; may be repeated, as the options below.")
    ] = None,
    guide_kind: Annotated[list[str] | None, typer.Option(help="sketch, map (default), optical or sar.")] = None,
    guide_way: Annotated[
        list[str] | None,
        typer.Option(help="Network that reads it (`guides list`), or image-to-image; the checkpoint's if left out."),
    ] = None,
    guide_weight: Annotated[list[float] | None, typer.Option(help="Of a network: 0 is without, 1 as trained.")] = None,
    guide_start: Annotated[list[float] | None, typer.Option(help="Share of the steps before it sets in.")] = None,
    guide_end: Annotated[list[float] | None, typer.Option(help="Share of the steps after which it ends.")] = None,
    guide_palette: Annotated[
        list[str] | None, typer.Option(help="Of a map: auto, studio, worldcover, dynamicworld, igbp, sen12ms, …")
    ] = None,
    guide_size: Annotated[
        bool, typer.Option("--guide-size", help="Make the scene as large as the first guide.")
    ] = False,
    strength: Annotated[
        float, typer.Option(help="Image-to-image: 0 keeps the guide, 1 ignores it.")
    ] = DEFAULT_STRENGTH,
    profile: Annotated[
        str | None, typer.Option(help="How fast and how exactly: exact, fast or plain; SAR_GEN_PROFILE if left out.")
    ] = None,
    switch: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, set otherwise than the profile; may be repeated.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Reference set to judge the patches with.")] = None,
    best_of: Annotated[
        int | None,
        typer.Option(help="Make so many patches and keep the --count nearest to the reference; the others stay too."),
    ] = None,
    grid: GridOption = None,
    resume_grid: ResumeOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; default: outputs/.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Address of an engine elsewhere (`serve`) that generates instead."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Generate SAR patches from a prompt, or a grid of them."""
    settings = _settings(runs=out, device=device, backend=backend)
    if resume_grid is not None:
        go_on_with_grid(Studio(settings), resume_grid, prompt, as_json)
        return
    guides = read_guides(
        guide or [], guide_kind or [], guide_way or [], guide_weight or [], guide_start or [], guide_end or [],
        guide_palette or [], settings,
    )  # fmt: skip
    if guide_size:
        width, height = scene_size(guides, settings)
    request = GenerationRequest(
        prompt=prompt,
        negative=negative,
        checkpoint=checkpoint or settings.checkpoint,
        strategy=strategy,
        count=count if best_of is None else best_of,
        seed=seed,
        steps=steps,
        guidance=guidance,
        width=width,
        height=height,
        scheduler=scheduler,
        guides=guides,
        strength=strength,
        profile=profile,
        switches=read_switches(switch or []),
    )
    keep = None if best_of is None else count
    if grid:
        make_grid(Studio(settings), request, grid, reference, keep, as_json)
        return
    _run(Studio(settings), request, reference, as_json, keep)


@app.command()
def compare(
    patches: Annotated[Path, typer.Argument(help="A patch, a folder of patches, or a large raster (with --tile).")],
    reference: Annotated[str, typer.Option(help="Reference set or a folder of real patches.")],
    prompt: Annotated[
        str | None, typer.Option(help="What the patches should show: measures their agreement with it by SAR-CLIP.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Also compare the sets in SAR-CLIP's features (0.3 s a patch and more).")
    ] = False,
    training: Annotated[
        str | None,
        typer.Option(help="With --features: set or folder of the training patches to look for copies of."),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Another CLIP: a folder or a hub id, in place of the SAR-CLIP that ships.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as one HTML file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write one line a patch as a CSV file.")] = None,
    band: BandOption = None,
    window: Annotated[
        tuple[int, int, int, int] | None, typer.Option(help="Part of a raster: row, column, height and width.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Cut a raster into squares of so many pixels.")] = None,
    nodata: NodataOption = None,
    encoding: Encoding = None,
    scale: ScaleOption = None,
    db_range: RangeOption = None,
    reference_encoding: Encoding = None,
    as_json: Json = False,
) -> None:
    """Compare patches with real SAR, each measure beside its real-versus-real floor."""
    from sar_gen import comparison

    settings = Settings.from_env()
    progress = Progress()
    meaning = pixel_meaning(encoding, scale, db_range, nodata)
    judged = _read_patches(patches, meaning, settings, progress, band=band, window=window, tile=tile)
    if Path(reference).is_dir():
        real = _read_patches(Path(reference), pixel_meaning(reference_encoding, scale, db_range), settings, progress)
        reference_set = reference_module.from_patches(real, Path(reference).name)
    else:
        reference_set = reference_module.load_reference(reference, settings)
    found = comparison.compare_patches(
        judged,
        reference_set,
        settings=settings,
        prompt=prompt,
        features=features,
        training=None if training is None else reference_module.load_reference(training, settings),
        clip=None if clip is None else _load_clip(clip, settings),
        say=progress.show,
    )
    progress.show("")
    if html is not None:
        from sar_gen.report_html import write_html

        write_html(html, found)
    if csv is not None:
        write_atomic(csv, comparison.to_csv(found).encode())
    for warning in found.warnings:
        print(warning, file=sys.stderr)
    if as_json:
        print_json(comparison.to_json(found))
        return
    sets = found.sets
    _print_report(found.report, {} if sets is None else sets.measures)
    _print_patches(found)
    if sets is not None:
        print(sets.text)


@checkpoints_app.callback()
def checkpoints_default(context: typer.Context) -> None:
    """List the catalogue when no command is given."""
    if context.invoked_subcommand is None:
        checkpoints_list()


@checkpoints_app.command("list")
def checkpoints_list(as_json: Json = False) -> None:
    """List the catalogue."""
    settings = Settings.from_env()
    catalogue = catalogue_module.catalogue(settings)
    rows = []
    for spec in catalogue.values():
        missing = catalogue_module.missing_files(spec, settings)
        rows.append({**_spec_json(spec), "on_disk": not missing})
    if as_json:
        print_json(rows)
        return
    header = ("id", "family", "base", "strategy", "size", "amplitude", "on disk", "title")
    table(
        [
            header,
            *(
                (
                    row["id"],
                    row["family"],
                    row["base"],
                    row["strategy"],
                    str(row["resolution"]),
                    row["amplitude_encoding"],
                    "yes" if row["on_disk"] else "no",
                    row["title"],
                )
                for row in rows
            ),
        ]
    )


@checkpoints_app.command("show")
def checkpoints_show(checkpoint: str, as_json: Json = False) -> None:
    """Show a checkpoint's card."""
    spec = catalogue_module.resolve(catalogue_module.catalogue(Settings.from_env()), checkpoint)
    data = _spec_json(spec)
    if as_json:
        print_json(data)
        return
    table([(name, plain(value)) for name, value in data.items() if value not in (None, "", [], {}, ())])


@checkpoints_app.command("pull")
def checkpoints_pull(checkpoint: str, as_json: Json = False) -> None:
    """Download a checkpoint's weights; a download that was cut goes on where it ended."""
    settings = Settings.from_env().here()
    spec = catalogue_module.resolve(catalogue_module.catalogue(settings), checkpoint)
    progress = Progress()
    folder = catalogue_module.pull(spec, settings, lambda state: progress.show(str(state)))
    progress.show("")
    print_json({"id": spec.id, "folder": str(folder)}) if as_json else print(f"{spec.id} is in {folder}")


@checkpoints_app.command("verify")
def checkpoints_verify(checkpoint: str, as_json: Json = False) -> None:
    """Check the weights' SHA-256 against the card."""
    settings = Settings.from_env().here()
    spec = catalogue_module.resolve(catalogue_module.catalogue(settings), checkpoint)
    result = catalogue_module.verify(spec, settings)
    if as_json:
        print_json(result)
    else:
        table([(str(name), str(state)) for name, state in result.items()])


@checkpoints_app.command("add")
def checkpoints_add(
    source: Annotated[str, typer.Argument(help="A diffusers folder, a strategy folder, a LoRA file or a hub id.")],
    name: Annotated[str | None, typer.Option("--id", help="Id in the catalogue.")] = None,
    base: Annotated[str | None, typer.Option(help="Base that a LoRA or a strategy folder goes on.")] = None,
) -> None:
    """Add a checkpoint of your own to the catalogue."""
    spec = catalogue_module.add_checkpoint(source, Settings.from_env().here(), base=base, id=name)
    print(f"Added {spec.id} ({spec.family}, on {spec.base}).")


@checkpoints_app.command("remove")
def checkpoints_remove(checkpoint: str) -> None:
    """Take a checkpoint that you added out of the catalogue; its files stay."""
    catalogue_module.remove_checkpoint(checkpoint, Settings.from_env().here())
    print(f"Removed {checkpoint}.")


@runs_app.callback()
def runs_default(context: typer.Context) -> None:
    """List the runs when no command is given."""
    if context.invoked_subcommand is None:
        runs_list()


@runs_app.command("list")
def runs_list(limit: Annotated[int, typer.Option(help="Newest runs to show.")] = 20, as_json: Json = False) -> None:
    """List the runs, newest first."""
    records = Studio().store.list(limit)
    if as_json:
        print_json([_run_json(record) for record in records])
        return
    header = ("run", "status", "patches", "checkpoint", "prompt")
    table(
        [header, *((r.id, r.status, str(len(r.images)), r.request.checkpoint, r.request.prompt[:60]) for r in records)]
    )


@runs_app.command("show")
def runs_show(run: str, as_json: Json = False) -> None:
    """Show a run by its id, folder or one of its PNGs."""
    data = _run_json(Studio().store.open(run))
    print_json(data) if as_json else table([(key, plain(value)) for key, value in data.items()])


@runs_app.command("replay")
def runs_replay(run: str, as_json: Json = False) -> None:
    """Make a run again from its record, as a new run, and say whether the pictures are the same."""
    studio = Studio()
    record = studio.store.open(run)
    made = _run(studio, record.request, None, as_json)
    before = {image.seed: image.sha256 for image in record.images}
    same = sum(before.get(saved.seed) == saved.sha256 for saved in made)
    print(f"{same} of {len(before)} patches are bit-equal to the first run.", file=sys.stderr)


def _settings(runs: Path | None = None, device: str | None = None, backend: str | None = None) -> Settings:
    """Return the settings with what the command line overrides."""
    settings = Settings.from_env()
    changes: dict[str, Any] = {}
    if runs is not None:
        changes["runs"] = runs.expanduser().resolve()
    if device is not None:
        changes["device"] = device
    if backend is not None:
        changes["backend"] = backend
    return dataclasses.replace(settings, **changes)


def _read_patches(
    path: Path,
    meaning: PixelMeaning | None,
    settings: Settings,
    progress: Progress,
    *,
    band: str | None = None,
    window: tuple[int, int, int, int] | None = None,
    tile: int | None = None,
) -> list[Patch]:
    """Read a folder, a patch, a window of a raster, or the tiles of one."""
    number = band_of(band)
    if path.is_dir():
        if window is not None or tile is not None:
            raise InputError(f"{path} is a folder; --window and --tile cut one raster: give the file.")
        return read_folder(path, meaning, settings.max_pixels, band=number)
    if tile is not None:
        tiles = read_tiles(path, meaning, tile, settings.max_pixels, band=number, window=window, say=progress.say)
        return list(tiles)
    return [read_patch(path, meaning, settings.max_pixels, band=number, window=window)]


def _load_clip(source: str, settings: Settings) -> SarClip:
    from sar_gen.quality.semantic import load_sarclip

    return load_sarclip(source, settings)


def _run(
    studio: Studio, request: GenerationRequest, reference: str | None, as_json: bool, keep: int | None = None
) -> list[Saved]:
    """Generate, show progress, print the result."""
    progress = Progress()
    saved: list[Saved] = []
    report: QualityReport | None = None
    selection: Selection | None = None
    seconds: dict[str, float] = {}
    for event in studio.generate(request, reference=reference, keep=keep, previews=False):
        if isinstance(event, Loading):
            progress.show(event.message)
        elif isinstance(event, Queued):
            progress.show(f"Waiting: {event.position} before this one.")
        elif isinstance(event, Step):
            progress.show(
                f"Patch {event.first + 1} of {event.count}, step {event.step} of {event.steps}, {event.eta:.0f} s left"
            )
        elif isinstance(event, Notice):
            progress.say(event.message)
        elif isinstance(event, Saved):
            saved.append(event)
            if not as_json:
                progress.show("")
                print(f"{event.view}  seed {event.seed}", flush=True)
        elif isinstance(event, Selected):
            selection = event.selection
        elif isinstance(event, Judged):
            report = event.report
        elif isinstance(event, Done | Stopped):
            seconds = event.seconds
        elif isinstance(event, Failed):
            progress.show("")
            raise InputError(event.message) if event.user_error else SarGenError(event.message)
    progress.show("")
    if as_json:
        run = saved[0].view.parent if saved else None
        print_json(
            {
                "run": None if run is None else str(run),
                "checkpoint": request.checkpoint,
                "strategy": request.strategy or _own_strategy(studio, request),
                "prompt": request.prompt,
                "images": [
                    {
                        "file": str(s.view),
                        "amplitude_file": str(s.amplitude_file),
                        "seed": s.seed,
                        "sha256": s.sha256,
                    }
                    for s in saved
                ],
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "report": None if report is None else report.to_json(),
                **({} if selection is None else {"selection": selection.to_json()}),
            }
        )
        return saved
    if selection is not None:
        for place in selection.kept:
            print(f"kept {saved[place].view}  seed {saved[place].seed}  {selection.distances[place]:.2f} floors")
    if report is not None:
        _print_report(report)
    return saved


def _own_strategy(studio: Studio, request: GenerationRequest) -> str:
    catalogue = catalogue_module.catalogue(studio.settings)
    return catalogue_module.resolve(catalogue, request.checkpoint).strategy


def _print_report(report: QualityReport, of_sets: Mapping[str, Measure] | None = None) -> None:
    rows = [("measure", "value", "floor", "95 % of real", "ratio", "unit")]
    for name, measure in {**report.measures, **(of_sets or {})}.items():
        value, floor, ratio = (
            "-" if cell is None else f"{cell:.4g}" for cell in (measure.value, measure.floor, measure.ratio)
        )
        interval = "-" if measure.interval is None else "{:.3g} to {:.3g}".format(*measure.interval)
        rows.append((name, value, floor, interval, ratio, measure.unit))
    table(rows)
    print(report.verdict)
    for note in report.notes:
        print(note)


WORST_SHOWN = 10


def _print_patches(found: Comparison) -> None:
    """Print the patches that are farthest from real ones, each with its worst measure."""
    if len(found.rows) < 2:
        return
    rows = [("patch", "worst measure", "times the spread of single real patches")]
    rows += [
        (row.name, row.worst or "-", "-" if row.ratio is None else f"{row.ratio:.2f}")
        for row in found.rows[:WORST_SHOWN]
    ]
    table(rows)
    if len(found.rows) > WORST_SHOWN:
        print(f"{len(found.rows) - WORST_SHOWN} more patches are nearer to real ones (--csv or --json lists all).")


def _spec_json(spec: catalogue_module.CheckpointSpec) -> dict[str, Any]:
    return dataclasses.asdict(spec)


def _run_json(record: RunRecord) -> dict[str, Any]:
    data = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    data["request"] = record.request.to_json()
    data["images"] = [dataclasses.asdict(image) for image in record.images]
    return data
