"""The engine owns the device: it loads, switches, generates and stops, one job at a time, and yields events.

It knows nothing of the page, the disk or the measures. Every job runs on one device thread, in the order of arrival.

Seeds: patch ``i`` has its own CPU generator, seeded with ``seed + i``, and its noise is drawn in float32. On a CPU
patches are made one by one, so patch ``i`` of a batch is bit-equal to the same seed made alone on the same machine. On
a GPU they are made in batches; there the batch size changes the order of floating-point sums: bit-equal for one batch
size, equal to rounding otherwise. With a guide the pipeline draws in its own dtype, so a guided scene is another one
on a GPU in bfloat16 than on a CPU in float32.
"""

from __future__ import annotations

import atexit
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sar_gen import checkpoints
from sar_gen.amplitude import from_model, to_model
from sar_gen.conditioning import Prepared, prepare, prepare_guides
from sar_gen.errors import InputError, SarGenError
from sar_gen.guide_networks import identity as network_identity
from sar_gen.guide_networks import networks
from sar_gen.pipelines import PipelineHolder, Placement
from sar_gen.request import (
    IMAGE_TO_IMAGE,
    SIZE_STEP,
    Done,
    EngineState,
    Event,
    Failed,
    GenerationRequest,
    Loading,
    Notice,
    PatchReady,
    Preview,
    Queued,
    Step,
    Stopped,
    check_request,
)
from sar_gen.settings import Settings
from sar_gen.steering import Steer, acts, decode_windows, steered
from sar_gen.windows import mean_count

logger = logging.getLogger(__name__)

PREVIEWS_PER_PATCH = 3
PREVIEW_SIDE = 64  # most latent pixels a side of a preview
WAIT_SECONDS = 0.2  # how often a waiting request looks at its place in the queue and at Stop


@dataclass
class _Job:
    """One piece of work for the device thread."""

    work: Callable[[_Job], None]
    cancel: threading.Event
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    finished: int = 0


class Engine:
    """See the module's docstring. All public methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._holder = PipelineHolder()
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._state = EngineState("idle", "No checkpoint is loaded yet.")
        self._closed = False
        self._guides: dict[str, dict[str, str]] = {}  # networks that the work at hand uses, with their hashes
        self._thread = threading.Thread(target=self._work, name="sar-gen-device", daemon=True)
        self._thread.start()
        # A thread that is still inside torch when the interpreter ends brings the process down with an abort.
        atexit.register(self.close)

    @property
    def state(self) -> EngineState:
        """What the engine is doing now."""
        return self._state

    def warm_up(self, checkpoint: str, strategy: str | None = None) -> None:
        """Load a checkpoint in the background; ``state`` tells how it goes."""

        def work(job: _Job) -> None:
            try:
                catalogue = checkpoints.catalogue(self.settings)
                self._load(checkpoints.resolve(catalogue, checkpoint, strategy), catalogue, job)
            except SarGenError as error:
                self._state = EngineState("failed", str(error), checkpoint=checkpoint)
            except Exception as error:
                logger.exception("Loading %s failed", checkpoint)
                self._state = EngineState("failed", _one_sentence(error), checkpoint=checkpoint)

        self._submit(_Job(work, threading.Event()))

    def generate(
        self, request: GenerationRequest, *, cancel: threading.Event | None = None, previews: bool = True
    ) -> Iterator[Event]:
        """Check a request, then return an iterator over its events; the last one is Done, Stopped or Failed.

        Args:
            request: what to make.
            cancel: set it to stop: it takes effect within one denoising step, and finished patches are kept.
            previews: also yield rough looks (about 6 % more time on a CPU).

        Raises:
            InputError: the request or its checkpoint is wrong; raised at once, before any work.
        """
        catalogue = checkpoints.catalogue(self.settings)
        request, spec = check_request(request, catalogue, self.settings)
        cancel = threading.Event() if cancel is None else cancel

        def work(job: _Job) -> None:
            self._generate(job, request, spec, catalogue, previews)

        return self._follow(_Job(work, cancel))

    def identity(self) -> dict[str, Any]:
        """Return what is loaded (base, strategy, hash of each part, networks in use) for the record of a run."""
        return {**self._holder.identity(), **({"guides": self._guides} if self._guides else {})}

    def free(self) -> None:
        """Unload the checkpoint once the jobs before this call are done; returns when it is unloaded."""
        done = threading.Event()

        def work(_: _Job) -> None:
            self._holder.free()
            self._state = EngineState("idle", "No checkpoint is loaded.")
            done.set()

        self._submit(_Job(work, threading.Event()))
        done.wait()

    def close(self) -> None:
        """Stop all work and end the device thread; takes one denoising step or one loading at most."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.cancel.set()
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def _work(self) -> None:
        """Run the jobs in order; a job stays at the head of the list while it runs."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
                if self._closed:
                    return
                job = self._jobs[0]
            job.work(job)
            with self._changed:
                self._jobs.remove(job)
                self._changed.notify_all()

    def _follow(self, job: _Job) -> Iterator[Event]:
        """Yield a job's events as they come, and its place in the queue before."""
        self._submit(job)
        position = -1
        try:
            while True:
                try:
                    event = job.events.get(timeout=WAIT_SECONDS)
                except queue.Empty:
                    # Never yield under the lock: the next step may be taken by another thread (gradio's pool), and
                    # only the thread that took the lock can release it.
                    with self._changed:
                        if job not in self._jobs:
                            continue
                        place = self._jobs.index(job)
                        withdrawn = job.cancel.is_set() and place > 0
                        if withdrawn:
                            self._jobs.remove(job)
                    if withdrawn:
                        yield Stopped(0)
                        return
                    if place != position and place > 0:
                        position = place
                        yield Queued(place)
                    continue
                yield event
                if isinstance(event, Done | Stopped | Failed):
                    return
        finally:
            job.cancel.set()  # whoever stops listening (a closed page) stops the work too

    def _load(
        self, spec: checkpoints.CheckpointSpec, catalogue: dict[str, Any], job: _Job, light: bool = False
    ) -> Any:
        """Bring a checkpoint onto the device and say what was chosen."""
        before = self._state

        def say(message: str) -> None:
            self._state = EngineState("loading", message, checkpoint=spec.id)
            job.events.put(Loading(message))

        try:
            pipe = self._holder.ensure(spec, catalogue, self.settings, light=light, say=say)
        except Exception:
            self._state = replace(before, status="failed")
            raise
        placement = self._placement
        self._state = EngineState(
            "ready",
            f"{spec.title} is ready: {placement.reason}",
            device=placement.device,
            dtype=placement.dtype,
            checkpoint=spec.id,
        )
        return pipe

    @property
    def _placement(self) -> Placement:
        placement = self._holder.placement
        assert placement is not None, "nothing is loaded"
        return placement

    def _generate(
        self,
        job: _Job,
        request: GenerationRequest,
        spec: checkpoints.CheckpointSpec,
        catalogue: dict[str, Any],
        previews: bool,
    ) -> None:
        """Do one request on the device thread; the last event is always Done, Stopped or Failed."""
        seconds = {"load": 0.0, "generate": 0.0}
        try:
            if job.cancel.is_set():
                job.events.put(Stopped(0, seconds))
                return
            for light in (False, True):
                try:
                    started = time.perf_counter()
                    pipe = self._load(spec, catalogue, job, light=light)
                    seconds["load"] += time.perf_counter() - started
                    self._state = replace(self._state, status="busy")
                    started = time.perf_counter()
                    self._denoise(job, request, spec, catalogue, pipe, previews)
                    seconds["generate"] += time.perf_counter() - started
                    break
                except (torch.OutOfMemoryError, MemoryError) as error:
                    if light:
                        raise SarGenError(
                            "The device has too little memory for this request even in the lightest mode; choose a "
                            "smaller size, or run on the CPU (--device cpu)."
                        ) from error
                # Outside the except clause: the traceback there keeps the tensors alive.
                self._holder.free()
                gc.collect()
                job.events.put(Notice("The device ran out of memory; trying once more in a lighter, slower mode."))
            if job.cancel.is_set():
                job.events.put(Stopped(job.finished, seconds))
            else:
                job.events.put(Done(seconds))
        except SarGenError as error:
            job.events.put(Failed(str(error), job.finished, isinstance(error, InputError)))
        except Exception as error:
            logger.exception("Generation failed")
            job.events.put(Failed(_one_sentence(error), job.finished))
        finally:
            if self._state.status == "busy":
                self._state = replace(self._state, status="ready")

    def _steers(self, job: _Job, ready: Sequence[Prepared]) -> list[Steer]:
        """Bring the networks of the guides onto the device."""
        steers = []
        self._guides = {}
        for one in ready:
            if one.network is None or one.image is None or not one.guide.weight:
                continue
            network = self._holder.network(one.network, self.settings, lambda text: job.events.put(Loading(text)))
            self._guides[one.network.id] = network_identity(one.network, self.settings)
            steers.append(Steer(network, one.image, one.guide.weight, one.guide.start, one.guide.end))
        return steers

    def _denoise(
        self,
        job: _Job,
        request: GenerationRequest,
        spec: checkpoints.CheckpointSpec,
        catalogue: dict[str, Any],
        pipe: Any,
        previews: bool,
    ) -> None:
        """Make the patches that are not made yet, batch by batch."""
        assert request.width and request.height and request.steps and request.guidance is not None
        known = networks(self.settings, catalogue)
        ready = prepare_guides(request, known) if request.guides else ()
        if job.finished == 0:
            messages = [*spec.prompt_warnings(request.prompt), *prompt_notices(pipe, request)]
            messages += [one.note for one in ready]
            messages += [warning for one in ready if one.network for warning in one.network.warnings]
            messages += [*scene_notices(request, spec.resolution), *idle_notices(request)]
            for message in messages:
                job.events.put(Notice(message))
        steers = self._steers(job, ready)
        start = request.start_guide
        if start is not None:
            pipe = self._holder.image_to_image()
        native = spec.resolution // pipe.vae_scale_factor
        large = max(request.width, request.height) > spec.resolution
        default_scheduler = pipe.scheduler
        started, steps_done = time.perf_counter(), 0
        size_limit = batch_size(self._placement, request.width * request.height)
        try:
            while job.finished < request.count and not job.cancel.is_set():
                first = job.finished
                size = min(size_limit, request.count - first)
                seeds = [request.seed + first + i for i in range(size)]
                # A fresh scheduler a batch: multistep solvers carry state from one call to the next.
                pipe.scheduler = make_scheduler(default_scheduler, request.scheduler)

                def on_step_end(
                    pipe: Any, step: int, _: Any, tensors: dict[str, Any], first: int = first, size: int = size
                ) -> Any:
                    nonlocal steps_done
                    if job.cancel.is_set():
                        pipe._interrupt = True
                        return tensors
                    steps_done += 1
                    total = pipe.num_timesteps
                    elapsed = time.perf_counter() - started
                    # Batches that have not begun yet each take `total` steps.
                    batches_after = -(-(request.count - first - size) // size)
                    left = total - step - 1 + batches_after * total
                    job.events.put(
                        Step(step + 1, total, first, size, request.count, elapsed, elapsed / steps_done * left)
                    )
                    every = max(1, total // (PREVIEWS_PER_PATCH + 1))
                    if previews and (step + 1) % every == 0 and step + 1 < total:
                        look = preview_amplitude(pipe, tensors["latents"], spec.mono, spec.model_encoding)
                        job.events.put(Preview(first, look))
                    return tensors

                generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
                arguments: dict[str, Any] = {
                    "prompt": [spec.prompt_for(request.prompt)] * size,
                    # None, not "": the unconditional branch of some checkpoints is zeros, which only None selects.
                    "negative_prompt": [request.negative] * size if request.negative else None,
                    "num_inference_steps": request.steps,
                    "guidance_scale": request.guidance,
                    "generator": generators,
                    "output_type": "latent",
                    "callback_on_step_end": on_step_end,
                }
                if start is not None:
                    arguments["image"] = guide_tensor(request, seeds, spec.model_encoding)
                    arguments["strength"] = request.strength
                else:
                    arguments["width"], arguments["height"] = request.width, request.height
                    arguments["latents"] = initial_noise(pipe, generators, request.height, request.width)
                if large and spec.family == "sdxl":
                    # Each window is a picture of the size that the UNet was trained at, and is told so.
                    arguments["original_size"] = arguments["target_size"] = (spec.resolution, spec.resolution)

                def tick() -> None:
                    if job.cancel.is_set():
                        raise _StoppedError

                try:
                    with steered(pipe, steers, native, seeds[0], windows_at_once(self._placement, spec), tick):
                        latents = pipe(**arguments).images
                except _StoppedError:
                    return
                if job.cancel.is_set():
                    return
                for i, seed in enumerate(seeds):
                    one = latents[i : i + 1]
                    if large:
                        amplitude = decode_scene(pipe, one, spec, native, tick)
                    else:
                        amplitude = decode(pipe, one, spec.mono, spec.model_encoding)
                    job.events.put(PatchReady(first + i, seed, amplitude))
                    job.finished += 1
        except _StoppedError:
            return
        finally:
            pipe.scheduler = default_scheduler


class _StoppedError(Exception):
    """The user stopped between two windows of a large scene."""


def windows_at_once(placement: Placement, spec: checkpoints.CheckpointSpec) -> int:
    """Return how many windows of a large scene are computed together: as many as patches would be."""
    return batch_size(placement, spec.resolution**2)


def decode_scene(
    pipe: Any, latents: torch.Tensor, spec: checkpoints.CheckpointSpec, native: int, tick: Callable[[], None]
) -> NDArray[np.float32]:
    """Decode a scene larger than the checkpoint's size to amplitude, ``(height, width)``, window by window.

    Windows are put together in the model's grey, and turned into amplitude at last.
    """

    def grey(part: torch.Tensor) -> NDArray[np.float32]:
        tick()
        return decode(pipe, part, spec.mono)

    joined = decode_windows(grey, latents, native, pipe.vae_scale_factor)
    amplitude: NDArray[np.float32] = from_model(joined, spec.model_encoding)
    return amplitude


def scene_notices(request: GenerationRequest, resolution: int) -> list[str]:
    """Return a sentence on how a scene larger than the checkpoint's size is made."""
    assert request.width and request.height
    if max(request.width, request.height) <= resolution:
        return []
    sides = (request.height // SIZE_STEP, request.width // SIZE_STEP)
    count = mean_count(*sides, resolution // SIZE_STEP)
    return [
        f"The scene of {request.width} x {request.height} pixels is larger than the checkpoint's {resolution}: it is "
        f"made of some {count} overlapping windows a step."
    ]


def idle_notices(request: GenerationRequest) -> list[str]:
    """Return a sentence on each guide that acts in no step at all, its share of the steps being too short."""
    assert request.steps is not None
    return [
        f"The {guide.kind} guide acts in none of the {request.steps} steps: its start and end ({guide.start:g} to "
        f"{guide.end:g}) lie within one of them; widen them, or take more steps."
        for guide in request.guides
        if guide.way != IMAGE_TO_IMAGE
        and not any(acts(guide.start, guide.end, step, request.steps) for step in range(request.steps))
    ]


def batch_size(placement: Placement, pixels: int) -> int:
    """Return how many patches are made at once.

    On a CPU one: a batch is no faster there, the first patch comes sooner, and a seed is bit-equal to itself alone.
    On a GPU as many as four 1024x1024 patches hold, sixteen at most.
    """
    if not placement.device.startswith("cuda") or placement.offload != "none":
        return 1
    return max(1, min(16, 4 * 1024 * 1024 // pixels))


def make_scheduler(default: Any, name: str) -> Any:
    """Return a fresh scheduler (a name of ``request.SCHEDULERS``) with the checkpoint's own noise schedule."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    kinds = {
        "default": type(default),
        "dpm++": DPMSolverMultistepScheduler,
        "ddim": DDIMScheduler,
        "euler": EulerDiscreteScheduler,
    }
    return kinds[name].from_config(default.config)


def initial_noise(pipe: Any, generators: list[torch.Generator], height: int, width: int) -> torch.Tensor:
    """Draw each patch's noise in float32 on the CPU, then cast it to the pipeline's dtype.

    A pipeline draws in its own dtype, and torch's bfloat16 draw gives other numbers than the float32 one: the same
    seed would be another picture on a GPU. In float32 these are exactly the numbers that the pipeline would draw.

    Returns:
        ``(len(generators), channels, height / 8, width / 8)``.
    """
    scale = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, height // scale, width // scale)
    noise = torch.cat([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators])
    return noise.to(pipe.unet.dtype)


def guide_tensor(request: GenerationRequest, seeds: list[int], encoding: str = "linear") -> torch.Tensor:
    """Return the starting images, one speckle draw a seed, in the grey that the model works on.

    Args:
        request: with a guide and a size.
        seeds: one an image.
        encoding: the card's ``model_encoding``.

    Returns:
        float32 ``(len(seeds), 3, height, width)`` in [0, 1].
    """
    guide = request.start_guide
    assert guide is not None and request.width and request.height
    starts = [prepare(guide, None, request.width, request.height, seed).start for seed in seeds]
    return torch.from_numpy(to_model(np.stack(starts), encoding)).unsqueeze(1).repeat(1, 3, 1, 1)  # type: ignore[arg-type]


@torch.no_grad()
def decode(pipe: Any, latents: torch.Tensor, mono: str, encoding: str = "linear") -> NDArray[np.float32]:
    """Decode the latents of one patch to amplitude in float32: the model's grey first, then what it stands for.

    A VAE held in bfloat16 would give dark amplitudes in steps of 0.002, so it is widened while it decodes (the
    weights come back unchanged); a VAE that is offloaded layer by layer stays as it is.

    Args:
        pipe: the pipeline that made them.
        latents: ``(1, channels, height / 8, width / 8)``.
        mono: ``mean`` of the three channels, or the ``first``.
        encoding: the card's ``model_encoding``.

    Returns:
        float32 ``(height, width)`` in [0, 1].

    Raises:
        SarGenError: the decoder gave NaN or infinity.
    """
    vae = pipe.vae
    dtype = vae.dtype
    widen = dtype != torch.float32 and next(vae.parameters()).device.type != "meta"
    if widen:
        vae.to(dtype=torch.float32)
    try:
        latents = latents.to(vae.dtype)
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        latents = latents / vae.config.scaling_factor
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            latents = latents * torch.tensor(std).view(shape).to(latents) + torch.tensor(mean).view(shape).to(latents)
        pixels = (vae.decode(latents, return_dict=False)[0][0].float() / 2 + 0.5).clamp(0, 1)
    finally:
        if widen:
            vae.to(dtype=dtype)
    grey = pixels.mean(0) if mono == "mean" else pixels[0]
    amplitude: NDArray[np.float32] = from_model(grey.cpu().numpy(), encoding)
    if not np.isfinite(amplitude).all():
        raise SarGenError("The decoder gave values that are not numbers; choose float32 or another checkpoint.")
    return amplitude


def preview_amplitude(pipe: Any, latents: torch.Tensor, mono: str, encoding: str = "linear") -> NDArray[np.float32]:
    """Return a rough look at the first patch of a batch: every second latent of the clean estimate, decoded.

    A quarter of the latents costs a quarter of the decoding time; of a large scene fewer are taken. DPM-Solver++
    keeps its estimate of the clean latents; with other solvers the noisy latents themselves are shown.
    """
    estimates = getattr(pipe.scheduler, "model_outputs", None)
    clean = estimates[-1] if estimates and estimates[-1] is not None else latents
    every = max(2, -(-max(clean.shape[2:]) // PREVIEW_SIDE))
    return decode(pipe, clean[:1, :, ::every, ::every].contiguous(), mono, encoding)


def prompt_notices(pipe: Any, request: GenerationRequest) -> list[str]:
    """Return a sentence for each text that is longer than an encoder's limit, naming what is not used."""
    notices = []
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative)):
        tokenizer = pipe.tokenizer
        limit = tokenizer.model_max_length
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        if len(tokens) > limit:
            lost = tokenizer.decode(tokens[limit - 1 : -1], skip_special_tokens=True).strip()
            notices.append(
                f"The {name} is {len(tokens) - limit} tokens longer than the text encoder's {limit}; "
                f"its end is not used: '{lost}'."
            )
    return notices


def _one_sentence(error: Exception) -> str:
    """Return an unexpected error as one line that names its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
