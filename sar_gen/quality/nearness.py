"""How near single patches are to a reference set: the mean of their measures, each in floors.

The floor of a measure is the median distance that single real patches keep to the real patches of other ground
(``quality.report``), so 1 is what a real patch of the set does, in each measure and in their mean. A patch may be
nearer than that: a patch in the middle of the set is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.quality.report import floors, patch_distances
from sar_gen.quality.statistics import PatchStatistics

NEARNESS = "nearness"
"""Name of the mean of the main measures, each in floors, where it stands among measures."""
MAIN_MEASURES = (
    "wasserstein1",
    "glcm_contrast",
    "glcm_homogeneity",
    "glcm_energy",
    "glcm_correlation",
    "enl",
    "speckle_correlation",
    "spectrum",
)
"""One or two of each family of measures: amplitude, texture, speckle, spectrum."""


def floor_ratios(
    statistics: PatchStatistics, reference: PatchStatistics, measures: Sequence[str] = MAIN_MEASURES
) -> dict[str, NDArray[np.float64]]:
    """Return the measures of each single patch against the reference, in floors: ``(n,)`` each, NaN where undefined.

    Args:
        statistics: of the ``n`` patches.
        reference: of real patches in the same amplitude encoding and polarisation.
        measures: names of ``quality.report`` measures that need no prompt.

    Raises:
        InputError: a measure is unknown, or the reference has no floor for it (all its patches show one ground).
    """
    limits = floors(reference, 1)
    if not limits:
        raise InputError("The reference shows one piece of ground only, so it has no floors; choose another one.")
    values = patch_distances(statistics, reference)
    unknown = [name for name in measures if name not in values]
    if unknown:
        raise InputError(f"The measure {unknown[0]!r} is unknown; choose from {', '.join(values)}.")
    ratios = {}
    for name in measures:
        floor, _ = limits.get(name, (None, None))
        if not floor:
            raise InputError(f"The reference has no floor for {name!r}; leave that measure out.")
        ratios[name] = values[name] / floor
    return ratios


def nearness(ratios: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of each patch's ratios, ``(n,)``: about 1 for a real patch, larger is farther.

    A measure that is undefined for a patch (no homogeneous ground) is left out of its mean; a patch without any
    measure is NaN.
    """
    rows = np.stack([np.asarray(row, dtype=np.float64) for row in ratios.values()])
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    total = np.where(known, rows, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
