import dataclasses
import io
import threading

import numpy as np
import pytest
from PIL import Image

from sar_gen.augment.maker import Gate, Maker, StopError, mask_png, patch_png
from sar_gen.augment.recipe import recipe_of
from sar_gen.engine import Engine
from sar_gen.errors import InputError
from sar_gen.palettes import load_palette
from sar_gen.quality.nearness import MAIN_MEASURES, floor_ratios, nearness
from sar_gen.quality.statistics import patch_statistics
from sar_gen.references import load_reference
from sar_gen.request import GenerationRequest, Guide, PatchReady
from sar_gen.runs import amplitude_sha256


@pytest.fixture(scope="module")
def engine(place):
    engine = Engine(place.settings)
    yield engine
    engine.close()


def alone(engine, prompt, seed, **more):
    """Return the amplitude of one seed made alone, without anything of augmentation."""
    request = GenerationRequest(prompt, checkpoint="base", seed=seed, **more)
    (made,) = (e.amplitude for e in engine.generate(request, previews=False) if isinstance(e, PatchReady))
    return made


def test_each_patch_is_its_seed_made_alone(place, engine, tmp_path):
    maker = Maker(recipe_of(place.plan(tmp_path, batch=2), place.settings), place.settings)
    for number in (0, 3, 0):
        unit = maker.slots.unit(number)
        made = maker.make(number)
        assert [one.slot for one in made.decisions] == list(range(unit.first, unit.first + unit.size))
        for one in made.decisions:
            expected = alone(engine, unit.prompt, 50 + one.slot)
            assert one.line["sha256"] == amplitude_sha256(expected)
            assert one.line["request"]["seed"] == one.line["seed"] == 50 + one.slot
            assert (one.line["request"]["count"], one.line["class"]) == (1, unit.kind.name)
            stored = np.asarray(Image.open(io.BytesIO(one.data)))
            assert stored.dtype == np.uint16
            assert np.abs(stored / 65535 - expected).max() <= 0.5001 / 65535
            assert "Synthetic" in Image.open(io.BytesIO(one.data)).text["Description"]


def test_the_gate_measures_in_floors_and_tries_the_next_seeds(place, engine, tmp_path):
    reference = load_reference("s1-forest", place.settings).statistics
    classes = [{"name": "forest", "count": 6}]
    tables = {"classes": classes, "prompts": ["{class}"], "vocabulary": {}, "batch": 3}

    def near(seed):
        statistics = patch_statistics([alone(engine, "forest", seed)])
        return float(nearness(floor_ratios(statistics, reference))[0])

    values = {seed: near(seed) for seed in range(50, 50 + 3 * 6)}
    limit = float(np.quantile(list(values.values()), 0.3))
    gate = {"reference": "s1-forest", "measures": {"nearness": limit}, "attempts": 3}
    maker = Maker(recipe_of(place.plan(tmp_path, gate=gate, **tables), place.settings), place.settings)
    lines = [one.line for number in range(2) for one in maker.make(number).decisions]
    missing = 0
    for slot, line in enumerate(lines):
        seeds = [50 + slot + 6 * attempt for attempt in range(3)]
        good = [seed for seed in seeds if values[seed] <= limit]
        assert line["made"] == bool(good)
        tried = seeds[: seeds.index(good[0])] if good else seeds
        assert [(one["seed"], one["attempt"]) for one in line["rejected"]] == [
            (seed, i) for i, seed in enumerate(tried)
        ]
        assert all(one["why"].startswith("nearness") for one in line["rejected"])
        if good:
            assert line["seed"] == good[0]
            assert line["ratios"]["nearness"] == pytest.approx(values[good[0]], rel=1e-4)
            assert set(line["ratios"]) == {*MAIN_MEASURES, "nearness"}
        missing += not good
    assert 0 < missing < 6  # the limit is such that both happen
    assert any(line["made"] and line["rejected"] for line in lines)


def test_what_is_undefined_is_not_held_against_a_patch():
    rng = np.random.default_rng(0)
    amplitudes = [np.sqrt(rng.gamma(4, 0.01, (64, 64))).clip(0, 1) for _ in range(12)]
    gate = Gate(patch_statistics(amplitudes), {"enl": 1.0, "wasserstein1": 2.0})
    flat = np.full((64, 64), 0.2, np.float32)
    (ratios,) = gate.judge([flat])
    assert ratios["glcm_correlation"] is None
    assert gate.why_not({"enl": None, "wasserstein1": 1.9}) == ""
    assert gate.why_not({"enl": 1.5, "wasserstein1": 2.5}) == "enl 1.5 > 1, wasserstein1 2.5 > 2"


def test_a_stop_ends_it_and_the_next_unit_is_not_begun(place, tmp_path):
    stop = threading.Event()
    maker = Maker(recipe_of(place.plan(tmp_path), place.settings), place.settings, stop)
    maker.make(0)
    stop.set()
    with pytest.raises(StopError):
        maker.make(1)


def test_other_weights_than_the_sets_are_refused(place, tmp_path):
    recipe = recipe_of(place.plan(tmp_path), place.settings)
    other = dataclasses.replace(recipe, weights={"base": {**recipe.weights["base"], "unet/x": "0" * 64}})
    with pytest.raises(InputError, match="The checkpoint base on this machine is not the set's"):
        Maker(other, place.settings)


def test_the_mask_of_a_map_has_the_numbers_of_its_palette():
    palette = load_palette("worldcover")
    codes = np.array([[entry.code for entry in palette.classes[:4]]], np.uint8).repeat(32, 1).repeat(64, 0)
    png, facts = mask_png(Guide("map", codes, "m.tif", palette="worldcover"), (32, 64))
    image = Image.open(io.BytesIO(png))
    assert (image.mode, image.size) == ("P", (64, 32))
    assert np.array_equal(np.asarray(image), np.arange(4).repeat(16)[None].repeat(32, 0))
    assert np.array_equal(np.asarray(image.convert("RGB"))[0, ::16], palette.colours[:4])
    assert (facts["palette"], facts["kind"], facts["guide"]) == ("worldcover", "map", "m.tif")


def test_other_guides_stay_pictures():
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    same, facts = mask_png(Guide("optical", image), (48, 48))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(same))), image)
    assert "palette" not in facts
    assert Image.open(io.BytesIO(mask_png(Guide("optical", image), (64, 96))[0])).size == (96, 64)


def test_a_patch_is_the_same_bytes_each_time():
    amplitude = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert patch_png(amplitude, "a") == patch_png(amplitude.copy(), "a")
