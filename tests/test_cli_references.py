import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sar_gen import cli_common
from sar_gen.cli_references import references_app
from sar_gen.errors import InputError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("SAR_GEN_HOME", str(tmp_path / "home"))

    def command(*arguments):
        result = CliRunner().invoke(references_app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return command


def test_a_set_is_added_shared_and_removed(run, tmp_path):
    folder = tmp_path / "scenes" / "north"
    folder.mkdir(parents=True)
    for seed in range(3):
        np.save(folder / f"{seed}.npy", np.random.default_rng(seed).gamma(4, 1, (40, 40)).astype(np.float32))
    np.save(folder / "bad.npy", np.full((40, 40), np.nan))
    added = run(
        "add", folder.parent, "--name", "Own", "--encoding", "intensity", "--recursive", "--group-by-folder",
        "--polarisation", "HV", "--licence", "CC0", "--skip-unusable", "--json",
    )  # fmt: skip
    assert (json.loads(added)["count"], json.loads(added)["polarisation"]) == (3, "HV")
    facts = json.loads(run("show", "own", "--json"))
    assert (facts["patches"], facts["groups"], facts["licence"]) == (3, 1, "CC0")
    assert facts["note"].startswith("1 files were left out; the first: bad.npy")
    file = tmp_path / "own.sarref"
    exported = json.loads(run("export", "own", file, "--with-patches", "--json"))
    assert exported["bytes"] == file.stat().st_size
    assert len(exported["sha256"]) == 64
    assert "Added theirs: 3 patches." in run("import", file, "--name", "theirs")
    names = {info["name"]: info for info in json.loads(run("list", "--json"))}
    assert names["theirs"]["has_patches"]
    assert "Removed theirs" in run("remove", "theirs")
    assert "theirs" not in run("list")


def test_pulling_checks_what_it_is_given(run):
    with pytest.raises(InputError, match="west,south,east,north"):
        run("pull", "s1-rtc", "--bbox", "1,2,3", "--name", "x")
    with pytest.raises(InputError, match="YYYY-MM-DD"):
        run("pull", "umbra", "--bbox", "1,2,3,4", "--name", "x", "--from", "May")


def test_the_rate_is_of_what_was_done_now(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(cli_common.time, "monotonic", lambda: clock[0])
    rate = cli_common.Rate(("First", "Second"), "patches")
    rate.show(640, 1000)  # kept from before
    assert rate.text(1000) == "First: 640 of 1,000 patches"
    for second in range(1, 6):
        clock[0] = second
        rate.show(640 + 20 * second, 1000)
    assert rate.text(1000) == "First: 740 of 1,000 patches, 20 a second, 13 s left"
    clock[0] = 30
    rate.show(10, 1000)
    clock[0] = 31
    rate.show(50, 1000)
    assert rate.text(1000) == "Second: 50 of 1,000 patches, 40 a second, 24 s left"
