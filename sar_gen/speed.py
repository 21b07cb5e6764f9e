"""How the denoiser is made to work faster: changes to what a UNet's ``forward`` does, for the length of one call.

Each is a context that puts another function in the place of ``forward`` and the old one back, so that they can be
nested, and work with every pipeline, sampler, guide and placement. Innermost first: ``narrowed``, ``reused``, the
windows and networks of ``steering``, ``guided``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sar_gen.forwards import Forward, replaced, unet_output
from sar_gen.nests import mapped
from sar_gen.profiles import Switches
from sar_gen.steering import acts


@dataclass
class StepClock:
    """Which step is being computed; whoever runs the pipeline sets it before each call of the UNet."""

    step: int = 0


@contextmanager
def narrowed(unet: Any) -> Iterator[None]:
    """Let a UNet take and give float32 latents, whatever its own dtype, while this lasts.

    The sampler then adds up its steps in float32: only what happens inside of the UNet is rounded to its dtype.

    Args:
        unet: diffusers' UNet2DConditionModel, in any floating dtype.
    """
    dtype = unet.dtype

    def make(plain: Forward) -> Forward:
        def forward(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **options: Any) -> Any:
            wanted = options.pop("return_dict", True)
            options = {name: _cast(value, dtype) for name, value in options.items()}
            given = (_cast(sample, dtype), timestep, _cast(encoder_hidden_states, dtype))
            return unet_output(plain(*given, **options, return_dict=False)[0].to(sample.dtype), wanted)

        return forward

    with replaced(unet, make):
        yield


@contextmanager
def guided(pipe: Any, start: float, end: float, clock: StepClock) -> Iterator[None]:
    """Compute the unconditional branch only in a share of the steps while this lasts (arXiv 2404.07724).

    In the others the pipeline gets the prompt's prediction for both branches: guidance of any scale then leaves it as
    it is.

    Args:
        pipe: diffusers pipeline; it says whether there are two branches, and how many steps.
        start: share of the steps before guidance sets in.
        end: share of the steps after which it ends.
        clock: which step it is.
    """
    if (start, end) == (0.0, 1.0):
        yield
        return

    def make(plain: Forward) -> Forward:
        def forward(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **options: Any) -> Any:
            both = len(sample)
            if not pipe.do_classifier_free_guidance or acts(start, end, clock.step, pipe.num_timesteps):
                return plain(sample, timestep, encoder_hidden_states, **options)
            wanted = options.pop("return_dict", True)
            options = {name: _second_half(value, both) for name, value in options.items()}
            half = both // 2
            found = plain(sample[half:], timestep, encoder_hidden_states[half:], **options, return_dict=False)[0]
            return unet_output(torch.cat([found, found]), wanted)

        return forward

    with replaced(pipe.unet, make):
        yield


@contextmanager
def reused(unet: Any, every: int, clock: StepClock) -> Iterator[None]:
    """Compute the UNet's deep features each ``every`` steps only, and use them again between (arXiv 2312.00858).

    Deep is all but the first level: between, the first block of each side sees the new latents, the timestep and the
    text, and the deeper ones give what they gave before. Where guidance ends, the prompt's half of them is used on.

    Args:
        unet: diffusers' UNet2DConditionModel.
        every: 1 computes all at every step.
        clock: which step it is; step 0 computes all.
    """
    if every == 1 or len(unet.down_blocks) < 2:
        yield
        return
    deep = [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]
    kept: dict[int, Any] = {}
    rows = {"kept": 0, "now": 0}
    fresh = True

    def block(number: int) -> Callable[[Forward], Forward]:
        def make(plain: Forward) -> Forward:
            def forward(*args: Any, **options: Any) -> Any:
                if fresh:
                    kept[number] = plain(*args, **options)
                    return kept[number]
                return mapped(kept[number], lambda tensor: tensor[-rows["now"] :])

            return forward

        return make

    def whole(plain: Forward) -> Forward:
        def forward(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **options: Any) -> Any:
            nonlocal fresh
            rows["now"] = len(sample)
            fresh = clock.step % every == 0 or rows["now"] > rows["kept"]
            if fresh:
                rows["kept"] = rows["now"]
            return plain(sample, timestep, encoder_hidden_states, **options)

        return forward

    with ExitStack() as stack:
        for number, module in enumerate(deep):
            stack.enter_context(replaced(module, block(number)))
        stack.enter_context(replaced(unet, whole))
        yield


@contextmanager
def inner(pipe: Any, switches: Switches, clock: StepClock, windows: bool) -> Iterator[None]:
    """Do what lies below the windows and networks of ``steering``.

    Args:
        pipe: diffusers pipeline.
        switches: what is wanted.
        clock: which step it is.
        windows: the scene is made of windows, which move at each step: nothing can be used again.
    """
    with ExitStack() as stack:
        # A UNet narrower than the text encoders has to be given what these make in its own dtype, too.
        if switches.wide_sampler or pipe.unet.dtype != pipe.text_encoder.dtype:
            stack.enter_context(narrowed(pipe.unet))
        if not windows:
            stack.enter_context(reused(pipe.unet, switches.reuse, clock))
        yield


@contextmanager
def wide_decoder(vae: Any) -> Iterator[None]:
    """Hold a VAE in float32 while this lasts; its weights come back unchanged. One that is on no device stays."""
    dtype = vae.dtype
    if dtype == torch.float32 or next(vae.parameters()).device.type == "meta":
        yield
        return
    vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        vae.to(dtype=dtype)


@contextmanager
def narrow_decoder(vae: Any) -> Iterator[None]:
    """Let a VAE decode in bfloat16, but for its last layer, while this lasts; no weight is changed.

    A VAE of 16 bits works in its own.
    """
    device = vae.device.type

    def last(plain: Forward) -> Forward:
        layer = vae.decoder.conv_out

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device, enabled=False):
                bias = None if layer.bias is None else layer.bias.float()
                return torch.nn.functional.conv2d(hidden.float(), layer.weight.float(), bias, padding=layer.padding)

        return forward

    with ExitStack() as stack:
        if next(vae.parameters()).device.type != "meta":
            stack.enter_context(replaced(vae.decoder.conv_out, last))
        if vae.dtype == torch.float32:
            stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        yield


def is_on(where: str, cuda: bool) -> bool:
    """Return whether a switch that is ``off``, ``gpu`` or ``on`` is on."""
    return where == "on" or (where == "gpu" and cuda)


def set_layout(unet: Any, channels_last: bool) -> None:
    """Lay a UNet's convolutions out with channels last, or as they were; nothing is done where they are so already."""
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    if not unet.conv_in.weight.is_contiguous(memory_format=wanted) or not channels_last:
        unet.to(memory_format=wanted)


def set_fused(unet: Any, fused: bool) -> None:
    """Make one matrix of query, key and value of each attention, of the weights that are there now; or undo it.

    A UNet with a LoRA in its attention stays as it is: fusing would lose it.
    """
    from diffusers.models.attention_processor import Attention

    if getattr(unet, "original_attn_processors", None) is not None:
        unet.unfuse_qkv_projections()
        unet.original_attn_processors = None
    for module in unet.modules():
        if isinstance(module, Attention):
            module.fused_projections = False
            for name in ("to_qkv", "to_kv"):
                if hasattr(module, name):
                    delattr(module, name)
    if fused and not any("lora_" in name for name, _ in unet.named_parameters()):
        unet.fuse_qkv_projections()


def quantised(unet: Any, kind: str) -> Any:
    """Return a copy of a UNet whose linear layers calculate in fewer bits, by torchao; the UNet stays as it is.

    Args:
        unet: with the weights of the strategy at hand.
        kind: ``int8``: weights and, at each call, activations; ``fp8``: the same (GPUs from Ada and Hopper on).
    """
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    made = copy.deepcopy(unet)
    kinds = {"int8": Int8DynamicActivationInt8WeightConfig, "fp8": Float8DynamicActivationFloat8WeightConfig}
    quantize_(made, kinds[kind]())
    return made


@contextmanager
def with_unet(pipe: Any, unet: Any) -> Iterator[None]:
    """Let a pipeline use another UNet while this lasts; ``None`` leaves it its own."""
    own = pipe.unet
    if unet is not None:
        pipe.unet = unet
    try:
        yield
    finally:
        pipe.unet = own


def bfloat16_is_native() -> bool:
    """Return whether the processor calculates in bfloat16; elsewhere it is slower than float32."""
    wanted = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in wanted)


def unet_dtype(switches: Switches) -> str | None:
    """Return the UNet's dtype in a pipeline that is held in float32, ``None`` for the same."""
    return "bfloat16" if switches.precision == "auto" and bfloat16_is_native() else None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return mapped(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _second_half(value: Any, rows: int) -> Any:
    """Return the second half of every tensor that has so many rows."""
    return mapped(value, lambda tensor: tensor[rows // 2 :] if tensor.ndim and len(tensor) == rows else tensor)
