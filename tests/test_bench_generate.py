"""The benches of generation at toy size: every way does its work, and the figures mean what they say."""

import dataclasses

import numpy as np
import pytest

from sar_gen import checkpoints
from sar_gen.bench.effects import Effect, bench_effects, difference, distances, effect, measured_prompts
from sar_gen.bench.generate import Stock, bench_generate, once, turbo_of
from sar_gen.errors import InputError, SarGenError
from sar_gen.settings import Settings
from tests import tiny

CARD = {
    "examples": ["a river", "a forest", "a winding river", "nothing"],
    "reference_words": {"s1-river": ["river"], "s1-forest": ["forest"]},
    "steps": 4,
    "guidance": 3.0,
    "amplitude_encoding": "linear",
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    base = tiny.checkpoint(root / "checkpoints" / "base", **CARD)
    tiny.strategy_folder(root / "checkpoints" / "quick", base, "unet-full")
    tiny.write_card(root / "checkpoints" / "quick", id="quick", base="base", strategy="turbo", steps=2, guidance=1.0)
    tiny.network(root / "checkpoints" / "net", base)
    return Settings(home=root / "home", checkpoints=root / "checkpoints", checkpoint="base", device="cpu")


def test_every_way_is_timed_beside_diffusers(settings):
    one, studio, two, guided = bench_generate(settings, rounds=1, batches=(2,))
    assert list(one.ratio) == ["diffusers", "studio, plain", "studio, exact", "studio, fast", "studio, quick"]
    assert "64 x 64, 4 steps, guidance 3, cpu" in one.title
    assert list(studio.ratio)[2:] == [
        "until the first preview", "until the first patch", "from the first patch to the next",
    ]  # fmt: skip
    assert list(two.ratio) == ["diffusers", "studio, exact", "studio, fast"]
    assert list(guided.ratio) == ["no guide", "image-to-image", "by net"]
    for bench in (one, studio, two, guided):
        assert next(iter(bench.ratio.values())) == 1
        assert all(timing.median > 0 for timing in bench.timings)


def test_a_look_comes_before_the_patch(settings):
    _, studio, *_ = bench_generate(settings, rounds=1, batches=())
    seconds = {timing.name: timing.median for timing in studio.timings}
    assert seconds["until the first preview"] < seconds["until the first patch"]


def test_once_is_the_ratio_to_the_first():
    bench = once("title", {"plain": lambda: 2.0, "ours": lambda: 0.5})
    assert bench.ratio == {"plain": 1.0, "ours": 0.25}


def test_the_strategy_of_few_steps_is_the_one_on_the_same_base(settings):
    catalogue = checkpoints.catalogue(settings)
    assert turbo_of(catalogue["base"], catalogue).id == "quick"
    assert turbo_of(dataclasses.replace(catalogue["base"], base="other"), catalogue) is None


def test_the_plain_way_needs_a_whole_pipeline(settings):
    with pytest.raises(SarGenError, match="measured with the base: base"):
        Stock(checkpoints.catalogue(settings)["quick"], settings)


def test_a_prompt_is_measured_for_each_reference_set_that_the_card_names(settings):
    spec = checkpoints.catalogue(settings)["base"]
    assert measured_prompts(spec) == {"s1-river": "a river", "s1-forest": "a forest"}
    with pytest.raises(InputError, match="names no reference set"):
        measured_prompts(dataclasses.replace(spec, reference_words={}))


def test_effects_are_measured_of_every_switch_and_exact_repeats_itself(settings):
    said = []
    result = bench_effects(settings, 1, say=said.append, compiled=False)
    found, exactness = {one.name: one for one in result.effects}, result.exactness
    plain = found["plain"]
    assert (plain.gain, plain.largest, set(plain.ratios.values())) == (1.0, 0.0, {1.0})
    assert {"reuse=2", "guidance_end=0.6", "steps=0.5", "exact", "fast", "quick"} <= set(found)
    assert len(said) == len(found) + 1
    assert [len(line) for line in result.table()] == [12] * (len(found) + 1)
    assert "are equal bit for bit" in result.sentences()[-1]
    assert found["graphs=True"].largest == 0.0  # there is nothing to capture on a CPU
    assert 0 < found["channels_last=on"].largest < 1e-5
    assert found["guidance_end=0.6"].largest > 1e-4
    assert exactness.repeated
    assert exactness.exact[0] <= 1.5 * exactness.stock[0]


def test_differences_and_ratios_by_hand():
    zero, half = np.zeros((8, 8), np.float32), np.full((8, 8), 0.5, np.float32)
    assert difference({"a": [zero, half]}, {"a": [zero, zero]}) == (0.5, 0.25)
    plain = Effect("plain", 4.0, 1.0, 0, 0, {"wasserstein1": 0.1}, {"wasserstein1": 1.0})
    found = effect("ours", 1.0, {"a": [half]}, {"wasserstein1": 0.12}, {"a": [zero]}, plain)
    assert (found.gain, found.largest, found.ratios["wasserstein1"]) == (4.0, 0.5, pytest.approx(1.2))


def test_distances_are_the_means_over_the_reference_sets():
    from sar_gen.quality.report import compare
    from sar_gen.quality.statistics import patch_statistics
    from sar_gen.references import load_reference

    random = np.random.default_rng(0)
    made = {
        name: [np.clip(0.2 * np.sqrt(random.gamma(4, 1 / 4, (64, 64))), 0, 1).astype(np.float32)]
        for name in ("s1-river", "s1-forest")
    }
    each = [
        compare(patch_statistics(made[name]), load_reference(name, Settings()).statistics, reference_name=name)
        .to_json()["measures"]["wasserstein1"]["value"]
        for name in made
    ]  # fmt: skip
    assert distances(made, Settings())["wasserstein1"] == pytest.approx(np.mean(each))
