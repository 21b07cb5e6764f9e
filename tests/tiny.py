"""Builders of tiny random checkpoints, in seconds on a CPU: pipelines (SDXL, SD 1.5), LoRAs, tokens, strategy folders.

Weights are random but fixed by their seed. Everything is written with the libraries' own ``save_pretrained`` or as
safetensors with the keys that trainers write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sar_gen.weights import read_header

WIDTH = 32  # of each text encoder
SIZE = 64  # pixels; latents are 8x8
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")  # as trainers choose them
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def tokenizer() -> Any:
    """Return a CLIP tokenizer whose words are letters (and ``sar``)."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "sa", "sar</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[("s", "a"), ("sa", "r</w>")], model_max_length=77)


def tiny_sdxl(folder: Path, seed: int = 0, unet_width: int = 16) -> Path:
    """Write a ``StableDiffusionXLPipeline`` of some 100,000 parameters to ``folder`` and return it."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(seed)
    words = tokenizer()
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(words, projected=False),
        text_encoder_2=_text_encoder(words, projected=True),
        tokenizer=words,
        tokenizer_2=words,
        unet=_unet(unet_width, context=2 * WIDTH, addition=8 * 6 + WIDTH),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def tiny_sd15(folder: Path, seed: int = 0) -> Path:
    """Write a ``StableDiffusionPipeline`` without a safety checker to ``folder`` and return it."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(seed)
    words = tokenizer()
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(words, projected=False),
        tokenizer=words,
        unet=_unet(16, context=WIDTH, addition=None),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def write_card(folder: Path, **values: Any) -> Path:
    """Write ``card.toml`` with these values (strings, numbers, lists and flat tables) and return its path."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, table in values.items():
        if isinstance(table, Mapping):
            lines += [f"[{key}]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in table.items())]
    path = folder / "card.toml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def checkpoint(folder: Path, family: str = "sdxl", seed: int = 0, **card: Any) -> Path:
    """Write a tiny pipeline with a card to ``folder`` (its name is the id) and return the folder."""
    (tiny_sdxl if family == "sdxl" else tiny_sd15)(folder, seed)
    defaults = {"resolution": SIZE, "steps": 2, "guidance": 1.5, "amplitude_encoding": "linear", "polarisation": "VV"}
    write_card(folder, **{"id": folder.name, "family": family, "strategy": "base", **defaults, **card})
    return folder


def add_lora(
    folder: Path,
    base: Path,
    parts: Iterable[str] = ("unet",),
    style: str = "diffusers",
    rank: int = 2,
    alpha: float | None = None,
    seed: int = 1,
    name: str = "pytorch_lora_weights.safetensors",
) -> Path:
    """Write a LoRA for the attention layers of ``base`` and return its file.

    Args:
        folder: where to.
        base: tiny pipeline folder.
        parts: among ``unet``, ``text_encoder``, ``text_encoder_2``.
        style: ``diffusers`` (new keys: text encoder 1 without ``text_model.``), ``old`` (with it) or ``kohya``.
        rank: of the LoRA.
        alpha: kohya files state it, and scale by alpha / rank; the rank when left out. Without effect on the others.
        seed: of its random values.
        name: of the file.
    """
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for part in parts:
        for key, tensor in read_header(base / part / WEIGHTS[part]).tensors.items():
            if not key.endswith(tuple(f"{name}.weight" for name in LINEAR)):
                continue
            module = key.removesuffix(".weight")
            bare = module.removeprefix("text_model.")
            if part != "unet":
                module = bare if style == "diffusers" and part == "text_encoder" else f"text_model.{bare}"
            down = torch.randn(rank, tensor.shape[1], generator=random)
            up = 0.2 * torch.randn(tensor.shape[0], rank, generator=random)
            if style == "kohya":
                te = "te1" if (base / "text_encoder_2").is_dir() else "te"
                prefix = {"unet": "lora_unet", "text_encoder": f"lora_{te}", "text_encoder_2": "lora_te2"}[part]
                flat = f"{prefix}_{module.replace('.', '_')}"
                tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
                tensors[f"{flat}.alpha"] = torch.tensor(float(rank if alpha is None else alpha))
            else:
                tensors |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return folder / name


def add_token(folder: Path, rows: int = 1, sdxl: bool = True, seed: int = 2, width: int = WIDTH) -> Path:
    """Write ``token.safetensors`` with ``clip_l`` (and ``clip_g``) and return it."""
    random = torch.Generator().manual_seed(seed)
    tables = {key: torch.randn(rows, width, generator=random) for key in ("clip_l", "clip_g")[: 2 if sdxl else 1]}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tables, folder / "token.safetensors")
    return folder / "token.safetensors"


def add_full(folder: Path, base: Path, part: str, seed: int = 3, only: tuple[str, ...] = ("",)) -> Path:
    """Write a part of ``base`` with noise added to its weights (those whose names begin with ``only``); return it."""
    random = torch.Generator().manual_seed(seed)
    tensors = load_file(base / part / WEIGHTS[part])
    moved = {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=random)
        for key, tensor in tensors.items()
        if key.startswith(only)
    }
    (folder / part).mkdir(parents=True, exist_ok=True)
    save_file(moved, folder / part / WEIGHTS[part])
    return folder / part


def add_vae_lora(folder: Path, base: Path, rank: int = 2, seed: int = 4) -> Path:
    """Write a LoRA on two convolutions and a linear layer of the VAE decoder and return its file."""
    random = torch.Generator().manual_seed(seed)
    names = ("decoder.conv_in", "decoder.conv_out", "decoder.mid_block.attentions.0.to_q")
    tensors = {}
    for name in names:
        out, into, *kernel = read_header(base / "vae" / WEIGHTS["vae"]).tensors[f"{name}.weight"].shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, into, *kernel, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, *(1 for _ in kernel), generator=random)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    path = folder / "vae" / "pytorch_lora_weights.safetensors"
    save_file(tensors, path)
    return path


def strategy_folder(folder: Path, base: Path, strategy: str, seed: int = 10) -> Path:
    """Write a strategy folder with a card (its name is the id) on the tiny SDXL pipeline ``base`` and return it."""
    from sar_gen.strategies import strategy as row

    modes = row(strategy).trained()
    loras = [part for part in ("unet", "text_encoder", "text_encoder_2") if modes.get(part) == "lora"]
    if loras:
        add_lora(folder, base, loras, seed=seed)
    for i, part in enumerate(("unet", "text_encoder", "text_encoder_2")):
        if modes.get(part) == "full":
            add_full(folder, base, part, seed=seed + 1 + i)
    if "token" in modes:
        add_token(folder, seed=seed + 5)
    if modes.get("vae_decoder") == "lora":
        add_vae_lora(folder, base, seed=seed + 6)
    elif modes.get("vae_encoder") == "full":
        add_full(folder, base, "vae", seed=seed + 7)
    elif modes.get("vae_decoder") == "full":
        add_full(folder, base, "vae", seed=seed + 8, only=("decoder.", "post_quant_conv."))
    write_card(folder, id=folder.name, base=base.name, strategy=strategy)
    return folder


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )


def _unet(width: int, context: int, addition: int | None) -> Any:
    from diffusers import UNet2DConditionModel

    options: dict[str, Any] = {}
    if addition is not None:
        options = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": addition,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        }
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=8,
        norm_num_groups=8,
        sample_size=SIZE // 8,
        **options,
    )


def _text_encoder(words: Any, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def network(folder: Path, base: Path, seed: int = 20, layout: str = "studio", **card: Any) -> Path:
    """Write a ControlNet with a card (its name is the id) for the tiny pipeline ``base`` and return its folder.

    Its last layers are not zero, as they are before training, so that it changes the picture.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel

    from sar_gen.conditioning import PLANES

    torch.manual_seed(seed)
    channels = len(PLANES) if layout == "studio" else 3
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    control = ControlNetModel.from_unet(unet, conditioning_channels=channels)
    with torch.no_grad():
        for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            block.weight.normal_(std=0.2)
        seen = control.controlnet_cond_embedding
        for layer in (seen.conv_in, *seen.blocks, seen.conv_out):  # wide enough for what it sees to matter
            layer.weight.normal_(std=2 / layer.weight[0].numel() ** 0.5)
    control.save_pretrained(folder)
    kinds = {"map": "studio", "optical": "grey", "sar": "linear"}
    write_card(
        folder, **{"id": folder.name, "kind": "guides", "base": base.name, "layout": layout, "kinds": kinds, **card}
    )
    return folder


def adapter(folder: Path, base: Path, seed: int = 21, **card: Any) -> Path:
    """Write a T2I-Adapter for pictures with a card for the tiny SD 1.5 pipeline ``base`` and return its folder."""
    from diffusers import T2IAdapter

    torch.manual_seed(seed)
    widths = json.loads((base / "unet" / "config.json").read_text())["block_out_channels"]
    made = T2IAdapter(channels=widths, num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter")
    made.save_pretrained(folder)
    defaults = {"id": folder.name, "kind": "guides", "base": base.name, "kinds": {"optical": "picture"}}
    write_card(folder, **{**defaults, **card})
    return folder
