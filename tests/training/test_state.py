import json
import time

import pytest
import torch
from accelerate import Accelerator

from sar_gen.errors import InputError
from sar_gen.training import state
from sar_gen.training.state import Clock, Journal, check_same_run, latest, read_journal, save_state


def test_states_are_whole_and_the_last_ones_are_kept(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(2, 1))
    assert latest(tmp_path) is None
    for step in (5, 10, 15):
        with torch.no_grad():
            model.weight.fill_(step)
        save_state(accelerator, tmp_path, step, keep=2)
    found = latest(tmp_path)
    assert found is not None
    assert found[0] == 15
    assert [path.name for path in sorted((tmp_path / "states").iterdir())] == ["step-00000010", "step-00000015"]
    accelerator.load_state(str(tmp_path / "states" / "step-00000010"))
    assert model.weight.unique().item() == 10


def test_a_state_that_was_cut_off_is_not_one(tmp_path):
    (tmp_path / "states" / ".step-00000020.part").mkdir(parents=True)
    (tmp_path / "states" / "step-00000010").mkdir()
    assert latest(tmp_path) == (10, tmp_path / "states" / "step-00000010")


def test_other_settings_do_not_go_on_with_a_run(tmp_path):
    check_same_run(tmp_path, {"steps": 5, "data": {"batch": 2}}, resume=False)
    check_same_run(tmp_path, {"steps": 6, "data": {"batch": 2}}, resume=False)  # nothing was made yet
    (tmp_path / "states" / "step-00000001").mkdir(parents=True)
    with pytest.raises(InputError, match="--resume"):
        check_same_run(tmp_path, {"steps": 6, "data": {"batch": 2}}, resume=False)
    with pytest.raises(InputError, match=r"data\.batch"):
        check_same_run(tmp_path, {"steps": 6, "data": {"batch": 3}}, resume=True)
    check_same_run(tmp_path, {"steps": 6, "data": {"batch": 2}}, resume=True)


def test_the_journal_is_cut_back_to_where_a_run_goes_on(tmp_path):
    journal = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        journal.add(step, loss=1.0 / step)
    with (tmp_path / state.JOURNAL).open("a") as file:
        file.write('{"step": 4, "lo')  # the machine went off here
    assert [line["step"] for line in read_journal(tmp_path)] == [1, 2, 3]
    journal = Journal(tmp_path, 2)
    journal.add(3, loss=0.5)
    assert [(line["step"], line["loss"]) for line in read_journal(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.5)]
    json.loads((tmp_path / state.JOURNAL).read_text().splitlines()[-1])


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what.txt").write_text(name)
    state.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "what.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_clock_ends_with_its_budget():
    assert not Clock().over
    assert Clock(minutes=0).over
    assert not Clock(minutes=1).over
    assert Clock(minutes=1, started=time.monotonic() - 61).over
