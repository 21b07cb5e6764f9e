"""What the reference panel needs, kept at hand so that choosing another patch or reference redraws at once.

A patch's statistics cost some 20 ms and never change: they are computed once for each file. Of the figures only the
one in front is drawn (some 0.1 s each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sar_gen import references
from sar_gen.amplitude import view
from sar_gen.errors import InputError
from sar_gen.patches import Patch
from sar_gen.quality.report import Measure, QualityReport, Spread
from sar_gen.quality.statistics import PatchStatistics
from sar_gen.runs import RunImage, RunRecord
from sar_gen.settings import Settings
from sar_gen.studio import Studio, load_amplitude

if TYPE_CHECKING:
    from sar_gen.quality.laws import LawFit

Remap = Literal["linear", "db", "density", "gamma"]
Axis = Literal["linear", "log", "db"]
Chart = Literal["amplitude", "texture", "spectrum", "speckle"]
CHARTS: tuple[Chart, ...] = get_args(Chart)
QUICK_LAWS = ("rayleigh", "nakagami", "lognormal", "weibull", "g0")
"""Laws that are fitted while one waits. K takes half a second for its Bessel functions; the Compare tab has it."""
FITS_SHOWN = 2
OUTLINED_SIDE = 320
_PROMPT_NOTE = "Prompt: "  # how Studio.judge begins the note on the prompt


@dataclass(frozen=True)
class RealPatch:
    """The real patch that is shown; ``stands_in`` says that it belongs to another set than the one chosen."""

    patch: Patch
    index: int
    count: int
    set_title: str
    stands_in: bool


@lru_cache(maxsize=256)
def amplitude_of(path: Path) -> NDArray[np.float32]:
    """Read a patch that a run wrote; run files never change, so it is read once."""
    amplitude = load_amplitude(path)
    amplitude.setflags(write=False)
    return amplitude


@lru_cache(maxsize=1024)
def statistics_of(path: Path) -> PatchStatistics:
    """Return the statistics of one patch that a run wrote."""
    from sar_gen.quality.statistics import patch_statistics

    return patch_statistics([amplitude_of(path)])


def statistics_of_all(images: Sequence[RunImage]) -> PatchStatistics:
    """Return the statistics of several patches, one row each."""
    from sar_gen.quality.statistics import concat

    return concat([statistics_of(image.amplitude_file) for image in images])


def chosen(record: RunRecord, index: int, scope: str) -> tuple[RunImage, ...]:
    """Return the patches that are judged: the selected one, or all of the run (of a best-of run those it kept)."""
    if scope == "all" or not record.images:
        kept = record.selection["kept"] if record.selection else None
        return tuple(image for image in record.images if kept is None or image.index in kept) or record.images
    return (record.images[min(index, len(record.images) - 1)],)


def report_on(images: tuple[RunImage, ...], reference: str, settings: Settings) -> QualityReport:
    """Compare patches with a reference set; the same question is answered from memory.

    Raises:
        InputError: there is no such reference set.
    """
    return _report(tuple(image.amplitude_file for image in images), references.load_reference(reference, settings))


# What was computed for some files and a reference set. The set is known by identity (load_reference returns the same
# object while its files are the same) and kept beside the result, so that its identity is not given to another.
_KEPT: dict[tuple[Any, ...], tuple[PatchStatistics, Any]] = {}


def _kept(key: tuple[Any, ...], reference: PatchStatistics, make: Callable[[], Any]) -> Any:
    key = (*key, id(reference))
    if key not in _KEPT:
        if len(_KEPT) >= 512:
            _KEPT.clear()
        _KEPT[key] = (reference, make())
    return _KEPT[key][1]


def _report(files: tuple[Path, ...], reference: references.ReferenceSet) -> QualityReport:
    from sar_gen.quality.report import compare
    from sar_gen.quality.statistics import concat

    def make() -> QualityReport:
        statistics = concat([statistics_of(path) for path in files])
        return compare(statistics, reference.statistics, reference_name=reference.name)

    report: QualityReport = _kept(("report", files), reference.statistics, make)
    return report


def real_patch(name: str, index: int, settings: Settings) -> RealPatch | None:
    """Return patch ``index`` (it wraps) of a reference set.

    Where only the statistics of a set ship, a patch of the packaged Sentinel-1 patches in the same polarisation stands
    in, and says so.
    """
    reference = references.load_reference(name, settings)
    stands_in = not reference.patches
    if stands_in:
        substitute = "ben-vh" if reference.polarisation == "VH" else "ben-vv"
        known = {info.name: info for info in references.list_references(settings)}
        if substitute not in known or not known[substitute].has_patches:
            return None
        reference = references.load_reference(substitute, settings)
        if not reference.patches:
            return None
    index %= len(reference.patches)
    return RealPatch(reference.patches[index], index, len(reference.patches), reference.title, stands_in)


def views_of(
    generated: NDArray[np.float32] | None, real: NDArray[np.float32] | None, remap: Remap, windows: bool = False
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Return both patches under one remap, with one mean, so that they are shown alike.

    With ``windows`` the homogeneous ground that looks and speckle correlation are taken from is outlined.
    """
    first = real if real is not None else generated
    mean = None if first is None else float(first.mean())
    shown = _outlined if windows else view
    return (
        None if generated is None else shown(generated, remap, mean),
        None if real is None else shown(real, remap, mean),
    )


def _outlined(amplitude: NDArray[np.float32], remap: str, mean: float | None) -> NDArray[np.uint8]:
    from sar_gen.plots import windows_view
    from sar_gen.quality.speckle import equivalent_looks

    enlarge = max(1, round(OUTLINED_SIDE / max(amplitude.shape)))  # a line as thin on small patches
    return windows_view(amplitude, equivalent_looks(amplitude), remap, mean, enlarge)


def fits_of(images: tuple[RunImage, ...]) -> tuple[LawFit, ...]:
    """Return the ``QUICK_LAWS`` fitted to the amplitudes of some patches, best BIC first; none for constant ones."""
    return _fits(tuple(image.amplitude_file for image in images))


@lru_cache(maxsize=512)
def _fits(files: tuple[Path, ...]) -> tuple[LawFit, ...]:
    from sar_gen.quality.laws import fit_histogram

    histograms = np.concatenate([statistics_of(path).histograms for path in files])
    try:
        return fit_histogram(histograms, QUICK_LAWS)
    except InputError:
        return ()


def chart(
    name: Chart,
    images: tuple[RunImage, ...],
    reference: str,
    settings: Settings,
    *,
    axis: Axis = "linear",
    by_direction: bool = False,
    dark: bool = False,
    only_kept: bool = False,
) -> bytes | None:
    """Return a figure as PNG; the same figure is drawn once.

    Args:
        name: which one.
        images: the patches that are judged.
        reference: name of the real set.
        settings: where that is.
        axis: of the amplitudes.
        by_direction: the texture by direction and distance instead of its means.
        dark: for a dark page.
        only_kept: return ``None`` where it has not been drawn yet.

    Raises:
        InputError: there is nothing to draw, as of constant patches; or there is no such reference set.
    """
    real = references.load_reference(reference, settings)
    files = tuple(image.amplitude_file for image in images)
    kind = {"amplitude": axis, "texture": by_direction}.get(name)
    key = (name, kind, files, dark)
    if only_kept and (*key, id(real.statistics)) not in _KEPT:
        return None
    png: bytes = _kept(key, real.statistics, lambda: _drawn(name, images, real, axis, by_direction, dark))
    return png


def _drawn(
    name: Chart,
    images: tuple[RunImage, ...],
    reference: references.ReferenceSet,
    axis: Axis,
    by_direction: bool,
    dark: bool,
) -> bytes:
    from sar_gen import plots

    made, real = statistics_of_all(images), reference.statistics
    if name == "amplitude":
        figure = plots.histogram_figure(made, real, axis=axis, fits=fits_of(images)[:FITS_SHOWN], dark=dark)
    elif name == "texture" and by_direction:
        figure = plots.direction_figure(made, real, dark=dark)
    elif name == "texture":
        report = _report(tuple(image.amplitude_file for image in images), reference)
        figure = plots.texture_figure(made, real, report=report, dark=dark)
    elif name == "spectrum":
        figure = plots.spectrum_figure(made, real, dark=dark)
    else:
        figure = plots.speckle_figure(made, real, dark=dark)
    return plots.figure_png(figure, 200)


# Prompt agreement: known from the run's own report, or scored when asked for, which takes a second and more.


@dataclass(frozen=True)
class PromptScore:
    """How far patches show what the prompt says: the measure, and one sentence on how to read it."""

    measure: Measure
    text: str


_SCORES: dict[tuple[tuple[Path, ...], str], PromptScore] = {}


def prompt_score(record: RunRecord, images: tuple[RunImage, ...]) -> PromptScore | None:
    """Return what is known of the patches' agreement with the prompt, without computing anything."""
    known = _SCORES.get(_score_key(record, images))
    report = record.report
    if known is not None or not report or images != chosen(record, 0, "all"):
        return known  # a run's own report is of all its patches together, or of those that it kept
    measure = report.get("measures", {}).get("semantic")
    if not measure:
        return None
    text = next((note for note in report.get("notes", ()) if note.startswith(_PROMPT_NOTE)), "")
    return PromptScore(_measure_from(measure), text.removeprefix(_PROMPT_NOTE))


def score_prompt(studio: Studio, record: RunRecord, images: tuple[RunImage, ...], reference: str) -> PromptScore:
    """Measure the patches' agreement with the prompt by SAR-CLIP (0.3 to 0.6 s a patch), and keep it.

    Raises:
        InputError: SAR-CLIP is not there, or the patches are too small for it.
    """
    report = studio.judge(
        [amplitude_of(image.amplitude_file) for image in images],
        references.load_reference(reference, studio.settings),
        prompt=record.request.prompt,
        polarisation=record.checkpoint.get("polarisation"),
    )
    text = next(note for note in report.notes if note.startswith(_PROMPT_NOTE)).removeprefix(_PROMPT_NOTE)
    score = PromptScore(report.measures["semantic"], text)
    if len(_SCORES) >= 512:
        _SCORES.clear()
    _SCORES[_score_key(record, images)] = score
    return score


def with_prompt(report: QualityReport, score: PromptScore | None) -> QualityReport:
    """Return the report with the measure ``semantic`` where the prompt was scored."""
    if score is None:
        return report
    notes = (*report.notes, _PROMPT_NOTE + score.text) if score.text else report.notes
    return replace(report, measures={**report.measures, "semantic": score.measure}, notes=notes)


def _score_key(record: RunRecord, images: tuple[RunImage, ...]) -> tuple[tuple[Path, ...], str]:
    return tuple(image.amplitude_file for image in images), record.request.prompt


def _measure_from(data: dict[str, Any]) -> Measure:
    """Return the measure that ``Measure.to_json`` wrote, of this version or of one before."""
    spread, interval = data.get("spread"), data.get("floor_interval")
    return Measure(
        data["value"],
        data["floor"],
        data["unit"],
        data["ratio"],
        data["floor_95"],
        generated=data.get("generated"),
        reference=data.get("reference"),
        relative=data.get("relative"),
        spread=Spread(**spread) if spread else None,
        interval=(interval[0], interval[1]) if interval else None,
    )


def prepare() -> None:
    """Import matplotlib, scikit-image and scipy, and draw small figures: some 2 s that nobody should wait for."""
    from sar_gen import plots
    from sar_gen.quality.laws import fit_histogram
    from sar_gen.quality.statistics import patch_statistics

    noise = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)
    statistics = patch_statistics(noise)
    plots.figure_png(
        plots.histogram_figure(statistics, statistics, fits=fit_histogram(statistics.histograms, QUICK_LAWS)), 50
    )
    plots.figure_png(plots.texture_figure(statistics, statistics), 50)
    plots.figure_png(plots.direction_figure(statistics, statistics), 50)  # its arrows are of another font


def report_document(report: QualityReport, record: RunRecord, images: tuple[RunImage, ...]) -> dict[str, Any]:
    """Return what "export" saves: the report, and which files of which run it judges."""
    judged = [{"file": i.amplitude_file.name, "seed": i.seed, "sha256": i.sha256} for i in images]
    return {**report.to_json(), "run": record.id, "images": judged, "request": record.request.to_json()}
