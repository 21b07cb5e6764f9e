import dataclasses
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from sar_gen.augment.recipe import GuideFiles, recipe_of
from sar_gen.augment.slots import Slots


@pytest.fixture
def recipe(place, tmp_path):
    """Two classes of 23 and 10 patches on one checkpoint, one of 8 on another, in units of four."""
    classes = [
        {"name": "a", "count": 23, "vocabulary": {"place": ["x", "y", "z"]}},
        {"name": "b", "count": 8, "strategy": "unet-lora", "vocabulary": {"place": ["x"]}},
        {"name": "c", "count": 10, "vocabulary": {"place": ["u", "v"]}},
    ]
    plan = place.plan(tmp_path, classes=classes, batch=4, gate={"attempts": 3}, prompts=["a {style} of {place}"])
    return recipe_of(plan, place.settings)


def units(slots):
    return [slots.unit(number) for number in range(slots.units)]


def test_every_slot_is_in_one_unit_and_every_class_has_its_count(recipe):
    slots = Slots(recipe)
    covered = [slot for unit in units(slots) for slot in range(unit.first, unit.first + unit.size)]
    assert covered == list(range(41))
    found = Counter()
    for unit in units(slots):
        found[unit.kind.name] += unit.size
        assert 1 <= unit.size <= 4
    assert found == {"a": 23, "b": 8, "c": 10}
    assert [slots.unit_of(slot) for slot in range(41)] == [u.number for u in units(slots) for _ in range(u.size)]
    assert [recipe.classes[label].name for label in slots.kinds()] == [
        unit.kind.name for unit in units(slots) for _ in range(unit.size)
    ]


def test_no_two_attempts_share_a_seed_and_keys_are_sorted(recipe):
    slots = Slots(recipe)
    seeds = {slots.seed(slot, attempt) for slot in range(41) for attempt in range(3)}
    assert seeds == set(range(50, 50 + 3 * 41))
    keys = [slots.key(slot) for slot in range(41)]
    assert keys == sorted(keys)
    assert len(set(keys)) == 41
    assert keys[7] == "tiny-set-000007"


def test_checkpoints_come_one_after_the_other_and_their_classes_are_mixed(recipe):
    made = units(Slots(recipe))
    by_checkpoint = [unit.kind.checkpoint for unit in made]
    assert by_checkpoint == sorted(by_checkpoint, key=["base", "tuned"].index)
    first = "".join(unit.kind.name for unit in made if unit.kind.checkpoint == "base")
    assert "ac" in first
    assert "ca" in first


def test_a_unit_is_the_same_whoever_computes_it(recipe):
    forward = units(Slots(recipe))
    other = Slots(recipe)
    backward = [other.unit(number) for number in reversed(range(other.units))]
    assert forward == backward[::-1]
    seed = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, seed=51))
    assert [unit.prompt for unit in units(Slots(seed))] != [unit.prompt for unit in forward]


def test_prompts_are_drawn_evenly(recipe):
    plan = dataclasses.replace(recipe.plan, batch=1)
    many = dataclasses.replace(recipe.classes[0], count=3000)
    slots = Slots(dataclasses.replace(recipe, plan=plan, classes=(many,)))
    found = Counter(unit.prompt for unit in units(slots))
    assert set(found) == {f"a {style} of {place}" for style in ("SAR image", "radar image") for place in "xyz"}
    # 500 each; five standard deviations of a binomial
    assert max(abs(count - 500) for count in found.values()) < 5 * np.sqrt(3000 * 1 / 6 * 5 / 6)


def test_guides_are_drawn_from_each_folder_apart(recipe, tmp_path):
    plan = recipe.plan
    files = tuple(GuideFiles(None, tuple(f"{folder}{i}" for i in range(5))) for folder in "mo")
    one = dataclasses.replace(recipe.classes[0], count=400, guides=files)
    slots = Slots(dataclasses.replace(recipe, plan=dataclasses.replace(plan, batch=1), classes=(one,)))
    pairs = Counter(unit.guides for unit in units(slots))
    assert len(pairs) == 25
    assert {name for pair in pairs for name in pair} == {f"{folder}{i}" for folder in "mo" for i in range(5)}


def test_what_is_undone(recipe):
    slots = Slots(recipe)
    decided = np.zeros(41, bool)
    assert list(slots.undone(decided)) == list(range(slots.units))
    unit = slots.unit(3)
    decided[unit.first : unit.first + unit.size] = True
    decided[slots.unit(5).first] = True  # in part: it is made again
    assert list(slots.undone(decided)) == [number for number in range(slots.units) if number != 3]
    assert list(slots.undone(np.ones(41, bool))) == []


def test_a_hundred_thousand_slots_take_a_few_bytes_each(recipe):
    plan = dataclasses.replace(recipe.plan, batch=1)
    large = tuple(dataclasses.replace(one, count=100_000 // 3 + 1) for one in recipe.classes)
    tracemalloc.start()
    slots = Slots(dataclasses.replace(recipe, plan=plan, classes=large))
    for number in range(0, slots.units, 100):
        slots.unit(number)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3_000_000
