"""How near patches are, on speckle fields whose law is known."""

import numpy as np
import pytest

from sar_gen.errors import InputError
from sar_gen.quality.nearness import MAIN_MEASURES, floor_ratios, nearness
from sar_gen.quality.report import compare
from sar_gen.quality.statistics import patch_statistics
from tests.quality.test_report import speckle


@pytest.fixture(scope="module")
def reference():
    return patch_statistics(speckle(300), groups=[str(i) for i in range(300)])


def test_real_patches_are_at_one_floor(reference):
    ratios = floor_ratios(patch_statistics(speckle(300, seed=7)), reference)
    assert set(ratios) == set(MAIN_MEASURES)
    for row in ratios.values():
        assert np.median(row) == pytest.approx(1, abs=0.3)  # medians over 300 patches of one law
    assert np.median(nearness(ratios)) == pytest.approx(1, abs=0.2)


def test_the_ratio_is_that_of_the_report(reference):
    one = patch_statistics(speckle(1, level=0.35, seed=3))
    report = compare(one, reference, reference_name="speckle")
    for name, row in floor_ratios(one, reference).items():
        assert row[0] == pytest.approx(report.measures[name].ratio)


def test_what_is_far_is_far_in_the_measure_that_sees_it(reference):
    bright = floor_ratios(patch_statistics(speckle(2, level=0.5, seed=3)), reference)
    assert (bright["wasserstein1"] > 5).all()
    rough = floor_ratios(patch_statistics(speckle(2, looks=1, seed=3)), reference)
    assert (rough["enl"] > 5).all()
    both = [nearness(ratios) for ratios in (bright, rough)]
    near = nearness(floor_ratios(patch_statistics(speckle(2, seed=4)), reference))
    assert min(map(np.min, both)) > near.max()


def test_undefined_measures_are_left_out_of_the_mean():
    ratios = {"a": np.array([1.0, np.nan, np.nan]), "b": np.array([3.0, 2.0, np.nan])}
    np.testing.assert_array_equal(nearness(ratios), [2.0, 2.0, np.nan])


def test_unknown_measures_and_references_without_floors_are_refused(reference):
    patch = patch_statistics(speckle(1))
    with pytest.raises(InputError, match="'brightness' is unknown; choose from wasserstein1"):
        floor_ratios(patch, reference, ["brightness"])
    with pytest.raises(InputError, match="one piece of ground only"):
        floor_ratios(patch, patch_statistics(speckle(3), groups=["a"] * 3))
