"""What makes a comparison mislead before a measure is read: traces of JPEG, enlargement, sizes, looks, clipping.

Encoding and polarisation are checked by ``references.check_comparable``. The rates below were measured on patches of
256 x 256 pixels: 160 VH and 458 VV patches of Sentinel-1, and independent Gamma speckle of 1 look. Those of JPEG are
in ``quality.blocks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.quality.blocks import BLOCK, JPEG_LIMIT, jpeg_traces, middle
from sar_gen.quality.statistics import PatchStatistics

TOP_BAND = 0.45
"""From this frequency to 0.5 cycles a pixel lies the finest detail."""
LOW_BAND = (0.05, 0.1)
"""Frequencies whose mean power the finest detail is compared with."""
MISSING_DB = -29.0
"""The top band is missing when its power is this far below that of the low band."""
DETAIL_DB = -20.0
"""Detail counts up to the frequency at which the power has fallen this far."""
LOOKED_AT = 64
"""Patches of a set that are searched for traces, evenly spaced."""
FEW_SHARE = 0.05
"""A smaller share of the patches than this with a trace is not worth a warning."""
FEW_PIXELS = 128 * 128
"""With fewer pixels in all, the looks are worse than 5 % and a histogram of speckle is rough."""
FEW_LEVELS = 32
"""Fewer grey levels than the co-occurrence matrix has leave gaps in it, whatever is pictured."""
LOOKS_FACTOR = 2.0
"""Median looks that differ by this factor: 0 to 5 % of single real patches against their own terrain, none of 4."""
SIZE_FACTOR = 1.5
"""Pixel counts that differ by this factor are different sizes."""
CLIPPED = 0.2
"""A share of clipped pixels that is large, if it is also twice the reference's."""


def upsampling_factor(amplitude: ArrayLike) -> float | None:
    """Return how many times larger (along a side) a patch is than its detail needs, or ``None`` where all is in order.

    Two signs. Nearest-neighbour enlargement repeats whole columns or rows: the factor follows from their share and is
    exact. Interpolation leaves no power at the highest frequencies: where the mean power between 0.45 and 0.5 cycles a
    pixel is 29 dB or more under that between 0.05 and 0.1, both along rows and along columns, the factor is 0.5 over
    the frequency at which the power has fallen by 20 dB. It is rough: 1.6 to 2.7 (median 2.0) for Sentinel-1 enlarged
    twice, 2.8 for four times, 1.4 for independent speckle enlarged twice, whose spectrum ends softly. A picture that
    was smoothed cannot be told from an enlarged one.

    Real Sentinel-1 at 10 m, itself sampled about twice as finely as it resolves, has -10 to -26 dB there (160 VH and
    458 VV patches and 12 of BigEarthNet, none flagged), independent speckle 0 dB. Enlarging the same patches twice by
    bilinear, bicubic or Lanczos interpolation gives -30 to -55 dB, also when saved as 8-bit pictures afterwards: all
    found; by zero padding of the spectrum -26 to -130 dB, 99 % found; 1.5 times bicubic, 80 % of VH and 29 % of VV.
    JPEG after enlargement fills the band with its own errors and hides it in half of the patches at quality 90.

    Args:
        amplitude: ``(height, width)`` in [0, 1]; at least 32 pixels a side.
    """
    values = middle(amplitude)
    if values.min() == values.max():
        return None
    repeated = max(_repeated(values), _repeated(values.T))
    if repeated >= 0.3:
        return round(1 / (1 - repeated), 1)
    spectra = [_relative_spectrum(values), _relative_spectrum(values.T)]
    if any(power[frequency >= TOP_BAND].mean() > 10 ** (MISSING_DB / 10) for frequency, power in spectra):
        return None
    ends = [frequency[np.flatnonzero(power >= 10 ** (DETAIL_DB / 10))[-1]] for frequency, power in spectra]
    return max(1.0, round(0.5 / float(max(ends)), 1))


def grey_levels(amplitude: ArrayLike) -> int:
    """Return how many different values a patch holds, counted on at most 65,536 pixels."""
    values = np.asarray(amplitude).ravel()
    return len(np.unique(values[:: -(-values.size // 65536)]))


def warnings(
    amplitudes: Sequence[ArrayLike],
    statistics: PatchStatistics,
    reference_statistics: PatchStatistics,
    reference_name: str,
) -> tuple[str, ...]:
    """Return what would mislead in a comparison: one sentence each, on what is wrong and what to do.

    Args:
        amplitudes: the judged patches, ``(height, width)`` in [0, 1]; at most ``LOOKED_AT`` of them are searched for
            traces, and the sentence says how many.
        statistics: of all judged patches.
        reference_statistics: of the real ones.
        reference_name: what to call them.
    """
    found = [
        *_traces(amplitudes),
        *_sizes(statistics, reference_statistics, reference_name),
        *_looks(statistics, reference_statistics, reference_name),
        *_clipping(statistics, reference_statistics, reference_name),
    ]
    return tuple(found)


def _traces(amplitudes: Sequence[ArrayLike]) -> list[str]:
    count = len(amplitudes)
    chosen = [amplitudes[i] for i in np.linspace(0, count - 1, min(count, LOOKED_AT)).round().astype(int)]
    texts = []
    blocks = sum(jpeg_traces(amplitude) > JPEG_LIMIT for amplitude in chosen)
    if _matters(blocks, chosen):
        texts.append(
            f"{_of(blocks, chosen)} a grid of 8 x 8 pixels, the trace of JPEG (or of a decoder): detail finer than "
            "that is the codec's, not the radar's; give the pictures as they were before JPEG, or read texture and "
            "spectrum as those of a compressed picture."
        )
    factors = [factor for factor in map(upsampling_factor, chosen) if factor is not None]
    if _matters(len(factors), chosen):
        factor = float(np.median(factors))
        size = f" (what there is would fit into pixels about {factor:.1f} times as large)" if factor > 1.1 else ""
        texts.append(
            f"{_of(len(factors), chosen)} no detail at the scale of single pixels{size}: either enlarged by "
            "interpolation, then give them at their own pixel spacing, or smoothed; looks, texture and spectrum "
            "measure that first."
        )
    levels = [grey_levels(amplitude) for amplitude in chosen]
    coarse = [n for n in levels if 1 < n < FEW_LEVELS]
    if _matters(len(coarse), chosen):
        texts.append(
            f"{_of(len(coarse), chosen)} few grey levels ({min(coarse)} at the least, texture needs "
            f"{FEW_LEVELS}): gaps in the histogram and in texture come from the file; give 8 bits or more over the "
            "range that the patches use, or float."
        )
    return texts


def _sizes(made: PatchStatistics, real: PatchStatistics, name: str) -> list[str]:
    pixels, theirs = made.histograms.sum(axis=1, dtype=np.int64), real.histograms.sum(axis=1, dtype=np.int64)
    texts = []
    total = int(pixels.sum())
    if total < FEW_PIXELS:
        texts.append(
            f"There are {total:,} pixels in all: too few for a steady histogram and number of looks; give at least "
            f"{FEW_PIXELS:,}, or read only differences that are large."
        )
    if pixels.max() > SIZE_FACTOR * pixels.min():
        texts.append(
            f"The patches differ in size (as many pixels as {_side(pixels.min())} to {_side(pixels.max())}): the "
            "pooled histogram follows the large ones and the means of texture count each patch alike; compare patches "
            "of one size."
        )
    ours, usual = float(np.median(pixels)), float(np.median(theirs))
    if max(ours, usual) > SIZE_FACTOR * min(ours, usual):
        wrong = "narrow" if ours < usual else "wide"
        texts.append(
            f"The patches have as many pixels as {_side(ours)} and those of {name} as {_side(usual)}: a small patch "
            f"varies more than a large one, so that the real-versus-real spread is too {wrong} here; cut them to the "
            "same size."
        )
    return texts


def _looks(made: PatchStatistics, real: PatchStatistics, name: str) -> list[str]:
    ours, theirs = (part.enl[np.isfinite(part.enl)] for part in (made, real))
    if not len(ours) or not len(theirs):
        return []
    looks, usual = float(np.median(ours)), float(np.median(theirs))
    if max(looks, usual) <= LOOKS_FACTOR * min(looks, usual):
        return []
    return [
        f"The patches have {looks:.1f} equivalent looks and those of {name} {usual:.1f} (medians): either they were "
        "processed to another number of looks (or despeckled), then choose a reference with theirs, or their speckle "
        "is wrong, then this is the finding."
    ]


def _clipping(made: PatchStatistics, real: PatchStatistics, name: str) -> list[str]:
    texts = []
    ends = (
        (-1, "at the top of the scale", "bring the whole set to amplitude by one scale, mean + 3 standard deviations"),
        (0, "at zero", "crop what holds no data, or give the floor of their decibel stretch"),
    )
    for end, where, remedy in ends:
        share, usual = (
            float(part.histograms[:, end].sum(dtype=np.int64) / part.histograms.sum(dtype=np.int64))
            for part in (made, real)
        )
        if share > CLIPPED and share > 2 * usual:
            texts.append(
                f"{share:.0%} of the pixels are clipped {where} ({usual:.1%} of those of {name}), which hides their "
                f"speckle and moves every distance; {remedy}."
            )
    return texts


def _matters(count: int, chosen: Sequence[Any]) -> bool:
    return count > 0 and count >= FEW_SHARE * len(chosen)


def _of(count: int, chosen: Sequence[Any]) -> str:
    if len(chosen) == 1:
        return "The patch shows"
    return f"{count} of {len(chosen)} patches looked at show{'s' if count == 1 else ''}"


def _side(pixels: float) -> str:
    """Return a pixel count as that of a square: statistics keep no shape, and sides are what one knows by heart."""
    side = round(float(pixels) ** 0.5)
    return f"{side} x {side}"


def _repeated(values: NDArray[np.float64]) -> float:
    """Return the share of the columns that equal the one before, at the pixels that are not clipped."""
    free = (values > 0) & (values < 1)
    both = free[:, 1:] & free[:, :-1]
    equal = (both & (values[:, 1:] == values[:, :-1])).sum(axis=0)
    count = both.sum(axis=0)
    return float(((equal > 0.98 * count) & (count >= BLOCK)).mean())


def _relative_spectrum(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the frequencies along rows and their mean power relative to the ``LOW_BAND``; zero where that is zero."""
    width = values.shape[1]
    window = np.sin(np.pi * (np.arange(width) + 0.5) / width) ** 2  # without it the borders leak into every frequency
    power = (np.abs(np.fft.rfft((values - values.mean()) * window, axis=1)) ** 2).mean(axis=0)
    frequency = np.fft.rfftfreq(width)
    low = power[(frequency >= LOW_BAND[0]) & (frequency <= LOW_BAND[1])].mean()
    relative: NDArray[np.float64] = power / low if low > 0 else np.zeros(len(power))
    return frequency.astype(np.float64), relative
