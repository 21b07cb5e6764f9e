"""Whether generated patches repeat training crops: the best normalised cross-correlation with any of them.

Patches are averaged over ``FACTOR`` x ``FACTOR`` pixels (speckle of one scene differs from picture to picture, what a
model keeps is the scene). Of each generated patch the middle, ``SHIFT`` pixels in from every side, is laid on every
training patch at every place where it fits, so that shifts of up to ``SHIFT`` pixels are found, and all places of a
larger picture. The correlation is Pearson's over the pixels that lie on each other: 1 is the same picture but for
brightness and contrast, 0 is unrelated. It is computed by FFT in batches; torch is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTOR = 2
SHIFT = 8
"""Pixels at full size; a multiple of ``FACTOR``."""
PAIRS = 2048
"""Pairs of pictures of a batch: some 300 MB at 256 x 256 pixels."""


def averaged(amplitude: NDArray[Any], factor: int = FACTOR) -> NDArray[np.float32]:
    """Return the means of blocks of ``factor`` x ``factor`` pixels; what is left over at the ends is cut off."""
    height, width = (size // factor * factor for size in amplitude.shape)
    blocks = np.asarray(amplitude[:height, :width], dtype=np.float32)
    return blocks.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3))


def nearest_crops(
    patches: Sequence[NDArray[Any]],
    training: Sequence[NDArray[np.float32]],
    *,
    device: str = "cpu",
    factor: int = FACTOR,
    shift: int = SHIFT,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return, for each patch, its best correlation with a training picture and the number of that picture.

    Args:
        patches: ``(height, width)`` amplitude each, all of one size.
        training: pictures of ``averaged``, at least as large as the averaged middle of the patches.
        device: torch device.
        factor: of ``averaged``.
        shift: pixels at full size.

    Returns:
        ``(n,)`` each; a constant patch, or one that fits nowhere, has the correlation 0 and the number -1.
    """
    import torch

    best = np.zeros(len(patches))
    which = np.full(len(patches), -1, dtype=np.int64)
    if not len(patches) or not len(training):
        return best, which
    margin = shift // factor
    middles = np.stack([_middle(averaged(patch, factor), margin) for patch in patches])
    templates = torch.from_numpy(middles).to(device)
    templates = templates - templates.mean(dim=(1, 2), keepdim=True)
    norms = templates.square().sum(dim=(1, 2), keepdim=True).sqrt()
    templates = templates / norms.clamp_min(1e-6)
    high = torch.zeros(len(patches), device=device)
    rows = torch.full((len(patches),), -1, dtype=torch.int64, device=device)
    for shape in sorted({picture.shape for picture in training}):
        if any(large < small for large, small in zip(shape, middles.shape[1:], strict=True)):
            continue
        numbers = [i for i, picture in enumerate(training) if picture.shape == shape]
        spectra = torch.fft.rfft2(templates, s=shape).conj()
        step = max(1, PAIRS // len(patches))
        for first in range(0, len(numbers), step):
            chosen = numbers[first : first + step]
            pictures = torch.from_numpy(np.stack([training[i] for i in chosen])).to(device)
            found = _correlations(pictures, spectra, middles.shape[1:])
            values, places = found.max(dim=1)
            better = values > high
            high = torch.where(better, values, high)
            rows = torch.where(better, torch.tensor(chosen, device=device)[places], rows)
    best[:] = high.clamp(max=1).double().cpu().numpy()
    which[:] = rows.cpu().numpy()
    return best, which


def _correlations(pictures: Any, spectra: Any, size: tuple[int, int]) -> Any:
    """Return ``(patches, pictures)``: the best correlation over all places, for pictures of one shape."""
    import torch

    height, width = pictures.shape[1:]
    down, right = height - size[0] + 1, width - size[1] + 1
    pictures = pictures - pictures.mean(dim=(1, 2), keepdim=True)  # smaller numbers: float32 sums stay exact enough
    spread = (
        (_sums(pictures.square(), size) - _sums(pictures, size).square() / (size[0] * size[1])).clamp_min(0).sqrt()
    )
    inverse = torch.where(spread > 1e-4, 1 / spread.clamp_min(1e-4), torch.zeros_like(spread))
    of_pictures = torch.fft.rfft2(pictures)
    found = []
    for one in spectra.split(max(1, PAIRS // len(pictures))):
        products = torch.fft.irfft2(one[:, None] * of_pictures[None], s=(height, width))[..., :down, :right]
        found.append((products * inverse[None]).amax(dim=(2, 3)))
    return torch.cat(found)


def _sums(values: Any, size: tuple[int, int]) -> Any:
    """Return the sums over every window of ``size``, by a summed-area table in float64."""
    from torch.nn import functional

    table = functional.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    down, right = size
    sums = table[:, down:, right:] - table[:, :-down, right:] - table[:, down:, :-right] + table[:, :-down, :-right]
    return sums.float()


def _middle(picture: NDArray[np.float32], margin: int) -> NDArray[np.float32]:
    return picture[margin : picture.shape[0] - margin, margin : picture.shape[1] - margin]
