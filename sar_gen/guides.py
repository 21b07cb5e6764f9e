"""Guides: a sketch, a class map, an optical image or SAR becomes the picture that generation starts from.

For checkpoints without a ControlNet the guide is turned into a starting SAR image and generation is image-to-image. A
sketch or map is snapped to the palette's classes, and each class is filled with the product model of SAR intensity,

    I = mean x T x S,    T ~ Gamma(order, 1/order),    S ~ Gamma(looks, 1/looks),

texture times speckle, each of mean one and correlated over a few pixels. The laws are measured on real Sentinel-1
(``assets/guides/class_statistics.json``, written by ``sar_gen.reference_statistics``), except the road's, which is an
assumption and marked so in the file. A ControlNet would take ``PreparedGuide.shown`` instead of ``start``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import quantise
from sar_gen.errors import InputError
from sar_gen.request import Guide, GuideKind
from sar_gen.settings import ROOT

CLASSES = ("water", "fields", "forest", "urban", "bare", "road")
PALETTE_FILE = ROOT / "assets" / "palettes" / "studio.json"
STATISTICS_FILE = ROOT / "assets" / "guides" / "class_statistics.json"

PURE = 40.0
"""A colour this near (Euclidean RGB distance) to a palette colour is that class, whatever lies around it."""
FAR = 90.0
"""A colour farther than this from every palette colour is foreign: half of the smallest distance in the palette."""
MAX_FOREIGN = 0.5
"""Largest share of foreign colours in a drawing or map; brush edges are a few percent."""
REACH = 2
"""Pixels that an anti-aliased edge is wide at most, to either side."""
TRANSITION = 0.7
"""Standard deviation in pixels of the transition between classes: 1.8 pixels from 10 to 90 %."""
MIN_SIDE = 8
"""Smallest side of a guide, in pixels."""
MIN_SPREAD = 2.0
"""Smallest standard deviation in grey levels of an optical or SAR guide; below it there is nothing to follow."""
MAX_SNAPPED = 2048
"""Larger drawings are shrunk to this side before they are snapped."""
OPTICAL_SCALE = 3.0
"""Standard deviation in pixels of the neighbourhood that optical brightness and roughness are taken over."""


@dataclass(frozen=True)
class PaletteClass:
    """One class of the palette.

    Attributes:
        name: one of ``CLASSES``.
        label: what the user reads.
        colour: red, green, blue.
        reference: reference set whose terrain its law comes from, if any.
    """

    name: str
    label: str
    colour: tuple[int, int, int]
    reference: str | None


@dataclass(frozen=True)
class Palette:
    """The classes, in the order of their numbers in a class map.

    Attributes:
        classes: the classes.
        background: number of the class that unpainted canvas counts as.
        unpainted: colour of unpainted canvas; transparent counts as unpainted too.
    """

    classes: tuple[PaletteClass, ...]
    background: int
    unpainted: tuple[int, int, int]

    @property
    def colours(self) -> NDArray[np.uint8]:
        """``(n, 3)`` colours of the classes."""
        return np.array([entry.colour for entry in self.classes], dtype=np.uint8)


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
class Snapped:
    """A drawing in palette classes.

    Attributes:
        classes: ``(height, width)`` uint8 numbers of the classes.
        painted: ``(height, width)`` bool, false on unpainted canvas.
        foreign: share of the pixels whose colour is far from every palette colour.
    """

    classes: NDArray[np.uint8]
    painted: NDArray[np.bool_]
    foreign: float


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
def load_palette(path: Path = PALETTE_FILE) -> Palette:
    """Read a palette file; its classes must be ``CLASSES``, in that order."""
    data = json.loads(path.read_text(encoding="utf-8"))
    classes = tuple(
        PaletteClass(entry["name"], entry["label"], _rgb(entry["colour"]), entry["reference"])
        for entry in data["classes"]
    )
    names = tuple(entry.name for entry in classes)
    if names != CLASSES:
        raise ValueError(f"{path} has the classes {names}, expected {CLASSES}")
    return Palette(classes, names.index(data["background"]), _rgb(data["unpainted"]))


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


def read_guide(path: Path, kind: GuideKind, max_pixels: int) -> Guide:
    """Read a guide from a file.

    Args:
        path: PNG, JPEG or another picture format; for ``sar`` anything that ``patches.read_patch`` reads.
        kind: what the image shows.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        InputError: the file cannot be used; the sentence says why.
    """
    from PIL import Image

    if kind == "sar":
        from sar_gen.patches import PixelMeaning, read_patch

        grey = quantise(read_patch(path, PixelMeaning("studio"), max_pixels).amplitude)
        return Guide(kind, np.repeat(grey[..., None], 3, axis=2), path.name)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a picture as guide.")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"{path.name} has {width} x {height} pixels; the limit is {max_pixels:,} (SAR_GEN_MAX_PIXELS), "
                    "so crop or shrink it."
                )
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path.name} is not an 8-bit picture; save it as an 8-bit PNG first.")
            return Guide(kind, flatten(np.asarray(image.convert("RGBA"))), path.name)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path.name} cannot be read as a picture (it is empty, damaged or of another type); save it as PNG again."
        ) from error


def flatten(image: NDArray[np.uint8], background: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    """Return ``(height, width, 3)`` of an image with or without alpha, laid over ``background`` (unpainted canvas)."""
    if image.shape[2] == 3:
        return image
    below = np.array(load_palette().unpainted if background is None else background, dtype=np.float32)
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + below * (1 - alpha)).astype(np.uint8)


def snap_to_palette(rgb: NDArray[np.uint8], palette: Palette | None = None) -> NDArray[np.uint8]:
    """Return the ``(height, width)`` uint8 class map of a drawing, ``(height, width, 3 or 4)`` uint8; see ``snap``."""
    return snap(rgb, palette).classes


def snap(rgb: NDArray[np.uint8], palette: Palette | None = None) -> Snapped:
    """Snap every pixel to the nearest class, without false classes along anti-aliased edges.

    A pixel within ``PURE`` of a palette colour is that class. Every other pixel is a blend, and a blend of two colours
    can lie nearest to a third, so it takes the nearest colour among those that occur unblended within ``REACH``
    pixels; only where there is none, among all. Unpainted canvas takes part as a colour of its own.
    """
    palette = load_palette() if palette is None else palette
    pixels = flatten(rgb, palette.unpainted).astype(np.float32)
    colours = np.vstack([palette.colours, palette.unpainted]).astype(np.float32)
    # |p - c|^2 as |p|^2 - 2 p c + |c|^2; whole numbers under 2^24, so exact in float32
    squares = np.square(pixels).sum(axis=2, keepdims=True) - 2 * pixels @ colours.T + np.square(colours).sum(axis=1)
    near = squares <= PURE**2
    for axis in (0, 1):
        near = _dilated(near, axis)
    near |= ~near.any(axis=2, keepdims=True)
    nearest = np.where(near, squares, np.inf).argmin(axis=2)
    foreign = float((squares.min(axis=2) > FAR**2).mean())
    painted = nearest < len(palette.classes)
    return Snapped(np.where(painted, nearest, palette.background).astype(np.uint8), painted, foreign)


def render(class_map: NDArray[np.uint8], palette: Palette | None = None) -> NDArray[np.uint8]:
    """Return the ``(height, width, 3)`` uint8 picture of a class map."""
    return (load_palette() if palette is None else palette).colours[class_map]


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
        guide: the image and what it shows; ``(height, width)``, or 3 or 4 channels, uint8.
        width: of the patch to generate, in pixels.
        height: of the patch to generate, in pixels.
        seed: of the texture and speckle that a map is filled with.

    Raises:
        InputError: the guide is empty, far too small, foreign to the palette or flat; the sentence says what to do.
    """
    image = np.asarray(guide.image)
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
        raise InputError(
            f"The guide has the shape {image.shape} and type {image.dtype}; give an 8-bit picture, "
            "(height, width, 3) uint8."
        )
    if min(image.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"The guide has {image.shape[1]} x {image.shape[0]} pixels; give at least {MIN_SIDE} on each side."
        )
    if guide.kind in ("sketch", "map"):
        start, shown, note = _from_classes(image, guide.kind, (height, width), seed)
    elif guide.kind == "sar":
        start, shown, note = _from_sar(image, (height, width))
    elif guide.kind == "optical":
        start, shown, note = _from_optical(image, (height, width), seed)
    else:
        raise InputError(f"The guide kind {guide.kind!r} is unknown; choose sketch, map, optical or sar.")
    return PreparedGuide(start, shown, note + _resized(image.shape[:2], (height, width)), digest)


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
    image: NDArray[np.uint8], kind: str, size: tuple[int, int], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    palette = load_palette()
    # Snapping needs the brush edges of the full picture, but a huge one gains nothing from them.
    factor = MAX_SNAPPED / max(image.shape[:2])
    if factor < 1:
        image = resize_map(image, (round(image.shape[0] * factor) or 1, round(image.shape[1] * factor) or 1))
    snapped = snap(image, palette)
    thing = "drawing" if kind == "sketch" else "map"
    if not snapped.painted.any():
        raise InputError(f"Nothing is painted in the {thing}; paint at least one class, or leave the guide out.")
    if snapped.foreign > MAX_FOREIGN:
        names = ", ".join(f"{c.label} #{''.join(f'{v:02x}' for v in c.colour)}" for c in palette.classes)
        raise InputError(
            f"{snapped.foreign:.0%} of the {thing} has colours that are not in the palette; use {names}, or give the "
            "picture as an optical or SAR guide."
        )
    class_map = resize_map(snapped.classes, size)
    share = np.bincount(class_map.ravel(), minlength=len(CLASSES)) / class_map.size
    parts = [f"{palette.classes[k].label} {share[k]:.0%}" for k in np.argsort(-share, kind="stable") if share[k] > 0]
    note = f"The {thing} was snapped to {', '.join(parts)}."
    unpainted = 1 - snapped.painted.mean()
    if unpainted > 0:
        note += f" Unpainted canvas ({unpainted:.0%}) counts as {palette.classes[palette.background].label.lower()}."
    if snapped.foreign > 0.05:
        note += f" {snapped.foreign:.0%} of its colours are not near the palette and took the nearest class."
    if share[CLASSES.index("road")] > 0:
        note += " Roads are drawn with an assumed brightness: there is no direct measurement of them."
    return start_amplitude(class_map, seed), render(class_map, palette), note


def _from_sar(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    image = flatten(image, (0, 0, 0)).astype(np.int16)
    if np.abs(image - image[..., :1]).max() > 2:
        raise InputError("The SAR guide is a colour picture; give a grey one, or choose 'optical' for it.")
    grey = image.mean(axis=2)
    _check_not_flat(grey, "SAR guide")
    amplitude = resize_amplitude(grey / 255, size)
    note = "Grey 0 to 255 is taken as the studio's amplitude 0 to 1."
    if size[0] * size[1] > 1.5 * grey.size:
        note += " Its speckle is enlarged with it, and so smoother than real; a higher strength renews it."
    return amplitude, np.repeat(quantise(amplitude)[..., None], 3, axis=2), note


def _from_optical(
    image: NDArray[np.uint8], size: tuple[int, int], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    rgb = flatten(image, (0, 0, 0))
    luminance = rgb.astype(np.float64) @ np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
    _check_not_flat(luminance, "optical guide")
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
        f"{high:.1f} only (1 is perfect); a ControlNet will replace it."
    )
    shown = np.repeat(quantise(np.sqrt(np.clip(local, 0, 1)))[..., None], 3, axis=2)
    return amplitude, shown, note


def _check_not_flat(grey: NDArray[Any], thing: str) -> None:
    if grey.std() < MIN_SPREAD:
        raise InputError(f"The {thing} is one flat grey, so there is nothing to follow; give another picture.")


def _resized(given: tuple[int, ...], size: tuple[int, int]) -> str:
    if given == size:
        return ""
    note = f" It was resized from {given[1]} x {given[0]} to {size[1]} x {size[0]} pixels"
    stretch = (size[1] / given[1]) / (size[0] / given[0])
    return note + (", which changes its proportions." if abs(stretch - 1) > 0.02 else ".")


def _dilated(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Return where ``mask`` holds within ``REACH`` along ``axis``."""
    grown = mask.copy()
    first, second = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
    for step in range(1, REACH + 1):
        first[step:] |= second[:-step]
        first[:-step] |= second[step:]
    return grown


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


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
