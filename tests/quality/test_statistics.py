import dataclasses

import numpy as np
import pytest

from sar_gen.errors import InputError
from sar_gen.quality import BINS, GLCM_NAMES, concat, patch_statistics
from sar_gen.quality.speckle import equivalent_looks, speckle_correlation
from sar_gen.quality.spectrum import patch_spectra
from sar_gen.quality.texture import glcm_by_direction, glcm_descriptors


def patches(n=3, shape=(64, 72), seed=0):
    rng = np.random.default_rng(seed)
    return [np.clip(rng.rayleigh(0.2, shape), 0, 1).astype(np.float32) for _ in range(n)]


def test_one_row_a_patch():
    real = patches()
    statistics = patch_statistics(real, groups=["a", "b", "a"])
    assert len(statistics) == 3
    assert statistics.histograms.shape == (3, BINS)
    assert statistics.histograms.sum(axis=1).tolist() == [64 * 72] * 3
    np.testing.assert_allclose(statistics.glcm[1], glcm_descriptors(real[1]), rtol=1e-6)
    assert statistics.glcm.shape == (3, len(GLCM_NAMES))
    np.testing.assert_allclose(statistics.directions[1], glcm_by_direction(real[1]), rtol=1e-6)
    looks = equivalent_looks(real[1])
    assert statistics.enl[1] == looks.looks
    correlation = speckle_correlation(real[1], estimate=looks)
    np.testing.assert_allclose(statistics.speckle[1, 0], correlation.along_rows[1:], rtol=1e-5)
    np.testing.assert_allclose(statistics.speckle[1, 1], correlation.along_columns[1:], rtol=1e-5)
    spectra = patch_spectra(real)
    np.testing.assert_allclose(statistics.radial, spectra.radial, rtol=1e-6)
    np.testing.assert_allclose(statistics.angular, spectra.angular, rtol=1e-6)
    assert statistics.groups == ("a", "b", "a")
    np.testing.assert_allclose(statistics.shares.sum(axis=1), 1)


def test_own_groups_join_copies_only():
    a, b = patches(2)
    groups = patch_statistics([a, b, a.copy()]).groups
    assert groups[0] == groups[2] != groups[1]


def test_subset_and_concat_are_inverse():
    statistics = patch_statistics(patches(4), groups="abcd")
    joined = concat([statistics.subset([0, 1]), statistics.subset([2, 3])])
    for name, array in statistics.arrays.items():
        np.testing.assert_array_equal(getattr(joined, name), array)
    assert joined.groups == statistics.groups
    assert len(concat([])) == len(patch_statistics([])) == 0


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        (np.full((32, 40), np.nan), "1280 of 1280"),
        (np.full((32, 40), 1.5), r"1.5 to 1.5.*\[0, 1\]"),
        (np.full((32, 40), -0.5), "-0.5"),
        (np.zeros((32, 40, 3)), "shape"),
        (np.zeros((31, 400)), "32 pixels"),
        (np.zeros((32, 40), dtype=np.uint8), "uint8"),
    ],
)
def test_what_is_not_amplitude_is_refused_with_its_number(patch, says):
    with pytest.raises(InputError, match=f"Patch 2 .*{says}"):
        patch_statistics([np.full((32, 40), 0.5), patch])


def test_constant_patch_is_measured_without_inventing_values():
    statistics = patch_statistics([np.full((64, 64), 0.25, dtype=np.float32)])
    assert np.isnan(statistics.enl[0])
    assert np.isnan(statistics.glcm[0, GLCM_NAMES.index("correlation")])
    assert statistics.histograms[0, 256] == 64 * 64


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"enl has the shape .*expected"):
        dataclasses.replace(patch_statistics(patches(2)), enl=np.zeros(3))
