import numpy as np

from sar_gen.bench import alternate, bench_quality, timing
from sar_gen.bench.scenes import bench_scenes, seams_of
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


def test_quality_times_the_same_patches_both_ways():
    benches = bench_quality(Settings(), small=2, large=128, rounds=1)
    assert len(benches) == 3
    for bench in benches:
        assert len(bench.timings) == 2
        assert all(timing.median > 0 for timing in bench.timings)


def test_seams_of_a_step_and_of_none():
    """Uniform noise has jumps of one size everywhere; a step of brightness at each line has larger ones there."""
    random = np.random.default_rng(0)
    scene = random.random((256, 256)).astype(np.float32)
    for value in seams_of(scene, 32):
        assert 0.6 < value < 1.5
    stepped = scene + 0.5 * (np.arange(256) // 32 % 2)
    columns, rows = seams_of(stepped.astype(np.float32), 32)
    assert columns > 5
    assert 0.6 < rows < 1.5


def test_scenes_are_made_and_measured(tmp_path):
    tiny.checkpoint(tmp_path / "checkpoints" / "base", examples=["a river"])
    settings = Settings(home=tmp_path / "home", checkpoints=tmp_path / "checkpoints", checkpoint="base", device="cpu")
    scenes = bench_scenes(settings, sides=(64, 160), steps=2)
    assert [(scene.name, scene.side) for scene in scenes] == [
        ("windows", 64), ("windows", 160), ("patches side by side", 128),
    ]  # fmt: skip
    assert scenes[0].seams is None
    assert all(np.isfinite(scene.seams).all() for scene in scenes[1:])
    assert scenes[1].peak > 0
