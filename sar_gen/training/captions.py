"""Captions of real SAR patches: what is known of the ground, and sentences that say some of it.

A patch has facts (``FACTS``): its terrain or ground, its polarisation, whether there is water or there are buildings,
whether it is bright, dark, rough or smooth. Each is true, false or unknown. A caption states a few true facts in words
(synonyms, several templates), and remembers which, so that a caption that was written for one patch is known to be
right, wrong or undecided for every other patch. Negations ("without buildings") are never written.

How facts are derived, where no label gives them:

- Terrain comes from the label of SEN1-2's patches (VV) and the five terrains exclude each other, as its labels do.
- Water and buildings come from the co-registered optical image (``optical_fractions``).
- Ground of the VH scenes, which have no labels, follows from these fractions (``facts``).
- Bright and dark, rough and smooth come from the SAR patch (``sar_descriptors``), by quantiles of the training patches
  of one polarisation (``Thresholds``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TERRAINS = ("forest", "gorge", "agriculture", "river", "residential")
GROUNDS = ("open water", "coast", "city", "open land")
POLARISATIONS = ("vv", "vh")
ATTRIBUTES = ("water", "buildings", "bright", "dark", "rough", "smooth")
FACTS = (*TERRAINS, *GROUNDS, *POLARISATIONS, *ATTRIBUTES)

PHRASES: dict[str, tuple[str, ...]] = {
    "forest": ("forest", "a forest", "woodland", "dense forest", "trees", "a wooded area", "a forested area"),
    "gorge": (
        "a mountain gorge", "a gorge", "rugged mountains", "mountains", "a steep valley", "a canyon", "a ravine",
        "mountainous terrain",
    ),
    "agriculture": (
        "farmland", "agricultural fields", "fields", "crops", "cropland", "agriculture", "agricultural land",
        "parcels of farmland",
    ),
    "river": ("a river", "a winding river", "a river valley", "a meandering river", "a stream", "a watercourse"),
    "residential": (
        "a residential area", "a village", "a town", "houses", "a settlement", "residential buildings",
        "a small town",
    ),
    "open water": ("open water", "the sea", "a lake", "the ocean", "the open sea"),
    "coast": ("a coastline", "a coast", "a shore", "a shoreline", "the sea coast"),
    "city": (
        "suburbs", "a city", "a dense city", "an urban area", "a suburban area", "an industrial district",
        "streets and buildings", "a built-up area", "sparse buildings",
    ),
    "open land": ("open land", "scrubland", "sparse scrubland", "dry hills", "bare ground", "bare hills"),
    "vv": ("VV polarisation", "VV", "VV polarization"),
    "vh": ("VH polarisation", "VH", "VH polarization"),
    "water": ("with water", "with some water", "with a patch of water", "near water"),
    "buildings": ("with buildings", "with some buildings", "with houses and roads", "with built-up parts"),
    "bright": ("bright", "strong backscatter", "high backscatter"),
    "dark": ("dark", "weak backscatter", "low backscatter"),
    "rough": ("rough", "coarse texture", "strong relief"),
    "smooth": ("smooth", "even texture", "little relief"),
}  # fmt: skip
"""Words for each fact. The first word of ``bright`` to ``smooth`` is an adjective that may stand before "image"."""

STYLES = (
    "a SAR image", "a radar image", "a Sentinel-1 image", "a synthetic aperture radar image", "a SAR patch",
    "a satellite radar image", "synthetic aperture radar amplitude", "a C-band radar scene",
)  # fmt: skip
PROMPTS = ("a SAR image of {}", "a Sentinel-1 image of {}", "a radar image of {}", "{}")
"""Plain prompts, as users write them, for zero-shot classes and for calibration."""

FINE_SCALE = 3.0
"""Standard deviation in pixels of the Gaussian that optical detail is told from brightness with."""
BLOCK = 16
"""Side in pixels of the blocks of ground that are called built-up or not."""

Value = Literal[1, 0, -1]
"""True, false, unknown."""


@dataclass(frozen=True)
class Caption:
    """A sentence and the facts (names from ``FACTS``) that it states."""

    text: str
    stated: tuple[str, ...]


@dataclass(frozen=True)
class Thresholds:
    """Limits of brightness (mean dB) and roughness (dB) of one polarisation; see ``thresholds``."""

    dark: float
    maybe_dark: float
    maybe_bright: float
    bright: float
    smooth: float
    maybe_smooth: float
    maybe_rough: float
    rough: float

    def to_json(self) -> dict[str, float]:
        """Return the limits as JSON data."""
        return asdict(self)


def optical_fractions(
    optical: NDArray[np.uint8], amplitude: NDArray[np.float32], block: int = BLOCK
) -> tuple[float, float]:
    """Return the water and the built-up fraction of the ground of an optical image.

    Fine detail is the picture less its Gaussian mean (3 pixels). In blocks of ``block`` pixels:

    - built-up: its standard deviation is at least 25 grey levels and the mean at least 80 (roofs and streets are
      bright and pattern the picture). Of a colour image: at least 14 levels, red at least 100, and blue at least 22
      above red, since the colour images here have half the resolution and a bluish haze over all but dry hills.
    - water: no detail (at most 6 levels) and not bright (mean at most 130; of a colour image, red at most 80), **and**
      the radar sees little: the mean intensity of the block is more than 16 dB under that of amplitude 1. Both are
      asked for since dark forest is as smooth as water in a grey optical image, and radar shadow as dark as water.

    Args:
        optical: ``(height, width)`` grey or ``(height, width, 3)`` colour, 0 to 255.
        amplitude: the studio's amplitude of the same ground, ``(height, width)`` or a whole number of times as fine.
        block: side of a block in optical pixels.
    """
    from scipy.ndimage import gaussian_filter

    values = optical.astype(np.float64)
    colour = values.ndim == 3
    grey = values.mean(axis=2) if colour else values
    fine = _blocks(grey - gaussian_filter(grey, FINE_SCALE), block).std(axis=(2, 3))
    scale = amplitude.shape[0] // grey.shape[0]
    intensity = _blocks(np.square(amplitude, dtype=np.float64), block * scale).mean(axis=(2, 3))
    radar_dark = intensity < 10**-1.6
    if colour:
        red = _blocks(values[..., 0], block).mean(axis=(2, 3))
        haze = _blocks(values[..., 2] - values[..., 0], block).mean(axis=(2, 3))
        built_up = (fine >= 14) & (red >= 100) & (haze >= 22)
        water = (fine <= 6) & (red <= 80) & radar_dark
    else:
        mean = _blocks(grey, block).mean(axis=(2, 3))
        built_up = (fine >= 25) & (mean >= 80)
        water = (fine <= 6) & (mean <= 130) & radar_dark
    return float(water.mean()), float(built_up.mean())


def sar_descriptors(amplitude: NDArray[np.float32]) -> tuple[float, float]:
    """Return brightness and roughness of a patch in dB.

    Brightness is the mean intensity; roughness the standard deviation of the dB of 8 x 8 pixel means, in which little
    speckle is left.
    """
    intensity = np.square(amplitude, dtype=np.float64)
    blocks = 10 * np.log10(_blocks(intensity, 8).mean(axis=(2, 3)) + 1e-4)
    return float(10 * np.log10(intensity.mean() + 1e-4)), float(blocks.std())


def thresholds(brightness: Sequence[float], roughness: Sequence[float]) -> Thresholds:
    """Return limits from the training patches of one polarisation: the outer 30 % are called so, 15 % more may be."""
    steps = (0.3, 0.45, 0.55, 0.7)
    values = [round(float(value), 3) for data in (brightness, roughness) for value in np.quantile(data, steps)]
    return Thresholds(*values)


def facts(
    *,
    terrain: str | None,
    polarisation: str,
    water: float,
    built_up: float,
    brightness: float,
    roughness: float,
    limits: Thresholds,
) -> dict[str, Value]:
    """Return every fact of a patch as true (1), false (0) or unknown (-1).

    Args:
        terrain: label, one of ``TERRAINS``; ``None`` for a patch without one, whose ground follows from the fractions.
        polarisation: ``VV`` or ``VH``.
        water: fraction of the ground.
        built_up: fraction of the ground.
        brightness: dB.
        roughness: dB.
        limits: of the polarisation.
    """
    found: dict[str, Value] = dict.fromkeys(FACTS, 0)
    found[polarisation.lower()] = 1
    found["water"] = _above(water, 0.05, 0.01)
    found["buildings"] = _above(built_up, 0.15, 0.03)
    if terrain is not None:
        found[terrain] = 1
        if terrain == "residential":
            found["buildings"] = 1 if found["buildings"] == 1 else -1
            found["city"] = -1
        elif found["buildings"]:
            found["city"] = -1
        if terrain in ("gorge", "river"):
            found["open land"] = -1
        if terrain == "river" and not found["water"]:
            found["water"] = -1  # the river is narrow, dry, or turbid
        if found["water"]:
            found["coast"] = found["open water"] = -1
    else:
        found["open water"] = _above(water, 0.6, 0.2)
        found["coast"] = 1 if 0.1 <= water <= 0.9 else _above(min(water, 1 - water), 0.1, 0.02)
        found["city"] = _above(built_up, 0.5, 0.15)
        bare = built_up < 0.15 and water < 0.02
        found["open land"] = 1 if bare else -1 if built_up < 0.5 and water < 0.5 else 0
        found["residential"] = -1 if found["buildings"] else 0
        if found["open land"]:
            found["gorge"] = found["river"] = found["agriculture"] = -1
        if 0 < water < 0.6:
            found["river"] = -1
    for low, high, value, edges in (
        ("dark", "bright", brightness, (limits.dark, limits.maybe_dark, limits.maybe_bright, limits.bright)),
        ("smooth", "rough", roughness, (limits.smooth, limits.maybe_smooth, limits.maybe_rough, limits.rough)),
    ):
        found[low] = 1 if value <= edges[0] else -1 if value <= edges[1] else 0
        found[high] = 1 if value >= edges[3] else -1 if value >= edges[2] else 0
    return found


def caption(known: Mapping[str, int], random: Random) -> Caption:
    """Write a caption that states some of the true facts of a patch; the same generator state writes the same.

    The ground is stated in nine of ten captions, the polarisation in half, and up to two attributes.
    """
    grounds = [name for name in (*TERRAINS, *GROUNDS) if known[name] == 1]
    attributes = [name for name in ATTRIBUTES if known[name] == 1]
    polarisation = next(name for name in POLARISATIONS if known[name] == 1)
    ground = random.choice(grounds) if grounds and random.random() < 0.9 else None
    wanted = random.choice((0, 0, 1, 1, 2)) if ground else random.choice((1, 2))
    chosen = random.sample(attributes, min(wanted, len(attributes)))
    if not ground and not chosen:
        chosen = [polarisation]
    stated = [name for name in (ground, *chosen) if name]
    if polarisation not in stated and random.random() < 0.5:
        stated.append(polarisation)
    return Caption(_sentence(ground, stated, random), tuple(name for name in FACTS if name in stated))


def agreement(known: Mapping[str, int], stated: Iterable[str]) -> Value:
    """Return whether a caption that states these facts is right for a patch: true, false or unknown.

    One false fact makes it wrong, whatever is unknown besides.
    """
    values = [known[name] for name in stated]
    return 0 if 0 in values else -1 if -1 in values else 1


def stated_facts(text: str) -> tuple[str, ...]:
    """Return the facts that a prompt names with the words of ``PHRASES``; longer phrases are found first.

    "a river valley" thus names a river, and "a steep valley" a gorge. Articles are ignored.
    """
    rest = f" {' '.join(words(text))} "
    found = set()
    for fact, phrase in _KNOWN_PHRASES:
        if f" {phrase} " in rest:
            found.add(fact)
            rest = rest.replace(f" {phrase} ", " | ")
    return tuple(name for name in FACTS if name in found)


def class_prompts(fact: str, polarisation: str | None = None) -> list[str]:
    """Return plain prompts for a ground: every phrase in every template of ``PROMPTS``."""
    tail = f", {polarisation.upper()} polarisation" if polarisation else ""
    return [template.format(phrase) + tail for phrase in PHRASES[fact] for template in PROMPTS]


def words(text: str) -> list[str]:
    """Return the words of a text: lower case, letters and digits, hyphens split."""
    return re.findall(r"[a-z0-9]+", text.lower())


def vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    texts = [*(phrase for phrases in PHRASES.values() for phrase in phrases), *STYLES, *PROMPTS, *_GLUE]
    return sorted({word for text in texts for word in words(text)})


_GLUE = ("of", "showing")
_ARTICLES = {"a", "an", "the"}


def _bare(phrase: str) -> str:
    return " ".join(word for word in words(phrase) if word not in _ARTICLES)


_KNOWN_PHRASES = sorted(
    ((fact, _bare(phrase.removeprefix("with "))) for fact, phrases in PHRASES.items() for phrase in phrases),
    key=lambda pair: -len(pair[1].split()),
)


def _sentence(ground: str | None, stated: list[str], random: Random) -> str:
    """Put the stated facts into words, in an order and wording drawn from ``random``."""
    style = random.choice(STYLES)
    before = ""
    after: list[str] = []
    for name in stated:
        if name == ground:
            continue
        phrase = random.choice(PHRASES[name])
        if name in ("water", "buildings"):
            after.append(phrase)
        elif phrase == PHRASES[name][0] and name in ATTRIBUTES and not before and random.random() < 0.7:
            before = phrase
        elif phrase in ("VV", "VH") and random.random() < 0.7 and "image" in style:
            style = style.replace("image", f"{phrase} image")
        else:
            after.append(phrase)
    if before:
        article, _, rest = style.partition(" ")
        style = f"a {before} {rest}" if article == "a" else f"{before} {style}"
    if not ground:
        head = style
    else:
        noun = random.choice(PHRASES[ground])
        plain = not before and " VV " not in style and " VH " not in style
        heads = [f"{style} of {noun}", f"{style} showing {noun}", *([noun, noun] if plain else [f"{noun}, {style}"])]
        head = random.choice(heads)
    random.shuffle(after)
    after.sort(key=lambda phrase: not phrase.startswith(("with ", "near ")))
    tail = "".join(f" {phrase}" if phrase.startswith(("with ", "near ")) else f", {phrase}" for phrase in after)
    return head + tail


def _above(value: float, surely: float, maybe: float) -> Value:
    return 1 if value >= surely else -1 if value >= maybe else 0


def _blocks(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Return ``(rows, columns, side, side)`` whole blocks of an image."""
    rows, columns = (size // side for size in image.shape)
    return image[: rows * side, : columns * side].reshape(rows, side, columns, side).transpose(0, 2, 1, 3)
