"""The learning rate is a pure function of the step."""

from __future__ import annotations

import pytest

from sar_gen.training.config import OptimiserConfig
from sar_gen.training.rates import rate, share


def curve(steps: int, **values: object) -> list[float]:
    config = OptimiserConfig(**values)  # type: ignore[arg-type]
    return [rate(config, step, steps) for step in range(steps)]


def test_constant_is_the_highest_rate_at_every_step() -> None:
    assert curve(5, learning_rate=3e-4) == [3e-4] * 5


def test_cosine_is_half_way_down_in_the_middle_and_almost_nothing_at_the_end() -> None:
    values = curve(100, learning_rate=1e-3, schedule="cosine")
    assert values[0] == 1e-3
    assert values[50] == pytest.approx(5e-4)
    assert 0 < values[99] < 1e-6
    assert values == sorted(values, reverse=True)


def test_linear_falls_by_the_same_amount_each_step_to_zero_after_the_last() -> None:
    assert curve(4, learning_rate=0.4, schedule="linear") == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_trapezoid_is_constant_until_the_last_share_of_the_steps() -> None:
    values = curve(10, learning_rate=0.5, schedule="trapezoid", decay=0.4)
    assert values == pytest.approx([0.5] * 7 + [0.375, 0.25, 0.125])
    assert curve(3, learning_rate=0.5, schedule="trapezoid", decay=0.0) == [0.5] * 3


def test_warmup_rises_evenly_and_its_first_step_moves() -> None:
    assert curve(6, learning_rate=0.4, warmup=3) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_parts_with_rates_of_their_own_share_the_schedule() -> None:
    config = OptimiserConfig(learning_rate=2e-4, schedule="linear", warmup=1)
    assert [share(config, step, 4) for step in range(4)] == pytest.approx([0.5, 0.75, 0.5, 0.25])
