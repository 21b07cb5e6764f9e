"""Spectra of fields whose spectrum is known."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from sar_gen.quality.spectrum import (
    ANGLES,
    FREQUENCIES,
    RADIAL_BINS,
    patch_spectra,
    pooled,
    power_spectrum,
    spectrum_distance,
)


def speckle(looks=4, shape=(256, 256), seed=0):
    return np.sqrt(np.random.default_rng(seed).gamma(looks, 1 / looks, shape)) / 5


def ring_error(patches):
    """Relative standard error of the power in each ring, for white patches of 256 x 256.

    Ring k holds pi (8 k + 4) frequencies, two of them one number, and the Hann window makes 3.78 neighbours one
    (mean w⁴ / (mean w²)² = (35 / 128) / (9 / 64) on either axis).
    """
    return np.sqrt(2 * 3.78 / (patches * np.pi * (8 * np.arange(RADIAL_BINS) + 4)))


@pytest.mark.parametrize("shape", [(64, 64), (48, 75), (33, 40)])
def test_parseval(shape):
    """Without a window the mean power over all frequencies is the variance; with it, the windowed mean square."""
    field = np.random.default_rng(0).normal(3, 2, shape)
    half = power_spectrum(field, window=False)
    both = np.full(half.shape, 2.0)
    both[:, 0] = 1
    if shape[1] % 2 == 0:
        both[:, -1] = 1
    assert half.shape == (shape[0], shape[1] // 2 + 1)
    assert (half * both).sum() / field.size == pytest.approx(field.var(), rel=1e-12)
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in shape)
    weights = np.outer(rows, columns)
    centred = field - np.average(field, weights=weights)
    expected = np.average(centred**2, weights=weights**2)
    assert (power_spectrum(field) * both).sum() / field.size == pytest.approx(expected, rel=1e-12)
    assert power_spectrum(field)[0, 0] == pytest.approx(0, abs=1e-20)


def test_independent_pixels_are_flat_at_their_variance():
    patches = [speckle(seed=seed) for seed in range(6)]
    variance = np.mean([(patch / patch.mean()).var() for patch in patches])
    spectra = patch_spectra(patches)
    assert len(spectra) == 6
    deviations = (pooled(spectra.radial) / variance - 1) / ring_error(6)
    assert np.abs(deviations).max() < 4
    assert 0.6 < deviations.std() < 1.5  # so that the errors are what they are said to be
    np.testing.assert_allclose(pooled(spectra.angular) / variance, 1, atol=0.12)  # four errors


@pytest.mark.parametrize("shape", [(256, 256), (200, 300)])
@pytest.mark.parametrize(("frequency", "angle"), [(0.1, 0), (0.25, 90), (0.2, 45), (0.15, 135), (0.3, 20)])
def test_a_sinusoid_stands_at_its_frequency_and_angle(frequency, angle, shape):
    y, x = np.indices(shape)
    direction = np.cos(np.radians(angle)) * x + np.sin(np.radians(angle)) * y
    patch = 0.5 + 0.1 * np.cos(2 * np.pi * frequency * direction)
    spectra = patch_spectra([patch])
    assert FREQUENCIES[np.nanargmax(spectra.radial[0])] == pytest.approx(frequency, abs=1 / 128)
    assert ANGLES[np.nanargmax(spectra.angular[0])] == pytest.approx(angle, abs=2.5)
    # Half the squared amplitude, all of it in one place.
    energy = power_spectrum(patch / 0.5)
    assert 2 * energy[:, 1:].sum() + energy[:, 0].sum() == pytest.approx(0.2**2 / 2 * patch.size, rel=0.02)


def test_filtered_noise_has_the_transfer_function_of_its_filter():
    """Averages of neighbours along rows: cos² of the row frequency, nothing along columns."""
    rng = np.random.default_rng(0)
    patches = [2 + 0.2 * correlate1d(rng.normal(size=(256, 256)), [0.5, 0.5, 0], axis=1) for _ in range(6)]
    spectra = patch_spectra(patches)
    variance = np.mean([0.2**2 / patch.mean() ** 2 for patch in patches])
    # In a ring of radius f the row frequency is f cos t: the mean of cos²(pi f cos t) over t.
    t = np.linspace(0, np.pi, 2001)
    expected = np.array([np.trapezoid(np.cos(np.pi * f * np.cos(t)) ** 2, t) / np.pi for f in FREQUENCIES])
    assert np.abs((pooled(spectra.radial) / variance / expected - 1) / ring_error(6)).max() < 5
    assert expected[-1] < 0.4  # far beyond five errors from flat
    angular = pooled(spectra.angular) / variance
    f = np.linspace(1 / 16, 0.5, 2001)
    for angle in (0, 45, 90):
        row = np.cos(np.pi * f * np.cos(np.radians(angle))) ** 2
        expected_here = np.trapezoid(row * f, f) / np.trapezoid(f, f)  # a ring holds frequencies by its radius
        assert angular[angle == ANGLES][0] == pytest.approx(expected_here, abs=0.06)


def test_brightness_and_turning_do_what_they_should():
    patch = correlate1d(speckle(), [0.5, 0.5, 0], axis=1)
    one, half, turned = (patch_spectra([p]) for p in (patch, patch / 2, patch.T))
    np.testing.assert_allclose(half.radial, one.radial, rtol=1e-9)
    np.testing.assert_allclose(turned.radial, one.radial, rtol=1e-9)
    mirrored = (90 - ANGLES).astype(int) % 180 // 5
    np.testing.assert_allclose(turned.angular[0], one.angular[0][mirrored], rtol=1e-9)


def test_sizes_share_their_bins():
    small, large = (pooled(patch_spectra([speckle(1, (n, n), s) for s in range(60)]).radial) for n in (32, 256))
    assert np.isnan(small[0])  # no frequency of a patch of 32 pixels is so low
    assert np.isfinite(large).all()
    assert spectrum_distance(small, large) < 0.5
    assert spectrum_distance(patch_spectra([speckle(4)]).radial[0], large) > 4  # fewer looks have more power: 6 dB


def test_distance_is_the_root_mean_square_of_decibels():
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.1, 2, (2, RADIAL_BINS))
    inside = (FREQUENCIES >= 0.1) & (FREQUENCIES <= 0.3)
    expected = np.sqrt(np.mean((10 * np.log10(p[inside] / q[inside])) ** 2))
    assert spectrum_distance(p, q, (0.1, 0.3)) == pytest.approx(expected)
    assert spectrum_distance(p, 2 * p) == pytest.approx(10 * np.log10(2))
    assert spectrum_distance(p, p) == 0
    rows = spectrum_distance(np.stack([p, q, p]), q)
    np.testing.assert_allclose(rows, [spectrum_distance(p, q), 0, spectrum_distance(p, q)])
    q[-1] = np.nan
    p[-2] = 0
    assert np.isfinite(spectrum_distance(p, q))
    assert np.isnan(spectrum_distance(p, np.full(RADIAL_BINS, np.nan)))


def test_blur_is_a_distance_and_a_second_sample_is_not():
    real, again = (pooled(patch_spectra([speckle(4, seed=s) for s in seeds]).radial) for seeds in ((0, 1), (2, 3)))
    blurred = pooled(patch_spectra([correlate1d(speckle(4, seed=4), [0.25, 0.5, 0.25], axis=0)]).radial)
    assert spectrum_distance(real, again) < 0.6
    assert spectrum_distance(real, blurred) > 5 * spectrum_distance(real, again)


def test_constant_patches_have_no_spectrum():
    spectra = patch_spectra([np.full((64, 64), 0.3), np.zeros((64, 64)), speckle()])
    assert np.isnan(spectra.radial[:2]).all()
    assert np.isnan(spectra.angular[:2]).all()
    np.testing.assert_array_equal(pooled(spectra.radial), spectra.radial[2])
    assert len(patch_spectra([])) == 0
    assert np.isnan(pooled(patch_spectra([]).radial)).all()
