import dataclasses

import pytest

from sar_gen.errors import InputError
from sar_gen.profiles import PROFILES, Switches, for_strategy, profile, read_switches, switches_of


def test_plain_changes_nothing_and_exact_nothing_that_changes_the_picture():
    assert profile("plain").switches == Switches()
    exact = dataclasses.asdict(profile("exact").switches)
    for name in ("guidance_start", "guidance_end", "reuse", "steps", "decoder", "quantised"):
        assert exact[name] == getattr(Switches(), name)


def test_single_switches_are_set_on_top_of_a_profile():
    found = switches_of("fast", {"reuse": 3})
    assert found == dataclasses.replace(PROFILES["fast"].switches, reuse=3)


def test_switches_are_read_as_a_command_line_gives_them():
    found = read_switches(["reuse=2", "graphs=off", "guidance_end = 0.5", "compiled=on", "wide_sampler=yes"])
    assert found == {"reuse": 2, "graphs": False, "guidance_end": 0.5, "compiled": "on", "wide_sampler": True}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["magic=1"], "unknown; give NAME=VALUE"),
        (["reuse"], "unknown; give NAME=VALUE"),
        (["reuse=two"], "give a whole number"),
        (["steps=half"], "give a number"),
        (["graphs=perhaps"], "give on or off"),
    ],
)
def test_wrong_texts_are_one_sentence(texts, message):
    with pytest.raises(InputError, match=message):
        read_switches(texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reuse": 0}, "choose 1"),
        ({"steps": 0.0}, "share from 0.1"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, "start before the end"),
        ({"precision": "half"}, "float32, auto"),
        ({"compiled": "yes"}, "off, gpu, on"),
        ({"magic": 1}, "'magic' is unknown"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        switches_of("exact", changes)


def test_an_unknown_profile_names_those_that_there_are():
    with pytest.raises(InputError, match="exact, fast, plain"):
        switches_of("quick")


def test_a_distilled_strategy_keeps_each_of_its_steps():
    fast = PROFILES["fast"].switches
    assert for_strategy(fast, False) is fast
    assert (for_strategy(fast, True).steps, for_strategy(fast, True).reuse) == (1.0, 1)
    assert for_strategy(fast, True).decoder == fast.decoder
