"""The parts of a pipeline in training: loading a base, putting a strategy on it, and writing what was trained.

What is trained is kept in float32, what is frozen in the run's precision. LoRAs are PEFT's, the learned token is a
``tokens.TokenEmbedding``. Saved folders are those that ``sar_gen.folders`` describes and the studio loads.
"""

from __future__ import annotations

import inspect
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sar_gen import checkpoints, folders, pipelines
from sar_gen.checkpoints import CheckpointSpec
from sar_gen.conditioning import PLANES
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, sha256_of
from sar_gen.lora_layers import ADAPTER
from sar_gen.settings import Settings
from sar_gen.strategies import LORA, Lora, Strategy
from sar_gen.training.config import LoraConfig, TrainingConfig
from sar_gen.training.state import replace_folder
from sar_gen.training.tokens import TokenEmbedding, learn_token
from sar_gen.weights import weight_files

ENCODERS = ("text_encoder", "text_encoder_2")
EMBEDDED = 0.3
"""Standard deviation of a guide where it joins the noised latents' first features, at the start; theirs is 0.6."""
WEIGHTS = {part: "model" if part in ENCODERS else "diffusion_pytorch_model" for part in folders.PARTS["sdxl"]}


@dataclass(frozen=True)
class Base:
    """What training starts from."""

    spec: CheckpointSpec
    folder: Path


def find_base(name: str, settings: Settings, beside: Path | None = None) -> Base:
    """Return the base called ``name``: an id of the catalogue, or a pipeline folder.

    Args:
        name: id or folder.
        settings: where the catalogue is.
        beside: folder that a relative path may also be relative to.

    Raises:
        InputError: there is none, its files are missing, or it is not a base but something on one.
    """
    for folder in [Path(name).expanduser(), *([beside / name] if beside else [])]:
        if (folder / "model_index.json").is_file():
            folders.check_pipeline(folder)
            return Base(checkpoints.pipeline_at(folder), folder)
    spec = checkpoints.resolve(checkpoints.catalogue(settings), name)
    if spec.kind != "pipeline":
        raise InputError(f"{name} goes on the base {spec.base}; train on a base.")
    folder = checkpoints.local_folder(spec, settings)
    folders.check_pipeline(folder, spec.variant)
    return Base(spec, folder)


def load_pipeline(base: Base) -> Any:
    """Load a base in float32 on the CPU, every part frozen: what is trained starts exactly where the base is."""
    return pipelines.load_pipeline(base.folder, base.spec.family, base.spec.variant, torch.float32)


@dataclass
class Parts:
    """A pipeline with a strategy's trainable parts on it.

    Attributes:
        pipe: the pipeline; its modules are those that are trained.
        family: of the base.
        row: the strategy.
        tokens: ``{encoder: its TokenEmbedding}``.
        trained: ``{part: parameters that are trained}``, the token's under ``token``.
        control: the ControlNet, where one is trained.
    """

    pipe: Any
    family: str
    row: Strategy
    tokens: dict[str, TokenEmbedding] = field(default_factory=dict)
    trained: dict[str, list[torch.nn.Parameter]] = field(default_factory=dict)
    control: Any = None

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield every trained parameter."""
        return itertools.chain.from_iterable(self.trained.values())

    @property
    def counts(self) -> dict[str, int]:
        """Trained parameters by part."""
        return {part: sum(p.numel() for p in found) for part, found in self.trained.items()}

    @property
    def trains_text(self) -> bool:
        """Whether what the text encoders give changes while training."""
        return any(part in self.trained for part in (*ENCODERS, "token"))

    def after_step(self) -> None:
        """Do what follows each step of the optimiser: bring the token's rows back to the table's spread."""
        for token in self.tokens.values():
            token.keep_spread()


def put_on(pipe: Any, family: str, row: Strategy, config: TrainingConfig, dtype: torch.dtype) -> Parts:
    """Put the trainable parts of a strategy's denoising side on a pipeline (the VAE's are ``training.vae``'s).

    Args:
        pipe: from ``load_pipeline``.
        family: of the base.
        row: the strategy.
        config: LoRA overrides, the token, the seed, gradient checkpointing.
        dtype: of what is frozen, the bases of LoRAs included.

    Raises:
        InputError: a LoRA's targets are in no layer of the part, or the tokenizer knows the token.
    """
    parts = Parts(pipe, family, row)
    modes = row.modes(family)
    torch.manual_seed(config.run.seed)  # PEFT draws the LoRAs' first values from torch's own generator
    for part in ("unet", *ENCODERS):
        mode = modes.get(part, "frozen")
        module = getattr(pipe, part, None)
        if module is None:
            continue
        if mode == "full":
            module.requires_grad_(True)
        else:
            module.to(dtype)
        if mode == "lora":
            own = config.lora.get(part)  # type: ignore[call-overload]
            add_lora(module, lora_of(part, own), own)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if trained:
            parts.trained[part] = trained
    if modes.get("token") == "learned":
        generator = torch.Generator().manual_seed(config.run.seed)
        for part in ENCODERS:
            encoder = getattr(pipe, part, None)
            if encoder is None:
                continue
            name = part.replace("text_encoder", "tokenizer")
            learned, tokenizer = learn_token(
                encoder, getattr(pipe, name), config.token, config.token_rows, config.token_init, generator
            )
            setattr(pipe, name, tokenizer)
            parts.tokens[part] = learned
            parts.trained.setdefault("token", []).append(learned.rows)
            if modes.get(part) == "full":
                # The frozen table is not the module's any more: words would be forgotten for the token's sake.
                parts.trained[part] = [p for p in encoder.parameters() if p.requires_grad and p is not learned.rows]
    if modes.get("control") == "full":
        parts.control = new_control(pipe.unet, attention=config.guides.attention)
        if config.guides.start is not None:
            pipelines.copy_weights(parts.control, weight_files(config.guides.start))
        parts.trained["control"] = list(parts.control.parameters())
        if config.run.gradient_checkpointing:
            parts.control.enable_gradient_checkpointing()
            parts.control.train()
    pipe.vae.to(torch.float32)  # SDXL's overflows in float16, and latents are made once
    if config.run.gradient_checkpointing:
        if "unet" in parts.trained or "control" in parts.trained or parts.trains_text:
            pipe.unet.enable_gradient_checkpointing()
            pipe.unet.train()  # diffusers checkpoints in training mode only; there is no dropout in it
        for part in ENCODERS:
            if parts.trains_text and getattr(pipe, part, None) is not None:
                encoder = getattr(pipe, part)
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
                encoder.train()
    return parts


def new_control(unet: Any, *, attention: bool) -> Any:
    """Return a ControlNet for a UNet: its encoder's weights, and zeros where it joins the UNet (arXiv 2302.05543).

    Args:
        unet: diffusers' UNet2DConditionModel.
        attention: with the UNet's transformers, which read the text; without, the network has its ResNets only.
    """
    from diffusers import ControlNetModel

    if attention:
        control = ControlNetModel.from_unet(unet, conditioning_channels=len(PLANES)).float()
        _open_embedding(control)
        return control.requires_grad_(True)
    config = unet.config
    names = inspect.signature(ControlNetModel.__init__).parameters
    options = {name: value for name, value in config.items() if name in names and not name.startswith("_")}
    options |= {
        "down_block_types": ("DownBlock2D",) * len(config.block_out_channels),
        "mid_block_type": "UNetMidBlock2D",
        "conditioning_channels": len(PLANES),
        "only_cross_attention": False,
    }
    control = ControlNetModel(**options)
    mine, theirs = control.state_dict(), unet.state_dict()
    copied = {
        name: theirs[name].float()
        for name, tensor in mine.items()
        if name in theirs and theirs[name].shape == tensor.shape
    }
    control.load_state_dict(copied, strict=False)
    _open_embedding(control)
    return control.requires_grad_(True)


@torch.no_grad()
def _open_embedding(control: Any) -> None:
    """Let the guide reach the network's encoder from the first step on: layers of unit variance (arXiv 1511.06422).

    By default what enters the encoder is zero as well as what leaves it, and the convolutions before it shrink the
    guide fifty times: nothing of it was learned in 100 steps of 8 patches. Zeros where the network joins the UNet are
    enough for it to begin as nothing.
    """
    embedding = control.controlnet_cond_embedding
    layers = (embedding.conv_in, *embedding.blocks, embedding.conv_out)
    values = torch.rand(4, layers[0].in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        values = layer(values)
        layer.weight.div_(values.std())
        values = torch.nn.functional.silu(values / values.std())
    layers[-1].weight.mul_(EMBEDDED)


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """Give a folder beside ``folder`` to write to; it takes its place once all is there.

    Raises:
        SarGenError: it cannot be written.
    """
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        replace_folder(beside, folder)
    except OSError as error:
        raise SarGenError(describe_os_error(folder, error)) from error


def save_control(folder: Path, control: Any, card: Mapping[str, Any], *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a ControlNet's folder with its card, whole or not at all; one that is there is replaced.

    Raises:
        SarGenError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    with _written(folder) as beside:
        control.save_config(beside)
        tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in control.state_dict().items()}
        save_file(tensors, beside / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        write_card(beside, {"id": folder.name, **card})
    return folder


def lora_of(part: str, override: LoraConfig | None) -> Lora:
    """Return the LoRA of a part: the table's, with what a run changes."""
    own = LORA[part]
    if override is None:
        return own
    rank = override.rank or own.rank
    alpha = override.alpha or (own.alpha * rank / own.rank)
    return Lora(rank, alpha, override.targets or own.targets)


def add_lora(module: Any, lora: Lora, override: LoraConfig | None = None) -> None:
    """Put a PEFT LoRA on a module's target layers; A is random, B zero, so that nothing changes yet.

    Raises:
        InputError: no layer has such a name.
    """
    from peft import LoraConfig as PeftLora

    names = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    if not any(name.endswith(tuple(lora.targets)) for name in names):
        raise InputError(
            f"No layer of the {type(module).__name__} ends in {', '.join(lora.targets)}; correct lora.….targets."
        )
    found = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,  # PEFT annotates a whole number and only divides by the rank
        lora_dropout=override.dropout if override else 0.0,
        init_lora_weights="gaussian",
        target_modules=list(lora.targets),
    )
    module.add_adapter(found, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


def save_strategy(
    folder: Path,
    parts: Parts,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
    scheduler: Any = None,
    vae: Path | None = None,
) -> Path:
    """Write a strategy folder, whole or not at all; one that is there is replaced.

    Args:
        folder: where to; its name is the id where the card has none.
        parts: what was trained.
        card: fields of ``card.toml``; the weight files' SHA-256 are added.
        dtype: of whole parts; LoRAs and tokens are written in float32.
        scheduler: written where its noise schedule differs from the base's.
        vae: folder whose ``vae`` is copied in (trained before).

    Raises:
        SarGenError: the folder cannot be written.
    """
    with _written(folder) as beside:
        _write_parts(beside, parts, dtype)
        if scheduler is not None:
            scheduler.save_pretrained(beside / "scheduler")
        if vae is not None:
            shutil.copytree(vae / "vae", beside / "vae")
        write_card(beside, {"id": folder.name, **card})
    return folder


def save_pipeline(folder: Path, pipe: Any, card: Mapping[str, Any], *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a whole pipeline with its card, to be a base; one that is there is replaced.

    The modules are cast to ``dtype`` for writing and back to float32.

    Raises:
        SarGenError: the folder cannot be written.
    """
    with _written(folder) as beside:
        modules = [pipe.unet, pipe.vae, pipe.text_encoder, *([pipe.text_encoder_2] if _second(pipe) else [])]
        kept = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
        try:
            for module in modules:
                module.to(dtype)
            pipe.save_pretrained(beside, safe_serialization=True)
        finally:
            for parameter, data in kept:
                parameter.data = data
        write_card(beside, {"id": folder.name, **card})
    return folder


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``card.toml`` with the SHA-256 of every weight file in the folder."""
    import tomlkit

    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))}
    known = {name: value for name, value in card.items() if value is not None}
    (folder / "card.toml").write_text(tomlkit.dumps({**known, "sha256": hashes}), encoding="utf-8")


def trained_tensors(parts: Parts) -> dict[str, torch.Tensor]:
    """Return every trained tensor by a stable name, ``part.number``: what a state keeps."""
    return {f"{part}.{i}": p for part, found in parts.trained.items() for i, p in enumerate(found)}


def _write_parts(folder: Path, parts: Parts, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    modes = parts.row.modes(parts.family)
    for part in ("unet", *ENCODERS):
        if modes.get(part) == "full":
            tensors = _plain_state(getattr(parts.pipe, part), parts.tokens.get(part))
            (folder / part).mkdir()
            contiguous = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, folder / part / f"{WEIGHTS[part]}.safetensors", {"format": "pt"})
    _write_loras(folder, parts.pipe, [part for part in ("unet", *ENCODERS) if modes.get(part) == "lora"])
    if parts.tokens:
        keys = {encoder: key for key, encoder in folders.TOKEN_KEYS.items()}
        rows = {keys[encoder]: token.rows.detach().float().cpu().clone() for encoder, token in parts.tokens.items()}
        save_file(rows, folder / folders.TOKEN_FILE)


def _write_loras(folder: Path, pipe: Any, names: Sequence[str]) -> None:
    """Write the LoRAs of several parts as one file, with their configuration (rank, alpha) in its metadata."""
    from peft.utils import get_peft_model_state_dict

    if not names:
        return
    options: dict[str, Any] = {}
    for part in names:
        module = getattr(pipe, part)
        state = get_peft_model_state_dict(module, adapter_name=ADAPTER, save_embedding_layers=False)
        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
        options[f"{part}_lora_layers"] = state
        options[f"{part}_lora_adapter_metadata"] = _plain_config(module.peft_config[ADAPTER])
    pipe.save_lora_weights(folder, weight_name=folders.LORA_FILE, safe_serialization=True, **options)


def _plain_config(config: Any) -> dict[str, Any]:
    """Return a PEFT configuration as JSON data."""
    data = config.to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in data.items()}


def _plain_state(module: Any, token: TokenEmbedding | None) -> dict[str, torch.Tensor]:
    """Return a module's tensors as the base names them, without the learned token's rows and place."""
    state = dict(module.state_dict())
    if token is None:
        return state
    name = next(name for name, layer in module.named_modules() if layer is token)
    del state[f"{name}.rows"]
    state[f"{name}.weight"] = token.weight[: token.known]
    return state


def _second(pipe: Any) -> bool:
    return getattr(pipe, "text_encoder_2", None) is not None
