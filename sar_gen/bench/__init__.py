"""Measured claims: ``python -m sar_gen bench NAME``."""

from collections.abc import Callable

from sar_gen.bench.generate import bench_generate
from sar_gen.bench.quality import bench_quality
from sar_gen.bench.start import bench_start
from sar_gen.bench.switch import bench_switch
from sar_gen.bench.timing import Bench, Timing, alternate
from sar_gen.settings import Settings

BENCHES: dict[str, Callable[[Settings], tuple[Bench, ...]]] = {
    "generate": bench_generate,
    "quality": bench_quality,
    "switch": bench_switch,
    "start": bench_start,
}

__all__ = ["BENCHES", "Bench", "Timing", "alternate", "bench_generate", "bench_quality", "bench_start", "bench_switch"]
