import json
import os
import signal

import pytest

from sar_gen import cli_augment
from sar_gen.augment.run import State
from tests import tiny

PLAN = """
name = "few"
out = "made"
checkpoint = "base"
prompts = ["{class}"]

[[classes]]
name = "forest"
count = 3
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.checkpoint(folder / "base")
    return folder


@pytest.fixture
def plan(tmp_path, checkpoints, monkeypatch):
    for name, value in (("CHECKPOINTS", checkpoints), ("HOME", tmp_path / "home"), ("DEVICE", "cpu")):
        monkeypatch.setenv(f"SAR_GEN_{name}", str(value))
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def run(run, one_thread):
    """The same, with the signals' handlers put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_json_is_one_document_and_a_table_says_the_same(run, plan, tmp_path):
    status, out, _ = run("augment", plan, "--workers", 1, "--json")
    made = json.loads(out)
    assert (status, made["finished"], made["made"], made["missing"], made["fresh"]) == (0, True, 3, 0, 3)
    assert made["classes"]["forest"] == {"asked": 3, "made": 3, "missing": 0, "left": 0, "rejected": 0}
    assert made["patches_a_minute"] == pytest.approx(60 * 3 / made["seconds"], rel=0.01)
    assert made["folder"] == str(tmp_path / "made")
    status, out, _ = run("augment", plan, "--workers", 1)
    assert status == 0
    assert "forest  3      3     0        0" in out
    assert "is complete: manifest.jsonl" in out


def test_ctrl_c_says_how_to_go_on(run, plan, monkeypatch):
    show = cli_augment._Line.show

    def interrupt(line, state):
        show(line, state)
        if state.fresh == 1 and state.decided == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli_augment._Line, "show", interrupt)
    status, out, _ = run("augment", plan, "--workers", 1)
    assert status == 130
    assert "2 of 3 patches are left; the same call goes on where this one ended." in out
    status, out, _ = run("augment", plan, "--workers", 1, "--json")
    assert json.loads(out)["fresh"] == 2


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (("checkpoint", "chekpoint"), (), "has the unknown key 'chekpoint'; remove it or correct its name."),
        (('"{class}"', '"{clas}"'), (), "has the slot {clas}, which is not in the vocabulary"),
        (('"base"', '"bose"'), (), "The checkpoint 'bose' is unknown; choose one of base, "),
        (("", ""), ("--workers", 0), "The number of workers is 0; give 1 or more."),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(run, plan, change, options, sentence):
    plan.write_text(PLAN.replace(*change) if change[0] else PLAN)
    status, out, err = run("augment", plan, *options)
    assert (status, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_missing_patches_are_said_at_last(run, plan):
    plan.write_text(PLAN + 'reference = "s1-forest"\n[gate]\nattempts = 2\nmeasures = { wasserstein1 = 1e-9 }\n')
    status, out, _ = run("augment", plan, "--workers", 1)
    assert status == 0
    assert "3 patches are MISSING: the gate rejected every attempt." in out


def test_the_line_of_progress(monkeypatch):
    clock = iter([0.0, 0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(cli_augment.time, "monotonic", lambda: next(clock))
    line = cli_augment._Line()
    for fresh in (0, 10, 20):
        line.show(State(total=1000, decided=100 + fresh, fresh=fresh, made=118, missing=2, rejected=40))
    assert (
        line.text(State(1000, 120, 20, 118, 2, 40))
        == "120 of 1,000 patches, 20 a minute, 44 min left, 25% of attempts rejected, 2 missing"
    )


def test_a_long_run_into_a_file_says_where_it_is_once_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(cli_augment.time, "monotonic", lambda: now[0])
    line = cli_augment._Line()
    for second in range(150):
        now[0] = float(second)
        line.show(State(1000, second, second, second, 0, 0))
    assert [text.split(",")[0] for text in capsys.readouterr().err.splitlines()] == ["60 of 1", "120 of 1"]
