import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sar_gen.augment.recipe import check_every_guide, class_counts, differences, recipe_of
from sar_gen.errors import InputError
from sar_gen.files import sha256_of
from sar_gen.palettes import load_palette


def write_manifest(folder, counts):
    folder.mkdir()
    lines = []
    for (terrain, split, modality), count in counts.items():
        for i in range(count):
            key = f"{terrain}-{split}-{modality}-{i}".replace(" ", "_")
            lines.append(json.dumps({
                "key": key, "file": f"{key}.png", "height": 8, "width": 8, "split": split, "group": key,
                "terrain": terrain, "modality": modality,
            }))  # fmt: skip
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_balance_brings_every_class_to_one_number(place, tmp_path):
    there = {
        ("forest", "train", "sar"): 7,
        ("forest", "train", "optical"): 50,
        ("forest", "validation", "sar"): 50,
        ("Dry land", "train", "sar"): 1,
    }
    existing = write_manifest(tmp_path / "data", there)
    classes = [{"name": "forest"}, {"name": "Dry land"}, {"name": "rare"}, {"name": "own", "count": 2}]
    plan = place.plan(
        tmp_path / "set", classes=classes, prompts=["{class}"], vocabulary={},
        balance={"target": 6, "existing": str(existing)},
    )  # fmt: skip
    assert class_counts(plan) == {"forest": 0, "Dry land": 5, "rare": 6, "own": 2}
    assert recipe_of(plan, place.settings).total == 13


def test_a_manifest_of_other_classes_is_refused(place, tmp_path):
    existing = write_manifest(tmp_path / "data", {("lake", "train", "sar"): 1})
    plan = place.plan(
        tmp_path / "set", classes=[{"name": "forest"}], prompts=["{class}"], vocabulary={},
        balance={"target": 6, "existing": str(existing)},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"has none of the plan's classes in the split 'train'; it has lake"):
        recipe_of(plan, place.settings)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint": "nothing"}, "checkpoint 'nothing' is unknown"),
        ({"strategy": "hybrid"}, "no checkpoint with the strategy 'hybrid'"),
        ({"seed": 2**32 - 70}, "The plan's seeds run from"),
        ({"batch": 65}, "The batch is 65; choose 1 to 64"),
        ({"width": 100}, "The width is 100 pixels"),
        ({"profile": "quick"}, "quick"),
        ({"scheduler": "magic"}, "scheduler 'magic' is unknown"),
        ({"gate": {"reference": "s1-mars"}}, "no reference set 's1-mars'"),
        ({"gate": {"reference": "s1-forest", "measures": {"beauty": 1.0}}}, "The measure 'beauty' is unknown"),
        ({"classes": [{"name": "a", "count": 0}], "prompts": ["{class}"], "vocabulary": {}}, "no patch to make"),
        ({"guides": [{"folder": "/no/such/folder"}]}, "cannot be read"),
    ],
)
def test_what_a_plan_names_is_checked_before_any_work(place, tmp_path, changes, sentence):
    with pytest.raises(InputError) as caught:
        recipe_of(place.plan(tmp_path / "set", **changes), place.settings)
    assert sentence in str(caught.value)


def test_what_a_set_is_bound_to(place, tmp_path):
    plan = place.plan(tmp_path / "set", gate={"reference": "s1-forest"})
    recipe = recipe_of(plan, place.settings)
    elsewhere = recipe_of(dataclasses.replace(plan, out=tmp_path / "elsewhere"), place.settings)
    assert differences(recipe.bound, elsewhere.bound) == []
    weights = place.settings.checkpoints / "base/unet/diffusion_pytorch_model.safetensors"
    assert recipe.weights["base"]["unet/diffusion_pytorch_model.safetensors"] == sha256_of(weights)
    classes = [dataclasses.replace(plan.classes[0], count=6), plan.classes[1]]
    other = recipe_of(dataclasses.replace(plan, seed=51, steps=3, classes=tuple(classes)), place.settings)
    assert differences(recipe.bound, other.bound) == [
        "seed was 50 and is 51", "steps was not given and is 3", "patches was 9 and is 10",
        "class forest, count was 5 and is 6",
    ]  # fmt: skip


def test_a_class_may_have_a_strategy_of_its_own(place, tmp_path):
    classes = [
        {"name": "a", "count": 1},
        {"name": "b", "count": 1, "strategy": "unet-lora"},
        {"name": "c", "count": 1, "checkpoint": "base"},
    ]
    plan = place.plan(tmp_path, classes=classes, prompts=["{class}"], vocabulary={}, strategy="unet-lora")
    recipe = recipe_of(plan, place.settings)
    assert [one.checkpoint for one in recipe.classes] == ["tuned", "tuned", "base"]
    assert set(recipe.weights) == {"base", "tuned"}


def test_every_guide_is_checked_and_a_bad_one_named(place, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    water, forest = (load_palette().colours[i] for i in (0, 2))
    good = np.full((64, 64, 3), water, np.uint8)
    good[:, 32:] = forest
    Image.fromarray(good).save(maps / "a.png")
    seen = []
    plan = place.plan(tmp_path / "set", guides=[{"folder": str(maps)}])
    check_every_guide(recipe_of(plan, place.settings), place.settings, lambda *state: seen.append(state))
    assert seen == [(1, 2), (2, 2)]  # for each class
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(maps / "b.png")
    recipe = recipe_of(plan, place.settings)
    with pytest.raises(InputError, match=r"The guide b.png of .* cannot be used: Nothing is painted"):
        check_every_guide(recipe, place.settings, lambda *_: None)
