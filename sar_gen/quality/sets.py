"""Two sets of patches as clouds of points in SAR-CLIP's features: how far apart, how diverse, and whether copied.

Pure functions on unit features, float32 ``(n, d)``, one row a patch (``sar_gen.features`` makes them):

- **kernel distance**: the unbiased squared maximum mean discrepancy (MMD², Gretton et al. 2012, JMLR 13, 723-773) with
  a Gaussian kernel, in the style of CMMD (Jayasumana et al. 2024, arXiv 2401.09603). CMMD's own bandwidth, 10, sees
  little more than the means of unit features, which are at most 2 apart; here it is the median distance between real
  patches of different ground (Gretton et al., section 8). This is not FID: nothing is taken to be normal, and few
  patches do not bias it.
- **density and coverage** (Naeem et al. 2020, arXiv 2002.09797): of the balls around real patches that reach to their
  k-th nearest real one, how many hold a generated patch (fidelity), and what share holds any (diversity).
- **memorisation**: the nearest training patch of every generated one, beside how near real patches come that the
  generator was not trained on. These are cosine distances of whitened features: as they are, features say above all
  what kind of ground a patch shows, which all patches of that kind share; whitened by the covariance of the training
  patches, what tells one patch from another weighs as much.

Every measure stands beside its floor: what as many real patches score in the role of the generated ones, drawn by
ground as in ``quality.report``. Real patches that share ground resemble each other: every piece of ground weighs the
same, however many patches show it, and pairs of one ground are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.quality.kernel import (
    apart,
    distances_of_splits,
    kernel_distance,
    median_distance,
    squared_distances,
    whitening,
)
from sar_gen.quality.report import Measure
from sar_gen.quality.splits import group_numbers, random_splits, split_weights, spread_rows

NEIGHBOURS = 3
"""k of density and coverage."""
RELIABLE = 8
"""With fewer generated patches the measures of the set say little."""
MOST_PATCHES = 2000
"""Of a larger set as many are drawn, by ground: the distances of all pairs are kept in memory."""
MOST_MATCHED = 128
"""Density and coverage take as many real patches as there are generated ones, at most so many at a time."""
BALLS = 4
"""Times that they are drawn and averaged, for each split."""
MIN_HELD_OUT = 50
"""With fewer real patches that were held out, training patches of other ground stand in for them."""
RARE = 0.01
"""Share of real patches that come nearer than the limit under which a generated patch is called a likely copy."""
SURE = 0.01
"""More likely copies than chance gives this seldom are called copies."""
NEAR, NEAR_SURE = 0.1, 0.001
"""The same one step weaker: what one prompt copies may lie just above the limit, but all of it. A patch counts as near
among the nearest tenth of the real ones; the chance is smaller, since some ground is nearer to its like than other."""
DOMINANT = 0.25
"""A reference with a larger share of its patches on one piece of ground is said to have it."""
SHOWN_PAIRS = 16
BLIND = (
    "Copies: exact and noisy ones, and those that an autoencoder gives back, are found; those shifted by some pixels "
    "or blurred are mostly missed."
)
_ROWS = 4096


@dataclass(frozen=True)
class TrainingFeatures:
    """Real patches that a generator was trained on.

    Attributes:
        title: whose they are.
        features: ``(n, d)`` unit features.
        names: of the patches.
        groups: of the patches; one name is one piece of ground.
        held_out: ``(m, d)`` unit features of real patches that it was not trained on; ``m`` may be 0.
        note: what is missing among them; empty where nothing is.
    """

    title: str
    features: NDArray[np.float32]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    held_out: NDArray[np.float32]
    note: str = ""

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.names) == len(self.groups):
            raise ValueError(f"{len(self.features)} features, {len(self.names)} names, {len(self.groups)} groups")


@dataclass(frozen=True)
class NearestPair:
    """A generated patch and the training patch that is nearest to it.

    Attributes:
        index: of the generated patch.
        name: of the generated patch.
        training: name of the training patch.
        distance: 1 - cosine of their whitened features; 0 is the same, about 1 is unrelated.
        nearer_real: share of the real patches, which were not trained on, that come as near to a training patch;
            ``None`` where there are too few of them.
        copy: whether it is nearer than all but ``RARE`` of them.
    """

    index: int
    name: str
    training: str
    distance: float
    nearer_real: float | None
    copy: bool

    def to_json(self) -> dict[str, Any]:
        """Return the pair as strict JSON data."""
        return {
            "patch": self.name,
            "training_patch": self.training,
            "distance": self.distance,
            "nearer_real": self.nearer_real,
            "copy": self.copy,
        }


@dataclass(frozen=True)
class Memorisation:
    """How near generated patches come to what the generator was trained on.

    Attributes:
        training: title of the training patches.
        training_count: how many they are.
        real_count: real patches that the distances are read by.
        real_kind: what these are, in words.
        limit: distance that all but ``RARE`` of the real patches keep; ``None`` where there are too few of them.
        share: share of the generated patches that come nearer than the limit.
        chance: probability that as many would, or more, if they came no nearer than real ones do (binomial).
        near_share: share that comes as near as the nearest tenth of the real ones.
        near_chance: its probability.
        median: median distance of the generated patches.
        real_median: median distance of the real ones.
        pairs: every generated patch with its nearest training patch, the nearest first.
        words: one or two sentences.
        note: what limits it.
    """

    training: str
    training_count: int
    real_count: int
    real_kind: str
    limit: float | None
    share: float | None
    chance: float | None
    near_share: float | None
    near_chance: float | None
    median: float
    real_median: float | None
    pairs: tuple[NearestPair, ...]
    words: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as strict JSON data; of the pairs the ``SHOWN_PAIRS`` nearest and every likely copy."""
        names = ("training", "training_count", "real_count", "real_kind", "limit", "share", "chance", "near_share")
        data = {
            name: getattr(self, name) for name in (*names, "near_chance", "median", "real_median", "words", "note")
        }
        shown = [pair.to_json() for place, pair in enumerate(self.pairs) if place < SHOWN_PAIRS or pair.copy]
        return data | {"pairs": shown}


@dataclass(frozen=True)
class SetReport:
    """What ``compare_sets`` found.

    Attributes:
        features: name of the model whose features were compared.
        reference: name of the real set.
        generated_count: number of generated patches.
        reference_count: number of real ones.
        measures: ``kernel_distance``, ``density`` and ``coverage``. For the last two the value is the difference from
            what as many real patches reach, and both are given (``generated``, ``reference``).
        memorisation: ``None`` where no training patches were given.
        words: what it comes to.
        notes: what a reader must know of it.
    """

    features: str
    reference: str
    generated_count: int
    reference_count: int
    measures: dict[str, Measure]
    memorisation: Memorisation | None
    words: str
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The words of the sets and of the copies."""
        return self.words if self.memorisation is None else f"{self.words} {self.memorisation.words}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as strict JSON data (no NaN, no infinity)."""
        return {
            "features": self.features,
            "reference": self.reference,
            "generated_count": self.generated_count,
            "reference_count": self.reference_count,
            "measures": {name: measure.to_json() for name, measure in self.measures.items()},
            "memorisation": None if self.memorisation is None else self.memorisation.to_json(),
            "words": self.words,
            "notes": list(self.notes),
        }


def compare_sets(
    generated: NDArray[Any],
    reference: NDArray[Any],
    reference_groups: Sequence[str],
    *,
    reference_name: str = "the reference",
    features: str = "SAR-CLIP",
    names: Sequence[str] | None = None,
    training: TrainingFeatures | None = None,
    draws: int = 200,
    seed: int = 0,
) -> SetReport:
    """Compare generated patches with real ones as sets.

    Args:
        generated: ``(n, d)`` unit features of the generated patches.
        reference: ``(m, d)`` unit features of real ones.
        reference_groups: ground of each real patch; patches of one group share ground.
        reference_name: name of the real set, for the words.
        features: name of the model that the features are of.
        names: of the generated patches.
        training: what the generator was trained on, to look for copies.
        draws: number of real-versus-real comparisons for the floors.
        seed: of the draws.

    Raises:
        InputError: one side has no patch, or the features are not of one model.
    """
    if not len(generated) or not len(reference):
        raise InputError("Two sets are compared with at least one patch in each; give some.")
    if len({array.shape[1] for array in (generated, reference, *([training.features] if training else []))}) > 1:
        raise InputError("The features are of different models; compute them with the same one.")
    rng = np.random.default_rng(seed)
    made = generated[spread_rows(np.arange(len(generated)), MOST_PATCHES, rng)]
    kept = np.sort(spread_rows(group_numbers(reference_groups), MOST_PATCHES, rng))
    real, groups = reference[kept], group_numbers([reference_groups[row] for row in kept])
    count = len(made)
    squares, to_made = squared_distances(real, real), np.sqrt(squared_distances(real, made))
    bandwidth = median_distance(real, groups) or 1.0
    # No patch is its own neighbour, nor is one of the same ground.
    to_real, between = np.sqrt(squares), np.sqrt(np.where(apart(groups), squares, np.inf))
    matched = max(RELIABLE, min(count, MOST_MATCHED))
    splits = list(random_splits(groups, count, draws, rng))
    floors: dict[str, list[float]] = {"density": [], "coverage": []}
    reached: dict[str, list[float]] = {"density": [], "coverage": []}
    for sample, others in splits:
        found = []
        for _ in range(BALLS):
            # As many real patches as generated ones, so that the balls are as fine as what they are to hold.
            centres = others[spread_rows(groups[others], matched, rng)]
            balls = between[np.ix_(centres, centres)]
            some_real, some_made = rng.permutation(sample)[:matched], rng.permutation(count)[:matched]
            of_real = density_and_coverage(balls, to_real[np.ix_(centres, some_real)])
            found.append((*of_real, *density_and_coverage(balls, to_made[np.ix_(centres, some_made)])))
        means = np.mean(found, axis=0).tolist()
        for result, name, value in zip((floors, floors, reached, reached), [*reached, *reached], means, strict=True):
            result[name].append(value)
    drawn = max((len(sample) for sample, _ in splits), default=0)
    kernel = np.exp(squares / (-2 * bandwidth**2))
    between_real = distances_of_splits((kernel,) * 3, (groups,) * 2, split_weights(splits, len(groups)))
    measures = {"kernel_distance": _distance(kernel_distance(made, real, bandwidth, None, groups), between_real)}
    measures |= {name: _descriptor(np.array(reached[name]), np.array(floors[name])) for name in reached}
    return SetReport(
        features=features,
        reference=reference_name,
        generated_count=len(generated),
        reference_count=len(reference),
        measures=measures,
        memorisation=None if training is None else memorisation(generated, training, names, seed),
        words=_words(measures, len(generated), reference_name, features),
        notes=(
            *_notes(len(generated), len(reference), groups, drawn, draws, bandwidth),
            *([] if training is None else [BLIND]),
        ),
    )


def memorisation(
    generated: NDArray[Any], training: TrainingFeatures, names: Sequence[str] | None = None, seed: int = 0
) -> Memorisation:
    """Look for copies of training patches.

    Args:
        generated: ``(n, d)`` unit features.
        training: what the generator was trained on.
        names: of the generated patches.
        seed: of the choice of training patches that stand in for held-out ones, where there are many.

    Raises:
        InputError: there is no generated or no training patch.
    """
    if not len(generated) or not len(training.names):
        raise InputError("Copies are looked for with at least one generated and one training patch; give some.")
    names = [f"patch {index + 1}" for index in range(len(generated))] if names is None else names
    # Of 40 training patches sent through the autoencoder of sar-mini and back all are found; unwhitened, 25.
    white = whitening(training.features)
    known = white(training.features)
    rows, distances = nearest(white(generated), known)
    if len(training.held_out) >= MIN_HELD_OUT:
        real = nearest(white(training.held_out), known)[1]
        kind = f"{len(real)} real patches that it was not trained on"
    else:
        groups = group_numbers(training.groups)
        chosen = spread_rows(groups, MOST_PATCHES, np.random.default_rng(seed))
        real = nearest(known[chosen], known, groups[chosen], groups)[1]
        real = real[np.isfinite(real)]
        kind = f"{len(real)} of the training patches, each beside those of other ground"
    real = np.sort(real)
    limit = float(np.quantile(real, RARE)) if len(real) >= MIN_HELD_OUT else None
    nearer = np.searchsorted(real, distances, side="right") / max(len(real), 1)
    pairs = tuple(
        NearestPair(
            index,
            names[index],
            training.names[rows[index]],
            float(distances[index]),
            None if limit is None else float(nearer[index]),
            limit is not None and bool(distances[index] < limit),
        )
        for index in np.argsort(distances, kind="stable").tolist()
    )
    copies = near = 0
    chance = near_chance = None
    if limit is not None:
        copies = sum(pair.copy for pair in pairs)
        near = int((distances < np.quantile(real, NEAR)).sum())
        chance, near_chance = _at_least(copies, len(pairs), RARE), _at_least(near, len(pairs), NEAR)
    return Memorisation(
        training=training.title,
        training_count=len(training.names),
        real_count=len(real),
        real_kind=kind,
        limit=limit,
        share=None if limit is None else copies / len(pairs),
        chance=chance,
        near_share=None if limit is None else near / len(pairs),
        near_chance=near_chance,
        median=float(np.median(distances)),
        real_median=float(np.median(real)) if len(real) else None,
        pairs=pairs,
        words=_copy_words(pairs, real, (copies, chance), (near, near_chance), training.title, kind),
        note=training.note,
    )


# Measures ----------------------------------------------------------------------------------------------------------


def density_and_coverage(
    real: NDArray[Any], to_generated: NDArray[Any], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020, section 3).

    Args:
        real: ``(m, m)`` distances between real patches, infinite for those that are not to be neighbours (each and
            itself, and those of one ground).
        to_generated: ``(m, n)`` distances of real patches to generated ones.
        neighbours: k.

    Returns:
        NaN for both where a real patch has fewer than k neighbours.
    """
    if len(real) < neighbours:
        return float("nan"), float("nan")
    radius = np.partition(real, neighbours - 1, axis=1)[:, neighbours - 1]
    if not np.isfinite(radius).all():
        return float("nan"), float("nan")
    inside = to_generated <= radius[:, None]
    return float(inside.sum() / (neighbours * inside.shape[1])), float(inside.any(axis=1).mean())


def nearest(
    rows: NDArray[np.float64],
    training: NDArray[np.float64],
    groups: NDArray[Any] | None = None,
    training_groups: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the training row that is nearest to each row, and their cosine distance.

    Args:
        rows: ``(n, d)`` unit rows.
        training: ``(t, d)`` unit rows.
        groups: of ``rows``; with ``training_groups``, training rows of the same group are passed over.
        training_groups: of ``training``.

    Returns:
        ``(n,)`` each; the distance is infinite where every training row is of the same group.
    """
    found, distances = [np.empty(0, np.int64)], [np.empty(0)]
    for first in range(0, len(rows), _ROWS):
        cosines = rows[first : first + _ROWS] @ training.T
        if groups is not None and training_groups is not None:
            cosines[groups[first : first + _ROWS, None] == training_groups[None]] = -np.inf
        found.append(cosines.argmax(axis=1))
        distances.append(np.maximum(1 - cosines.max(axis=1), 0))
    return np.concatenate(found), np.concatenate(distances)


# Draws -------------------------------------------------------------------------------------------------------------


def _at_least(hits: int, trials: int, rate: float) -> float:
    """Return the probability of so many hits or more (binomial)."""
    from scipy.special import bdtrc

    return float(bdtrc(hits - 1, trials, rate)) if hits else 1.0


def _distance(value: float, drawn: NDArray[np.float64]) -> Measure:
    """Return the kernel distance; it has no ratio, since real sets are about 0 apart and may be less."""
    drawn = drawn[np.isfinite(drawn)]
    found = float(value) if np.isfinite(value) else None
    if not len(drawn):
        return Measure(found, None, "MMD²", None, None)
    floor, floor_95, low, high = (float(np.percentile(drawn, q)) for q in (50, 95, 2.5, 97.5))
    return Measure(found, floor, "MMD²", None, floor_95, interval=(low, high))


def _descriptor(made: NDArray[np.float64], real: NDArray[np.float64]) -> Measure:
    """Return how far generated patches are from what real ones reach, over the draws in which both are defined."""
    known = np.isfinite(made) & np.isfinite(real)
    if not known.any():
        return Measure(None, None, "", None, None)
    generated, reference = float(made[known].mean()), float(np.median(real[known]))
    differences = np.abs(real[known] - reference)
    value = abs(generated - reference)
    floor, floor_95, low, high = (float(np.percentile(differences, q)) for q in (50, 95, 2.5, 97.5))
    return Measure(
        value,
        floor,
        "",
        value / floor if floor > 0 else None,
        floor_95,
        generated=generated,
        reference=reference,
        relative=(generated - reference) / reference if reference else None,
        interval=(low, high),
    )


# Words -------------------------------------------------------------------------------------------------------------


def _words(measures: dict[str, Measure], count: int, name: str, features: str) -> str:
    distance, density, coverage = (measures[key] for key in ("kernel_distance", "density", "coverage"))
    if distance.within is None:
        why = "one patch has no spread" if count < 2 else f"{name} has too little separate ground"
        return f"The sets cannot be judged in the features of {features}: {why}."
    figures = f"MMD² {distance.value:.3f}, real sets up to {distance.floor_95:.3f}"
    near = "no farther from" if distance.within else "farther from"
    text = f"In the features of {features}, the {count} patches are {near} {name} than as many real ones ({figures})."
    if density.within is None or density.relative is None or coverage.relative is None:
        return text
    against = f"{density.generated:.2f} against {density.reference:.2f}"
    if density.within:
        text += f" They lie among the real patches as real ones do (density {against});"
    elif density.relative < 0:
        text += f" Many lie where no real patch does (density {against});"
    else:
        text += f" They crowd where real patches are frequent (density {against});"
    against = f"coverage {coverage.generated:.2f} against {coverage.reference:.2f}"
    if coverage.within:
        return f"{text} their variety is that of real ones ({against})."
    return f"{text} they show {'less' if coverage.relative < 0 else 'more'} of the variety than real ones ({against})."


def _copy_words(
    pairs: Sequence[NearestPair],
    real: NDArray[np.float64],
    copied: tuple[int, float | None],
    near: tuple[int, float | None],
    title: str,
    kind: str,
) -> str:
    first, count = pairs[0], len(pairs)
    if copied[1] is None or near[1] is None:
        return (
            f"There are too few real patches to say how near is too near to the training patches of {title}; the "
            f"nearest is {first.name}, to {first.training} (distance {first.distance:.3f})."
        )
    of = f"training patches of {title}"
    comes = "come" if copied[0] > 1 else "comes"
    share = f"{copied[0] or 'none'} of {count} {comes} nearer to one than {1 - RARE:.0%} of {kind}"
    look = f"{first.name} and {first.training} (distance {first.distance:.3f}; real ones from {real[0]:.3f} on)"
    if copied[1] <= SURE:
        return f"Likely copies of {of}: {share}. Look first at {look}."
    if near[1] <= NEAR_SURE:
        return (
            f"Signs of copies of {of}: {near[0]} of {count} come as near as only {NEAR:.0%} of {kind}; they are "
            f"copies in part, or ground that looks alike everywhere. Look first at {look}."
        )
    if first.distance < real[0] / 2:
        return f"A likely copy of one of the {of}: {share}, and that one by far. Look at {look}."
    if copied[0]:
        return f"No clear sign of copies of {of}: {share}, as chance may give. Look at {look}."
    return f"No sign of copies of {of}: {share}."


def _notes(
    count: int, real: int, groups: NDArray[np.int64], drawn: int, draws: int, bandwidth: float
) -> tuple[str, ...]:
    ground = len(np.unique(groups))
    notes = []
    if count < RELIABLE:
        notes.append(
            f"Only {count} generated patch{'es' if count > 1 else ''}: a set is judged reliably from {RELIABLE} on; "
            "the floors are as wide as that."
        )
    if drawn:
        notes.append(
            f"Floors: {drawn} real patches at a time against those of all other ground, {draws} draws from {real} "
            f"patches on {ground} pieces of ground."
        )
        if drawn < min(count, MOST_PATCHES):
            notes.append(f"{count} patches are judged by draws of {drawn}, the most that this reference allows.")
        elif count > ground // 2:
            notes.append("Some of the patches that are drawn share ground, so the floors are a little high.")
    else:
        notes.append("No floors: the reference needs patches on at least two separate pieces of ground.")
    largest = float(np.bincount(groups).max() / len(groups))
    if ground > 1 and largest > DOMINANT:
        notes.append(
            f"Every piece of ground weighs the same, and {largest:.0%} of the real patches are of a single one: what "
            "resembles that one so often is farther from the set, though its patches are real."
        )
    if real > MOST_PATCHES:
        notes.append(f"Of {real} real patches, {MOST_PATCHES} were drawn by ground.")
    notes.append(
        f"Kernel distance: unbiased MMD², Gaussian kernel of bandwidth {bandwidth:.3f} (median distance of real "
        f"patches of different ground); it may be negative. Density and coverage: k = {NEIGHBOURS}, beside as many "
        "real patches."
    )
    return tuple(notes)
