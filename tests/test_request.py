import dataclasses
import hashlib

import numpy as np
import pytest

from sar_gen.checkpoints import CheckpointSpec
from sar_gen.errors import InputError
from sar_gen.profiles import PROFILES
from sar_gen.request import IMAGE_TO_IMAGE, MAX_GUIDES, GenerationRequest, Guide, check_request, completed, scene_size
from sar_gen.settings import Settings

SPEC = CheckpointSpec(
    id="tiny", title="Tiny", family="sdxl", base="tiny", strategy="base", resolution=64, steps=4, guidance=1.5
)
SETTINGS = Settings(max_count=8, max_side=128)


def test_the_card_fills_in_what_was_left_out():
    request = completed(GenerationRequest("  a \n river "), SPEC, SETTINGS)
    assert request.prompt == "a river"
    assert (request.steps, request.guidance, request.width, request.height) == (4, 1.5, 64, 64)
    own = completed(GenerationRequest("a river", steps=9, guidance=3.0, width=128, height=72), SPEC, SETTINGS)
    assert (own.steps, own.guidance, own.width, own.height) == (9, 3.0, 128, 72)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": "   "}, "prompt is empty"),
        ({"count": 0}, "number of patches is 0"),
        ({"count": 9}, "choose 1 to 8"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 100000}, "choose 1 to 200"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"width": 100}, "width is 100"),
        ({"width": 1024}, "64 to 128"),
        ({"height": 56}, "height is 56"),
        ({"scheduler": "magic"}, "scheduler 'magic'"),
        ({"profile": "magic"}, "profile 'magic' is unknown"),
        ({"switches": {"magic": 1}}, "switch 'magic' is unknown"),
    ],
)
def test_each_wrong_field_is_one_sentence(wrong, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        completed(GenerationRequest(**{"prompt": "a river", **wrong}), SPEC, SETTINGS)
    assert "\n" not in str(caught.value)


def test_the_profile_is_the_settings_and_all_its_switches_are_written_down():
    request = completed(GenerationRequest("a river"), SPEC, SETTINGS)
    assert request.profile == "exact"
    assert request.switches == dataclasses.asdict(PROFILES["exact"].switches)
    fast = completed(GenerationRequest("a river"), SPEC, dataclasses.replace(SETTINGS, profile="fast"))
    assert (fast.profile, fast.steps) == ("fast", 3)  # four fifths of the card's
    own = completed(GenerationRequest("a river", steps=9, profile="fast", switches={"reuse": 5}), SPEC, SETTINGS)
    assert (own.steps, own.switches["reuse"]) == (9, 5)
    assert completed(own, SPEC, SETTINGS) == own


def test_a_strategy_of_few_steps_keeps_them_in_every_profile():
    turbo = dataclasses.replace(SPEC, strategy="turbo")
    fast = completed(GenerationRequest("a river", profile="fast"), turbo, SETTINGS)
    assert (fast.steps, fast.switches["reuse"]) == (4, 1)


def test_fewer_bits_need_their_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torchao"):
        completed(GenerationRequest("a river", switches={"quantised": "int8"}), SPEC, SETTINGS)


@pytest.mark.parametrize("strength", [0.0, 1.1, float("nan")])
def test_strength_is_checked_only_with_a_guide(strength):
    assert completed(GenerationRequest("a river", strength=strength), SPEC, SETTINGS)
    guide = Guide("map", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="strength"):
        completed(GenerationRequest("a river", strength=strength, guides=(guide,)), SPEC, SETTINGS)


def test_an_unknown_checkpoint_names_the_choices():
    with pytest.raises(InputError, match="'other' is unknown; choose one of tiny"):
        check_request(GenerationRequest("a river", checkpoint="other"), {"tiny": SPEC}, SETTINGS)


def test_json_names_the_guide_without_its_pixels():
    guide = Guide("sketch", np.zeros((8, 8, 3), np.uint8), "river.png")
    data = GenerationRequest("a river", guides=(guide,)).to_json()
    assert [(g["kind"], g["name"], g["sha256"]) for g in data["guides"]] == [("sketch", "river.png", guide.sha256)]
    assert data["prompt"] == "a river"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"kind": "depth"}, "guide kind 'depth' is unknown; choose one of sketch, map, optical, sar"),
        ({"weight": -0.1}, "weight of the map guide is -0.1; choose 0 to 2"),
        ({"weight": 2.5}, "choose 0 to 2"),
        ({"weight": float("nan")}, "weight of the map guide is nan"),
        ({"start": 0.5, "end": 0.5}, "runs from 0.5 to 0.5 of the steps"),
        ({"start": -0.1}, "from -0.1 to 1.0"),
        ({"end": 1.1}, "from 0.0 to 1.1"),
        ({"end": float("nan")}, "from 0.0 to nan"),
    ],
)
def test_each_wrong_field_of_a_guide_is_one_sentence(wrong, sentence):
    good = Guide("map", np.zeros((8, 8, 3), np.uint8))
    bad = Guide(**{"kind": "map", "image": good.image, **wrong})
    with pytest.raises(InputError, match=sentence) as caught:
        completed(GenerationRequest("a river", guides=(good, bad)), SPEC, SETTINGS)
    assert "\n" not in str(caught.value)


def test_there_may_be_so_many_guides():
    guide = Guide("map", np.zeros((8, 8, 3), np.uint8))
    assert len(completed(GenerationRequest("x", guides=(guide,) * MAX_GUIDES), SPEC, SETTINGS).guides) == MAX_GUIDES
    with pytest.raises(InputError, match=f"There are {MAX_GUIDES + 1} guides; use {MAX_GUIDES} at most"):
        completed(GenerationRequest("x", guides=(guide,) * (MAX_GUIDES + 1)), SPEC, SETTINGS)


def test_the_start_guide_is_the_one_by_image_to_image():
    image = np.zeros((8, 8, 3), np.uint8)
    network, start = Guide("map", image, way="net"), Guide("sar", image, way=IMAGE_TO_IMAGE)
    assert GenerationRequest("x", guides=(start,)).start_guide is start
    assert GenerationRequest("x", guides=(network,)).start_guide is None
    assert GenerationRequest("x").start_guide is None


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 128), (128, 64)),
        ((75, 131), (128, 72)),  # to whole steps of 8
        ((100, 1000), (128, 64)),  # shrunk to the largest side, no side below 64
        ((256, 192), (96, 128)),
        ((16, 16), (64, 64)),
    ],
)
def test_a_scene_is_as_large_as_its_first_guide(shape, size):
    guides = [Guide("map", np.zeros((*shape, 3), np.uint8)), Guide("map", np.zeros((96, 96, 3), np.uint8))]
    assert scene_size(guides, SETTINGS) == size
    request = GenerationRequest("x", width=size[0], height=size[1], guides=(guides[0],))
    assert completed(request, SPEC, SETTINGS).width == size[0]
    codes = Guide("map", np.zeros(shape, np.uint8))
    assert scene_size([codes], SETTINGS) == size


def test_without_a_guide_there_is_no_size_to_take():
    with pytest.raises(InputError, match="no guide to take the size from"):
        scene_size((), SETTINGS)


def test_json_of_a_guide_is_all_but_its_pixels():
    guide = Guide(
        "map", np.arange(64, dtype=np.uint8).reshape(8, 8), "a.tif", "net", 0.5, 0.1, 0.9, "igbp", ("Read.",)
    )
    assert guide.to_json() == {
        "kind": "map",
        "name": "a.tif",
        "way": "net",
        "weight": 0.5,
        "start": 0.1,
        "end": 0.9,
        "palette": "igbp",
        "notes": ["Read."],
        "sha256": hashlib.sha256(bytes(range(64))).hexdigest(),
    }
