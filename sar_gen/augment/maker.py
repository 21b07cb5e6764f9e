"""What makes a unit of slots: the engine draws, the gate judges, and pixels become the bytes that are stored.

``Maker.make`` depends on the recipe and the unit's number alone. The first attempt is one request for the whole unit;
slots that the gate rejects are tried again with their next seeds, those that lie side by side in one request. On a CPU
the engine makes patches one by one, so each equals its seed made alone with as many threads.
"""

from __future__ import annotations

import dataclasses
import io
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen import checkpoints, references
from sar_gen.amplitude import quantise
from sar_gen.augment.recipe import Recipe, read, request_of
from sar_gen.augment.slots import Slots, Unit
from sar_gen.errors import InputError, SarGenError
from sar_gen.guides import resize_map
from sar_gen.patches import npy_bytes
from sar_gen.quality.nearness import MAIN_MEASURES, NEARNESS, floor_ratios, nearness
from sar_gen.quality.report import floors
from sar_gen.quality.statistics import PatchStatistics, patch_statistics
from sar_gen.request import Failed, GenerationRequest, Guide, Notice, PatchReady, check_request
from sar_gen.runs import amplitude_sha256
from sar_gen.settings import Settings
from sar_gen.studio import Studio

MOST_NOTICES = 50
"""Different sentences of the engine that are passed on; one a guide would fill the memory."""


class StopError(Exception):
    """The user wants the end; what was being made is left."""


@dataclass(frozen=True)
class Decision:
    """What became of a slot.

    Attributes:
        slot: its number.
        line: of the journal, as JSON data without names of files.
        data: of the patch's file; ``None`` where every attempt was rejected.
        masks: PNG files of its guides.
    """

    slot: int
    line: dict[str, Any]
    data: bytes | None
    masks: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Made:
    """A unit, decided: one decision a slot, and what the engine said beside."""

    unit: int
    decisions: tuple[Decision, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class First:
    """The first attempt at a unit: what was asked for, and the patches, float32 ``(height, width)`` each."""

    unit: Unit
    request: GenerationRequest
    amplitudes: list[NDArray[np.float32]]


class Gate:
    """Judges single patches against a real set.

    Args:
        reference: of real patches.
        limits: the most that a patch may be away, in floors, by measure.
    """

    def __init__(self, reference: PatchStatistics, limits: Mapping[str, float]) -> None:
        self.reference, self.limits = reference, dict(limits)
        known = floors(reference, 1)
        main = [name for name in MAIN_MEASURES if known.get(name, (None, None))[0]]
        self.measures = tuple(dict.fromkeys((*main, *(name for name in limits if name != NEARNESS))))

    def judge(self, amplitudes: Sequence[NDArray[np.float32]]) -> list[dict[str, float | None]]:
        """Return each patch's distances in floors by measure, and their mean; ``None`` where one is undefined."""
        ratios = floor_ratios(patch_statistics(amplitudes), self.reference, self.measures)
        near = nearness({name: ratios[name] for name in self.measures if name in MAIN_MEASURES} or ratios)
        rows = {**ratios, NEARNESS: near}
        return [{name: _rounded(row[i]) for name, row in rows.items()} for i in range(len(amplitudes))]

    def why_not(self, ratios: Mapping[str, float | None]) -> str:
        """Return why a patch is rejected; empty where it is not. What is undefined cannot be held against it."""
        over = [
            f"{name} {ratios[name]:g} > {limit:g}"
            for name, limit in self.limits.items()
            if (ratios[name] or 0.0) > limit
        ]
        return ", ".join(over)


class Maker:
    """Makes units. It has an engine of its own, which loads the checkpoint at the first unit.

    Args:
        recipe: of the set.
        settings: where things are on this machine.
        stop: set it to end within a denoising step.
    """

    def __init__(self, recipe: Recipe, settings: Settings, stop: threading.Event | None = None) -> None:
        import torch

        # Sums are split among threads, so the number of threads decides the last bits of a patch.
        torch.set_num_threads(recipe.plan.threads)
        self.recipe, self.settings = recipe, settings
        self.slots = Slots(recipe)
        self.stop = threading.Event() if stop is None else stop
        self._studio = Studio(settings)
        self._catalogue = checkpoints.catalogue(settings)
        self._gates: dict[str, Gate] = {}
        self._heard: set[str] = set()
        self._said: list[str] = []
        for id, wanted in recipe.weights.items():
            if id not in self._catalogue or checkpoints.weight_hashes(self._catalogue[id], settings) != wanted:
                raise InputError(f"The checkpoint {id} on this machine is not the set's; bring the same files.")

    def make(self, number: int) -> Made:
        """Make a unit.

        Raises:
            InputError: what it needs cannot be used on this machine.
            SarGenError: the engine failed.
            StopError: ``stop`` was set.
        """
        return self.decide(self.first(number))

    def first(self, number: int) -> First:
        """Make the first attempt at a unit, without judging it; raises what ``make`` does."""
        unit = self.slots.unit(number)
        request = self._request(unit, 0, 0, unit.size)
        return First(unit, request, self._generate(request))

    def decide(self, begun: First) -> Made:
        """Judge a unit's first attempt, and try again where the gate says so; raises what ``make`` does."""
        plan, unit = self.recipe.plan, begun.unit
        gate = self._gate(unit.kind.reference)
        rejected: dict[int, list[dict[str, Any]]] = {place: [] for place in range(unit.size)}
        decided: dict[int, Decision] = {}
        runs = [(0, unit.size)]
        for attempt in range(plan.gate.attempts):
            for first, size in runs:
                request = self._request(unit, attempt, first, size) if attempt else begun.request
                made = self._generate(request) if attempt else begun.amplitudes
                judged = gate.judge(made) if gate is not None else [{} for _ in made]
                for place, amplitude, ratios in zip(range(first, first + size), made, judged, strict=True):
                    seed = self.slots.seed(unit.first + place, attempt)
                    found = {"attempt": attempt, "seed": seed, "sha256": amplitude_sha256(amplitude), "ratios": ratios}
                    why = "" if gate is None else gate.why_not(ratios)
                    if why:
                        rejected[place].append({**found, "why": why})
                    else:
                        one = dataclasses.replace(request, seed=seed, count=1)
                        decided[place] = self._made(unit, place, one, amplitude, found, rejected[place])
            runs = list(_runs([place for place in range(unit.size) if place not in decided]))
            if not runs:
                break
        for first, size in runs:
            for place in range(first, first + size):
                line = {**self._head(unit, place), "made": False, "rejected": rejected[place]}
                decided[place] = Decision(unit.first + place, line, None)
        said, self._said = self._said, []
        return Made(unit.number, tuple(decided[place] for place in range(unit.size)), tuple(said))

    def _request(self, unit: Unit, attempt: int, first: int, size: int) -> GenerationRequest:
        guides = tuple(
            read(files, name, self.settings) for files, name in zip(unit.kind.guides, unit.guides, strict=True)
        )
        seed = self.slots.seed(unit.first + first, attempt)
        request = request_of(self.recipe.plan, unit.kind, unit.prompt, guides, seed, size, self.recipe.profile)
        return check_request(request, self._catalogue, self.settings)[0]

    def _generate(self, request: GenerationRequest) -> list[NDArray[np.float32]]:
        made = []
        # The engine sets a request's cancel event at its end, so each has its own; closing its events sets it too.
        with closing(self._studio.engine.generate(request, previews=False)) as events:  # type: ignore[type-var]
            for event in events:
                if self.stop.is_set():
                    raise StopError
                if isinstance(event, PatchReady):
                    made.append(event.amplitude)
                elif isinstance(event, Notice):
                    if event.message not in self._heard and len(self._heard) < MOST_NOTICES:
                        self._heard.add(event.message)
                        self._said.append(event.message)
                elif isinstance(event, Failed):
                    raise (InputError if event.user_error else SarGenError)(event.message)
        return made

    def _gate(self, name: str | None) -> Gate | None:
        if name is None:
            return None
        if name not in self._gates:
            reference = references.load_reference(name, self.settings)
            self._gates[name] = Gate(reference.statistics, self.recipe.plan.gate.measures)
        return self._gates[name]

    def _head(self, unit: Unit, place: int) -> dict[str, Any]:
        slot = unit.first + place
        return {"slot": slot, "key": self.slots.key(slot), "class": unit.kind.name}

    def _made(
        self, unit: Unit, place: int, request: GenerationRequest, amplitude: NDArray[np.float32],
        found: dict[str, Any], rejected: list[dict[str, Any]],
    ) -> Decision:  # fmt: skip
        spec = self._catalogue[request.checkpoint]
        state = self._studio.state
        masks = [mask_png(guide, amplitude.shape) for guide in request.guides]
        line = {
            **self._head(unit, place),
            "made": True,
            **found,
            "height": amplitude.shape[0],
            "width": amplitude.shape[1],
            "polarisation": _known(spec.polarisation_of(request.prompt)),
            "encoding": spec.amplitude_encoding,
            "request": request.to_json(),
            "masks": [facts for _, facts in masks],
            "device": {"device": state.device, "dtype": state.dtype},
            "rejected": rejected,
        }
        name = self._head(unit, place)["key"]
        data = npy_bytes(amplitude) if self.recipe.plan.pixels == "npy" else patch_png(amplitude, name)
        return Decision(unit.first + place, line, data, tuple(png for png, _ in masks))


def patch_png(amplitude: NDArray[np.float32], name: str) -> bytes:
    """Return amplitude as 16-bit grey PNG that says in its text that it is synthetic.

    Args:
        amplitude: ``(height, width)`` in [0, 1]; 65535 is 1.
        name: of the patch.
    """
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("Description", f"Synthetic SAR amplitude, not a measurement: {name}, made with SAR studio")
    buffer = io.BytesIO()
    Image.fromarray(quantise(amplitude, 16)).save(buffer, "PNG", compress_level=1, pnginfo=text)
    return buffer.getvalue()


def mask_png(guide: Guide, shape: tuple[int, ...]) -> tuple[bytes, dict[str, Any]]:
    """Return a guide at the size of its patch as PNG, and what it is.

    A sketch or map becomes an indexed picture whose numbers are the classes of its own palette, each pixel the nearest
    of the guide's; another guide stays a picture (bicubic).

    Args:
        guide: as it was read.
        shape: height and width of the patch.
    """
    from PIL import Image

    from sar_gen.palettes import load_palette, own_classes, palette_of

    facts: dict[str, Any] = {"kind": guide.kind, "guide": guide.name, "sha256": guide.sha256}
    if guide.kind in ("map", "sketch"):
        palette = palette_of(guide.image, guide.palette)
        classes = resize_map(own_classes(guide.image, palette), (shape[0], shape[1]))
        image = Image.frombytes("P", classes.shape[::-1], np.ascontiguousarray(classes, np.uint8).tobytes())
        image.putpalette(load_palette(palette).colours.tobytes())
        facts["palette"] = palette
    else:
        image = Image.fromarray(guide.image)
        if image.size != (shape[1], shape[0]):
            image = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), facts


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first place and length of each run of places side by side."""
    start = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or places[end] != places[end - 1] + 1:
            yield places[start], end - start
            start = end


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _known(polarisation: str | None) -> str | None:
    return polarisation if polarisation and "/" not in polarisation and "+" not in polarisation else None
