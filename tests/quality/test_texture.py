"""GLCM descriptors against a plain loop over pixel pairs, and local maps against scikit-image window by window."""

import numpy as np
import pytest
from skimage.feature import graycomatrix, graycoprops

from sar_gen.quality.texture import (
    ANGLES,
    DIRECTIONS,
    GLCM_NAMES,
    LEVELS,
    MAP_NAMES,
    glcm_by_direction,
    glcm_descriptors,
    glcm_maps,
    quantised_levels,
)


def by_hand(amplitude):
    """Count pairs one by one, both ways round, and take each descriptor from its definition."""
    grey = [[min(int(v * LEVELS), LEVELS - 1) for v in row] for row in amplitude]
    height, width = len(grey), len(grey[0])
    rows = []
    for dy, dx in ((0, 1), (-1, 1), (-1, 0), (-1, -1)):
        p = np.zeros((LEVELS, LEVELS))
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    p[grey[y][x], grey[y + dy][x + dx]] += 1
                    p[grey[y + dy][x + dx], grey[y][x]] += 1
        p /= p.sum()
        i, j = np.indices(p.shape)
        mean = (i * p).sum()
        variance = ((i - mean) ** 2 * p).sum()
        asm = (p**2).sum()
        rows.append(
            {
                "contrast": ((i - j) ** 2 * p).sum(),
                "dissimilarity": (abs(i - j) * p).sum(),
                "homogeneity": (p / (1 + (i - j) ** 2)).sum(),
                "asm": asm,
                "energy": asm**0.5,
                "correlation": ((i - mean) * (j - mean) * p).sum() / variance,
                "entropy": -sum(v * np.log(v) for v in p.ravel() if v > 0),
            }
        )
    return [np.mean([row[name] for row in rows]) for name in GLCM_NAMES]


def test_descriptors_equal_a_plain_loop():
    rng = np.random.default_rng(5)
    smooth = np.cumsum(rng.normal(0, 0.05, (24, 31)), axis=1) % 1.0
    np.testing.assert_allclose(glcm_descriptors(smooth), by_hand(smooth), rtol=1e-10)


def test_closed_form_of_a_checkerboard():
    # Two levels eight apart: horizontal and vertical neighbours always differ, diagonal ones never do.
    board = np.indices((20, 20)).sum(axis=0) % 2 * 0.25
    values = dict(zip(GLCM_NAMES, glcm_descriptors(board), strict=True))
    assert values["contrast"] == pytest.approx((64 + 0) / 2)
    assert values["dissimilarity"] == pytest.approx(4)
    assert values["homogeneity"] == pytest.approx((1 / 65 + 1) / 2)
    assert values["asm"] == pytest.approx(0.5, abs=1e-3)
    assert values["correlation"] == pytest.approx(0, abs=1e-12)
    assert values["entropy"] == pytest.approx(np.log(2), abs=1e-3)


def test_range_is_fixed_so_that_halving_amplitude_changes_contrast():
    noise = np.random.default_rng(0).uniform(0, 0.999, (128, 128))
    full, half = glcm_descriptors(noise)[0], glcm_descriptors(noise / 2)[0]
    # Independent uniform levels: E(i - j)^2 = (n^2 - 1) / 6 for n levels.
    assert full == pytest.approx((32**2 - 1) / 6, rel=0.03)
    assert half == pytest.approx((16**2 - 1) / 6, rel=0.03)


def test_constant_patch_has_no_correlation():
    values = dict(zip(GLCM_NAMES, glcm_descriptors(np.full((32, 32), 0.3)), strict=True))
    assert np.isnan(values.pop("correlation"))
    assert values == pytest.approx(
        {"contrast": 0, "dissimilarity": 0, "homogeneity": 1, "asm": 1, "energy": 1, "entropy": 0}
    )


def test_levels_cover_zero_to_one():
    assert quantised_levels([0.0, 1 / 32, 0.999, 1.0]).tolist() == [0, 1, 31, 31]


def field(shape=(60, 50), seed=3):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.3, 2, shape[1])
    return np.clip(0.2 * ramp * np.sqrt(rng.gamma(3, 1 / 3, shape)), 0, 1)


def test_directions_average_to_the_descriptors():
    amplitude = field()
    values = glcm_by_direction(amplitude, (1, 3))
    assert values.shape == (2, 4, 7)
    np.testing.assert_allclose(values[0].mean(axis=0), glcm_descriptors(amplitude), rtol=1e-12)


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_directions_point_where_they_say(distance):
    """Stripes that repeat along one direction have no contrast along it."""
    rng = np.random.default_rng(0)
    y, x = np.indices((64, 64))
    values = rng.uniform(0, 0.99, 200)
    stripes = {
        "along rows": values[y],
        "along columns": values[x],
        "falling diagonal": values[y - x + 64],
        "rising diagonal": values[y + x],
    }
    for name, amplitude in stripes.items():
        contrast = glcm_by_direction(amplitude, (distance,))[0, :, 0]
        assert contrast[DIRECTIONS.index(name)] == 0
        assert (np.delete(contrast, DIRECTIONS.index(name)) > 50).all()
        for direction, expected in zip(DIRECTIONS, contrast, strict=True):
            centre = glcm_maps(amplitude, 63, distance, (direction,))[0, 32, 32]
            assert (centre == 0) == (expected == 0)


def test_contrast_over_distance_is_the_variogram():
    """Twice the variance times one minus the correlation of pixels so far apart; here a moving average of four."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (400, 403))
    smooth = (noise[:, :-3] + noise[:, 1:-2] + noise[:, 2:-1] + noise[:, 3:]) / 4
    amplitude = np.clip(0.5 + 0.2 * smooth, 0, 0.999)
    contrast = glcm_by_direction(amplitude, (1, 2, 3, 4, 8))[:, :, 0]
    variance = amplitude.var() * LEVELS**2
    rounding = 2 / 12  # what rounding to levels adds at every distance
    rows, columns = (contrast[:, DIRECTIONS.index(name)] for name in ("along rows", "along columns"))
    np.testing.assert_allclose(rows, 2 * variance * np.array([0.25, 0.5, 0.75, 1, 1]) + rounding, rtol=0.03)
    np.testing.assert_allclose(columns, 2 * variance + rounding, rtol=0.03)


def test_distances_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="under both sides"):
        glcm_by_direction(field(), (1, 50))
    assert np.isnan(glcm_by_direction(np.full((32, 32), 0.5))[..., GLCM_NAMES.index("correlation")]).all()


@pytest.mark.parametrize(("size", "distance", "levels"), [(15, 1, 32), (9, 3, 32), (21, 4, 64), (3, 1, 256)])
def test_maps_equal_scikit_image_in_every_window_looked_at(size, distance, levels):
    amplitude = field()
    amplitude[:20, :20] = 0.25  # a flat corner
    amplitude[5:8, 30:33] = 1
    maps = glcm_maps(amplitude, size, distance, levels=levels)
    half = size // 2
    grey = quantised_levels(amplitude, levels)
    rng = np.random.default_rng(0)
    places = [(half, half), (59 - half, 49 - half), (half, 49 - half), (18, 18), (10, 30)]
    places += list(zip(rng.integers(half, 60 - half, 8), rng.integers(half, 50 - half, 8), strict=True))
    for row, column in places:
        if not (half <= row < 60 - half and half <= column < 50 - half):
            continue
        window = grey[row - half : row + half + 1, column - half : column + half + 1]
        matrix = graycomatrix(window, [distance], ANGLES, levels=levels, symmetric=True, normed=True)
        for index, name in enumerate(MAP_NAMES):
            expected = graycoprops(matrix, name)[0]
            if name == "correlation" and window.min() == window.max():
                assert np.isnan(maps[index, row, column])
                continue
            assert maps[index, row, column] == pytest.approx(expected.mean(), rel=1e-9, abs=1e-12), (name, row, column)
            for angle, direction in enumerate(DIRECTIONS):
                alone = glcm_maps(amplitude, size, distance, (direction,), levels)[index, row, column]
                assert alone == pytest.approx(expected[angle], rel=1e-9, abs=1e-12)


def test_maps_have_the_size_of_the_patch():
    maps = glcm_maps(field(), 15)
    assert maps.shape == (len(MAP_NAMES), 60, 50)
    assert np.isfinite(maps[:, 7:-7, 7:-7]).all()
    assert np.isnan(maps[:, :7]).all()
    assert np.isnan(maps[:, :, -7:]).all()
    assert np.isnan(glcm_maps(field((10, 40)), 15)).all()
    for size, distance in ((14, 1), (5, 5)):
        with pytest.raises(ValueError, match="odd window"):
            glcm_maps(field(), size, distance)


def test_maps_are_fast():
    import time

    amplitude = field((256, 256))
    started = time.process_time()
    glcm_maps(amplitude)
    assert time.process_time() - started < 0.5  # 0.05 s when the machine is idle
