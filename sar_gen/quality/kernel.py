"""Two sets of patches as clouds of points: their kernel distance, the unbiased squared maximum mean discrepancy.

MMD² (Gretton et al. 2012, JMLR 13, 723-773) with a Gaussian kernel, whose bandwidth is the median distance between
real patches of different ground (section 8). Real patches that share ground resemble each other: every piece of
ground weighs the same, however many patches show it, and pairs of one ground are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-3
"""Of the largest variance, added to every variance before whitening."""


def squared_distances(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return squared Euclidean distances of all pairs of rows, ``(n, m)``; of unit rows twice the cosine distance."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None]
    distances: NDArray[np.float64] = np.maximum(squares - 2 * first @ second.T, 0)
    return distances


def gaussian_kernel(first: NDArray[Any], second: NDArray[Any], bandwidth: float) -> NDArray[np.float64]:
    """Return ``exp(-|x - y|² / (2 bandwidth²))`` of all pairs of rows, ``(n, m)``."""
    kernel: NDArray[np.float64] = np.exp(squared_distances(first, second) / (-2 * bandwidth**2))
    return kernel


def kernel_distance(
    first: NDArray[Any],
    second: NDArray[Any],
    bandwidth: float,
    first_groups: NDArray[Any] | None = None,
    second_groups: NDArray[Any] | None = None,
) -> float:
    """Return the unbiased MMD² of two sets, which may be negative; NaN where a set has no two patches to compare.

    Args:
        first: ``(n, d)``.
        second: ``(m, d)``.
        bandwidth: of the Gaussian kernel.
        first_groups: every group weighs the same, and pairs within one are left out: the groups are the independent
            draws that make the estimate unbiased. ``None`` makes every row a group of its own.
        second_groups: the same of the second set.
    """
    within, weights = [], []
    for rows, groups in ((first, first_groups), (second, second_groups)):
        groups = np.arange(len(rows)) if groups is None else groups
        weight = group_weights(groups)
        pairs = weight[:, None] * weight[None] * apart(groups)
        if not pairs.any():
            return float("nan")
        within.append(float((gaussian_kernel(rows, rows, bandwidth) * pairs).sum() / pairs.sum()))
        weights.append(weight)
    return sum(within) - 2 * float(weights[0] @ gaussian_kernel(first, second, bandwidth) @ weights[1])


def median_distance(features: NDArray[Any], groups: NDArray[Any]) -> float:
    """Return the median Euclidean distance between rows of different groups; 0 where there are none."""
    pairs = np.triu(apart(groups))
    return float(np.sqrt(np.median(squared_distances(features, features)[pairs]))) if pairs.any() else 0.0


def distances_of_splits(
    kernels: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    groups: tuple[NDArray[Any], NDArray[Any]],
    weights: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return ``kernel_distance`` of many pairs of sets at once, ``(splits,)``; NaN where a set has no pair.

    Args:
        kernels: of all rows that first sets are drawn from ``(n, n)``, of these with those of second sets ``(n, m)``,
            and of the latter ``(m, m)``.
        groups: ``(n,)`` and ``(m,)``.
        weights: ``(splits, n)`` and ``(splits, m)``: 1 for the rows of a set, 0 for others.
    """
    within, sides = [], []
    for kernel, of_rows, rows in zip(kernels[::2], groups, weights, strict=True):
        members = np.unique(of_rows)[:, None] == of_rows[None]
        counts = rows @ members.T
        # Every group of a set weighs the same, and within it every row.
        side = np.divide(rows, counts @ members, out=np.zeros(rows.shape), where=rows > 0)
        side /= np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)
        pairs = apart(of_rows).astype(np.float64)
        total, size = (((side @ matrix) * side).sum(axis=1) for matrix in (kernel * pairs, pairs))
        within.append(np.divide(total, size, out=np.full(len(size), np.nan), where=size > 1e-12))
        sides.append(side)
    distances: NDArray[np.float64] = within[0] + within[1] - 2 * ((sides[0] @ kernels[1]) * sides[1]).sum(axis=1)
    return distances


@dataclass(frozen=True)
class Whitening:
    """Brings features to where all directions vary alike: ``mean`` is ``(d,)``, ``matrix`` is ``(d, d)``."""

    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]

    def __call__(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return whitened features ``(n, d)``, brought to unit length."""
        rows = (features.astype(np.float64) - self.mean) @ self.matrix
        unit: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return unit


def whitening(features: NDArray[Any], ridge: float = RIDGE) -> Whitening:
    """Return the whitening by the covariance of ``features``, to which ``ridge`` x its largest variance is added."""
    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    variances, directions = np.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    if variances[-1] <= 1e-12:  # one patch, or copies of one
        return Whitening(np.zeros_like(mean), np.eye(len(mean)))
    return Whitening(mean, directions / np.sqrt(np.maximum(variances, 0) + ridge * variances[-1]))


def apart(groups: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pairs of rows are of different groups, ``(n, n)``."""
    pairs: NDArray[np.bool_] = groups[:, None] != groups[None]
    return pairs


def group_weights(groups: NDArray[Any]) -> NDArray[np.float64]:
    """Return weights ``(n,)`` that sum to 1, the same for every group and within it for every row."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = 1 / (len(sizes) * sizes[index])
    return weights
