"""What the reference panel needs, kept at hand so that choosing another patch or reference redraws at once.

A patch's statistics (histogram, GLCM, ENL) cost some 15 ms and never change: they are computed once for each file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sar_gen import references
from sar_gen.amplitude import view
from sar_gen.patches import Patch
from sar_gen.quality.report import QualityReport
from sar_gen.quality.statistics import PatchStatistics
from sar_gen.runs import RunImage, RunRecord
from sar_gen.settings import Settings
from sar_gen.studio import load_amplitude

Remap = Literal["linear", "db", "density", "gamma"]
Axis = Literal["linear", "log", "db"]


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
    """Return the patches that are judged: the selected one, or all of the run."""
    if scope == "all" or not record.images:
        return record.images
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
    generated: NDArray[np.float32] | None, real: NDArray[np.float32] | None, remap: Remap
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Return both patches under one remap, with one mean, so that they are shown alike."""
    first = real if real is not None else generated
    mean = None if first is None else float(first.mean())
    return (
        None if generated is None else view(generated, remap, mean),
        None if real is None else view(real, remap, mean),
    )


def figures(
    images: tuple[RunImage, ...], reference: str, axis: Axis, dark: bool, settings: Settings
) -> tuple[bytes, bytes]:
    """Return the histogram and texture figures as PNG."""
    from sar_gen import plots

    reference_set = references.load_reference(reference, settings)
    real = reference_set.statistics
    files = tuple(image.amplitude_file for image in images)

    def histogram() -> bytes:
        figure = plots.histogram_figure(
            statistics_of_all(images), real, axis=axis, labels=("generated", "real"), dark=dark
        )
        return plots.figure_png(figure, 200)

    def texture() -> bytes:
        report = _report(files, reference_set)
        return plots.figure_png(plots.texture_figure(statistics_of_all(images), real, report=report, dark=dark), 200)

    return (
        _kept(("histogram", files, axis, dark), real, histogram),
        _kept(("texture", files, dark), real, texture),
    )


def prepare() -> None:
    """Import matplotlib, scikit-image and scipy, and draw one small figure: some 2 s that nobody should wait for."""
    from sar_gen import plots
    from sar_gen.quality.statistics import patch_statistics

    noise = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)
    statistics = patch_statistics(noise)
    plots.figure_png(plots.histogram_figure(statistics, statistics), 50)
    plots.figure_png(plots.texture_figure(statistics, statistics), 50)


def report_document(report: QualityReport, record: RunRecord, images: tuple[RunImage, ...]) -> dict[str, Any]:
    """Return what "export" saves: the report, and which files of which run it judges."""
    judged = [{"file": i.amplitude_file.name, "seed": i.seed, "sha256": i.sha256} for i in images]
    request = {key: value for key, value in dataclasses.asdict(record.request).items() if key != "guide"}
    return {**report.to_json(), "run": record.id, "images": judged, "request": request}
