import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, label

from sar_gen.errors import InputError
from sar_gen.guides import CLASSES
from sar_gen.training import landcover

WATER, FIELDS, FOREST, URBAN, BARE, ROAD = range(len(CLASSES))


def noise(mean, spread, scale=0.7, shape=(256, 256), seed=0):
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), scale)
    return mean + spread * field / field.std()


def picture(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def town(shape=(256, 256), seed=0):
    """Bright roofs of four pixels, with streets and gardens between them."""
    generator = np.random.default_rng(seed)
    small = generator.choice([95.0, 130.0, 205.0, 240.0], size=(shape[0] // 4 + 1, shape[1] // 4 + 1))
    values = np.kron(small, np.ones((4, 4)))[: shape[0], : shape[1]]
    values[::24], values[:, ::20] = 90, 90
    return values + generator.normal(size=shape) * 4


def share(found, number):
    return float((found == number).mean())


def test_a_dark_flat_lake_is_water_and_the_ground_around_it_is_not():
    values = noise(110, 14)
    values[60:180, 80:200] = 8
    found = landcover.class_map(picture(values))
    assert share(found[65:175, 85:195], WATER) > 0.99
    values[60:180, 80:200] = noise(30, 7)[60:180, 80:200]  # as dark, with texture: a wood
    found = landcover.class_map(picture(values))
    assert share(found, WATER) < 0.01
    assert share(found[80:160, 100:180], FOREST) > 0.9


def test_a_winding_dark_line_is_one_connected_river_and_a_straight_one_is_none():
    row, column = np.mgrid[:256, :256]
    ground = noise(120, 6, 2.0)
    winding = np.abs(row - 128 - 40 * np.sin(column / 30)) < 4
    straight = np.abs(row - 128 - 0.4 * (column - 128)) < 3
    found = landcover.class_map(picture(np.where(winding, 25 + noise(0, 3), ground))) == WATER
    assert found[winding].mean() > 0.8
    assert found[~winding].mean() < 0.05
    parts, _ = label(found, np.ones((3, 3)))
    assert np.bincount(parts.ravel())[1:].max() > 0.9 * winding.sum()
    assert not (landcover.class_map(picture(np.where(straight, 25, ground))) == WATER).any()


def test_a_busy_bright_pattern_is_urban_and_dark_texture_is_forest():
    assert share(landcover.class_map(picture(town())), URBAN) > 0.9
    assert share(landcover.class_map(picture(noise(30, 5))), FOREST) > 0.9
    both = landcover.class_map(picture(np.where(np.arange(256) < 128, noise(30, 5), town())))
    assert share(both[:, :100], FOREST) > 0.9
    assert share(both[:, 156:], URBAN) > 0.9


def test_colour_pictures_know_the_sea_the_beach_and_green_woods():
    sea = np.stack([noise(level, 1) for level in (40, 75, 120)], axis=2)
    city = np.stack([town() * 0.8 + haze for haze in (0, 15, 30)], axis=2)
    image = np.where(np.arange(256)[None, :, None] < 128, sea, city)
    image[:, 128:136] = 250
    found = landcover.class_map(picture(image))
    assert share(found[:, :120], WATER) > 0.99
    assert share(found[:, 129:135], BARE) > 0.9
    assert share(found[:, 160:], URBAN) > 0.9
    woods = np.stack([noise(level, 6) for level in (30, 60, 25)], axis=2)
    assert share(landcover.class_map(picture(woods)), FOREST) > 0.9


@pytest.mark.parametrize("shape", [(37, 53), (8, 8), (256, 256), (9, 300), (40, 41, 3)])
def test_any_size_gives_a_map_of_that_size_without_roads_and_twice_the_same(shape):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    found = landcover.class_map(image)
    assert (found.shape, found.dtype) == (shape[:2], np.uint8)
    assert found.max() < ROAD
    assert np.array_equal(found, landcover.class_map(image))


def test_a_grey_picture_is_read_as_grey_however_it_is_stored():
    grey = picture(np.where(np.arange(256) < 128, noise(120, 20, 3.0), town()))
    assert np.array_equal(landcover.class_map(grey), landcover.class_map(np.repeat(grey[..., None], 3, axis=2)))


def test_small_regions_go_to_their_neighbours():
    land = np.full((64, 64), FIELDS, dtype=np.uint8)
    land[10:14, 10:14] = URBAN
    land[30:60, 30:60] = FOREST
    cleaned = landcover._without_specks(land)
    assert share(cleaned[10:14, 10:14], FIELDS) == 1
    assert np.array_equal(cleaned == FOREST, land == FOREST)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((64, 64)), "8-bit grey or RGB"),
        (np.zeros((64, 64, 4), dtype=np.uint8), "8-bit grey or RGB"),
        (np.zeros(64, dtype=np.uint8), "8-bit grey or RGB"),
        (np.zeros((64, 7), dtype=np.uint8), "at least 8 a side"),
    ],
)
def test_bad_input_is_one_clear_sentence(image, words):
    with pytest.raises(InputError, match=words) as caught:
        landcover.class_map(image)
    assert str(caught.value).count(". ") == 0


def test_the_coefficients_match_the_features():
    assert landcover.COEFFICIENTS_FILE.stat().st_size < 100_000
    image = picture(town((64, 64)))
    colour = np.repeat(image[..., None], 3, axis=2).astype(np.float32)
    for kind, names, measured in (
        ("grey", landcover.FEATURES, landcover.features(image)),
        ("colour", landcover.COLOUR_FEATURES, landcover.features(image, colour)),
    ):
        model = landcover.load_coefficients()[kind]
        count = len(names)
        assert measured.shape == (16, 16, count)
        assert len(model["mean"]) == len(model["scale"]) == count
        assert np.shape(model["weights"]) == (1 + count + count * (count + 1) // 2, len(model["classes"]))
        assert min(model["scale"]) > 0
        odds = landcover.probabilities(measured, model)
        assert np.allclose(odds.sum(axis=-1), 1, atol=1e-5)


def test_the_shipped_figures_are_of_the_shipped_labels():
    labels = landcover.read_labels()["patches"]
    measured = landcover.load_coefficients()["measured"]
    for kind, folder in (("grey", "s1_pairs"), ("colour", "s1_scenes")):
        chosen = [one for one in labels if one["use"] == "check" and one["patch"].startswith(folder)]
        letters = "".join("".join(one["grid"]) for one in chosen)
        assert measured[kind]["all"]["patches"] == len(chosen)
        assert measured[kind]["all"]["cells"] == sum(letter not in "?M" for letter in letters)
        assert np.sum(measured[kind]["all"]["confusion"]) == measured[kind]["all"]["cells"]


def test_the_labels_are_well_formed_and_the_check_is_apart_from_the_fit():
    labels = landcover.read_labels()
    assert {"what", "how", "letters"} <= set(labels)
    use = {"check": [], "fit": []}
    for entry in labels["patches"]:
        use[entry["use"]].append(entry["patch"])
        assert entry["patch"].startswith(("s1_pairs/optical/", "s1_scenes/optical/"))
        assert all(0 <= i < 4 and 0 <= j < 4 for i, j in entry.get("thin_water", []))
    assert len(use["check"]) >= 50
    pairs = [{one for one in use[kind] if one.startswith("s1_pairs")} for kind in use]
    assert not pairs[0] & pairs[1]
    checked = [one for one in labels["patches"] if one["use"] == "check"]
    whole = {one["patch"]: one["grid"] for one in labels["patches"] if one["use"] == "fit"}
    for entry in checked:
        if entry["patch"] in whole:  # a scene: the ground of its window is not in the fit
            cell = 512 // len(whole[entry["patch"]])
            top, left, height, width = (value // cell for value in entry["window"])
            rows = whole[entry["patch"]][top : top + height]
            assert {letter for row in rows for letter in row[left : left + width]} == {"?"}
    assert all(len(one["grid"]) == 4 for one in checked)


def test_labels_that_are_not_a_square_or_unknown_are_refused(tmp_path):
    path = tmp_path / "labels.json"
    with pytest.raises(InputError, match="missing"):
        landcover.read_labels(path)
    for grid in (["AA", "A"], ["AA", "AX"], ["AA"]):
        path.write_text(json.dumps({"patches": [{"patch": "one.jpg", "use": "fit", "grid": grid}]}))
        with pytest.raises(InputError, match=r"one\.jpg"):
            landcover.read_labels(path)


def small_data(folder):
    """A data folder without any SAR picture: three towns, three woods and three dry hills, and a scene."""
    rows, patches = ["split,terrain,overlap_group,sar,optical"], []
    kinds = {
        "residential": ("U", lambda seed: town((128, 128), seed)),
        "forest": ("F", lambda seed: noise(30, 5, shape=(128, 128), seed=seed)),
        "gorge": ("B", lambda seed: noise(170, 12, 3.0, (128, 128), seed)),
    }
    (folder / "s1_pairs" / "optical").mkdir(parents=True)
    (folder / "s1_scenes" / "optical").mkdir(parents=True)
    for terrain, (letter, make) in kinds.items():
        for seed in range(3):
            name = f"s1_pairs/optical/{terrain}_{seed}.png"
            Image.fromarray(picture(make(seed))).save(folder / name)
            rows.append(f"train,{terrain},{terrain}{seed},s1_pairs/sar/none.png,{name}")
            if seed < 2:
                use = ("fit", "check")[seed]
                patches.append({"patch": name, "use": use, "origin": "made", "grid": [letter * 4] * 4})
    scene = np.stack([np.where(np.arange(256) < 128, level, level + town()) for level in (20, 40, 60)], axis=2)
    Image.fromarray(picture(scene)).save(folder / "s1_scenes/optical/1.png")
    patches.append({"patch": "s1_scenes/optical/1.png", "use": "fit", "grid": ["WWUU"] * 4})
    (folder / "s1_pairs.csv").write_text("\n".join(rows) + "\n")
    return {"patches": patches}


def test_the_fit_needs_no_sar_and_tells_its_classes_apart(tmp_path):
    labels = small_data(tmp_path)
    found = landcover.fit(tmp_path, labels)
    measured = landcover.agreement(labels, tmp_path, lambda image: landcover.class_map_with(found, image))
    assert measured["grey"]["all"]["cells"] == 48
    assert measured["grey"]["all"]["agreement"] > 0.95


def test_the_agreement_counts_cells_as_they_are_labelled(tmp_path):
    labels = small_data(tmp_path)
    labels["patches"] = [
        {
            "patch": "s1_pairs/optical/forest_0.png",
            "use": "check",
            "origin": "made",
            "grid": ["FB", "M?"],
            "thin_water": [[1, 1]],
        },
        {"patch": "s1_pairs/optical/forest_1.png", "use": "check", "origin": "made", "grid": ["?"]},
    ]

    def halves(image):
        found = np.full(image.shape, FOREST, dtype=np.uint8)
        found[100:, 100:] = WATER
        return found

    measured = landcover.agreement(labels, tmp_path, halves)["grey"]["all"]
    assert (measured["cells"], measured["agreement"]) == (2, 0.5)
    assert measured["classes"]["forest"] == {"cells": 1, "precision": 0.5, "recall": 1.0, "iou": 0.5}
    assert measured["classes"]["bare"] == {"cells": 1, "precision": None, "recall": 0.0, "iou": 0.0}
    assert measured["wooded_mountain"]["forest"] == 1
    assert measured["thin_river_cells_with_water"] == [1, 1]
    assert measured["land_cells_with_water"] == [0, 3]
    verdicts = landcover.verdicts_of(measured["classes"])
    assert verdicts["forest"].startswith("untested")
    assert verdicts["road"].startswith("never")
    good = {name: {"cells": 50, "precision": 0.9, "recall": 0.8} for name in CLASSES}
    assert landcover.verdicts_of(good)["forest"] == "usable"
