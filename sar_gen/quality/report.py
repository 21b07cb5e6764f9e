"""How close generated patches are to real ones: every measure beside its real-versus-real floor, and a verdict.

The floor of a measure is what real patches of the same set score in the role of the generated ones. For n generated
patches, n real patches are drawn, as far as possible one from each group (ground), and compared with the real patches
of all other groups; this is done ``draws`` times. ``floor`` is the median, ``floor_95`` the 95th percentile and
``interval`` the middle 95 %. A set of n patches is thus judged by what n real patches do, and a single patch by what
single real patches do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.quality.distribution import (
    BINS,
    COARSE_BINS,
    KL_EPSILON,
    js_divergence,
    kl_divergence,
    ks_statistic,
    wasserstein1,
)
from sar_gen.quality.speckle import WINDOW
from sar_gen.quality.spectrum import DISTANCE_RANGE, decibel_distance, spectrum_distance
from sar_gen.quality.splits import group_numbers, random_splits, split_weights
from sar_gen.quality.statistics import PatchStatistics
from sar_gen.quality.texture import GLCM_NAMES, LEVELS

FEW_GROUPS = 5
"""A floor from fewer groups than this is called rough."""

_UNITS = {
    "wasserstein1": "amplitude",
    "js_divergence": "bits",
    "kl_divergence": "nats",
    "ks_statistic": "",
    "glcm_contrast": "levels²",
    "glcm_dissimilarity": "levels",
    "glcm_entropy": "nats",
    "enl": "looks",
    "spectrum": "dB",
    "spectrum_direction": "dB",
    "block_edges": "dB",
}
_GLCM_MEASURES = tuple(f"glcm_{name}" for name in GLCM_NAMES)
DESCRIPTORS = (*_GLCM_MEASURES, "enl", "speckle_correlation")
"""Measures that are a mean over patches on either side; the others are distances of pooled histograms and spectra."""


@dataclass(frozen=True)
class Spread:
    """Spread of a descriptor over the single patches of the reference."""

    std: float
    p05: float
    p95: float


@dataclass(frozen=True)
class Measure:
    """One measure of generated against real patches.

    Attributes:
        value: the distance; for ``DESCRIPTORS`` the absolute difference of the means over patches. ``None`` where it
            is undefined (no homogeneous ground, constant patches).
        floor: median of the same distance between real patches; ``None`` where it cannot be had.
        unit: unit of value and floors; empty for plain numbers.
        ratio: value / floor.
        floor_95: 95th percentile of the distance between real patches: within it, real and generated cannot be told
            apart by this measure.
        generated: mean over the generated patches, for descriptors.
        reference: mean over the real patches, for descriptors.
        relative: (generated - reference) / reference, signed, for descriptors.
        spread: spread over the single real patches, for descriptors.
        interval: 2.5th and 97.5th percentile of the distance between real patches.
    """

    value: float | None
    floor: float | None
    unit: str
    ratio: float | None
    floor_95: float | None
    generated: float | None = None
    reference: float | None = None
    relative: float | None = None
    spread: Spread | None = None
    interval: tuple[float, float] | None = None

    @property
    def within(self) -> bool | None:
        """Whether real patches do the same (value up to ``floor_95``); ``None`` where it cannot be judged."""
        if self.value is None or self.floor_95 is None:
            return None
        return self.value <= self.floor_95

    def to_json(self) -> dict[str, Any]:
        """Return the measure as strict JSON data (no NaN, no infinity)."""
        data: dict[str, Any] = {"value": self.value, "floor": self.floor, "unit": self.unit, "ratio": self.ratio}
        data |= {"floor_95": self.floor_95, "within": self.within}
        data["floor_interval"] = None if self.interval is None else list(self.interval)
        if self.reference is not None or self.generated is not None:
            data |= {"generated": self.generated, "reference": self.reference, "relative": self.relative}
        if self.spread is not None:
            data["spread"] = {"std": self.spread.std, "p05": self.spread.p05, "p95": self.spread.p95}
        return data


@dataclass(frozen=True)
class QualityReport:
    """What ``compare`` found.

    Attributes:
        reference: name of the reference set.
        generated_count: number of generated patches.
        reference_count: number of real patches.
        amplitude: ``generated`` and ``reference``, each with mean, std, p05, p50, p95 and clipped (share of pixels in
            the last bin) of the pooled amplitude, to the resolution of the histograms.
        measures: by the names of the command line (``wasserstein1``, …).
        verdict: in words.
        notes: what a reader must know of bins, floors and patches left out.
    """

    reference: str
    generated_count: int
    reference_count: int
    amplitude: dict[str, dict[str, float]]
    measures: dict[str, Measure]
    verdict: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as strict JSON data."""
        return {
            "reference": self.reference,
            "generated_count": self.generated_count,
            "reference_count": self.reference_count,
            "amplitude": self.amplitude,
            "measures": {name: measure.to_json() for name, measure in self.measures.items()},
            "verdict": self.verdict,
            "notes": list(self.notes),
        }


def compare(
    generated: PatchStatistics,
    reference: PatchStatistics,
    *,
    reference_name: str,
    draws: int = 200,
    seed: int = 0,
) -> QualityReport:
    """Compare generated patches with a set of real ones.

    Both sides are pooled: one histogram of all pixels, and means over patches of each descriptor; undefined
    descriptors (NaN) are left out of the means.

    Args:
        generated: statistics of the generated patches.
        reference: statistics of real patches in the same amplitude encoding and polarisation.
        reference_name: name of the set, for the verdict.
        draws: number of real-versus-real comparisons for the floors.
        seed: seed of the draws.

    Raises:
        InputError: one side has no patch.
    """
    if not len(generated):
        raise InputError("There is no generated patch to compare; give at least one.")
    if not len(reference):
        raise InputError(f"The reference {reference_name!r} has no patches; choose another one.")
    real = pooled_sets(reference)
    made = pooled_sets(generated)
    values = set_distances(made, real)
    floors, drawn = _floors(reference, len(generated), draws, seed)
    measures = {name: _measure(name, values[name], floors.get(name)) for name in values}
    descriptors = zip(DESCRIPTORS, made.means, real.means, descriptors_of(reference).T, strict=True)
    for name, mean_made, mean_real, of_patches in descriptors:
        measures[name] = _descriptor(measures[name], mean_made, mean_real, of_patches)
    amplitude = {"generated": _summary(made.histogram), "reference": _summary(real.histogram)}
    return QualityReport(
        reference=reference_name,
        generated_count=len(generated),
        reference_count=len(reference),
        amplitude=amplitude,
        measures=measures,
        verdict=_verdict(generated, reference, reference_name, measures, amplitude),
        notes=_notes(generated, reference, drawn, draws),
    )


def floors(
    reference: PatchStatistics, count: int, *, draws: int = 200, seed: int = 0
) -> dict[str, tuple[float | None, float | None]]:
    """Return (floor, floor_95) of every measure for sets of ``count`` patches; empty where there is one group only."""
    found, _ = _floors(reference, count, draws, seed)
    return {name: (finite(np.median(row)), finite(np.percentile(row, 95))) for name, row in found.items()}


def patch_distances(generated: PatchStatistics, reference: PatchStatistics) -> dict[str, NDArray[np.float64]]:
    """Return every measure of each single patch against all real patches, ``(n,)`` each; NaN where it is undefined."""
    single = Pooled(
        generated.histograms.astype(np.float64),
        descriptors_of(generated),
        generated.radial.astype(np.float64),
        _by_direction(generated),
        generated.blocks.astype(np.float64),
    )
    return {name: np.asarray(row) for name, row in set_distances(single, pooled_sets(reference)).items()}


@dataclass(frozen=True)
class Pooled:
    """One set, or a row for each of several sets.

    Pooled counts (…, BINS), descriptor means (…, 9), mean power (…, RADIAL_BINS) and (…, ANGULAR_BINS), and mean
    block edges (…).
    """

    histogram: NDArray[np.float64]
    means: NDArray[np.float64]
    radial: NDArray[np.float64]
    angular: NDArray[np.float64]
    blocks: NDArray[np.float64]


def descriptors_of(statistics: PatchStatistics) -> NDArray[np.float64]:
    """Return ``(n, 9)``: the ``DESCRIPTORS`` of each patch; the speckle correlation is that at lag 1, mean of both."""
    neighbours = statistics.speckle[:, :, 0].mean(axis=1, dtype=np.float64)
    return np.column_stack([statistics.glcm, statistics.enl, neighbours])


def pooled_sets(statistics: PatchStatistics, weights: NDArray[np.float64] | None = None) -> Pooled:
    """Pool the patches whose weight is 1; ``weights`` is ``(n,)`` or ``(sets, n)``."""
    if weights is None:
        weights = np.ones(len(statistics))
    return Pooled(
        weights @ statistics.histograms.astype(np.float64),
        _means(weights, descriptors_of(statistics)),
        _means(weights, statistics.radial),
        _means(weights, _by_direction(statistics)),
        _means(weights, statistics.blocks[:, None])[..., 0],
    )


def _by_direction(statistics: PatchStatistics) -> NDArray[np.float64]:
    """Return each patch's angular power over its own mean: which way it lies, not how much there is."""
    return statistics.angular / statistics.angular.mean(axis=1, dtype=np.float64, keepdims=True)


def _means(weights: NDArray[np.float64], rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the weighted means of rows, NaN left out."""
    known = np.isfinite(rows)
    count = weights @ known
    total = weights @ np.where(known, rows, 0.0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def set_distances(made: Pooled, real: Pooled) -> dict[str, NDArray[Any]]:
    """Return every measure of one set against another, or of rows of sets."""
    distances = {
        "wasserstein1": wasserstein1(made.histogram, real.histogram),
        "js_divergence": js_divergence(made.histogram, real.histogram),
        "kl_divergence": kl_divergence(real.histogram, made.histogram),
        "ks_statistic": ks_statistic(made.histogram, real.histogram),
    }
    differences = np.abs(made.means - real.means)
    distances |= {name: differences[..., i] for i, name in enumerate(DESCRIPTORS)}
    distances["spectrum"] = spectrum_distance(made.radial, real.radial)
    # Only what is more than in the real patches: these may be from JPEG themselves, and it is no fault to lack it.
    distances["block_edges"] = np.maximum(made.blocks - real.blocks, 0)
    distances["spectrum_direction"] = decibel_distance(made.angular, real.angular)
    return distances


@lru_cache(maxsize=32)
def _floors(
    reference: PatchStatistics, count: int, draws: int, seed: int
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Return the distances between real patches, ``(draws,)`` for each measure, and how many patches were drawn.

    Draws in which a descriptor is undefined are left out. Nothing is returned for a set of one group. The answer for a
    set and a count is kept: a report, its table of patches and the next report of as many patches ask for it again.
    """
    groups = group_numbers(reference.groups)
    sample, others = split_weights(random_splits(groups, count, draws, np.random.default_rng(seed)), len(groups))
    if not len(sample):
        return {}, 0
    distances = set_distances(pooled_sets(reference, sample), pooled_sets(reference, others))
    finite = {name: row[np.isfinite(row)] for name, row in distances.items()}
    return {name: row for name, row in finite.items() if len(row)}, int(sample.sum(axis=1).max())


def finite(value: Any) -> float | None:
    """Return a number as JSON may hold it: ``None`` for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def _measure(name: str, value: Any, floor_draws: NDArray[np.float64] | None) -> Measure:
    value = finite(value)
    if floor_draws is None:
        return Measure(value, None, _UNITS.get(name, ""), None, None)
    floor, floor_95 = float(np.median(floor_draws)), float(np.percentile(floor_draws, 95))
    ratio = value / floor if value is not None and floor > 0 else None
    low, high = np.percentile(floor_draws, [2.5, 97.5])
    return Measure(value, floor, _UNITS.get(name, ""), ratio, floor_95, interval=(float(low), float(high)))


def _descriptor(measure: Measure, made: float, real: float, of_patches: NDArray[np.float64]) -> Measure:
    known = of_patches[np.isfinite(of_patches)]
    spread = None
    if len(known) > 1:
        p05, p95 = np.percentile(known, [5, 95])
        spread = Spread(float(known.std(ddof=1)), float(p05), float(p95))
    relative = finite((made - real) / abs(real)) if real else None
    return Measure(
        measure.value, measure.floor, measure.unit, measure.ratio, measure.floor_95,
        generated=finite(made), reference=finite(real), relative=relative, spread=spread, interval=measure.interval,
    )  # fmt: skip


def _summary(histogram: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, std and percentiles of a pooled histogram, from the centres of its bins."""
    centres = (np.arange(BINS) + 0.5) / BINS
    shares = histogram / histogram.sum()
    mean = float(shares @ centres)
    p05, p50, p95 = (float(centres[np.searchsorted(np.cumsum(shares), q)]) for q in (0.05, 0.5, 0.95))
    std = float(shares @ (centres - mean) ** 2) ** 0.5
    return {"mean": mean, "std": std, "p05": p05, "p50": p50, "p95": p95, "clipped": float(shares[-1])}


# The verdict -------------------------------------------------------------------------------------------------------


def _verdict(
    generated: PatchStatistics,
    reference: PatchStatistics,
    name: str,
    measures: dict[str, Measure],
    amplitude: dict[str, dict[str, float]],
) -> str:
    if _constant(generated).all():
        level = amplitude["generated"]["mean"]
        patches = "The generated patch is" if len(generated) == 1 else "The generated patches are"
        return f"{patches} constant (amplitude {level:.2f}): there is no speckle and nothing to judge."
    groups = len(set(reference.groups))
    w1 = measures["wasserstein1"]
    if w1.floor is None:
        contrast = measures["glcm_contrast"]
        ground = "a single patch" if len(reference) == 1 else f"{len(reference)} patches of the same ground"
        return (
            f"Cannot be judged: {name} holds {ground}, so there is no real-versus-real spread to compare with "
            f"(W1 {_number(w1.value)}; GLCM contrast {_against(contrast)})."
        )
    verdict = f"{_amplitude_words(name, measures, amplitude)}; {_texture_words(measures, amplitude)}."
    verdict += _speckle_words(measures["enl"]) + _structure_words(measures)
    if groups < FEW_GROUPS:
        verdict += f" Rough: the spread rests on only {groups} separate pieces of ground."
    return verdict


def _amplitude_words(name: str, measures: dict[str, Measure], amplitude: dict[str, dict[str, float]]) -> str:
    w1 = measures["wasserstein1"]
    assert w1.value is not None
    figures = f"W1 {_number(w1.value)}, floor {_number(w1.floor)}"
    if w1.within:
        if w1.floor is not None and w1.value > w1.floor:
            figures += f", spread up to {_number(w1.floor_95)}"
        shape = [
            word for word, key in (("JS", "js_divergence"), ("KS", "ks_statistic")) if measures[key].within is False
        ]
        figures += f"; but the shape differs, {' and '.join(shape)} beyond it" if shape else ""
        return f"Amplitudes match {name} within the real-versus-real spread ({figures})"
    times = "far beyond the floor" if w1.ratio is None else f"{w1.ratio:.1f} times the floor"
    made, real = amplitude["generated"], amplitude["reference"]
    # W1 is never less than the difference of the means; where that is most of it, brightness says it all.
    shift = made["mean"] - real["mean"]
    if abs(shift) >= 0.5 * w1.value:
        how = f"too {'bright' if shift > 0 else 'dark'}, mean {made['mean']:.2f} against {real['mean']:.2f}"
    else:
        wide = "wide" if made["std"] > real["std"] else "narrow"
        how = f"too {wide} a distribution, std {made['std']:.2f} against {real['std']:.2f}"
    return f"Amplitudes differ from {name} by {times} of real against real ({figures}; {how})"


def _texture_words(measures: dict[str, Measure], amplitude: dict[str, dict[str, float]]) -> str:
    contrast = measures["glcm_contrast"]
    out = [name for name in _GLCM_MEASURES if measures[name].within is False]
    figures = f"GLCM contrast {_against(contrast)}"
    if contrast.spread is not None:
        figures += f", real spread ±{_number(contrast.spread.std)}"
    if not out:
        return f"texture is within the real spread ({figures})"
    if "glcm_contrast" in out and contrast.relative is not None:
        how = "smooth" if contrast.relative < 0 else "rough"
        also = [_plain(name) for name in out if name != "glcm_contrast"]
        figures += f"; also beyond it: {', '.join(also)}" if also else ""
        if measures["wasserstein1"].within is False:
            # Speckle multiplies, so that contrast goes with the square of brightness.
            scale = (amplitude["generated"]["mean"] / amplitude["reference"]["mean"]) ** 2 - 1
            if abs(contrast.relative - scale) < 0.25 * abs(contrast.relative):
                figures += "; the wrong brightness alone explains it"
        return f"texture is {abs(contrast.relative) * 100:.0f} % too {how} ({figures})"
    worst = max(out, key=lambda name: measures[name].ratio or 0)
    also = [_plain(name) for name in out if name != worst]
    more = f"; also beyond it: {', '.join(also)}" if also else ""
    return (
        f"texture is off in GLCM {_plain(worst)} ({_against(measures[worst])}{more}), "
        f"its contrast is within the real spread ({_against(contrast)})"
    )


def _speckle_words(enl: Measure) -> str:
    if enl.within is None:
        return ""
    if enl.within:
        return f" Speckle strength is within the real spread (ENL {_against(enl)})."
    assert enl.generated is not None and enl.reference is not None
    return f" Speckle is too {'weak' if enl.generated > enl.reference else 'strong'} (ENL {_against(enl)})."


def _structure_words(measures: dict[str, Measure]) -> str:
    """Say what is beyond the real spread in speckle correlation and power spectra; silence where nothing is."""
    words = ""
    correlation = measures["speckle_correlation"]
    if correlation.within is False and correlation.generated is not None and correlation.reference is not None:
        much = "much" if correlation.generated > correlation.reference else "little"
        words += f" In speckle, neighbours depend too {much} on each other (correlation {_against(correlation)})."
    blocks = measures["block_edges"]
    if blocks.within is False:
        words += f" A grid of 8 x 8 pixels shows, {_number(blocks.value)} dB more than in real patches (JPEG?)."
    for name, what in (("spectrum", "The power spectrum"), ("spectrum_direction", "The direction of structure")):
        measure = measures[name]
        if measure.within is False:
            words += f" {what} differs by {_number(measure.value)} dB (spread up to {_number(measure.floor_95)} dB)."
    return words


def _plain(name: str) -> str:
    return name.removeprefix("glcm_").replace("asm", "ASM")


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def _against(measure: Measure) -> str:
    return f"{_number(measure.generated)} against {_number(measure.reference)}"


def _constant(statistics: PatchStatistics) -> NDArray[np.bool_]:
    """Return which patches lie in one histogram bin."""
    return np.count_nonzero(statistics.histograms, axis=1) == 1


def _notes(generated: PatchStatistics, reference: PatchStatistics, drawn: int, draws: int) -> tuple[str, ...]:
    count = len(generated)
    groups = len(set(reference.groups))
    notes = []
    if drawn:
        role = "single real patches" if drawn == 1 else f"{drawn} real patches at a time"
        notes.append(
            f"Floors: {role} against the real patches of all other ground, {draws} draws from {len(reference)} "
            f"patches on {groups} pieces of ground; the median, and the 95th percentile as the spread."
        )
        if drawn < count:
            notes.append(
                f"{count} generated patches are judged by draws of {drawn}, the most that this reference allows: "
                "the floors are a little high."
            )
        elif count > groups // 2 and count > 1:
            notes.append(
                f"{count} patches need more ground than half of the {groups} pieces: some drawn patches share ground, "
                "so the floors are a little high."
            )
    else:
        notes.append("No floor: the reference needs patches on at least two separate pieces of ground.")
    notes.append(
        f"Wasserstein-1 and KS on {BINS} bins over [0, 1] (W1 in amplitude, binning error under {1 / BINS:.3f}); JS "
        f"(bits) and KL(real || generated) (nats) on {COARSE_BINS} bins, KL with {KL_EPSILON:g} added to every share. "
        "No p-values: pixels of speckle are not independent."
    )
    notes.append(
        f"GLCM: {LEVELS} levels over [0, 1], distance 1, mean of four directions, symmetric. "
        f"ENL: intensity, mode over {WINDOW} x {WINDOW} windows. Speckle correlation: intensity of neighbours one "
        "pixel apart on homogeneous ground, mean of rows and columns."
    )
    shortest, longest = 1 / DISTANCE_RANGE[1], 1 / DISTANCE_RANGE[0]
    notes.append(
        f"Power spectra (of amplitude over the patch's mean): root mean square difference in dB, over structure of "
        f"{shortest:.0f} to {longest:.0f} pixels, and over directions. Block edges: steps on a grid of 8 x 8 pixels "
        "over the next strongest, counted where they are stronger than in the real patches."
    )
    flat = int(_constant(generated).sum())
    if flat:
        notes.append(f"{flat} of {count} generated patches are constant; they have no GLCM correlation and no ENL.")
    missing = int(np.isnan(generated.enl).sum()) - flat
    if missing > 0:
        notes.append(f"ENL: {missing} of {count} generated patches have no usable homogeneous ground.")
    return tuple(notes)
