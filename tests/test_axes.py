"""Axes of a grid: what is read, what is refused, and what becomes of a request."""

import dataclasses

import numpy as np
import pytest

from sar_gen import checkpoints
from sar_gen.axes import AXES, Axis, join_values, parse_axis, read_axis, split_values, suggested
from sar_gen.errors import InputError
from sar_gen.request import GenerationRequest, Guide, check_request
from sar_gen.settings import Settings

REQUEST = GenerationRequest("a SAR image of a mountain gorge")


@pytest.fixture(scope="module")
def catalogue():
    return checkpoints.catalogue(Settings())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=1..4", (1, 2, 3, 4)),
        ("seed=4..1", (4, 3, 2, 1)),
        ("seed= 2..8/2, 11 ", (2, 4, 6, 8, 11)),
        ("guidance=1..2/0.25", (1.0, 1.25, 1.5, 1.75, 2.0)),
        ("guide-weight=0..0.3/0.1", (0.0, 0.1, 0.2, 0.3)),  # as written, without the errors of repeated addition
        ("strategy=base,turbo", ("base", "turbo")),
        ("size=256, 256x512, 320 × 128", ("256x256", "256x512", "320x128")),
        ('prompt=gorge,"gorge, with snow",river\\, wide', ("gorge", "gorge, with snow", "river, wide")),
        ('prompt=gorge, a "wide" one', ("gorge", 'a "wide" one')),
        ("prompt=mountain ,", ("mountain", "")),
        ("negative=,speckle", ("", "speckle")),
        ("switch:reuse=1,2", (1, 2)),
        ("switch:graphs=on,off", (True, False)),
        ("profile=exact,fast", ("exact", "fast")),
    ],
)
def test_values_are_read(text, values):
    axis = parse_axis(text)
    assert axis.values == values
    assert [type(value) for value in axis.values] == [type(value) for value in values]
    assert Axis.from_json(axis.to_json()) == axis
    assert read_axis(axis.key, axis.text) == axis


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed", "has no values; write it as seed=1..4"),
        ("seed=", "has no values"),
        ("colour=red", "'colour' is unknown; choose one of checkpoint, strategy"),
        ("seed=a", "'a', which is not a whole number"),
        ("seed=1.5", "not a whole number"),
        ("seed=nan", "not a whole number"),
        ("guidance=inf", "not a number"),
        ("seed=1,2,1", "'1' twice"),
        ("seed=1,,2", "empty value"),
        ("seed=1..99999", "99999 values; give 1000 at most"),
        ("seed=1..4/0", "the step 0; give one above 0"),
        ("guide-weight=0..0.5", "smaller one, such as 0..0.5/0.25"),
        ("seed:2=1", "seed:2 cannot be read"),
        ("guide-weight:0=1", "write guide-weight:2 for the second guide"),
        ("switch=1", "needs one of precision"),
        ("switch:reuse=x", "give a whole number"),
        ("scheduler=magic", "choose one of default, dpm"),
        ("profile=quick", "choose one of exact, fast, plain"),
        ("size=large", "write pixels as 256"),
        ('prompt="a', "put a value that holds a comma"),
        ("prompt=gorge", "has one value"),
        ("prompt=,gorge", "empty value"),
    ],
)
def test_bad_values_get_a_sentence(text, sentence):
    with pytest.raises(InputError, match=sentence.replace("(", r"\(").replace("+", r"\+")) as found:
        parse_axis(text)
    assert "\n" not in str(found.value)


def test_texts_survive_a_round_trip():
    texts = ["plain", "a, b", 'say "x"', "back\\slash", "", "two words"]
    assert split_values(join_values(texts), "prompt") == texts


def test_every_axis_of_the_table_changes_its_own_field(catalogue):
    """Each row against the request made by hand."""
    guide = Guide("map", np.zeros((8, 8, 3), np.uint8))
    base = dataclasses.replace(REQUEST, guides=(guide, dataclasses.replace(guide, weight=0.5)), strategy="turbo")
    made = {
        "checkpoint=sar-mini-turbo": dataclasses.replace(base, checkpoint="sar-mini-turbo", strategy=None),
        "strategy=vae-decoder": dataclasses.replace(base, strategy="vae-decoder"),
        "profile=fast": dataclasses.replace(base, profile="fast"),
        "switch:reuse=3": dataclasses.replace(base, switches={"reuse": 3}),
        "negative=ships": dataclasses.replace(base, negative="ships"),
        "seed=7": dataclasses.replace(base, seed=7),
        "steps=9": dataclasses.replace(base, steps=9),
        "guidance=2.5": dataclasses.replace(base, guidance=2.5),
        "scheduler=euler": dataclasses.replace(base, scheduler="euler"),
        "size=128x64": dataclasses.replace(base, width=128, height=64),
        "strength=0.3": dataclasses.replace(base, strength=0.3),
    }
    for field, value in (("way", "net"), ("weight", 0.25), ("start", 0.25), ("end", 0.25)):
        both = tuple(dataclasses.replace(g, **{field: value}) for g in base.guides)
        made[f"guide-{field}={value}"] = dataclasses.replace(base, guides=both)
        made[f"guide-{field}:2={value}"] = dataclasses.replace(base, guides=(base.guides[0], both[1]))
    for text, expected in made.items():
        axis = parse_axis(text)
        changed = axis.put(base, axis.values[0], catalogue)
        assert changed.to_json() == expected.to_json(), text
    assert {text.partition("=")[0].partition(":")[0] for text in made} | {"prompt"} == set(AXES)


def test_words_of_the_prompt_are_replaced_everywhere_and_must_be_there(catalogue):
    axis = parse_axis("prompt=gorge,river")
    request = dataclasses.replace(REQUEST, prompt="a gorge,\n a deep gorge")
    assert axis.put(request, "river", catalogue).prompt == "a river, a deep river"
    assert axis.put(request, "gorge", catalogue).prompt == "a gorge, a deep gorge"
    with pytest.raises(InputError, match="does not hold 'gorge'"):
        axis.put(dataclasses.replace(REQUEST, prompt="a forest"), "river", catalogue)


def test_base_is_the_base_itself_and_a_strategy_brings_its_own_defaults(catalogue):
    axis = parse_axis("strategy=base,turbo")
    for checkpoint in ("sar-mini", "sar-mini-turbo"):
        request = dataclasses.replace(REQUEST, checkpoint=checkpoint)
        asked = [check_request(axis.put(request, v, catalogue), catalogue, Settings()) for v in axis.values]
        assert [spec.id for _, spec in asked] == ["sar-mini", "sar-mini-turbo"]
        assert [(r.steps, r.guidance) for r, _ in asked] == [
            (spec.steps, spec.guidance) for spec in (catalogue["sar-mini"], catalogue["sar-mini-turbo"])
        ]
        fixed = dataclasses.replace(request, steps=6, guidance=1.5)
        asked = [check_request(axis.put(fixed, v, catalogue), catalogue, Settings()) for v in axis.values]
        assert [(r.steps, r.guidance) for r, _ in asked] == [(6, 1.5), (6, 1.5)]


def test_what_would_change_nothing_says_so():
    picture = Guide("optical", np.zeros((8, 8, 3), np.uint8), way="image-to-image")
    network = dataclasses.replace(picture, way="net")
    weight, second = parse_axis("guide-weight=0,1"), parse_axis("guide-weight:2=0,1")
    strength = parse_axis("strength=0.3,0.6")
    by = [dataclasses.replace(REQUEST, guides=guides) for guides in ((picture,), (network, picture), (network,))]
    assert [bool(AXES["guide-weight"].idle(r, weight)) for r in by] == [True, False, False]
    assert AXES["guide-weight"].idle(by[1], second)
    assert [bool(AXES["strength"].idle(r, strength)) for r in by] == [False, False, True]


def test_a_guide_that_is_not_there_is_refused(catalogue):
    with pytest.raises(InputError, match="needs a guide"):
        parse_axis("guide-weight=0,1").put(REQUEST, 1.0, catalogue)
    one = dataclasses.replace(REQUEST, guides=(Guide("map", np.zeros((8, 8, 3), np.uint8)),))
    with pytest.raises(InputError, match="There is no guide 2; there is one"):
        parse_axis("guide-weight:2=0,1").put(one, 1.0, catalogue)


def test_what_is_offered_can_be_read(catalogue):
    assert suggested("strategy", REQUEST, catalogue) == "base, vae-decoder, turbo"
    words = read_axis("prompt", suggested("prompt", REQUEST, catalogue)).values
    assert words[0] == "mountain gorge"
    for name in AXES:
        text = suggested(name, REQUEST, catalogue)
        assert not text or read_axis(name, text).values, name


def test_titles_and_labels_are_for_people():
    assert parse_axis("strategy=base,turbo").labels == ("Base", "Turbo")
    assert parse_axis("guidance=1,2.5").labels == ("1", "2.5")
    assert parse_axis("guide-weight:2=1").title == "Guide 2 weight"
    assert parse_axis("switch:graphs=on,off").title == "Switch graphs"
    assert parse_axis("switch:graphs=on,off").labels == ("on", "off")
    assert parse_axis("prompt=gorge,").labels == ("gorge", "(none)")
