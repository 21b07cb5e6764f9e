"""Few steps: a student that makes in one step what its teacher makes in several, and needs no guidance.

The teacher is the base with its own sampler and classifier-free guidance. It makes whole trajectories from noise,
which need no data, only prompts; of each, the latents at the student's few timesteps are kept. The student starts
as a copy of the base's UNet and learns, at each of these timesteps, the one DDIM step that arrives where the teacher
arrives (progressive distillation, arXiv 2202.00512, in one round over several teacher steps; the guidance is distilled
in, as in arXiv 2210.03142). There is no discriminator. What is written is a strategy: a UNet, and the sampler that
belongs to it.

A work folder holds ``trajectories/00000.safetensors`` (latents float16 ``(n, student steps + 1, c, h, w)``, prompts
int64 ``(n,)``, whole or not there at all) beside what ``training.state`` describes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from sar_gen.checkpoints import CheckpointSpec
from sar_gen.deltas import low_rank
from sar_gen.engine import encode_text
from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.folders import read_json
from sar_gen.pipelines import copy_weights, resolve_device
from sar_gen.settings import Settings
from sar_gen.speed import narrowed
from sar_gen.strategies import STRATEGIES
from sar_gen.training.batches import generator
from sar_gen.training.config import STRICT, OptimiserConfig, Positive, RunConfig
from sar_gen.training.loop import DTYPES, FLUSH, make_optimiser
from sar_gen.training.losses import NoiseSchedule, noise_schedule
from sar_gen.training.parts import Base, Parts, find_base, load_pipeline, save_strategy
from sar_gen.training.rates import rate
from sar_gen.training.state import Clock, Journal, check_same_run, latest, new_accelerator, save_state, seed_of
from sar_gen.weights import weight_files

Say = Callable[[str], None]
Stop = Callable[[], bool]
FOLDER = "trajectories"
TURBO = "turbo"


@dataclass(frozen=True, config=STRICT)
class TeacherConfig:
    """What the teacher makes.

    Attributes:
        steps: of the base's own sampler; a multiple of the student's.
        guidance: ``None``: the card's.
        trajectories: how many.
        batch: made at once.
    """

    steps: Positive = 20
    guidance: Annotated[float, Field(ge=1)] | None = None
    trajectories: Positive = 1024
    batch: Positive = 16


@dataclass(frozen=True, config=STRICT)
class StudentConfig(OptimiserConfig):
    """How the student learns.

    Attributes:
        steps: denoising steps that it needs.
        updates: steps of the optimiser.
        batch: pairs of neighbouring latents a step.
        start: strategy folder whose whole UNet the student starts from; ``None``: the base's.
        rank: only low-rank additions of this rank are trained, to matrices and convolutions, beside norms and biases:
            a strategy that is kept in a few megabytes (``deltas --rank``). They begin as what is nearest to ``start``.
    """

    steps: Positive = 4
    updates: Positive = 1000
    batch: Positive = 16
    start: Path | None = None
    rank: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class DistilConfig:
    """One distillation.

    Attributes:
        base: catalogue id or pipeline folder.
        strategy: ``turbo``.
        output: strategy folder that is written.
        prompts: that the teacher is given in turn; ``None`` takes the examples of the base's card.
        title: for the card.
        teacher: what the teacher makes.
        student: how the student learns.
        trajectories: work folder of another run whose trajectories are used; ``None``: its own.
        run: the rest; of it seed, precision, save_every, keep_last, save_type and work are used.
    """

    base: str
    strategy: Literal["turbo"]
    output: Path
    prompts: tuple[str, ...] | None = None
    title: str | None = None
    trajectories: Path | None = None
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.teacher.steps % self.student.steps:
            raise ValueError("teacher.steps should be a multiple of student.steps")
        if self.student.rank is not None and self.student.start is None:
            # Nearest to no change are two matrices of zeros, and neither of them has a gradient.
            raise ValueError("student.rank needs student.start, the whole student that is made small")

    @property
    def work(self) -> Path:
        """Folder of trajectories, states and journal."""
        return self.run.work or self.output.with_name(self.output.name + ".work")

    @property
    def made(self) -> Path:
        """Folder whose trajectories are used."""
        return self.trajectories or self.work


class LowRank(torch.nn.Module):
    """A parametrisation of a layer's weight: what it was, and a product of two matrices."""

    def __init__(self, change: torch.Tensor, rank: int) -> None:
        """Begin as the product of this rank that is nearest to a change, of the weight's shape."""
        super().__init__()
        up, down = low_rank(change.flatten(1), min(rank, *change.flatten(1).shape))
        self.up, self.down = torch.nn.Parameter(up.float()), torch.nn.Parameter(down.float())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that the layer uses."""
        return weight + (self.up @ self.down).view_as(weight)


def add_low_rank(unet: Any, tuned: dict[str, torch.Tensor], rank: int) -> list[torch.nn.Module]:
    """Leave a UNet's matrices and convolutions as they are, but for low-rank additions; return the layers.

    Args:
        unet: of the base.
        tuned: weights by name that it starts from; what has one dimension is taken over whole.
        rank: of the additions.
    """
    layers = []
    with torch.no_grad():
        for name, layer in list(unet.named_modules()):
            for key, parameter in list(layer.named_parameters(recurse=False)):
                new = tuned[f"{name}.{key}"].to(parameter)
                if parameter.ndim < 2:
                    parameter.copy_(new)
                    continue
                parameter.requires_grad_(False)
                parametrize.register_parametrization(layer, key, LowRank(new - parameter, rank), unsafe=True)
                layers.append(layer)
    return layers


@dataclasses.dataclass(frozen=True)
class DistilResult:
    """How a call of ``distil`` ended; ``folder`` is ``None`` until all is done, else what was written."""

    folder: Path | None
    trajectories: int
    step: int
    seconds: float


def distil(
    config: DistilConfig,
    settings: Settings,
    *,
    resume: bool = False,
    minutes: float | None = None,
    say: Say = print,
    stop: Stop = lambda: False,
) -> DistilResult:
    """Let the teacher make its trajectories, train the student on them, and write the strategy.

    Args:
        config: what to do.
        settings: catalogue and device.
        resume: go on with what is in the work folder; trajectories that are there are always used.
        minutes: end this call after so long; the next one goes on.
        say: told how it goes.
        stop: asked after each batch.

    Raises:
        InputError: the base is no pipeline, has no prompts, or the work folder holds another run.
        SarGenError: a file cannot be written.
    """
    clock = Clock(minutes)
    device = torch.device(resolve_device(settings.device))
    base = find_base(config.base, settings)
    prompts = config.prompts or base.spec.examples
    if not prompts:
        raise InputError(f"The card of {base.spec.title} has no examples; give prompts.")
    guidance = base.spec.guidance if config.teacher.guidance is None else config.teacher.guidance
    record = {**dataclasses.asdict(config), "prompts": list(prompts), "guidance": guidance}
    del record["output"]
    schedule = noise_schedule(read_json(base.folder / "scheduler" / "scheduler_config.json"))
    pipe = load_pipeline(base)
    pipe.to(device)
    check_same_run(config.work, record, resume=resume)
    texts = encode_prompts(pipe, prompts, guidance > 1)
    count = make_trajectories(pipe, config, texts, guidance, base.spec.resolution, clock, say, stop)
    if count < config.teacher.trajectories:
        say(f"Stopped after {count} of {config.teacher.trajectories} trajectories; --resume goes on.")
        return DistilResult(None, count, 0, clock.seconds)
    step = _learn(pipe, base, config, schedule, texts, base.spec.resolution, clock, resume, say, stop)
    if step < config.student.updates:
        say(f"Stopped after step {step} of {config.student.updates}; --resume goes on from there.")
        return DistilResult(None, count, step, clock.seconds)
    parts = Parts(pipe, base.spec.family, STRATEGIES[TURBO])
    card = turbo_card(config, base.spec, guidance)
    dtype = getattr(torch, config.run.save_type)
    save_strategy(config.output, parts, card, dtype=dtype, scheduler=student_scheduler(pipe.scheduler.config))
    say(f"{config.output} is written.")
    return DistilResult(config.output, count, step, clock.seconds)


def student_scheduler(config: Any) -> Any:
    """Return the sampler of the student: DDIM (arXiv 2010.02502) with the base's noise and trailing timesteps.

    Args:
        config: of the base's scheduler.
    """
    from diffusers import DDIMScheduler

    names = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type")
    kept = {name: config[name] for name in (*names, "rescale_betas_zero_snr") if name in config}
    return DDIMScheduler(**kept, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")


def student_timesteps(config: Any, steps: int) -> list[int]:
    """Return the student's timesteps, noisy first."""
    scheduler = student_scheduler(config)
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


def one_step_target(
    schedule: NoiseSchedule, before: torch.Tensor, after: torch.Tensor, t: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """Return what the UNet has to give at ``t`` for one DDIM step from ``before`` to arrive at ``after``.

    With a = sqrt(cumulated), b = sqrt(1 - cumulated), a DDIM step of the velocity v is
    ``x_s = (a_s a_t + b_s b_t) x_t + (b_s a_t - a_s b_t) v`` (arXiv 2202.00512, appendix D), solved for v; the noise
    follows from it as ``e = b_t x_t + a_t v``.

    Args:
        schedule: of the base.
        before: latents at ``t``, ``(n, c, h, w)``.
        after: latents at ``s``.
        t: ``(n,)`` timesteps.
        s: ``(n,)`` timesteps, -1 for clean latents.

    Returns:
        ``(n, c, h, w)``, velocity or noise as the schedule predicts.
    """
    cumulated = schedule.cumulated.to(before.device).double()
    shape = (-1, 1, 1, 1)
    of_t = cumulated[t].view(shape)
    of_s = torch.where(s >= 0, cumulated[s.clamp(min=0)], 1.0).view(shape)
    a_t, b_t, a_s, b_s = of_t.sqrt(), (1 - of_t).sqrt(), of_s.sqrt(), (1 - of_s).sqrt()
    velocity = (after - (a_s * a_t + b_s * b_t) * before) / (b_s * a_t - a_s * b_t)
    if schedule.prediction == "v_prediction":
        return velocity.to(before.dtype)
    return (b_t * before + a_t * velocity).to(before.dtype)


def encode_prompts(pipe: Any, prompts: Sequence[str], both: bool) -> dict[str, torch.Tensor]:
    """Return what the pipeline's encoders make of prompts, one a row, by the names of the pipeline's arguments.

    Args:
        pipe: diffusers pipeline.
        prompts: to encode.
        both: also the unconditional branch.
    """
    found = [encode_text(pipe, prompt, "", both) for prompt in prompts]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def shards(work: Path) -> list[Path]:
    """Return the files of trajectories that are there, in order."""
    return sorted((work / FOLDER).glob("*.safetensors"))


@torch.no_grad()
def make_trajectories(
    pipe: Any,
    config: DistilConfig,
    texts: Mapping[str, torch.Tensor],
    guidance: float,
    resolution: int,
    clock: Clock,
    say: Say,
    stop: Stop,
) -> int:
    """Let the teacher make the trajectories that are not there yet, a file a batch; return how many there are.

    The base's own pipeline makes them, with its sampler and guidance, its UNet in the run's precision and the latents
    in float32.
    """
    from safetensors.torch import save

    teacher, every = config.teacher, config.teacher.steps // config.student.steps
    files = -(-teacher.trajectories // teacher.batch)
    count = len(texts["prompt_embeds"])
    device = texts["prompt_embeds"].device
    side = resolution // pipe.vae_scale_factor
    pipe.unet.to(DTYPES[config.run.precision])
    try:
        for number in range(files):
            place = config.made / FOLDER / f"{number:05d}.safetensors"
            if place.is_file():
                continue
            if clock.over or stop():
                return number * teacher.batch
            size = min(teacher.batch, teacher.trajectories - number * teacher.batch)
            which = torch.arange(number * teacher.batch, number * teacher.batch + size) % count
            draw = torch.Generator().manual_seed(seed_of(config.run.seed, 0, number))
            noise = torch.randn((size, pipe.unet.config.in_channels, side, side), generator=draw)
            kept = [noise]

            def keep(_: Any, step: int, __: Any, tensors: dict[str, Any], kept: list[Any] = kept) -> dict[str, Any]:
                if (step + 1) % every == 0:
                    kept.append(tensors["latents"].float().cpu())
                return tensors

            given = {name: value[which] for name, value in texts.items()}
            with narrowed(pipe.unet):
                pipe(
                    **given, latents=noise.to(device), num_inference_steps=teacher.steps, guidance_scale=guidance,
                    width=resolution, height=resolution, output_type="latent", callback_on_step_end=keep,
                )  # fmt: skip
            tensors = {"latents": torch.stack(kept, dim=1).half(), "prompts": which}
            write_atomic(place, save(tensors))
            if number % 4 == 0:
                say(f"{number * teacher.batch + size} of {teacher.trajectories} trajectories, {clock.seconds:.0f} s")
    finally:
        pipe.unet.to(torch.float32)
    return teacher.trajectories


class _Pairs:
    """The latents of all trajectories in memory, float16, and which of them are shown at each step."""

    def __init__(self, work: Path, steps: int) -> None:
        loaded = [load_file(path) for path in shards(work)]
        self.latents = torch.cat([one["latents"] for one in loaded])
        self.prompts = torch.cat([one["prompts"] for one in loaded])
        self.steps = steps

    def drawn(self, seed: int, first: int, last: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield trajectory and segment numbers, each pair once an epoch, of the steps ``first`` to ``last - 1``."""
        total = len(self.prompts) * self.steps
        epoch, order = -1, np.empty(0, int)
        for step in range(first, last):
            places = np.arange(step * batch, (step + 1) * batch)
            found = []
            for place in places:
                if place // total != epoch:
                    epoch = int(place // total)
                    order = generator(seed, 1, epoch).permutation(total)
                found.append(order[place % total])
            pairs = torch.from_numpy(np.array(found))
            yield pairs // self.steps, pairs % self.steps


def _learn(
    pipe: Any,
    base: Base,
    config: DistilConfig,
    schedule: NoiseSchedule,
    texts: Mapping[str, torch.Tensor],
    resolution: int,
    clock: Clock,
    resume: bool,
    say: Say,
    stop: Stop,
) -> int:
    """Train ``pipe.unet`` as the student; return the step that was reached."""
    student, work = config.student, config.work
    pairs = _Pairs(config.made, student.steps)
    times = torch.tensor([*student_timesteps(pipe.scheduler.config, student.steps), -1])
    accelerator = new_accelerator(config.run.precision, texts["prompt_embeds"].device.type)
    pipe.unet.requires_grad_(True)
    layers = []
    if student.start is not None or student.rank is not None:
        files = weight_files((student.start / "unet") if student.start else base.folder / "unet", base.spec.variant)
        tuned = {name: tensor for path in files for name, tensor in load_file(path).items()}
        if student.rank is None:
            copy_weights(pipe.unet, files)
        else:
            layers = add_low_rank(pipe.unet, tuned, student.rank)
    parameters = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    parts = Parts(pipe, base.spec.family, STRATEGIES[TURBO], trained={"unet": parameters})
    module, optimiser = accelerator.prepare(pipe.unet, make_optimiser(parts, student))
    state = latest(work) if resume else None
    step = 0
    if state is not None:
        accelerator.load_state(str(state[1]))
        step = state[0]
    journal = Journal(work, step)
    ids = torch.tensor([resolution, resolution, 0, 0, resolution, resolution], dtype=torch.float32)
    waiting: list[torch.Tensor] = []
    device = accelerator.device
    for rows, segments in pairs.drawn(config.run.seed, step, student.updates, student.batch):
        before, after = (pairs.latents[rows, segments + i].float().to(device) for i in (0, 1))
        t, s = times[segments].to(device), times[segments + 1].to(device)
        target = one_step_target(schedule, before, after, t, s)
        which = pairs.prompts[rows].to(device)
        added = None
        if "pooled_prompt_embeds" in texts:
            added = {
                "text_embeds": texts["pooled_prompt_embeds"][which],
                "time_ids": ids.to(device).repeat(len(rows), 1),
            }
        context = texts["prompt_embeds"][which]
        found = module(before, t, context, added_cond_kwargs=added, return_dict=False)[0].float()
        loss = (found - target).square().mean(dim=(1, 2, 3))
        for group in optimiser.param_groups:
            group["lr"] = rate(student, step, student.updates)
        accelerator.backward(loss.mean())
        if student.clip:
            accelerator.clip_grad_norm_(parameters, student.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        waiting.append(torch.stack([loss[segments == k].detach().sum() for k in range(student.steps)]))
        ended = clock.over or stop()
        if step == student.updates or ended or step % config.run.save_every == 0 or step % FLUSH == 0:
            _tell(journal, waiting, student, step, clock, say)
        if step == student.updates or ended or step % config.run.save_every == 0:
            save_state(accelerator, work, step, config.run.keep_last)
        if ended:
            break
    journal.close()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    pipe.unet.requires_grad_(False)
    return step


def _tell(
    journal: Journal, waiting: list[torch.Tensor], student: StudentConfig, step: int, clock: Clock, say: Say
) -> None:
    """Write the losses of the last steps, whole and by segment (noisy first), to the journal."""
    if not waiting:
        return
    sums = torch.stack(waiting).mean(0)
    each = (sums * student.steps / student.batch).tolist()
    loss = float(sums.sum() / student.batch)
    journal.add(step, loss=loss, segments=each, rate=rate(student, step - 1, student.updates))
    waiting.clear()
    if step % (2 * FLUSH) == 0 or step == student.updates:
        parts = ", ".join(f"{value:.3f}" for value in each)
        say(f"step {step} of {student.updates}: loss {loss:.4f} ({parts}), {clock.seconds:.0f} s")


def turbo_card(config: DistilConfig, spec: CheckpointSpec, guidance: float) -> dict[str, Any]:
    """Return the card of the student."""
    teacher, student = config.teacher, config.student
    card: dict[str, Any] = {
        "id": config.output.name,
        "title": config.title or f"{spec.title}: {STRATEGIES[TURBO].title}",
        "base": spec.id,
        "strategy": TURBO,
        "steps": student.steps,
        "guidance": 1.0,
        "scheduler": f"DDIM, {student.steps} trailing steps",
        "training_data": f"{teacher.trajectories} trajectories of {spec.id} itself ({teacher.steps} steps, guidance "
        f"{guidance:g}); no other data",
    }
    if spec.licence:
        card["licence"] = spec.licence
    if spec.credit:
        card["credit"] = list(spec.credit)
    return card
