"""Checkpoint folders that look right from outside and are a few kilobytes: made without torch, never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONTEXT = {"sdxl": 2048, "sd15": 768}
UNET_KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def weights(path: Path, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Path:
    """Write a safetensors file of random float32 tensors."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}, path)
    return path


def pipeline(folder: Path, family: str = "sdxl", *, variant: str = "", size: int = 8, seed: int = 0) -> Path:
    """Write a diffusers layout: configurations, words and one or two tensors a part (``size`` rows in the UNet)."""
    sdxl = family == "sdxl"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if sdxl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if sdxl:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["force_zeros_for_empty_prompt"] = True
    else:
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    _json(folder / "model_index.json", index)
    _json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    _json(folder / "unet" / "config.json", {"cross_attention_dim": CONTEXT[family], "sample_size": 8})
    _json(folder / "vae" / "config.json", {"block_out_channels": [1, 1, 1, 1]})
    dot = f".{variant}" if variant else ""
    weights(folder / "unet" / f"diffusion_pytorch_model{dot}.safetensors", {UNET_KEY: (size, CONTEXT[family])}, seed)
    weights(
        folder / "vae" / f"diffusion_pytorch_model{dot}.safetensors",
        {"encoder.conv_in.weight": (2, 3, 3, 3), "decoder.conv_out.weight": (3, 2, 3, 3)},
        seed,
    )
    for part, width in (("text_encoder", 768), ("text_encoder_2", 1280))[: 2 if sdxl else 1]:
        _json(folder / part / "config.json", {"hidden_size": width})
        weights(folder / part / f"model{dot}.safetensors", {"embeddings.token_embedding.weight": (4, width)}, seed)
        words = folder / part.replace("text_encoder", "tokenizer")
        _json(words / "vocab.json", {"a</w>": 0})
        (words / "merges.txt").write_text("#version: 0.2\n")
        _json(words / "tokenizer_config.json", {})
    return folder


def lora(path: Path, context: int = 2048, prefix: str = "unet", rank: int = 4) -> Path:
    """Write a LoRA of one layer, with PEFT's keys."""
    key = f"{prefix}.{UNET_KEY.removesuffix('.weight')}"
    return weights(path, {f"{key}.lora_A.weight": (rank, context), f"{key}.lora_B.weight": (8, rank)})


def _json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
