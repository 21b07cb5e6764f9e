"""Training of the VAE: decoder whole or as LoRA, or both halves, by the modes of a strategy.

Crops, noise and rates follow from the seed and the step alone, so a run that was cut off and goes on is the run that
it would have been. Weights that are trained are float32 whatever the precision of the arithmetic. Losses:
``vae_losses``.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sar_gen import amplitude
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error
from sar_gen.folders import LORA_FILE, VAE_DECODER
from sar_gen.strategies import Strategy
from sar_gen.training import vae_losses
from sar_gen.training.config import OptimiserConfig, TrainingConfig, VaeConfig
from sar_gen.training.optimiser import adamw
from sar_gen.training.parts import lora_of
from sar_gen.training.rates import rate
from sar_gen.training.state import (
    Clock,
    Journal,
    check_same_run,
    latest,
    new_accelerator,
    read_journal,
    save_state,
    seed_of,
)

ENCODER = ("encoder.", "quant_conv.")
ADAPTER = "default"  # PEFT's name of the LoRA while it is trained
WEIGHTS, DISCRIMINATOR, AVERAGE = "vae.safetensors", "discriminator.safetensors", "average.safetensors"
Say = Callable[[str], None]


class Patches(Protocol):
    """What is trained on: ``sar_gen.training.dataset.Dataset``, or anything with these two."""

    @property
    def rows(self) -> Sequence[Any]:
        """``PatchRow`` (``key``, ``height``, ``width``, ``modality``), one a patch."""
        ...

    def pixels(self, index: int) -> NDArray[np.float32]:
        """Return ``(h, w)`` in [0, 1]: studio amplitude for ``sar``, grey for ``optical``."""
        ...


@dataclasses.dataclass(frozen=True)
class VaeResult:
    """What ``train_vae`` returns.

    Attributes:
        finished: all steps are done; else a state to go on from was written.
        step: steps done in all.
        seconds: of this call.
        losses: the weighted sum of the reconstruction's losses (all but the discriminator's), one a step of the run so
            far, earlier calls included.
        trainable: number of trained parameters.
        peak_memory: most bytes held, by torch on a CUDA device, by the process on a CPU.
    """

    finished: bool
    step: int
    seconds: float
    losses: tuple[float, ...]
    trainable: int
    peak_memory: int


def train_vae(
    config: TrainingConfig,
    vae: Any,
    row: Strategy,
    data: Patches,
    *,
    work: Path,
    encoding: str = "linear",
    resume: bool = False,
    minutes: float | None = None,
    say: Say = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    device: str = "auto",
) -> VaeResult:
    """Train ``vae`` in place; a finished run leaves it with the weights to save (the averaged ones, where asked for).

    Losses, in the model's grey: ``l1`` |x - y| + ``l2`` (x - y)² + ``kl`` KL (where the encoder is trained) +
    ``spectrum`` (``spectrum_loss`` + ``texture_loss``), means over all pixels or latents; from ``gan_start`` on also
    ``gan`` lambda (-mean D(y)), with lambda = ``gan_weight`` at the last trained matrix of the decoder, and a hinge
    discriminator trained beside it at the same rate (Adam, betas 0.5 and 0.9; arXiv 2012.09841).

    Args:
        config: of the run; ``vae``, ``data``, ``run`` and ``lora["vae_decoder"]`` are read.
        vae: AutoencoderKL; trained in float32. With a LoRA it gets a PEFT adapter.
        row: whose modes of encoder and decoder are followed.
        data: patches of one split; random crops of them, optical ones only where ``optical_share`` asks for them.
        work: folder of states and journal, of the VAE alone.
        encoding: of SAR pixels in the model's grey (``amplitude.to_model``); optical grey is taken as it is.
        resume: go on from the last state.
        minutes: budget of this call, after which a state is written.
        say: told what happens.
        stop: asked before each step; when true, a state is written and the call ends.
        device: ``cpu``; with ``auto`` or a CUDA device accelerate takes the one of its process.

    Raises:
        InputError: nothing of the VAE is trained, no patch fits the crop, ``work`` holds another run, or an optional
            package is missing.
        SarGenError: a loss is not finite, or ``work`` cannot be written.
    """
    from diffusers.training_utils import EMAModel

    clock, settings = Clock(minutes), config.vae
    batch = settings.batch or config.data.batch
    crops = Crops(data, settings, batch, config.run.seed, encoding, config.data.flips)
    check_modes(row)
    if row.vae_decoder == "lora":
        lora_targets(config, vae)
    accelerator = new_accelerator(config.run.precision, device)
    check_same_run(work, _settings(config, row, encoding), resume=resume, lasting=bool(accelerator.is_main_process))
    torch.manual_seed(config.run.seed)
    vae.to(torch.float32)
    trained = put_trainable(vae, row, config)
    torch.manual_seed(config.run.seed)
    critic: nn.Module = vae_losses.PatchDiscriminator() if settings.gan else nn.Identity()
    optimiser = build_optimiser(trained, settings)
    critic_optimiser = _critic_optimiser(critic, settings)
    if config.run.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    vae.train()
    compiled = _compile(vae, row) if config.run.compile else []
    model, judge, optimiser, critic_optimiser = accelerator.prepare(
        _Autoencoder(vae, row.vae_encoder != "frozen"), critic, optimiser, critic_optimiser
    )
    average = EMAModel(trained.values(), decay=settings.ema) if settings.ema else None
    _register(accelerator, trained, critic, average)
    start = 0
    if resume and (state := latest(work)) is not None:
        start, place = state
        accelerator.load_state(str(place))
        say(f"Going on after step {start}.")
    parts = _Parts(accelerator, model, judge, critic, optimiser, critic_optimiser, average, trained, _last(vae, row))
    step = saved = start
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    journal = Journal(work, start, tensorboard=config.run.tensorboard, write=bool(accelerator.is_main_process))
    count = sum(parameter.numel() for parameter in trained.values())
    done = f"steps {start + 1} to {settings.steps} of {batch} crops of {settings.crop} px"
    say(f"VAE: {count:,} trained parameters, {done}.")
    try:
        for pixels in crops.batches(start, settings.steps, accelerator.process_index):
            if clock.over or stop():
                break
            began = time.monotonic()
            values = _step(parts, config, pixels, step)
            step += 1
            journal.add(step, **values, seconds=round(time.monotonic() - began, 4))
            if step % config.run.save_every == 0 and step < settings.steps:
                save_state(accelerator, work, step, config.run.keep_last)
                saved = step
            if step % 50 == 0:
                say(f"VAE step {step} of {settings.steps}: loss {values['loss']:.4f}, {clock.seconds:.0f} s.")
        if step > saved:
            save_state(accelerator, work, step, config.run.keep_last)
    finally:
        journal.close()
        for module in compiled:
            module._compiled_call_impl = None
        vae.disable_gradient_checkpointing()
        vae.eval()
    finished = step >= settings.steps
    if finished and average is not None:
        average.copy_to(trained.values())
    losses = tuple(line["loss"] for line in read_journal(work))
    result = VaeResult(finished, step, clock.seconds, losses, count, _peak_memory(accelerator.device))
    accelerator.free_memory()
    return result


def check_modes(row: Strategy) -> None:
    """Check that a strategy trains something of the VAE, in a way that there is.

    Raises:
        InputError: it does not.
    """
    if row.vae_decoder == "frozen" and row.vae_encoder == "frozen":
        raise InputError(f"The strategy {row.name!r} trains nothing of the VAE; choose one with a VAE part.")
    if row.vae_encoder not in ("frozen", "full") or row.vae_decoder not in ("frozen", "full", "lora"):
        raise InputError("A VAE's encoder is trained whole or not, its decoder whole, as LoRA or not; change the row.")
    if row.vae_encoder == "full" and row.vae_decoder == "lora":
        raise InputError(
            "A VAE whose encoder is trained whole has a whole decoder; train both whole, or a LoRA alone."
        )


def put_trainable(vae: Any, row: Strategy, config: TrainingConfig) -> dict[str, nn.Parameter]:
    """Freeze the VAE but for what ``row`` trains, and return ``{name: parameter}`` of that.

    A LoRA's adapter is put on; its A is random, from torch's global generator, its B zero (arXiv 2106.09685).
    """
    vae.requires_grad_(False)
    if row.vae_decoder == "lora":
        from peft import LoraConfig as PeftConfig

        mine = config.lora.get("vae_decoder")
        lora = lora_of("vae_decoder", mine)
        vae.add_adapter(
            PeftConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=mine.dropout if mine else 0.0,
                target_modules=lora_targets(config, vae),
            ),
            adapter_name=ADAPTER,
        )
        trained = {name: p for name, p in vae.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    else:
        starts = (ENCODER if row.vae_encoder == "full" else ()) + (VAE_DECODER if row.vae_decoder == "full" else ())
        trained = {name: p for name, p in vae.named_parameters() if name.startswith(starts)}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def lora_targets(config: TrainingConfig, vae: Any) -> list[str]:
    """Return the full names of the decoder's layers (linear, convolutions) that a LoRA goes on.

    Raises:
        InputError: there is none.
    """
    ends = lora_of("vae_decoder", config.lora.get("vae_decoder")).targets
    names = [
        name
        for name, module in vae.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and f"{name}.".startswith(VAE_DECODER)
        and any(name == end or name.endswith(f".{end}") for end in ends)
    ]
    if not names:
        raise InputError(
            f"No layer of the VAE's decoder is named {', '.join(ends)}; correct lora.vae_decoder.targets."
        )
    return names


def build_optimiser(trained: dict[str, nn.Parameter], config: OptimiserConfig) -> torch.optim.Optimizer:
    """Return AdamW over the parameters: weight decay on matrices and kernels only, 8-bit states where asked for.

    Raises:
        InputError: 8-bit states were asked for without bitsandbytes or CUDA.
    """
    matrices = [p for p in trained.values() if p.ndim > 1]
    vectors = [p for p in trained.values() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return adamw([{**group, "lr": config.learning_rate} for group in groups], config.eight_bit, config.beta2)


class Crops:
    """Random crops for a training: a pure function of seed, step and process."""

    def __init__(
        self,
        data: Patches,
        config: VaeConfig,
        batch: int,
        seed: int,
        encoding: str,
        flips: Sequence[str] = (),
    ) -> None:
        """Choose the patches that a crop fits in.

        Raises:
            InputError: there is none, of SAR or of the optical images that were asked for.
        """
        self._data, self._side, self._seed, self._encoding = data, config.crop, seed, encoding
        self._flips = tuple(flips)
        optical = round(batch * config.optical_share)
        if config.optical_share and not optical:
            raise InputError(
                f"vae.optical_share of {config.optical_share:g} is no crop of a batch of {batch}; raise one of them."
            )
        self._counts = {"sar": batch - optical, "optical": optical}
        self._places: dict[str, list[int]] = {}
        for modality, count in self._counts.items():
            rows = [i for i, row in enumerate(data.rows) if row.modality == modality]
            self._places[modality] = [i for i in rows if self._fits(data.rows[i])]
            if count and not self._places[modality]:
                raise InputError(
                    f"No {modality} patch of the data has {config.crop} pixels a side ({len(rows)} are {modality}); "
                    "lower vae.crop or give other data."
                )

    def batch(self, step: int, process: int = 0) -> torch.Tensor:
        """Return the crops of a step, ``(batch, 3, crop, crop)`` float32 in [-1, 1]: SAR first, then optical."""
        random = np.random.default_rng([self._seed, step, process])
        cut = []
        for modality, count in self._counts.items():
            for place in random.integers(len(self._places[modality]) or 1, size=count):
                pixels = self._data.pixels(self._places[modality][place])
                top, left = (int(random.integers(size - self._side + 1)) for size in pixels.shape)
                crop = pixels[top : top + self._side, left : left + self._side]
                for axis, name in enumerate(("vertical", "horizontal")):
                    if name in self._flips and random.random() < 0.5:
                        crop = np.flip(crop, axis)
                cut.append(amplitude.to_model(crop, self._encoding) if modality == "sar" else crop)
        grey = torch.from_numpy(np.stack(cut).astype(np.float32))
        return (2 * grey - 1)[:, None].expand(-1, 3, -1, -1)

    def batches(self, start: int, end: int, process: int = 0) -> Iterator[torch.Tensor]:
        """Yield the batches of steps ``start`` to ``end - 1``; the next one is prepared meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[torch.Tensor] | None = None
            for step in range(start, end):
                now = ahead or pool.submit(self.batch, step, process)
                ahead = pool.submit(self.batch, step + 1, process) if step + 1 < end else None
                yield now.result()

    def _fits(self, row: Any) -> bool:
        return min(row.height, row.width) >= self._side


class _Autoencoder(nn.Module):
    """Encoder, a draw from the posterior, decoder: one forward pass, as accelerate wants it."""

    def __init__(self, vae: Any, encoder_trained: bool) -> None:
        super().__init__()
        self.vae = vae
        self._encoder_trained = encoder_trained

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reconstruction, and mean and logarithmic variance of the posterior."""
        with torch.set_grad_enabled(self._encoder_trained and torch.is_grad_enabled()):
            posterior = self.vae.encode(pixels).latent_dist
            latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a step needs."""

    accelerator: Any
    model: nn.Module  # as accelerate wraps it
    judge: nn.Module  # the discriminator, as accelerate wraps it
    critic: nn.Module  # the discriminator itself
    optimiser: Any
    critic_optimiser: Any
    average: Any
    trained: dict[str, nn.Parameter]
    last: nn.Parameter | None


def _step(parts: _Parts, config: TrainingConfig, pixels: torch.Tensor, step: int) -> dict[str, float]:
    """Make one step of the VAE and of the discriminator; return the losses, all before the step."""
    settings, accelerator = config.vae, parts.accelerator
    real = pixels.to(accelerator.device)
    now = rate(settings, step, settings.steps)
    for optimiser in (parts.optimiser, parts.critic_optimiser):
        for group in optimiser.param_groups:
            group["lr"] = now
    # Dropout of a LoRA draws from the global generator.
    torch.manual_seed(seed_of(config.run.seed, step, accelerator.process_index))
    noise = _noise(parts.model, real, seed_of(config.run.seed, step, accelerator.process_index))
    made, mean, logvar = parts.model(real, noise)
    made = made.float()
    losses = {"l1": (made - real).abs().mean(), "l2": (made - real).square().mean()}
    if config.row.vae_encoder != "frozen":
        losses["kl"] = vae_losses.kl_loss(mean, logvar)
    if settings.spectrum:
        losses["spectrum"] = vae_losses.spectrum_loss(made, real) + vae_losses.texture_loss(made, real)
    loss = sum(
        (getattr(settings, name) * value for name, value in losses.items()), torch.zeros((), device=real.device)
    )
    total = loss
    joined = bool(settings.gan) and step >= round(settings.gan_start * settings.steps) and parts.last is not None
    if joined:
        parts.critic.requires_grad_(False)
        with accelerator.autocast():
            answer = parts.critic(made)
        losses["gan"] = -answer.float().mean()
        losses["gan_weight"] = vae_losses.gan_weight(loss, losses["gan"], parts.last)
        total = loss + settings.gan * losses["gan_weight"] * losses["gan"]
        parts.critic.requires_grad_(True)
    parts.optimiser.zero_grad(set_to_none=True)
    accelerator.backward(total)
    norm = accelerator.clip_grad_norm_(parts.trained.values(), settings.clip or float("inf"))
    parts.optimiser.step()
    if parts.average is not None:
        parts.average.step(parts.trained.values())
    if joined:
        answers = parts.judge(torch.cat([real, made.detach()])).float()
        losses["critic"] = vae_losses.hinge_discriminator(*answers.chunk(2))
        parts.critic_optimiser.zero_grad(set_to_none=True)
        accelerator.backward(losses["critic"])
        parts.critic_optimiser.step()
    names = ["loss", "norm", *losses]
    numbers = torch.stack([value.detach().float().cpu() for value in (loss, norm, *losses.values())]).tolist()
    values = dict(zip(names, numbers, strict=True))
    if not np.isfinite(values["loss"]):
        raise SarGenError(f"The VAE's loss is not finite at step {step}; lower the learning rate, or use bf16.")
    return values | {"rate": now}


def _noise(model: nn.Module, pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the posterior's noise of a step, drawn on the CPU so that every device has the same."""
    vae = _unwrapped(model).vae
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (len(pixels), vae.config.latent_channels, pixels.shape[-2] // factor, pixels.shape[-1] // factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(pixels.device)


def _unwrapped(model: Any) -> Any:
    return getattr(model, "module", model)


def _last(vae: Any, row: Strategy) -> nn.Parameter | None:
    """Return the last trained matrix of the decoder, which the two gradients are compared at."""
    if row.vae_decoder == "frozen":
        return None
    found: list[nn.Parameter] = [p for p in vae.decoder.parameters() if p.requires_grad and p.ndim > 1]
    return found[-1] if found else None


def _critic_optimiser(critic: nn.Module, config: VaeConfig) -> torch.optim.Optimizer:
    parameters = list(critic.parameters()) or [nn.Parameter(torch.zeros(1))]  # an optimiser wants at least one
    return torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.5, 0.9))


def _compile(vae: Any, row: Strategy) -> list[Any]:
    """Compile the VAE's blocks one by one, and return them.

    The decoder's last layer stays outside: the gradients there (``gan_weight``) then need no compiled backward pass.
    """
    from torch._functorch import config as functorch

    functorch.donated_buffer = False  # a LoRA may leave the last layer alone: then a block runs backward twice
    blocks = [vae.encoder, vae.decoder.mid_block, *vae.decoder.up_blocks]
    for block in blocks:
        block.compile()
    return blocks


def _register(accelerator: Any, trained: dict[str, nn.Parameter], critic: nn.Module, average: Any) -> None:
    """Make accelerate's states hold trained weights, averages and the discriminator, instead of whole models."""
    from safetensors.torch import load_file, save_file

    def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def save(_models: Any, weights: list[Any], folder: str) -> None:
        weights.clear()
        if not accelerator.is_main_process:
            return
        save_file(plain(dict(trained)), Path(folder) / WEIGHTS)
        if critic.state_dict():
            save_file(plain(critic.state_dict()), Path(folder) / DISCRIMINATOR)
        if average is not None:
            shadows = dict(zip(trained, average.shadow_params, strict=True))
            count = {"optimization_step": str(average.optimization_step)}
            save_file(plain(shadows), Path(folder) / AVERAGE, metadata=count)

    def load(models: list[Any], folder: str) -> None:
        from safetensors import safe_open

        models.clear()
        kept = load_file(Path(folder) / WEIGHTS)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(kept[name])
            if critic.state_dict():
                critic.load_state_dict(load_file(Path(folder) / DISCRIMINATOR))
            if average is not None:
                with safe_open(Path(folder) / AVERAGE, framework="pt") as file:
                    average.optimization_step = int(file.metadata()["optimization_step"])
                    for name, shadow in zip(trained, average.shadow_params, strict=True):
                        shadow.copy_(file.get_tensor(name))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _settings(config: TrainingConfig, row: Strategy, encoding: str) -> dict[str, Any]:
    """Return what all calls of one run share."""
    lora = config.lora.get("vae_decoder")
    return {
        "base": config.base,
        "strategy": row.name,
        "encoding": encoding,
        "vae": dataclasses.asdict(config.vae),
        "data": dataclasses.asdict(config.data),
        "lora": dataclasses.asdict(lora) if lora else None,
        "seed": config.run.seed,
        "precision": config.run.precision,
    }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def latent_scale(vae: Any, batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each channel of the latents, drawn from the posterior, of many pictures.

    The variance of draws is that of the posterior's means plus the mean of its variances; nothing is drawn.

    Args:
        vae: AutoencoderKL.
        batches: ``(n, 3, h, w)`` in [-1, 1] each; all sizes may differ.

    Returns:
        Two ``(channels,)`` float64 tensors, of the VAE's own latents (before ``scaling_factor``).
    """
    parameter = next(vae.parameters())
    count, first, second = 0, torch.zeros(()), torch.zeros(())
    with torch.inference_mode():
        for pixels in batches:
            posterior = vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist
            mean, variance = posterior.mean.double().cpu(), posterior.var.double().cpu()
            count += mean.numel() // mean.shape[1]
            first = first + mean.sum(dim=(0, 2, 3))
            second = second + (mean.square() + variance).sum(dim=(0, 2, 3))
    if not count:
        raise InputError("There are no pictures to take the latents' scale from; give at least one.")
    mean = first / count
    return mean, (second / count - mean.square()).clamp_min(0).sqrt()


def fold_latent_scale(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Move the latents of a VAE, exactly, to what a denoiser expects: what it decodes stays the same.

    What diffusers does to latents z between VAE and denoiser, by the VAE's configuration, is
    (z - ``latents_mean`` or ``shift_factor``) * ``scaling_factor`` / ``latents_std``; after the fold the result has
    mean 0 and variance 1 in every channel, and the configuration stays as it is. With t and u the mean and standard
    deviation that z must have for that, z' = (z - mean) u / std + t is put into ``quant_conv`` (means; the posterior's
    logarithmic variances get 2 ln(u / std)) and its inverse into ``post_quant_conv``, both 1 x 1 convolutions, in
    float64.

    Args:
        vae: AutoencoderKL, float32, without a LoRA on the two convolutions.
        mean: ``(channels,)`` of the latents now (``latent_scale``).
        std: ``(channels,)``.

    Raises:
        InputError: the VAE has no such convolutions, or a channel does not vary.
    """
    if not all(isinstance(getattr(vae, name), nn.Conv2d) for name in ("quant_conv", "post_quant_conv")):
        raise InputError(
            "This VAE lacks quant_conv or post_quant_conv, into which the scale of its latents would go; "
            "train its decoder alone, which leaves the latents as they are."
        )
    if not bool((std > 0).all() and torch.isfinite(std).all() and torch.isfinite(mean).all()):
        raise InputError("A channel of the VAE's latents is the same everywhere; train the VAE longer first.")
    config, channels = vae.config, vae.config.latent_channels
    mean, std = mean.double().cpu(), std.double().cpu()
    target = _per_channel(
        getattr(config, "latents_mean", None), channels, getattr(config, "shift_factor", None) or 0.0
    )
    spread = _per_channel(getattr(config, "latents_std", None), channels, 1.0) / config.scaling_factor
    factor = spread / std
    with torch.no_grad():
        before, after = vae.quant_conv, vae.post_quant_conv
        weight, bias = before.weight.double().cpu(), before.bias.double().cpu()
        weight[:channels] *= factor[:, None, None, None]
        bias[:channels] = (bias[:channels] - mean) * factor + target
        bias[channels:] += 2 * factor.log()
        inverse, offset = after.weight.double().cpu(), after.bias.double().cpu()
        # z = (z' - t) / factor + mean
        offset += (inverse[:, :, 0, 0] * (mean - target / factor)).sum(dim=1)
        inverse /= factor[None, :, None, None]
        for layer, values in ((before, (weight, bias)), (after, (inverse, offset))):
            layer.weight.copy_(values[0])
            layer.bias.copy_(values[1])


def _per_channel(values: Sequence[float] | None, channels: int, otherwise: float) -> torch.Tensor:
    if values is None:
        return torch.full((channels,), otherwise, dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64)


def save_vae(vae: Any, row: Strategy, folder: Path, dtype: torch.dtype) -> Path:
    """Write what a strategy folder (``sar_gen.folders``) needs of a trained VAE, and return the file.

    - both halves whole: ``vae/diffusion_pytorch_model.safetensors``
    - decoder whole: the same file with ``decoder.*`` and ``post_quant_conv.*`` only
    - decoder LoRA: ``vae/pytorch_lora_weights.safetensors``, ``NAME.lora_A.weight``, ``NAME.lora_B.weight`` and
      ``NAME.alpha``

    Args:
        vae: as ``train_vae`` left it.
        row: whose modes say what is written.
        folder: the strategy folder.
        dtype: of the weights that are written.

    Raises:
        InputError: the strategy trains nothing of the VAE.
        SarGenError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    check_modes(row)
    if row.vae_decoder == "lora":
        name, tensors = LORA_FILE, _lora_tensors(vae)
    else:
        name = "diffusion_pytorch_model.safetensors"
        state = vae.state_dict()
        tensors = {k: v for k, v in state.items() if row.vae_encoder == "full" or k.startswith(VAE_DECODER)}
    kept = {
        key: value.detach().to("cpu", value.dtype if key.endswith(".alpha") else dtype).contiguous()
        for key, value in tensors.items()
    }
    path = folder / "vae" / name
    beside = path.with_name(f".{name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, beside, metadata={"format": "pt"})
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SarGenError(describe_os_error(path, error)) from error
    return path


def _lora_tensors(vae: Any) -> dict[str, torch.Tensor]:
    from peft.tuners.lora import LoraLayer

    tensors: dict[str, torch.Tensor] = {}
    for name, layer in vae.named_modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
            tensors[f"{name}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
            tensors[f"{name}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
            tensors[f"{name}.alpha"] = torch.tensor(float(layer.lora_alpha[ADAPTER]))
    return tensors


SIZES: dict[str, dict[str, Any]] = {
    "mini": {"block_out_channels": (32, 64, 128, 224), "layers_per_block": 2, "latent_channels": 16,
             "norm_num_groups": 16, "sample_size": 256},
    "tiny": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "latent_channels": 4,
             "norm_num_groups": 4, "sample_size": 64},
}  # fmt: skip
"""Random VAEs that can be built, all with latents 8 times as small a side, and no attention."""


def build_vae(size: Literal["mini", "tiny"]) -> Any:
    """Return a random AutoencoderKL in float32, from torch's global generator; ``scaling_factor`` is 1.

    Raises:
        InputError: the size is unknown.
    """
    from diffusers import AutoencoderKL

    if size not in SIZES:
        raise InputError(f"The VAE size {size!r} is unknown; choose one of {', '.join(SIZES)}.")
    return AutoencoderKL(
        **copy.deepcopy(SIZES[size]),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )
