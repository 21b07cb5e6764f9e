"""Each distance against scipy on the raw pixels, and against closed forms."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, ks_2samp, wasserstein_distance

from sar_gen.quality.distribution import (
    BINS,
    COARSE_BINS,
    KL_EPSILON,
    histogram,
    js_divergence,
    kl_divergence,
    ks_statistic,
    rebin,
    wasserstein1,
)


@pytest.fixture(params=["float", "8 bit"])
def pair(request):
    rng = np.random.default_rng(3)
    a = np.clip(rng.rayleigh(0.2, 20_000), 0, 1)
    b = np.clip(np.sqrt(rng.gamma(4, 0.02, 15_000)), 0, 1)
    if request.param == "8 bit":
        a, b = np.rint(a * 255) / 255, np.rint(b * 255) / 255
    return a.astype(np.float32), b.astype(np.float32)


def test_histogram_counts_every_pixel_once():
    values = np.array([0.0, 1.0, 0.5, 0.5 - 1e-4, 1 / BINS], dtype=np.float32)
    counts = histogram(values)
    assert counts.dtype == np.uint32
    assert counts.shape == (BINS,)
    assert counts.sum() == 5
    assert [counts[0], counts[BINS - 1], counts[512], counts[511], counts[1]] == [1, 1, 1, 1, 1]


def test_wasserstein_equals_scipy_on_pixels(pair):
    a, b = pair
    ours = wasserstein1(histogram(a), histogram(b))
    assert ours == pytest.approx(wasserstein_distance(a, b), abs=1 / BINS)
    assert ours > 0.02  # so that the tolerance means something


def test_wasserstein_is_exact_on_the_grid():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, BINS, 5000) / BINS, rng.integers(0, BINS // 2, 4000) / BINS
    assert wasserstein1(histogram(a), histogram(b)) == pytest.approx(wasserstein_distance(a, b), abs=1e-12)


def test_wasserstein_of_a_shift_is_the_shift():
    values = np.random.default_rng(0).integers(0, 700, 3000)
    assert wasserstein1(histogram(values / BINS), histogram((values + 64) / BINS)) == pytest.approx(64 / BINS)


def test_ks_equals_scipy_on_pixels(pair):
    a, b = pair
    # Within a bin the cumulative distributions can differ a little more than at its edge.
    tolerance = 0.004 if len(np.unique(a)) > 300 else 1e-7
    assert ks_statistic(histogram(a), histogram(b)) == pytest.approx(ks_2samp(a, b).statistic, abs=tolerance)


def test_js_equals_scipy_squared_in_bits(pair):
    p, q = (histogram(x) for x in pair)
    independent = [np.histogram(x, bins=COARSE_BINS, range=(0, 1))[0] for x in pair]
    assert js_divergence(p, q) == pytest.approx(jensenshannon(*independent, base=2) ** 2, abs=2e-6)


def test_js_runs_from_zero_to_one_bit():
    p, q = histogram(np.full(10, 0.1)), histogram(np.full(30, 0.9))
    assert js_divergence(p, p) == 0
    assert js_divergence(p, q) == pytest.approx(1.0)


def test_kl_equals_scipy_with_the_same_epsilon(pair):
    real, generated = (np.histogram(x, bins=COARSE_BINS, range=(0, 1))[0] / len(x) for x in pair)
    expected = entropy(real + KL_EPSILON, generated + KL_EPSILON)
    ours = kl_divergence(histogram(pair[0]), histogram(pair[1]))
    assert ours == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(ours)


def test_kl_direction_punishes_missing_real_amplitudes():
    real = histogram(np.linspace(0, 0.999, 6400))
    half = histogram(np.linspace(0, 0.499, 6400))
    # ln 2 for generated that spreads too wide; far more for generated that misses half of what is real.
    assert kl_divergence(half, real) == pytest.approx(np.log(2), rel=0.01)
    assert kl_divergence(real, half) > 4


def test_rows_are_independent_pairs(pair):
    p, q = (histogram(x) for x in pair)
    stacked = np.stack([p, q, p])
    for distance in (wasserstein1, ks_statistic, js_divergence, kl_divergence):
        values = distance(stacked, q)
        assert values.shape == (3,)
        np.testing.assert_allclose(values, [distance(p, q), 0, distance(p, q)], atol=1e-12)


def test_rebin_keeps_counts():
    counts = np.arange(BINS, dtype=np.uint32)
    assert rebin(counts).shape == (COARSE_BINS,)
    assert rebin(counts)[1] == sum(range(16, 32))
