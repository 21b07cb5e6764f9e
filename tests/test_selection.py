"""Best of N on patches and features whose answer is known."""

import itertools
import json

import numpy as np
import pytest

from sar_gen.errors import InputError
from sar_gen.quality.statistics import patch_statistics
from sar_gen.selection import diversity_of, select
from tests.quality.test_report import speckle


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def reference():
    return patch_statistics(speckle(60), groups=[str(i) for i in range(60)])


@pytest.fixture(scope="module")
def patches():
    """Ten patches, of which only 2, 5 and 7 are as the reference is."""
    far = speckle(10, level=0.5, seed=1)
    for place, patch in zip((2, 5, 7), speckle(3, seed=2), strict=True):
        far[place] = patch
    return patch_statistics(far)


FEATURES = unit(np.random.default_rng(0).normal(size=(10, 16)))


def choose(patches, reference, keep):
    return select(patches, lambda: FEATURES, reference, keep, reference_name="sea", features_name="CLIP")


def test_the_nearest_are_kept_and_the_others_named(patches, reference):
    found = choose(patches, reference, 3)
    assert set(found.kept) == {2, 5, 7}
    assert found.rejected == (0, 1, 3, 4, 6, 8, 9)
    distances = [found.distances[place] for place in found.kept]
    assert distances == sorted(distances)
    assert max(distances) < min(found.distances[place] for place in found.rejected)
    for place, distance in enumerate(found.distances):
        assert distance == pytest.approx(np.mean([row[place] for row in found.ratios.values()]))
    assert "Kept the 3 of 10 patches nearest to sea" in found.text
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rejected"] == [0, 1, 3, 4, 6, 8, 9]


def test_a_constant_patch_comes_last(reference):
    odd = speckle(3, seed=3)
    odd[0] = np.full((64, 64), 0.5)
    kept = choose(patch_statistics(odd), reference, 3).kept
    assert set(kept) == {0, 1, 2}
    assert kept[-1] == 0


def test_diversity_is_the_mean_distance_of_pairs():
    kept = (1, 4, 8)
    found = diversity_of(FEATURES, kept, "CLIP")
    pairs = [1 - float(FEATURES[i] @ FEATURES[j]) for i, j in itertools.combinations(kept, 2)]
    everything = [1 - float(FEATURES[i] @ FEATURES[j]) for i, j in itertools.combinations(range(10), 2)]
    assert found.kept == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found.everything == pytest.approx(np.mean(everything), abs=1e-6)
    assert found.random_low < found.everything < found.random_high


def test_choosing_what_is_alike_costs_diversity():
    alike = np.concatenate([unit(np.ones((3, 16)) + 0.01 * FEATURES[:3]), FEATURES])
    found = diversity_of(alike, (0, 1, 2), "CLIP")
    assert "lower than chance: choosing cost diversity" in found.text
    assert "within chance" in diversity_of(FEATURES, (1, 4, 8), "CLIP").text


def test_one_patch_has_no_diversity_and_asks_for_no_features(patches, reference):
    def never():
        raise AssertionError("features are not needed")

    found = select(patches, never, reference, 1, reference_name="sea", features_name="CLIP")
    assert len(found.kept) == 1
    assert found.diversity.kept is None


@pytest.mark.parametrize("keep", [0, 11])
def test_more_than_there_are_cannot_be_kept(patches, reference, keep):
    with pytest.raises(InputError, match=f"{keep} of 10 patches cannot be kept"):
        choose(patches, reference, keep)
