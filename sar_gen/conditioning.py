"""What a network gets of a guide, and what generation starts from where no network reads it.

A network of layout ``studio`` takes the planes of ``PLANES``: a class map as one plane a class, optical grey, coarse
SAR, and one plane a kind that says which of them is given. So one network reads every kind. Training
(``training.guide_planes``) and the engine make the planes by the functions here, so that they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sar_gen.amplitude import grey_picture
from sar_gen.errors import InputError
from sar_gen.guide_networks import Layout, NetworkSpec
from sar_gen.guides import (
    CLASSES,
    LUMINANCE,
    check_image,
    check_not_flat,
    load_palette,
    prepare_guide,
    render,
    resize_amplitude,
    resize_map,
    resized_note,
    shrunk,
)
from sar_gen.request import IMAGE_TO_IMAGE, GenerationRequest, Guide

PlaneKind = Literal["map", "optical", "sar"]
KINDS: tuple[PlaneKind, ...] = ("map", "optical", "sar")
PLANES = (*CLASSES, "optical", "sar", *(f"has {kind}" for kind in KINDS))
COARSEST, FINEST = 8, 4
"""Pixels of the scene a pixel of the coarse SAR image, as trained: at least ``FINEST``, at most ``COARSEST``."""


@dataclass(frozen=True)
class GuideImage:
    """What a network gets of one guide, kept small: planes are made a window at a time.

    Attributes:
        kind: of the guide, ``map`` for a sketch.
        layout: of the network.
        values: ``studio``: ``(height, width)`` uint8 class numbers, or float32 grey or amplitude in [0, 1];
            ``picture``: ``(height, width, 3)`` uint8.
    """

    kind: PlaneKind
    layout: Layout
    values: NDArray[np.uint8] | NDArray[np.float32]

    def planes(self, top: int, left: int, height: int, width: int, block: int = 1) -> NDArray[np.float32]:
        """Return the planes of a window, float32 ``(channels, height, width)``.

        Beyond the image it is mirrored at the middle of its first and last ``block`` of pixels, as latents are that
        have one pixel a block.
        """
        rows = mirrored(np.arange(top, top + height), self.values.shape[0], block)
        columns = mirrored(np.arange(left, left + width), self.values.shape[1], block)
        part = self.values[rows[:, None], columns]
        if self.layout == "studio":
            return planes(self.kind, part)
        return np.moveaxis(part, 2, 0).astype(np.float32) / np.float32(255)


def mirrored(places: NDArray[np.int64], size: int, block: int = 1) -> NDArray[np.int64]:
    """Return places along a side of ``size``, those outside mirrored at the middle of the first and last block."""
    inside = np.where(places < 0, block - 1 - places, places)
    inside = np.where(inside >= size, 2 * size - block - 1 - inside, inside)
    return np.clip(inside, 0, size - 1)


@dataclass(frozen=True)
class Prepared:
    """A guide made ready.

    Attributes:
        guide: as asked for.
        network: that reads it; ``None`` for image-to-image.
        shown: ``(height, width, 3)`` uint8, what is really used.
        note: what was done with it, in a sentence or two.
        image: for the network.
        start: ``(height, width)`` float32 amplitude that generation starts from, by image-to-image.
    """

    guide: Guide
    network: NetworkSpec | None
    shown: NDArray[np.uint8]
    note: str
    image: GuideImage | None = None
    start: NDArray[np.float32] | None = None


def planes(kind: PlaneKind, values: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ``PLANES`` of one guide, float32 ``(len(PLANES), height, width)``; those of other kinds are 0.

    Args:
        kind: of the guide.
        values: ``(height, width)`` uint8 class numbers for ``map``, else float32 in [0, 1].
    """
    made = np.zeros((len(PLANES), *values.shape[:2]), np.float32)
    if kind == "map":
        made[: len(CLASSES)] = values == np.arange(len(CLASSES), dtype=np.uint8)[:, None, None]
    else:
        made[PLANES.index(kind)] = values
    made[PLANES.index(f"has {kind}")] = 1
    return made


def prepare_guides(request: GenerationRequest, known: Mapping[str, NetworkSpec]) -> tuple[Prepared, ...]:
    """Check the guides of a request (with ways and a size) and make them ready.

    Raises:
        InputError: a guide is empty, far too small, foreign to its palette or flat; the sentence says what to do.
    """
    assert request.width and request.height
    return tuple(
        prepare(guide, known.get(str(guide.way)), request.width, request.height, request.seed)
        for guide in request.guides
    )


def prepare(guide: Guide, network: NetworkSpec | None, width: int, height: int, seed: int) -> Prepared:
    """Check a guide and make it ready for its network, or without one for image-to-image.

    Args:
        guide: the image and what it shows.
        network: that reads it.
        width: of the scene, pixels.
        height: of the scene, pixels.
        seed: of the texture and speckle of a start by image-to-image.

    Raises:
        InputError: the guide cannot be used; the sentence says why and what to do.
    """
    if network is None:
        assert guide.way in (None, IMAGE_TO_IMAGE)
        ready = prepare_guide(guide, width, height, seed)
        return Prepared(guide, None, ready.shown, ready.note, start=ready.start)
    size = (height, width)
    image = check_image(guide)
    notes = list(guide.notes)
    values: NDArray[np.uint8] | NDArray[np.float32]
    kind: PlaneKind = "map" if guide.kind in ("map", "sketch") else guide.kind  # type: ignore[assignment]
    if kind == "map":
        values, shown, note = _classes(guide, image, network, size)
    elif kind == "optical":
        values, shown, note = _optical(image, network.layout, size)
    else:
        values, shown, note = _sar(image, network.layout, size)
    resized = "" if kind == "sar" else resized_note(image.shape[:2], size)
    return Prepared(
        guide, network, shown, " ".join([*notes, note]) + resized, GuideImage(kind, network.layout, values)
    )


def _classes(
    guide: Guide, image: NDArray[np.uint8], network: NetworkSpec, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
    """Return a map as the network takes it, and as shown."""
    from sar_gen.palettes import TITLES, merged_note, own_classes, palette_of, read_map, render_own, to_palette

    palette = network.kinds.get("map", "studio")
    image = shrunk(image)
    if network.layout == "picture" and palette != "studio" and palette_of(image, guide.palette) == palette:
        # The network's own palette: its own classes reach it, also those that the studio has no word for.
        shown = render_own(resize_map(own_classes(image, palette), size), palette)
        return shown, shown, f"The map goes in the colours of {TITLES[palette]}."
    read = read_map(image, guide.palette, thing="drawing" if guide.kind == "sketch" else "map")
    class_map = resize_map(read.classes, size)
    note = read.note
    for name, instead in network.untrained.items():
        if (class_map == CLASSES.index(name)).any():
            class_map = np.where(class_map == CLASSES.index(name), CLASSES.index(instead), class_map).astype(np.uint8)
            labels = {entry.name: entry.label.lower() for entry in load_palette().classes}
            note += f" {network.title} has not learned {labels[name]}: it is taken for {labels[instead]}."
    if network.layout == "studio":
        return class_map, render(class_map), note
    shown = to_palette(class_map, palette)
    return shown, shown, f"{note} {merged_note(class_map, palette)}".strip()


def _optical(
    image: NDArray[np.uint8], layout: Layout, size: tuple[int, int]
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.uint8], str]:
    check_not_flat(image.astype(np.float64) @ LUMINANCE, "optical guide")
    if layout == "picture":
        shown = _resized(image, size)
        return shown, shown, "The optical image goes to the network as it is."
    grey = optical_grey(image, size)
    shown = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    return grey, shown, "The optical image goes to the network in grey."


def optical_grey(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the luminance of an optical image (ITU-R BT.709 weights on its values as they are), at a size.

    Args:
        image: ``(height, width)`` or ``(height, width, 3)`` uint8.
        size: height and width of the result.

    Returns:
        float32 ``size`` in [0, 1].
    """
    grey = image.astype(np.float32) if image.ndim == 2 else (image.astype(np.float64) @ LUMINANCE).astype(np.float32)
    if grey.shape != size:
        grey = np.asarray(Image.fromarray(grey).resize(size[::-1], Image.Resampling.BICUBIC))
    return np.clip(grey / 255, 0, 1).astype(np.float32)


def coarse_sar(amplitude: NDArray[np.float32], size: tuple[int, int], factor: float) -> NDArray[np.float32]:
    """Return a coarse SAR image of a scene: intensity averaged over areas, then the root, enlarged again (Lanczos).

    Args:
        amplitude: ``(height, width)`` in [0, 1].
        size: height and width of the scene and of the result.
        factor: pixels of the scene a coarse pixel, along each side.
    """
    small = max(1, round(size[0] / factor)), max(1, round(size[1] / factor))
    return resize_amplitude(resize_amplitude(amplitude, small), size)


def _sar(
    image: NDArray[np.uint8], layout: Layout, size: tuple[int, int]
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.uint8], str]:
    if np.ptp(image.astype(np.int16), axis=2).max() > 2:
        raise InputError("The SAR guide is a colour picture; give a grey one, or choose 'optical' for it.")
    grey = image.mean(axis=2)
    check_not_flat(grey, "SAR guide")
    amplitude = (grey / 255).astype(np.float32)
    factor = min(size[0] / grey.shape[0], size[1] / grey.shape[1])
    note = "Grey 0 to 255 is taken as the studio's amplitude 0 to 1."
    if factor < FINEST:
        values = coarse_sar(amplitude, size, FINEST)
        note += f" It was averaged to a pixel for {FINEST} x {FINEST} of the scene, the finest that the network knows."
    else:
        values = resize_amplitude(amplitude, size)
        if factor > 1.25 * COARSEST:
            note += (
                f" One of its pixels covers {factor:.0f} of the scene's; the network has learned {COARSEST} at most."
            )
    shown = grey_picture(values)
    return (values if layout == "studio" else shown), shown, note


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
