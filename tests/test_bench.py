from sar_gen.bench import alternate, bench_generate, bench_quality, timing
from sar_gen.settings import Settings
from tests import tiny


def test_ratio_is_that_of_the_same_round(monkeypatch):
    """Every round is twice as slow as the one before; the ratio of the two ways stays 2."""
    now = 0.0
    cost = {"plain": 1.0, "ours": 2.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def way(name):
        def work():
            nonlocal now
            now += cost[name]
            cost[name] *= 2

        return work

    result = alternate("waiting", {"plain": way("plain"), "ours": way("ours")}, rounds=4)
    assert result.ratio == {"plain": 1, "ours": 2}
    # The first round is not timed: 2, 4, 8 and 16 seconds are left.
    assert [(t.name, t.median, t.low, t.high) for t in result.timings] == [("plain", 6, 2, 16), ("ours", 12, 4, 32)]


def test_generate_times_the_same_work_both_ways(tmp_path):
    tiny.checkpoint(tmp_path / "checkpoints" / "base", examples=["a river"])
    settings = Settings(home=tmp_path / "home", checkpoints=tmp_path / "checkpoints", checkpoint="base", device="cpu")
    [result] = bench_generate(settings, count=1, rounds=1)
    assert set(result.ratio) == {"bare diffusers", "studio, saved to disk", "studio, saved, with previews"}
    assert all(timing.median > 0 for timing in result.timings)


def test_quality_times_the_same_patches_both_ways():
    benches = bench_quality(Settings(), small=2, large=128, rounds=1)
    assert len(benches) == 3
    for bench in benches:
        assert len(bench.timings) == 2
        assert all(timing.median > 0 for timing in bench.timings)
