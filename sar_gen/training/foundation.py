"""The embedded foundation: a small base in the format of Stable Diffusion XL, made from scratch on optical pictures.

Four stages, each of which goes on where a call before it ended:

1. ``text``: tokenizers and both text encoders, distilled from a sentence encoder (``training.text``);
2. ``vae``: one VAE for optical grey and SAR, trained on both (``training.vae``), its latents brought to mean 0 and
   variance 1 in every channel, and what it keeps of held-out SAR measured;
3. the assembled pipeline with a random UNet: DPM-Solver++ 2M, v-prediction, zero terminal SNR, trailing spacing, and
   zeros for a prompt that is not there;
4. ``base``: the UNet trained on the optical pictures with their captions by the studio's own loop.

SAR strategies are then trained on that base like on any other.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from sar_gen import checkpoints, folders
from sar_gen.errors import InputError
from sar_gen.settings import Settings
from sar_gen.strategies import strategy
from sar_gen.training.config import STRICT, DataConfig, DenoiserConfig, Positive, RunConfig, TrainingConfig, VaeConfig

Size = Literal["mini", "toy", "tiny"]
Encoding = Literal["linear", "root", "db"]
Say = Callable[[str], None]
Stop = Callable[[], bool]

UNETS: dict[str, dict[str, Any]] = {
    # 21 million parameters: 43 MB in float16. Heads of 32 channels, which fast attention takes.
    "mini": {"block_out_channels": (96, 160, 192), "layers_per_block": 2, "norm_num_groups": 16, "heads": (3, 5, 6)},
    "toy": {"block_out_channels": (64, 128), "layers_per_block": 1, "norm_num_groups": 16, "heads": (2, 4)},
    "tiny": {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "heads": (2, 2)},
}
"""Denoisers: the first level has no attention. ``toy`` is for a CPU, ``tiny`` for tests."""
TOY_VAE: dict[str, Any] = {
    "block_out_channels": (16, 32, 64, 64), "layers_per_block": 1, "latent_channels": 8, "norm_num_groups": 8,
    "sample_size": 64,
}  # fmt: skip
TIME_WIDTH = 64
"""Width of each of the six numbers of an SDXL's size conditioning."""
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
SCALED_OVER = 512
"""Pictures that the scale of the latents is taken from, evenly spread, as many SAR as optical ones."""
HELD_OUT = 64
"""Held-out SAR patches that the VAE's reconstruction is measured on."""


@dataclass(frozen=True, config=STRICT)
class TextConfig:
    """Distillation of the text encoders.

    Attributes:
        steps: of the optimiser; ``None``: the size's own.
        folder: encoders that ``python -m sar_gen.training.text`` has made already, to be taken as they are.
    """

    steps: Positive | None = None
    folder: Path | None = None


@dataclass(frozen=True, config=STRICT)
class FoundationConfig:
    """How the base is made.

    Attributes:
        size: of its parts: ``mini`` (embedded), ``toy`` (a CPU), ``tiny`` (tests).
        resolution: pixels of training crops and of what it generates.
        encoding: grey that SAR has inside of the model (``amplitude.to_model``); optical grey is taken as it is.
        batch: optical patches a step.
        balance: of the optical patches.
        caption_dropout: share of captions that are dropped.
        text: the text encoders.
        vae: the VAE; ``optical_share`` says how much of a batch is optical.
        vae_start: pipeline folder whose VAE is trained further; ``None`` starts from random weights.
        vae_leave_out: terrains whose SAR the VAE does not see either.
        denoiser: the UNet.
        steps: of denoising, for the card.
        guidance: for the card.
    """

    size: Size = "mini"
    resolution: Positive = 256
    encoding: Encoding = "root"
    batch: Positive = 224
    balance: Literal["none", "terrain"] = "none"
    caption_dropout: float = 0.1
    text: TextConfig = field(default_factory=TextConfig)
    vae: VaeConfig = field(default_factory=lambda: VaeConfig(optical_share=0.5))
    vae_start: Path | None = None
    vae_leave_out: tuple[str, ...] = ()
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    steps: Positive = 24
    guidance: float = 1.5


class Joined:
    """Several data sets as one: the ``rows`` and ``pixels`` that the VAE's training reads."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = list(parts)
        self.rows = [row for part in self._parts for row in part.rows]
        self._ends = np.cumsum([len(part.rows) for part in self._parts])

    def pixels(self, index: int) -> NDArray[np.float32]:
        """Return ``(h, w)`` in [0, 1] of a row."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[part - 1]) if part else 0
        found: NDArray[np.float32] = self._parts[part].pixels(index - before)
        return found


def open_split(
    manifest: Path, split: str, modality: str, resolution: int, leave_out: Sequence[str] = (), seed: int = 0
) -> Any:
    """Return the patches of a split and modality, as the training reads them."""
    from sar_gen.training.dataset import open_dataset

    data = DataConfig(manifest=manifest, split=split, modality=modality, leave_out=tuple(leave_out))  # type: ignore[arg-type]
    return open_dataset(data, resolution, seed)


def text_stage(
    config: FoundationConfig,
    manifest: Path,
    folder: Path,
    *,
    device: str,
    minutes: float | None = None,
    say: Say = print,
    **options: Any,
) -> dict[str, Any] | None:
    """Distil the text encoders into ``folder/text``; ``None`` where time ended first.

    Args:
        config: of the foundation.
        manifest: whose captions, of both modalities, they are to know.
        folder: of the foundation.
        device: torch device.
        minutes: of the distillation in this call.
        say: told how it goes.
        **options: of ``training.text.make_text`` (another teacher, other words).
    """
    from sar_gen.training.manifest import read_manifest
    from sar_gen.training.text import STEPS, Plan, make_text

    if config.text.folder is not None:
        return take_text(config.text.folder, folder / "text")
    rows = [row for row in read_manifest(manifest) if row.split == "train"]
    captions = list(dict.fromkeys(caption for row in rows for caption in row.captions))
    if not captions:
        raise InputError(f"{manifest} has no captions in its train split; prepare the data with captions.")
    size = "mini" if config.size == "mini" else "tiny"
    result = make_text(
        folder / "text", folder / "text.work", size=size, captions=captions, minutes=minutes, resume=True,
        device=device, say=say, plan=Plan(steps=config.text.steps or STEPS[size]), **options,
    )  # fmt: skip
    return {"steps": result.step, "evaluation": result.evaluation} if result.finished else None


def take_text(made: Path, folder: Path) -> dict[str, Any]:
    """Copy tokenizers and text encoders that were made before, and return their evaluation.

    Raises:
        InputError: the folder is not one that ``training.text`` wrote.
    """
    missing = [name for name in ("text.json", *TEXT_PARTS) if not (made / name).exists()]
    if missing:
        raise InputError(f"{made} lacks {missing[0]}; make it with `python -m sar_gen.training.text {made}`.")
    found = folders.read_json(made / "text.json")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in TEXT_PARTS:
        shutil.copytree(made / name, folder / name)
    shutil.copy(made / "text.json", folder / "text.json")
    return {"steps": found.get("training", {}).get("step"), "evaluation": found}


def build_vae(size: Size) -> Any:
    """Return a random AutoencoderKL in float32, from torch's global generator."""
    from sar_gen.training import vae as vae_training

    if size != "toy":
        return vae_training.build_vae(size)
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **TOY_VAE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )


def start_vae(folder: Path) -> Any:
    """Return the VAE of a pipeline folder in float32.

    Raises:
        InputError: there is none.
    """
    from diffusers import AutoencoderKL

    if not (folder / "vae" / "config.json").is_file():
        raise InputError(f"{folder} holds no VAE to start from; give a pipeline folder as foundation.vae_start.")
    return AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32, use_safetensors=True)


def vae_stage(
    config: FoundationConfig,
    manifest: Path,
    folder: Path,
    run: RunConfig,
    *,
    device: str,
    minutes: float | None = None,
    say: Say = print,
    stop: Stop = lambda: False,
) -> dict[str, Any] | None:
    """Train the VAE on SAR and optical crops into ``folder/vae``; ``None`` where time ended first.

    Returns:
        ``parameters``, ``seconds`` (of this call), ``steps``, ``left_out`` and ``reconstruction`` of held-out SAR.
    """
    from sar_gen.training import vae as vae_training
    from sar_gen.training.vae_measures import reconstruction

    sar = open_split(manifest, "train", "sar", config.resolution, config.vae_leave_out)
    parts = [sar]
    if config.vae.optical_share:
        parts.append(open_split(manifest, "train", "optical", config.resolution))
    data = Joined(parts)
    torch.manual_seed(run.seed)
    vae = build_vae(config.size) if config.vae_start is None else start_vae(config.vae_start)
    if torch.device(device).type == "cuda":
        vae.to(memory_format=torch.channels_last)
    settings = TrainingConfig(
        base="foundation",
        strategy="vae-full",
        output=folder / "vae",
        data=DataConfig(manifest=manifest, batch=config.vae.batch or config.batch, leave_out=config.vae_leave_out),
        vae=config.vae,
        run=run,
    )
    work = folder / "vae.work"
    result = vae_training.train_vae(
        settings, vae, strategy("vae-full"), data, work=work, encoding=config.encoding, resume=True,
        minutes=minutes, say=say, stop=stop, device=device,
    )  # fmt: skip
    if not result.finished:
        return None
    vae.to(device).float().eval()
    mean, spread = vae_training.latent_scale(vae, _pictures(parts, config))
    vae_training.fold_latent_scale(vae, mean, spread)
    held_out = open_split(manifest, "reference", "sar", config.resolution)
    count = min(HELD_OUT, len(held_out.rows))
    chosen = [i * len(held_out.rows) // count for i in range(count)]
    found = reconstruction(
        vae, [centre(held_out.pixels(i), config.resolution) for i in chosen], config.encoding, device
    )
    vae.cpu().save_pretrained(folder / "vae")
    words = ", ".join(f"{name} {value:.3g}" for name, value in found.items() if isinstance(value, int | float))
    say(f"VAE, {count} held-out SAR patches: {words}.")
    return {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "steps": result.step,
        "left_out": list(config.vae_leave_out),
        "held_out": count,
        "reconstruction": found,
    }


def _pictures(parts: Sequence[Any], config: FoundationConfig) -> Any:
    """Yield pictures of each data set in turn, as the VAE takes them, ``(1, 3, side, side)`` in [-1, 1]."""
    from sar_gen.amplitude import to_model

    for part in parts:
        count = min(SCALED_OVER // len(parts), len(part.rows))
        for i in range(count):
            index = i * len(part.rows) // count
            grey = centre(part.pixels(index), config.resolution)
            if part.rows[index].modality == "sar":
                grey = to_model(grey, config.encoding)
            yield torch.from_numpy(2 * np.asarray(grey, np.float32) - 1).expand(1, 3, *grey.shape)


def centre(picture: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the middle ``side`` x ``side`` pixels; of a smaller picture all, cut to multiples of 8."""
    height, width = (min(size // 8 * 8, side) for size in picture.shape)
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def build_unet(size: Size, *, latent_channels: int, context: int, pooled: int, sample: int) -> Any:
    """Return a random UNet in float32, from torch's global generator.

    Args:
        size: name in ``UNETS``.
        latent_channels: of the VAE.
        context: sum of the widths of both text encoders.
        pooled: width of the second text encoder's projection.
        sample: side of the latents.
    """
    from diffusers import UNet2DConditionModel

    options = dict(UNETS[size])
    heads = options.pop("heads")
    levels = len(options["block_out_channels"])
    return UNet2DConditionModel(
        sample_size=sample,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        cross_attention_dim=context,
        attention_head_dim=heads,  # diffusers takes the number of heads under this name
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + pooled,
        transformer_layers_per_block=1,
        use_linear_projection=True,
        **options,
    )


def make_scheduler() -> Any:
    """Return DPM-Solver++ 2M with v-prediction, zero terminal SNR (arXiv 2305.08891) and trailing spacing."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )


def assemble(config: FoundationConfig, folder: Path, seed: int = 0, **card: Any) -> Path:
    """Write ``folder/start``: text encoders and VAE of the stages before, and a random UNet; return it.

    Args:
        config: of the foundation.
        folder: of the foundation, with ``text`` and ``vae``.
        seed: of the UNet.
        **card: more fields of the card.
    """
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from sar_gen.training.parts import save_pipeline

    text = folder / "text"
    first = CLIPTextModel.from_pretrained(text / "text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(text / "text_encoder_2")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    torch.manual_seed(seed)
    unet = build_unet(
        config.size,
        latent_channels=vae.config.latent_channels,
        context=first.config.hidden_size + second.config.hidden_size,
        pooled=second.config.projection_dim,
        sample=config.resolution // 2 ** (len(vae.config.block_out_channels) - 1),
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=CLIPTokenizer.from_pretrained(text / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(text / "tokenizer_2"),
        unet=unet,
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return save_pipeline(folder / "start", pipe, {**card_of(config), "id": "start", **card}, dtype=torch.float32)


def card_of(config: FoundationConfig) -> dict[str, Any]:
    """Return the fields of the card that follow from the settings."""
    return {
        "title": "Optical foundation",
        "family": "sdxl",
        "strategy": "foundation",
        "resolution": config.resolution,
        "steps": config.steps,
        "guidance": config.guidance,
        "scheduler": "DPM-Solver++ 2M, v-prediction, zero terminal SNR, trailing spacing",
        "model_encoding": config.encoding,
        "amplitude_encoding": "linear",
        "mono": "mean",
    }


def base_stage(
    config: FoundationConfig,
    manifest: Path,
    folder: Path,
    output: Path,
    run: RunConfig,
    settings: Settings,
    *,
    minutes: float | None = None,
    say: Say = print,
    stop: Stop = lambda: False,
    **card: Any,
) -> dict[str, Any] | None:
    """Train the UNet on optical pictures and write the base to ``output``; ``None`` where time ended first.

    Args:
        config: of the foundation.
        manifest: of the data.
        folder: of the foundation, with ``text`` and ``vae``.
        output: pipeline folder; its name is the id of the base.
        run: how the run goes; its ``work`` is not used.
        settings: device.
        minutes: of this call.
        say: told how it goes.
        stop: asked after each step.
        **card: more fields of the card (licence, credit).
    """
    from sar_gen.training.loop import train
    from sar_gen.training.parts import write_card

    start = folder / "start"
    if not (start / "card.toml").is_file():
        assemble(config, folder, run.seed, **card)
    result = train(
        base_config(config, manifest, start, output, dataclasses.replace(run, work=folder / "base.work")),
        settings, resume=True, minutes=minutes, say=say, stop=stop,
    )  # fmt: skip
    if not result.finished:
        return None
    known = checkpoints.read_card(output / "card.toml")
    kept = {name: value for name, value in known.items() if name in ("id", "training_data")}
    write_card(output, {**card_of(config), **card, **kept})
    shutil.rmtree(folder / "base.work" / "states", ignore_errors=True)
    sizes = {p.relative_to(output).as_posix(): p.stat().st_size for p in sorted(output.rglob("*.safetensors"))}
    return {
        "trainable": result.trainable,
        "peak_memory": result.peak_memory,
        "steps": result.steps,
        "loss": float(np.mean(result.losses[-50:])) if result.losses else None,
        "bytes": sizes,
    }


def base_config(config: FoundationConfig, manifest: Path, start: Path, output: Path, run: RunConfig) -> TrainingConfig:
    """Return the run that trains the UNet on optical pictures."""
    return TrainingConfig(
        base=str(start),
        strategy="unet-full",
        output=output,
        title="Optical foundation",
        whole=True,
        data=DataConfig(
            manifest=manifest,
            modality="optical",
            batch=config.batch,
            resolution=config.resolution,
            balance=config.balance,
            caption_dropout=config.caption_dropout,
        ),
        denoiser=config.denoiser,
        run=run,
    )
