"""What a picture takes, by our profiles and by diffusers' own pipeline, in one process on the same machine.

Four tables: one picture by each way; what the studio adds (disk, previews) and how soon the first look comes; batches;
guides. ``bench.effects`` says what each switch gains and what it does to the pictures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sar_gen import checkpoints
from sar_gen.bench.models import Size, measured
from sar_gen.bench.timing import Bench, Timing, alternate, growth
from sar_gen.checkpoints import CheckpointSpec
from sar_gen.errors import SarGenError
from sar_gen.profiles import DEFAULT_PROFILE
from sar_gen.request import Event, Failed, GenerationRequest, PatchReady, Preview
from sar_gen.settings import Settings
from sar_gen.strategies import strategy

BATCHES = (4, 16)
COMPILE_SECONDS = 900.0
STOCK = "diffusers"


def bench_generate(
    settings: Settings,
    size: Size | None = None,
    work: Path | None = None,
    rounds: int = 3,
    batches: Sequence[int] = BATCHES,
) -> tuple[Bench, ...]:
    """Time the chosen checkpoint by each profile against diffusers' own pipeline.

    Stock is what diffusers' manual says: ``from_pretrained``, float32 on a CPU, bfloat16 on a GPU, the prompt given
    each time. Ours is the engine: float amplitude, the same seed, card's steps and guidance. A strategy of few steps
    on the same base, where there is one, is a way of its own.

    Args:
        settings: checkpoint and device.
        size: of an SDXL of random weights; the chosen checkpoint when left out.
        work: folder for it, and for what is compiled, kept; a temporary one when left out.
        rounds: of the first three tables; batches and guides are done once.
        batches: sizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _bench(measured(settings, size, work or Path(folder)), rounds, batches)


def _bench(settings: Settings, rounds: int, batches: Sequence[int]) -> tuple[Bench, ...]:
    from sar_gen.engine import Engine

    catalogue = checkpoints.catalogue(settings)
    spec = checkpoints.resolve(catalogue, settings.checkpoint)
    stock = Stock(spec, settings)
    engine = Engine(settings)
    try:
        ours = Ours(engine, spec)
        ways: dict[str, Callable[[], object]] = {STOCK: lambda: stock.seconds(1)}
        ways |= {f"studio, {name}": partial(ours.seconds, profile=name) for name in ("plain", "exact", "fast")}
        turbo = turbo_of(spec, catalogue)
        if turbo is not None:
            ways[f"studio, {turbo.id}"] = partial(ours.seconds, checkpoint=turbo.id, strategy=turbo.strategy)
        for way in ways.values():  # what is compiled in the background is ready before anything is timed
            way()
        engine.wait_compiled(COMPILE_SECONDS)
        for way in ways.values():
            way()
        ways = {name: partial(_with_memory, stock.device, way) for name, way in ways.items()}
        title = f"One picture of {spec.id}, {spec.resolution} x {spec.resolution}, {spec.steps} steps, guidance "
        title += f"{spec.guidance:g}, {stock.device}"
        found = [alternate(title, ways, rounds)]
        found.append(_studio(settings, spec, rounds))
        for count in batches:
            several: dict[str, Callable[[], float]] = {STOCK: partial(stock.seconds, count)}
            several |= {
                f"studio, {name}": partial(ours.seconds, profile=name, count=count) for name in ("exact", "fast")
            }
            found.append(once(f"{count} pictures", several))
        return (*found, _guided(ours, settings, catalogue, spec))
    finally:
        engine.close()


def _with_memory(device: str, way: Callable[[], Any]) -> tuple[float, int]:
    """Return a way's seconds, and by how many bytes memory grew meanwhile at most."""
    with growth(device) as grown:
        seconds = way()
    return seconds, grown()


def once(title: str, ways: dict[str, Callable[[], float]]) -> Bench:
    """Time each way once; the first is the plain one."""
    seconds = {name: way() for name, way in ways.items()}
    plain = next(iter(seconds.values()))
    timings = tuple(Timing(name, value, value, value) for name, value in seconds.items())
    return Bench(title, 1, timings, {name: value / plain for name, value in seconds.items()})


def turbo_of(spec: CheckpointSpec, catalogue: dict[str, CheckpointSpec]) -> CheckpointSpec | None:
    """Return the strategy of few steps on a checkpoint's base, where there is one."""
    return next(
        (one for one in catalogue.values() if one.base == spec.base and strategy(one.strategy).distilled), None
    )


class Stock:
    """diffusers' own pipeline of a checkpoint that is a whole one."""

    def __init__(self, spec: CheckpointSpec, settings: Settings, dtype: Any = None) -> None:
        """Load it.

        Args:
            spec: a pipeline.
            settings: where files are, and the device.
            dtype: ``None``: float32 on a CPU, bfloat16 on a GPU.
        """
        import torch

        from sar_gen.pipelines import quiet_diffusers, resolve_device

        if spec.kind != "pipeline":
            raise SarGenError(f"{spec.id} goes on a base; the plain way is measured with the base: {spec.base}.")
        self.spec, self.device = spec, resolve_device(settings.device)
        dtype = dtype or (torch.float32 if self.device == "cpu" else torch.bfloat16)
        diffusers = quiet_diffusers()
        kind = diffusers.StableDiffusionXLPipeline if spec.family == "sdxl" else diffusers.StableDiffusionPipeline
        options: dict[str, Any] = {"add_watermarker": False} if spec.family == "sdxl" else {"safety_checker": None}
        folder = checkpoints.local_folder(spec, settings)
        self.pipe = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, variant=spec.variant, **options)
        self.pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)

    def pictures(self, count: int = 1, seed: int = 0, prompt: str | None = None) -> Any:
        """Return pictures, float32 ``(count, height, width, 3)``."""
        import torch

        return self.pipe(
            [prompt or prompt_of(self.spec)] * count,
            num_inference_steps=self.spec.steps,
            guidance_scale=self.spec.guidance,
            width=self.spec.resolution,
            height=self.spec.resolution,
            generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(count)],
            output_type="np",
        ).images

    def seconds(self, count: int) -> float:
        """Make pictures as a user of diffusers would; return the seconds."""
        started = time.perf_counter()
        self.pictures(count)
        return time.perf_counter() - started


class Ours:
    """The engine, asked for pictures of one checkpoint."""

    def __init__(self, engine: Any, spec: CheckpointSpec) -> None:
        self.engine, self.spec = engine, spec

    def events(self, previews: bool = False, **asked: Any) -> list[tuple[float, Event]]:
        """Return each event with the seconds since the checkpoint was ready.

        Raises:
            SarGenError: generation failed.
        """
        request = GenerationRequest(**{"prompt": prompt_of(self.spec), "checkpoint": self.spec.id, **asked})
        found, started = [], time.perf_counter()
        for event in self.engine.generate(request, previews=previews):
            if isinstance(event, Failed):
                raise SarGenError(event.message)
            found.append((time.perf_counter() - started, event))
        load = getattr(found[-1][1], "seconds", {}).get("load", 0.0)
        return [(seconds - load, event) for seconds, event in found]

    def seconds(self, **asked: Any) -> float:
        """Make pictures; return the seconds without loading."""
        return self.events(**asked)[-1][0]


def prompt_of(spec: CheckpointSpec) -> str:
    """Return the prompt that is timed."""
    return spec.examples[0] if spec.examples else "a SAR image"


def _studio(settings: Settings, spec: CheckpointSpec, rounds: int) -> Bench:
    """Time what the studio adds to the engine, and how soon there is something to see."""
    from sar_gen.studio import Studio

    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(replace(settings, runs=Path(folder)))
        seen: dict[str, float] = {}

        def run(previews: bool) -> float:
            started = time.perf_counter()
            request = GenerationRequest(prompt_of(spec), checkpoint=spec.id, count=2)
            marks: dict[str, float] = {}
            for event in studio.generate(request, previews=previews):
                if isinstance(event, Failed):
                    raise SarGenError(event.message)
                if isinstance(event, Preview | PatchReady):
                    kind = "preview" if isinstance(event, Preview) else f"patch {event.index}"
                    marks.setdefault(kind, time.perf_counter() - started)
            seen.update(marks)
            return time.perf_counter() - started

        ways: dict[str, Callable[[], object]] = {
            "two patches, saved": lambda: run(False),
            "two patches, saved, with previews": lambda: run(True),
            "until the first preview": lambda: seen["preview"],
            "until the first patch": lambda: seen["patch 0"],
            "from the first patch to the next": lambda: seen["patch 1"] - seen["patch 0"],
        }
        try:
            return alternate(f"The studio with {settings.profile}, from the request on", ways, rounds)
        finally:
            studio.engine.close()


def _guided(ours: Ours, settings: Settings, catalogue: dict[str, CheckpointSpec], spec: CheckpointSpec) -> Bench:
    """Time a guide by image-to-image, and by a network where one goes with the checkpoint."""
    import numpy as np

    from sar_gen.guide_networks import networks
    from sar_gen.request import IMAGE_TO_IMAGE, Guide

    known = networks(settings, catalogue)
    fitting = [one for one in known.values() if one.base == spec.base and "sar" in one.kinds]
    grey = np.tile(np.linspace(0, 255, spec.resolution, dtype=np.uint8)[None, :, None], (spec.resolution, 1, 3))
    ways: dict[str, Callable[[], float]] = {"no guide": ours.seconds}
    ways["image-to-image"] = lambda: ours.seconds(guides=(Guide("sar", grey, way=IMAGE_TO_IMAGE),))
    if fitting:
        way = fitting[0].id
        ways[f"by {way}"] = lambda: ours.seconds(guides=(Guide("sar", grey, way=way),))
    for one in ways.values():
        one()
    return once(f"One picture with a guide, {DEFAULT_PROFILE}", ways)
