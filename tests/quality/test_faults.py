"""Each fault does what its words say, checked by closed form or by another way of computing it."""

import io

import numpy as np
import pytest
from PIL import Image

from sar_gen.amplitude import view
from sar_gen.quality.blocks import JPEG_LIMIT, jpeg_traces
from sar_gen.quality.comparability import upsampling_factor
from sar_gen.quality.faults import FAULTS, add_speckle, blur, brighten, compress, despeckle, enlarge, flip
from sar_gen.quality.speckle import equivalent_looks


def speckle(seed=0, size=128, level=0.25, looks=4.0):
    intensity = np.random.default_rng(seed).gamma(looks, 1 / looks, (size, size))
    return np.clip(level * np.sqrt(intensity), 0, 1).astype(np.float32)


def test_the_table_is_a_to_h_and_every_fault_keeps_shape_and_range():
    assert "".join(fault.letter for fault in FAULTS) == "abcdefgh"
    assert [fault.name for fault in FAULTS if fault.apply is None] == ["terrain"]
    patch = speckle(level=0.5)[:96]
    before = patch.copy()
    for fault in FAULTS:
        if fault.apply is None:
            continue
        damaged = fault.apply(patch, np.random.default_rng(1))
        assert (damaged.shape, damaged.dtype) == (patch.shape, np.float32)
        assert damaged.min() >= 0
        assert damaged.max() <= 1
        assert not np.array_equal(damaged, patch)
        assert damaged.flags.c_contiguous
        assert np.array_equal(damaged, fault.apply(patch, np.random.default_rng(1)))
    assert np.array_equal(patch, before)


def test_blur_is_a_gaussian():
    point = np.zeros((41, 41))
    point[20, 20] = 1
    spread = blur(point, 1.5).astype(float)
    assert spread.sum() == pytest.approx(1, rel=1e-5)
    rows, _ = np.mgrid[-20:21, -20:21]
    assert (spread * rows**2).sum() == pytest.approx(1.5**2, rel=0.02)


def test_speckle_multiplies_the_variance():
    """With independent factors, 1 + 1/L is the product of (1 + 1/L1) and (1 + 1/L2)."""
    patch = speckle(1, 512, level=0.15)
    noisy = add_speckle(patch, np.random.default_rng(2), looks=3.0)
    assert noisy.max() < 1
    intensity = noisy.astype(float) ** 2
    assert intensity.mean() == pytest.approx((patch.astype(float) ** 2).mean(), rel=0.01)
    assert 1 + intensity.var() / intensity.mean() ** 2 == pytest.approx((1 + 1 / 4) * (1 + 1 / 3), rel=0.02)


def test_despeckling_raises_the_looks_and_keeps_the_level():
    patch = speckle(3)
    smooth = despeckle(patch)
    assert equivalent_looks(smooth).looks > 5 * equivalent_looks(patch).looks
    assert (smooth.astype(float) ** 2).mean() == pytest.approx((patch.astype(float) ** 2).mean(), rel=0.02)
    assert despeckle(np.full((64, 64), 0.5, dtype=np.float32)) == pytest.approx(0.5)  # no ground to take looks from


def test_jpeg_is_that_of_the_decibel_view():
    patch = speckle(4, level=0.4)
    file = io.BytesIO()
    Image.fromarray(view(patch, "db")).save(file, "JPEG", quality=30)
    expected = 10 ** ((np.asarray(Image.open(file)) / 255.0 * 40 - 40) / 20)
    assert compress(patch) == pytest.approx(expected, abs=1e-6)
    assert jpeg_traces(compress(patch)) > JPEG_LIMIT > jpeg_traces(patch)
    # At quality 100 little but the 8 bits is lost: 0.16 dB a level.
    decibels = 20 * np.log10(compress(patch, 100) / patch)
    assert np.abs(decibels).max() < 0.5


def test_flip_brightness_and_enlargement():
    patch = speckle(5)
    assert np.array_equal(flip(patch)[:, 0], patch[:, -1])
    assert np.array_equal(flip(flip(patch)), patch)
    brighter = brighten(patch)
    free = brighter < 1
    assert (brighter[free].astype(float) / patch[free]) ** 2 == pytest.approx(10**0.3, rel=1e-5)
    assert brighten(np.array([[0.9]], dtype=np.float32)) == 1
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    slopes = np.diff(enlarge(ramp)[32])[4:-4]
    assert slopes == pytest.approx(0.5 / 63, rel=1e-3)
    assert enlarge(ramp).mean() == pytest.approx(0.5, abs=1e-3)
    assert upsampling_factor(enlarge(patch)) is not None
    assert upsampling_factor(patch) is None
