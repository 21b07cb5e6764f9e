import time

import pytest

from sar_gen.bench import alternate, bench_generate
from sar_gen.settings import Settings
from tests import tiny


def test_ratio_is_that_of_the_same_round():
    """Every round is twice as slow as the one before; the ratio of the two ways stays 2."""
    clock = {"plain": 0.002, "ours": 0.004}

    def way(name):
        def work():
            time.sleep(clock[name])
            clock[name] *= 2

        return work

    result = alternate("sleeping", {"plain": way("plain"), "ours": way("ours")}, rounds=4)
    assert result.ratio["plain"] == 1
    assert result.ratio["ours"] == pytest.approx(2, rel=0.25)
    assert [t.name for t in result.timings] == ["plain", "ours"]
    assert all(t.low <= t.median <= t.high for t in result.timings)


def test_generate_times_the_same_work_both_ways(tmp_path):
    tiny.checkpoint(tmp_path / "checkpoints" / "base", examples=["a river"])
    settings = Settings(home=tmp_path / "home", checkpoints=tmp_path / "checkpoints", checkpoint="base", device="cpu")
    result = bench_generate(settings, count=1, rounds=1)
    assert set(result.ratio) == {"bare diffusers", "studio, saved to disk", "studio, saved, with previews"}
    assert all(timing.median > 0 for timing in result.timings)
