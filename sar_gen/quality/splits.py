"""Random splits of real patches by ground: some in the role of the generated ones, against all of other ground.

Patches of one group share ground, so that a floor must never compare ground with itself. At most half of the groups
are drawn from, so that there is other ground to compare with; of one group nothing can be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def group_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return one number a patch, the same for patches of one group."""
    return np.unique(np.array(groups), return_inverse=True)[1]


def spread_rows(groups: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw at most ``count`` rows: one of every group before a second of any."""
    order = rng.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, sizes)
    return order[np.lexsort((rng.random(len(order)), rank))[:count]]


def random_splits(
    groups: NDArray[np.int64],
    count: int,
    draws: int,
    rng: np.random.Generator,
    eligible: NDArray[np.int64] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Draw ``count`` rows, as far as possible each of its own ground, with all rows of other ground.

    Where ``count`` rows need more ground than half of the groups, several come from one; where there are not enough
    rows, fewer are drawn.

    Args:
        groups: ``(n,)`` of ``group_numbers``.
        count: rows of a draw.
        draws: how many.
        rng: of the draws.
        eligible: rows that may be drawn (some of each group); ``None`` for all.
    """
    names = np.unique(groups)
    if len(names) < 2:
        return
    pool = np.arange(len(groups)) if eligible is None else eligible
    for _ in range(draws):
        chosen = np.isin(groups, rng.choice(names, min(count, len(names) // 2), replace=False))
        rows = pool[chosen[pool]]
        yield rows[spread_rows(groups[rows], count, rng)], np.flatnonzero(~chosen)


def split_weights(
    splits: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return splits of ``count`` rows as weights, ``(splits, count)`` each: 1 for the rows of a side, 0 for others."""
    pairs = list(splits)
    sides = np.zeros((2, len(pairs), count))
    for place, pair in enumerate(pairs):
        for side, rows in zip(sides, pair, strict=True):
            side[place, rows] = 1
    return sides[0], sides[1]
