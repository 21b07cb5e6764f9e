import numpy as np
import pytest

from sar_gen.training.copies import averaged, nearest_crops


def picture(seed, size=96):
    return np.random.default_rng(seed).random((size, size), dtype=np.float32)


def correlation(patch, training, factor=2, shift=8):
    """The best Pearson correlation of the patch's middle with any place of one picture, place by place."""
    margin = shift // factor
    middle = averaged(patch, factor)[margin:-margin, margin:-margin]
    height, width = middle.shape
    rows, columns = (large - small + 1 for large, small in zip(training.shape, middle.shape, strict=True))
    return max(
        np.corrcoef(middle.ravel(), training[i : i + height, j : j + width].ravel())[0, 1]
        for i in range(rows)
        for j in range(columns)
    )


def test_averaging_is_the_mean_of_blocks():
    values = np.arange(36, dtype=np.float32).reshape(6, 6)
    assert averaged(values[:5, :5]).tolist() == [[3.5, 5.5], [15.5, 17.5]]


def test_best_correlation_is_that_of_every_place_tried():
    training = [averaged(picture(seed)) for seed in range(4)] + [averaged(picture(9, 128))]
    patches = [picture(seed) for seed in (20, 21, 22)]
    values, rows = nearest_crops(patches, training)
    for value, row, patch in zip(values, rows, patches, strict=True):
        every = [correlation(patch, one) for one in training]
        assert value == pytest.approx(max(every), abs=2e-4)
        assert row == int(np.argmax(every))


def test_a_shifted_darker_noisy_copy_is_found():
    scene = picture(1, 128)
    training = [averaged(picture(5)), averaged(scene)]
    noise = np.random.default_rng(3).normal(0, 0.02, (96, 96)).astype(np.float32)
    copy = 0.5 * scene[14:110, 10:106] + 0.1 + noise
    values, rows = nearest_crops([copy, picture(7)], training)
    assert values[0] > 0.97
    assert rows[0] == 1
    assert values[1] < 0.2


def test_constant_patches_and_patches_that_fit_nowhere_are_no_copies():
    values, rows = nearest_crops([np.full((96, 96), 0.3, np.float32)], [averaged(picture(1))])
    assert values[0] == pytest.approx(0, abs=1e-3)
    values, rows = nearest_crops([picture(1, 128)], [averaged(picture(1, 64))])
    assert (values[0], rows[0]) == (0, -1)
    assert nearest_crops([picture(1)], [])[1].tolist() == [-1]
