import json
import math

import numpy as np
import pytest

from sar_gen import checkpoints
from sar_gen.engine import Engine
from sar_gen.errors import InputError
from sar_gen.quality.distribution import histogram, rebin
from sar_gen.quality.statistics import patch_statistics
from sar_gen.quality.texture import GLCM_NAMES, glcm_descriptors
from sar_gen.settings import Settings
from sar_gen.training.evaluation import (
    Distance,
    EvaluationConfig,
    RealPatch,
    Texture,
    class_distances,
    evaluate_checkpoint,
    measure_class,
    prompts_of,
    real_set,
)
from tests import tiny


def patches(count, level, seed, size=64):
    random = np.random.default_rng(seed)
    return [
        np.clip(random.gamma(4, level / 4, (size, size)), 0, 1).astype(np.float32) * (1 + 0.02 * i)
        for i in range(count)
    ]


def clipped(found):
    return [np.clip(one, 0, 1) for one in found]


@pytest.fixture(scope="module")
def sides():
    train = clipped(patches(8, 0.3, 1))
    reference = clipped(patches(3, 0.32, 2))
    return train, reference


def test_distances_are_those_of_pooled_pixels(sides):
    train, reference = sides
    made = clipped(patches(4, 0.25, 3))
    groups = [str(i // 2) for i in range(8)]
    found = class_distances(patch_statistics(made), patch_statistics(train, groups), patch_statistics(reference))
    one, other = np.sort(np.concatenate(made), axis=None), np.sort(np.concatenate(reference), axis=None)
    quantiles = (np.arange(4000) + 0.5) / 4000
    expected = np.abs(np.quantile(one, quantiles) - np.quantile(other, quantiles)).mean()
    assert found.wasserstein1.value == pytest.approx(expected, abs=2e-3)
    real, mine = (rebin(sum(histogram(p).astype(float) for p in side)) for side in (reference, made))
    real, mine = ((side / side.sum() + 1e-6) / (1 + 64e-6) for side in (real, mine))
    assert found.kl_divergence.value == pytest.approx(float((real * np.log(real / mine)).sum()), rel=1e-6)
    means = [np.mean([glcm_descriptors(p) for p in side], axis=0) for side in (made, train, reference)]
    for name, texture in found.texture.items():
        index = GLCM_NAMES.index(name)
        assert [texture.generated, texture.train, texture.reference] == pytest.approx(
            [m[index] for m in means], rel=1e-4
        )
        assert texture.distance.value == pytest.approx(abs(means[0][index] - means[2][index]), rel=1e-3)


def test_train_against_reference_is_the_generated_distance_of_the_train_patches(sides):
    train, reference = (patch_statistics(side, [str(i) for i in range(len(side))]) for side in sides)
    found = class_distances(train, train, reference)
    assert found.wasserstein1.value == found.wasserstein1.train
    assert found.kl_divergence.ratio <= 1
    assert found.holds


def test_the_median_of_splits_is_that_of_every_split(sides):
    # Two groups: each split is one of them against the other, so the median lies among two known values.
    train, reference = sides
    groups = ["a", "a", "a", "b", "b", "b"]
    statistics = patch_statistics(train[:6], groups)
    found = class_distances(patch_statistics(train[6:]), statistics, patch_statistics(reference))
    first, second = (class_distances(statistics.subset(x), statistics.subset(x), statistics.subset(y)) for x, y in
                     (([0, 1, 2], [3, 4, 5]), ([3, 4, 5], [0, 1, 2])))  # fmt: skip
    assert found.wasserstein1.splits == pytest.approx(first.wasserstein1.value)
    ends = sorted([first.kl_divergence.value, second.kl_divergence.value])
    assert ends[0] - 1e-12 <= found.kl_divergence.splits <= ends[1] + 1e-12
    alone = class_distances(patch_statistics(train[6:]), statistics.subset([0, 1]), patch_statistics(reference))
    assert alone.wasserstein1.splits is None
    assert alone.wasserstein1.floor == alone.wasserstein1.train


def test_limits():
    assert Distance(0.06, 0.05, 0.02, 0.0).holds
    assert not Distance(0.0601, 0.05, 0.02, 0.0).holds
    assert Distance(0.0601, 0.02, 0.051, 0.0).holds
    assert Distance(0.1, 0.0, None, 0.0).to_json()["ratio"] is None
    far = Distance(1, 1, None, 0)
    assert Texture(7.25, 8.0, 9.0, far).holds
    assert not Texture(7.15, 8.0, 9.0, far).holds
    assert Texture(9.85, 9.0, 8.0, far).interval == pytest.approx((7.2, 9.9))


def test_the_spread_is_the_deviation_of_a_mean(sides):
    # The distance of a GLCM mean far from the reference is a mean over patches: its spread is std / sqrt(n).
    train, reference = sides
    made = patch_statistics(clipped(patches(16, 0.1, 3)))
    found = class_distances(made, patch_statistics(train), patch_statistics(reference)).texture["contrast"]
    expected = made.glcm[:, 0].std() / math.sqrt(16)
    assert found.distance.spread == pytest.approx(expected, rel=0.2)


def test_empty_sides_are_refused(sides):
    some = patch_statistics(sides[0][:1])
    with pytest.raises(InputError, match="no generated patch"):
        class_distances(some.subset([]), some, some)


@pytest.fixture(scope="module")
def real():
    rows = [
        RealPatch(f"{terrain}-{i}", patch, terrain, f"{terrain}{i}", "reference" if i < 3 else "train")
        for terrain, level in (("forest", 0.3), ("river", 0.2))
        for i, patch in enumerate(clipped(patches(8, level, 5)))
    ]
    return real_set([*rows, RealPatch("v", rows[0].amplitude, "forest", "z", "validation")], polarisation="VV")


def test_real_set_keeps_splits_apart(real):
    assert list(real.classes) == ["forest", "river"]
    assert (len(real.classes["forest"].train), len(real.classes["forest"].reference)) == (6, 3)
    assert len(real.training) == 10
    assert real.training[0].shape == (32, 32)
    assert real.names[5] == "river-3"
    assert real.reached == max(one.reached.max() for one in real.classes.values())
    with pytest.raises(InputError, match="no patch of the split 'reference'"):
        real_set([RealPatch("a", np.full((64, 64), 0.5, np.float32), "forest", "a", "train")])


def test_copies_are_flagged(real):
    known = clipped(patches(8, 0.2, 5))[3:]
    found = measure_class(known, "river", real, EvaluationConfig(sarclip=False), None)
    assert found["copies"]["above"] == 5
    assert found["copies"]["nearest"].startswith("river")
    assert found["copies"]["highest"] > 0.99 > found["copies"]["limit"]
    honest = measure_class(clipped(patches(5, 0.2, 77)), "river", real, EvaluationConfig(sarclip=False), None)
    assert honest["copies"]["highest"] < 0.3
    json.dumps(found, allow_nan=False)


def test_prompts():
    assert prompts_of("agriculture", EvaluationConfig()) == ("a SAR image of farmland",)
    assert prompts_of("river", EvaluationConfig(prompts={"river": ("one", "two")})) == ("one", "two")
    assert prompts_of("tundra", EvaluationConfig()) == ("a SAR image of tundra",)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    root = tmp_path_factory.mktemp("studio")
    base = tiny.checkpoint(root / "checkpoints" / "base")
    tiny.strategy_folder(root / "checkpoints" / "tuned", base, "token")
    settings = Settings(home=root / "home", checkpoints=root / "checkpoints", device="cpu")
    engine = Engine(settings)
    yield engine, checkpoints.catalogue(settings)
    engine.close()


def test_a_checkpoint_is_generated_from_with_the_studios_engine_and_goes_on_where_it_stopped(studio, real, tmp_path):
    engine, catalogue = studio
    config = EvaluationConfig(patches=3, steps=1, sarclip=False, prompts={"river": ("a SAR image of a river", "c")})

    def stop():
        return any(tmp_path.rglob("*.npy"))

    assert evaluate_checkpoint(engine, catalogue["tuned"], real, config, tmp_path, stop=stop) is None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert 0 < len(before) < 6
    found = evaluate_checkpoint(engine, catalogue["tuned"], real, config, tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sorted(path.name for path in (tmp_path / "river").glob("*.npy")) == ["11000.npy", "11001.npy", "11002.npy"]
    made = json.loads((tmp_path / "river" / "made.json").read_text())
    assert made["prompts"] == ["a <SAR> image of a river", "<SAR> c"]
    assert set(found["classes"]) == {"forest", "river"}
    assert found["steps"] == 1
    json.dumps(found, allow_nan=False)
    # the same seed alone is the same patch
    from sar_gen.request import GenerationRequest, PatchReady

    request = GenerationRequest("<SAR> c", checkpoint="tuned", count=1, seed=11002, steps=1)
    alone = next(e.amplitude for e in engine.generate(request, previews=False) if isinstance(e, PatchReady))
    assert np.array_equal(np.load(tmp_path / "river" / "11002.npy"), alone.astype(np.float16))


def test_patches_of_other_settings_are_made_anew(studio, real, tmp_path):
    engine, catalogue = studio
    config = EvaluationConfig(patches=1, steps=1, sarclip=False, copies=False)
    first = evaluate_checkpoint(engine, catalogue["base"], real, config, tmp_path, terrains=["forest"])
    assert list(first["classes"]) == ["forest"]
    assert "copies" not in first["classes"]["forest"]
    other = EvaluationConfig(patches=1, steps=2, seed=5, sarclip=False, copies=False)
    evaluate_checkpoint(engine, catalogue["base"], real, other, tmp_path, terrains=["forest"])
    assert [path.name for path in (tmp_path / "forest").glob("*.npy")] == ["5.npy"]
    with pytest.raises(InputError, match="no real patches of 'tundra'"):
        evaluate_checkpoint(engine, catalogue["base"], real, config, tmp_path, terrains=["tundra"])
