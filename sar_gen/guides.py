"""Guides: a sketch, a class map, an optical image or SAR becomes the picture that generation starts from.

Where no network reads a guide (``sar_gen.conditioning``) it is turned into a starting SAR image and generation is
image-to-image. A sketch or map is read as the studio's classes (``sar_gen.palettes``), and each class is filled with
the product model of SAR intensity,

    I = mean x T x S,    T ~ Gamma(order, 1/order),    S ~ Gamma(looks, 1/looks),

texture times speckle, each of mean one and correlated over a few pixels. The laws are measured on real Sentinel-1
(``assets/guides/class_statistics.json``, written by ``sar_gen.reference_statistics``), except the road's, which is an
assumption and marked so in the file. Files are read by ``sar_gen.guide_files``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import grey_picture
from sar_gen.errors import InputError
from sar_gen.guide_files import read_guide
from sar_gen.palettes import (
    CLASSES,
    Palette,
    PaletteClass,
    flatten,
    load_palette,
    read_map,
    render,
    snap,
    snap_to_palette,
)
from sar_gen.request import Guide
from sar_gen.settings import ROOT

__all__ = [
    "CLASSES", "LUMINANCE",
    "ClassStatistics", "Law", "Palette", "PaletteClass", "PreparedGuide", "check_image", "check_not_flat",
    "flatten", "intensity_field", "load_palette", "load_statistics", "optical_order", "prepare_guide", "read_guide",
    "render", "resize_amplitude", "resize_map", "resized_note", "shrunk", "snap", "snap_to_palette", "speckle_field",
    "start_amplitude",
]  # fmt: skip

STATISTICS_FILE = ROOT / "assets" / "guides" / "class_statistics.json"

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
TRANSITION = 0.7
"""Standard deviation in pixels of the transition between classes: 1.8 pixels from 10 to 90 %."""
MIN_SIDE = 8
"""Smallest side of a guide, in pixels."""
MIN_SPREAD = 2.0
"""Smallest standard deviation in grey levels of an optical or SAR guide; below it there is nothing to follow."""
MAX_SNAPPED = 2048
"""Larger drawings and maps are shrunk to this side before they are read."""
OPTICAL_SCALE = 3.0
"""Standard deviation in pixels of the neighbourhood that optical brightness and roughness are taken over."""


@dataclass(frozen=True)
class Law:
    """The intensity law of a class and its correlation, in the product model.

    Attributes:
        mean_intensity: mean squared studio amplitude.
        texture_order: Gamma order of the texture; ``None`` is no texture.
        texture_length: distance in pixels at which the texture's correlation is 1/e (exponential).
        looks: equivalent number of looks of the speckle.
        speckle_correlation: of the speckle at distances of 0, 1, 2, ... pixels; zero beyond.
    """

    mean_intensity: float
    texture_order: float | None
    texture_length: float
    looks: float
    speckle_correlation: tuple[float, ...]

    @property
    def relative_variance(self) -> float:
        """Variance over squared mean of the intensity: 1/L + 1/a + 1/(L a)."""
        speckle = 1 / self.looks
        texture = 1 / self.texture_order if self.texture_order else 0.0
        return speckle + texture + speckle * texture


@dataclass(frozen=True)
class ClassStatistics:
    """What ``class_statistics.json`` holds.

    Attributes:
        laws: one law a class.
        local_intensity: quantiles (equally spaced from 0 to 1) of the local mean intensity of all real ground.
        optical_agreement: rank correlation of the optical conversion with real SAR, by terrain.
    """

    laws: dict[str, Law]
    local_intensity: tuple[float, ...]
    optical_agreement: dict[str, float]


@dataclass(frozen=True)
class PreparedGuide:
    """A guide made ready.

    Attributes:
        start: ``(height, width)`` float32 amplitude in [0, 1] that generation starts from.
        shown: ``(height, width, 3)`` uint8, what is really used: the snapped map, or the picture as amplitude.
        note: what was done with the guide, in a sentence or two.
        sha256: of the guide's pixels as they were given.
    """

    start: NDArray[np.float32]
    shown: NDArray[np.uint8]
    note: str
    sha256: str


@lru_cache(maxsize=8)
def load_statistics(path: Path = STATISTICS_FILE) -> ClassStatistics:
    """Read the class laws that ``sar_gen.reference_statistics`` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    laws = {
        name: Law(
            entry["mean_intensity"],
            entry["texture_order"],
            entry["texture_length"],
            entry["looks"],
            tuple(entry["speckle_correlation"]),
        )
        for name, entry in data["classes"].items()
    }
    return ClassStatistics(laws, tuple(data["local_intensity"]["quantiles"]), data["optical"]["rank_correlation"])


def start_amplitude(
    class_map: NDArray[np.uint8],
    seed: int,
    size: tuple[int, int] | None = None,
    laws: dict[str, Law] | None = None,
) -> NDArray[np.float32]:
    """Return a starting SAR image of a class map: each class with its own texture and speckle.

    Args:
        class_map: ``(height, width)`` uint8, numbers into ``CLASSES``.
        seed: of the fields; the same seed gives the same image, and a class's field does not depend on the others.
        size: height and width of the result; the map is resized to it (nearest neighbour). ``None`` keeps the map's.
        laws: one law a class; ``None`` takes the shipped ones.

    Returns:
        ``(height, width)`` float32 amplitude in [0, 1].
    """
    from scipy.ndimage import gaussian_filter

    laws = load_statistics().laws if laws is None else laws
    class_map = class_map if size is None else resize_map(class_map, size)
    intensity = np.zeros(class_map.shape)
    total = np.zeros(class_map.shape)
    for number in np.unique(class_map):
        weight = gaussian_filter((class_map == number).astype(np.float64), TRANSITION, mode="nearest")
        generator = np.random.default_rng((seed, int(number)))
        intensity += weight * intensity_field(laws[CLASSES[number]], class_map.shape, generator)
        total += weight
    return np.clip(np.sqrt(intensity / total), 0, 1).astype(np.float32)


def intensity_field(law: Law, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return ``shape`` intensity of uniform ground under ``law``, not clipped.

    Correlated normal fields are carried to Gamma by their quantiles (a Gaussian copula): the law of each pixel is
    exact, the correlation of the result a few percent below the normal field's.
    """
    intensity = law.mean_intensity * speckle_field(law, shape, generator)
    if law.texture_order is not None:
        length = law.texture_length
        normal = _correlated_normal(shape, lambda d: np.exp(-d / length), 4 * length, generator)
        intensity *= _gamma_of_normal(normal, law.texture_order)
    return intensity


def speckle_field(law: Law, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return ``shape`` multiplicative speckle of intensity, of mean one, with the looks and correlation of ``law``."""
    lags = np.array([*law.speckle_correlation, 0.0])
    normal = _correlated_normal(
        shape, lambda d: np.interp(d, np.arange(lags.size), lags, right=0.0), float(lags.size), generator
    )
    return _gamma_of_normal(normal, law.looks)


def prepare_guide(guide: Guide, width: int, height: int, seed: int) -> PreparedGuide:
    """Check a guide and make it ready for image-to-image.

    Args:
        guide: the image and what it shows; see ``check_image``.
        width: of the patch to generate, in pixels.
        height: of the patch to generate, in pixels.
        seed: of the texture and speckle that a map is filled with.

    Raises:
        InputError: the guide is empty, far too small, foreign to the palette or flat; the sentence says what to do.
    """
    image = check_image(guide)
    if guide.kind in ("sketch", "map"):
        start, shown, note = _from_classes(image, guide, (height, width), seed)
    elif guide.kind == "sar":
        start, shown, note = _from_sar(image, (height, width))
    else:
        start, shown, note = _from_optical(image, (height, width), seed)
    note = " ".join([*guide.notes, note]) + resized_note(image.shape[:2], (height, width))
    digest = guide.sha256
    return PreparedGuide(start, shown, note, digest)


def check_image(guide: Guide) -> NDArray[np.uint8]:
    """Return the image of a guide whose kind, shape, type and size can be used.

    Args:
        guide: its image may be ``(height, width)``, class codes or grey, or have 3 or 4 channels.

    Returns:
        Of a sketch or map the image as it is; of the other kinds ``(height, width, 3)``, alpha laid over black.

    Raises:
        InputError: it cannot be used; the sentence says what to do.
    """
    if guide.kind not in ("sketch", "map", "optical", "sar"):
        raise InputError(f"The guide kind {guide.kind!r} is unknown; choose sketch, map, optical or sar.")
    image = np.asarray(guide.image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise InputError(
            f"The guide has the shape {image.shape} and type {image.dtype}; give an 8-bit picture, "
            "(height, width, 3) uint8."
        )
    if min(image.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"The guide has {image.shape[1]} x {image.shape[0]} pixels; give at least {MIN_SIDE} on each side."
        )
    if guide.kind in ("sketch", "map"):
        return image
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else flatten(image, (0, 0, 0))


def shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a drawing or map with at most ``MAX_SNAPPED`` pixels on each side, each the nearest of the old ones.

    Reading needs the brush edges of the full picture, but a huge one gains nothing from them.
    """
    factor = MAX_SNAPPED / max(image.shape[:2])
    if factor >= 1:
        return image
    return resize_map(image, (round(image.shape[0] * factor) or 1, round(image.shape[1] * factor) or 1))


def resize_map(class_map: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return a map (or picture) at ``size`` = (height, width), each pixel the nearest of the old ones."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(size, class_map.shape[:2], strict=True)
    )
    return class_map[rows[:, None], columns]


def resize_amplitude(amplitude: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return amplitude at ``size`` = (height, width): power averaged over areas to shrink, Lanczos to enlarge.

    Where one side shrinks and the other grows, the shrinking is done first.
    """
    from PIL import Image

    height, width = amplitude.shape
    small = (min(height, size[0]), min(width, size[1]))
    result = np.asarray(amplitude, dtype=np.float32)
    if small != result.shape:
        power = Image.fromarray(np.square(result)).resize(small[::-1], Image.Resampling.BOX)
        result = np.sqrt(np.maximum(np.asarray(power), 0))
    if small != size:
        result = np.asarray(Image.fromarray(result).resize(size[::-1], Image.Resampling.LANCZOS))
    return np.clip(result, 0, 1).astype(np.float32)


def optical_order(luminance: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how bright radar sees the ground of an optical image, as ranks, and what looks like water.

    Ground that is rough in the optical image (relief, trees, buildings) and dark (vegetation rather than sand, gravel
    or dry grass) tends to be bright in VV; dark ground without any roughness is taken for water. The agreement
    with real SAR is weak and is measured in ``class_statistics.json``.

    Args:
        luminance: ``(height, width)`` in [0, 1].

    Returns:
        ``(height, width)`` ranks in (0, 1] among the ground that is no water, and the water mask.
    """
    from scipy.ndimage import gaussian_filter

    values = luminance.astype(np.float64)
    mean = gaussian_filter(values, OPTICAL_SCALE)
    roughness = np.sqrt(np.maximum(gaussian_filter(values**2, OPTICAL_SCALE) - mean**2, 0))
    water = (mean < 0.4) & (roughness < 0.01)
    score = _ranks(roughness) - _ranks(mean)
    order = np.zeros(score.shape)
    order[~water] = _ranks(score[~water])
    return order, water


def _from_classes(
    image: NDArray[np.uint8], guide: Guide, size: tuple[int, int], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    read = read_map(shrunk(image), guide.palette, thing="drawing" if guide.kind == "sketch" else "map")
    class_map = resize_map(read.classes, size)
    note = read.note
    if (class_map == CLASSES.index("road")).any():
        note += " Roads are drawn with an assumed brightness: there is no direct measurement of them."
    return start_amplitude(class_map, seed), render(class_map), note


def _from_sar(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    if np.ptp(image.astype(np.int16), axis=2).max() > 2:
        raise InputError("The SAR guide is a colour picture; give a grey one, or choose 'optical' for it.")
    grey = image.mean(axis=2)
    check_not_flat(grey, "SAR guide")
    amplitude = resize_amplitude(grey / 255, size)
    note = "Grey 0 to 255 is taken as the studio's amplitude 0 to 1."
    if size[0] * size[1] > 1.5 * grey.size:
        note += " Its speckle is enlarged with it, and so smoother than real; a higher strength renews it."
    return amplitude, grey_picture(amplitude), note


def _from_optical(
    image: NDArray[np.uint8], size: tuple[int, int], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    luminance = image.astype(np.float64) @ LUMINANCE
    check_not_flat(luminance, "optical guide")
    statistics = load_statistics()
    water_law, ground = statistics.laws["water"], statistics.laws["fields"]
    order, water = optical_order(resize_amplitude(luminance / 255, size))
    quantiles = np.array(statistics.local_intensity)
    local = np.interp(order, np.linspace(0, 1, quantiles.size), quantiles)
    local[water] = water_law.mean_intensity
    # Looks and speckle correlation belong to the sensor, so any class's law has them.
    intensity = local * speckle_field(ground, size, np.random.default_rng((seed, len(CLASSES))))
    amplitude = np.clip(np.sqrt(intensity), 0, 1).astype(np.float32)
    low, high = min(statistics.optical_agreement.values()), max(statistics.optical_agreement.values())
    note = (
        "The optical image was turned into amplitude by a rough rule: rough and dark ground becomes bright, smooth "
        f"dark ground water, with the brightness law of real SAR. By rank it agrees with real SAR at {low:.1f} to "
        f"{high:.1f} only (1 is perfect); a ControlNet for optical images reads it itself."
    )
    shown = grey_picture(np.sqrt(np.clip(local, 0, 1)))
    return amplitude, shown, note


def check_not_flat(grey: NDArray[Any], thing: str) -> None:
    """Refuse grey levels, ``(height, width)`` of 0 to 255, that show nothing.

    Raises:
        InputError: their standard deviation is below ``MIN_SPREAD``.
    """
    if grey.std() < MIN_SPREAD:
        raise InputError(f"The {thing} is one flat grey, so there is nothing to follow; give another picture.")


def resized_note(given: tuple[int, ...], size: tuple[int, int]) -> str:
    """Return a sentence on the change of size from ``given`` to ``size`` (height, width), with a space before it."""
    if given == size:
        return ""
    note = f" It was resized from {given[1]} x {given[0]} to {size[1]} x {size[0]} pixels"
    stretch = (size[1] / given[1]) / (size[0] / given[0])
    return note + (", which changes its proportions." if abs(stretch - 1) > 0.02 else ".")


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean ranks of values, in (0, 1]; ties share one."""
    ordered = np.sort(values, axis=None)
    left, right = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (left + right + 1) / (2.0 * max(ordered.size, 1))


def _correlated_normal(
    shape: tuple[int, ...],
    correlation: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    reach: float,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return a standard normal field with an isotropic correlation, by its spectrum.

    Args:
        shape: height and width.
        correlation: of distance in pixels; 1 at 0.
        reach: distance in pixels beyond which it is negligible. The field is made that much larger and cropped, so
            that opposite edges are not correlated.
        generator: of the white noise.
    """
    from scipy.fft import next_fast_len

    sides = [next_fast_len(side + int(np.ceil(reach)), real=True) for side in shape]
    axes = [np.minimum(np.arange(n), n - np.arange(n)) for n in sides]
    spectrum = np.maximum(np.fft.rfft2(correlation(np.hypot(axes[0][:, None], axes[1]))).real, 0)
    # Values cut at 0 (a measured correlation need not be positive definite) change the variance; make it 1 again.
    spectrum /= np.fft.irfft2(spectrum, s=sides)[0, 0]
    white = np.fft.rfft2(generator.standard_normal(sides))
    return np.fft.irfft2(white * np.sqrt(spectrum), s=sides)[: shape[0], : shape[1]]


def _gamma_of_normal(normal: NDArray[np.float64], order: float) -> NDArray[np.float64]:
    """Return the Gamma(order, 1/order) variable (mean one) at the same quantile as a standard normal one."""
    grid, table = _gamma_table(order)
    return np.interp(normal, grid, table)


@lru_cache(maxsize=64)
def _gamma_table(order: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.special import gammainccinv, gammaincinv, ndtr

    grid = np.linspace(-6.5, 6.5, 8193)
    # Each tail from its own side, where the probability keeps its digits.
    table = np.where(grid < 0, gammaincinv(order, ndtr(grid)), gammainccinv(order, ndtr(-grid))) / order
    return grid, table
