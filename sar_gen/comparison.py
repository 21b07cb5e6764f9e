"""One comparison of patches with a reference set, whole: report, patch by patch, fitted laws, and what misleads.

The command line, the Compare tab and the HTML report are views of a ``Comparison``. No generator is needed: the
patches may come from anywhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.patches import Patch
from sar_gen.quality import comparability, laws
from sar_gen.quality.laws import LawFit
from sar_gen.quality.report import QualityReport, compare, finite, floors, patch_distances
from sar_gen.quality.statistics import PatchStatistics, patch_statistics
from sar_gen.references import ReferenceSet, check_comparable
from sar_gen.settings import Settings

if TYPE_CHECKING:
    from sar_gen.quality.semantic import SarClip
    from sar_gen.quality.sets import SetReport

SAY_EVERY = 16
"""Patches between two lines of progress: a third of a second."""


@dataclass(frozen=True)
class PatchRow:
    """One judged patch against the reference, beside what single real patches do.

    Attributes:
        index: of the patch in ``Comparison.patches``.
        name: of the patch.
        worst: the measure with the largest ratio; empty where none has one.
        ratio: that ratio.
        ratios: of every measure, value / the 95th percentile of single real patches; ``None`` where there is none.
        values: of every measure; ``None`` where it is undefined for this patch.
    """

    index: int
    name: str
    worst: str
    ratio: float | None
    ratios: dict[str, float | None]
    values: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """What is known of some patches beside a reference set.

    Attributes:
        report: of all patches together.
        patches: in the order given.
        statistics: of the patches, one row each.
        reference: the real set.
        rows: one a patch, the worst first.
        fits: laws fitted to the amplitudes of all patches, best BIC first; empty where none can be fitted.
        reference_fits: the same of the reference.
        warnings: where the comparison would mislead, one sentence each.
        sets: the two sets in SAR-CLIP's features, where it was asked for.
    """

    report: QualityReport
    patches: tuple[Patch, ...]
    statistics: PatchStatistics
    reference: ReferenceSet
    rows: tuple[PatchRow, ...]
    fits: tuple[LawFit, ...]
    reference_fits: tuple[LawFit, ...]
    warnings: tuple[str, ...]
    sets: SetReport | None = None


def compare_patches(
    patches: Sequence[Patch],
    reference: ReferenceSet,
    *,
    settings: Settings,
    prompt: str | None = None,
    features: bool = False,
    training: ReferenceSet | None = None,
    clip: SarClip | None = None,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare patches of any origin with a reference set.

    Args:
        patches: what is judged.
        reference: real SAR in the same encoding.
        settings: where SAR-CLIP is.
        prompt: what the patches should show; their agreement with it is measured by SAR-CLIP (0.3 s a patch and more).
        features: also compare the sets in SAR-CLIP's features: distance, diversity, memorisation (as slow).
        training: with ``features``, the patches to look for copies of; ``None`` takes what ships with sar-mini.
        clip: a CLIP that is loaded already; ``None`` loads the one that ships, where it is needed.
        say: is told what is being done; an exception that it raises ends the work.

    Raises:
        InputError: no patch, one that cannot be measured, or an encoding that cannot be reconciled with the reference.
    """
    if not patches:
        raise InputError("There is no patch to compare; give at least one.")
    say = say or (lambda _: None)
    warnings = []
    for encoding, polarisation in sorted({(p.encoding, p.polarisation) for p in patches}, key=str):
        warnings += check_comparable(reference, encoding, polarisation)
    warnings += _scale_warnings(patches, reference)
    statistics = _measured(patches, say)
    warnings += comparability.warnings(
        [patch.amplitude for patch in patches], statistics, reference.statistics, reference.name
    )
    say("Comparing with the reference")
    report = compare(statistics, reference.statistics, reference_name=reference.name)
    sets = None
    if prompt is not None or features:
        from sar_gen.quality.semantic import load_sarclip

        clip = clip or load_sarclip(None, settings)
        if prompt is not None:
            say("Scoring the prompt (SAR-CLIP)")
            amplitudes = [patch.amplitude for patch in patches]
            report = with_prompt(report, amplitudes, prompt, clip, patches[0].polarisation)
        if features:
            from sar_gen.features import set_report

            sets = set_report(patches, reference, settings, clip=clip, training=training, progress=say)
    return Comparison(
        report=report,
        patches=tuple(patches),
        statistics=statistics,
        reference=reference,
        rows=patch_rows(statistics, reference.statistics, [patch.name for patch in patches]),
        fits=pooled_fits(statistics),
        reference_fits=pooled_fits(reference.statistics),
        warnings=tuple(dict.fromkeys(warnings)),
        sets=sets,
    )


def with_prompt(
    report: QualityReport,
    amplitudes: Sequence[NDArray[np.float32]],
    prompt: str,
    clip: SarClip,
    polarisation: str | None,
) -> QualityReport:
    """Return the report with the measure ``semantic``: how far the patches show what the prompt says."""
    from sar_gen.quality.semantic import prompt_agreement

    found = prompt_agreement(amplitudes, prompt, clip, polarisation=polarisation)
    return replace(
        report,
        measures={**report.measures, "semantic": found.measure},
        notes=(*report.notes, f"Prompt: {found.text}", *found.notes),
    )


def patch_rows(statistics: PatchStatistics, reference: PatchStatistics, names: Sequence[str]) -> tuple[PatchRow, ...]:
    """Return one row a patch, the worst first; those without any ratio come last, in their order."""
    values = patch_distances(statistics, reference)
    limits = {name: floor_95 for name, (_, floor_95) in floors(reference, 1).items() if floor_95}
    rows = []
    for index, name in enumerate(names):
        of_patch = {measure: finite(found[index]) for measure, found in values.items()}
        ratios = {
            measure: None if value is None or measure not in limits else value / limits[measure]
            for measure, value in of_patch.items()
        }
        known = {measure: ratio for measure, ratio in ratios.items() if ratio is not None}
        worst = max(known, key=known.__getitem__, default="")
        rows.append(PatchRow(index, name, worst, known.get(worst), ratios, of_patch))
    return tuple(sorted(rows, key=lambda row: -1.0 if row.ratio is None else row.ratio, reverse=True))


def pooled_fits(statistics: PatchStatistics) -> tuple[LawFit, ...]:
    """Return the laws fitted to all amplitudes of a set, best BIC first; none where they cannot be (constant patches).

    K cannot tell its two shapes apart; the one nearer to the set's median ENL is called looks.
    """
    known = statistics.enl[np.isfinite(statistics.enl)]
    try:
        return laws.fit_histogram(statistics.histograms, looks_near=float(np.median(known)) if len(known) else None)
    except InputError:
        return ()


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as strict JSON data: the report's, and warnings, laws, patches (worst first) and sets."""
    return {
        **comparison.report.to_json(),
        "warnings": list(comparison.warnings),
        "laws": {
            "generated": [fit.to_json() for fit in comparison.fits],
            "reference": [fit.to_json() for fit in comparison.reference_fits],
        },
        "patches": [
            {"name": row.name, "worst": row.worst, "ratio": row.ratio, "values": row.values, "ratios": row.ratios}
            for row in comparison.rows
        ],
        "sets": None if comparison.sets is None else comparison.sets.to_json(),
    }


def to_csv(comparison: Comparison) -> str:
    """Return a table with one line a patch, the worst first: every measure, and its ratio to single real patches."""
    measures = list(comparison.rows[0].values)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["patch", "worst", "worst_ratio", *measures, *(f"{measure}_ratio" for measure in measures)])
    for row in comparison.rows:
        cells = [row.ratio, *(row.values[m] for m in measures), *(row.ratios[m] for m in measures)]
        writer.writerow([row.name, row.worst, *("" if cell is None else f"{cell:.6g}" for cell in cells)])
    return buffer.getvalue()


def _scale_warnings(patches: Sequence[Patch], reference: ReferenceSet) -> list[str]:
    """Say where the two sides were not divided by one number: brightness then cannot be compared."""
    peaks = {patch.scale.peak: patch.scale.source for patch in patches if patch.scale is not None}
    if reference.scale is None or not peaks:
        return []
    other = [source for peak, source in peaks.items() if not np.isclose(peak, reference.scale.peak, rtol=0.01)]
    if not other:
        return []
    return [
        f"The patches are scaled by {other[0]} and {reference.name} by {reference.scale.source}, so a difference in "
        "brightness may be one of scale; give both the same scale where their units are the same."
    ]


def _measured(patches: Sequence[Patch], say: Callable[[str], None]) -> PatchStatistics:
    def amplitudes() -> Any:
        for index, patch in enumerate(patches):
            if index % SAY_EVERY == 0:
                say(f"Measuring patch {index + 1} of {len(patches)}")
            yield patch.amplitude

    return patch_statistics(amplitudes())
