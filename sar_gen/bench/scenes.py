"""Scenes larger than the checkpoint's size: time, memory, and whether the windows that make them can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen import checkpoints
from sar_gen.errors import SarGenError
from sar_gen.request import Failed, GenerationRequest, PatchReady, Step
from sar_gen.settings import Settings

SIDES = (256, 512, 1024)
STEPS = 8
REACH = 4
"""Pixels on either side of a line that a jump is taken over."""


@dataclass(frozen=True)
class Scene:
    """What one scene took, and its seams.

    Attributes:
        name: how it was made.
        side: pixels.
        seconds: of generation.
        peak: bytes, the most that the process has held so far.
        seams: mean jump of the means of columns and of rows where windows of the decoder begin, divided by the mean
            jump elsewhere: 1 is none. ``None`` for one window.
    """

    name: str
    side: int
    seconds: float
    peak: int
    seams: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)


def bench_scenes(
    settings: Settings, sides: Sequence[int] = SIDES, steps: int = STEPS, say: Callable[[str], None] = lambda _: None
) -> tuple[Scene, ...]:
    """Make one scene a side with the chosen checkpoint, and one of patches put side by side, which has seams."""
    from sar_gen.engine import Engine
    from sar_gen.training.loop import peak_memory

    spec = checkpoints.catalogue(settings)[settings.checkpoint]
    engine = Engine(settings)
    prompt = spec.examples[0] if spec.examples else "a SAR image"
    found = []

    def make(side: int, seed: int = 0) -> tuple[NDArray[np.float32], float]:
        request = GenerationRequest(prompt, checkpoint=spec.id, width=side, height=side, seed=seed, steps=steps)
        patch, seconds = None, 0.0
        for event in engine.generate(request, previews=False):
            if isinstance(event, Failed):
                raise SarGenError(event.message)
            if isinstance(event, Step):
                seconds = event.seconds
                say(f"{side} x {side}: step {event.step} of {event.steps}")
            if isinstance(event, PatchReady):
                patch = event.amplitude
        assert patch is not None
        return patch, seconds

    try:
        native = spec.resolution
        make(native)  # loads the checkpoint
        for side in sides:
            scene, seconds = make(side)
            seams = None if side <= native else seams_of(scene, native // 2)
            found.append(Scene("windows", side, seconds, peak_memory(settings.device), seams))
        patches = [make(native, seed)[0] for seed in range(4)]
        joined = np.block([patches[:2], patches[2:]])
        found.append(Scene("patches side by side", 2 * native, 0.0, 0, seams_of(joined, native)))
    finally:
        engine.close()
    return tuple(found)


def seams_of(scene: NDArray[np.float32], every: int) -> tuple[float, float]:
    """Return the jumps at columns and at rows that are multiples of ``every``, by the jumps at all others.

    A jump is the absolute difference of the means of ``REACH`` columns (rows) before and after a line.
    """
    return _seams(scene.mean(axis=0), every), _seams(scene.mean(axis=1), every)


def _seams(profile: NDArray[np.float32], every: int) -> float:
    sums = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    lines = np.arange(REACH, len(profile) - REACH + 1)
    after = sums[lines + REACH] - sums[lines]
    before = sums[lines] - sums[lines - REACH]
    jumps = np.abs(after - before) / REACH
    near = np.abs((lines + every // 2) % every - every // 2) <= 1
    return float(jumps[near].mean() / jumps[~near].mean())
