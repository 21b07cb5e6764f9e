"""Training of a strategy on a base: the one core for the embedded base and for Stable Diffusion XL.

``train`` checks everything that can be checked, trains the VAE where the strategy says so (``training.vae``), then the
denoising side (UNet, text encoders, token), and writes a strategy folder that the studio's catalogue finds, or a whole
pipeline. accelerate decides where it runs: one process, or several started by ``accelerate launch`` (DDP, FSDP,
DeepSpeed). Step and seed alone decide patches, captions, noise and timesteps, so that a run that was interrupted goes
on exactly.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sar_gen.amplitude import to_model
from sar_gen.errors import InputError
from sar_gen.files import sha256_of
from sar_gen.folders import read_json
from sar_gen.pipelines import resolve_device
from sar_gen.settings import Settings
from sar_gen.training.config import OptimiserConfig, TrainingConfig
from sar_gen.training.dataset import Dataset, ShardDataset, open_dataset, open_manifest
from sar_gen.training.denoiser import Denoiser, LatentSource, RowCache, TextSource, text_width
from sar_gen.training.guide_planes import GuidePlanes
from sar_gen.training.losses import NoiseSchedule, noise_schedule, offset_noise, sampling_scheduler
from sar_gen.training.optimiser import adamw
from sar_gen.training.parts import (
    Base,
    Parts,
    find_base,
    load_pipeline,
    put_on,
    save_control,
    save_pipeline,
    save_strategy,
    trained_tensors,
)
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
from sar_gen.training.validation import reference_of, validate
from sar_gen.weights import weight_files

Say = Callable[[str], None]
Stop = Callable[[], bool]
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINED, AVERAGED = "trained.safetensors", "averaged.safetensors"
FOLDED = 512
"""Patches that the scale of a trained encoder's latents is taken from."""
FLUSH = 10
"""Steps between looks at the losses: each look waits for the device."""


@dataclass(frozen=True)
class TrainingResult:
    """How a call of ``train`` ended.

    Attributes:
        finished: the output is written; else a later call goes on.
        step: of the denoiser's optimiser.
        steps: that it is to make.
        folder: that was written, ``None`` until finished.
        seconds: of the call.
        trainable: parameters by part.
        peak_memory: bytes; of the device's allocator on CUDA, of the process on a CPU.
        losses: of every step of the run so far, earlier calls included.
    """

    finished: bool
    step: int
    steps: int
    folder: Path | None
    seconds: float
    trainable: dict[str, int]
    peak_memory: int
    losses: tuple[float, ...]


def train(
    config: TrainingConfig,
    settings: Settings,
    *,
    resume: bool = False,
    minutes: float | None = None,
    say: Say = print,
    stop: Stop = lambda: False,
) -> TrainingResult:
    """Train ``config.strategy`` on ``config.base`` and write ``config.output``.

    Args:
        config: what to do; checked before anything is loaded.
        settings: catalogue and device.
        resume: go on from the work folder's last state, where there is one.
        minutes: end this call after so long; a state is written, and the next call goes on.
        say: told how it goes, by the main process.
        stop: asked after each step; a state is written before the call ends.

    Raises:
        InputError: base, data or settings cannot be used together.
        SarGenError: a file cannot be written.
    """
    clock = Clock(minutes)
    device = resolve_device(settings.device)
    base = find_base(config.base, settings)
    check_inputs(config, base)
    resolution = config.data.resolution or base.spec.resolution
    data = open_dataset(config.data, resolution, config.run.seed)
    scheduler = read_json(base.folder / "scheduler" / "scheduler_config.json")
    schedule = noise_schedule(scheduler, config.denoiser.prediction, config.denoiser.zero_terminal_snr)
    if config.run.validate_every:
        reference_of(config, resolution, settings)
    pipe = load_pipeline(base)
    record = {**dataclasses.asdict(config), "base_files": _stamps(base)}
    vae_folder: Path | None = None
    modes = config.row.trained(base.spec.family)
    counts: dict[str, int] = {}
    if any(part.startswith("vae") for part in modes):
        from sar_gen.training import vae as vae_training

        work = config.work / "vae"
        patches = open_manifest(config.data, resolution, config.run.seed)
        found = vae_training.train_vae(
            config, pipe.vae, config.row, patches, work=work, resume=resume, minutes=minutes, say=say, stop=stop,
            encoding=base.spec.model_encoding, device=device,
        )  # fmt: skip
        counts["vae"] = found.trainable
        if not found.finished:
            peak = peak_memory(device)
            return TrainingResult(False, 0, config.denoiser.steps, None, clock.seconds, counts, peak, ())
        if config.row.vae_encoder != "frozen":
            fold_latents(pipe.vae, patches, base.spec.model_encoding, config.vae.crop)
        vae_folder = config.work / "vae-trained"
        vae_training.save_vae(pipe.vae, config.row, vae_folder, _type(config))
    run = None
    if any(not part.startswith("vae") for part in modes):
        run = _Run(config, base, pipe, data, schedule, settings, device, record, vae_digest=_digest(vae_folder))
        counts |= run.parts.counts
        finished = run.go(resume=resume, clock=clock, say=say, stop=stop)
        if not finished:
            return run.result(None, clock, counts)
    parts = run.whole_parts() if run else Parts(pipe, base.spec.family, config.row)
    folder = config.output
    if run is None or run.accelerator.is_main_process:
        _write(config, base, parts, schedule, vae_folder)
        say(f"{folder} is written.")
    if run is not None:
        run.accelerator.wait_for_everyone()
        return run.result(folder, clock, counts)
    return TrainingResult(True, 0, 0, folder, clock.seconds, counts, peak_memory(device), ())


def check_inputs(config: TrainingConfig, base: Base) -> None:
    """Refuse what cannot be trained, before anything is loaded.

    Raises:
        InputError: one sentence on the first thing that does not fit.
    """
    data, family = config.data, base.spec.family
    if family == "sd15" and "text_encoder_2" in config.lora:
        raise InputError("lora.text_encoder_2 is of SDXL; the base is of SD 1.5: remove it.")
    modes = config.row.trained(family)
    for part in config.lora:
        if modes.get(part) != "lora":
            raise InputError(f"lora.{part} has no use: the strategy {config.strategy!r} has no LoRA there; remove it.")
    if data.cache != "none" and data.flips:
        raise InputError("Flipped patches have other latents, which are not kept: set data.cache = 'none'.")
    if data.shards is not None and any(part.startswith("vae") for part in modes):
        raise InputError("The VAE is trained on random crops of a manifest's patches; give data.manifest, not shards.")
    if data.shards is not None and data.cache == "disk":
        raise InputError("Latents of streamed shards are not kept on disk; set data.cache to 'memory' or 'none'.")
    for wanted, package in ((config.run.tensorboard, "tensorboard"), (config.denoiser.eight_bit, "bitsandbytes")):
        if wanted and importlib.util.find_spec(package) is None:
            raise InputError(f"The run wants {package}, which is not installed; pip install {package}.")
    if "control" in modes:
        if len(modes) > 1 or config.whole:
            raise InputError("A ControlNet is trained alone, beside a frozen base; set strategy = 'control'.")
        if data.shards is not None or data.modality != "sar" or data.flips:
            raise InputError("A ControlNet is trained on a manifest of SAR patches without flips; correct data.")
        if data.cache == "none":
            raise InputError("Guides are made of centre crops, as latents that are kept; set data.cache to 'memory'.")
        start = config.guides.start
        if start is not None and not weight_files(start):
            raise InputError(f"{start} holds no network to start from; give the folder of a trained one.")
        if config.run.validate_every:
            raise InputError(
                "Previews know no guide; set run.validate_every = 0, and measure with 'sar_gen guides measure' after."
            )
    if config.whole and any(mode in ("lora", "learned") for mode in modes.values()):
        raise InputError("A whole pipeline is written of parts that are trained whole; LoRAs and tokens go on a base.")
    if config.whole and config.output.exists() and config.output.resolve() == base.folder.resolve():
        raise InputError(f"{config.output} is the base itself; give another output.")


def fold_latents(vae: Any, data: Dataset, encoding: str, crop: int) -> None:
    """Bring the latents of a VAE whose encoder was trained back to the scale that the denoiser knows.

    The scale is that of one crop each of up to ``FOLDED`` patches, spread evenly over the data.
    """
    from sar_gen.training.vae import fold_latent_scale, latent_scale

    count = min(FOLDED, len(data))

    def pictures() -> Iterator[torch.Tensor]:
        for i in range(count):
            place = i * len(data) // count
            pixels = data.pixels(place)[:crop, :crop]
            grey = to_model(pixels, encoding) if data.rows[place].modality == "sar" else pixels
            yield torch.from_numpy(grey).expand(1, 3, *grey.shape) * 2 - 1

    fold_latent_scale(vae, *latent_scale(vae, pictures()))


class _Run:
    """The denoising side in training."""

    def __init__(
        self,
        config: TrainingConfig,
        base: Base,
        pipe: Any,
        data: Dataset | ShardDataset,
        schedule: NoiseSchedule,
        settings: Settings,
        device: str,
        record: dict[str, Any],
        vae_digest: str,
    ) -> None:
        from accelerate.utils import DistributedDataParallelKwargs

        self.config, self.base, self.data, self.settings = config, base, data, settings
        self.record = {**record, "vae": vae_digest}
        options, dtype = config.denoiser, DTYPES[config.run.precision]
        # The last layer of a CLIP encoder is not used (penultimate states), so some parameters have no gradient.
        kwargs = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = new_accelerator(
            config.run.precision,
            device,
            gradient_accumulation_steps=options.accumulate,
            kwargs_handlers=[kwargs],
        )
        self.device = self.accelerator.device
        self.schedule = dataclasses.replace(schedule, cumulated=schedule.cumulated.to(self.device))
        self._sharded = self.accelerator.distributed_type.value in ("FSDP", "DEEPSPEED")
        if self._sharded and options.ema:
            raise InputError("denoiser.ema needs whole parameters on each process; set it to 0 here.")
        # What is sharded together has one dtype; accelerate's own policy casts it for the computation.
        self.parts = put_on(pipe, base.spec.family, config.row, config, torch.float32 if self._sharded else dtype)
        trains_text = self.parts.trains_text
        for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if getattr(pipe, part, None) is not None:
                getattr(pipe, part).to(self.device)
        module = Denoiser(pipe, trains_text=trains_text, control=self.parts.control)
        module.to(self.device)
        self.guides = None
        if self.parts.control is not None:
            assert isinstance(data, Dataset)
            self.guides = GuidePlanes(data, config)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            for part in (pipe.unet, pipe.vae):
                part.to(memory_format=torch.channels_last)  # what convolutions of 16 bits are fastest with
        if config.run.compile:
            module.unet.compile()
        optimiser = make_optimiser(self.parts, options)
        self.module, self.optimiser = self.accelerator.prepare(module, optimiser)
        self.averages = self._averages(options.ema)
        self.latents = LatentSource(
            pipe.vae,
            encode=self._encode,
            device=self.device,
            cache=self._latent_cache(pipe),
            crops=data.crops if isinstance(data, Dataset) else None,
        )
        self.text = TextSource(
            pipe,
            trained=trains_text,
            token=config.token if self.parts.tokens else None,
            dtype=dtype,
            device=self.device,
            cache=None if trains_text else self._text_cache(pipe),
            captions=() if trains_text else self._captions(),
        )
        if not self._sharded:
            self.accelerator.register_save_state_pre_hook(self._save)
            self.accelerator.register_load_state_pre_hook(self._load)
        self.step = 0

    def go(self, *, resume: bool, clock: Clock, say: Say, stop: Stop) -> bool:
        """Train until the last step, the end of the budget or a stop; return whether it is finished."""
        config, options, main = self.config, self.config.denoiser, self.accelerator.is_main_process
        work = config.work
        check_same_run(work, self.record, resume=resume, lasting=main)
        self.accelerator.wait_for_everyone()
        state = latest(work) if resume else None
        if state is not None:
            self.accelerator.load_state(str(state[1]))
            self.step = state[0]
        journal = Journal(work, self.step, tensorboard=config.run.tensorboard, write=main)
        if main:
            counts = ", ".join(f"{part} {count:,}" for part, count in self.parts.counts.items())
            say(f"Training {config.strategy} on {self.base.spec.id}, {self.device}: {counts} parameters.")
        batches = self._batches()
        waiting: list[tuple[int, torch.Tensor, float]] = []
        ended = False
        while self.step < options.steps and not ended:
            loss = self._step(batches)
            self.step += 1
            waiting.append((self.step, loss, rate(options, self.step - 1, options.steps)))
            last = self.step == options.steps
            if last or self.step % FLUSH == 0:
                self._flush(journal, waiting, clock, say)
            if config.run.validate_every and (last or self.step % config.run.validate_every == 0):
                self._validate(journal, say)
            ended = self._agree(clock.over or stop()) and not last
            if last or ended or self.step % config.run.save_every == 0:
                self._flush(journal, waiting, clock, say)
                save_state(self.accelerator, work, self.step, config.run.keep_last)
        journal.close()
        if ended and main:
            say(f"Stopped after step {self.step} of {options.steps}; the next call with --resume goes on from there.")
        return not ended

    def result(self, folder: Path | None, clock: Clock, counts: dict[str, int]) -> TrainingResult:
        """Return how the call ended."""
        losses = tuple(line["loss"] for line in read_journal(self.config.work) if "loss" in line)
        peak = peak_memory(str(self.device))
        steps = self.config.denoiser.steps
        return TrainingResult(folder is not None, self.step, steps, folder, clock.seconds, counts, peak, losses)

    def whole_parts(self) -> Parts:
        """Return the trained parts to be written: averaged where asked for, whole where they are spread out.

        Every process has to call it.
        """
        if self.averages is not None:
            self.averages.copy_to(list(self.parts.parameters()))
        if not self._sharded:
            return self.parts
        state = self.accelerator.get_state_dict(self.module)
        if not self.accelerator.is_main_process:
            return self.parts
        pipe = load_pipeline(self.base)
        parts = put_on(pipe, self.base.spec.family, self.config.row, self.config, torch.float32)
        Denoiser(pipe, trains_text=parts.trains_text, control=parts.control).load_state_dict(state)
        return parts

    def _step(self, batches: Any) -> torch.Tensor:
        """Make one step of the optimiser and return its mean loss, on the device."""
        options = self.config.denoiser
        factor = rate(options, self.step, options.steps) / options.learning_rate
        for group in self.optimiser.param_groups:
            group["lr"] = group["highest"] * factor
        losses = []
        for micro in range(options.accumulate):
            with self.accelerator.accumulate(self.module):
                loss = self._loss(next(batches), self.step * options.accumulate + micro)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and options.clip:
                    self.accelerator.clip_grad_norm_(self.module.parameters(), options.clip)
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        self.parts.after_step()
        if self.averages is not None:
            self.averages.step(list(self.parts.parameters()))
        return torch.stack(losses).mean()

    def _loss(self, batch: Any, number: int) -> torch.Tensor:
        options, schedule = self.config.denoiser, self.schedule
        generator = torch.Generator(self.device).manual_seed(
            seed_of(self.config.run.seed, number, self.accelerator.process_index)
        )
        latents = self.latents(batch.pixels, batch.indices, generator)
        text = self.text(batch.captions, batch.pixels.shape[1:], number)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noise = offset_noise(noise, options.noise_offset, generator)
        count = len(schedule.cumulated)
        timesteps = drawn_timesteps(options.timesteps, count, len(latents), generator)
        noisy = schedule.noised(latents, noise, timesteps)
        dtype = next(self.parts.pipe.unet.parameters()).dtype
        guide = None
        if self.guides is not None:
            guide = torch.from_numpy(self.guides(batch.indices, number, self.accelerator.process_index))
            guide = guide.to(self.device, dtype)
        found = self.module(noisy.to(dtype), timesteps, text, guide).float()
        errors = (found - schedule.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))
        return (errors * schedule.weights(timesteps, options.min_snr_gamma)).mean()

    def _batches(self) -> Any:
        every, steps = self.config.denoiser.accumulate, self.config.denoiser.steps
        first, last = self.step * every, steps * every
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if isinstance(self.data, ShardDataset):
            return self.data.batches(first, last, rank, world)
        return self.data.batches(first, last, rank, world, read=self.config.data.cache == "none")

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        return to_model(pixels, self.base.spec.model_encoding) if self.config.data.modality == "sar" else pixels

    def _cache_file(self, name: str) -> Path | None:
        rank = self.accelerator.process_index
        return self.config.work / "cache" / f"{name}-{rank}.f16" if self.config.data.cache == "disk" else None

    def _latent_cache(self, pipe: Any) -> RowCache | None:
        if self.config.data.cache == "none" or isinstance(self.data, ShardDataset):
            return None
        channels, scale = pipe.vae.config.latent_channels, 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        shapes = [(2, channels, h // scale, w // scale) for h, w in self.data.crop_sizes()]
        facts = [self.record["base_files"], self.record["vae"]]
        return RowCache(shapes, self._cache_file("latents"), facts, device=self.device)

    def _captions(self) -> tuple[str, ...]:
        if self.config.data.cache == "none" or isinstance(self.data, ShardDataset):
            return ()
        return tuple(dict.fromkeys(caption for row in self.data.rows for caption in row.captions))

    def _text_cache(self, pipe: Any) -> RowCache | None:
        if self.config.data.cache == "none" or isinstance(self.data, ShardDataset):
            return None
        count = len(self._captions()) + 1
        shapes = [(text_width(pipe),)] * count
        return RowCache(shapes, self._cache_file("text"), self.record["base_files"], device=self.device)

    def _averages(self, decay: float) -> Any:
        if not decay:
            return None
        from diffusers.training_utils import EMAModel

        return EMAModel(list(self.parts.parameters()), decay=decay, foreach=self.device.type == "cuda")

    def _flush(self, journal: Journal, waiting: list[tuple[int, torch.Tensor, float]], clock: Clock, say: Say) -> None:
        if not waiting:
            return
        losses = torch.stack([loss for _, loss, _ in waiting])
        losses = self.accelerator.reduce(losses, "mean").cpu().tolist()
        for (step, _, now), loss in zip(waiting, losses, strict=True):
            journal.add(step, loss=loss, rate=now)
        step = waiting[-1][0]
        if self.accelerator.is_main_process and (step % (10 * FLUSH) == 0 or step == self.config.denoiser.steps):
            say(f"step {step} of {self.config.denoiser.steps}: loss {np.mean(losses):.4f}, {clock.seconds:.0f} s")
        waiting.clear()

    def _validate(self, journal: Journal, say: Say) -> None:
        if self.accelerator.is_main_process:
            parameters = list(self.parts.parameters())
            if self.averages is not None:
                self.averages.store(parameters)
                self.averages.copy_to(parameters)
            try:
                found = validate(self.parts.pipe, self.config, self.base.spec, self.schedule, self.step, self.settings)
            finally:
                if self.averages is not None:
                    self.averages.restore(parameters)
            journal.add(self.step, validation=found)
            say(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
        self.accelerator.wait_for_everyone()

    def _agree(self, ended: bool) -> bool:
        """Return whether any process wants to end; all end at the same step."""
        if self.accelerator.num_processes == 1:
            return ended
        flag = torch.tensor(float(ended), device=self.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _save(self, models: list[Any], weights: list[Any], folder: str) -> None:
        """Keep what is trained, and nothing of the frozen base, in accelerate's state."""
        from safetensors.torch import save_file

        weights.clear()
        if not self.accelerator.is_main_process:
            return
        tensors = trained_tensors(self.parts)
        save_file({name: p.detach().cpu().contiguous() for name, p in tensors.items()}, Path(folder) / TRAINED)
        if self.averages is not None:
            averages = dict(zip(tensors, self.averages.shadow_params, strict=True))
            facts = {"step": str(self.averages.optimization_step)}
            kept = {name: tensor.cpu().contiguous() for name, tensor in averages.items()}
            save_file(kept, Path(folder) / AVERAGED, facts)

    def _load(self, models: list[Any], folder: str) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file

        models.clear()
        kept = load_file(Path(folder) / TRAINED)
        with torch.no_grad():
            for name, parameter in trained_tensors(self.parts).items():
                parameter.copy_(kept[name])
        if self.averages is None:
            return
        with safe_open(Path(folder) / AVERAGED, framework="pt") as file:
            self.averages.optimization_step = int(file.metadata()["step"])
            for name, average in zip(trained_tensors(self.parts), self.averages.shadow_params, strict=True):
                average.copy_(file.get_tensor(name))


def drawn_timesteps(law: str, count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw ``size`` timesteps of ``count``, uniform or (``cubic``) more of the noisy ones."""
    if law == "uniform":
        return torch.randint(0, count, (size,), generator=generator, device=generator.device)
    drawn = torch.rand((size,), generator=generator, device=generator.device)
    return ((1 - drawn**3) * count).long().clamp(max=count - 1)


def make_optimiser(parts: Parts, options: OptimiserConfig) -> torch.optim.Optimizer:
    """Return AdamW with a group for each part and for what has no weight decay (norms, biases, tokens).

    Raises:
        InputError: 8-bit AdamW was asked for and bitsandbytes is not installed.
    """
    rates = {
        "text_encoder": options.text_encoder,
        "text_encoder_2": options.text_encoder,
        "token": options.token,
    }
    groups = []
    for part, parameters in parts.trained.items():
        highest = rates.get(part) or options.learning_rate
        for decays in (True, False):
            own = [p for p in parameters if (p.ndim >= 2 and part != "token") == decays]
            if own:
                decay = options.weight_decay if decays else 0.0
                groups.append({"params": own, "lr": highest, "highest": highest, "weight_decay": decay})
    return adamw(groups, options.eight_bit, options.beta2)


def peak_memory(device: str) -> int:
    """Return the most bytes held so far: by torch on a CUDA device, by the process on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def _write(config: TrainingConfig, base: Base, parts: Parts, schedule: NoiseSchedule, vae_folder: Path | None) -> None:
    scheduler = sampling_scheduler(parts.pipe.scheduler, schedule)
    card = _card(config, base, parts)
    if parts.control is not None:
        save_control(config.output, parts.control, control_card(config, card), dtype=_type(config))
    elif config.whole:
        if scheduler is not None:
            parts.pipe.scheduler = scheduler
        save_pipeline(config.output, parts.pipe, card, dtype=_type(config))
    else:
        save_strategy(config.output, parts, card, dtype=_type(config), scheduler=scheduler, vae=vae_folder)


def _card(config: TrainingConfig, base: Base, parts: Parts) -> dict[str, Any]:
    """Return the card: what the base's card does not say already."""
    spec = base.spec
    title = config.title or f"{spec.title}: {config.row.title}"
    card: dict[str, Any] = {"id": config.output.name, "title": title, "strategy": config.strategy}
    if config.whole:
        kept = ("family", "resolution", "steps", "guidance", "model_encoding", "amplitude_encoding", "mono")
        card |= {name: getattr(spec, name) for name in kept}
    else:
        card["base"] = spec.id
    if parts.tokens:
        card["token"] = config.token
    if spec.licence:
        card["licence"] = spec.licence
    if spec.credit:
        card["credit"] = list(spec.credit)
    source = config.data.manifest or config.data.shards
    card["training_data"] = f"{Path(str(source)).name}, split {config.data.split}, {config.data.modality}" + (
        f", without {', '.join(config.data.leave_out)}" if config.data.leave_out else ""
    )
    return card


def control_card(config: TrainingConfig, card: dict[str, Any]) -> dict[str, Any]:
    """Return the card of a ControlNet; it is no kind's default until it is measured and its card says so."""
    kept = ("id", "title", "base", "licence", "credit", "training_data")
    words = {"map": "studio", "optical": "grey", "sar": "coarse, linear"}
    kinds = {kind: words[kind] for kind in dict.fromkeys(config.guides.kinds)}
    untrained = {"road": "fields"} if "map" in kinds else {}
    own = {"kind": "guides", "layout": "studio", "kinds": kinds, "untrained": untrained}
    return {**{name: card[name] for name in kept if name in card}, **own}


def _type(config: TrainingConfig) -> torch.dtype:
    return getattr(torch, config.run.save_type)


def _stamps(base: Base) -> list[Any]:
    """Return what tells a base's weight files apart, without reading them."""
    files = sorted(base.folder.glob("*/*.safetensors"))
    return [[path.relative_to(base.folder).as_posix(), path.stat().st_size] for path in files]


def _digest(folder: Path | None) -> str:
    if folder is None:
        return ""
    return json.dumps({path.name: sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))})
