"""Previews of a run in training, measured like every other patch of the studio: GLCM, distances, looks, spectrum."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sar_gen.amplitude import view
from sar_gen.checkpoints import CheckpointSpec
from sar_gen.engine import decode, initial_noise
from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.quality.report import compare, finite
from sar_gen.quality.statistics import PatchStatistics, patch_statistics
from sar_gen.references import load_reference
from sar_gen.settings import Settings
from sar_gen.strategies import with_token
from sar_gen.training.config import DataConfig, TrainingConfig
from sar_gen.training.dataset import open_manifest
from sar_gen.training.losses import NoiseSchedule, sampling_scheduler
from sar_gen.training.manifest import SPLITS

MOST = 128
"""Real patches of a split that previews are measured against, evenly spread over it."""


def validate(
    pipe: Any,
    config: TrainingConfig,
    spec: CheckpointSpec,
    schedule: NoiseSchedule,
    step: int,
    settings: Settings,
) -> dict[str, float]:
    """Make previews with the weights as they are, write them as one picture, and return their measures.

    The prompts and seeds are the same each time, so that the numbers of a run can be compared with each other. The
    measures are those of ``python -m sar_gen compare``, in the studio's amplitude.

    Args:
        pipe: the pipeline in training.
        config: prompts, count, steps and reference of the previews.
        spec: of the base: size, guidance, model encoding.
        schedule: noise schedule that is trained.
        step: for the picture's name.
        settings: where reference sets are.
    """
    resolution = config.data.resolution or spec.resolution
    prompts, real = reference_of(config, resolution, settings)
    chosen = [prompts[i * len(prompts) // config.run.previews] for i in range(config.run.previews)]
    if config.row.token == "learned":
        chosen = [with_token(prompt, config.token) for prompt in chosen]
    encoding = spec.model_encoding if config.data.modality == "sar" else "linear"
    with sampling(pipe, schedule):
        made = list(sample(pipe, chosen, config.run.preview_steps, spec.guidance, resolution, spec.mono, encoding))
    write_sheet(made, config, step)
    report = compare(patch_statistics(made), real, reference_name=config.run.reference)
    values = {name: finite(measure.value) for name, measure in report.measures.items()}
    return {name: value for name, value in values.items() if value is not None}


def reference_of(config: TrainingConfig, resolution: int, settings: Settings) -> tuple[list[str], PatchStatistics]:
    """Return prompts for previews, and the statistics of what they are measured against.

    Raises:
        InputError: the split is empty, has no captions where no prompts are given, or there is no such set.
    """
    if config.run.reference not in SPLITS:
        if not config.run.prompts:
            raise InputError("run.prompts is empty; previews measured against a reference set need prompts.")
        return list(config.run.prompts), load_reference(config.run.reference, settings).statistics
    data = dataclasses.replace(config.data, split=config.run.reference, leave_out=())
    captions, statistics = _split(data, resolution)
    prompts = list(config.run.prompts or captions)
    if not prompts:
        raise InputError(f"The split {config.run.reference} has no captions; give run.prompts.")
    return prompts, statistics


@lru_cache(maxsize=4)
def _split(data: DataConfig, resolution: int) -> tuple[tuple[str, ...], PatchStatistics]:
    """Return a caption and the statistics of patches spread evenly over a split."""
    found = open_manifest(data, resolution, 0)
    count = min(MOST, len(found))
    places = [i * len(found) // count for i in range(count)]
    rows = [found.rows[place] for place in places]
    statistics = patch_statistics([found.pixels(place) for place in places], [row.group for row in rows])
    return tuple(row.captions[0] for row in rows if row.captions), statistics


@contextmanager
def sampling(pipe: Any, schedule: NoiseSchedule) -> Iterator[None]:
    """Make a pipeline in training ready to sample, and put it back after."""
    own = pipe.scheduler
    modules = [getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    modes = [(module, module.training) for module in modules if module is not None]
    pipe.scheduler = sampling_scheduler(own, schedule) or own
    for module, _ in modes:
        module.eval()
    try:
        yield
    finally:
        pipe.scheduler = own
        for module, mode in modes:
            module.train(mode)


@torch.no_grad()
def sample(
    pipe: Any, prompts: Sequence[str], steps: int, guidance: float, side: int, mono: str, encoding: str
) -> Iterator[NDArray[np.float32]]:
    """Yield one amplitude patch ``(side, side)`` a prompt, the seed being its place in the list."""
    device = pipe.unet.device
    dtype = pipe.unet.dtype if pipe.unet.dtype != torch.float32 else torch.bfloat16
    at_once = max(1, 1024 * 1024 // side**2)
    for first in range(0, len(prompts), at_once):
        own = list(prompts[first : first + at_once])
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(own))]
        with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            latents = pipe(
                own,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=side,
                width=side,
                latents=initial_noise(pipe, generators, side, side).to(device),
                output_type="latent",
            ).images
        for i in range(len(own)):
            yield decode(pipe, latents[i : i + 1].float(), mono, encoding)


def write_sheet(patches: Sequence[NDArray[np.float32]], config: TrainingConfig, step: int) -> None:
    """Write previews side by side as a PNG view, ``previews/step-….png`` in the work folder."""
    from PIL import Image

    gap = np.full((patches[0].shape[0], 4), 255, np.uint8)
    columns = [part for patch in patches for part in (view(patch), gap)][:-1]
    buffer = io.BytesIO()
    Image.fromarray(np.hstack(columns)).save(buffer, "png")
    write_atomic(config.work / "previews" / f"step-{step:08d}.png", buffer.getvalue())
