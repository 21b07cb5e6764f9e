"""Faults that pictures of SAR have: what the measures are tried on (``python -m sar_gen.sensitivity``).

Each takes one patch of the studio's amplitude, ``(height, width)`` in [0, 1], and returns another of the same shape,
float32 in [0, 1]. How strong each one is was set beforehand, as it happens in practice, and not by what measures see.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.amplitude import linear_to_db
from sar_gen.quality.speckle import equivalent_looks, refined_lee

BLUR_SIGMA = 1.0
"""Standard deviation of the Gaussian, in pixels."""
EXTRA_LOOKS = 4.0
"""Looks of the speckle that is added: as much again as Sentinel-1 IW GRD has (4.4)."""
JPEG_QUALITY = 30
JPEG_FLOOR_DB = -40.0
"""Black in the picture that is compressed: the studio's own decibel view."""
SHIFT_DB = 3.0
"""Brightness is doubled in power."""
LOOKS_OF_SENSOR = 4.4
"""Taken for despeckling where a patch has no homogeneous ground to measure them on."""


def blur(amplitude: ArrayLike, sigma: float = BLUR_SIGMA) -> NDArray[np.float32]:
    """Return the amplitude under a Gaussian of ``sigma`` pixels, mirrored at the borders."""
    from scipy.ndimage import gaussian_filter

    return _amplitude(gaussian_filter(np.asarray(amplitude, dtype=np.float64), sigma, mode="reflect"))


def add_speckle(
    amplitude: ArrayLike, generator: np.random.Generator, looks: float = EXTRA_LOOKS
) -> NDArray[np.float32]:
    """Return the patch with its intensity times Gamma speckle of mean 1, independent from pixel to pixel."""
    values = np.asarray(amplitude, dtype=np.float64)
    return _amplitude(values * np.sqrt(generator.gamma(looks, 1 / looks, values.shape)))


def despeckle(amplitude: ArrayLike) -> NDArray[np.float32]:
    """Return the patch after the refined Lee filter (``speckle.refined_lee``), told the looks found on the patch."""
    looks = equivalent_looks(amplitude).looks
    return _amplitude(refined_lee(amplitude, looks if np.isfinite(looks) else LOOKS_OF_SENSOR))


def compress(amplitude: ArrayLike, quality: int = JPEG_QUALITY) -> NDArray[np.float32]:
    """Return the patch as it comes back from a JPEG of its 8-bit decibel picture, -40 to 0 dB.

    Decibels are what one looks at and therefore saves; they are read back with the right range, so that nothing but
    the 8 bits and the compression is lost.
    """
    from PIL import Image

    levels = (linear_to_db(amplitude, JPEG_FLOOR_DB) / -JPEG_FLOOR_DB + 1) * 255
    file = io.BytesIO()
    Image.fromarray(np.rint(np.clip(levels, 0, 255)).astype(np.uint8)).save(file, "JPEG", quality=quality)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        grey = np.asarray(image, dtype=np.float64)
    return _amplitude(10 ** ((grey / 255 - 1) * -JPEG_FLOOR_DB / 20))


def flip(amplitude: ArrayLike) -> NDArray[np.float32]:
    """Return the patch mirrored left to right: shadows and layover point away from the radar."""
    return _amplitude(np.asarray(amplitude, dtype=np.float64)[:, ::-1])


def brighten(amplitude: ArrayLike, shift_db: float = SHIFT_DB) -> NDArray[np.float32]:
    """Return the patch with its intensity ``shift_db`` decibels higher, clipped to [0, 1]."""
    return _amplitude(np.asarray(amplitude, dtype=np.float64) * 10 ** (shift_db / 20))


def enlarge(amplitude: ArrayLike) -> NDArray[np.float32]:
    """Return the middle half of the patch (along each side) enlarged to its size, bicubic as Pillow does it."""
    from PIL import Image

    values = np.asarray(amplitude, dtype=np.float32)
    height, width = values.shape
    top, left = height // 4, width // 4
    middle = values[top : top + height // 2, left : left + width // 2]
    return _amplitude(np.asarray(Image.fromarray(middle).resize((width, height), Image.Resampling.BICUBIC)))


def _amplitude(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.clip(values, 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        letter: its place in the sensitivity table.
        name: short, as in JSON.
        title: the head of its column.
        words: what is done, with its strength.
        apply: of (amplitude, random generator); ``None`` where another set of patches is the fault.
    """

    letter: str
    name: str
    title: str
    words: str
    apply: Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]] | None


FAULTS = (
    Fault(
        "a",
        "blur",
        "blur",
        f"Gaussian blur of amplitude, sigma {BLUR_SIGMA:g} pixel",
        lambda patch, _: blur(patch),
    ),
    Fault(
        "b",
        "add_speckle",
        "more speckle",
        f"intensity times independent Gamma speckle of {EXTRA_LOOKS:g} looks, mean 1",
        add_speckle,
    ),
    Fault(
        "c",
        "despeckle",
        "despeckled",
        "refined Lee filter, 7 x 7, told the looks found on the patch",
        lambda patch, _: despeckle(patch),
    ),
    Fault(
        "d",
        "jpeg",
        f"JPEG {JPEG_QUALITY}",
        f"JPEG of quality {JPEG_QUALITY} of the 8-bit decibel picture ({JPEG_FLOOR_DB:g} to 0 dB), read back exactly",
        lambda patch, _: compress(patch),
    ),
    Fault("e", "flip", "flipped", "mirrored left to right: the other look direction", lambda patch, _: flip(patch)),
    Fault(
        "f",
        "brightness",
        f"{SHIFT_DB:+g} dB",
        f"intensity {SHIFT_DB:g} dB higher, clipped to [0, 1]",
        lambda patch, _: brighten(patch),
    ),
    Fault("g", "terrain", "other terrain", "real patches of each of the other terrain classes", None),
    Fault(
        "h",
        "upsample",
        "enlarged",
        "middle half enlarged twice along each side, bicubic",
        lambda patch, _: enlarge(patch),
    ),
)
"""The faults of the sensitivity table, in its order."""
