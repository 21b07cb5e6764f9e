"""What is asked of the engine, and what it says while it works: plain data, without torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError

if TYPE_CHECKING:
    from sar_gen.checkpoints import CheckpointSpec
    from sar_gen.quality.report import QualityReport
    from sar_gen.settings import Settings

GuideKind = Literal["sketch", "map", "optical", "sar"]
GUIDE_KINDS: tuple[GuideKind, ...] = ("sketch", "map", "optical", "sar")
SCHEDULERS = ("default", "dpm++", "ddim", "euler")
MAX_SEED = 2**32 - 1
DEFAULT_STRENGTH = 0.5  # a drawn river stays unmistakable; above 0.6 it blurs (measured on the embedded checkpoint)
SIZE_STEP = 8  # the VAE's downsampling factor in every family we load


@dataclass(frozen=True)
class Guide:
    """An image that steers generation.

    Attributes:
        kind: what the image shows.
        image: ``(height, width, 3)`` uint8, as drawn or uploaded.
        name: file name or where it came from.
    """

    kind: GuideKind
    image: NDArray[np.uint8]
    name: str = "drawing"


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
        guide: steering image, or ``None``.
        strength: with a guide on a checkpoint without a matching ControlNet, the share of the denoising
            that is redone (image-to-image): 0 keeps the guide, 1 ignores it.
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
    guide: Guide | None = None
    strength: float = DEFAULT_STRENGTH

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON data; a guide is named, its pixels are stored by the run."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "guide"}
        data["guide"] = None if self.guide is None else {"kind": self.guide.kind, "name": self.guide.name}
        return data


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
    if request.guide is not None and request.width and request.height:
        from sar_gen.guides import prepare_guide

        prepare_guide(request.guide, request.width, request.height, request.seed)
    local_folder(spec, settings)
    return request, spec


def completed(request: GenerationRequest, spec: CheckpointSpec, settings: Settings) -> GenerationRequest:
    """Check a request's own fields and fill in the card's defaults.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    request = dataclasses.replace(
        request,
        prompt=" ".join(request.prompt.split()),
        negative=" ".join(request.negative.split()),
        steps=spec.steps if request.steps is None else request.steps,
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
    if request.guide is not None:
        if request.guide.kind not in GUIDE_KINDS:
            raise InputError(
                f"The guide kind {request.guide.kind!r} is unknown; choose one of {', '.join(GUIDE_KINDS)}."
            )
        if not 0 < request.strength <= 1:
            raise InputError(f"The strength is {request.strength}; choose more than 0, up to 1.")
    return request


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


Event = Queued | Loading | Notice | Step | Preview | PatchReady | Saved | Judged | Done | Stopped | Failed


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing, for the status line; ``message`` is one sentence."""

    status: Literal["idle", "loading", "ready", "busy", "failed"]
    message: str
    device: str = ""
    dtype: str = ""
    checkpoint: str = ""
