import numpy as np
import pytest

from sar_gen.checkpoints import CheckpointSpec
from sar_gen.errors import InputError
from sar_gen.request import GenerationRequest, Guide, check_request, completed
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
    ],
)
def test_each_wrong_field_is_one_sentence(wrong, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        completed(GenerationRequest(**{"prompt": "a river", **wrong}), SPEC, SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strength", [0.0, 1.1, float("nan")])
def test_strength_is_checked_only_with_a_guide(strength):
    assert completed(GenerationRequest("a river", strength=strength), SPEC, SETTINGS)
    guide = Guide("map", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="strength"):
        completed(GenerationRequest("a river", strength=strength, guide=guide), SPEC, SETTINGS)


def test_an_unknown_checkpoint_names_the_choices():
    with pytest.raises(InputError, match="'other' is unknown; choose one of tiny"):
        check_request(GenerationRequest("a river", checkpoint="other"), {"tiny": SPEC}, SETTINGS)


def test_json_names_the_guide_without_its_pixels():
    guide = Guide("sketch", np.zeros((8, 8, 3), np.uint8), "river.png")
    data = GenerationRequest("a river", guide=guide).to_json()
    assert data["guide"] == {"kind": "sketch", "name": "river.png"}
    assert data["prompt"] == "a river"
