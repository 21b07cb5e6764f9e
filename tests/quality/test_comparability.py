"""Traces and mismatches on fields whose truth is known: speckle, JPEG by Pillow, enlargement by Pillow."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from sar_gen.quality.blocks import JPEG_LIMIT, block_edges, jpeg_traces
from sar_gen.quality.comparability import grey_levels, upsampling_factor, warnings
from sar_gen.quality.statistics import patch_statistics


def speckle(seed=0, size=256, smooth=0.6, looks=1.0, level=0.3):
    """Amplitude of Gamma speckle; smoothing by 0.6 pixels correlates neighbours as oversampling does."""
    intensity = np.random.default_rng(seed).gamma(looks, 1 / looks, (size, size))
    return np.clip(level * np.sqrt(gaussian_filter(intensity, smooth)), 0, 1)


def after_jpeg(grey, quality):
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue()))).astype(float)


def linear_jpeg(amplitude, quality):
    return after_jpeg(np.rint(amplitude * 255).astype(np.uint8), quality) / 255


def decibel_jpeg(amplitude, quality):
    """8 bits over -25 to 0 dB, as in SEN1-2."""
    db = np.clip(20 * np.log10(np.maximum(amplitude, 1e-6)), -25, 0)
    return 10 ** ((after_jpeg(np.rint((db + 25) / 25 * 255).astype(np.uint8), quality) / 255 * 25 - 25) / 20)


def enlarged(amplitude, method, factor=2):
    side = round(amplitude.shape[0] * factor)
    image = Image.fromarray(amplitude.astype(np.float32)).resize((side, side), method)
    return np.clip(np.asarray(image), 0, 1)


@pytest.mark.parametrize("smooth", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("size", [64, 256])
def test_speckle_has_no_traces_of_jpeg(smooth, size):
    values = [jpeg_traces(speckle(seed, size, smooth)) for seed in range(40)]
    assert sum(value > JPEG_LIMIT for value in values) <= 1
    assert np.median(values) < 0.7


@pytest.mark.parametrize("save", [linear_jpeg, decibel_jpeg])
@pytest.mark.parametrize("quality", [30, 50, 75])
def test_jpeg_is_found_whatever_the_encoding(save, quality):
    assert all(jpeg_traces(save(speckle(seed), quality)) > JPEG_LIMIT for seed in range(5))


def test_jpeg_is_found_at_any_phase_and_grows_as_quality_falls():
    pictures = [decibel_jpeg(speckle(1, looks=4), quality) for quality in (30, 60, 80)]
    values = [jpeg_traces(picture) for picture in pictures]
    assert values[0] > values[1] > values[2] > JPEG_LIMIT
    for row, column in ((0, 5), (3, 0), (7, 2)):
        assert jpeg_traces(pictures[0][row : row + 240, column : column + 240]) > JPEG_LIMIT


def test_block_edges_are_a_ratio_of_steps():
    """A step of known height at every eighth column; the size of the patch does not change what is measured."""
    for size in (128, 256):
        patch = speckle(9, size, smooth=0.0, looks=4)
        assert block_edges(patch) < 0.5
        steps = np.exp(0.6 * (np.arange(size) // 8 % 2))
        stepped = np.clip(patch * steps * steps[:, None] / 3, 0, 1)
        third = np.abs(np.diff(np.log(stepped + 1 / 255), 3, axis=1)).mean(axis=0)
        places = [np.exp(np.log(third[start::8]).mean()) for start in range(8)]
        second, first = np.sort(places)[-2:]
        assert block_edges(stepped) == pytest.approx(20 * np.log10(first / second), rel=0.15)
        assert block_edges(stepped) > 1
    assert np.isnan(block_edges(np.full((64, 64), 0.4)))
    pictures = [decibel_jpeg(speckle(1, looks=4), quality) for quality in (20, 40, 80)]
    strong, middling, weak = map(block_edges, pictures)
    assert strong > middling > weak > block_edges(speckle(1, looks=4))


def test_other_grids_are_not_jpeg():
    assert jpeg_traces(enlarged(speckle(2, 128), Image.NEAREST)) < JPEG_LIMIT
    assert jpeg_traces(enlarged(speckle(2, 128), Image.BILINEAR)) < JPEG_LIMIT
    board = speckle(3)
    board[::4, ::4] *= 1.2  # as transposed convolutions leave it
    assert jpeg_traces(np.clip(board, 0, 1)) < JPEG_LIMIT
    assert jpeg_traces(np.full((64, 64), 0.4)) == 0
    assert jpeg_traces(np.tile(np.linspace(0, 1, 64), (64, 1))) < JPEG_LIMIT


def test_a_large_patch_is_judged_by_its_middle():
    patch = speckle(4, 640)
    patch[:64] = decibel_jpeg(patch[:64], 30)  # rows 0 to 63 are outside of the middle 512
    assert jpeg_traces(patch) == jpeg_traces(patch[64:-64, 64:-64]) < JPEG_LIMIT
    assert jpeg_traces(linear_jpeg(patch, 50)) > JPEG_LIMIT


@pytest.mark.parametrize("method", [Image.BILINEAR, Image.BICUBIC, Image.LANCZOS])
@pytest.mark.parametrize("smooth", [0.0, 0.6])
def test_interpolation_is_found(method, smooth):
    for seed in range(3):
        factor = upsampling_factor(enlarged(speckle(seed, 128, smooth), method))
        assert factor is not None
        assert 1.3 <= factor <= 2.3
        large = upsampling_factor(enlarged(speckle(seed, 64, smooth), method, 4))
        assert large is not None
        assert large > factor


def test_interpolation_is_found_in_a_saved_picture():
    big = enlarged(speckle(5, 128), Image.BICUBIC)
    assert upsampling_factor(np.rint(big * 255) / 255) == pytest.approx(upsampling_factor(big), abs=0.1)


@pytest.mark.parametrize("factor", [1.6, 2, 3, 4])
def test_repeated_pixels_give_the_factor(factor):
    patch = enlarged(speckle(6, 80), Image.NEAREST, factor)
    assert upsampling_factor(patch) == pytest.approx(factor, rel=0.03)
    assert upsampling_factor(patch[:, 1:]) == pytest.approx(factor, rel=0.03)
    patch[:, : len(patch) // 2] = 0  # no data says nothing
    assert upsampling_factor(patch) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("smooth", [0.0, 0.4, 0.6])
def test_oversampled_speckle_is_not_enlarged(smooth):
    """Neighbours of Sentinel-1 at 10 m correlate by about 0.5; so do those of speckle smoothed by 0.6 pixels."""
    assert all(upsampling_factor(speckle(seed, 128, smooth)) is None for seed in range(10))
    assert upsampling_factor(linear_jpeg(speckle(0, 128, smooth), 75)) is None


def test_one_direction_alone_is_the_sensor():
    """Range and azimuth may be sampled differently; only both together are a picture that was enlarged."""
    intensity = np.random.default_rng(7).gamma(1, 1, (256, 256))
    assert upsampling_factor(0.3 * np.sqrt(gaussian_filter(intensity, (0, 2)))) is None
    assert upsampling_factor(np.full((64, 64), 0.2)) is None


def test_grey_levels():
    assert grey_levels(np.arange(12).reshape(3, 4) / 12) == 12
    assert grey_levels(np.floor(speckle(8, 512) * 10) / 10) <= 10
    assert grey_levels(np.zeros((32, 32))) == 1


def told(patches, reference=None, name="the set"):
    reference = [speckle(seed, 128) for seed in range(20, 26)] if reference is None else reference
    return warnings(patches, patch_statistics(patches), patch_statistics(reference), name)


def test_patches_like_the_reference_need_no_warning():
    assert told([speckle(seed, 128) for seed in range(6)]) == ()


def test_jpeg_is_counted_over_the_patches():
    patches = [speckle(seed) for seed in range(3)]
    patches.append(decibel_jpeg(speckle(3), 40))
    reference = [speckle(seed) for seed in range(4, 8)]
    (text,) = told(patches, reference)
    assert text.startswith("1 of 4 patches looked at shows a grid of 8 x 8 pixels, the trace of JPEG")
    (text,) = told(patches[3:], reference)
    assert text.startswith("The patch shows a grid")


def test_a_rare_trace_is_not_worth_a_warning():
    patches = [speckle(seed, 64) for seed in range(29)]
    reference = [speckle(seed, 64) for seed in range(40, 46)]
    one = decibel_jpeg(speckle(30, 64), 20)
    assert jpeg_traces(one) > JPEG_LIMIT
    assert told([*patches, one], reference) == ()
    assert len(told([*patches[:10], one], reference)) == 1


def test_at_most_64_patches_are_searched():
    patches = [decibel_jpeg(speckle(0, 64), 20)] * 100
    (text,) = told(patches, patches[:6])
    assert text.startswith("64 of 64 patches looked at show a grid")


def test_enlarged_and_smoothed_patches():
    texts = told([enlarged(speckle(1, 64), Image.BICUBIC)])
    assert any("The patch shows no detail at the scale of single pixels (what there is" in text for text in texts)
    texts = told([gaussian_filter(speckle(1, 128), 1.2)])
    assert any("or smoothed" in text for text in texts)


def test_sizes():
    (text,) = told([speckle(0, 96)], [speckle(seed, 96) for seed in range(20, 24)])
    assert text.startswith("There are 9,216 pixels in all: too few")
    (text,) = told([speckle(seed) for seed in range(4)])
    assert "as many pixels as 256 x 256 and those of the set as 128 x 128" in text
    assert "spread is too wide" in text
    mixed = told([speckle(0, 128), speckle(1, 128), speckle(2, 160)])
    assert len(mixed) == 1
    assert "differ in size (as many pixels as 128 x 128 to 160 x 160)" in mixed[0]
    (text,) = told([speckle(seed, 128)[:, :40] for seed in range(4)])
    assert "spread is too narrow" in text


def test_looks_say_either_or():
    (text,) = told([speckle(seed, 128, looks=5) for seed in range(3)])
    assert "either they were processed" in text
    assert "or their speckle is wrong" in text
    assert told([speckle(seed, 128, looks=1.3) for seed in range(3)]) == ()


def test_few_grey_levels():
    patches = [np.floor(speckle(seed, 128, level=0.5) * 12) / 12 for seed in range(2)]
    assert any("few grey levels (" in text and "texture needs 32" in text for text in told(patches))
    constant = [np.full((128, 128), 0.3)]
    assert not any("grey levels" in text for text in told(constant))


def test_clipping_is_judged_against_the_reference():
    bright = [speckle(seed, 128, level=1.1) for seed in range(3)]
    texts = told(bright)
    assert any("clipped at the top of the scale (0.0% of those of the set)" in text for text in texts)
    assert not any("clipped" in text for text in told(bright, bright))
    dark = [np.where(np.arange(128)[:, None] < 40, 0.0, speckle(seed, 128)) for seed in range(3)]
    assert any("31% of the pixels are clipped at zero" in text for text in told(dark))
