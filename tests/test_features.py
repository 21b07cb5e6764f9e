import csv
import dataclasses
import json
import threading

import numpy as np
import pytest
from PIL import Image

from sar_gen import features
from sar_gen.errors import InputError
from sar_gen.features import (
    FeaturesStoppedError,
    build_features,
    features_of,
    reference_features,
    set_report,
    training_features,
    training_set,
)
from sar_gen.files import sha256_of
from sar_gen.patches import Patch, PixelMeaning
from sar_gen.quality.semantic import load_sarclip
from sar_gen.quality.sets import TrainingFeatures
from sar_gen.quality.statistics import patch_statistics
from sar_gen.reference_statistics import TERRAINS, read_grey, scene_crops
from sar_gen.references import ReferenceSet, add_reference, from_patches, load_reference
from sar_gen.settings import Settings
from tests.quality.test_semantic import write_clip

SHIPPED_SETS = (*(f"s1-{terrain}" for terrain in TERRAINS), "s1-vh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def model(folder):
    return load_sarclip(folder)


def speckle(seed, side=64, mean=0.2):
    rng = np.random.default_rng(seed)
    return (mean * np.sqrt(rng.gamma(4, 1 / 4, (side, side)))).clip(0, 1).astype(np.float32)


def patches(count, first=0, **facts):
    return [Patch(speckle(first + i, mean=0.1 + 0.01 * i), f"p{i}", polarisation="VV", **facts) for i in range(count)]


# Patches -----------------------------------------------------------------------------------------------------------


def test_features_come_in_steps_and_are_those_of_the_model(model):
    mine = patches(11)
    seen = []
    found = features_of(mine, model, lambda done, total: seen.append((done, total)))
    assert seen == [(8, 11), (11, 11)]
    assert found == pytest.approx(load_model_features(model, mine), abs=1e-5)
    assert features_of([patch.amplitude for patch in mine[:2]], model) == pytest.approx(found[:2])
    assert features_of([], model).shape == (0, 16)


def load_model_features(model, mine):
    """Straight from the tower, past what is remembered."""
    return model._features([patch.amplitude for patch in mine])


def test_known_patches_are_not_computed_again(model):
    mine = patches(3)
    found = features_of(mine, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model, "get_image_features", None)  # the tower is gone
        assert np.array_equal(features_of([mine[2], mine[0]], model), found[[2, 0]])
        with pytest.raises(TypeError):
            features_of(patches(1, first=50), model)


def test_it_can_be_stopped(model):
    cancel = threading.Event()
    with pytest.raises(FeaturesStoppedError):
        features_of(patches(20), model, lambda done, total: cancel.set(), cancel)
    assert len(model._known) == features.AT_ONCE


# Reference sets ----------------------------------------------------------------------------------------------------


def test_features_of_a_set_are_kept_by_its_pixels(folder, settings):
    mine = patches(5)
    reference = from_patches([dataclasses.replace(p, group=f"g{i // 2}") for i, p in enumerate(mine)], "mine")
    model = load_sarclip(folder)
    found = reference_features(reference, settings, model)
    assert found.groups == ("g0", "g0", "g1", "g1", "g2")
    assert found.names == tuple(patch.name for patch in mine)
    assert not found.note
    assert found.features == pytest.approx(load_model_features(model, mine), abs=2e-3)
    (kept,) = (settings.home / "features").iterdir()
    again = load_sarclip(folder)
    assert np.array_equal(reference_features(reference, settings, again).features, found.features)
    assert not again._known  # from the file
    kept.write_bytes(kept.read_bytes()[:-3])
    assert np.array_equal(reference_features(reference, settings, again).features, found.features)
    assert again._known
    changed = from_patches([dataclasses.replace(mine[0], amplitude=speckle(99)), *mine[1:]], "mine")
    assert not np.allclose(reference_features(changed, settings, again).features[0], found.features[0], atol=1e-3)


def test_all_patches_of_a_folder_are_seen_not_only_those_that_are_shown(tmp_path, settings, model):
    source = tmp_path / "sar"
    source.mkdir()
    for i in range(70):
        np.save(source / f"{i:02}.npy", 40 * speckle(i, mean=0.1 + 0.005 * i))
    add_reference(source, "Mine", PixelMeaning("amplitude", "pool", polarisation="VV"), settings)
    reference = load_reference("mine", settings)
    assert len(reference.patches) == 64
    found = reference_features(reference, settings, model)
    assert found.names == tuple(f"{i:02}.npy" for i in range(70))
    assert found.groups == reference.statistics.groups
    shown = {patch.name: patch.amplitude for patch in reference.patches}
    rows = [row for row, name in enumerate(found.names) if name in shown]
    assert len(rows) == 64
    direct = model._features([shown[found.names[row]] for row in rows])
    assert found.features[rows] == pytest.approx(direct, abs=2e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "MOST_REFERENCE", 7)
        some = reference_features(reference, settings, model)
    assert "7 were taken" in some.note
    assert some.names[0] == "00.npy"
    assert some.names[-1] == "69.npy"
    assert some.features[-1] == pytest.approx(found.features[-1], abs=1e-3)


def test_sets_without_pixels_are_refused_and_of_some_these_are_taken(model, settings):
    mine = patches(6)
    whole = from_patches(mine, "mine")
    with pytest.raises(InputError, match="statistics only"):
        reference_features(dataclasses.replace(whole, patches=()), settings, model)
    some = reference_features(dataclasses.replace(whole, patches=tuple(mine[:4])), settings, model)
    assert len(some.features) == len(set(some.groups)) == 4
    assert "the 4 that are at hand" in some.note


# What ships --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED_SETS)
def test_shipped_features_are_of_the_shipped_weights_and_sets(name):
    settings = Settings()
    reference = load_reference(name, settings)
    shipped = features._shipped(settings.assets / "references" / features.SHIPPED)
    assert shipped.weights == sha256_of(settings.checkpoints / "sar-clip" / "model.safetensors")
    assert shipped.holds(reference)
    assert len(shipped.features[name]) == len(reference.statistics)
    assert np.linalg.norm(shipped.features[name], axis=1) == pytest.approx(1, abs=1e-5)


def test_shipped_training_features_are_the_train_split_and_the_scenes():
    settings = Settings()
    clip = load_sarclip(None, settings)
    vv = training_features("sar-mini", settings, clip, "VV")
    references = [load_reference(name, settings) for name in SHIPPED_SETS[:5]]
    shipped = features._shipped(settings.assets / "references" / features.SHIPPED)
    for split, rows in (("train", vv.features), ("reference", vv.held_out)):
        wanted = np.concatenate([shipped.features[r.name][[kind == split for kind in r.splits]] for r in references])
        assert len(rows) == len(wanted)
        assert np.array_equal(np.sort(rows.sum(axis=1)), np.sort(wanted.sum(axis=1)))
    assert (len(vv.names), len(vv.held_out)) == (1704, 128)
    train = {g for r in references for g, kind in zip(r.statistics.groups, r.splits, strict=True) if kind == "train"}
    assert set(vv.groups) == train
    vh = training_features("sar-mini", settings, clip, "vh")
    assert len(vh.names) == 490
    assert len(set(vh.groups)) == 10
    assert len(vh.held_out) == 0
    assert "68 scenes" in vh.note
    assert not vv.note
    with pytest.raises(InputError, match="not trained on HH"):
        training_features("sar-mini", settings, clip, "HH")


def test_other_weights_cannot_see_what_ships_without_pixels(model, settings):
    with pytest.raises(InputError, match="ships without its pixels"):
        reference_features(load_reference("s1-forest", settings), settings, model)
    with pytest.raises(InputError, match="own SAR-CLIP"):
        training_features("sar-mini", settings, model)
    with pytest.raises(InputError, match="ships no features"):
        training_features("nothing", settings, model)


@pytest.fixture(scope="module")
def built(tmp_path_factory, folder):
    """A small data folder, and what is built from it."""
    data, assets, checkpoint = (tmp_path_factory.mktemp(name) for name in ("data", "assets", "checkpoint"))
    rng = np.random.default_rng(3)
    rows = [
        (split, terrain, f"{terrain}{split}", f"{terrain}-{split}.png")
        for terrain in TERRAINS
        for split in ("train", "reference")
    ]
    for row in rows:
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(data / row[3])
    with (data / "s1_pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "terrain", "overlap_group", "sar", "optical"])
        writer.writerows([*row, row[3]] for row in rows)
    Image.fromarray(rng.integers(0, 256, (1024, 1024), dtype=np.uint8)).save(data / "scene.png")
    (data / "s1_scenes.csv").write_text("scene,sar\n007,scene.png\n")
    model = load_sarclip(folder)
    build_features(data, assets, checkpoint, model)
    return data, assets, checkpoint, model


def test_what_ships_is_built_row_by_row(built):
    data, assets, checkpoint, model = built
    shipped = features._shipped(assets / "references" / features.SHIPPED)
    assert shipped.weights == model.weights
    crops = scene_crops(read_grey(data / "scene.png"))
    assert shipped.features["s1-vh"] == pytest.approx(model._features(crops), abs=2e-3)
    statistics = patch_statistics(crops, ["007"] * 16)
    assert shipped.holds(ReferenceSet("s1-vh", "", "linear", "VH", "", statistics))
    assert not shipped.holds(ReferenceSet("s1-vh", "", "linear", "VH", "", statistics.subset(range(15))))
    settings = Settings(checkpoints=checkpoint.parent)
    vv = training_features(checkpoint.name, settings, model, "VV")
    assert vv.groups == tuple(f"{terrain}train" for terrain in sorted(TERRAINS))
    assert vv.names == tuple(f"{terrain}-train" for terrain in sorted(TERRAINS))
    assert len(vv.held_out) == 5
    vh = training_features(checkpoint.name, settings, model, "VH")
    assert len(vh.names) == 49
    assert vh.names[8] == "scene 007, row 128, column 128"


def test_damaged_files_are_refused(tmp_path, built):
    _, assets, checkpoint, model = built
    folder = tmp_path / "bad"
    folder.mkdir()
    data = (checkpoint / features.TRAINING).read_bytes()
    (folder / features.TRAINING).write_bytes(data[:-5])
    with pytest.raises(InputError, match="cut off"):
        training_features(folder, Settings(), model)
    (folder / features.TRAINING).write_bytes((assets / "references" / features.SHIPPED).read_bytes())
    with pytest.raises(InputError, match="does not describe"):
        training_features(folder, Settings(), model)


# All together ------------------------------------------------------------------------------------------------------


def test_a_report_of_sets_of_any_clip_and_ones_own_training_patches(model, settings):
    real = from_patches(patches(60), "real")
    made = patches(9, first=200)
    trained = from_patches([*patches(58, first=300), made[4], made[7]], "mine")
    said = []
    report = set_report(made, real, settings, clip=model, training=trained, progress=said.append)
    assert (report.generated_count, report.reference_count, report.features) == (9, 60, "Tiny")
    assert "SAR-CLIP features of the patches: 8 of 9" in said
    found = report.memorisation
    assert found.training == "mine"
    assert {pair.index for pair in found.pairs[:2]} == {4, 7}
    assert found.pairs[0].distance == pytest.approx(0, abs=0.01)
    assert {pair.training for pair in found.pairs[:2]} == {"p4", "p7"}
    assert "ground of its own" in found.note
    json.dumps(report.to_json(), allow_nan=False)
    without = set_report(made, real, settings, clip=model)
    assert without.memorisation is None
    assert any(note.startswith("Copies were not looked for: the features of sar-mini") for note in without.notes)
    assert not any("Copies" in note for note in set_report(made, real, settings, clip=model, checkpoint=None).notes)


def test_the_studios_own_report_needs_no_pixels_of_the_reference(settings):
    made = [Patch(speckle(i, 224, 0.25), f"made {i}", polarisation="VV") for i in range(2)]
    report = set_report(made, load_reference("s1-forest", settings), settings)
    assert report.features == "SAR-CLIP, Sentinel-1"
    assert report.reference_count == 454
    assert report.memorisation.training_count == 1704
    assert report.memorisation.real_count == 128
    assert not report.measures["kernel_distance"].within  # speckle on nothing is no forest
    assert not report.memorisation.pairs[0].copy


def test_a_training_set_has_names_and_ground(model, settings):
    mine = [dataclasses.replace(patch, group=f"g{i % 2}") for i, patch in enumerate(patches(4))]
    found = training_set(from_patches(mine, "mine"), settings, model)
    assert isinstance(found, TrainingFeatures)
    assert found.groups == ("g0", "g1", "g0", "g1")
    assert found.names == ("p0", "p1", "p2", "p3")
    assert not found.note
