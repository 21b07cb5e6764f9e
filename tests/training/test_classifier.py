"""The terrain classifier on pictures whose classes are known."""

import numpy as np
import pytest
import torch

from sar_gen.errors import InputError
from sar_gen.training.classifier import ClassifierConfig, multilook, recalls, train_classifier, varied

TINY = ClassifierConfig(widths=(4, 4, 8, 8), looks=1, steps=40, batch=8, learning_rate=5e-3, shift=4)

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(count, seed, along=0, size=32):
    """Speckled stripes along rows (0) or columns (1), of any phase."""
    rng = np.random.default_rng(seed)
    lines = np.sin(np.arange(size) * 2 * np.pi / 8 + rng.uniform(0, 6, (count, 1)))
    pictures = np.repeat((0.3 + 0.15 * lines)[:, :, None], size, axis=2)
    pictures = pictures.transpose(0, 2, 1) if along else pictures
    return (pictures * np.sqrt(rng.gamma(8, 1 / 8, pictures.shape))).clip(0, 1).astype(np.float32)


def test_it_learns_what_tells_two_classes_apart():
    classifier = train_classifier([[stripes(12, 0)], [stripes(12, 1, along=1)]], TINY, seed=0)
    found = classifier.predict(np.concatenate([stripes(20, 2), stripes(20, 3, along=1)]))
    assert recalls(found, np.repeat([0, 1], 20), 2) == pytest.approx([1, 1], abs=0.1)


def test_the_same_seed_is_the_same_classifier_and_leaves_torch_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    classes = [[stripes(4, 0), stripes(3, 9)], [stripes(4, 1, along=1)]]
    first, second = (train_classifier(classes, TINY, seed=3, classical=True) for _ in range(2))
    weights = [list(one._network.state_dict().values()) for one in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(torch.rand(3), expected)


def test_multilook_is_the_root_of_mean_intensity():
    amplitude = np.array([[3.0, 4.0, 9.0], [0.0, 5.0, 9.0], [9.0, 9.0, 9.0]], dtype=np.float32)
    np.testing.assert_allclose(multilook(amplitude, 2), [[np.sqrt(50 / 4)]], rtol=1e-6)
    # One-look speckle joined by 2 x 2 independent pixels has four looks: mean squared over variance of intensity.
    speckle = np.sqrt(np.random.default_rng(0).exponential(size=(512, 512))).astype(np.float32)
    intensity = multilook(speckle, 2).astype(float) ** 2
    assert intensity.mean() ** 2 / intensity.var() == pytest.approx(4, rel=0.05)


def test_classical_augmentation_flips_along_azimuth_only_and_adds_what_it_says():
    config = ClassifierConfig(shift=1, gain_db=1e-9, speckle_looks=10**6)
    ramp = np.linspace(0.2, 0.6, 16, dtype=np.float32)
    along_range = torch.from_numpy(np.tile(ramp, (64, 16, 1)))
    out = varied(along_range, config, torch.Generator().manual_seed(0))
    assert (out[:, :, 12] > out[:, :, 3]).all()  # never mirrored in range
    out = varied(along_range.transpose(1, 2).contiguous(), config, torch.Generator().manual_seed(0))
    flipped = (out[:, 12] < out[:, 3]).all(dim=1)
    assert 16 < int(flipped.sum()) < 48
    flat = torch.full((8, 128, 128), 0.3)
    speckled = varied(flat, ClassifierConfig(gain_db=1e-9, speckle_looks=20), torch.Generator().manual_seed(0)) ** 2
    assert float(speckled.mean() ** 2 / speckled.var()) == pytest.approx(20, rel=0.05)
    gains = varied(flat, ClassifierConfig(gain_db=1.0, speckle_looks=10**6), torch.Generator().manual_seed(0))
    assert float((20 * torch.log10(gains.mean(dim=(1, 2)) / 0.3)).std()) == pytest.approx(1, rel=0.6)


def test_recalls_are_the_shares_of_each_class():
    assert recalls(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 2) == [0.5, 1.0]


def test_a_class_without_patches_is_refused():
    with pytest.raises(InputError, match="Class 2 of the classifier has no patches"):
        train_classifier([[stripes(2, 0)], [stripes(0, 1)]], TINY, seed=0)
