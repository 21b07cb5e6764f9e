"""Losses of the VAE, on pictures in the model's grey: ``(n, channels, height, width)`` in [-1, 1], float32.

Speckle is texture: no decoder can copy it from 48 times fewer numbers, and one that is only asked to copy makes it
smooth, which raises the equivalent number of looks and lowers the GLCM contrast. Beside the errors by pixel there are
therefore three losses that ask for the right kind of texture instead: local power spectra, the co-occurrence of
neighbours, and a discriminator of patches. All three look at the mean of the channels, which is what the studio takes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional

WINDOW = 32
"""Side of the windows of ``spectrum_loss`` and ``texture_loss``, in pixels; they overlap by half."""
RINGS, SECTORS = 8, 4
FLOOR = (2 / 255) ** 2 / 12
"""Power and squared difference that both sides are given: the rounding of 8-bit grey; under it nothing is texture."""
LEVELS = 32
"""Grey levels over the range that neighbours are compared in, as in ``quality.texture``."""
DISCRIMINATOR_CHANNELS = (32, 64, 128, 256)
LARGEST_GAN_WEIGHT = 1e4


def grey(pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean of the channels, ``(n, 1, height, width)`` float32."""
    return pictures.float().mean(dim=1, keepdim=True)


def kl_loss(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Return the mean over all latents of KL(N(mean, var) || N(0, 1)) = (mean² + var - 1 - ln var) / 2, in nats."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def spectrum_loss(made: torch.Tensor, real: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    """Return how far local power spectra are apart: the mean absolute difference of their logarithms, in nats.

    In each ``window`` (half overlapping) the Hann-weighted mean is taken off, the Hann window is put on, and
    P = |F|² / sum of squared weights, as in ``quality.spectrum``. P is averaged in cells of frequency, 8 rings of
    equal width up to sqrt(1/2) cycles a pixel and 4 sectors of direction, and

        loss = mean over windows and cells of |ln(P_made + floor) - ln(P_real + floor)|.

    The means before the logarithm matter: one ordinate of a spectrum of speckle is exponentially distributed, and to
    follow its logarithm would ask for its median, 1.6 dB under its mean, at each frequency alone. Local windows keep
    speckle where it belongs: stronger on bright ground.

    Args:
        made: ``(n, c, h, w)``, at least ``window`` pixels a side.
        real: the same.
        window: side of a window, in pixels.
    """
    cells = _cells(window).to(made.device)
    power = [_local_power(grey(pictures), window) @ cells for pictures in (made, real)]
    return (torch.log(power[0] + FLOOR) - torch.log(power[1] + FLOOR)).abs().mean()


def texture_loss(made: torch.Tensor, real: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    """Return how far the co-occurrence of neighbours is apart, in nats: contrast and homogeneity of the GLCM, smooth.

    With d the difference of two neighbours in grey levels of 1/32 of the range (not rounded), contrast is the mean of
    d² and homogeneity that of 1 / (1 + d²), in each window (half overlapping) and each of the four directions at
    distance 1; the loss is the mean of |ln(made / real)| of both.

    Args:
        made: ``(n, c, h, w)``, at least ``window`` pixels a side.
        real: the same.
        window: side of a window, in pixels.
    """
    logs = [_texture_logs(grey(pictures), window) for pictures in (made, real)]
    return (logs[0] - logs[1]).abs().mean()


def hinge_discriminator(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's hinge loss of its answers: (mean max(0, 1 - real) + mean max(0, 1 + made)) / 2."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + made).mean())


def gan_weight(reconstruction: torch.Tensor, gan: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the weight that makes the two losses pull alike on the decoder's last layer (arXiv 2012.09841, eq. 7).

        lambda = ||d reconstruction / d last|| / (||d gan / d last|| + 1e-6), at most 1e4

    It is a number, not a part of the graph. The gradients go back to ``last`` only, so they cost next to nothing.
    """
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm() for loss in (reconstruction, gan)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=LARGEST_GAN_WEIGHT).detach()


class PatchDiscriminator(nn.Module):
    """Says real or made of overlapping patches of 70 pixels (arXiv 1611.07004), with spectral norm (arXiv 1802.05957).

    Without norms over the picture, each answer depends on its patch alone. 0.8 million parameters.
    """

    def __init__(self, channels: tuple[int, ...] = DISCRIMINATOR_CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for i, after in enumerate(channels):
            layers += [_normed(before, after, stride=2 if i < len(channels) - 1 else 1), nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers, _normed(before, 1, stride=1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return one answer a patch, ``(n, 1, rows, columns)``, of pictures ``(n, c, h, w)``, 32 pixels or more."""
        answers: torch.Tensor = self.layers(grey(pictures))
        return answers


def _normed(before: int, after: int, stride: int) -> nn.Module:
    layer: nn.Module = nn.utils.parametrizations.spectral_norm(nn.Conv2d(before, after, 4, stride, 1))
    return layer


def _windows(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return half overlapping windows, ``(n, windows, size, size)``, of ``(n, 1, h, w)``."""
    cut = values[:, 0].unfold(1, size, size // 2).unfold(2, size, size // 2)
    return cut.reshape(len(values), -1, size, size)


def _local_power(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return ``(n, windows, size * (size // 2 + 1))`` power."""
    weights = _hann(size).to(values.device)
    cut = _windows(values, size)
    cut = cut - (cut * weights).sum(dim=(-2, -1), keepdim=True) / weights.sum()
    spectrum = torch.fft.rfft2(cut * weights)
    power = (spectrum.real.square() + spectrum.imag.square()) / weights.square().sum()
    return power.flatten(2)


def _texture_logs(values: torch.Tensor, size: int) -> torch.Tensor:
    levels = (values + 1) * (LEVELS / 2)
    found = []
    height, width = levels.shape[-2:]
    for down, right in ((0, 1), (1, 1), (1, 0), (1, -1)):
        left = max(0, -right)
        one = levels[..., : height - down, left : width - max(0, right)]
        other = levels[..., down:, left + right : width - max(0, right) + right]
        squares = (one - other).square()
        for measure in (squares + (LEVELS / 2) ** 2 * FLOOR, 1 / (1 + squares)):
            found.append(torch.log(functional.avg_pool2d(measure, size - 1, size // 2)).flatten(1))
    return torch.stack(found, dim=-1)


@lru_cache(maxsize=2)
def _hann(size: int) -> torch.Tensor:
    line = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
    return torch.outer(line, line).float()


@lru_cache(maxsize=2)
def _cells(size: int) -> torch.Tensor:
    """Return ``(frequencies, cells)`` weights whose product with power gives each cell's mean power."""
    down, right = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    # Written so that the diagonal, where rings meet, is exact.
    ring = (2 * RINGS**2 * (down.double().square() + right.square())).sqrt().long().clamp(max=RINGS - 1)
    angle = torch.rad2deg(torch.atan2(down.expand(-1, size // 2 + 1), right.expand(size, -1)))
    sector = torch.round(angle / (180 / SECTORS)).long() % SECTORS
    weight = torch.full(ring.shape, 2.0)  # columns but the first and last stand for two
    weight[:, 0] = weight[:, -1] = 1.0
    weight[0, 0] = 0.0
    index = (ring * SECTORS + sector).flatten()
    table = torch.zeros(len(index), RINGS * SECTORS)
    table[torch.arange(len(index)), index] = weight.flatten()
    total = table.sum(dim=0)
    return table[:, total > 0] / total[total > 0]
