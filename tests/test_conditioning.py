"""What networks get of a guide, against arrays made by hand and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sar_gen.conditioning import (
    FINEST,
    PLANES,
    GuideImage,
    coarse_sar,
    optical_grey,
    planes,
    prepare,
    prepare_guides,
)
from sar_gen.errors import InputError
from sar_gen.guide_networks import NetworkSpec
from sar_gen.guides import prepare_guide
from sar_gen.palettes import CLASSES, load_palette
from sar_gen.request import IMAGE_TO_IMAGE, GenerationRequest, Guide

KINDS = {"map": "studio", "optical": "grey", "sar": "linear"}
STUDIO = NetworkSpec("planes", "Planes", "base", "sdxl", KINDS, layout="studio")
PICTURE = NetworkSpec("colours", "Colours", "base", "sdxl", KINDS)
SHIPS = NetworkSpec("ships", "Ships", "old", "sd15", {"map": "water-ship-land"})
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = {entry.name: entry.colour for entry in load_palette().classes}


def random_classes(shape=(24, 40)):
    return np.random.default_rng(0).integers(0, len(CLASSES), shape).astype(np.uint8)


def random_picture(shape=(24, 40)):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)


def grey_picture(shape, seed=2):
    """A SAR picture, uint8 of three equal channels, and its amplitude."""
    grey = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), grey.astype(np.float64) / 255


def coloured(names, size=16):
    """A map of upright stripes of the studio's classes."""
    return np.concatenate([np.full((size, size, 3), COLOURS[name], np.uint8) for name in names], axis=1)


def block_power(amplitude, factor):
    """The root of the mean power of each block."""
    height, width = amplitude.shape
    blocks = amplitude.reshape(height // factor, factor, width // factor, factor)
    return np.sqrt((blocks**2).mean(axis=(1, 3)))


# Planes


def test_the_planes_have_these_places():
    """A trained network knows them by their number: changing the order breaks every network there is."""
    assert (
        *("water", "fields", "forest", "urban", "bare", "road", "optical", "sar"),
        *("has map", "has optical", "has sar"),
    ) == PLANES


def test_a_class_map_becomes_one_plane_a_class():
    classes = np.array([[0, 1, 2], [5, 4, 3]], np.uint8)
    wanted = np.zeros((11, 2, 3), np.float32)
    wanted[0, 0, 0] = wanted[1, 0, 1] = wanted[2, 0, 2] = wanted[5, 1, 0] = wanted[4, 1, 1] = wanted[3, 1, 2] = 1
    wanted[8] = 1  # there is a map; no optical image, no SAR
    found = planes("map", classes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("kind", "place", "presence"), [("optical", 6, 9), ("sar", 7, 10)])
def test_grey_and_amplitude_have_a_plane_and_say_that_they_are_there(kind, place, presence):
    values = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    values[2] = 0  # black is not absence
    wanted = np.zeros((11, 5, 7), np.float32)
    wanted[place], wanted[presence] = values, 1
    np.testing.assert_array_equal(planes(kind, values), wanted)


@pytest.mark.parametrize("kind", ["map", "optical", "sar", "picture"])
def test_a_window_of_the_planes_is_that_part_of_the_whole(kind):
    if kind == "picture":
        image = GuideImage("optical", "picture", random_picture())
        whole = np.moveaxis(random_picture(), 2, 0).astype(np.float32) / 255
    else:
        values = random_classes() if kind == "map" else np.random.default_rng(0).random((24, 40), dtype=np.float32)
        image, whole = GuideImage(kind, "studio", values), planes(kind, values)
    np.testing.assert_array_equal(image.planes(0, 0, 24, 40), whole)
    for top, left, height, width in ((0, 0, 8, 8), (16, 32, 8, 8), (5, 3, 11, 30)):
        part = image.planes(top, left, height, width)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, whole[:, top : top + height, left : left + width])


def test_beyond_the_image_a_window_is_mirrored_as_its_latents_are():
    """Latents are mirrored without their edge; each stands for a block, whose pixels are turned around with it."""
    values = np.random.default_rng(0).random((24, 40), dtype=np.float32)
    found = GuideImage("sar", "studio", values).planes(-16, -8, 24 + 32, 40 + 16, block=8)[PLANES.index("sar")]
    np.testing.assert_array_equal(found[16:-16, 8:-8], values)
    blocks = values.reshape(3, 8, 5, 8).mean(axis=(1, 3))
    wanted = np.pad(blocks, ((2, 2), (1, 1)), mode="reflect")
    np.testing.assert_allclose(found.reshape(7, 8, 7, 8).mean(axis=(1, 3)), wanted, rtol=1e-6)
    np.testing.assert_array_equal(found[8:16, 8:-8], values[15:7:-1])
    # Of blocks of one pixel it is numpy's own reflection.
    small = GuideImage("sar", "studio", values).planes(-3, -3, 30, 46)[PLANES.index("sar")]
    np.testing.assert_array_equal(small, np.pad(values, 3, mode="reflect"))


# Maps


def test_a_drawing_reaches_the_network_in_the_studios_classes():
    names = ["water", "forest", "road", "urban"]
    ready = prepare(Guide("sketch", coloured(names)), STUDIO, 64, 16, 0)
    wanted = np.repeat([CLASSES.index(name) for name in names], 16)[None].repeat(16, 0)
    assert (ready.image.kind, ready.image.layout) == ("map", "studio")
    np.testing.assert_array_equal(ready.image.values, wanted)
    np.testing.assert_array_equal(ready.shown, coloured(names))
    assert ready.start is None
    assert ready.note == "The drawing was snapped to Water 25%, Forest 25%, Urban 25%, Road 25%."


def test_a_map_of_codes_reaches_the_network_at_the_size_of_the_scene():
    codes = np.full((8, 8), 80, np.uint8)  # WorldCover: water, and trees to the right
    codes[:, 4:] = 10
    guide = Guide("map", codes, palette="worldcover", notes=("It was turned upright.",))
    ready = prepare(guide, STUDIO, 64, 32, 0)
    assert ready.image.values.shape == (32, 64)
    assert (ready.image.values[:, :32] == CLASSES.index("water")).all()
    assert (ready.image.values[:, 32:] == CLASSES.index("forest")).all()
    assert ready.note.startswith("It was turned upright. The map was read by the codes of ESA WorldCover")
    assert ready.note.endswith("It was resized from 8 x 8 to 64 x 32 pixels, which changes its proportions.")


def test_classes_that_the_network_has_not_learned_are_taken_for_others():
    network = NetworkSpec("n", "Net", "base", "sdxl", KINDS, "studio", untrained={"road": "fields", "bare": "urban"})
    ready = prepare(Guide("map", coloured(["road", "water", "forest"])), network, 48, 16, 0)
    assert set(np.unique(ready.image.values)) == {CLASSES.index(name) for name in ("fields", "water", "forest")}
    assert (ready.image.values[:, :16] == CLASSES.index("fields")).all()
    assert (ready.shown[:, :16] == COLOURS["fields"]).all()
    assert "Net has not learned road: it is taken for fields." in ready.note
    assert "has not learned bare" not in ready.note
    assert "not learned" not in prepare(Guide("map", coloured(["water", "forest"])), network, 32, 16, 0).note


@pytest.mark.parametrize("palette", ["water-ship-land", "auto"])
def test_a_map_in_the_networks_own_palette_keeps_what_the_studio_has_no_word_for(palette):
    image = np.full((16, 16, 3), BLUE, np.uint8)
    image[:8] = RED
    image[2:4, 2:8] = GREEN
    ready = prepare(Guide("map", image, palette=palette), SHIPS, 16, 16, 0)
    assert (ready.image.kind, ready.image.layout) == ("map", "picture")
    np.testing.assert_array_equal(ready.image.values, image)
    np.testing.assert_array_equal(ready.shown, image)
    assert ready.note == "The map goes in the colours of water, ship, land."
    np.testing.assert_array_equal(ready.image.planes(2, 2, 1, 1)[:, 0, 0], [0, 1, 0])
    codes = np.array([[0, 2], [1, 2]], np.uint8).repeat(8, 0).repeat(8, 1)
    ready = prepare(Guide("map", codes, palette="water-ship-land"), SHIPS, 16, 16, 0)
    assert (ready.image.values[:8, :8] == RED).all()
    assert (ready.image.values[8:, :8] == GREEN).all()
    assert (ready.image.values[:, 8:] == BLUE).all()


def test_a_map_of_the_studio_becomes_water_and_land():
    ready = prepare(Guide("map", coloured(["water", "forest", "urban", "road"])), SHIPS, 64, 16, 0)
    assert (ready.image.values[:, :16] == RED).all()
    assert (ready.image.values[:, 16:] == BLUE).all()
    assert "The palette of water, ship, land has fewer classes: it gets forest, urban and road as land." in ready.note
    same = prepare(Guide("map", coloured(["water", "forest"])), PICTURE, 32, 16, 0)
    np.testing.assert_array_equal(same.image.values, coloured(["water", "forest"]))


# Optical


def test_optical_grey_is_the_luminance():
    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [100, 150, 200]]], np.uint8)
    last = (0.2126 * 100 + 0.7152 * 150 + 0.0722 * 200) / 255
    found = optical_grey(image, (2, 2))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.2126, 0.7152], [0.0722, last]], atol=1e-6)
    np.testing.assert_allclose(optical_grey(image[..., 1], (2, 2)), image[..., 1] / 255, atol=1e-6)
    flat = optical_grey(np.full((9, 7, 3), 51, np.uint8), (40, 30))
    assert flat.shape == (40, 30)
    np.testing.assert_allclose(flat, 0.2, atol=1e-6)
    edge = np.zeros((8, 8), np.uint8)
    edge[:, 4:] = 255
    assert 0 <= optical_grey(edge, (64, 64)).min() < optical_grey(edge, (64, 64)).max() <= 1  # bicubic overshoots


def test_an_optical_guide_goes_in_grey_or_as_it_is():
    picture = random_picture()
    ready = prepare(Guide("optical", picture), STUDIO, 40, 24, 0)
    weights = 0.2126, 0.7152, 0.0722
    wanted = sum(weight * picture[..., k].astype(np.float64) for k, weight in enumerate(weights)) / 255
    np.testing.assert_allclose(ready.image.values, wanted, atol=1e-6)
    np.testing.assert_allclose(ready.shown[..., 1] / 255, wanted, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(prepare(Guide("optical", picture), PICTURE, 40, 24, 0).image.values, picture)
    larger = prepare(Guide("optical", picture), PICTURE, 80, 48, 0)
    assert larger.image.values.shape == (48, 80, 3)
    assert larger.note.endswith("It was resized from 40 x 24 to 80 x 48 pixels.")


# SAR


def test_a_coarse_image_has_the_mean_power_of_its_blocks():
    amplitude = np.random.default_rng(0).random((32, 48))
    blocks = block_power(amplitude, 4)
    assert (blocks**2).mean() == pytest.approx((amplitude**2).mean())
    # One coarse pixel, enlarged, is flat: its power is the mean power of all.
    np.testing.assert_allclose(coarse_sar(amplitude, (32, 48), 48), np.sqrt((amplitude**2).mean()), atol=1e-6)
    enlarged = Image.fromarray(blocks.astype(np.float32)).resize((48, 32), Image.Resampling.LANCZOS)
    found = coarse_sar(amplitude.astype(np.float32), (32, 48), 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(np.asarray(enlarged), 0, 1), atol=1e-5)
    # In decibels of the power: what Lanczos' overshoot does is small.
    assert abs(10 * np.log10((found**2).mean() / (amplitude**2).mean())) < 0.2
    # Blocks of 4 x 4 of a scene that is given at half the size are 2 x 2 of the given.
    half = coarse_sar(amplitude.astype(np.float32), (64, 96), 4)
    enlarged = Image.fromarray(block_power(amplitude, 2).astype(np.float32)).resize((96, 64), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(half, np.clip(np.asarray(enlarged), 0, 1), atol=1e-5)


def test_a_guide_finer_than_the_network_knows_is_averaged_and_says_so():
    picture, amplitude = grey_picture((64, 64))
    ready = prepare(Guide("sar", picture), STUDIO, 64, 64, 0)
    np.testing.assert_allclose(
        ready.image.values, coarse_sar(amplitude.astype(np.float32), (64, 64), FINEST), atol=1e-6
    )
    assert FINEST == 4
    coarse = np.asarray(
        Image.fromarray(block_power(amplitude, 4).astype(np.float32)).resize((64, 64), Image.Resampling.LANCZOS)
    )
    np.testing.assert_allclose(ready.image.values, coarse, atol=1e-5)
    assert "averaged to a pixel for 4 x 4 of the scene" in ready.note
    assert "resized" not in ready.note
    np.testing.assert_array_equal(
        ready.shown, np.rint(ready.image.values * 255).astype(np.uint8)[..., None].repeat(3, 2)
    )
    colours = prepare(Guide("sar", picture), PICTURE, 64, 64, 0)
    np.testing.assert_array_equal(colours.image.values, ready.shown)


@pytest.mark.parametrize(
    ("side", "words"), [(16, None), (10, None), (8, "One of its pixels covers 16 of the scene's")]
)
def test_a_coarse_guide_is_enlarged_as_it_is(side, words):
    picture, amplitude = grey_picture((side, side))
    size = 64 if side != 8 else 128
    ready = prepare(Guide("sar", picture), STUDIO, size, size, 0)
    enlarged = Image.fromarray(amplitude.astype(np.float32)).resize((size, size), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(ready.image.values, np.clip(np.asarray(enlarged), 0, 1), atol=1e-5)
    assert "averaged" not in ready.note
    assert ("covers" in ready.note) == (words is not None)
    assert words is None or words in ready.note


# All


def test_without_a_network_a_guide_is_the_start():
    guide = Guide("map", coloured(["water", "forest"]), way=IMAGE_TO_IMAGE)
    ready, old = prepare(guide, None, 64, 64, 3), prepare_guide(guide, 64, 64, 3)
    assert ready.image is None
    np.testing.assert_array_equal(ready.start, old.start)
    np.testing.assert_array_equal(ready.shown, old.shown)
    assert ready.note == old.note


def test_the_guides_of_a_request_are_made_ready_in_their_order():
    guides = (
        Guide("sar", grey_picture((16, 16))[0], way="planes"),
        Guide("map", coloured(["water", "forest"]), way="colours"),
    )
    request = GenerationRequest("a river", width=64, height=72, guides=guides)
    first, second = prepare_guides(request, {"planes": STUDIO, "colours": PICTURE})
    assert (first.guide, first.network, first.image.kind) == (guides[0], STUDIO, "sar")
    assert (second.guide, second.network, second.image.kind) == (guides[1], PICTURE, "map")
    assert first.image.values.shape == (72, 64)
    assert second.image.values.shape == (72, 64, 3)
    [start] = prepare_guides(
        GenerationRequest("x", width=64, height=64, guides=(Guide("map", coloured(["bare"])),)), {}
    )
    assert start.start.shape == (64, 64)


@pytest.mark.parametrize("network", [STUDIO, PICTURE, SHIPS])
@pytest.mark.parametrize(
    ("guide", "sentence"),
    [
        (Guide("sketch", np.full((16, 16, 3), 255, np.uint8)), "Nothing is painted: the drawing is empty"),
        (Guide("map", np.full((16, 16, 3), (0, 255, 255), np.uint8)), "not in the palette"),
        (Guide("map", np.zeros((16, 16), np.uint8)), "one band of numbers"),
        (Guide("map", np.full((16, 16), 80, np.uint8), palette="corine"), "palette 'corine' is unknown"),
        (Guide("map", np.zeros((4, 64, 3), np.uint8)), "64 x 4 pixels; give at least 8"),
        (Guide("optical", np.full((16, 16, 3), 90, np.uint8)), "The optical guide is one flat grey"),
        (Guide("optical", np.zeros((16, 16, 3), np.float32)), "give an 8-bit picture"),
        (Guide("sar", np.full((16, 16, 3), 90, np.uint8)), "The SAR guide is one flat grey"),
        (Guide("sar", random_picture()), "The SAR guide is a colour picture"),
    ],
)
def test_guides_that_cannot_be_used_are_one_sentence(network, guide, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        prepare(guide, network, 64, 64, 0)
    assert "\n" not in str(caught.value)
