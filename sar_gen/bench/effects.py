"""What each switch gains, and what it does to the pictures: difference to the plain ones, distances to real SAR.

Every way makes the same seeds of the same prompts, which the reference sets show. Distances are those of
``quality.report``; their ratio is to those of the plain way. The distance of the plain way itself comes of few
patches: the ratio tells of the switch, the distance little of the checkpoint.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen import checkpoints
from sar_gen.bench.generate import COMPILE_SECONDS, Ours, Stock, turbo_of
from sar_gen.bench.models import measured
from sar_gen.errors import InputError
from sar_gen.request import Done, PatchReady
from sar_gen.settings import Settings

MEASURES = (
    "wasserstein1", "glcm_contrast", "glcm_homogeneity", "glcm_energy", "glcm_correlation", "enl",
    "speckle_correlation", "spectrum",
)  # fmt: skip
SINGLE: tuple[dict[str, Any], ...] = (
    {"precision": "auto"},
    {"precision": "auto", "wide_sampler": True},
    {"fused_projections": "on"},
    {"channels_last": "on"},
    {"compiled": "on"},
    {"graphs": True},
    {"guidance_end": 0.6},
    {"reuse": 2},
    {"steps": 0.5},
    {"decoder": "narrow"},
    {"quantised": "int8"},
)
Patches = dict[str, list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Effect:
    """One way of making pictures.

    Attributes:
        name: of the way.
        seconds: a picture, median.
        gain: seconds of the plain way over these.
        largest: largest difference of amplitude to the plain way, over all pixels.
        mean: mean difference of amplitude.
        measures: mean distance to real SAR over the prompts, by measure.
        ratios: of these to those of the plain way.
    """

    name: str
    seconds: float
    gain: float
    largest: float
    mean: float
    measures: dict[str, float]
    ratios: dict[str, float]


SHOWN = {"wasserstein1": "W1", "glcm_contrast": "contrast", "glcm_homogeneity": "homogeneity", "glcm_energy": "energy",
         "glcm_correlation": "correlation", "enl": "ENL", "spectrum": "spectrum"}  # fmt: skip


@dataclass(frozen=True)
class Effects:
    """What was found.

    Attributes:
        title: what was measured.
        effects: the plain way first.
        exactness: of the exact profile.
    """

    title: str
    effects: tuple[Effect, ...]
    exactness: Exactness

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Return the lines of a table: distances of the plain way, and the others' in multiples of them."""
        lines = [("way", "s a patch", "gain", "largest difference", "mean", *SHOWN.values())]
        for one in self.effects:
            cells = [f"{one.ratios[key]:.2f}" for key in SHOWN]
            lines.append(
                (one.name, f"{one.seconds:.2f}", f"{one.gain:.2f}", f"{one.largest:.4f}", f"{one.mean:.5f}", *cells)
            )
        return lines

    def sentences(self) -> list[str]:
        """Return what the table does not say."""
        plain, exact = self.effects[0].measures, self.exactness
        distances = ", ".join(f"{title} {plain[key]:.4g}" for key, title in SHOWN.items())
        return [
            f"Distances are multiples of the plain way's: {distances}.",
            f"Difference to diffusers in float32: diffusers in bfloat16 {exact.stock[0]:.4f} at most, "
            f"{exact.stock[1]:.5f} in the mean; exact {exact.exact[0]:.4f} and {exact.exact[1]:.5f}.",
            f"Two runs of exact are {'' if exact.repeated else 'not '}equal bit for bit.",
        ]


@dataclass(frozen=True)
class Exactness:
    """How far pictures are from diffusers' own in float32, and whether two runs give the same bits.

    Attributes:
        stock: largest and mean difference of diffusers' own pipeline in bfloat16.
        exact: the same of the exact profile.
        repeated: two runs of the exact profile are equal bit for bit.
    """

    stock: tuple[float, float]
    exact: tuple[float, float]
    repeated: bool


def measured_prompts(spec: checkpoints.CheckpointSpec) -> dict[str, str]:
    """Return ``{reference set: prompt}`` of the card's examples, one a set.

    Raises:
        InputError: no example names a ground that a reference set shows.
    """
    found: dict[str, str] = {}
    for prompt in spec.examples:
        name = spec.reference_of(prompt)
        if name is not None:
            found.setdefault(name, prompt)
    if not found:
        raise InputError(f"The card of {spec.title} names no reference set for its examples; measure another one.")
    return found


def bench_effects(
    settings: Settings,
    patches: int,
    work: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    compiled: bool = True,
) -> Effects:
    """Measure every switch alone, each profile and the strategy of few steps.

    Args:
        settings: checkpoint and device.
        patches: a prompt.
        work: folder for what is compiled, kept; a temporary one when left out.
        say: told which way is measured.
        compiled: also measure what is compiled: minutes the first time.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measured(measured(settings, None, work or Path(folder)), patches, say, compiled)


def _measured(settings: Settings, patches: int, say: Callable[[str], None], compiled: bool) -> Effects:
    from sar_gen.engine import Engine

    catalogue = checkpoints.catalogue(settings)
    spec = checkpoints.resolve(catalogue, settings.checkpoint)
    prompts = measured_prompts(spec)
    ways: dict[str, dict[str, Any]] = {"plain": {"profile": "plain"}}
    for switches in SINGLE:
        absent = "quantised" in switches and importlib.util.find_spec("torchao") is None
        if absent or ("compiled" in switches and not compiled):
            continue
        name = ", ".join(f"{key}={value}" for key, value in switches.items())
        ways[name] = {"profile": "plain", "switches": switches}
    ways |= {name: {"profile": name} for name in ("exact", "fast")}
    turbo = turbo_of(spec, catalogue)
    if turbo is not None:
        ways[turbo.id] = {"checkpoint": turbo.id, "strategy": turbo.strategy, "profile": "exact"}
        ways[f"{turbo.id}, fast"] = {"checkpoint": turbo.id, "strategy": turbo.strategy, "profile": "fast"}
    engine = Engine(settings)
    found: list[Effect] = []
    first: Patches = {}
    try:
        ours = Ours(engine, spec)
        for name, asked in ways.items():
            say(f"Measuring {name}.")
            ours.seconds(**asked)
            engine.wait_compiled(COMPILE_SECONDS)
            made, seconds = make(ours, prompts, patches, asked)
            measures = distances(made, settings)
            if not found:
                first = made
            found.append(effect(name, seconds, made, measures, first, found[0] if found else None))
        say("Measuring exactness.")
        exactness = measure_exactness(settings, ours, prompts, patches)
    finally:
        engine.close()
    title = f"{patches} patches of each of {len(prompts)} prompts, {spec.id}, {spec.steps} steps, guidance "
    return Effects(f"{title}{spec.guidance:g}, {engine.state.device}", tuple(found), exactness)


def make(ours: Ours, prompts: Mapping[str, str], patches: int, asked: Mapping[str, Any]) -> tuple[Patches, float]:
    """Return the patches of each prompt, and the median of the seconds a patch."""
    made: Patches = {}
    seconds = []
    for name, prompt in prompts.items():
        events = [event for _, event in ours.events(count=patches, prompt=prompt, seed=1000, **asked)]
        made[name] = [event.amplitude for event in events if isinstance(event, PatchReady)]
        seconds += [event.seconds["generate"] / patches for event in events if isinstance(event, Done)]
    return made, statistics.median(seconds)


def distances(made: Patches, settings: Settings) -> dict[str, float]:
    """Return the mean distance of patches to their reference sets, by measure."""
    from sar_gen.quality.report import compare
    from sar_gen.quality.statistics import patch_statistics
    from sar_gen.references import load_reference

    rows = []
    for name, patches in made.items():
        real = load_reference(name, settings).statistics
        report = compare(patch_statistics(patches), real, reference_name=name).to_json()["measures"]
        rows.append({measure: report[measure]["value"] for measure in MEASURES})
    return {measure: float(np.mean([row[measure] for row in rows])) for measure in MEASURES}


def effect(
    name: str, seconds: float, made: Patches, measures: dict[str, float], first: Patches, plain: Effect | None
) -> Effect:
    """Return what a way does, beside the plain one (``None``: it is the plain one)."""
    largest, mean = difference(made, first)
    before = measures if plain is None else plain.measures
    ratios = {key: value / before[key] if before[key] else float("nan") for key, value in measures.items()}
    gain = 1.0 if plain is None else plain.seconds / seconds
    return Effect(name, seconds, gain, largest, mean, measures, ratios)


def difference(made: Patches, other: Patches) -> tuple[float, float]:
    """Return the largest and the mean absolute difference of two sets of patches."""
    gaps = [np.abs(a - b) for name in made for a, b in zip(made[name], other[name], strict=True)]
    return float(max(gap.max() for gap in gaps)), float(np.mean([gap.mean() for gap in gaps]))


def measure_exactness(settings: Settings, ours: Ours, prompts: Mapping[str, str], patches: int) -> Exactness:
    """Compare diffusers in bfloat16 and the exact profile with diffusers in float32, on the same seeds."""
    import torch

    from sar_gen.amplitude import from_model

    def stock(dtype: torch.dtype) -> Patches:
        pipe = Stock(ours.spec, settings, dtype)
        found: Patches = {}
        for name, prompt in prompts.items():
            pictures = [pipe.pictures(1, 1000 + i, prompt)[0].mean(-1) for i in range(patches)]
            found[name] = [from_model(picture, ours.spec.model_encoding) for picture in pictures]
        return found

    wide = stock(torch.float32)
    made, _ = make(ours, prompts, patches, {"profile": "exact"})
    again, _ = make(ours, prompts, patches, {"profile": "exact"})
    return Exactness(
        difference(stock(torch.bfloat16), wide), difference(made, wide), difference(made, again)[0] == 0.0
    )
