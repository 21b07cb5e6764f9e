"""Palettes: which class a colour of a drawing, or a colour or code of a map, stands for.

The studio has six classes (``CLASSES``) with colours of its own. Maps of other makers (``PALETTES``) are read by their
colours or, where they are one band, by their codes, and each of their classes becomes one of the studio's. The files
in ``assets/palettes`` hold codes, colours, where these are from, and what is a choice of the studio's.

Colours say by themselves which palette they are of (``detect``). Codes do not: 5 is a wetland, a mixed forest or a
shrub, by the scheme. So codes are read only where the palette is named, and never guessed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.settings import ROOT

CLASSES = ("water", "fields", "forest", "urban", "bare", "road")
FOLDER = ROOT / "assets" / "palettes"
AUTO = "auto"
"""As the name of a palette: the one whose colours the picture has, else the studio's."""
TITLES = {
    "studio": "the studio",
    "sen12ms": "SEN12MS, 10 classes",
    "igbp": "IGBP, 17 classes",
    "worldcover": "ESA WorldCover",
    "dynamicworld": "Dynamic World",
    "water-ship-land": "water, ship, land",
}
PALETTES = tuple(TITLES)

NODATA = 255
"""This code stands for no data in every palette."""
PURE = 40.0
"""Euclidean RGB distance within which a colour is a palette's at once; less where its colours lie close together."""
FAR = 90.0
"""Distance beyond which a colour is foreign: half of the smallest distance between two of the studio's colours."""
FAR_AT_LEAST = 40.0
"""The same for palettes whose colours lie close together: what a JPEG does to flat colours is less than half of it."""
CLOSE = 10.0
"""A colour this near to a palette's explains a pixel: a few grey levels, under half of any two palette colours."""
DETECTED = 0.95
"""Share of the pixels that the colours of a palette must explain to be taken for it."""
MAX_FOREIGN = 0.5
"""Largest share of foreign colours or codes in a drawing or map; brush edges are a few percent."""
REACH = 2
"""Pixels that an anti-aliased edge is wide at most, to either side."""
_STRIP = 256  # rows that are snapped at once, which bounds the memory
_SAMPLED = 512  # side that a picture is thinned to, to tell its palette


@dataclass(frozen=True)
class PaletteClass:
    """One class of a palette.

    Attributes:
        name: one of ``CLASSES``: the studio's class that it is, or becomes.
        label: what the user reads.
        colour: red, green, blue.
        reference: of the studio's classes, the reference set whose terrain its law comes from, if any.
        code: its number in maps of one band.
        choice: why it becomes that class of the studio's, where that is a choice.
    """

    name: str
    label: str
    colour: tuple[int, int, int]
    reference: str | None = None
    code: int = 0
    choice: str = ""


@dataclass(frozen=True)
class Palette:
    """The classes of a scheme, in the order of their own numbers: 0, 1, 2, ..., whatever their codes.

    Attributes:
        name: one of ``PALETTES``.
        classes: the classes.
        background: own number of the class that unpainted canvas counts as.
        unpainted: colours of unpainted canvas or missing data; transparent counts as the first.
        nodata: codes that stand for no data.
        older: ``{code: own number}`` of codes in an older numbering, used where the class's own code does not occur.
        from_studio: own number that each of the studio's classes becomes.
    """

    name: str
    classes: tuple[PaletteClass, ...]
    background: int
    unpainted: tuple[tuple[int, int, int], ...]
    nodata: tuple[int, ...]
    older: dict[int, int]
    from_studio: tuple[int, ...]

    @property
    def colours(self) -> NDArray[np.uint8]:
        """``(n, 3)`` colours of the classes."""
        return np.array([entry.colour for entry in self.classes], dtype=np.uint8)

    @property
    def to_studio(self) -> NDArray[np.uint8]:
        """``(n,)`` numbers into ``CLASSES`` that the classes become."""
        return np.array([CLASSES.index(entry.name) for entry in self.classes], dtype=np.uint8)

    @property
    def pure(self) -> float:
        """A colour this near to a palette colour is that class, whatever lies around it."""
        return min(PURE, 0.45 * self._smallest_distance())

    @property
    def far(self) -> float:
        """A colour farther than this from every palette colour is foreign."""
        return min(FAR, max(self._smallest_distance() / 2, FAR_AT_LEAST))

    def _smallest_distance(self) -> float:
        colours = np.vstack([self.colours, self.unpainted]).astype(np.float64)
        distances = np.linalg.norm(colours[:, None] - colours, axis=2)
        return float(distances[~np.eye(len(colours), dtype=bool)].min())


@dataclass(frozen=True)
class Snapped:
    """A drawing or map in the classes of its own palette.

    Attributes:
        classes: ``(height, width)`` uint8 own numbers of the classes.
        painted: ``(height, width)`` bool, false on unpainted canvas, missing data and unknown codes.
        foreign: share of the pixels whose colour is far from every palette colour, or whose code is unknown.
    """

    classes: NDArray[np.uint8]
    painted: NDArray[np.bool_]
    foreign: float


@dataclass(frozen=True)
class MapRead:
    """A drawing or map in the studio's classes.

    Attributes:
        classes: ``(height, width)`` uint8 numbers into ``CLASSES``.
        painted: ``(height, width)`` bool, false on unpainted canvas, missing data and unknown codes.
        note: how it was read, in a few sentences.
        foreign: share of foreign colours or unknown codes.
        palette: the palette that it was read by.
    """

    classes: NDArray[np.uint8]
    painted: NDArray[np.bool_]
    note: str
    foreign: float
    palette: str


@dataclass(frozen=True)
class LegendRow:
    """One line of a legend: the class, and what the studio takes it for (``choice``: why, where that is a choice)."""

    code: int
    label: str
    colour: tuple[int, int, int]
    studio_label: str
    choice: str = ""


@lru_cache(maxsize=16)
def load_palette(name: str = "studio") -> Palette:
    """Read a palette.

    Raises:
        InputError: there is none of that name.
        ValueError: the file is not a palette; those that ship are.
    """
    if name not in TITLES:
        raise InputError(f"The palette {name!r} is unknown; choose one of {', '.join((AUTO, *PALETTES))}.")
    path = FOLDER / f"{name}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    if name == "studio":
        classes = tuple(
            PaletteClass(entry["name"], entry["label"], _rgb(entry["colour"]), entry["reference"], code)
            for code, entry in enumerate(data["classes"])
        )
        names = tuple(entry.name for entry in classes)
        if names != CLASSES:
            raise ValueError(f"{path} has the classes {names}, expected {CLASSES}")
        same = tuple(range(len(CLASSES)))
        return Palette(name, classes, names.index(data["background"]), (_rgb(data["unpainted"]),), (NODATA,), {}, same)
    classes = tuple(
        PaletteClass(
            entry["studio"], entry["label"], _rgb(entry["colour"]), None, entry["code"], entry.get("choice", "")
        )
        for entry in data["classes"]
    )
    number = {entry.code: place for place, entry in enumerate(classes)}
    return Palette(
        name,
        classes,
        number[data["background"]],
        tuple(_rgb(colour) for colour in data["unpainted"]),
        tuple(data["nodata"]),
        {int(code): number[now] for code, now in data.get("older", {}).items()},
        tuple(number[data["from_studio"][studio]] for studio in CLASSES),
    )


def legend(palette: str) -> list[LegendRow]:
    """Return what each class of a palette becomes."""
    labels = _studio_labels()
    return [
        LegendRow(entry.code, entry.label, entry.colour, labels[entry.name], entry.choice)
        for entry in load_palette(palette).classes
    ]


# Reading -----------------------------------------------------------------------------------------------------------


def read_map(image: NDArray[np.uint8], palette: str, *, indexed: bool = False, thing: str = "map") -> MapRead:
    """Read a drawing or map as classes of the studio's.

    Args:
        image: ``(height, width)`` uint8 codes, or ``(height, width, 3 or 4)`` uint8 colours. A grey picture of three
            channels whose values are all codes of the palette is taken for codes too (not by the studio's palette).
        palette: one of ``PALETTES``, or ``AUTO``.
        indexed: it holds codes even though it has channels (which must be the same).
        thing: what sentences call it.

    Raises:
        InputError: the palette is unknown or not the map's, codes come without the palette's name, or nothing is
            painted.
    """
    own, entry, codes = _own(image, palette, indexed, thing)
    classes = entry.to_studio[own.classes]
    classes[~own.painted] = load_palette().background
    return MapRead(classes, own.painted, _note(own, classes, entry, codes, thing), own.foreign, entry.name)


def own_classes(image: NDArray[np.uint8], palette: str, *, indexed: bool = False) -> NDArray[np.uint8]:
    """Return a map in its own palette's classes, for a network of that palette: ``(height, width)`` uint8 numbers.

    Unpainted canvas, missing data and unknown codes are the palette's background class.

    Args:
        image: as for ``read_map``.
        palette: one of ``PALETTES``.
        indexed: as for ``read_map``.

    Raises:
        InputError: as ``read_map``.
    """
    return _own(image, palette, indexed, "map")[0].classes


def _own(
    image: NDArray[np.uint8], palette: str, indexed: bool, thing: str
) -> tuple[Snapped, Palette, NDArray[np.uint8] | None]:
    """Return a map in its own palette's classes, that palette, and the codes if it holds codes."""
    entry = load_palette(palette_of(image, palette, indexed=indexed))
    codes = _codes(image, entry, indexed)
    if codes is None:
        own = snap(image, entry)
        if own.foreign > MAX_FOREIGN:
            raise InputError(_foreign_colours(image, entry, own.foreign, thing))
    else:
        own = _of_codes(codes, entry, thing)
    if not own.painted.any():
        what = "unpainted" if codes is None else "without data"
        raise InputError(
            f"Nothing is painted: the {thing} is empty (every pixel is {what}); paint at least one class, or leave "
            "the guide out."
        )
    return own, entry, codes


def render_own(classes: NDArray[np.uint8], palette: str) -> NDArray[np.uint8]:
    """Return the ``(height, width, 3)`` uint8 picture of a palette's own class numbers."""
    return load_palette(palette).colours[classes]


def render(class_map: NDArray[np.uint8], palette: Palette | None = None) -> NDArray[np.uint8]:
    """Return the ``(height, width, 3)`` uint8 picture of a class map."""
    return (load_palette() if palette is None else palette).colours[class_map]


def to_palette(class_map: NDArray[np.uint8], palette: str) -> NDArray[np.uint8]:
    """Return a map of the studio's classes in the colours of a palette, ``(height, width, 3)`` uint8.

    Classes that the palette does not tell apart become one; ``merged_note`` says which.
    """
    entry = load_palette(palette)
    return entry.colours[np.array(entry.from_studio)[class_map]]


def merged_note(class_map: NDArray[np.uint8], palette: str) -> str:
    """Return a sentence on the classes of a map that ``to_palette`` turns into others; empty where there are none."""
    entry = load_palette(palette)
    merged: dict[str, list[str]] = {}
    for number in np.unique(class_map):
        became = entry.classes[entry.from_studio[number]]
        if became.name != CLASSES[number]:
            merged.setdefault(became.label.lower(), []).append(CLASSES[number])
    return f"The palette of {TITLES[palette]} has fewer classes: it gets {_taken(merged)}." if merged else ""


def palette_of(image: NDArray[np.uint8], palette: str, *, indexed: bool = False) -> str:
    """Return the name of the palette that a map is to be read by.

    Args:
        image: as for ``read_map``.
        palette: one of ``PALETTES``, or ``AUTO``: the one whose colours it has, else the studio's.
        indexed: as for ``read_map``.

    Raises:
        InputError: it holds codes, and no palette of codes is named.
    """
    if (image.ndim == 2 or indexed) and (palette == AUTO or (palette == "studio" and not indexed)):
        raise InputError(
            "The map is one band of numbers, which can be the class codes of several schemes; choose whose they are "
            f"({_foreign_titles()}), or give a map in colours."
        )
    return (detect(image) or "studio") if palette == AUTO else palette


def detect(image: NDArray[np.uint8]) -> str | None:
    """Return which palette's colours a picture has: at least ``DETECTED`` of its painted pixels, within ``CLOSE``.

    The studio's comes first. Of several the one that explains most is taken, then the smallest. (A map in the colours
    of ``sen12ms`` is one of ``igbp`` too: both make the same of it.) Codes say nothing: ``None``.
    """
    if image.ndim == 2:
        return None
    shares = {name: explained(image, name) for name in PALETTES}
    if shares["studio"] >= DETECTED:
        return "studio"
    best = max(shares, key=lambda name: shares[name])  # of equal ones the first
    return best if shares[best] >= DETECTED else None


def explained(image: NDArray[np.uint8], palette: str) -> float:
    """Return the share of a picture's painted pixels (of a large one, some) within ``CLOSE`` of a class colour."""
    entry = load_palette(palette)
    rows, columns = (max(1, -(-side // _SAMPLED)) for side in image.shape[:2])
    pixels = flatten(image[::rows, ::columns], entry.unpainted[0]).astype(np.float32)
    distances = _squares(pixels, entry)
    known = distances[..., : len(entry.classes)].min(axis=2) <= CLOSE**2
    unpainted = ~known & (distances[..., len(entry.classes) :].min(axis=2) <= CLOSE**2)
    painted = unpainted.size - int(unpainted.sum())
    return float(known.sum() / painted) if painted else 0.0


def flatten(image: NDArray[np.uint8], background: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    """Return ``(height, width, 3)`` of an image with or without alpha, laid over ``background`` (unpainted canvas)."""
    if image.shape[2] == 3:
        return image
    below = np.array(load_palette().unpainted[0] if background is None else background, dtype=np.float32)
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + below * (1 - alpha)).astype(np.uint8)


def snap_to_palette(rgb: NDArray[np.uint8], palette: Palette | None = None) -> NDArray[np.uint8]:
    """Return the ``(height, width)`` uint8 class map of a drawing, ``(height, width, 3 or 4)`` uint8; see ``snap``."""
    return snap(rgb, palette).classes


def snap(rgb: NDArray[np.uint8], palette: Palette | None = None) -> Snapped:
    """Snap every pixel to the nearest class, without false classes along anti-aliased edges.

    A pixel within ``Palette.pure`` of a palette colour is that class. Every other pixel is a blend, and a blend of
    two colours can lie nearest to a third, so it takes the nearest colour among those that occur unblended within
    ``REACH`` pixels; only where there is none, among all. Unpainted canvas takes part as a colour of its own.
    """
    palette = load_palette() if palette is None else palette
    height, width = rgb.shape[:2]
    pure, far = palette.pure, palette.far
    nearest = np.empty((height, width), np.uint8)
    foreign = 0
    for top in range(0, height, _STRIP):
        first, last = max(top - REACH, 0), min(top + _STRIP + REACH, height)
        squares = _squares(flatten(rgb[first:last], palette.unpainted[0]).astype(np.float32), palette)
        near = squares <= pure**2
        for axis in (0, 1):
            near = _dilated(near, axis)
        near |= ~near.any(axis=2, keepdims=True)
        inside = slice(top - first, top - first + _STRIP)
        nearest[top : top + _STRIP] = np.where(near, squares, np.inf).argmin(axis=2)[inside]
        foreign += int((squares.min(axis=2)[inside] > far**2).sum())
    painted = nearest < len(palette.classes)
    nearest[~painted] = palette.background
    return Snapped(nearest, painted, foreign / nearest.size)


# Codes -------------------------------------------------------------------------------------------------------------


def knows_codes(codes: NDArray[np.uint8], palette: str) -> bool:
    """Return whether all values are codes of a palette (or no data), and one at least is a class."""
    entry = load_palette(palette)
    found = np.bincount(codes.ravel(), minlength=256)
    return not _unknown(found, entry).size and any(found[code] for code in _numbers(entry))


def _codes(image: NDArray[np.uint8], palette: Palette, indexed: bool) -> NDArray[np.uint8] | None:
    """Return the codes that an image holds, ``None`` where it holds colours."""
    if image.ndim == 2:
        return image
    grey = bool((image[..., :3] == image[..., :1]).all())
    if indexed and not grey:
        raise InputError("The map is a picture in colours and holds no codes; save the codes as one band of 8 bits.")
    if not grey or not (indexed or palette.name != "studio"):
        return None
    codes = image[..., 0].copy()
    if image.shape[2] == 4:
        codes[image[..., 3] < 128] = NODATA
    # One value alone is as well a grey sheet of paper: black is the water of two schemes.
    return codes if indexed or (knows_codes(codes, palette.name) and np.unique(codes).size > 1) else None


def _numbers(palette: Palette) -> dict[int, int]:
    return {**palette.older, **{entry.code: number for number, entry in enumerate(palette.classes)}}


def _unknown(counts: NDArray[np.int64], palette: Palette) -> NDArray[np.int64]:
    """Return the codes that occur and mean nothing, the most frequent first."""
    known = [*_numbers(palette), *palette.nodata, NODATA]
    codes = np.setdiff1d(np.flatnonzero(counts), known)
    return codes[np.argsort(-counts[codes], kind="stable")]


def _of_codes(codes: NDArray[np.uint8], palette: Palette, thing: str) -> Snapped:
    counts = np.bincount(codes.ravel(), minlength=256)
    unknown = _unknown(counts, palette)
    foreign = float(counts[unknown].sum() / codes.size)
    if unknown.size:
        others = [name for name in PALETTES[1:] if name != palette.name and knows_codes(codes, name)]
        listed = _listed([str(code) for code in unknown[:5]]) + (", ..." if unknown.size > 5 else "")
        if others:
            raise InputError(
                f"The {thing} has codes that {TITLES[palette.name]} does not have ({listed}); all of them are codes "
                f"of {_listed([TITLES[name] for name in others], 'or')}: choose that palette."
            )
        if foreign > MAX_FOREIGN:
            raise InputError(
                f"{foreign:.0%} of the {thing} has codes that are not in the palette of {TITLES[palette.name]} "
                f"({listed}); choose whose codes they are ({_foreign_titles()}), or give a map in colours."
            )
    table = np.full(256, len(palette.classes), np.uint8)
    for code, number in _numbers(palette).items():
        # Of a class with two codes the older one means it only where the newer does not occur.
        if code not in palette.older or not counts[palette.classes[number].code]:
            table[code] = number
    numbers = table[codes]
    painted = numbers < len(palette.classes)
    numbers[~painted] = palette.background
    return Snapped(numbers, painted, foreign)


# Words -------------------------------------------------------------------------------------------------------------


def _note(
    own: Snapped, classes: NDArray[np.uint8], palette: Palette, codes: NDArray[np.uint8] | None, thing: str
) -> str:
    labels = _studio_labels()
    share = np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size
    shares = ", ".join(f"{labels[CLASSES[k]]} {share[k]:.0%}" for k in np.argsort(-share, kind="stable") if share[k])
    background = CLASSES[load_palette().background]
    if palette.name == "studio":
        parts = [f"The {thing} was snapped to {shares}."]
    else:
        by = "colours" if codes is None else "codes"
        parts = [f"The {thing} was read by the {by} of {TITLES[palette.name]}: {shares}."]
        counts = np.bincount(own.classes[own.painted], minlength=len(palette.classes))
        chosen: dict[str, list[str]] = {}
        for entry, count in zip(palette.classes, counts, strict=True):
            if count and entry.choice:
                chosen.setdefault(entry.name, []).append(entry.label.lower())
        if chosen:
            parts.append(f"The studio takes {_taken(chosen)}.")
    if codes is not None:
        for code, number in palette.older.items():
            entry = palette.classes[number]
            if (codes == code).any() and not (codes == entry.code).any():
                parts.append(f"Code {code} was taken for {entry.label.lower()}, as older maps number it.")
        if own.foreign:
            unknown = _unknown(np.bincount(codes.ravel(), minlength=256), palette)
            listed = _listed([str(code) for code in unknown[:5]])
            parts.append(f"Unknown codes ({listed}, {_percent(own.foreign)}) count as {background}.")
    elif own.foreign > 0.05:
        parts.append(f"{own.foreign:.0%} of its colours are not near the palette and took the nearest class.")
    unpainted = 1 - own.painted.mean() - (own.foreign if codes is not None else 0)
    if unpainted > 1e-9:
        what = "Unpainted canvas" if codes is None else "Ground without data"
        parts.append(f"{what} ({_percent(unpainted)}) counts as {background}.")
    if share.max() == 1:
        parts.append("It is one class all over, so it gives the ground but no shapes.")
    return " ".join(parts)


def _foreign_colours(image: NDArray[np.uint8], palette: Palette, foreign: float, thing: str) -> str:
    rows, columns = (max(1, -(-side // _SAMPLED)) for side in image.shape[:2])
    pixels = flatten(image[::rows, ::columns], palette.unpainted[0]).reshape(-1, 3)
    strange = pixels[_squares(pixels.astype(np.float32), palette).min(axis=1) > palette.far**2]
    found, counts = np.unique(strange, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    worst = _listed([f"{_hex(found[k])} {_percent(counts[k] / len(pixels))}" for k in order])
    if palette.name == "studio":
        names = ", ".join(f"{entry.label} {_hex(entry.colour)}" for entry in palette.classes)
        way = f"use {names}, choose the palette that it is drawn in"
    else:
        way = "choose the palette that it is drawn in"
    return (
        f"{foreign:.0%} of the {thing} has colours that are not in the palette of {TITLES[palette.name]} (most of all "
        f"{worst}); {way}, or give the picture as an optical or SAR guide."
    )


def _studio_labels() -> dict[str, str]:
    return {entry.name: entry.label for entry in load_palette().classes}


def _foreign_titles() -> str:
    return "; ".join(TITLES[name] for name in PALETTES[1:])


def _listed(parts: list[str], last: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def _taken(merged: dict[str, list[str]]) -> str:
    return "; ".join(f"{_listed(given)} as {became}" for became, given in merged.items())


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def _hex(colour: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in colour))


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


# Colours -----------------------------------------------------------------------------------------------------------


def _squares(pixels: NDArray[np.float32], palette: Palette) -> NDArray[np.float32]:
    """Return the squared distances of pixels ``(..., 3)`` to the classes' colours, then to the unpainted ones."""
    colours = np.vstack([palette.colours, palette.unpainted]).astype(np.float32)
    # |p - c|^2 as |p|^2 - 2 p c + |c|^2; whole numbers under 2^24, so exact in float32
    return np.square(pixels).sum(axis=-1, keepdims=True) - 2 * pixels @ colours.T + np.square(colours).sum(axis=1)


def _dilated(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Return where ``mask`` holds within ``REACH`` along ``axis``."""
    grown = mask.copy()
    first, second = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
    for step in range(1, REACH + 1):
        first[step:] |= second[:-step]
        first[:-step] |= second[step:]
    return grown
