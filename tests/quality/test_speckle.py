"""Speckle measures on simulated speckle whose looks and correlation are known, and the filter against a plain loop."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d, uniform_filter1d

from sar_gen.quality.speckle import (
    LooksEstimate,
    equivalent_looks,
    looks_map,
    ratio_statistics,
    refined_lee,
    speckle_correlation,
)


def speckle(looks, shape=(192, 192), seed=0):
    """Amplitude of independent Gamma intensity speckle on ground of one brightness."""
    return np.sqrt(np.random.default_rng(seed).gamma(looks, 1 / looks, shape))


def normalised(amplitude):
    return np.clip(amplitude / (amplitude.mean() + 3 * amplitude.std()), 0, 1).astype(np.float32)


@pytest.mark.parametrize("looks", [1, 4, 5, 16])
def test_gamma_intensity_gives_its_looks(looks):
    found = [equivalent_looks(speckle(looks, seed=seed) / 20).looks for seed in range(4)]
    assert np.mean(found) == pytest.approx(looks, rel=0.04)
    assert max(abs(np.array(found) / looks - 1)) < 0.06


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_clipping_at_the_studio_scale_costs_little(looks):
    assert equivalent_looks(normalised(speckle(looks))).looks == pytest.approx(looks, rel=0.06)


def test_one_look_amplitude_gives_one_and_not_the_366_of_amplitude():
    rng = np.random.default_rng(7)
    rayleigh = np.abs(rng.normal(size=(192, 192)) + 1j * rng.normal(size=(192, 192)))
    assert (rayleigh.mean() ** 2 / rayleigh.var()) == pytest.approx(3.66, rel=0.02)
    assert equivalent_looks(rayleigh / 50).looks == pytest.approx(1, rel=0.05)


def test_two_fields_and_targets_still_give_the_looks():
    amplitude = speckle(5) / 10
    amplitude[:, 90:] *= 0.3
    amplitude[20:180:23, 10:180:31] = 0.95
    scene = equivalent_looks(amplitude)
    assert scene.looks == pytest.approx(5, rel=0.06)
    whole = amplitude**2
    assert whole.mean() ** 2 / whole.var() < 1  # the naive whole-patch figure measures the scene instead


def test_windows_lie_on_homogeneous_ground():
    amplitude = speckle(5) / 10
    # On the right, blocks of 4 x 4 pixels whose brightness differs by a factor of ten: no window there is one ground.
    amplitude[:, 128:] *= np.repeat(np.repeat(np.random.default_rng(1).uniform(0.3, 3, (48, 16)), 4, 0), 4, 1)
    estimate = equivalent_looks(np.clip(amplitude, 0, 1))
    assert estimate.looks == pytest.approx(5, rel=0.08)
    assert len(estimate.windows) > 200
    assert np.mean(estimate.windows[:, 1] + estimate.size <= 128) > 0.97
    assert estimate.windows.max() <= 192 - estimate.size


def test_floor_and_no_data_are_left_out():
    amplitude = normalised(speckle(4))
    amplitude[:, :60] = amplitude.min()  # a lake under the noise floor of a decibel stretch
    assert equivalent_looks(amplitude).looks == pytest.approx(4, rel=0.08)
    amplitude[:, :60] = 0
    assert equivalent_looks(amplitude).looks == pytest.approx(4, rel=0.08)


@pytest.mark.parametrize(
    "amplitude",
    [np.full((64, 64), 0.4), np.zeros((64, 64)), np.ones((64, 64)), np.full((5, 64), 0.5), speckle(4, (12, 12)) / 10],
    ids=["constant", "black", "white", "narrow", "small"],
)
def test_no_usable_ground_is_nan(amplitude):
    estimate = equivalent_looks(amplitude)
    assert np.isnan(estimate.looks)
    assert estimate.windows.shape == (0, 2)


def test_looks_map_is_the_plain_figure_of_each_window():
    amplitude = np.clip(speckle(4, (40, 50)) / 3, 0, 1)
    amplitude[10:20, 10:20] = 1
    shown = looks_map(amplitude)
    assert shown.shape == amplitude.shape
    for row, column in ((3, 3), (36, 46), (25, 30), (5, 40)):
        window = amplitude[row - 3 : row + 4, column - 3 : column + 4] ** 2
        assert shown[row, column] == pytest.approx(window.mean() ** 2 / window.var(ddof=1), rel=1e-9)
    assert np.isnan(shown[15, 15])  # clipped
    border = np.ones(shown.shape, dtype=bool)
    border[3:-3, 3:-3] = False
    assert np.isnan(shown[border]).all()
    assert np.isnan(looks_map(np.full((20, 20), 0.4))).all()
    assert np.isnan(looks_map(amplitude[:5])).all()
    with pytest.raises(ValueError, match="odd"):
        looks_map(amplitude, 8)


def test_looks_map_tells_smooth_from_rough():
    amplitude = speckle(4) / 20
    amplitude[:, 96:] = np.sqrt(uniform_filter1d(uniform_filter1d(amplitude**2, 2, axis=0), 2, axis=1))[:, 96:]
    shown = looks_map(amplitude)
    assert np.nanmedian(shown[:, :90]) == pytest.approx(4, rel=0.15)
    assert np.nanmedian(shown[:, 102:]) > 10


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_independent_speckle_is_uncorrelated(looks):
    found = [speckle_correlation(speckle(looks, seed=seed) / 20) for seed in range(6)]
    rows = np.mean([one.along_rows for one in found], axis=0)
    columns = np.mean([one.along_columns for one in found], axis=0)
    assert rows[0] == columns[0] == 1
    np.testing.assert_allclose(rows[1:], 0, atol=0.012)
    np.testing.assert_allclose(columns[1:], 0, atol=0.012)


def test_subtracting_window_means_would_not_do():
    """The bias that the variogram avoids: 1 / 49 of windows of 49 pixels."""
    intensity = speckle(4, (7 * 60, 7 * 60)) ** 2
    windows = intensity.reshape(60, 7, 60, 7).transpose(0, 2, 1, 3).reshape(-1, 7, 7)
    centred = windows - windows.mean(axis=(1, 2), keepdims=True)
    naive = (centred[:, :, 1:] * centred[:, :, :-1]).mean() / (centred**2).mean()
    assert naive < -0.015


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "expected"),
    [([1, 1, 1], [2 / 3, 1 / 3, 0, 0]), ([1, 2, 1], [2 / 3, 1 / 6, 0, 0]), ([1, 0, 1], [0, 1 / 2, 0, 0])],
)
def test_moving_average_has_the_correlation_of_its_kernel(axis, kernel, expected):
    found = []
    for seed in range(4):
        intensity = correlate1d(speckle(4, seed=seed) ** 2, np.array(kernel) / sum(kernel), axis=axis)
        found.append(speckle_correlation(np.sqrt(intensity) / 20))
    filtered = np.mean([one.along_columns if axis == 0 else one.along_rows for one in found], axis=0)
    other = np.mean([one.along_rows if axis == 0 else one.along_columns for one in found], axis=0)
    np.testing.assert_allclose(filtered[1:], expected, atol=0.03)
    np.testing.assert_allclose(other[1:], 0, atol=0.03)


def test_one_look_field_has_the_squared_correlation_of_its_complex_values():
    rng = np.random.default_rng(2)
    kernel = [0.5, 1, 0.5]
    field = correlate1d(rng.normal(size=(256, 256)), kernel) + 1j * correlate1d(rng.normal(size=(256, 256)), kernel)
    found = speckle_correlation(np.abs(field) / 30)
    np.testing.assert_allclose(found.along_rows[1:], [(2 / 3) ** 2, (1 / 6) ** 2, 0, 0], atol=0.04)


def test_brightness_of_the_ground_does_not_correlate():
    amplitude = speckle(5, (256, 256)) / 20
    amplitude *= np.repeat(np.repeat(np.random.default_rng(1).uniform(0.3, 2, (8, 8)), 32, 0), 32, 1)
    found = speckle_correlation(np.clip(amplitude, 0, 1))
    assert found.windows > 300
    assert abs(found.along_rows[1]) < 0.04
    assert abs(found.along_columns[1]) < 0.04


def test_no_ground_has_no_correlation_and_given_windows_are_taken():
    nothing = speckle_correlation(np.full((64, 64), 0.3), lags=2)
    assert nothing.windows == 0
    assert np.isnan(nothing.along_rows).all()
    assert nothing.along_columns.shape == (3,)
    amplitude = speckle(4) / 20
    estimate = equivalent_looks(amplitude)
    assert speckle_correlation(amplitude, estimate=estimate).along_rows.tolist() == (
        speckle_correlation(amplitude).along_rows.tolist()
    )
    one = speckle_correlation(amplitude, lags=5, estimate=LooksEstimate(4.0, np.array([[20, 30]]), 7))
    window = amplitude[20:27, 30:37] ** 2 / (amplitude[20:27, 30:37] ** 2).mean()
    pairs = [
        (window[y, x] - window[v, u]) ** 2
        for y in range(7)
        for x in range(7)
        for v in range(7)
        for u in range(7)
        if max(abs(y - v), abs(x - u)) == 6
    ]
    near = ((window[:, 2:] - window[:, :-2]) ** 2).mean()
    assert one.along_rows[2] == pytest.approx(1 - near / np.mean(pairs))
    for lags in (0, 6):
        with pytest.raises(ValueError, match="between 1 and 5"):
            speckle_correlation(amplitude, lags=lags)


def refined_lee_by_hand(amplitude, looks):
    """One pixel after the other, halves by their geometry."""
    padded = np.pad(amplitude**2, 3, mode="reflect")
    out = np.zeros(amplitude.shape)
    for y, x in np.ndindex(amplitude.shape):
        window = padded[y : y + 7, x : x + 7]
        m = np.array([[window[i : i + 3, j : j + 3].mean() for j in (0, 2, 4)] for i in (0, 2, 4)])
        pixels = window.ravel()
        if pixels.var() / pixels.mean() ** 2 > (1 + 3 * np.sqrt(2 * (1 + 1 / looks) / 49)) / looks:
            edges = [
                m[:, 0].sum() - m[:, 2].sum(),
                m[0].sum() - m[2].sum(),
                m[0, 0] + m[0, 1] + m[1, 0] - m[2, 2] - m[2, 1] - m[1, 2],
                m[2, 0] + m[1, 0] + m[2, 1] - m[0, 2] - m[0, 1] - m[1, 2],
            ]
            which = int(np.argmax(np.abs(edges)))
            near, far = [(m[1, 0], m[1, 2]), (m[0, 1], m[2, 1]), (m[0, 0], m[2, 2]), (m[2, 0], m[0, 2])][which]
            sign = -1 if abs(far - m[1, 1]) < abs(near - m[1, 1]) else 1
            normal = [(0, -1), (-1, 0), (-1, -1), (1, -1)][which]
            inside = [
                window[i, j]
                for i in range(7)
                for j in range(7)
                if sign * ((i - 3) * normal[0] + (j - 3) * normal[1]) >= 0
            ]
            assert len(inside) == 28
            pixels = np.array(inside)
        mean, square = pixels.mean(), pixels.var() / pixels.mean() ** 2
        k = max(0, (square - 1 / looks) / (square * (1 + 1 / looks))) if square else 0
        out[y, x] = np.sqrt(mean + k * (amplitude[y, x] ** 2 - mean))
    return out


def test_refined_lee_equals_a_plain_loop():
    amplitude = speckle(4, (30, 26)) / 8
    amplitude[:, 14:] *= 4
    amplitude[20:] *= 0.4
    amplitude[5, 5] = 1
    np.testing.assert_allclose(refined_lee(amplitude, 4), refined_lee_by_hand(amplitude, 4), rtol=1e-9)


@pytest.mark.parametrize("normal", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_edges_without_speckle_stay_as_they_are(normal):
    y, x = np.indices((40, 40)) - 20
    step = np.where(normal[0] * y + normal[1] * x > 0, 0.8, 0.1)
    # Diagonals run through the 3 x 3 means; a plain mean of the window would be off by a factor of five.
    tolerance = 1e-6 if 0 in normal else 0.25
    np.testing.assert_allclose(refined_lee(step, 16)[4:-4, 4:-4], step[4:-4, 4:-4], rtol=tolerance)


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_ratio_of_pure_speckle_is_speckle_of_mean_one(looks):
    found = ratio_statistics(speckle(looks) / 20, looks)
    assert found.mean == pytest.approx(1, abs=0.035)
    assert looks < found.looks < 1.25 * looks
    assert found.given_looks == looks
    # Of 49 pixels, one over their mean has the variance 48 / (49 looks + 1): the filter cannot do better than that.
    assert found.looks > looks * 49 / 48
    assert refined_lee(speckle(looks), looks).std() < 0.5 * speckle(looks).std()


def test_ratio_finds_structure_that_the_filter_removed_or_kept():
    amplitude = speckle(4) / 10
    points = np.zeros(amplitude.shape, dtype=bool)
    points[10::16, 10::16] = True
    removed = ratio_statistics(np.where(points, 0.9, amplitude), looks=400)  # told so, everything is structure
    assert removed.looks > 20
    textured = amplitude * np.random.default_rng(5).uniform(0.5, 1.5, amplitude.shape)
    assert ratio_statistics(textured, looks=1).looks < 3  # told one look, it takes texture for speckle


def test_ratio_leaves_out_clipped_pixels_and_patches_without_looks():
    amplitude = np.clip(speckle(4) / 3, 0, 1)
    amplitude[:30, :30] = 0
    found = ratio_statistics(amplitude)
    assert np.isnan(found.ratio[:30, :30]).all()
    assert np.isnan(found.ratio[amplitude == 1]).all()
    assert found.mean == pytest.approx(np.nanmean(found.ratio))
    assert found.given_looks == equivalent_looks(amplitude).looks
    nothing = ratio_statistics(np.full((64, 64), 0.4))
    assert np.isnan([nothing.mean, nothing.looks, nothing.given_looks]).all()
    assert np.isnan(ratio_statistics(np.full((64, 64), 0.4), looks=3).looks)
    with pytest.raises(ValueError, match="positive looks"):
        refined_lee(amplitude, 0)
