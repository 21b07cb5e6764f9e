import json

import numpy as np
import pytest

from sar_gen.augment.journal import Journal


def line(slot, **more):
    return {"slot": slot, "made": True, **more}


def slots_in(path):
    return [json.loads(text)["slot"] for text in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "requests.jsonl"


def test_lines_are_found_by_slot_after_it_is_opened_again(path):
    journal = Journal(path, 6, lambda _: True)
    journal.add([line(4, prompt="ä \n"), line(5)])
    journal.add([line(0)])
    assert journal.line(4) == line(4, prompt="ä \n")
    journal.close()
    again = Journal(path, 6, lambda _: True)
    assert list(again.decided) == [True, False, False, False, True, True]
    assert again.dropped == 0
    again.add([line(2)])
    assert [again.line(slot)["slot"] for slot in (5, 2, 0)] == [5, 2, 0]
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_that_was_cut_off_is_removed(path, cut):
    journal = Journal(path, 4, lambda _: True)
    journal.add([line(1), line(3)])
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, 4, lambda _: True)
    assert again.dropped == 1
    assert list(np.flatnonzero(again.decided)) == [1]
    again.add([line(3), line(0)])
    again.close()
    assert slots_in(path) == [1, 3, 0]


def test_damaged_foreign_and_double_lines_and_those_that_cannot_be_used_are_removed(path):
    texts = [json.dumps(line(0)), "", "{", "[1]", '{"slot": "x"}', json.dumps(line(9)), json.dumps(line(-1)),
             json.dumps(line(0, second=True)), json.dumps(line(1)), "\0" * 40, json.dumps(line(2))]  # fmt: skip
    path.write_text("\n".join(texts) + "\n")
    journal = Journal(path, 4, lambda found: found["slot"] != 1)
    assert list(np.flatnonzero(journal.decided)) == [0, 2]
    assert journal.line(0) == line(0)
    assert journal.line(2) == line(2)
    journal.close()
    assert slots_in(path) == [0, 2]


def test_it_is_sorted_at_last(path):
    journal = Journal(path, 4, lambda _: True)
    for slot in (2, 0, 3, 1):
        journal.add([line(slot, text="x" * slot)])
    journal.sort()
    assert slots_in(path) == [0, 1, 2, 3]
    assert journal.line(3) == line(3, text="xxx")
    journal.close()
