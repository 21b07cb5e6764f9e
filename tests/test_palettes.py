import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from sar_gen import palettes
from sar_gen.errors import InputError
from sar_gen.palettes import (
    CLASSES,
    NODATA,
    PALETTES,
    detect,
    legend,
    load_palette,
    merged_note,
    own_classes,
    read_map,
    render,
    render_own,
    snap,
    snap_to_palette,
    to_palette,
)
from tests.drawings import COLOURS, WHITE, drawn, river

WATER, FIELDS, FOREST, URBAN, BARE, ROAD = range(6)
FOREIGN = PALETTES[1:]


# Palette and snapping


def test_palette_colours_survive_blending():
    """Of the blends of two colours at most a sixth may lie nearest to a third; cf. the palette's own note."""
    colours = np.array([*COLOURS.values(), WHITE], dtype=float)
    t = np.linspace(0, 1, 256)[:, None]
    shares = []
    for i, j in itertools.combinations(range(len(colours)), 2):
        blends = colours[i] * (1 - t) + colours[j] * t
        nearest = np.linalg.norm(blends[:, None] - colours, axis=2).argmin(axis=1)
        shares.append(np.mean((nearest != i) & (nearest != j)))
        assert np.linalg.norm(colours[i] - colours[j]) > 2 * palettes.FAR
    assert max(shares) <= 1 / 6
    assert sum(shares) < 1


@pytest.mark.parametrize(("ground", "line"), itertools.permutations([*COLOURS, "white"], 2))
def test_edges_never_become_a_third_class(ground, line):
    colours = {**COLOURS, "white": WHITE}
    image = drawn(colours[ground], lambda draw, size: river(draw, size, colours[line]))
    hard = np.asarray(Image.fromarray(image)).copy()
    snapped = snap(image)
    names = np.where(snapped.painted, np.array(CLASSES)[snapped.classes], "white")
    assert set(names.ravel()) == {ground, line}
    # every pixel that is more than 90 % one colour is that colour
    pure = np.linalg.norm(hard.astype(float) - colours[line], axis=2) < 0.1 * np.linalg.norm(
        np.subtract(colours[ground], colours[line], dtype=float)
    )
    assert (names[pure] == line).all()


def test_thin_lines_keep_their_class():
    image = drawn(COLOURS["fields"], lambda draw, size: draw.line([(0, size // 3), (size, size)], COLOURS["road"], 12))
    classes = snap(image).classes
    assert set(np.unique(classes)) == {FIELDS, ROAD}
    assert (classes == ROAD).any(axis=0).all()  # an unbroken line crosses every column


def test_map_of_pure_colours_comes_back_exactly():
    classes = np.random.default_rng(0).integers(0, len(CLASSES), (40, 30)).astype(np.uint8)
    picture = render(classes)
    assert picture.shape == (40, 30, 3)
    assert (snap_to_palette(picture) == classes).all()


def test_transparent_and_white_canvas_count_as_background():
    image = np.zeros((16, 16, 4), dtype=np.uint8)  # black, but transparent
    image[4:8, 4:8] = (*COLOURS["water"], 255)
    snapped = snap(image)
    assert snapped.painted.sum() == 16
    assert (snapped.classes[~snapped.painted] == FIELDS).all()
    assert (snap(palettes.flatten(image)).classes == snapped.classes).all()


def test_tall_pictures_are_snapped_in_strips_without_seams():
    """A blend on a seam takes the nearer colour even where that one lies beyond the strip."""
    strip = palettes._STRIP
    water, urban = np.array(COLOURS["water"], float), np.array(COLOURS["urban"], float)
    image = np.empty((3 * strip, 8, 3), np.uint8)
    image[:strip], image[strip : 2 * strip], image[2 * strip :] = water, urban, water
    image[strip] = 0.7 * water + 0.3 * urban  # the first row of a strip, whose colour ends in the strip before
    image[2 * strip - 1] = 0.7 * water + 0.3 * urban  # the last row
    classes = snap(image).classes
    assert (classes[: strip + 1] == WATER).all()
    assert (classes[strip + 1 : 2 * strip - 1] == URBAN).all()
    assert (classes[2 * strip - 1 :] == WATER).all()


# Codes and colours of others, typed from their own documents


@pytest.mark.parametrize(
    ("palette", "code", "label", "colour", "studio"),
    [
        # ESA WorldCover product user manual
        ("worldcover", 10, "Tree cover", "#006400", "forest"),
        ("worldcover", 20, "Shrubland", "#ffbb22", "fields"),
        ("worldcover", 30, "Grassland", "#ffff4c", "fields"),
        ("worldcover", 40, "Cropland", "#f096ff", "fields"),
        ("worldcover", 50, "Built-up", "#fa0000", "urban"),
        ("worldcover", 60, "Bare", "#b4b4b4", "bare"),
        ("worldcover", 70, "Snow", "#f0f0f0", "bare"),
        ("worldcover", 80, "water", "#0064c8", "water"),
        ("worldcover", 90, "wetland", "#0096a0", "fields"),
        ("worldcover", 95, "Mangroves", "#00cf75", "forest"),
        ("worldcover", 100, "Moss", "#fae6a0", "bare"),
        # Dynamic World, Earth Engine catalogue
        ("dynamicworld", 0, "Water", "#419bdf", "water"),
        ("dynamicworld", 1, "Trees", "#397d49", "forest"),
        ("dynamicworld", 2, "Grass", "#88b053", "fields"),
        ("dynamicworld", 3, "Flooded", "#7a87c6", "fields"),
        ("dynamicworld", 4, "Crops", "#e49635", "fields"),
        ("dynamicworld", 5, "Shrub", "#dfc35a", "fields"),
        ("dynamicworld", 6, "Built", "#c4281b", "urban"),
        ("dynamicworld", 7, "Bare", "#a59b8f", "bare"),
        ("dynamicworld", 8, "Snow", "#b39fe1", "bare"),
        # MCD12Q1 LC_Type1, Earth Engine catalogue
        ("igbp", 1, "Evergreen needle", "#05450a", "forest"),
        ("igbp", 2, "Evergreen broad", "#086a10", "forest"),
        ("igbp", 3, "Deciduous needle", "#54a708", "forest"),
        ("igbp", 4, "Deciduous broad", "#78d203", "forest"),
        ("igbp", 5, "Mixed", "#009900", "forest"),
        ("igbp", 6, "Closed shrub", "#c6b044", "fields"),
        ("igbp", 7, "Open shrub", "#dcd159", "fields"),
        ("igbp", 8, "Woody savanna", "#dade48", "forest"),
        ("igbp", 9, "Savanna", "#fbff13", "fields"),
        ("igbp", 10, "Grass", "#b6ff05", "fields"),
        ("igbp", 11, "wetland", "#27ff87", "fields"),
        ("igbp", 12, "Cropland", "#c24f44", "fields"),
        ("igbp", 13, "Urban", "#a5a5a5", "urban"),
        ("igbp", 14, "mosaic", "#ff6d4c", "fields"),
        ("igbp", 15, "snow", "#69fff8", "bare"),
        ("igbp", 16, "Barren", "#f9ffa4", "bare"),
        ("igbp", 17, "Water", "#1c0dff", "water"),
        # the baseline of the Data Fusion Contest 2020
        ("sen12ms", 1, "Forest", "#009900", "forest"),
        ("sen12ms", 2, "Shrubland", "#c6b044", "fields"),
        ("sen12ms", 3, "Savanna", "#fbff13", "fields"),
        ("sen12ms", 4, "Grassland", "#b6ff05", "fields"),
        ("sen12ms", 5, "Wetlands", "#27ff87", "fields"),
        ("sen12ms", 6, "Croplands", "#c24f44", "fields"),
        ("sen12ms", 7, "Urban", "#a5a5a5", "urban"),
        ("sen12ms", 8, "Snow", "#69fff8", "bare"),
        ("sen12ms", 9, "Barren", "#f9ffa4", "bare"),
        ("sen12ms", 10, "Water", "#1c0dff", "water"),
        # red water, green ship, blue land
        ("water-ship-land", 0, "Water", "#ff0000", "water"),
        ("water-ship-land", 1, "Ship", "#00ff00", "urban"),
        ("water-ship-land", 2, "Land", "#0000ff", "fields"),
    ],
)
def test_known_codes_and_colours(palette, code, label, colour, studio):
    rgb = tuple(bytes.fromhex(colour[1:]))
    row = next(row for row in legend(palette) if row.code == code)
    assert label.lower() in row.label.lower()
    assert row.colour == rgb
    assert row.studio_label == next(entry.label for entry in load_palette().classes if entry.name == studio)
    number = CLASSES.index(studio)
    read = read_map(np.full((8, 8), code, np.uint8), palette)
    assert (read.classes == number).all()
    assert read.painted.all()
    assert (read_map(np.full((8, 8, 3), rgb, np.uint8), palette).classes == number).all()


def test_each_palette_has_all_its_classes():
    counts = {"studio": 6, "sen12ms": 10, "igbp": 17, "worldcover": 11, "dynamicworld": 9, "water-ship-land": 3}
    assert {name: len(legend(name)) for name in PALETTES} == counts
    assert [row.code for row in legend("studio")] == list(range(6))


@pytest.mark.parametrize("palette", FOREIGN)
def test_files_name_their_sources_and_mark_what_is_inferred(palette):
    data = json.loads((palettes.FOLDER / f"{palette}.json").read_text())
    assert any(re.search("https?://|arXiv", source) for source in data["source"])
    assert any("choices" in text for text in data["inferred"])
    plain = {"water", "forest", "trees", "tree", "crop", "grass", "urban", "built", "bare", "barren"}
    for entry in data["classes"]:
        words = entry["label"].lower()
        assert entry.get("choice") or any(word in words for word in plain), words
    if palette == "water-ship-land":
        assert any("order of the channels" in text for text in data["inferred"])


def test_schemes_that_share_colours_agree():
    """SEN12MS' simplified scheme took its colours from IGBP: which of the two is detected must not matter."""
    igbp = {row.colour: row.studio_label for row in legend("igbp")}
    for row in legend("sen12ms"):
        assert igbp[row.colour] == row.studio_label, row.label


@pytest.mark.parametrize("palette", FOREIGN)
def test_pictures_of_a_palette_come_back(palette):
    """Random class maps, as pictures and as codes, one class a pixel: no neighbour lends its class."""
    entry = load_palette(palette)
    own = np.random.default_rng(1).integers(0, len(entry.classes), (64, 48)).astype(np.uint8)
    picture = render_own(own, palette)
    codes = np.array([one.code for one in entry.classes], np.uint8)[own]
    expected = np.array([CLASSES.index(one.name) for one in entry.classes])[own]
    for image in (picture, codes, np.dstack([picture, np.full(own.shape, 255, np.uint8)])):
        assert (own_classes(image, palette) == own).all()
        read = read_map(image, palette)
        assert (read.classes == expected).all()
        assert read.foreign == 0
        assert read.palette == palette


@pytest.mark.parametrize("palette", FOREIGN)
@pytest.mark.parametrize("quality", [95, 75])
def test_jpeg_of_a_map_keeps_its_classes(palette, quality, tmp_path):
    """Patches of 16 pixels, as a map of 10 m shows fields; all but pixels along their borders must come back."""
    entry = load_palette(palette)
    own = np.random.default_rng(2).integers(0, len(entry.classes), (12, 12)).astype(np.uint8)
    own = np.kron(own, np.ones((16, 16), np.uint8))
    Image.fromarray(render_own(own, palette)).save(tmp_path / "map.jpg", quality=quality, subsampling=2)
    image = np.asarray(Image.open(tmp_path / "map.jpg"))
    inside = np.kron(np.ones((12, 12), bool), np.pad(np.ones((10, 10), bool), 3))
    assert (own_classes(image, palette)[inside] == own[inside]).mean() > 0.97
    assert (own_classes(image, palette) == own).mean() > 0.9


def test_anti_aliased_edges_of_a_foreign_map_are_no_third_class():
    colours = {row.label: row.colour for row in legend("worldcover")}
    for line, ground in itertools.permutations(["Tree cover", "Cropland", "Built-up", "Permanent water bodies"], 2):
        image = drawn(colours[ground], lambda draw, size, colour=colours[line]: river(draw, size, colour))
        labels = {legend("worldcover")[number].label for number in np.unique(own_classes(image, "worldcover"))}
        assert labels == {line, ground}


def test_edges_between_close_colours_are_seldom_a_third_class():
    """IGBP's colours are 21 grey levels apart at the least: what counts as a pure colour must be as narrow."""
    classes = load_palette("igbp").classes
    third = []
    for line, ground in itertools.permutations(range(0, len(classes), 2), 2):
        image = drawn(
            classes[ground].colour, lambda draw, size, colour=classes[line].colour: river(draw, size, colour), side=64
        )
        third.append((~np.isin(own_classes(image, "igbp"), (line, ground))).mean())
    assert np.mean(third) < 0.002
    assert max(third) < 0.05


# Detection


@pytest.mark.parametrize("palette", PALETTES)
def test_palettes_are_detected_by_their_colours(palette):
    classes = load_palette(palette).classes
    own = np.random.default_rng(3).integers(0, len(classes), (16, 16)).astype(np.uint8)
    picture = np.kron(render_own(own, palette), np.ones((8, 8, 1), np.uint8))
    noisy = np.clip(picture.astype(int) + np.random.default_rng(4).integers(-4, 5, picture.shape), 0, 255)
    assert detect(picture) == palette
    assert detect(noisy.astype(np.uint8)) == palette
    assert read_map(picture, "auto").palette == palette


def test_detection_needs_nearly_all_pixels():
    picture = np.full((100, 100, 3), (0, 100, 0), np.uint8)  # WorldCover's trees
    picture[:4] = (90, 20, 120)
    assert detect(picture) == "worldcover"
    picture[:6] = (90, 20, 120)
    assert detect(picture) is None
    assert detect(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)) is None
    assert detect(np.full((64, 64), 80, np.uint8)) is None


def test_missing_ground_does_not_hide_a_palette():
    """A reprojected map lies in black or transparent corners."""
    picture = np.zeros((90, 90, 3), np.uint8)
    picture[30:60, 30:60] = (0, 100, 200)
    assert detect(picture) == "worldcover"
    junk = np.where(picture.any(axis=2, keepdims=True), picture, 99).astype(np.uint8)
    assert detect(np.dstack([junk, (picture.any(axis=2) * 255).astype(np.uint8)])) == "worldcover"
    assert detect(np.full((64, 64, 3), 255, np.uint8)) is None
    # a doodle in pure blue on white paper is no mask of channels, each pixel of which is a class
    doodle = np.full((64, 64, 3), 255, np.uint8)
    doodle[:20] = (0, 0, 255)
    assert detect(doodle) is None


def test_drawings_in_studio_colours_are_the_studios():
    assert detect(drawn(COLOURS["forest"], river)) in ("studio", None)  # its edges may be over 5 %
    assert read_map(drawn(COLOURS["forest"], river), "auto").palette == "studio"


# Codes


@pytest.mark.parametrize("palette", ["auto", "studio"])
def test_codes_without_a_scheme_are_refused(palette):
    with pytest.raises(InputError, match="one band of numbers") as refusal:
        read_map(np.full((8, 8), 4, np.uint8), palette)
    for name in FOREIGN:
        assert palettes.TITLES[name] in str(refusal.value)


def test_the_studios_own_numbers_are_read_when_said():
    classes = np.random.default_rng(0).integers(0, 6, (16, 16)).astype(np.uint8)
    assert (read_map(classes, "studio", indexed=True).classes == classes).all()
    with pytest.raises(InputError, match="one band"):
        read_map(np.repeat(classes[..., None], 3, axis=2), "auto", indexed=True)


def test_unknown_palettes_are_refused():
    with pytest.raises(InputError, match="'corine' is unknown; choose one of auto, studio, sen12ms"):
        read_map(np.zeros((8, 8, 3), np.uint8), "corine")


def test_codes_of_another_scheme_are_refused_by_name():
    """An IGBP map read as SEN12MS' ten classes would turn woody savanna (8) into snow."""
    codes = np.full((32, 32), 8, np.uint8)
    codes[0, 0] = 17
    with pytest.raises(InputError, match=r"does not have \(17\).*IGBP.*choose that palette"):
        read_map(codes, "sen12ms")
    assert (read_map(codes, "igbp").classes[1:] == FOREST).all()
    with pytest.raises(InputError, match="ESA WorldCover: choose"):
        read_map(np.array([[10, 80], [95, 100]], np.uint8), "dynamicworld")


def test_many_unknown_codes_are_refused_and_few_are_said():
    codes = np.full((10, 10), 10, np.uint8)
    codes[:6] = 123
    codes[6, 0] = 47
    with pytest.raises(InputError, match=r"61% of the map has codes .*ESA WorldCover \(123 and 47\)"):
        read_map(codes, "worldcover")
    codes[:6] = 10
    codes[0] = 123
    read = read_map(codes, "worldcover")
    assert read.foreign == pytest.approx(0.11)
    assert "Unknown codes (123 and 47, 11%) count as fields." in read.note
    assert (read.classes[0] == FIELDS).all()
    assert not read.painted[0].any()
    assert "without data" not in read.note


def test_no_data_is_background_and_said():
    codes = np.full((10, 10), 80, np.uint8)
    codes[:2], codes[2] = 0, NODATA
    read = read_map(codes, "worldcover")
    assert (read.classes[3:] == WATER).all()
    assert (read.classes[:3] == FIELDS).all()
    assert not read.painted[:3].any()
    assert "Ground without data (30%) counts as fields." in read.note
    with pytest.raises(InputError, match=r"Nothing is painted.*without data"):
        read_map(np.zeros((10, 10), np.uint8), "worldcover")
    # in Dynamic World 0 is water
    assert (read_map(np.zeros((10, 10), np.uint8), "dynamicworld").classes == WATER).all()


def test_older_igbp_numbers_water_as_0():
    codes = np.full((10, 10), 12, np.uint8)
    codes[:5] = 0
    read = read_map(codes, "igbp")
    assert (read.classes[:5] == WATER).all()
    assert "Code 0 was taken for water bodies" in read.note
    codes[5] = 17  # the newer numbering: 0 is then no class
    read = read_map(codes, "igbp")
    assert not read.painted[:5].any()
    assert "Code 0" not in read.note


def test_grey_pictures_of_codes_are_codes():
    """WorldCover codes saved as RGB: colours near black, which as colours would be missing ground."""
    codes = np.random.default_rng(0).choice(np.array([10, 40, 80], np.uint8), (20, 20))
    picture = np.repeat(codes[..., None], 3, axis=2)
    read = read_map(picture, "worldcover")
    assert ((read.classes == WATER) == (codes == 80)).all()
    assert "codes of ESA WorldCover" in read.note
    alpha = np.dstack([picture, np.where(codes == 10, 0, 255).astype(np.uint8)])
    assert ((~read_map(alpha, "worldcover").painted) == (codes == 10)).all()
    with pytest.raises(InputError, match="holds no codes"):
        read_map(drawn(COLOURS["fields"], river), "worldcover", indexed=True)
    # a black sheet is no water of Dynamic World's
    with pytest.raises(InputError, match="Nothing is painted"):
        read_map(np.zeros((20, 20, 3), np.uint8), "dynamicworld")


# Words


def test_notes_say_the_choices():
    codes = np.array([[70, 80, 90], [80, 80, 20], [80, 80, 80]], np.uint8)
    note = read_map(codes, "worldcover").note
    assert "Water 67%" in note
    assert "snow and ice as bare" in note
    assert "herbaceous wetland as fields" in note
    assert "permanent water" not in note  # no choice
    assert "one class all over" in read_map(np.full((9, 9), 80, np.uint8), "worldcover").note


def test_foreign_colours_are_named_with_their_share():
    picture = np.full((10, 10, 3), (128, 128, 128), np.uint8)
    picture[:3] = (60, 130, 130)
    picture[9] = COLOURS["water"]
    with pytest.raises(InputError, match=r"90% of the map .*#808080 60% and #3c8282 30%") as refusal:
        read_map(picture, "studio")
    assert "Water #1468fa" in str(refusal.value)
    assert "optical" in str(refusal.value)
    with pytest.raises(InputError, match=r"not in the palette of Dynamic World .*choose the palette"):
        read_map(np.full((10, 10, 3), (255, 0, 255), np.uint8), "dynamicworld")


@pytest.mark.parametrize(("given", "asked"), itertools.permutations(["worldcover", "dynamicworld", "studio"], 2))
def test_maps_of_another_palette_are_not_read_silently(given, asked):
    own = np.random.default_rng(5).integers(0, len(load_palette(given).classes), (16, 16)).astype(np.uint8)
    picture = np.kron(render_own(own, given), np.ones((8, 8, 1), np.uint8))
    told = ""
    try:
        told = read_map(picture, asked).note
    except InputError as refusal:
        told = str(refusal)
    assert "not in the palette" in told or "not near the palette" in told


def test_few_foreign_colours_are_said():
    picture = np.full((10, 10, 3), COLOURS["forest"], np.uint8)
    picture[0] = (128, 128, 128)
    assert "10% of its colours are not near the palette" in read_map(picture, "studio").note


# To other palettes


@pytest.mark.parametrize("palette", ["sen12ms", "igbp", "worldcover", "dynamicworld"])
def test_studio_maps_survive_a_foreign_palette(palette):
    """There and back again, save roads, for which none has a class."""
    classes = np.random.default_rng(0).integers(0, 6, (20, 20)).astype(np.uint8)
    back = read_map(to_palette(classes, palette), palette).classes
    assert (back == np.where(classes == ROAD, URBAN, classes)).all()
    assert merged_note(classes, palette).endswith("it gets road as " + back_label(palette) + ".")
    assert merged_note(np.full((4, 4), WATER, np.uint8), palette) == ""


def back_label(palette):
    return {
        "sen12ms": "urban, built-up",
        "igbp": "urban and built-up lands",
        "worldcover": "built-up",
        "dynamicworld": "built area",
    }[palette]


def test_water_ship_land_gets_water_and_land():
    classes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    picture = to_palette(classes, "water-ship-land")
    assert (picture[classes == WATER] == (255, 0, 0)).all()
    assert (picture[classes != WATER] == (0, 0, 255)).all()
    assert "forest, urban, bare and road as land" in merged_note(classes, "water-ship-land")
    assert (to_palette(classes, "studio") == render(classes)).all()
    assert merged_note(classes, "studio") == ""


def test_ships_reach_a_network_of_their_palette():
    """The studio has no word for them; the mask's own classes keep them, also from a JPEG-like mask."""
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:16] = (250, 3, 4)
    mask[16:] = (0, 2, 252)
    mask[4:8, 4:12] = (6, 249, 1)
    own = own_classes(mask, "water-ship-land")
    assert (own[4:8, 4:12] == 1).all()
    assert np.bincount(own.ravel()).tolist() == [512 - 32, 32, 512]
    assert (render_own(own, "water-ship-land")[5, 5] == (0, 255, 0)).all()
    read = read_map(mask, "water-ship-land")
    assert (read.classes[4:8, 4:12] == URBAN).all()
    assert "ship as urban" in read.note
    with pytest.raises(InputError, match="Nothing is painted"):
        own_classes(np.zeros((8, 8, 3), np.uint8), "water-ship-land")
