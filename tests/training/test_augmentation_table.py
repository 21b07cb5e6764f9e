"""Means, intervals and readings of results whose answer is known."""

import pytest
from scipy import stats

from sar_gen.training.augmentation import AugmentationConfig, Trial
from sar_gen.training.augmentation_table import mean_of, report, verdict


def test_the_interval_is_students():
    values = [0.5, 0.6, 0.55, 0.7, 0.65]
    found = mean_of(values)
    low, high = stats.t.interval(0.95, 4, loc=0.6, scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((0.6, low, high))
    assert mean_of([0.4]).low is None


@pytest.mark.parametrize(
    ("values", "reading"),
    [
        ([0.1, 0.12, 0.11], "gain"),
        ([-0.1, -0.12, -0.11], "loss"),
        ([0.1, -0.1, 0.02], "undecided"),
        ([0.5], "undecided"),
    ],
)
def test_a_difference_counts_where_its_interval_leaves_0_out(values, reading):
    assert verdict(mean_of(values)) == reading


def test_differences_are_paired_by_seed(tmp_path):
    config = AugmentationConfig(
        real=tmp_path, generated=tmp_path, work=tmp_path, output=tmp_path, terrains=("a", "b"), shots=(5,), seeds=3
    )
    # Seeds differ by far more than the arms do; paired, the gain of 0.02 is certain.
    level = {0: 0.2, 1: 0.5, 2: 0.8}
    results = {Trial("real", 5, seed): [level[seed], level[seed]] for seed in level}
    results |= {
        Trial("real + generated", 5, seed): [level[seed] + 0.04, level[seed] + 0.0001 * seed] for seed in level
    }
    rows = {row["arm"]: row for row in report(config, results, {}, {})["rows"]}
    found = rows["real + generated"]
    assert found["difference"]["value"] == pytest.approx(0.02, abs=1e-3)
    assert found["verdict"] == "gain"
    assert found["recalls"]["a"]["value"] == pytest.approx(0.54)
    assert "difference" not in rows["real"]
    assert rows["generated"] == {"arm": "generated", "shots": 0, "seeds": 0}
