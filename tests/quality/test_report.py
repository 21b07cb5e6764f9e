"""Floors, ratios and verdicts on sets whose answer is known."""

import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from sar_gen.errors import InputError
from sar_gen.quality import GLCM_NAMES, patch_statistics
from sar_gen.quality.distribution import kl_divergence, wasserstein1
from sar_gen.quality.report import compare, floors

NAMES = {
    "wasserstein1",
    "js_divergence",
    "kl_divergence",
    "ks_statistic",
    *(f"glcm_{name}" for name in GLCM_NAMES),
    "enl",
    "speckle_correlation",
    "spectrum",
    "spectrum_direction",
    "block_edges",
}


def speckle(count, looks=4.0, level=0.25, wobble=0.08, size=64, seed=0):
    """Patches of Gamma speckle whose brightness varies from patch to patch."""
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(count):
        mean = level * (1 + wobble * rng.normal())
        patches.append(np.clip(mean * np.sqrt(rng.gamma(looks, 1 / looks, (size, size))), 0, 1))
    return patches


@pytest.fixture(scope="module")
def reference():
    return patch_statistics(speckle(40), groups=[str(i // 2) for i in range(40)])


@pytest.fixture(scope="module")
def same(reference):
    return compare(patch_statistics(speckle(4, seed=98)), reference, reference_name="speckle")


def test_every_measure_is_there_and_is_strict_json(same):
    assert set(same.measures) == NAMES
    data = json.loads(json.dumps(same.to_json(), allow_nan=False))
    assert set(data) >= {
        "reference",
        "generated_count",
        "reference_count",
        "amplitude",
        "measures",
        "verdict",
        "notes",
    }
    assert {"value", "floor", "unit", "ratio"} <= set(data["measures"]["wasserstein1"])
    assert (data["generated_count"], data["reference_count"]) == (4, 40)


def test_same_law_is_within_the_spread(same):
    assert all(measure.within for measure in same.measures.values())
    assert same.verdict.startswith("Amplitudes match speckle within the real-versus-real spread (W1 0.0")
    assert "texture is within the real spread" in same.verdict


def test_value_is_the_distance_of_the_pooled_sets(reference):
    generated = patch_statistics(speckle(3, level=0.3, seed=5))
    report = compare(generated, reference, reference_name="r")
    pooled = [statistics.histograms.sum(axis=0, dtype=float) for statistics in (generated, reference)]
    assert report.measures["wasserstein1"].value == pytest.approx(wasserstein1(*pooled))
    assert report.measures["kl_divergence"].value == pytest.approx(kl_divergence(pooled[1], pooled[0]))
    contrast = report.measures["glcm_contrast"]
    assert contrast.generated == pytest.approx(generated.glcm[:, 0].mean())
    assert contrast.reference == pytest.approx(reference.glcm[:, 0].mean())
    assert contrast.value == pytest.approx(abs(contrast.generated - contrast.reference))
    assert contrast.relative == pytest.approx(contrast.generated / contrast.reference - 1)
    assert contrast.spread.std == pytest.approx(reference.glcm[:, 0].std(ddof=1))
    assert contrast.ratio == pytest.approx(contrast.value / contrast.floor)


def test_floor_of_single_patches_equals_the_enumeration_of_all(reference):
    """For one generated patch every draw is one real patch against all other ground: forty cases."""
    groups = np.array(reference.groups)
    cases = [
        wasserstein1(reference.histograms[i], reference.histograms[groups != groups[i]].sum(axis=0, dtype=float))
        for i in range(len(reference))
    ]
    floor, floor_95 = floors(reference, 1, draws=4000)["wasserstein1"]
    assert floor == pytest.approx(np.median(cases), rel=0.05)
    assert floor_95 == pytest.approx(np.percentile(cases, 95), rel=0.1)


def test_floor_of_pairs_takes_one_patch_from_each_group():
    """Six patches on three grounds; half of the grounds is one, so two patches come from one ground."""
    patches = [np.full((32, 32), value) for value in (0.1, 0.15, 0.4, 0.45, 0.8, 0.85)]
    statistics = patch_statistics(patches, groups="aabbcc")
    grounds = [statistics.histograms[[i, i + 1]].sum(axis=0, dtype=float) for i in (0, 2, 4)]
    cases = [wasserstein1(g, sum(grounds) - g) for g in grounds]
    floor, floor_95 = floors(statistics, 2)["wasserstein1"]
    assert floor == pytest.approx(np.median(cases))
    assert floor_95 == pytest.approx(max(cases))
    # Four grounds allow pairs from two of them: never both patches of one.
    statistics = patch_statistics([*patches[:2], *patches], groups="aabbccdd")
    mixed = []
    for one, other in itertools.combinations(range(4), 2):
        rest = [i for i in range(8) if i // 2 not in (one, other)]
        for i, j in itertools.product((2 * one, 2 * one + 1), (2 * other, 2 * other + 1)):
            pair = statistics.histograms[[i, j]].sum(axis=0, dtype=float)
            mixed.append(wasserstein1(pair, statistics.histograms[rest].sum(axis=0, dtype=float)))
    floor, floor_95 = floors(statistics, 2, draws=2000)["wasserstein1"]
    assert min(mixed) <= floor <= max(mixed)
    assert floor == pytest.approx(np.median(mixed), rel=0.02)
    assert floor_95 == pytest.approx(np.percentile(mixed, 95), rel=0.02)


def test_overlapping_patches_do_not_lower_the_floor():
    """Twenty copies of five patches: by group the floor is that of the five, by patch it would be far too low."""
    unique = speckle(10, wobble=0.3)
    copies = [patch for patch in unique for _ in range(4)]
    names = [str(i) for i in range(10) for _ in range(4)]
    of_unique = floors(patch_statistics(unique), 1, draws=2000)["wasserstein1"][0]
    of_copies = floors(patch_statistics(copies, groups=names), 1, draws=2000)["wasserstein1"][0]
    assert of_copies == pytest.approx(of_unique, rel=0.05)


def test_more_patches_have_a_lower_floor(reference):
    one, eight = (floors(reference, count)["wasserstein1"][0] for count in (1, 8))
    assert eight < 0.6 * one


def test_draws_are_seeded(reference):
    assert floors(reference, 4) == floors(reference, 4)
    assert floors(reference, 4) != floors(reference, 4, seed=1)


def test_bright_patches_are_said_to_be_bright(reference):
    report = compare(patch_statistics(speckle(4, level=0.5)), reference, reference_name="x")
    measure = report.measures["wasserstein1"]
    assert measure.ratio > 5
    assert f"{measure.ratio:.1f} times the floor" in report.verdict
    assert re.search(r"too bright, mean 0\.4\d against 0\.2\d", report.verdict)
    assert "too rough" in report.verdict
    assert "the wrong brightness alone explains it" in report.verdict


def test_narrow_distribution_is_said_to_be_narrow(reference):
    report = compare(patch_statistics(speckle(4, looks=60)), reference, reference_name="x")
    assert "too narrow a distribution" in report.verdict
    assert "Speckle is too weak (ENL" in report.verdict


def test_smoothed_patches_are_too_smooth_by_the_figure_of_their_contrast():
    """Neighbouring pixels blended, then brought back to their old distribution: only texture has changed."""
    real = speckle(40, size=96)
    reference = patch_statistics(real)
    smooth = []
    for patch in speckle(4, size=96, seed=3):
        order = np.argsort(np.argsort(gaussian_filter(patch, 0.6).ravel()))
        smooth.append(np.sort(patch.ravel())[order].reshape(patch.shape))
    report = compare(patch_statistics(smooth), reference, reference_name="x")
    contrast = report.measures["glcm_contrast"]
    assert report.measures["wasserstein1"].within
    assert contrast.relative < -0.2
    percent = f"{-100 * contrast.relative:.0f}"
    expected = (
        f"texture is {percent} % too smooth (GLCM contrast {contrast.generated:.1f} against {contrast.reference:.1f}"
    )
    assert expected in report.verdict
    assert "brightness" not in report.verdict


def test_one_ground_cannot_be_judged(reference):
    report = compare(reference.subset([4]), reference.subset([0]), reference_name="mine")
    assert report.verdict.startswith("Cannot be judged: mine holds a single patch")
    w1 = report.measures["wasserstein1"]
    assert w1.value > 0
    assert (w1.floor, w1.floor_95, w1.ratio, w1.within) == (None, None, None, None)
    json.dumps(report.to_json(), allow_nan=False)
    same_ground = compare(reference.subset([4]), reference.subset([0, 1]), reference_name="mine")
    assert "2 patches of the same ground" in same_ground.verdict


def test_few_grounds_are_called_rough(reference):
    report = compare(reference.subset([20]), reference.subset([0, 2, 4]), reference_name="mine")
    assert "Rough: the spread rests on only 3 separate pieces of ground." in report.verdict


def test_more_generated_than_real_is_said_in_the_notes(reference):
    report = compare(patch_statistics(speckle(12, seed=7)), reference.subset(range(8)), reference_name="mine")
    assert report.notes[1].startswith("12 generated patches are judged by draws of 4")
    assert report.measures["wasserstein1"].floor > 0


def test_constant_patches_are_nothing_to_judge(reference):
    flat = patch_statistics([np.full((32, 32), 0.3)])
    report = compare(flat, reference, reference_name="x")
    assert report.verdict.startswith("The generated patch is constant (amplitude 0.30)")
    assert report.measures["enl"].value is None
    assert report.measures["glcm_correlation"].value is None
    json.dumps(report.to_json(), allow_nan=False)
    mixed = compare(patch_statistics([np.full((64, 64), 0.3), *speckle(2)]), reference, reference_name="x")
    assert any(note.startswith("1 of 3 generated patches are constant") for note in mixed.notes)
    assert mixed.measures["enl"].generated == pytest.approx(4, rel=0.3)


def test_amplitude_summary(same):
    real = same.amplitude["reference"]
    assert real["mean"] == pytest.approx(np.mean(speckle(40)), abs=1e-3)
    assert real["std"] == pytest.approx(np.std(speckle(40)), abs=1e-3)
    assert real["p50"] == pytest.approx(np.median(speckle(40)), abs=2e-3)


def test_empty_sides_are_refused(reference):
    with pytest.raises(InputError, match="no generated patch"):
        compare(reference.subset([]), reference, reference_name="x")
    with pytest.raises(InputError, match="'x' has no patches"):
        compare(reference, reference.subset([]), reference_name="x")


def test_a_smoothed_field_is_said_to_be_correlated_and_to_lack_power(reference):
    smooth = [np.sqrt(gaussian_filter(np.square(patch), 1.0)) for patch in speckle(4, seed=7)]
    report = compare(patch_statistics(smooth), reference, reference_name="x")
    correlation, spectrum = report.measures["speckle_correlation"], report.measures["spectrum"]
    assert correlation.within is spectrum.within is False
    # Independent speckle has no correlation; that of a Gaussian kernel of s pixels is exp(-1 / (4 s²)) at lag 1.
    assert abs(correlation.reference) < 0.02
    assert correlation.generated == pytest.approx(np.exp(-1 / 4), abs=0.1)
    assert "neighbours depend too much" in report.verdict
    assert "power spectrum" in report.verdict


def test_structure_that_lies_the_other_way_is_seen_by_direction_alone():
    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.normal(size=(64, 64)), (0, 2)) for _ in range(30)]
    stripes = [np.clip(0.25 * np.exp(1.2 * field), 0, 1) for field in fields]
    report = compare(patch_statistics([p.T for p in stripes]), patch_statistics(stripes), reference_name="stripes")
    assert report.measures["spectrum_direction"].within is False
    assert report.measures["spectrum_direction"].ratio > 3
    others = set(report.measures) - {"spectrum_direction"}
    assert all(report.measures[name].value == pytest.approx(0, abs=1e-6) for name in others)
    assert "direction of structure differs" in report.verdict


def test_block_edges_count_only_beyond_the_real_ones(reference):
    """The grid of JPEG in generated patches is a fault; one in the real patches alone is not."""

    def jpeg(patch):
        file = io.BytesIO()
        Image.fromarray(np.round(255 * patch).astype(np.uint8)).save(file, "jpeg", quality=20)
        return np.asarray(Image.open(file)) / 255

    blocky = patch_statistics([jpeg(patch) for patch in speckle(6, seed=11)])
    found = compare(blocky, reference, reference_name="x")
    edges = found.measures["block_edges"]
    assert edges.within is False
    assert edges.value == pytest.approx(blocky.blocks.mean() - reference.blocks.mean(), rel=1e-5)
    assert "8 x 8" in found.verdict
    other_way = compare(reference, blocky, reference_name="x")
    assert other_way.measures["block_edges"].value == 0


def test_the_interval_holds_the_median_and_most_draws(same):
    for measure in same.measures.values():
        low, high = measure.interval
        assert low <= measure.floor <= measure.floor_95 <= high
