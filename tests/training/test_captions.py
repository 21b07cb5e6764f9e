from random import Random

import numpy as np
import pytest

from sar_gen.checkpoints import read_card
from sar_gen.settings import Settings
from sar_gen.training import captions
from sar_gen.training.captions import FACTS, PHRASES, Thresholds

LIMITS = Thresholds(-10, -9, -8, -7, 2, 2.5, 3, 3.5)


def known(**changes):
    values = {"terrain": "river", "polarisation": "VV", "water": 0.2, "built_up": 0.0, "brightness": -12.0}
    return captions.facts(**{**values, "roughness": 4.0, "limits": LIMITS, **changes})


def test_the_same_generator_writes_the_same_and_every_caption_is_right_for_its_patch():
    facts = known()
    first = [captions.caption(facts, Random(seed)) for seed in range(300)]
    assert first == [captions.caption(facts, Random(seed)) for seed in range(300)]
    assert len({entry.text for entry in first}) > 100
    assert all(captions.agreement(facts, entry.stated) == 1 for entry in first)
    assert {name for entry in first for name in entry.stated} == {"river", "vv", "water", "dark", "rough"}


def test_what_a_caption_says_is_found_again_in_its_words():
    random = Random(1)
    for seed in range(200):
        terrain = captions.TERRAINS[seed % 5]
        entry = captions.caption(known(terrain=terrain), random)
        found = set(captions.stated_facts(entry.text))
        assert found == set(entry.stated), entry


def test_every_word_of_a_caption_is_in_the_vocabulary():
    vocabulary = set(captions.vocabulary())
    for seed in range(300):
        facts = known(terrain=captions.TERRAINS[seed % 5], built_up=0.5, brightness=-5.0, roughness=1.0)
        assert set(captions.words(captions.caption(facts, Random(seed)).text)) <= vocabulary


def test_the_words_that_the_embedded_checkpoint_offers_are_known():
    card = read_card(Settings().checkpoints / "sar-mini" / "card.toml")
    offered = [word for group in card["vocabulary"].values() for word in group] + card["examples"]
    unknown = {word for text in offered for word in captions.words(text)} - set(captions.vocabulary())
    assert not unknown


def test_labels_exclude_each_other_and_unlabelled_ground_follows_from_fractions():
    facts = known(terrain="residential", water=0.0, built_up=0.0)
    assert [facts[name] for name in captions.TERRAINS] == [0, 0, 0, 0, 1]
    assert facts["buildings"] == -1  # the label says houses, the optical image shows none
    sea = known(terrain=None, polarisation="VH", water=0.95, built_up=0.0)
    assert (sea["open water"], sea["city"], sea["coast"], sea["open land"], sea["vh"]) == (1, 0, -1, 0, 1)
    shore = known(terrain=None, polarisation="VH", water=0.4, built_up=0.55)
    assert (shore["coast"], shore["city"], shore["open water"]) == (1, 1, -1)
    hills = known(terrain=None, polarisation="VH", water=0.0, built_up=0.0)
    assert (hills["open land"], hills["city"], hills["water"]) == (1, 0, 0)


@pytest.mark.parametrize(("brightness", "dark", "bright"), [(-11, 1, 0), (-9.5, -1, 0), (-8.5, 0, 0), (-7.5, 0, -1)])
def test_brightness_words_leave_a_margin(brightness, dark, bright):
    facts = known(brightness=brightness)
    assert (facts["dark"], facts["bright"]) == (dark, bright)


def test_agreement_is_false_before_it_is_unknown():
    facts = dict.fromkeys(FACTS, 0) | {"river": 1, "water": -1}
    assert captions.agreement(facts, ("river",)) == 1
    assert captions.agreement(facts, ("river", "water")) == -1
    assert captions.agreement(facts, ("river", "water", "vh")) == 0


def test_longer_phrases_win_in_prompts():
    assert captions.stated_facts("a SAR image of a river valley") == ("river",)
    assert captions.stated_facts("Steep valley, VH polarisation") == ("gorge", "vh")
    assert captions.stated_facts("a picture of nothing") == ()
    assert captions.stated_facts("driver") == ()  # whole words only
    for fact, phrases in PHRASES.items():
        for phrase in phrases:
            assert captions.stated_facts(phrase) == (fact,), phrase


def optical_scene(kind):
    if kind == "town":  # bright roofs and streets, pattern of a few pixels
        return (100 + 80 * ((np.indices((256, 256)) // 4).sum(axis=0) % 2)).astype(np.uint8)
    return np.full((256, 256), 40, np.uint8)


def test_built_up_and_water_fractions_of_made_scenes():
    dark = np.full((256, 256), 0.05, np.float32)
    bright = np.full((256, 256), 0.4, np.float32)
    assert captions.optical_fractions(optical_scene("town"), bright) == (0.0, 1.0)
    half = optical_scene("lake")
    half[:, 128:] = optical_scene("town")[:, 128:]
    water, built_up = captions.optical_fractions(half, np.where(np.arange(256) < 128, dark, bright))
    # One column of blocks beside the border is neither: the border itself is fine detail there.
    assert water == pytest.approx(7 / 16)
    assert built_up == pytest.approx(0.5, abs=1 / 16)
    # Dark forest is as smooth as a lake in the optical image; the radar tells them apart.
    assert captions.optical_fractions(optical_scene("forest"), bright) == (0.0, 0.0)


def test_colour_scenes_have_half_the_resolution():
    sea = np.zeros((128, 128, 3), np.uint8) + np.array([40, 80, 120], np.uint8)
    assert captions.optical_fractions(sea, np.full((256, 256), 0.05, np.float32), block=8) == (1.0, 0.0)


def test_descriptors_against_closed_forms():
    flat = np.full((64, 64), 0.5, np.float32)
    assert captions.sar_descriptors(flat) == (pytest.approx(10 * np.log10(0.25), abs=0.01), pytest.approx(0, abs=1e-9))
    halves = np.where(np.arange(64) < 32, 0.1, 1.0) * np.ones((64, 1))
    brightness, roughness = captions.sar_descriptors(halves.astype(np.float32))
    assert brightness == pytest.approx(10 * np.log10(0.505), abs=0.01)
    assert roughness == pytest.approx(10, abs=0.1)  # -20 and 0 dB in equal shares


def test_thresholds_are_quantiles():
    limits = captions.thresholds(list(range(101)), [2 * value for value in range(101)])
    assert (limits.dark, limits.maybe_dark, limits.maybe_bright, limits.bright) == (30, 45, 55, 70)
    assert (limits.smooth, limits.rough) == (60, 140)
