import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sar_gen import checkpoints, guide_networks
from sar_gen.errors import InputError
from sar_gen.guides import CLASSES
from sar_gen.training import guide_evaluation as evaluation
from tests import tiny
from tests.training.conftest import write_data


def test_correlations_against_numpy_and_their_ends():
    random = np.random.default_rng(0)
    one, other = (random.random((64, 64)).astype(np.float32) for _ in range(2))
    wanted = np.corrcoef(gaussian_filter(one, 4).ravel(), gaussian_filter(other, 4).ravel())[0, 1]
    assert evaluation.low_pass_correlation(one, other) == pytest.approx(wanted, abs=1e-5)
    assert evaluation.low_pass_correlation(one, one) == pytest.approx(1)
    assert evaluation.edge_correlation(one, 0.5 * one) == pytest.approx(1, abs=1e-5)
    assert evaluation.edge_correlation(one, np.full_like(one, 0.5)) == 0


def test_mean_and_standard_error():
    mean, error = evaluation.mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3
    assert error == pytest.approx(np.sqrt(14 / 3) / 2)


def test_places_are_spread_over_the_labels():
    labels = ["a"] * 40 + ["b"] * 2 + ["c"] * 10
    chosen = evaluation.spread(labels, 12)
    assert len(chosen) == len(set(chosen)) == 12
    counts = [sum(labels[place] == name for place in chosen) for name in "abc"]
    assert counts == [5, 2, 5]


def test_ground_of_classes_and_iou_against_a_count_by_hand():
    class_map = np.array([[CLASSES.index("water"), CLASSES.index("urban")], [CLASSES.index("road"), 1]], np.uint8)
    np.testing.assert_array_equal(evaluation.ground_of(class_map), [[0, 1], [2, 2]])
    wanted, seen = np.array([[0, 0, 1, 2]]), np.array([[0, 1, 1, 2]])
    assert evaluation.intersection_over_union([wanted], [seen]) == [1 / 2, 1 / 2, 1.0]
    assert np.isnan(evaluation.intersection_over_union([np.zeros((2, 2))], [np.zeros((2, 2))])[1])


def test_the_classifier_tells_grounds_of_different_level():
    random = np.random.default_rng(2)
    levels = np.array([0.05, 0.6, 0.25])
    ground = np.repeat(np.repeat(random.integers(0, 3, (8, 8)), 32, 0), 32, 1).astype(np.uint8)
    amplitude = (levels[ground] * np.sqrt(random.gamma(4, 1 / 4, ground.shape))).astype(np.float32)
    features = evaluation.ground_features(amplitude).reshape(-1, 3)
    law = evaluation.ground_laws(features, ground.ravel())
    assert (law.classify(amplitude) == ground).mean() > 0.75
    assert law.shares.sum() == pytest.approx(1)


def test_a_ground_that_does_not_occur_is_never_found():
    random = np.random.default_rng(3)
    features = random.normal(size=(500, 3))
    law = evaluation.ground_laws(features, np.full(500, 2, np.uint8))
    assert (law.classify(random.random((32, 32)).astype(np.float32)) == 2).all()


def test_measure_on_a_tiny_network(place, tmp_path):
    write_data(place.data, optical=True)
    tiny.network(place.settings.checkpoints / "net", place.settings.checkpoints / "base")
    known = guide_networks.networks(place.settings, checkpoints.catalogue(place.settings))
    found = evaluation.measure(known["net"], place.data, place.settings, count=3, steps=2)
    assert [kind.kind for kind in found.kinds] == ["map", "optical", "sar"]
    for kind in found.kinds:
        assert kind.places == 3
        assert kind.correlation["low_pass"].keys() == {"guided", "unguided", "shuffled"}
        assert kind.distances["wasserstein1"].keys() == {"guided", "unguided"}
    # Unguided pictures are the same ones for each kind.
    assert len({kind.correlation["edges"]["unguided"] for kind in found.kinds}) == 1
    assert found.kinds[0].iou.keys() == {"guided", "unguided", "shuffled", "real"}
    text = evaluation.markdown(found)
    assert "| sar | 3 | edge correlation |" in text
    evaluation.write(found, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "following.json", "following.md", "following-map.png", "following-optical.png", "following-sar.png",
    }  # fmt: skip
    with pytest.raises(InputError, match="does not read"):
        evaluation.measure(known["net"], place.data, place.settings, kinds=["sketch"])
