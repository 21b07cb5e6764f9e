"""A Stable Diffusion XL 1.0 of the true architecture with random weights: the full-size path without a download.

It makes noise, but costs what the real one costs: every tensor has the shape that it has there. The configurations
are those of the public ``stabilityai/stable-diffusion-xl-base-1.0``; ``tiny`` is the same thing scaled down.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomlkit
import torch

from sar_gen.errors import SarGenError
from sar_gen.files import describe_os_error
from sar_gen.pipelines import quiet_diffusers

Size = Literal["full", "tiny"]
VOCABULARY = 49408
LENGTH = 77
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PARAMETERS = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
"""Of the published SDXL 1.0, and of ``full``."""


@dataclass(frozen=True)
class Shape:
    """What differs between the sizes.

    Attributes:
        resolution: pixels, width and height.
        unet: of ``UNet2DConditionModel``.
        vae: of ``AutoencoderKL``.
        text_encoder: of the first ``CLIPTextConfig``.
        text_encoder_2: of the second one, which has a projection.
    """

    resolution: int
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    text_encoder_2: dict[str, Any]


def _clip(width: int, layers: int, heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
        "hidden_act": activation,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published: transformers then takes the highest id of a text for its end
        "pad_token_id": 1,
    }


def _unet(
    blocks: tuple[int, ...], layers: tuple[int, ...], heads: tuple[int, ...], context: int, pooled: int, time: int
) -> dict[str, Any]:
    return {
        "block_out_channels": blocks,
        "transformer_layers_per_block": layers,
        "attention_head_dim": heads,  # diffusers' name for what is the number of heads here
        "cross_attention_dim": context,
        "addition_time_embed_dim": time,
        "projection_class_embeddings_input_dim": pooled + 6 * time,
        "addition_embed_type": "text_time",
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "use_linear_projection": True,
    }


SHAPES: dict[Size, Shape] = {
    "full": Shape(
        1024,
        {**_unet((320, 640, 1280), (1, 2, 10), (5, 10, 20), 2048, 1280, 256), "sample_size": 128},
        {"block_out_channels": (128, 256, 512, 512), "sample_size": 1024},
        _clip(768, 12, 12, "quick_gelu"),
        _clip(1280, 32, 20, "gelu"),
    ),
    "tiny": Shape(
        64,
        {**_unet((16, 32, 64), (1, 1, 2), (2, 4, 8), 32, 16, 8), "sample_size": 8, "norm_num_groups": 8},
        {"block_out_channels": (8, 8, 16, 16), "sample_size": 64, "norm_num_groups": 4},
        _clip(16, 2, 2, "quick_gelu"),
        _clip(16, 2, 2, "gelu"),
    ),
}


def build_part(part: str, size: Size, device: str = "cpu", seed: int = 0) -> Any:
    """Return one of ``PARTS``, float32, frozen, in evaluation mode, its weights drawn on ``device``.

    The weights are exact in bfloat16 and float16 alike, so that a folder of 16 bits, a frozen part in bfloat16 and
    its float32 copy are the same numbers. ``meta`` is a device too: shapes without memory.

    Args:
        part: among ``PARTS``.
        size: of the model.
        device: of the weights.
        seed: of the weights; they also depend on the kind of device.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    diffusers = quiet_diffusers()
    options = getattr(SHAPES[size], part)
    torch.manual_seed(seed + PARTS.index(part))
    with torch.device(device):
        if part == "unet":
            module = diffusers.UNet2DConditionModel(**options)
        elif part == "vae":
            module = diffusers.AutoencoderKL(
                **options,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                scaling_factor=0.13025,
                force_upcast=True,
            )
        else:
            kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
            module = kind(CLIPTextConfig(**options))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        if device != "meta":
            # Rounded to float16 first: what is below its normal range then has few enough bits for bfloat16, too.
            parameter.data = parameter.data.half().bfloat16().float()
    return module.eval()


def random_pipeline(size: Size, device: str = "cpu", seed: int = 0) -> Any:
    """Return a ``StableDiffusionXLPipeline`` with random weights, float32 and frozen, as ``load_pipeline`` does."""
    words = make_tokenizer()
    pipe = quiet_diffusers().StableDiffusionXLPipeline(
        **{part: build_part(part, size, device, seed) for part in PARTS},
        tokenizer=words,
        tokenizer_2=make_tokenizer(padding="!"),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_sdxl(
    folder: Path, size: Size, dtype: torch.dtype = torch.float16, *, device: str = "cpu", seed: int = 0
) -> Path:
    """Write a ``StableDiffusionXLPipeline`` with random weights and a card, whole or not at all.

    One part at a time is in memory; ``full`` is 6.9 GB of files in 16 bits. On a GPU the weights are drawn there.

    Args:
        folder: where to; its name is the id on the card. One that is there is replaced.
        size: of the model.
        dtype: of the files.
        device: where the weights are drawn.
        seed: of the weights.

    Raises:
        SarGenError: the folder cannot be written.
    """
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for part in PARTS:
            # float32 of the largest part is gone before the next one is made.
            build_part(part, size, device, seed).to(dtype).save_pretrained(beside / part, safe_serialization=True)
        make_tokenizer().save_pretrained(beside / "tokenizer")
        make_tokenizer(padding="!").save_pretrained(beside / "tokenizer_2")
        _scheduler().save_pretrained(beside / "scheduler")
        (beside / "model_index.json").write_text(json.dumps(_index(), indent=1), encoding="utf-8")
        (beside / "card.toml").write_text(tomlkit.dumps(_card(folder.name, size)), encoding="utf-8")
        # Not flushed to the disk first, as what was trained is: gigabytes that are made again in seconds.
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    except OSError as error:
        raise SarGenError(describe_os_error(folder, error)) from error
    return folder


def make_tokenizer(padding: str = "<|endoftext|>") -> Any:
    """Return a CLIP tokenizer of 49,408 words that nobody trained.

    As in the real one: 256 bytes, the same at the end of a word, 48,894 merges, and two marks. The merges here are the
    first pairs, triples and fours of small letters, inside and at the end of a word.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = list(itertools.islice(_merges(), VOCABULARY - 2 * len(letters) - 2))
    ends = [letter + "</w>" for letter in letters]
    words = [*letters, *ends, *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=padding)


def _merges() -> Iterator[tuple[str, str]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    for length in itertools.count(1):
        for start in itertools.product(letters, repeat=length):
            for end in letters:
                yield "".join(start), end
                yield "".join(start), end + "</w>"


def _scheduler() -> Any:
    return quiet_diffusers().EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )


def _card(name: str, size: Size) -> dict[str, Any]:
    return {
        "id": name,
        "title": f"Random weights, SDXL, {size}",
        "family": "sdxl",
        "strategy": "base",
        "resolution": SHAPES[size].resolution,
        "amplitude_encoding": "unknown",
        "training_data": "none: random weights",
        "warnings": ["Its weights are random; it makes noise."],
    }


def _index() -> dict[str, Any]:
    """Return ``model_index.json`` as diffusers writes it."""
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": quiet_diffusers().__version__,
        "add_watermarker": None,
        "force_zeros_for_empty_prompt": True,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
