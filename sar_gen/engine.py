"""The engine owns the device: it loads, switches, generates and stops, one job at a time, and yields events.

It knows nothing of the page, the disk or the measures. Every job runs on one device thread, in the order of arrival
but for what ``batching`` says: requests for the loaded checkpoint may go first, and on a GPU they share batches.

Seeds: patch ``i`` has its own CPU generator, seeded with ``seed + i``, and its noise is drawn in float32. On a CPU
patches are made one by one, so patch ``i`` of a batch is bit-equal to the same seed made alone on the same machine. On
a GPU they are made in batches; there the batch size changes the order of floating-point sums: bit-equal for one batch
size, equal to rounding otherwise. With a guide the pipeline draws in its own dtype, so a guided scene is another one
on a GPU in bfloat16 than on a CPU in float32.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sar_gen import checkpoints
from sar_gen.amplitude import from_model, to_model
from sar_gen.batching import batch_key, companions, next_place
from sar_gen.compiling import Compiler
from sar_gen.conditioning import Prepared, prepare, prepare_guides
from sar_gen.errors import InputError, SarGenError
from sar_gen.graphs import Graphs
from sar_gen.guide_networks import identity as network_identity
from sar_gen.guide_networks import networks
from sar_gen.pipelines import PipelineHolder, Placement
from sar_gen.profiles import Switches
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
    switches_for,
)
from sar_gen.settings import Settings
from sar_gen.speed import (
    StepClock,
    guided,
    inner,
    is_on,
    narrow_decoder,
    quantised,
    set_fused,
    set_layout,
    unet_dtype,
    wide_decoder,
    with_unet,
)
from sar_gen.steering import Steer, acts, decode_windows, steered
from sar_gen.strategies import strategy
from sar_gen.windows import mean_count

logger = logging.getLogger(__name__)

PREVIEWS_PER_PATCH = 3
KEPT_TEXTS = 64  # prompts whose text is kept
PREVIEW_SIDE = 64  # most latent pixels a side of a preview
WAIT_SECONDS = 0.2  # how often a waiting request looks at its place in the queue and at Stop


@dataclass(eq=False)
class _Job:
    """One piece of work for the device thread."""

    work: Callable[[_Job], None]
    cancel: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    checkpoint: str | None = None  # id; None for work that keeps its place in the queue
    passed: int = 0  # jobs that went before it though they came later
    ended: bool = False


@dataclass(eq=False)
class _Generation(_Job):
    """A request on its way."""

    request: GenerationRequest = field(kw_only=True)
    spec: checkpoints.CheckpointSpec = field(kw_only=True)
    previews: bool = True
    key: Hashable | None = None  # what others must share to be made in one batch with it
    finished: int = 0
    noticed: bool = False

    @property
    def left(self) -> int:
        """Patches that are not made yet."""
        return self.request.count - self.finished

    def end(self, event: Done | Stopped | Failed) -> None:
        """Say the last word, once."""
        if not self.ended:
            self.ended = True
            self.events.put(event)


@dataclass(frozen=True)
class _Row:
    """One patch of a batch: the ``index``-th of a request."""

    job: _Generation
    index: int

    @property
    def seed(self) -> int:
        """Seed of its noise."""
        return self.job.request.seed + self.index


class Engine:
    """See the module's docstring. All public methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.here()
        self._holder = PipelineHolder()
        self._jobs: list[_Job] = []  # that wait
        self._running: list[_Job] = []
        self._changed = threading.Condition()
        self._state = EngineState("idle", "No checkpoint is loaded yet.")
        self._closed = False
        self._texts: dict[Any, dict[str, torch.Tensor]] = {}
        self._compiler = Compiler(settings.home / "compiled", self._announce)
        self._graphs = Graphs()
        self._prepared: tuple[Any, ...] = ()
        self._quantised: Any = None  # a copy of the UNet in fewer bits, where it is asked for
        self._speech = ""  # what goes on beside the work
        self._guides: dict[str, dict[str, str]] = {}  # networks that the work at hand uses, with their hashes
        self._thread = threading.Thread(target=self._work, name="sar-gen-device", daemon=True)
        self._thread.start()
        # A thread that is still inside torch when the interpreter ends brings the process down with an abort.
        atexit.register(self.close)

    @property
    def state(self) -> EngineState:
        """What the engine is doing now, and what goes on beside it."""
        state = self._state
        return replace(state, message=f"{state.message} {self._speech}") if self._speech else state

    @property
    def jobs(self) -> int:
        """How many jobs are at work or wait."""
        with self._changed:
            return len(self._running) + len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the device thread is there to take work."""
        return self._thread.is_alive() and not self._closed

    def _announce(self, text: str) -> None:
        self._speech = text

    def warm_up(self, checkpoint: str, strategy: str | None = None) -> None:
        """Load a checkpoint in the background, and begin to compile what is to be; ``state`` tells how it goes."""

        def work(job: _Job) -> None:
            try:
                catalogue = checkpoints.catalogue(self.settings)
                spec = checkpoints.resolve(catalogue, checkpoint, strategy)
                switches = switches_for(spec, self.settings.profile)
                pipe = self._load(spec, catalogue, job, switches)
                self._prepare(pipe, switches)
                self._rehearse(pipe, spec, switches)
            except SarGenError as error:
                self._state = EngineState("failed", str(error), checkpoint=checkpoint)
            except Exception as error:
                logger.exception("Loading %s failed", checkpoint)
                self._state = EngineState("failed", _one_sentence(error), checkpoint=checkpoint)

        self._submit(_Job(work))

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
            assert isinstance(job, _Generation)
            self._generate(job, catalogue)

        key = batch_key(request, spec)
        job = _Generation(work, cancel, checkpoint=spec.id, request=request, spec=spec, previews=previews, key=key)
        return self._follow(job)

    def identity(self) -> dict[str, Any]:
        """Return what is loaded (base, strategy, hash of each part, networks in use) for the record of a run."""
        return {**self._holder.identity(), **({"guides": self._guides} if self._guides else {})}

    def where(self) -> dict[str, Any]:
        """Return device and precision, for the record of a run."""
        return {"device": self._state.device, "dtype": self._state.dtype}

    def free(self) -> None:
        """Unload the checkpoint once the jobs before this call are done; returns when it is unloaded."""
        done = threading.Event()

        def work(_: _Job) -> None:
            self._holder.free()
            self._forget()
            self._state = EngineState("idle", "No checkpoint is loaded.")
            done.set()

        self._submit(_Job(work))
        done.wait()

    def wait_compiled(self, seconds: float) -> None:
        """Wait until nothing is being compiled in the background, so long at most."""
        self._compiler.wait(seconds)

    def close(self) -> None:
        """Stop all work and end the device thread; takes one denoising step or one loading at most."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            for job in (*self._running, *self._jobs):
                job.cancel.set()
            self._changed.notify_all()
        self._thread.join(timeout=30)
        self._compiler.close()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def _work(self) -> None:
        """Run the jobs, each taken from those that wait when its turn comes."""
        loaded: str | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or self._closed)
                if self._closed:
                    return
                place = next_place([job.checkpoint for job in self._jobs], self._jobs[0].passed, loaded)
                self._jobs[0].passed += place > 0
                job = self._jobs.pop(place)
                self._running = [job]
            loaded = job.checkpoint
            job.work(job)
            with self._changed:
                self._running = []
                self._changed.notify_all()

    def _company(self, job: _Generation, room: int) -> list[_Generation]:
        """Take the waiting requests that share a batch with one that is about to begin."""
        with self._changed:
            waiting = [one for one in self._jobs if isinstance(one, _Generation) and not one.cancel.is_set()]
            chosen = [
                waiting[place]
                for place in companions([one.key for one in waiting], [one.left for one in waiting], job.key, room)
            ]
            self._jobs = [one for one in self._jobs if one not in chosen]
            self._running += chosen
        return chosen

    def _part(self, group: Sequence[_Generation]) -> None:
        """Put requests of a batch that failed back, each to be made alone: one of them must not fail the others."""
        with self._changed:
            back = [job for job in group if not job.ended]
            for job in back:
                job.key = None
            self._jobs = [*back, *self._jobs]
            self._running = []

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
                        place = len(self._running) + self._jobs.index(job)
                        withdrawn = job.cancel.is_set()
                        if withdrawn:
                            self._jobs.remove(job)
                    if withdrawn:
                        # A request whose batch failed waits again, and may have patches by then.
                        yield Stopped(job.finished if isinstance(job, _Generation) else 0)
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
        self,
        spec: checkpoints.CheckpointSpec,
        catalogue: dict[str, Any],
        job: _Job,
        switches: Switches,
        light: bool = False,
    ) -> Any:
        """Bring a checkpoint onto the device and say what was chosen."""
        before = self._state

        def say(message: str) -> None:
            self._state = EngineState("loading", message, checkpoint=spec.id)
            job.events.put(Loading(message))

        try:
            pipe = self._holder.ensure(spec, catalogue, self.settings, light=light, say=say, unet=unet_dtype(switches))
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

    def _generate(self, job: _Generation, catalogue: dict[str, Any]) -> None:
        """Do a request, and those that share its batch; the last event of each is Done, Stopped or Failed."""
        seconds = {"load": 0.0, "generate": 0.0}
        switches = Switches(**job.request.switches)
        group = [job]
        try:
            if job.cancel.is_set():
                job.end(Stopped(job.finished, seconds))
                return
            light = kept_freed = False
            while True:
                try:
                    started = time.perf_counter()
                    pipe = self._load(job.spec, catalogue, job, switches, light)
                    seconds["load"] += time.perf_counter() - started
                    self._state = replace(self._state, status="busy")
                    self._prepare(pipe, switches)
                    if len(group) == 1:
                        group += self._company(job, self._batch(job) - job.left)
                    started = time.perf_counter()
                    self._denoise(group, catalogue, pipe)
                    seconds["generate"] += time.perf_counter() - started
                    break
                except (torch.OutOfMemoryError, MemoryError) as error:
                    if light:
                        raise SarGenError(
                            "The device has too little memory for this request even in the lightest mode; choose a "
                            "smaller size, or run on the CPU (--device cpu)."
                        ) from error
                # Outside the except clause: the traceback there keeps the tensors alive.
                self._forget()
                if not kept_freed and self._holder.free_kept():
                    kept_freed = True
                    continue
                self._holder.free()
                gc.collect()
                light = True
                for one in group:
                    one.events.put(Notice("The device ran out of memory; trying once more in a lighter, slower mode."))
            for one in group:
                one.end(Stopped(one.finished, seconds) if one.cancel.is_set() else Done(seconds))
        except Exception as error:
            known = isinstance(error, SarGenError)
            if not known:
                logger.exception("Generation failed")
            if len(group) > 1:
                self._part(group)
            else:
                text = str(error) if known else _one_sentence(error)
                job.end(Failed(text, job.finished, isinstance(error, InputError)))
        finally:
            if self._state.status == "busy":
                self._state = replace(self._state, status="ready")

    def _batch(self, job: _Generation) -> int:
        """Return how many patches of a request's size are made at once."""
        assert job.request.width and job.request.height
        return batch_size(self._placement, job.request.width * job.request.height)

    def _steers(self, job: _Generation, ready: Sequence[Prepared]) -> list[Steer]:
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

    def _notices(self, job: _Generation, pipe: Any, ready: Sequence[Prepared]) -> None:
        """Say, once, what the user should know about a request."""
        if job.noticed:
            return
        job.noticed = True
        request, spec = job.request, job.spec
        messages = [*spec.prompt_warnings(request.prompt), *prompt_notices(pipe, request)]
        messages += [one.note for one in ready]
        messages += [warning for one in ready if one.network for warning in one.network.warnings]
        messages += [*scene_notices(request, spec.resolution), *idle_notices(request), *turbo_notices(request, spec)]
        for message in messages:
            job.events.put(Notice(message))

    def _denoise(self, group: Sequence[_Generation], catalogue: dict[str, Any], pipe: Any) -> None:
        """Make the patches that are not made yet, batch by batch.

        Args:
            group: requests that share a batch: of one ``batch_key`` where there are several.
            catalogue: where bases are.
            pipe: with their checkpoint.
        """
        # What they share is read from the first: all but prompts, seeds and counts.
        job, request, spec = group[0], group[0].request, group[0].spec
        assert request.width and request.height and request.steps and request.guidance is not None
        known = networks(self.settings, catalogue)
        ready = prepare_guides(request, known) if request.guides else ()
        for one in group:
            self._notices(one, pipe, ready)
        steers = self._steers(job, ready)
        start = request.start_guide
        if start is not None:
            pipe = self._holder.image_to_image()
        switches = Switches(**request.switches)
        narrow = switches.decoder == "narrow"
        clock = StepClock()
        texts = {
            one: self._text(pipe, spec.prompt_for(one.request.prompt), one.request.negative, request.guidance)
            for one in group
        }
        native = spec.resolution // pipe.vae_scale_factor
        large = max(request.width, request.height) > spec.resolution
        default_scheduler = pipe.scheduler
        started, steps_done = time.perf_counter(), 0
        size_limit = self._batch(job)
        rows = [_Row(one, index) for one in group for index in range(one.finished, one.request.count)]

        def stopped() -> bool:
            """Tell whether nobody waits any more; one who stopped while others go on is told at once."""
            left = [one for one in group if not one.cancel.is_set()]
            for one in group:
                if left and one.cancel.is_set():
                    one.end(Stopped(one.finished, {"generate": time.perf_counter() - started}))
            return not left

        try:
            while not stopped():
                rows = [row for row in rows if not row.job.cancel.is_set()]
                batch, rows = rows[:size_limit], rows[size_limit:]
                if not batch:
                    return
                seeds = [row.seed for row in batch]
                # A fresh scheduler a batch: multistep solvers carry state from one call to the next.
                pipe.scheduler = make_scheduler(default_scheduler, request.scheduler)

                def on_step_end(
                    pipe: Any,
                    step: int,
                    _: Any,
                    tensors: dict[str, Any],
                    batch: list[_Row] = batch,
                    after: list[_Row] = rows,
                ) -> Any:
                    nonlocal steps_done
                    if stopped() or all(row.job.cancel.is_set() for row in batch):
                        pipe._interrupt = True
                        return tensors
                    steps_done += 1
                    clock.step = step + 1
                    total = pipe.num_timesteps
                    elapsed = time.perf_counter() - started
                    every = preview_steps(total)
                    for one in dict.fromkeys(row.job for row in batch if not row.job.cancel.is_set()):
                        places = [place for place, row in enumerate(batch) if row.job is one]
                        # Batches that have not begun yet each take `total` steps.
                        last = max((place for place, row in enumerate(after) if row.job is one), default=-1)
                        left = total - step - 1 + -(-(last + 1) // size_limit) * total
                        first, count = batch[places[0]].index, one.request.count
                        one.events.put(
                            Step(step + 1, total, first, len(places), count, elapsed, elapsed / steps_done * left)
                        )
                        if one.previews and (step + 1) % every == 0 and step + 1 < total:
                            look = preview_amplitude(
                                pipe, tensors["latents"], spec.mono, spec.model_encoding, narrow, places[0]
                            )
                            one.events.put(Preview(first, look))
                    return tensors

                generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
                arguments: dict[str, Any] = {
                    **{name: torch.cat([texts[row.job][name] for row in batch]) for name in texts[job]},
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
                    arguments["latents"] = initial_noise(
                        pipe, generators, request.height, request.width, wide=switches.wide_sampler
                    )
                if large and spec.family == "sdxl":
                    # Each window is a picture of the size that the UNet was trained at, and is told so.
                    arguments["original_size"] = arguments["target_size"] = (spec.resolution, spec.resolution)

                def tick() -> None:
                    if stopped():
                        raise _StoppedError

                clock.step = 0
                at_once = windows_at_once(self._placement, spec)
                with (
                    with_unet(pipe, self._quantised),
                    self._fast(pipe, switches, clock, large),
                    steered(pipe, steers, native, seeds[0], at_once, tick),
                    guided(pipe, switches.guidance_start, switches.guidance_end, clock),
                ):
                    latents = pipe(**arguments).images
                    for i, row in enumerate(batch):
                        if row.job.cancel.is_set():
                            continue
                        one_latent = latents[i : i + 1]
                        if large:
                            amplitude = decode_scene(pipe, one_latent, spec, native, tick, narrow)
                        else:
                            amplitude = decode(pipe, one_latent, spec.mono, spec.model_encoding, narrow)
                        row.job.events.put(PatchReady(row.index, row.seed, amplitude))
                        row.job.finished += 1
        except _StoppedError:
            return
        finally:
            pipe.scheduler = default_scheduler

    def _loaded(self) -> str:
        """Return the identity of what is loaded, to look things up by."""
        return json.dumps(self._holder.identity(), sort_keys=True)

    def _on(self, where: str) -> bool:
        """Return whether a switch is on here; hooks and moving weights go with none of them."""
        placement = self._placement
        return placement.offload == "none" and is_on(where, placement.device.startswith("cuda"))

    def _text(self, pipe: Any, prompt: str, negative: str, guidance: float) -> dict[str, torch.Tensor]:
        """Return what the text encoders make of a prompt, as the pipeline's arguments; kept for the next request."""
        key = (self._loaded(), prompt, negative if guidance > 1 else None)
        found = self._texts.pop(key, None)
        if found is None:
            found = encode_text(pipe, prompt, negative, guidance > 1)
        self._texts[key] = found
        while len(self._texts) > KEPT_TEXTS:
            del self._texts[next(iter(self._texts))]
        return found

    @contextmanager
    def _fast(self, pipe: Any, switches: Switches, clock: StepClock, windows: bool) -> Iterator[None]:
        """Do what the switches say below the windows and networks of ``steering``, for one batch."""
        with ExitStack() as stack:
            state = None
            if self._on(switches.compiled):
                state = stack.enter_context(self._compiler.blocks(pipe.unet))
                stack.enter_context(self._compiler.blocks(pipe.vae))
            if switches.graphs and switches.reuse == 1 and self._placement.offload == "none":
                stack.enter_context(self._graphs.unet(pipe.unet, state))
            stack.enter_context(inner(pipe, switches, clock, windows))
            yield

    def _rehearse(self, pipe: Any, spec: checkpoints.CheckpointSpec, switches: Switches) -> None:
        """Make two steps of a patch that nobody sees, so that compiling begins before the first request."""
        if not self._on(switches.compiled):
            return
        side = spec.resolution
        given = self._text(pipe, spec.prompt_for("a SAR image"), "", spec.guidance)
        noise = initial_noise(pipe, [torch.Generator("cpu").manual_seed(0)], side, side, wide=switches.wide_sampler)
        scheduler = pipe.scheduler
        pipe.scheduler = make_scheduler(scheduler, "default")
        try:
            with self._fast(pipe, switches, StepClock(), False):
                latents = pipe(
                    **given, latents=noise, width=side, height=side, num_inference_steps=2,
                    guidance_scale=spec.guidance, output_type="latent",
                ).images  # fmt: skip
                for look in (decode, preview_amplitude):
                    look(pipe, latents, spec.mono, spec.model_encoding, switches.decoder == "narrow")
        finally:
            pipe.scheduler = scheduler

    def _forget(self) -> None:
        """Let go of what was made of the pipeline's parts."""
        self._graphs.clear()
        self._quantised, self._prepared = None, ()

    def _prepare(self, pipe: Any, switches: Switches) -> None:
        """Bring the UNet into the form that the switches ask for; done again after a strategy changed its weights."""
        forms = self._on(switches.channels_last), self._on(switches.fused_projections)
        wanted = (*forms, switches.quantised, self._loaded())
        if wanted == self._prepared or self._placement.offload != "none":
            return
        self._graphs.clear()
        self._compiler.forget()
        set_layout(pipe.unet, forms[0])
        set_fused(pipe.unet, forms[1])
        self._quantised = None if switches.quantised == "none" else quantised(pipe.unet, switches.quantised)
        self._prepared = wanted


class _StoppedError(Exception):
    """The user stopped between two windows of a large scene."""


def preview_steps(steps: int) -> int:
    """Return how many steps lie between two previews; a patch of few steps has few, each costing a fair part of it."""
    previews = max(1, min(PREVIEWS_PER_PATCH, steps // 4))
    return max(1, steps // (previews + 1))


def windows_at_once(placement: Placement, spec: checkpoints.CheckpointSpec) -> int:
    """Return how many windows of a large scene are computed together: as many as patches would be."""
    return batch_size(placement, spec.resolution**2)


def decode_scene(
    pipe: Any,
    latents: torch.Tensor,
    spec: checkpoints.CheckpointSpec,
    native: int,
    tick: Callable[[], None],
    narrow: bool = False,
) -> NDArray[np.float32]:
    """Decode a scene larger than the checkpoint's size to amplitude, ``(height, width)``, window by window.

    Windows are put together in the model's grey, and turned into amplitude at last.
    """

    def grey(part: torch.Tensor) -> NDArray[np.float32]:
        tick()
        return decode(pipe, part, spec.mono, "linear", narrow)

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


def turbo_notices(request: GenerationRequest, spec: checkpoints.CheckpointSpec) -> list[str]:
    """Return a sentence where a strategy of few steps is asked for what it did not learn."""
    if not strategy(spec.strategy).distilled:
        return []
    asked = (request.steps, request.guidance, request.scheduler)
    if asked == (spec.steps, spec.guidance, "default"):
        return []
    return [
        f"{spec.title} was made for {spec.steps} steps at guidance {spec.guidance:g} with its own scheduler; with "
        "other ones its patches are worse."
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


def initial_noise(
    pipe: Any, generators: list[torch.Generator], height: int, width: int, wide: bool = False
) -> torch.Tensor:
    """Draw each patch's noise in float32 on the CPU, then cast it to the pipeline's dtype, unless ``wide``.

    A pipeline draws in its own dtype, and torch's bfloat16 draw gives other numbers than the float32 one: the same
    seed would be another picture on a GPU. In float32 these are exactly the numbers that the pipeline would draw.

    Returns:
        ``(len(generators), channels, height / 8, width / 8)``.
    """
    scale = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, height // scale, width // scale)
    noise = torch.cat([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators])
    return noise if wide else noise.to(pipe.unet.dtype)


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
def decode(
    pipe: Any, latents: torch.Tensor, mono: str, encoding: str = "linear", narrow: bool = False
) -> NDArray[np.float32]:
    """Decode the latents of one patch to amplitude in float32: the model's grey first, then what it stands for.

    A VAE held in bfloat16 would give dark amplitudes in steps of 0.002, so it is widened while it decodes (the
    weights come back unchanged); a VAE that is offloaded layer by layer stays as it is.

    Args:
        pipe: the pipeline that made them.
        latents: ``(1, channels, height / 8, width / 8)``.
        mono: ``mean`` of the three channels, or the ``first``.
        encoding: the card's ``model_encoding``.
        narrow: decode in bfloat16 but for the last layer: amplitudes have no steps, but more rounding before.

    Returns:
        float32 ``(height, width)`` in [0, 1].

    Raises:
        SarGenError: the decoder gave NaN or infinity.
    """
    vae = pipe.vae
    latents = latents.float() / vae.config.scaling_factor
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        latents = latents * torch.tensor(std).view(shape).to(latents) + torch.tensor(mean).view(shape).to(latents)
    with (narrow_decoder if narrow else wide_decoder)(vae):
        decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0][0].float()
    pixels = (decoded / 2 + 0.5).clamp(0, 1)
    grey = pixels.mean(0) if mono == "mean" else pixels[0]
    amplitude: NDArray[np.float32] = from_model(grey.cpu().numpy(), encoding)
    if not np.isfinite(amplitude).all():
        raise SarGenError("The decoder gave values that are not numbers; choose float32 or another checkpoint.")
    return amplitude


def preview_amplitude(
    pipe: Any, latents: torch.Tensor, mono: str, encoding: str = "linear", narrow: bool = False, row: int = 0
) -> NDArray[np.float32]:
    """Return a rough look at one patch of a batch: every second latent of the clean estimate, decoded.

    A quarter of the latents costs a quarter of the decoding time; of a large scene fewer are taken. DPM-Solver++
    keeps its estimate of the clean latents; with other solvers the noisy latents themselves are shown.
    """
    estimates = getattr(pipe.scheduler, "model_outputs", None)
    clean = estimates[-1] if estimates and estimates[-1] is not None else latents
    every = max(2, -(-max(clean.shape[2:]) // PREVIEW_SIDE))
    return decode(pipe, clean[row : row + 1, :, ::every, ::every].contiguous(), mono, encoding, narrow)


@torch.no_grad()
def encode_text(pipe: Any, prompt: str, negative: str, both: bool) -> dict[str, torch.Tensor]:
    """Return what a pipeline's text encoders make of one prompt, by the names of the pipeline's arguments.

    Args:
        pipe: diffusers pipeline.
        prompt: with the learned token, where there is one.
        negative: empty is None: the unconditional branch of some checkpoints is zeros, which only None selects.
        both: also the unconditional branch.
    """
    found = pipe.encode_prompt(
        prompt=prompt,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=both,
        negative_prompt=negative or None,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: value for name, value in zip(names, found, strict=False) if value is not None}


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
