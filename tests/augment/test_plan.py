import tomllib
from pathlib import Path

import pytest

from sar_gen.augment import plan as plans
from sar_gen.augment.plan import Plan, count_prompts, filled, read_plan, slots_of
from sar_gen.augment.recipe import recipe_of
from sar_gen.errors import InputError
from sar_gen.settings import ROOT, Settings
from sar_gen.training.config import check_config

MINIMAL = {
    "name": "set",
    "out": "out",
    "prompts": ["a SAR image of {place}"],
    "classes": [{"name": "forest", "count": 2, "vocabulary": {"place": ["trees"]}}],
}
CLASS = MINIMAL["classes"][0]


def test_a_minimal_plan_has_the_defaults():
    plan = check_config(MINIMAL, Plan, "plan.toml")
    assert (plan.batch, plan.threads, plan.split, plan.pixels, plan.gate.attempts) == (1, 1, "train", "png", 3)
    assert plan.words_of(plan.classes[0]) == {"place": ("trees",), "class": ("forest",)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colour": "red"}, "has the unknown key 'colour'; remove it"),
        ({"gate": {"limit": 3}}, "has the unknown key 'gate.limit'; remove it"),
        ({"classes": [{**CLASS, "counts": 3}]}, "unknown key 'classes.0.counts'"),
        ({"name": "a b"}, "name is not usable"),
        ({"classes": []}, "classes is not usable"),
        ({"seed": 2**32}, "seed is not usable"),
        ({"prompts": ["a SAR image of {ground}"]}, "the slot {ground}, which is not in the vocabulary"),
        ({"prompts": ["a SAR image"]}, "no prompt of the class 'forest' uses the words 'place' of its vocabulary"),
        ({"vocabulary": {"style": ["x"]}}, "no prompt uses the words 'style' of the vocabulary"),
        ({"prompts": ["a SAR image of {place"]}, "a bracket without its other"),
        ({"prompts": ["{place} {}"]}, "which is not the name of a slot"),
        ({"prompts": ["{place!r}"]}, "which is not the name of a slot"),
        ({"prompts": ["{place.x}"]}, "which is not the name of a slot"),
        ({"prompts": []}, "the class 'forest' has no prompt"),
        ({"classes": [{**CLASS, "vocabulary": {"place": []}}]}, "the vocabulary has no words for 'place'"),
        ({"classes": [{**CLASS, "vocabulary": {"place": ["x"], "class": ["y"]}}], "prompts": ["{place} {class}"]},
         "the slot {class} is the class's own name"),
        ({"classes": [{"name": "forest", "vocabulary": {"place": ["x"]}}]}, "the class 'forest' has no count"),
        ({"classes": [CLASS, {**CLASS, "name": "Forest"}]}, "is there twice"),
        ({"classes": [{**CLASS, "name": "../up"}]}, "the class name '../up' should be letters"),
        ({"gate": {"measures": {"enl": 2.0}}}, "the class 'forest' has no reference for the gate"),
        ({"gate": {"measures": {"enl": -1.0}, "reference": "s1-forest"}}, "gate.measures.enl is not usable"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes, sentence):
    with pytest.raises(InputError) as caught:
        check_config({**MINIMAL, **changes}, Plan, "plan.toml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_is_filled_and_leaves_no_double_spaces():
    assert slots_of("a {style} of {place}, {{raw}}") == ("style", "place")
    assert filled("a  {size} {place}", {"size": "", "place": "lake"}) == "a lake"


def test_prompts_are_counted_as_they_can_be_told_apart():
    words = {"a": ("1", "2", "3"), "b": ("x", "y"), "class": ("forest",)}
    every = {f"{a}{b}" for a in words["a"] for b in words["b"]} | {f"{a}-{a}" for a in words["a"]} | {"plain"}
    assert count_prompts(["{a}{b}", "{a}-{a}", "plain"], words) == len(every)


def test_relative_paths_are_the_plan_files_own(tmp_path):
    (tmp_path / "plan.toml").write_text(
        'name = "s"\nout = "made"\nprompts = ["{class}"]\n[balance]\ntarget = 3\nexisting = "data/manifest.jsonl"\n'
        '[[classes]]\nname = "x"\n[[classes.guides]]\nfolder = "maps"\n[[guides]]\nfolder = "/elsewhere"\n'
    )
    plan = read_plan(tmp_path / "plan.toml")
    assert plan.out == tmp_path / "made"
    assert plan.balance.existing == tmp_path / "data/manifest.jsonl"
    assert plan.classes[0].guides[0].folder == tmp_path / "maps"
    assert plan.guides[0].folder == Path("/elsewhere")


def test_the_shipped_plan_is_of_a_thousand_patches_in_words_that_the_checkpoint_knows(settings):
    path = ROOT / "assets/plans/five-terrains.toml"
    recipe = recipe_of(read_plan(path), settings)
    assert {one.name: one.count for one in recipe.classes} == dict.fromkeys(
        ("forest", "gorge", "agriculture", "river", "residential"), 200
    )
    from sar_gen.training.captions import PHRASES, STYLES, TERRAINS

    for one in recipe.classes:
        assert set(one.words["place"]) <= {phrase for name in TERRAINS for phrase in PHRASES[name]}
        assert {f"a {style}" for style in one.words["style"]} <= set(STYLES)
        assert count_prompts(one.templates, one.words) >= 40
    assert recipe.classes[0].checkpoint == "sar-mini-turbo"


def test_the_documented_plan_is_valid():
    text = "\n".join(line[4:] for line in plans.__doc__.splitlines() if line.startswith("    "))
    assert check_config(tomllib.loads(text), Plan, "doc").gate.attempts == 3


def test_settings_of_the_environment_do_not_matter_for_reading(monkeypatch):
    monkeypatch.setenv("SAR_GEN_PROFILE", "fast")
    assert check_config(MINIMAL, Plan, "plan.toml").profile is None
    assert Settings.from_env().profile == "fast"
