"""A small terrain classifier: the measure of what an augmentation set is worth.

The network is a ResNet (He et al. 2016, arXiv 1512.03385) of transformers with basic blocks, one a stage, and a
quarter of the usual width: 0.3 M parameters, trained in half a minute on a core, in bfloat16 where the processor
calculates in it. It sees log amplitude of two by two looks: a patch of 256 x 256 pixels becomes 128 x 128.

Every training makes the same number of steps, whatever it is given, so that more patches do not mean more training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import nn

from sar_gen.errors import InputError
from sar_gen.speed import bfloat16_is_native
from sar_gen.training.config import STRICT, Positive, Rate

FLOOR = 0.02
"""Added to amplitude before its logarithm: -34 dB of the brightest, where there is no signal any more."""


@dataclass(frozen=True, config=STRICT)
class ClassifierConfig:
    """Network and training.

    Attributes:
        widths: channels of the four stages.
        looks: pixels a side that become one (mean of intensity).
        steps: of every training.
        batch: patches a step, of all classes alike.
        learning_rate: of AdamW, falling to 0 along a cosine.
        weight_decay: of AdamW.
        shift: classical augmentation: pixels that a picture is shifted by at most, its edges mirrored.
        gain_db: classical augmentation: standard deviation of the gain.
        speckle_looks: classical augmentation: looks of the Gamma speckle that is multiplied on.
    """

    widths: tuple[Positive, Positive, Positive, Positive] = (16, 32, 64, 128)
    looks: Positive = 2
    steps: Positive = 400
    batch: Positive = 32
    learning_rate: Rate = 2e-3
    weight_decay: float = field(default=0.01)
    shift: Positive = 12
    gain_db: float = field(default=1.0)
    speckle_looks: Positive = 20


Pool = NDArray[np.float32]
"""Patches of one class and one source, ``(n, height, width)`` amplitude after ``multilook``."""


def multilook(amplitude: NDArray[np.float32], looks: int) -> NDArray[np.float32]:
    """Return amplitude with ``looks`` x ``looks`` pixels joined: the root of their mean intensity.

    Args:
        amplitude: ``(height, width)`` float32; what does not fill a cell at the lower and right edge is left out.
        looks: pixels a side of a cell.

    Returns:
        float32 ``(height // looks, width // looks)``.
    """
    height, width = (side // looks for side in amplitude.shape)
    cells = amplitude[: height * looks, : width * looks].reshape(height, looks, width, looks)
    joined: NDArray[np.float32] = np.sqrt((cells.astype(np.float32) ** 2).mean(axis=(1, 3)))
    return joined


def make_network(classes: int, config: ClassifierConfig) -> Any:
    """Return an untrained ResNet for ``(n, 1, height, width)`` pictures and so many classes."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=config.widths[0],
            hidden_sizes=list(config.widths),
            depths=[1, 1, 1, 1],
            layer_type="basic",
            num_labels=classes,
        )
    )


def varied(pictures: torch.Tensor, config: ClassifierConfig, numbers: torch.Generator) -> torch.Tensor:
    """Return classically augmented pictures: flips along azimuth, shifts, gain, speckle.

    Azimuth is taken to run along the rows' axis, as in the patches of Sentinel-1 that are nearly north up; a flip
    along range would turn layover and shadow the wrong way.

    Args:
        pictures: float32 ``(n, height, width)`` amplitude.
        config: how much.
        numbers: random numbers.
    """
    count, height, width = pictures.shape
    flipped = torch.where(torch.rand(count, 1, 1, generator=numbers) < 0.5, pictures.flip(1), pictures)
    most = config.shift
    mirrored = nn.functional.pad(flipped[:, None], (most,) * 4, mode="reflect")[:, 0]
    places = torch.randint(0, 2 * most + 1, (count, 2), generator=numbers).tolist()
    shifted = torch.stack(
        [one[row : row + height, column : column + width] for one, (row, column) in zip(mirrored, places, strict=True)]
    )
    gain = 10 ** (config.gain_db * torch.randn(count, 1, 1, generator=numbers) / 20)
    # Gamma variables of shape L over L are the intensity of speckle of L looks. numpy draws them many times faster.
    seed = int(torch.randint(2**31, (), generator=numbers))
    looks = config.speckle_looks
    speckle = np.random.default_rng(seed).standard_gamma(looks, shifted.shape, dtype=np.float32) / looks
    return (shifted * gain * torch.from_numpy(np.sqrt(speckle))).clamp(0, 1)


def train_classifier(
    classes: Sequence[Sequence[Pool]],
    config: ClassifierConfig,
    *,
    seed: int,
    classical: bool = False,
) -> Classifier:
    """Train on patches of each class; of several sources of a class each gives half (or a third) of the batch.

    Args:
        classes: for each class its sources, each with a patch at least.
        config: network and training.
        seed: of weights, batches and augmentation.
        classical: whether pictures are varied.

    Raises:
        InputError: a class has no patch.
    """
    for place, pools in enumerate(classes):
        if not pools or any(not len(pool) for pool in pools):
            raise InputError(f"Class {place + 1} of the classifier has no patches to train on; give some.")
    numbers = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(len(classes), config).to(memory_format=torch.channels_last)
    every = torch.cat([_log(torch.from_numpy(pool)).flatten() for pools in classes for pool in pools])
    mean, std = float(every.mean()), float(every.std())
    stacks = [[torch.from_numpy(pool) for pool in pools] for pools in classes]
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True
    )
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    network.train()
    for _ in range(config.steps):
        labels = torch.randint(0, len(stacks), (config.batch,), generator=numbers)
        pictures = torch.stack([_drawn(stacks[int(label)], numbers) for label in labels])
        if classical:
            pictures = varied(pictures, config, numbers)
        # Layout and bfloat16 together take less than half of the time on two cores.
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_native()):
            logits = network(((_log(pictures) - mean) / std)[:, None]).logits.float()
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()
        falling.step()
    network.eval()
    return Classifier(network, mean, std)


class Classifier:
    """A trained network with the mean and std of the log amplitude that it saw."""

    def __init__(self, network: Any, mean: float, std: float) -> None:
        self._network, self._mean, self._std = network, mean, std

    @torch.no_grad()
    def predict(self, pictures: Pool, batch: int = 64) -> NDArray[np.int64]:
        """Return the class of each picture, ``(n,)``."""
        found = []
        for start in range(0, len(pictures), batch):
            part = torch.from_numpy(pictures[start : start + batch])
            found.append(self._network(((_log(part) - self._mean) / self._std)[:, None]).logits.argmax(1))
        classes: NDArray[np.int64] = torch.cat(found).numpy()
        return classes


def recalls(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[float]:
    """Return the share of each class's patches that were recognised; their mean is the balanced accuracy."""
    return [float((predicted[labels == place] == place).mean()) for place in range(classes)]


def _drawn(pools: Sequence[torch.Tensor], numbers: torch.Generator) -> torch.Tensor:
    pool = pools[int(torch.randint(0, len(pools), (), generator=numbers))]
    return pool[int(torch.randint(0, len(pool), (), generator=numbers))]


def _log(amplitude: torch.Tensor) -> torch.Tensor:
    return torch.log(amplitude + FLOOR)
