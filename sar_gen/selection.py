"""Best of N: the patches of a run that lie nearest to a reference set, and what choosing them does to diversity.

A patch's distance is the mean of ``nearness.MAIN_MEASURES`` over their floors. Choosing by it makes every set look
more like the middle of the reference than it is, and may make it less diverse. So the diversity of the chosen patches
is given beside that of as many patches drawn at random from the same N: the mean distance of all pairs (1 - cosine of
their SAR-CLIP features). Its expectation for a random draw is that of all N patches, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.quality.nearness import MAIN_MEASURES, floor_ratios, nearness
from sar_gen.quality.report import finite
from sar_gen.quality.statistics import PatchStatistics

DRAWS = 1000
"""Random choices of K patches that the diversity of the chosen ones is read by."""

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Diversity:
    """Mean distance of all pairs of patches, 1 - cosine of their features; ``None`` for fewer than two patches.

    Attributes:
        features: name of the model whose features they are.
        everything: of all N patches.
        kept: of the K chosen ones.
        random_low: 5th percentile over random choices of K.
        random_high: 95th percentile.
    """

    features: str
    everything: float | None
    kept: float | None
    random_low: float | None
    random_high: float | None

    @property
    def text(self) -> str:
        """One sentence on it."""
        if self.kept is None or not self.everything or self.random_low is None or self.random_high is None:
            return "One patch alone has no diversity."
        share = self.kept / self.everything
        low, high = self.random_low / self.everything, self.random_high / self.everything
        if self.kept < self.random_low:
            found = "lower than chance: choosing cost diversity"
        elif self.kept > self.random_high:
            found = "higher than chance"
        else:
            found = "within chance"
        return (
            f"Diversity of the kept patches is {share:.2f} of that of all, {found} (as many drawn at random have "
            f"{low:.2f} to {high:.2f})."
        )


@dataclass(frozen=True)
class Selection:
    """Which patches of a run were kept.

    Attributes:
        reference: name of the set that they were chosen by.
        measures: whose ratios a distance is the mean of.
        distances: of every patch, in floors; ``None`` where it cannot be measured.
        ratios: of every patch, by measure.
        kept: places of the chosen patches in the run, the nearest first.
        diversity: of all and of the chosen ones.
    """

    reference: str
    measures: tuple[str, ...]
    distances: tuple[float | None, ...]
    ratios: dict[str, tuple[float | None, ...]]
    kept: tuple[int, ...]
    diversity: Diversity

    @property
    def rejected(self) -> tuple[int, ...]:
        """Places of the others, in the order of the run."""
        return tuple(place for place in range(len(self.distances)) if place not in self.kept)

    @property
    def text(self) -> str:
        """What it comes to, for people."""
        known = [distance for distance in self.distances if distance is not None]
        kept = [distance for place in self.kept if (distance := self.distances[place]) is not None]
        if not known or not kept:
            return f"No patch could be measured against {self.reference}; the first ones are kept."
        return (
            f"Kept the {len(self.kept)} of {len(self.distances)} patches nearest to {self.reference}: mean distance "
            f"{np.mean(kept):.2f} floors, of all {np.mean(known):.2f}. {self.diversity.text} They were chosen by the "
            "measures of the report, which therefore flatters them."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as strict JSON data."""
        return {**asdict(self), "rejected": list(self.rejected), "text": self.text}


def select(
    statistics: PatchStatistics,
    features: Callable[[], Features],
    reference: PatchStatistics,
    keep: int,
    *,
    reference_name: str,
    features_name: str,
    measures: Sequence[str] = MAIN_MEASURES,
) -> Selection:
    """Choose the ``keep`` patches nearest to a reference; patches that cannot be measured come last.

    Args:
        statistics: of the N patches.
        features: returns ``(N, d)`` unit features of them; asked for only where there is a choice and a pair.
        reference: of the real patches.
        keep: how many, 1 to N.
        reference_name: for the record.
        features_name: for the record.
        measures: whose ratios the distance is the mean of.

    Raises:
        InputError: ``keep`` is out of range, a measure is unknown, or the reference has no floors.
    """
    count = len(statistics)
    if not 1 <= keep <= count:
        raise InputError(f"{keep} of {count} patches cannot be kept; choose 1 to {count}.")
    ratios = floor_ratios(statistics, reference, measures)
    distances = nearness(ratios)
    order = np.argsort(np.where(np.isfinite(distances), distances, np.inf), kind="stable")
    kept = tuple(int(place) for place in order[:keep])
    if keep > 1:
        diversity = diversity_of(features(), kept, features_name)
    else:
        diversity = Diversity(features_name, None, None, None, None)
    return Selection(
        reference_name,
        tuple(measures),
        _plain(distances),
        {name: _plain(row) for name, row in ratios.items()},
        kept,
        diversity,
    )


def diversity_of(features: Features, kept: Sequence[int], name: str, draws: int = DRAWS, seed: int = 0) -> Diversity:
    """Return how diverse the patches ``kept`` are, beside random choices of as many.

    Args:
        features: ``(n, d)`` unit rows of all patches, n at least 2.
        kept: places of two or more.
        name: of the features' model.
        draws: random choices.
        seed: of the draws.
    """
    apart = 1 - features.astype(np.float64) @ features.T.astype(np.float64)
    numbers = np.random.default_rng(seed)
    size = len(kept)
    random = [_mean_of_pairs(apart, numbers.permutation(len(features))[:size]) for _ in range(draws)]
    low, high = np.percentile(random, [5, 95])
    everything = _mean_of_pairs(apart, np.arange(len(features)))
    return Diversity(name, everything, _mean_of_pairs(apart, np.asarray(kept)), float(low), float(high))


def _mean_of_pairs(apart: NDArray[np.float64], places: NDArray[Any]) -> float:
    """Return the mean of a symmetric matrix over the pairs of different places."""
    block = apart[np.ix_(places, places)]
    size = len(places)
    return float((block.sum() - np.trace(block)) / (size * (size - 1)))


def _plain(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(finite(value) for value in values)
