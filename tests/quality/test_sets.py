import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from sar_gen.errors import InputError
from sar_gen.quality import kernel as kernel_module
from sar_gen.quality import sets
from sar_gen.quality.kernel import kernel_distance
from sar_gen.quality.sets import TrainingFeatures, compare_sets, density_and_coverage, memorisation
from sar_gen.quality.splits import group_numbers, random_splits, split_weights

WIDTH = 24


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def places(rng, count, each, spread=0.5):
    """Patches of ``count`` places: those of one place resemble each other, as overlapping patches do."""
    centres = rng.normal(size=(count, 1, WIDTH)) + 1
    rows = centres + spread * rng.normal(size=(count, each, WIDTH))
    return unit(rows.reshape(-1, WIDTH)), [f"place {i}" for i in range(count) for _ in range(each)]


@pytest.fixture(scope="module")
def reference():
    return places(np.random.default_rng(0), 40, 5)


# Kernel distance ---------------------------------------------------------------------------------------------------


def test_kernel_distance_is_that_of_two_gaussians():
    # For N(m, s² I) and N(m', s² I) in d dimensions and a Gaussian kernel of bandwidth b, E k(x, y) is
    # (b² / (b² + 2 s²))^(d / 2) exp(-|m - m'|² / (2 (b² + 2 s²))): the convolution of three Gaussians.
    rng = np.random.default_rng(1)
    d, s, b, shift = 3, 0.7, 1.1, 0.9
    within = (b**2 / (b**2 + 2 * s**2)) ** (d / 2)
    expected = 2 * within * (1 - np.exp(-(shift**2) / (2 * (b**2 + 2 * s**2))))
    found = []
    for _ in range(40):
        first, second = s * rng.normal(size=(2, 60, d))
        second[:, 0] += shift
        found.append(kernel_distance(first, second, b))
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)
    assert error < 0.05 * expected


def test_kernel_distance_of_equal_distributions_is_nought_on_average():
    rng = np.random.default_rng(2)
    found = [kernel_distance(*rng.normal(size=(2, 12, 4)), 2.0) for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0


def test_patches_of_one_ground_are_not_compared_and_ground_weighs_alike():
    rng = np.random.default_rng(3)
    rows, groups = rng.normal(size=(7, 3)), np.array([0, 0, 0, 1, 1, 2, 3])
    other = rng.normal(size=(4, 3))
    total = weight = 0.0
    cross = 0.0
    sizes = np.bincount(groups)
    for i in range(7):
        for j in range(7):
            if groups[i] != groups[j]:
                w = 1 / sizes[groups[i]] / sizes[groups[j]]
                total += w * np.exp(-((rows[i] - rows[j]) ** 2).sum() / (2 * 1.5**2))
                weight += w
        for k in range(4):
            cross += np.exp(-((rows[i] - other[k]) ** 2).sum() / (2 * 1.5**2)) / sizes[groups[i]] / 4 / 4
    pairs = [np.exp(-((other[i] - other[j]) ** 2).sum() / 4.5) for i in range(4) for j in range(4) if i != j]
    assert kernel_distance(rows, other, 1.5, groups) == pytest.approx(total / weight + np.mean(pairs) - 2 * cross)
    assert np.isnan(kernel_distance(other[:1], rows, 1.5))


def test_floors_are_kernel_distances_of_the_splits(reference):
    features, groups = reference
    numbers = group_numbers(groups)
    rng = np.random.default_rng(4)
    splits = list(random_splits(numbers, 6, 5, rng))
    kernel = kernel_module.gaussian_kernel(features, features, 0.8)
    weights = split_weights(splits, len(numbers))
    found = kernel_module.distances_of_splits((kernel,) * 3, (numbers,) * 2, weights)
    for value, (sample, others) in zip(found, splits, strict=True):
        assert len(set(numbers[sample])) == 6
        assert not set(numbers[sample]) & set(numbers[others])
        direct = kernel_distance(features[sample], features[others], 0.8, numbers[sample], numbers[others])
        assert value == pytest.approx(direct)


def test_bandwidth_is_the_median_of_pairs_of_different_ground():
    rows, groups = np.array([[0.0, 0], [0, 1], [0, 3], [0, 7]]), np.array([0, 0, 1, 2])
    assert kernel_module.median_distance(rows, groups) == 4  # of 2, 3, 4, 6 and 7: the 1 is between two of one ground
    assert kernel_module.median_distance(rows, np.zeros(4)) == 0


# Density and coverage ----------------------------------------------------------------------------------------------


def test_density_and_coverage_count_balls():
    rng = np.random.default_rng(5)
    real, made = rng.normal(size=(15, 2)), rng.normal(size=(9, 2)) + 0.5
    inside, covered = 0, 0
    for i, centre in enumerate(real):
        others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(real) if j != i)
        hits = sum(np.linalg.norm(centre - point) <= others[2] for point in made)
        inside += hits
        covered += hits > 0
    distances = np.sqrt(kernel_module.squared_distances(real, real))
    np.fill_diagonal(distances, np.inf)
    found = density_and_coverage(distances, np.sqrt(kernel_module.squared_distances(real, made)), 3)
    assert found == pytest.approx((inside / (3 * 9), covered / 15))


def test_too_few_neighbours_leave_density_undefined():
    alone = np.full((2, 2), np.inf)
    assert np.isnan(density_and_coverage(alone, np.zeros((2, 3)), 3)).all()
    assert np.isnan(density_and_coverage(np.full((4, 4), np.inf), np.zeros((4, 3)), 3)).all()


# Sets --------------------------------------------------------------------------------------------------------------


def test_real_patches_stay_within_the_floors_at_their_rate(reference):
    features, groups = reference
    rng = np.random.default_rng(6)
    beyond = dict.fromkeys(("kernel_distance", "density", "coverage"), 0)
    for trial in range(40):
        drawn = rng.choice(40, 10, replace=False)
        chosen = [5 * place + rng.integers(5) for place in drawn]
        others = [row for row in range(200) if row // 5 not in drawn]
        report = compare_sets(features[chosen], features[others], [groups[i] for i in others], draws=40, seed=trial)
        for name in beyond:
            beyond[name] += report.measures[name].within is False
    for name, count in beyond.items():
        assert count <= binom.ppf(0.999, 40, 0.05), (name, count)


def test_other_ground_crowding_and_one_place_are_found(reference):
    features, groups = reference
    rng = np.random.default_rng(7)
    other = compare_sets(unit(rng.normal(size=(12, WIDTH)) - 1), features, groups)
    assert not other.measures["kernel_distance"].within
    assert other.measures["density"].relative < -0.5
    assert "farther from the reference" in other.words
    assert "no real patch" in other.words
    one = compare_sets(unit(features[:1] + 0.02 * rng.normal(size=(12, WIDTH))), features, groups)
    assert not one.measures["coverage"].within
    assert one.measures["coverage"].relative < 0
    assert "less of the variety" in one.words
    real = compare_sets(places(np.random.default_rng(8), 12, 1)[0], features, groups)
    assert real.measures["kernel_distance"].within
    assert "no farther" in real.words


def test_the_report_is_strict_json_with_medians_and_intervals(reference):
    features, groups = reference
    report = compare_sets(features[::17], features, groups, reference_name="ours", names=None)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["reference"] == "ours"
    assert (data["generated_count"], data["reference_count"]) == (12, 200)
    for measure in data["measures"].values():
        low, high = measure["floor_interval"]
        assert low <= measure["floor"] <= measure["floor_95"] <= high
    assert data["memorisation"] is None
    assert report.text == report.words


def test_few_patches_are_said_to_be_few(reference):
    features, groups = reference
    one = compare_sets(features[:1], features[5:], groups[5:])
    assert one.measures["kernel_distance"].value is None
    assert "cannot be judged" in one.words
    assert any("Only 1 generated patch:" in note for note in one.notes)
    three = compare_sets(features[:3], features[5:], groups[5:])
    assert three.measures["kernel_distance"].floor_95 is not None
    assert any("Only 3" in note for note in three.notes)
    same_ground = compare_sets(features[:9], features[10:20], ["one"] * 10)
    assert same_ground.measures["kernel_distance"].floor is None
    assert any("No floors" in note for note in same_ground.notes)
    json.dumps(same_ground.to_json(), allow_nan=False)
    many = compare_sets(features[:150], features, groups, draws=20)
    assert any("draws of 100, the most" in note for note in many.notes)


def test_large_sets_are_drawn_from(monkeypatch, reference):
    monkeypatch.setattr(sets, "MOST_PATCHES", 50)
    features, groups = reference
    report = compare_sets(features[:12], features, groups, draws=20)
    assert report.reference_count == 200
    assert any("50 were drawn" in note for note in report.notes)


def test_nothing_and_mixed_features_are_refused(reference):
    features, groups = reference
    with pytest.raises(InputError, match="at least one"):
        compare_sets(features[:0], features, groups)
    with pytest.raises(InputError, match="different models"):
        compare_sets(features[:3, :8], features, groups)


# Copies ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    """Training patches of 100 places, 3 each, and 100 held-out patches of others; classes hide single patches."""
    rng = np.random.default_rng(9)
    classes = 4 * rng.normal(size=(5, WIDTH))

    def ground(count, each):
        centres = classes[rng.integers(5, size=count)] + rng.normal(size=(count, WIDTH))
        return unit((centres[:, None] + 0.3 * rng.normal(size=(count, each, WIDTH))).reshape(-1, WIDTH))

    features = ground(100, 3)
    names = tuple(f"patch {i}" for i in range(300))
    training = TrainingFeatures(
        "a generator", features, names, tuple(f"place {i // 3}" for i in range(300)), ground(100, 1)
    )
    return training, ground(100, 1)


def test_planted_copies_are_found_with_noise_too(known):
    training, fresh = known
    rng = np.random.default_rng(10)
    source = [7, 101, 205, 290]
    copies = unit(training.features[source] + 0.01 * rng.normal(size=(4, WIDTH)))
    found = memorisation(np.concatenate([fresh[:12], copies]), training)
    best = found.pairs[:4]
    assert {(pair.index, pair.training) for pair in best} == {(12 + i, f"patch {s}") for i, s in enumerate(source)}
    assert all(pair.copy and pair.nearer_real == 0 for pair in best)
    assert found.share >= 4 / 16
    assert found.words.startswith("Likely copies of training patches of a generator")
    assert found.pairs[0].training in found.words
    exact = memorisation(training.features[:1], training).pairs[0]
    assert exact.distance == pytest.approx(0, abs=1e-6)


def test_real_patches_are_not_called_copies(known):
    training, fresh = known
    found = memorisation(fresh, training)
    assert found.chance > sets.SURE
    assert found.near_chance > sets.NEAR_SURE
    assert found.words.startswith("No ")
    assert found.median == pytest.approx(found.real_median, rel=0.2)
    # The limit and the share of real patches as near, counted by hand.
    white = kernel_module.whitening(training.features)
    rows = white(training.features)
    real = [min(1 - row @ other for other in rows) for row in white(training.held_out)]
    assert found.limit == pytest.approx(np.quantile(real, 0.01))
    pair = found.pairs[30]
    assert pair.distance == pytest.approx(min(1 - white(fresh[[pair.index]])[0] @ other for other in rows))
    assert pair.nearer_real == pytest.approx(np.mean(np.array(real) <= pair.distance))
    assert found.share == sum(pair.copy for pair in found.pairs) / 100
    assert found.near_chance == pytest.approx(binom.sf(100 * found.near_share - 1, 100, 0.1))


def test_many_that_are_somewhat_near_are_told(known):
    training, _ = known
    white = kernel_module.whitening(training.features)
    held_out = sets.nearest(white(training.held_out), white(training.features))[1]
    near = training.held_out[np.argsort(held_out)[2:9]]
    found = memorisation(near, training)
    assert not any(pair.copy for pair in found.pairs)
    assert found.words.startswith("Signs of copies")


def test_training_patches_of_other_ground_stand_in_for_held_out_ones(known):
    training, fresh = known
    alone = replace(training, held_out=training.held_out[:0])
    found = memorisation(np.concatenate([fresh[:15], training.features[:3]]), alone)
    assert found.real_count == 300
    assert "other ground" in found.real_kind
    assert {pair.index for pair in found.pairs if pair.copy} >= {15, 16, 17}
    assert memorisation(fresh, alone).chance > sets.SURE
    # Beside patches of the same ground, real ones would be as near as copies.
    white = kernel_module.whitening(training.features)(training.features)
    groups = group_numbers(training.groups)
    apart = sets.nearest(white, white, groups, groups)
    assert (groups[apart[0]] != groups).all()
    assert found.limit == pytest.approx(np.quantile(apart[1], 0.01))


def test_too_few_real_patches_are_no_measure(known):
    training, fresh = known
    few = TrainingFeatures("few", training.features[:6], training.names[:6], ("one",) * 6, training.held_out[:3])
    found = memorisation(fresh[:4], few)
    assert found.limit is None
    assert found.share is None
    assert not any(pair.copy for pair in found.pairs)
    assert "too few real patches" in found.words
    json.dumps(found.to_json(), allow_nan=False)
    single = memorisation(fresh[:2], replace(few, features=few.features[:1], names=("a",), groups=("b",)))
    assert {pair.training for pair in single.pairs} == {"a"}
    with pytest.raises(InputError, match="at least one"):
        memorisation(fresh[:0], training)


def test_whitened_features_vary_alike_in_all_directions(known):
    training, _ = known
    white = kernel_module.whitening(training.features, ridge=0)
    rows = (training.features - white.mean) @ white.matrix
    assert np.cov(rows.T, bias=True) == pytest.approx(np.eye(WIDTH), abs=1e-3)


def test_copies_are_in_the_report(known):
    training, fresh = known
    made = np.concatenate([training.features[:3], fresh[:9]])
    report = compare_sets(made, fresh[20:], [str(i) for i in range(80)], training=training, draws=30)
    assert report.memorisation.pairs[0].name == f"patch {report.memorisation.pairs[0].index + 1}"
    assert report.text.endswith(report.memorisation.words)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert len(data["memorisation"]["pairs"]) == 12
    assert data["memorisation"]["pairs"][0]["copy"] is True


def test_a_set_that_is_mostly_one_place_is_told(reference):
    features, groups = reference
    mostly = ["one" if i < 90 else group for i, group in enumerate(groups)]
    assert any("45% of the real patches" in note for note in compare_sets(features[:9], features, mostly).notes)
    assert not any("single one" in note for note in compare_sets(features[:9], features, groups).notes)
