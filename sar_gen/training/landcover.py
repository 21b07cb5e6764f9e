"""Class maps from optical images alone, for the guides of a ControlNet: no SAR pixel takes part, nor is one looked at.

``class_map`` turns an optical picture, grey or colour, into the classes of ``guides.CLASSES``:

- Texture and brightness (``FEATURES``) are measured in windows of 9 to 97 pixels, every ``STRIDE`` pixels.
- A multinomial logistic regression on them and their products gives the odds of fields, forest, urban and bare. Its
  coefficients are in ``landcover.json``, one set for grey pictures (Sentinel-2 at 10 m) and one for colour (20 m).
- The odds are carried to the full picture and follow its edges (guided filter). Small regions go to their neighbours.
- Water is a rule in a grey picture: dark ground without any texture, or a long, thin, dark line. In colour the
  regression knows it too. Green ground in colour is forest or fields by another rule.

What the regression is fitted on (``fit``): cells of training patches that were labelled by hand in the optical picture
(``assets/guides/landcover-labels.json``), and, with little weight, the source's terrain labels forest and gorge. The
labels agriculture, river and residential are not used: most ground of a residential patch is no town.

How far it can be trusted (``agreement``): cells of 64 pixels of other patches, labelled by hand before the first map
was made. All figures are in ``landcover.json``; how the labels came about, and what was tuned when, in their file.

- Grey: 0.82 of 454 cells of 53 patches agree; 0.78 on the 40 that were drawn by chance, most of them mountains
  (calling every cell bare gives 0.64 and 0.81). Precision and recall: water 1.00 and 0.71 (12 of 13 cells of two lakes
  of one region, none of four cells of ponds), fields 0.58 and 0.74, forest 0.65 and 0.75, urban 0.89 and 0.91, bare
  0.92 and 0.85. Where bare ground prevails most fields are false: their precision is 0.27 on the 40.
- Thin rivers: found in 17 of the 28 cells that one crosses, but in 10 before two of these patches were looked at; that
  is the fairer figure. 6 of 587 cells of land have false water.
- Colour: 0.99 of 114 cells of 10 windows, all of one region; water, urban and bare only.

What cannot be told from grey: roads (never given); turbid or bright rivers from dry beds and sand (all bare); steppe
and grassland from fields and bare; black shade in steep forest from a lake; dark bare rock from wooded mountain. In a
grey picture forest means dark, fine ground. Fields and forest in colour are untested.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.guides import CLASSES, MIN_SIDE
from sar_gen.reference_statistics import read_grey, read_pairs
from sar_gen.settings import ROOT

COEFFICIENTS_FILE = Path(__file__).with_name("landcover.json")
LABELS_FILE = ROOT / "assets" / "guides" / "landcover-labels.json"

STRIDE = 4
"""Pixels between the places where features are measured: regions are tens of pixels wide, the windows at least 9."""
BANDS = (1, 2, 4, 8)
"""Detail that a Gaussian of half of this standard deviation shows and one of this hides, in pixels."""
FEATURES = (
    "mean 9", "mean 33", "mean 97",
    *(f"detail {band} in {side}" for band in BANDS for side in (17, 41)),
    "bright against dark detail 33", "coherence 17", "coherence 41", "right angles 41", "low 25", "high 25",
)  # fmt: skip
COLOUR_FEATURES = (*FEATURES, "red less blue 9", "red less blue 33", "green 9", "green 33")
GREY_CLASSES = ("fields", "forest", "urban", "bare")
COLOUR_CLASSES = ("water", "fields", "urban", "bare")
COLOURED = 6.0
"""A picture whose channels differ by less than this mean difference in levels is read as grey."""
LETTERS = {"W": "water", "A": "fields", "F": "forest", "U": "urban", "B": "bare", "M": "forest"}
"""Labels of cells. ``M`` is wooded mountain, which is forest and "bare, mountain" alike; ``?`` cannot be told."""

SMALLEST = 200
"""Pixels of the smallest region of land; smaller ones go to their neighbours."""
GUIDE_RADIUS = 9
"""Half the side of the guided filter's window."""
GUIDE_EDGE = 0.04
"""Differences of brightness (0 to 1) well above this are edges for the guided filter."""

FLAT = 1.6
"""Largest local standard deviation, in grey levels, of wide water (window of 7 pixels)."""
FLAT_DARK = 70.0
"""Largest grey level of such water (of a colour picture: of its red)."""
FLAT_MEAN = 0.7
"""Largest such deviation on average over a region: dark forest and fields in shade reach ``FLAT`` here and there."""
FLAT_AREA = 800
"""Pixels of the smallest such water; the shadows of steep forest are smaller, mostly."""
FLAT_RADIUS = 9.0
"""Radius in pixels of the smallest circle that fits into such water."""
BLUE = 56.0
"""Levels of blue above red of water in a colour picture; shade in the haze over land has at most 52."""
SHORE = 14
"""Pixels from the water of a colour picture within which open or glaring ground is beach (bare), not fields."""
GLARE = 190.0
"""Grey level of glaring ground: sand."""
GREEN = 0.045
"""Green excess, (2 green - red - blue) / (red + green + blue), from which colour ground is vegetation."""
GREEN_DARK = 85.0
"""Green ground darker than this grey level, or rougher than fields, is forest."""

FEW = 15
"""A class with fewer labelled cells counts as untested."""
GOOD = 0.65
"""Precision and recall that a usable class has at least."""
WEAK = {"forest": "forest", "gorge": "bare"}
WEAK_WEIGHT = 0.2
"""Weight of a place that only the source's terrain label tells, against one that was labelled by hand."""
PENALTY = {"grey": 2e-3, "colour": 1e-2}
"""Ridge penalty of the regression on the standardised features and their products."""


@dataclass(frozen=True)
class LineRule:
    """What makes a dark line a river. Lengths are in pixels.

    Attributes:
        blur: standard deviation of the Gaussian before anything is measured.
        reach: side of the closing that gives the brightness of the surroundings.
        dark: a pixel may be a line's where it is under this part of its surroundings.
        median: the line's median is at most this part.
        depth: levels that a pixel of the line is darker than its surroundings.
        length: least length, along the middle of the line.
        width: largest mean width.
        slender: least length over mean width.
        forks: largest share of the middle's pixels with three neighbours or more.
        uneven: largest standard deviation of the width over its mean.
        company: largest share of the ground beside it that is as dark.
        road: a narrower line may not be straight.
        close: gaps of a pixel are closed; else lines of a pixel are left out.
    """

    blur: float
    reach: int
    dark: float
    median: float
    depth: float
    length: int
    width: float
    slender: float
    forks: float
    uneven: float
    company: float
    road: float
    close: bool


LINES = (
    LineRule(0.8, 17, 0.65, 0.5, 18, 80, 11, 16, 0.13, 0.42, 0.12, 99, False),
    LineRule(1.2, 31, 0.42, 0.26, 30, 80, 18, 8, 0.06, 0.26, 0.10, 7, False),
    LineRule(1.2, 31, 0.42, 0.27, 18, 130, 12, 15, 0.095, 0.45, 0.06, 9, True),
)
"""A thin river in even ground; a black, wider one of very even width; a long black one in rugged country."""


def class_map(optical: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class map of an optical picture.

    Args:
        optical: ``(height, width)`` grey or ``(height, width, 3)`` colour, uint8; about 10 m a pixel is best.

    Returns:
        ``(height, width)`` uint8, numbers into ``guides.CLASSES``.

    Raises:
        InputError: the picture has another shape or type, or is too small.
    """
    image = np.asarray(optical)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(
            f"The optical picture has the shape {image.shape} and type {image.dtype}; give 8-bit grey or RGB."
        )
    if min(image.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"The optical picture has {image.shape[1]} x {image.shape[0]} pixels; give at least {MIN_SIDE} a side."
        )
    return class_map_with(load_coefficients(), image)


def class_map_with(coefficients: Mapping[str, Any], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what ``class_map`` does, of a checked picture and with the coefficients that ``fit`` returned."""
    grey, colour = _planes(image)
    model = coefficients["grey" if colour is None else "colour"]
    odds = _guided(_enlarged(probabilities(features(grey, colour), model), grey.shape), grey)
    numbers = np.array([CLASSES.index(name) for name in model["classes"]], dtype=np.uint8)
    land = numbers[odds.argmax(axis=2)]
    if colour is None:
        water = flat_water(grey) | river_lines(grey)
    else:
        land = _green(land, grey, colour)
        water = blue_water(colour)
        land = _beach(land, grey, water | (land == CLASSES.index("water")))
    return np.where(water, np.uint8(CLASSES.index("water")), _without_specks(land))


def features(grey: NDArray[np.uint8], colour: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return what is measured of a picture, every ``STRIDE`` pixels.

    - ``mean``: brightness (0 to 1) in a window of so many pixels (a box filter applied twice with half the side).
    - ``detail``: log of the RMS of the difference of two Gaussians (``BANDS``).
    - bright against dark: log ratio of the energy of detail above and below the local mean; roofs stand out bright.
    - ``coherence``: of the structure tensor, |<g^2 exp(2i phi)>| / <g^2> (Bigun and Granlund 1987), with g and phi
      magnitude and direction of the gradient: near 1 where all edges are parallel.
    - ``right angles``: the same with exp(4i phi), which perpendicular edges do not cancel: field borders, streets.
    - ``low`` and ``high``: the local minimum and maximum, smoothed.
    - ``red less blue`` and ``green`` of colour pictures: (r - b) / (r + g + b) and (2g - r - b) / (r + g + b).

    Args:
        grey: ``(height, width)`` uint8.
        colour: ``(height, width, 3)`` of the same picture, 0 to 255; ``None`` of a grey one.

    Returns:
        ``(rows, columns, n)`` float32 with the ``n`` of ``FEATURES`` or ``COLOUR_FEATURES``.
    """
    from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

    values = grey.astype(np.float32) / 255
    smooth = [values, *(gaussian_filter(values, band) for band in BANDS)]
    found = [_window(values, side) for side in (9, 33, 97)]
    for fine, coarse in pairwise(smooth):
        energy = np.square(fine - coarse)
        found += [np.log(_window(energy, side) + 1e-6) / 2 for side in (17, 41)]
    detail = values - smooth[3]
    above, below = (_window(np.square(np.maximum(part, 0)), 33) for part in (detail, -detail))
    found.append(np.log(above + 1e-6) - np.log(below + 1e-6))
    down, right = np.gradient(smooth[1])
    energy = down**2 + right**2
    twice = right**2 - down**2, 2 * right * down
    for side in (17, 41):
        found.append(np.hypot(*(_window(part, side) for part in twice)) / (_window(energy, side) + 1e-7))
    four = (twice[0] ** 2 - twice[1] ** 2) / (energy + 1e-9), 2 * twice[0] * twice[1] / (energy + 1e-9)
    found.append(np.hypot(*(_window(part, 41) for part in four)) / (_window(energy, 41) + 1e-7))
    found += [_window(minimum_filter(smooth[1], 25), 9), _window(maximum_filter(smooth[1], 25), 9)]
    if colour is not None:
        red_blue, green = _chroma(colour)
        found += [_window(part, side) for part in (red_blue, green) for side in (9, 33)]
    return np.stack(found, axis=-1).astype(np.float32)


def probabilities(measured: NDArray[np.float32], model: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return ``(..., classes)`` odds of the classes of a model at places with ``(..., n)`` features; they add to 1."""
    scores = _terms(measured, model["mean"], model["scale"]) @ np.asarray(model["weights"], dtype=np.float32)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def flat_water(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a picture, ``(height, width)`` uint8, is dark and without any texture: lakes, wide rivers, sea."""
    from scipy.ndimage import binary_closing, binary_dilation, distance_transform_edt, label, uniform_filter
    from scipy.ndimage import mean as mean_of

    values = grey.astype(np.float32)
    mean = uniform_filter(values, 7)
    spread = np.sqrt(np.maximum(uniform_filter(values**2, 7) - mean**2, 0))
    flat = binary_closing((spread <= FLAT) & (mean <= FLAT_DARK), np.ones((5, 5)))
    parts, count = label(flat)
    if not count:
        return np.zeros(grey.shape, dtype=bool)
    numbers = np.arange(count + 1)
    sizes = np.bincount(parts.ravel())
    broad = np.zeros(count + 1, dtype=bool)
    broad[parts[distance_transform_edt(flat) >= FLAT_RADIUS]] = True
    chosen = broad & (sizes >= FLAT_AREA) & (np.asarray(mean_of(spread, parts, numbers)) <= FLAT_MEAN)
    chosen[0] = False
    core = chosen[parts]
    # the window of the spread meets the shore 3 pixels early
    return core | binary_dilation(core, np.ones((3, 3)), iterations=3, mask=np.abs(values - mean) <= 4 * FLAT)


def blue_water(colour: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where a colour picture, ``(height, width, 3)`` 0 to 255, is water: blue and dark in red."""
    from scipy.ndimage import gaussian_filter

    red, blue = (gaussian_filter(colour[..., i], 1) for i in (0, 2))
    found = (red <= FLAT_DARK) & (blue - red >= BLUE)
    found |= flat_water(colour[..., 0].astype(np.uint8)) & (blue > red)
    return found & ~_specks(found)


def river_lines(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a picture, ``(height, width)`` uint8, has dark, thin, winding lines (``LINES``): rivers.

    The shadows of mountains are dark lines too, but the ground beside them is uneven and dark in places, they branch,
    and their width changes; roads and railways are narrow and straight.
    """
    found = np.zeros(grey.shape, dtype=bool)
    for rule in LINES:
        found |= _lines(grey, rule)
    return found


@lru_cache(maxsize=2)
def load_coefficients(path: Path = COEFFICIENTS_FILE) -> dict[str, Any]:
    """Read the coefficients that ``fit`` returned."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def read_labels(path: Path = LABELS_FILE) -> dict[str, Any]:
    """Read hand labels; see the note in the file for their layout.

    Raises:
        InputError: the file is missing, or an entry is not well-formed.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; give the file with the hand labels.")
    labels = dict(json.loads(path.read_text(encoding="utf-8")))
    for entry in labels["patches"]:
        grid = entry["grid"]
        if len({len(row) for row in grid} | {len(grid)}) != 1 or not set("".join(grid)) <= {*LETTERS, "?"}:
            raise InputError(f"{path}: the labels of {entry['patch']} are not a square of {''.join(LETTERS)} and ?.")
    return labels


def fit(data_folder: Path, labels: Mapping[str, Any]) -> dict[str, Any]:
    """Fit the coefficients to the patches that are labelled for it, and return what ``landcover.json`` holds.

    Args:
        data_folder: with ``s1_pairs.csv`` and the optical pictures; SAR pictures are not opened.
        labels: of ``read_labels``.
    """
    grey_x, grey_y, grey_w = _hand_samples(data_folder, labels, "s1_pairs", GREY_CLASSES)
    weak_x, weak_y = _weak_samples(data_folder, labels)
    colour_x, colour_y, colour_w = _hand_samples(data_folder, labels, "s1_scenes", COLOUR_CLASSES)
    weak_w = WEAK_WEIGHT * _balance(grey_y, len(GREY_CLASSES))[weak_y]
    return {
        "grey": _model(
            np.vstack([grey_x, weak_x]), np.r_[grey_y, weak_y], np.r_[grey_w, weak_w], GREY_CLASSES, PENALTY["grey"]
        ),
        "colour": _model(colour_x, colour_y, colour_w, COLOUR_CLASSES, PENALTY["colour"]),
    }


def agreement(
    labels: Mapping[str, Any],
    data_folder: Path,
    procedure: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = class_map,
) -> dict[str, Any]:
    """Compare the maps with the hand labels of the patches that are kept for the check.

    A cell's class in the map is the one that most of its pixels have. Cells that are ``?`` do not count; wooded
    mountain (``M``) counts apart, as the share of its cells that are forest, and that are bare.

    Args:
        labels: of ``read_labels``.
        data_folder: with the optical pictures.
        procedure: what makes a map of a picture.

    Returns:
        For grey and colour patches: the confusion matrix over cells (rows: labels, columns: map, in the order of
        ``guides.CLASSES``), precision, recall and intersection over union a class, the overall agreement, and how many
        cells with a thin river have water in the map, against cells of labelled land.
    """
    found: dict[str, Any] = {}
    for kind, folder in (("grey", "s1_pairs"), ("colour", "s1_scenes")):
        entries = [one for one in labels["patches"] if one["use"] == "check" and one["patch"].startswith(folder)]
        for origin in ("all", *sorted({one["origin"] for one in entries})):
            chosen = [one for one in entries if origin in ("all", one["origin"])]
            found.setdefault(kind, {})[origin] = _compare(chosen, data_folder, procedure)
    return found


def verdicts_of(classes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what a class of the map is worth, by its figures in ``agreement``."""
    found = {}
    for name, one in classes.items():
        worst = min(one["precision"] or 0.0, one["recall"] or 0.0)
        if name == "road":
            found[name] = "never given: a road of one or two pixels cannot be told from a track, a wadi or a border"
        elif one["cells"] < FEW:
            found[name] = "untested: too few labelled cells"
        else:
            found[name] = "usable" if worst >= GOOD else "weak: often confused" if worst >= 0.4 else "not usable"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the coefficients, check them and write both; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sar_gen.training.landcover", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, help="folder with s1_pairs.csv, s1_pairs/optical and s1_scenes/optical")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--labels", type=Path, default=LABELS_FILE, help="hand labels (default: those in assets)")
    options = parser.parse_args(arguments)
    try:
        labels = read_labels(options.labels)
        found = fit(options.data, labels)
        measured = agreement(labels, options.data, lambda optical: class_map_with(found, optical))
        verdicts = {kind: verdicts_of(part["all"]["classes"]) for kind, part in measured.items()}
        how = "python -m sar_gen.training.landcover DATA OUT.json"
        write_atomic(
            options.out, (json.dumps({"how": how, "verdicts": verdicts, "measured": measured} | found) + "\n").encode()
        )
    except SarGenError as error:
        parser.exit(2 if isinstance(error, InputError) else 1, f"{error}\n")
    print(json.dumps({"verdicts": verdicts, "measured": measured}))
    return 0


def _colour(image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return the colours of a picture as float32, or None where it has none."""
    if image.ndim == 2:
        return None
    values = image.astype(np.float32)
    return None if (values.max(axis=2) - values.min(axis=2)).mean() < COLOURED else values


def _chroma(colour: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return red less blue, and the green excess, each over the sum of the three."""
    red, green, blue = (colour[..., i] for i in range(3))
    total = red + green + blue + 1
    return (red - blue) / total, (2 * green - red - blue) / total


def _window(image: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Return the mean around every ``STRIDE``th pixel: two box filters, which together are ``side`` pixels wide."""
    from scipy.ndimage import uniform_filter

    half = min(side, *image.shape) // 2 | 1
    mean = uniform_filter(uniform_filter(image.astype(np.float32), half, mode="reflect"), half, mode="reflect")
    return mean[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def _terms(measured: NDArray[np.float32], mean: Sequence[float], scale: Sequence[float]) -> NDArray[np.float32]:
    """Return 1, the standardised features (cut at 3) and their products, along the last axis."""
    middle, spread = (np.asarray(values, dtype=np.float32) for values in (mean, scale))
    z = np.clip((measured - middle) / spread, -3, 3)
    one, other = np.triu_indices(z.shape[-1])
    return np.concatenate([np.ones_like(z[..., :1]), z, z[..., one] * z[..., other]], axis=-1)


def _enlarged(odds: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return odds at every pixel, linear between the places where they were measured."""
    from scipy.ndimage import map_coordinates

    places = np.meshgrid(*((np.arange(side) - STRIDE // 2) / STRIDE for side in shape), indexing="ij")
    layers = [map_coordinates(odds[..., i], places, order=1, mode="nearest") for i in range(odds.shape[2])]
    return np.stack(layers, axis=-1).astype(np.float32)


def _guided(odds: NDArray[np.float32], grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return odds whose borders follow the edges of the picture (guided filter; He, Sun and Tang 2010)."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    # roofs and crops are no borders: the guide keeps the edges of regions only
    guide = gaussian_filter(grey.astype(np.float32) / 255, 1.5)

    def mean(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(uniform_filter(image, 2 * GUIDE_RADIUS + 1, mode="reflect"))

    centre = mean(guide)
    variance = mean(guide**2) - centre**2
    layers = []
    for i in range(odds.shape[2]):
        layer = odds[..., i]
        level = mean(layer)
        slope = (mean(guide * layer) - centre * level) / (variance + GUIDE_EDGE**2)
        layers.append(mean(slope) * guide + mean(level - slope * centre))
    return np.stack(layers, axis=-1)


def _lines(grey: NDArray[np.uint8], rule: LineRule) -> NDArray[np.bool_]:
    """Return the lines of a picture that keep a rule, ``(height, width)`` bool."""
    from scipy.ndimage import (
        binary_closing,
        binary_opening,
        convolve,
        distance_transform_edt,
        find_objects,
        gaussian_filter,
        grey_closing,
        label,
    )
    from skimage.morphology import skeletonize

    values = gaussian_filter(grey.astype(np.float32), rule.blur)
    around = np.maximum(gaussian_filter(grey_closing(values, size=(rule.reach, rule.reach)), 5 * rule.blur), 1)
    dark = (around >= 50) & (values < rule.dark * around) & (around - values >= rule.depth)
    dark = binary_closing(dark, np.ones((3, 3))) if rule.close else binary_opening(dark, np.ones((2, 2)))
    parts, _ = label(dark, np.ones((3, 3)))
    radius = distance_transform_edt(dark)
    found = np.zeros(dark.shape, dtype=bool)
    for number, box in enumerate(find_objects(parts), 1):
        extent = float(np.hypot(*(side.stop - side.start for side in box)))
        if extent < 0.8 * rule.length:
            continue
        wide = tuple(slice(max(side.start - 12, 0), side.stop + 12) for side in box)
        line = parts[wide] == number
        middle = skeletonize(line)
        length = int(middle.sum())
        width = line.sum() / max(length, 1)
        if length < rule.length or width > min(rule.width, length / rule.slender):
            continue
        forks = float((convolve(middle.astype(np.uint8), np.ones((3, 3)), mode="constant")[middle] > 3).mean())
        distance = distance_transform_edt(~line)
        beside = (distance >= 4) & (distance <= 12)
        ground = values[wide][beside]
        contrast = float(np.median(ground) - np.median(values[wide][line]))
        widths = radius[wide][middle]
        across = float(np.linalg.eigvalsh(np.cov(np.stack(np.nonzero(line))))[0])
        # a straight line of even width w has the variance w^2 / 12 across
        winding = 12 * across > max(0.1 * extent, 10) ** 2
        if (
            contrast >= 30
            and ground.std() <= 0.6 * contrast
            and np.median((values / around)[wide][line]) <= rule.median
            and dark[wide][beside].mean() <= rule.company
            and forks <= rule.forks
            and widths.std() <= rule.uneven * widths.mean()
            and (winding or width >= rule.road)
        ):
            found[wide] |= line
    return found


def _green(land: NDArray[np.uint8], grey: NDArray[np.uint8], colour: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a map of a colour picture in which green ground is fields or, where it is dark, forest."""
    from scipy.ndimage import gaussian_filter

    green = gaussian_filter(_chroma(colour)[1], 3) >= GREEN
    dark = gaussian_filter(grey.astype(np.float32), 3) < GREEN_DARK
    vegetation = np.where(dark, CLASSES.index("forest"), CLASSES.index("fields")).astype(np.uint8)
    return np.where(green & (land != CLASSES.index("water")), vegetation, land)


def _beach(land: NDArray[np.uint8], grey: NDArray[np.uint8], water: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a map in which fields and glaring ground beside the water are bare."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    if not water.any():
        return land
    open_ground = (land == CLASSES.index("fields")) | (gaussian_filter(grey.astype(np.float32), 1) >= GLARE)
    beach = (distance_transform_edt(~water) <= SHORE) & open_ground & ~water
    return np.where(beach, np.uint8(CLASSES.index("bare")), land)


def _specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the connected regions of a mask that have under ``SMALLEST`` pixels."""
    from scipy.ndimage import label

    parts, _ = label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = SMALLEST
    return np.asarray((sizes < SMALLEST)[parts])


def _without_specks(land: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a map whose regions of under ``SMALLEST`` pixels have become like the nearest larger region."""
    from scipy.ndimage import distance_transform_edt

    small = np.zeros(land.shape, dtype=bool)
    for number in np.unique(land):
        small |= _specks(land == number)
    if small.all() or not small.any():
        return land
    nearest = distance_transform_edt(small, return_distances=False, return_indices=True)
    return land[tuple(nearest)]


def _hand_samples(
    data_folder: Path, labels: Mapping[str, Any], folder: str, classes: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Return features, class numbers (into ``classes``) and weights of nine places in each cell of the fit."""
    found, numbers = [], []
    for entry in labels["patches"]:
        if entry["use"] != "fit" or not entry["patch"].startswith(folder):
            continue
        image = _picture(data_folder, entry)
        measured = features(*_planes(image))
        side = image.shape[0] // len(entry["grid"])
        for i, row in enumerate(entry["grid"]):
            for j, letter in enumerate(row):
                if LETTERS.get(letter) in classes:
                    places = [int((k + 0.25 * step) * side) // STRIDE for k in (i, j) for step in (1, 2, 3)]
                    found.append(measured[np.ix_(places[:3], places[3:])].reshape(9, -1))
                    numbers += [classes.index(LETTERS[letter])] * 9
    if not found:
        raise InputError(f"The labels have no patch of {folder} for the fit.")
    y = np.array(numbers)
    return np.vstack(found), y, _balance(y, len(classes))[y]


def _weak_samples(data_folder: Path, labels: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features and class numbers of four places in every second training patch of a terrain in ``WEAK``."""
    pairs = read_pairs(data_folder)
    named = {entry["patch"]: entry["use"] for entry in labels["patches"]}
    kept = {pair.group for pair in pairs if named.get(_name(pair.optical, data_folder)) == "check"}
    chosen = [
        pair
        for pair in pairs
        if pair.split == "train"
        and pair.terrain in WEAK
        and pair.group not in kept
        and _name(pair.optical, data_folder) not in named
    ][::2]
    found, numbers = [], []
    for pair in chosen:
        measured = features(read_grey(pair.optical))
        places = [side // 4 for side in measured.shape[:2]]
        found.append(measured[places[0] :: 2 * places[0], places[1] :: 2 * places[1]].reshape(4, -1))
        numbers += [GREY_CLASSES.index(WEAK[pair.terrain])] * 4
    return np.vstack(found), np.array(numbers)


def _balance(y: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return a weight a class: halfway (square root) between as frequent as labelled, and all alike."""
    return 1 / np.sqrt(np.maximum(np.bincount(y, minlength=count), 1))


def _model(
    x: NDArray[np.float32], y: NDArray[np.int64], weight: NDArray[np.float64], classes: Sequence[str], penalty: float
) -> dict[str, Any]:
    """Return the ridge-penalised multinomial logistic regression of class numbers on features, as JSON data."""
    from scipy.optimize import minimize

    mean, scale = x.mean(axis=0), x.std(axis=0)
    terms = _terms(x, mean, scale).astype(np.float64)
    wanted = np.eye(len(classes))[y]
    weight = (weight / weight.sum())[:, None]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(terms.shape[1], -1)
        scores = terms @ weights
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        shrunk = weights.copy()
        shrunk[0] = 0
        slope = terms.T @ ((np.exp(logs) - wanted) * weight) + 2 * penalty * shrunk
        return float(-(weight * wanted * logs).sum() + penalty * np.square(shrunk).sum()), slope.ravel()

    start = np.zeros(terms.shape[1] * len(classes))
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return {
        "classes": list(classes),
        "places": len(y),
        "mean": [round(float(value), 5) for value in mean],
        "scale": [round(float(value), 5) for value in scale],
        "weights": [[round(float(value), 4) for value in row] for row in best.reshape(-1, len(classes))],
    }


def _compare(
    entries: Sequence[Mapping[str, Any]],
    data_folder: Path,
    procedure: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> dict[str, Any]:
    """Return what ``agreement`` does, of some patches."""
    size = len(CLASSES)
    confusion = np.zeros((size, size), dtype=np.int64)
    wooded = np.zeros(size, dtype=np.int64)
    thin, land = [], []
    water = CLASSES.index("water")
    for entry in entries:
        found = procedure(_picture(data_folder, entry))
        side = found.shape[0] // len(entry["grid"])
        crossed = {tuple(place) for place in entry.get("thin_water", [])}
        for i, row in enumerate(entry["grid"]):
            for j, letter in enumerate(row):
                cell = found[i * side : (i + 1) * side, j * side : (j + 1) * side]
                counts = np.bincount(cell.ravel(), minlength=size)
                has_water = bool(counts[water] >= cell.size // 100)
                if (i, j) in crossed:
                    thin.append(has_water)
                elif letter not in "?W":
                    land.append(has_water)
                if letter == "M":
                    wooded[counts.argmax()] += 1
                elif letter != "?":
                    confusion[CLASSES.index(LETTERS[letter]), counts.argmax()] += 1
    hits = np.diag(confusion)
    classes = {}
    for number, name in enumerate(CLASSES):
        labelled, mapped = int(confusion[number].sum()), int(confusion[:, number].sum())
        classes[name] = {
            "cells": labelled,
            "precision": _share(hits[number], mapped),
            "recall": _share(hits[number], labelled),
            "iou": _share(hits[number], labelled + mapped - hits[number]),
        }
    return {
        "patches": len(entries),
        "cells": int(confusion.sum()),
        "agreement": _share(hits.sum(), confusion.sum()),
        "classes": classes,
        "confusion": confusion.tolist(),
        "wooded_mountain": dict(zip(CLASSES, wooded.tolist(), strict=True)),
        "thin_river_cells_with_water": [sum(thin), len(thin)],
        "land_cells_with_water": [sum(land), len(land)],
    }


def _share(part: int, whole: int) -> float | None:
    return round(float(part / whole), 3) if whole else None


def _picture(data_folder: Path, entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the optical picture of an entry of the labels, or the window of it: grey of pairs, colour of scenes."""
    from PIL import Image

    path = data_folder / entry["patch"]
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if entry["patch"].startswith("s1_pairs") else "RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); bring the whole data folder.") from error
    top, left, height, width = entry.get("window", (0, 0, *pixels.shape[:2]))
    return pixels[top : top + height, left : left + width]


def _planes(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return the grey picture, and the colours where there are any."""
    grey = image if image.ndim == 2 else np.rint(image.mean(axis=2)).astype(np.uint8)
    return grey, _colour(image)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


if __name__ == "__main__":
    raise SystemExit(main())
