"""The VAE's losses against closed forms and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sar_gen.training.vae_losses import (
    PatchDiscriminator,
    gan_weight,
    hinge_discriminator,
    kl_loss,
    spectrum_loss,
    texture_loss,
)


def noise(seed: int, std: float = 0.3, side: int = 64) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (std * torch.randn(4, 1, side, side, generator=random)).expand(-1, 3, -1, -1)


def smoothed(pictures: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)


def test_kl_is_that_of_torch_distributions() -> None:
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    assert kl_loss(mean, logvar) == pytest.approx(expected.item(), rel=1e-5)


def test_spectrum_of_the_same_picture_is_nothing_and_of_a_stronger_one_the_logarithm() -> None:
    picture = noise(0)
    assert spectrum_loss(picture, picture) == 0
    assert spectrum_loss(1.5 * picture, picture) == pytest.approx(2 * np.log(1.5), rel=1e-3)
    assert spectrum_loss(picture + 0.2, picture) == pytest.approx(0, abs=1e-5)  # brightness is for other losses


def test_spectrum_asks_for_texture_and_not_for_a_copy() -> None:
    picture, other = noise(0), noise(1)
    assert spectrum_loss(other, picture) < 0.35 * spectrum_loss(smoothed(picture), picture)
    assert torch.nn.functional.l1_loss(other, picture) > torch.nn.functional.l1_loss(smoothed(picture), picture)


def test_spectrum_is_the_formula_in_numpy() -> None:
    made, real = (noise(seed, side=32).double().numpy()[:, 0] for seed in (0, 1))
    line = np.sin(np.pi * (np.arange(32) + 0.5) / 32) ** 2
    weights = np.outer(line, line)
    down, right = np.meshgrid(np.fft.fftfreq(32), np.fft.rfftfreq(32), indexing="ij")
    ring = np.minimum(np.sqrt(128 * (down**2 + right**2)).astype(int), 7)
    sector = np.rint(np.degrees(np.arctan2(down, right)) % 180 / 45).astype(int) % 4
    ring[0, 0] = -1
    twice = np.r_[1, [2] * 15, 1] * np.ones((32, 1))  # the other half-plane
    differences = []
    for one, other in zip(made, real, strict=True):
        logs = []
        for picture in (one, other):
            centred = weights * (picture - np.average(picture, weights=weights))
            power = np.abs(np.fft.rfft2(centred)) ** 2 / np.square(weights).sum()
            masks = [(ring == r) & (sector == s) for r in range(8) for s in range(4)]
            cells = [np.average(power[m], weights=twice[m]) for m in masks if m.any()]  # corners lack 0 and 90 degrees
            logs.append(np.log(np.array(cells) + (2 / 255) ** 2 / 12))
        differences.append(np.abs(logs[0] - logs[1]).mean())
    found = spectrum_loss(torch.from_numpy(made)[:, None], torch.from_numpy(real)[:, None])
    assert found.item() == pytest.approx(np.mean(differences), rel=1e-3)


def test_texture_of_the_same_picture_is_nothing_and_of_a_smooth_one_much() -> None:
    picture, other = noise(0), noise(1)
    assert texture_loss(picture, picture) == 0
    assert texture_loss(other, picture) < 0.3 * texture_loss(smoothed(picture), picture)


def test_texture_of_stripes_is_the_closed_form() -> None:
    """Columns d levels apart by turns: three of the directions see d, the one along columns sees nothing."""
    stripes = [torch.zeros(1, 1, 33, 33) for _ in range(2)]
    for picture, levels in zip(stripes, (2, 4), strict=True):
        picture[..., ::2] = levels / 16
    floor = 16**2 * (2 / 255) ** 2 / 12
    contrast = np.log((16 + floor) / (4 + floor))
    homogeneity = np.log((1 + 16) / (1 + 4))
    assert texture_loss(*stripes) == pytest.approx(3 / 4 * (contrast + homogeneity) / 2, rel=1e-4)


def test_hinge_and_weight_are_their_closed_forms() -> None:
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert hinge_discriminator(real, made) == pytest.approx(0.5 * (0.25 + 0.5))
    last = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    reconstruction, gan = 6 * last.sum(), last.square().sum()  # gradients (6, 6) and (6, 8)
    weight = gan_weight(reconstruction, gan, last)
    assert weight == pytest.approx(np.sqrt(72) / 10, rel=1e-5)
    assert not weight.requires_grad
    assert last.grad is None


def test_discriminator_learns_to_tell_smooth_from_speckled() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator((8, 16, 16))
    optimiser = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for step in range(60):
        real = noise(step, side=32)
        loss = hinge_discriminator(judge(real), judge(smoothed(real)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    held_out = noise(1000, side=32)
    assert judge(held_out).mean() > judge(smoothed(held_out)).mean() + 0.5
    full = PatchDiscriminator()
    assert full(torch.zeros(1, 3, 128, 128)).shape == (1, 1, 14, 14)
    assert full(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)
