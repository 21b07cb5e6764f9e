"""The benches of switching and starting: real work at the tiny size; no number is asserted."""

from __future__ import annotations

import json

import pytest

from sar_gen import checkpoints
from sar_gen.bench import alternate, start, switch
from sar_gen.bench.start import bench_start
from sar_gen.bench.switch import DELTA, LORAS, TUNED, bench_switch
from sar_gen.cli_bench import _lines, bench
from sar_gen.errors import InputError, SarGenError
from sar_gen.folders import strategy_files
from sar_gen.settings import Settings
from tests import tiny


@pytest.fixture
def settings(tmp_path):
    tiny.checkpoint(tmp_path / "checkpoints" / "base", examples=["a river"])
    return Settings(home=tmp_path / "home", checkpoints=tmp_path / "checkpoints", checkpoint="base", device="cpu")


def test_switch_times_every_kind_of_switch_beside_fresh_loads(tmp_path, settings):
    benches = bench_switch(settings, work=tmp_path / "work", rounds=1)
    assert [len(one.timings) for one in benches] == [3, 3, 3, 3]
    for one in benches:
        assert all(timing.median > 0 and timing.memory is not None for timing in one.timings)
        assert one.ratio[one.timings[0].name] == 1
        assert "base, cpu, float32" in one.title
    facts = benches[0].facts
    assert set(facts["first_seconds"]) == {
        f"base to {DELTA}", f"{DELTA} to base", f"base to {LORAS[0]}", f"{LORAS[0]} to base", " to ".join(LORAS),
        f"base to {TUNED}", f"{TUNED} to base",
    }  # fmt: skip
    assert facts["kept_bytes"]["memory"] > 0
    json.dumps([one.to_json() for one in benches])


def test_switch_is_between_different_weights(tmp_path, settings):
    name, found = switch._prepare(settings, None, tmp_path / "work")
    catalogue = checkpoints.catalogue(found)
    assert (catalogue[TUNED].kind, catalogue[DELTA].base, catalogue[LORAS[0]].base) == ("pipeline", name, name)
    made = tmp_path / "work" / "checkpoints"
    own, tuned = (folder / "unet" / tiny.WEIGHTS["unet"] for folder in (settings.checkpoints / "base", made / TUNED))
    assert own.read_bytes() != tuned.read_bytes()
    assert (settings.checkpoints / "base" / "card.toml").read_text() != (made / TUNED / "card.toml").read_text()
    assert checkpoints.catalogue(settings)["base"].title == "base"  # the linked card was not written through
    assert strategy_files(made / DELTA).deltas.keys() == {"unet"}
    one, other = (strategy_files(made / lora).lora for lora in LORAS)
    assert one.stat().st_size == other.stat().st_size
    assert one.read_bytes() != other.read_bytes()


def test_switch_at_the_tiny_size_of_sdxl_keeps_what_it_made(tmp_path):
    settings = Settings(home=tmp_path / "home", device="cpu")
    bench_switch(settings, "tiny", tmp_path / "work", rounds=1)
    made = tmp_path / "work" / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*.safetensors")}
    assert len(before) == 11  # two pipelines of four parts, a delta, two LoRAs
    assert switch._prepare(settings, "tiny", tmp_path / "work")[0] == "sdxl-random-tiny"
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.safetensors")} == before


def test_start_times_processes_of_their_own(settings, monkeypatch):
    monkeypatch.setattr(start, "IMPORTS", {"python alone": "pass", "json": "import json"})
    starts, imports = bench_start(settings, rounds=1)
    plain, page, ready = starts.timings
    assert min(plain.median, page.median, ready.median) > 0
    assert all(timing.memory for timing in (*starts.timings, *imports.timings))
    assert [timing.name for timing in imports.timings] == ["python alone", "json"]


def test_a_process_that_ends_is_told_with_its_last_line(settings):
    with pytest.raises(SarGenError, match=r"ended before it was ready \(ValueError: no\)"), start._Started(
        "raise ValueError('no')", [], settings
    ) as started:  # fmt: skip
        started.says("ready")


def test_a_way_may_measure_its_seconds_and_memory():
    taken = iter([(9.0, 900), (1.0, 10), (3.0, 30), (2.0, 20)])
    result = alternate("", {"plain": lambda: 2.0, "ours": lambda: next(taken)}, rounds=3)
    assert [(t.name, t.median, t.low, t.high, t.memory) for t in result.timings] == [
        ("plain", 2, 2, 2, None), ("ours", 2, 1, 3, 30),
    ]  # fmt: skip
    assert _lines(result)[0][-1] == "memory MB"
    assert [line[-1] for line in _lines(result)[1:]] == ["-", "0"]
    assert "memory MB" not in _lines(alternate("", {"plain": lambda: 2.0}, rounds=1))[0]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("start", {"size": "tiny"}, "--size is for the bench generate, train, switch; leave it out for start"),
        ("switch", {"rows": "token"}, "--rows is for the bench train; leave it out for switch"),
        ("quality", {"out": "x"}, "--out is for the bench generate, train, switch, start"),
    ],
)
def test_an_option_of_another_bench_is_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        bench(name, **options)


def test_results_are_written_to_a_file(tmp_path, settings, monkeypatch, capsys):
    monkeypatch.setattr(Settings, "from_env", classmethod(lambda cls: settings))
    monkeypatch.setattr(
        switch, "bench_switch", lambda settings, size, work: bench_switch(settings, size, work, rounds=1)
    )
    bench("switch", out=tmp_path / "out.json", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "out.json").read_text())
    assert told[0]["timings"][1]["name"] == "studio"
