"""What is asked of the engine, and what it says while it works: plain data, without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.profiles import Switches, for_strategy, switches_of
from sar_gen.strategies import strategy

if TYPE_CHECKING:
    from sar_gen.checkpoints import CheckpointSpec
    from sar_gen.quality.report import QualityReport
    from sar_gen.selection import Selection
    from sar_gen.settings import Settings

GuideKind = Literal["sketch", "map", "optical", "sar"]
GUIDE_KINDS: tuple[GuideKind, ...] = ("sketch", "map", "optical", "sar")
IMAGE_TO_IMAGE = "image-to-image"
"""The way of a guide that no network reads: it becomes the picture that generation starts from."""
MAX_GUIDES = 4
SCHEDULERS = ("default", "dpm++", "ddim", "euler")
MAX_SEED = 2**32 - 1
DEFAULT_STRENGTH = 0.5  # a drawn river stays unmistakable; above 0.6 it blurs (measured on the embedded checkpoint)
SIZE_STEP = 8  # the VAE's downsampling factor in every family we load


@dataclass(frozen=True)
class Guide:
    """An image that steers generation.

    Attributes:
        kind: what the image shows.
        image: ``(height, width, 3)`` uint8, as drawn or uploaded; ``(height, width)`` for a map of class codes.
        name: file name or where it came from.
        way: id of the network that reads it (``guide_networks``), or ``IMAGE_TO_IMAGE``; ``None`` is the checkpoint's
            default for this kind.
        weight: of what the network adds to the denoiser; 0 is without, 1 as trained. Image-to-image has none.
        start: share of the denoising steps before it sets in. Image-to-image has none.
        end: share of the denoising steps after which it ends. Image-to-image has none.
        palette: of a sketch or map, a name of ``palettes.PALETTES``, or ``auto``.
        notes: sentences on what was done to the image when it was read.
    """

    kind: GuideKind
    image: NDArray[np.uint8]
    name: str = "drawing"
    way: str | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    palette: str = "studio"
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.image).tobytes()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return everything but the pixels, with their hash."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "image"}
        return {**data, "notes": list(self.notes), "sha256": self.sha256}


@dataclass(frozen=True)
class GenerationRequest:
    """One request; ``None`` means the checkpoint card's default.

    Attributes:
        prompt: what to generate.
        negative: what to avoid; empty is the unconditional branch that the checkpoint was trained with.
        checkpoint: catalogue id.
        strategy: name from ``strategies.STRATEGIES``; ``None`` is the checkpoint's own.
        count: number of patches; patch ``i`` uses ``seed + i``.
        seed: seed of the first patch.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 is without.
        width: pixels, a multiple of 8.
        height: pixels, a multiple of 8.
        scheduler: one of ``SCHEDULERS``.
        guides: steering images; a size above the checkpoint's own makes one large scene of overlapping windows.
        strength: with a guide by image-to-image, the share of the denoising that is redone: 0 keeps the guide, 1
            ignores it.
        profile: how fast and how exactly, a name of ``profiles.PROFILES``; ``None`` is the setting's.
        switches: of ``profiles.Switches``, set otherwise than the profile sets them; all of them once checked.
    """

    prompt: str
    negative: str = ""
    checkpoint: str = "sar-mini"
    strategy: str | None = None
    count: int = 1
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str = "default"
    guides: tuple[Guide, ...] = ()
    strength: float = DEFAULT_STRENGTH
    profile: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON data; guides are named by hash, their pixels are stored by the run."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "guides"}
        return {**data, "switches": dict(self.switches), "guides": [guide.to_json() for guide in self.guides]}

    @property
    def start_guide(self) -> Guide | None:
        """The guide that generation starts from (image-to-image), where there is one."""
        return next((guide for guide in self.guides if guide.way == IMAGE_TO_IMAGE), None)


def check_request(
    request: GenerationRequest, catalogue: dict[str, CheckpointSpec], settings: Settings
) -> tuple[GenerationRequest, CheckpointSpec]:
    """Check everything that can be checked before torch is even imported.

    Returns:
        The request with the card's defaults filled in, and the checkpoint that it resolves to.

    Raises:
        InputError: one sentence on the first thing that is wrong (request, guide, missing weights).
    """
    from sar_gen.checkpoints import local_folder, resolve

    spec = resolve(catalogue, request.checkpoint, request.strategy)
    request = completed(request, spec, settings)
    if request.guides:
        from sar_gen.conditioning import prepare_guides
        from sar_gen.guide_networks import networks, with_ways

        known = networks(settings, catalogue)
        request = dataclasses.replace(request, guides=with_ways(request.guides, spec, known, settings))
        prepare_guides(request, known)
    if spec.origin != "backend":  # which checks its own files
        local_folder(spec, settings)
    return request, spec


def scene_size(guides: Sequence[Guide], settings: Settings) -> tuple[int, int]:
    """Return width and height of a scene as large as the first guide: multiples of ``SIZE_STEP``, within the limit.

    Raises:
        InputError: there is no guide.
    """
    if not guides:
        raise InputError("There is no guide to take the size from; give one, or a width and height.")
    return size_of(guides[0], settings.max_side)


def size_of(guide: Guide, largest: int) -> tuple[int, int]:
    """Return width and height of the scene that a guide is the map of: multiples of ``SIZE_STEP``, within a limit."""
    height, width = guide.image.shape[:2]
    scale = min(1.0, largest / max(height, width))
    return tuple(max(64, int(side * scale) // SIZE_STEP * SIZE_STEP) for side in (width, height))  # type: ignore[return-value]


def switches_for(spec: CheckpointSpec, profile: str, changes: Mapping[str, Any] | None = None) -> Switches:
    """Return the switches of a profile for a checkpoint, with single ones set otherwise.

    Raises:
        InputError: an unknown profile or switch, or a value that cannot be.
    """
    return for_strategy(switches_of(profile, changes), strategy(spec.strategy).distilled)


def default_steps(spec: CheckpointSpec, switches: Switches) -> int:
    """Return how many steps are made where a request asks for none."""
    return max(1, round(spec.steps * switches.steps))


def completed(request: GenerationRequest, spec: CheckpointSpec, settings: Settings) -> GenerationRequest:
    """Check a request's own fields and fill in the card's defaults.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    profile = settings.profile if request.profile is None else request.profile
    switches = switches_for(spec, profile, request.switches)
    here = spec.origin != "backend"
    if here and switches.quantised != "none" and importlib.util.find_spec("torchao") is None:
        raise InputError("The switch quantised needs the package torchao; pip install torchao, or set it to none.")
    request = dataclasses.replace(
        request,
        profile=profile,
        switches=dataclasses.asdict(switches),
        prompt=" ".join(request.prompt.split()),
        negative=" ".join(request.negative.split()),
        steps=default_steps(spec, switches) if request.steps is None else request.steps,
        guidance=spec.guidance if request.guidance is None else request.guidance,
        width=spec.resolution if request.width is None else request.width,
        height=spec.resolution if request.height is None else request.height,
    )
    assert request.steps is not None and request.guidance is not None
    assert request.width is not None and request.height is not None
    if not request.prompt:
        raise InputError("The prompt is empty; describe the scene, for example 'a SAR image of a mountain gorge'.")
    if not 1 <= request.count <= settings.max_count:
        raise InputError(f"The number of patches is {request.count}; choose 1 to {settings.max_count}.")
    if not 0 <= request.seed <= MAX_SEED - settings.max_count:
        raise InputError(f"The seed is {request.seed}; choose 0 to {MAX_SEED - settings.max_count}.")
    if not 1 <= request.steps <= 200:
        raise InputError(f"The number of steps is {request.steps}; choose 1 to 200.")
    if not 1 <= request.guidance <= 30:
        raise InputError(f"The guidance is {request.guidance}; choose 1 (none) to 30.")
    for name, side in (("width", request.width), ("height", request.height)):
        if side % SIZE_STEP or not 64 <= side <= settings.max_side:
            raise InputError(
                f"The {name} is {side} pixels; choose a multiple of {SIZE_STEP} from 64 to {settings.max_side} "
                f"({spec.resolution} is what this checkpoint was trained at)."
            )
    if request.scheduler not in SCHEDULERS:
        raise InputError(f"The scheduler {request.scheduler!r} is unknown; choose one of {', '.join(SCHEDULERS)}.")
    if len(request.guides) > MAX_GUIDES:
        raise InputError(f"There are {len(request.guides)} guides; use {MAX_GUIDES} at most.")
    for guide in request.guides:
        _check_guide(guide)
    if request.guides and not 0 < request.strength <= 1:
        raise InputError(f"The strength is {request.strength}; choose more than 0, up to 1.")
    return request


def _check_guide(guide: Guide) -> None:
    if guide.kind not in GUIDE_KINDS:
        raise InputError(f"The guide kind {guide.kind!r} is unknown; choose one of {', '.join(GUIDE_KINDS)}.")
    if not 0 <= guide.weight <= 2:
        raise InputError(f"The weight of the {guide.kind} guide is {guide.weight}; choose 0 to 2.")
    if not 0 <= guide.start < guide.end <= 1:
        raise InputError(
            f"The {guide.kind} guide runs from {guide.start} to {guide.end} of the steps; choose shares from 0 to 1, "
            "the start before the end."
        )


@dataclass(frozen=True)
class Queued:
    """The request waits: ``position`` requests are before it (0: it starts now)."""

    position: int


@dataclass(frozen=True)
class Loading:
    """The checkpoint is being loaded or switched; ``message`` says what is happening."""

    message: str


@dataclass(frozen=True)
class Notice:
    """Something that the user should know; the work goes on (a cut prompt, the device chosen, a lighter mode)."""

    message: str


@dataclass(frozen=True)
class Step:
    """Denoising step ``step`` of ``steps`` of patches ``first .. first + size - 1`` of ``count`` is done."""

    step: int
    steps: int
    first: int
    size: int
    count: int
    seconds: float
    eta: float


@dataclass(frozen=True)
class Preview:
    """A rough look at patch ``index`` in the making: float32 ``(height, width)`` amplitude; never measured."""

    index: int
    amplitude: NDArray[np.float32]


@dataclass(frozen=True)
class PatchReady:
    """A finished patch: float32 ``(height, width)`` amplitude in [0, 1]."""

    index: int
    seed: int
    amplitude: NDArray[np.float32]


@dataclass(frozen=True)
class Saved:
    """Patch ``index`` is on disk: ``view`` is the 8-bit PNG, ``amplitude_file`` the float32 ``.npy``."""

    index: int
    seed: int
    view: Path
    amplitude_file: Path
    sha256: str


@dataclass(frozen=True)
class Done:
    """All patches are made; ``seconds`` by phase (load, generate)."""

    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """The user stopped; the patches finished before are kept."""

    finished: int
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The work ended with an error; ``message`` is one sentence, ``user_error`` says whose it is."""

    message: str
    finished: int = 0
    user_error: bool = False


@dataclass(frozen=True)
class Judged:
    """The finished patches were compared with the reference that was asked for."""

    report: QualityReport


@dataclass(frozen=True)
class Selected:
    """The best of the finished patches were chosen; the report is on these."""

    selection: Selection


Event = Queued | Loading | Notice | Step | Preview | PatchReady | Saved | Selected | Judged | Done | Stopped | Failed


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing, for the status line; ``message`` is one sentence."""

    status: Literal["idle", "loading", "ready", "busy", "failed"]
    message: str
    device: str = ""
    dtype: str = ""
    checkpoint: str = ""
