"""Steering the denoiser: what networks add to it at each step, and scenes larger than what it was trained at.

``steered`` changes what a UNet's ``forward`` does for the length of one call of a pipeline, so that every pipeline,
scheduler, strategy and placement works as without. For one window the sum is that of diffusers' own ControlNet and
T2I-Adapter pipelines (tested to be equal).

Large scenes: the UNet sees windows of the size that it was trained at, laid over the scene with a small overlap, and
its predictions are put together with weights that fall to 0 towards a window's edge. As in MultiDiffusion (arXiv
2302.08113) all windows share one latent scene at each step; as in SpotDiffusion (arXiv 2407.15507) the grid of windows
is shifted at each step, so that no seam stays in one place and the overlap can be small. So that the first and last
window can move too, they may hang over the border of the scene, which is mirrored there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sar_gen.conditioning import GuideImage
from sar_gen.forwards import Forward, replaced, unet_output
from sar_gen.windows import OVERLAP, Window, grid, margins


@dataclass(frozen=True)
class Steer:
    """One guide with its network.

    Attributes:
        network: diffusers' ControlNetModel or T2IAdapter, on the device.
        image: what it gets.
        weight: of what it adds.
        start: share of the steps before it sets in.
        end: share of the steps after which it ends.
    """

    network: Any
    image: GuideImage
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


def acts(start: float, end: float, step: int, steps: int) -> bool:
    """Return whether a guide acts at a step, by the rule of diffusers' pipelines."""
    return step / steps >= start and (step + 1) / steps <= end


@contextmanager
def steered(
    pipe: Any,
    steers: Sequence[Steer],
    native: int,
    seed: int = 0,
    at_once: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Steer ``pipe.unet`` while this lasts; one call of the pipeline is made in it.

    Args:
        pipe: diffusers pipeline.
        steers: guides with their networks; may be empty.
        native: side in latent pixels that the UNet was trained at; a larger scene is made of windows.
        seed: of the shifts of the grid.
        at_once: windows that are computed together.
        tick: called before each group of windows; what it raises ends the call of the pipeline.
    """
    scale = pipe.vae_scale_factor
    calls = 0

    def forward(
        plain: Forward, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **options: Any
    ) -> Any:
        nonlocal calls
        steps = max(1, len(pipe.scheduler.timesteps))
        acting = [steer for steer in steers if acts(steer.start, steer.end, calls, steps)]
        height, width = sample.shape[2:]
        whole = height <= native and width <= native
        windows = [Window(0, 0, height, width)]
        if not whole:
            windows = grid(height, width, native, np.random.default_rng([seed, calls]))
        calls += 1
        if whole:
            return _predict(plain, sample, timestep, encoder_hidden_states, options, acting, windows, scale)
        wanted = options.pop("return_dict", True)
        over = margins(height, width, native)
        inner = (..., slice(over[0], over[0] + height), slice(over[1], over[1] + width))
        padded = torch.nn.functional.pad(sample.float(), (over[1], over[1], over[0], over[0]), mode="reflect")
        padded = padded.to(sample.dtype)
        total = torch.zeros(padded.shape, dtype=torch.float32, device=sample.device)
        weights = torch.zeros(padded.shape[2:], dtype=torch.float32, device=sample.device)
        for first in range(0, len(windows), at_once):
            tick()
            some = windows[first : first + at_once]
            found = _predict(
                plain, padded, timestep, encoder_hidden_states, {**options, "return_dict": False}, acting, some,
                scale, over,
            )[0]  # fmt: skip
            for window, part in zip(some, found.float().chunk(len(some)), strict=True):
                weight = window_weight(window.height, window.width).to(sample.device)
                total[:, :, *window.slices] += part * weight
                weights[window.slices] += weight
        joined = (total[inner] / weights[inner]).to(sample.dtype)
        return unet_output(joined, wanted)

    with replaced(pipe.unet, lambda plain: partial(forward, plain)):
        yield


def _predict(
    plain: Any,
    sample: torch.Tensor,
    timestep: Any,
    context: torch.Tensor,
    options: dict[str, Any],
    acting: Sequence[Steer],
    windows: Sequence[Window],
    scale: int,
    over: tuple[int, int] = (0, 0),
) -> Any:
    """Return the UNet's prediction for windows of one size, ``(windows * batch, c, h, w)``, windows outermost.

    ``over`` is how many rows and columns of ``sample`` lie outside of the scene, before it begins.
    """
    count = len(windows)
    parts = torch.cat([sample[:, :, *window.slices] for window in windows])
    context = _repeated(context, count)
    added = {key: _repeated(value, count) for key, value in (options.get("added_cond_kwargs") or {}).items()}
    options = {**options, "added_cond_kwargs": added or None} if "added_cond_kwargs" in options else options
    for steer in acting:
        options = _joined(options, _what_it_adds(steer, parts, timestep, context, added, windows, scale, over))
    return plain(parts, timestep, context, **options)


def _what_it_adds(
    steer: Steer,
    parts: torch.Tensor,
    timestep: Any,
    context: torch.Tensor,
    added: dict[str, torch.Tensor],
    windows: Sequence[Window],
    scale: int,
    over: tuple[int, int],
) -> dict[str, Any]:
    """Return what a network adds to the UNet, by the names of the UNet's arguments."""
    network = steer.network
    places = [(w.top - over[0], w.left - over[1], w.height, w.width) for w in windows]
    pixels = [(scale * top, scale * left, scale * height, scale * width) for top, left, height, width in places]
    images = np.stack([steer.image.planes(*place, scale) for place in pixels])
    dtype, device = network.dtype, parts.device
    tensor = _channels(torch.from_numpy(images), network.config).to(device, dtype)
    batch = len(parts) // len(windows)
    if type(network).__name__ == "T2IAdapter":
        features = [steer.weight * feature.repeat_interleave(batch, 0) for feature in network(tensor)]
        return {"down_intrablock_additional_residuals": [feature.to(parts.dtype) for feature in features]}
    down, middle = network(
        parts.to(dtype),
        timestep,
        encoder_hidden_states=context.to(dtype),
        controlnet_cond=tensor.repeat_interleave(batch, 0),
        conditioning_scale=steer.weight,
        added_cond_kwargs={key: value.to(dtype) for key, value in added.items()},
        return_dict=False,
    )
    return {
        "down_block_additional_residuals": [one.to(parts.dtype) for one in down],
        "mid_block_additional_residual": middle.to(parts.dtype),
    }


def _joined(options: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the UNet's arguments with what another network adds."""
    joined = dict(options)
    for name, value in more.items():
        before = joined.get(name)
        if before is None:
            joined[name] = value
        elif isinstance(value, list):
            joined[name] = [one + two for one, two in zip(before, value, strict=True)]
        else:
            joined[name] = before + value
    return joined


def _channels(images: torch.Tensor, config: Any) -> torch.Tensor:
    """Return pictures with as many channels as the network takes: a grey network gets their mean."""
    wanted = config.get("conditioning_channels", config.get("in_channels", 3))
    if images.shape[1] == wanted:
        return images
    return images.mean(1, keepdim=True).expand(-1, wanted, -1, -1)


def _repeated(value: torch.Tensor, count: int) -> torch.Tensor:
    return value if count == 1 else value.repeat(count, *(1 for _ in value.shape[1:]))


def window_weight(height: int, width: int) -> torch.Tensor:
    """Return the weight of each pixel of a window, float32 ``(height, width)``: 1 inside, falling to the edges.

    Along each side it falls over ``OVERLAP`` of the window as a squared sine, so that two neighbours at that overlap
    add up to 1; it never reaches 0, since at the scene's border no other window may be there.
    """
    return _fall(height)[:, None] * _fall(width)


def _fall(side: int) -> torch.Tensor:
    reach = max(1, int(side * OVERLAP))
    distance = torch.minimum(torch.arange(side), side - 1 - torch.arange(side)).float() + 0.5
    return torch.sin(torch.clamp(distance / reach, max=1) * torch.pi / 2).square().clamp(min=1e-3)


@torch.no_grad()
def decode_windows(decode: Any, latents: torch.Tensor, native: int, scale: int) -> NDArray[np.float32]:
    """Decode a large scene window by window, in memory that does not grow with it (but for the scene itself).

    A window's border is decoded without its neighbourhood, so windows overlap by half of their side and the border is
    faded out with the weights of ``window_weight``.

    Args:
        decode: gives float32 ``(height, width)`` of latents ``(1, c, h, w)``.
        latents: ``(1, c, h, w)`` of the scene.
        native: side of a window, latent pixels.
        scale: pixels a latent pixel.

    Returns:
        float32 ``(h * scale, w * scale)``.
    """
    height, width = latents.shape[2:]
    total: NDArray[np.float32] = np.zeros((height * scale, width * scale), np.float32)
    weights = np.zeros_like(total)
    inner = native // 2
    for top in _decode_places(height, native, inner):
        for left in _decode_places(width, native, inner):
            window = Window(top, left, min(height, native), min(width, native))
            part = decode(latents[:, :, *window.slices].contiguous())
            rows, columns = (slice(s.start * scale, s.stop * scale) for s in window.slices)
            weight = _decode_weight(part.shape)
            total[rows, columns] += part * weight
            weights[rows, columns] += weight
    total /= weights
    return total


def _decode_places(side: int, native: int, stride: int) -> list[int]:
    last = side - native
    return [0] if last <= 0 else [*range(0, last, stride), last]


def _decode_weight(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return weights that are all but 0 over the outer eighth of a window and 1 over its inner half."""
    falls = []
    for side in shape:
        distance = np.minimum(np.arange(side), side - 1 - np.arange(side)) + 0.5
        share = np.clip((distance / side - 0.125) / 0.125, 0, 1)
        falls.append(np.maximum(np.sin(share * np.pi / 2) ** 2, 1e-6))
    weight: NDArray[np.float32] = np.outer(*falls).astype(np.float32)
    return weight
