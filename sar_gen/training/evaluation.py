"""How near a checkpoint's patches are to real ones, terrain by terrain, each measure beside its floor.

Everything is measured in the studio's linear amplitude, against the ``reference`` split, which nothing was trained on:

- **Wasserstein-1** and **KL(real || generated)** (``quality.distribution``: 64 bins, 1e-6 added to each) of the pooled
  amplitude. The floor is the larger of two distances between real patches: the train split against the reference
  split; and the median over random splits of the train patches by overlap group, as many patches as the reference
  split has (as far as possible one a group, ``quality.splits``) against those of all other groups. A distance holds
  up to ``LIMIT`` times the floor.
- **GLCM** contrast, homogeneity, energy and correlation: the mean over patches is to lie between the train mean and
  the reference mean, where the lower of the two is lowered and the higher raised by ``WIDENING`` of itself. The
  distance to the reference mean also stands beside its floor, made as above.
- **Prompt agreement** by SAR-CLIP (``quality.semantic``), beside what the reference patches score with the prompt.
- **Copies**: the best correlation with any training patch (``training.copies``), beside the best that any reference
  patch reaches; a patch above it is flagged.

The spread of each distance is its standard deviation over bootstrap draws of the generated patches: what another set
of seeds would give. That of another training run is not in it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as checked_dataclass

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.quality import report
from sar_gen.quality.distribution import kl_divergence, wasserstein1
from sar_gen.quality.report import Pooled, pooled_sets
from sar_gen.quality.statistics import PatchStatistics, concat, patch_statistics
from sar_gen.quality.texture import GLCM_NAMES
from sar_gen.sensitivity import weights_of_splits
from sar_gen.training.captions import PHRASES
from sar_gen.training.config import STRICT, Positive
from sar_gen.training.copies import averaged, nearest_crops

if TYPE_CHECKING:
    from sar_gen.checkpoints import CheckpointSpec
    from sar_gen.engine import Engine
    from sar_gen.quality.semantic import SarClip

LIMIT = 1.2
"""A distance holds up to so many times its floor."""
WIDENING = 0.1
"""Share of each end by which the interval of a GLCM mean is widened."""
TEXTURES = ("contrast", "homogeneity", "energy", "correlation")
SPLITS = 200
BOOTSTRAP = 200
Say = Callable[[str], None]
Stop = Callable[[], bool]


@checked_dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """What is generated to be measured.

    Attributes:
        patches: of each terrain.
        steps: of denoising; ``None``: the card's.
        guidance: ``None``: the card's.
        seed: of the first patch; the terrains follow each other ``SEED_STEP`` apart.
        prompts: by terrain, used in turn; a terrain that is not named has ``a SAR image of`` its first phrase.
        sarclip: also measure prompt agreement; patches of 64 pixels and more.
        copies: also look for copies of training patches.
    """

    patches: Positive = 32
    steps: int | None = None
    guidance: float | None = None
    seed: int = 1000
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sarclip: bool = True
    copies: bool = True


SEED_STEP = 10_000


@dataclass(frozen=True)
class Distance:
    """A distance of generated to real patches, beside those between real ones.

    Attributes:
        value: generated against the reference split.
        train: the train split against the reference split.
        splits: median over random splits of the train patches; ``None`` where they are of one group.
        spread: standard deviation of ``value`` over draws of the generated patches.
    """

    value: float
    train: float
    splits: float | None
    spread: float

    @property
    def floor(self) -> float:
        """The larger of the two distances between real patches."""
        return self.train if self.splits is None else max(self.train, self.splits)

    @property
    def ratio(self) -> float:
        """Value over floor; infinite where real patches do not differ at all."""
        return self.value / self.floor if self.floor > 0 else (0.0 if self.value == 0 else float("inf"))

    @property
    def holds(self) -> bool:
        """Whether the value is at most ``LIMIT`` floors."""
        return self.ratio <= LIMIT

    def to_json(self) -> dict[str, Any]:
        """Return the distance as strict JSON data."""
        return {**asdict(self), "floor": self.floor, "ratio": report.finite(self.ratio), "holds": self.holds}


@dataclass(frozen=True)
class Texture:
    """A GLCM descriptor: means over patches, and the distance of the generated mean to the reference mean."""

    generated: float
    train: float
    reference: float
    distance: Distance

    @property
    def interval(self) -> tuple[float, float]:
        """Where the generated mean is to lie."""
        low, high = sorted((self.train, self.reference))
        return low - WIDENING * abs(low), high + WIDENING * abs(high)

    @property
    def holds(self) -> bool:
        """Whether the generated mean lies in ``interval``."""
        low, high = self.interval
        return low <= self.generated <= high

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as JSON data."""
        means = {"generated": self.generated, "train": self.train, "reference": self.reference}
        return {**means, "interval": list(self.interval), "holds": self.holds, "distance": self.distance.to_json()}


@dataclass(frozen=True)
class ClassDistances:
    """One terrain: how many patches, both amplitude distances and every descriptor of ``TEXTURES``."""

    generated_count: int
    train_count: int
    reference_count: int
    wasserstein1: Distance
    kl_divergence: Distance
    texture: dict[str, Texture]

    @property
    def holds(self) -> bool:
        """Whether everything does."""
        distances = (self.wasserstein1, self.kl_divergence)
        return all(one.holds for one in distances) and all(one.holds for one in self.texture.values())

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        counts = {"generated": self.generated_count, "train": self.train_count, "reference": self.reference_count}
        return {
            "counts": counts,
            "wasserstein1": self.wasserstein1.to_json(),
            "kl_divergence": self.kl_divergence.to_json(),
            "texture": {name: one.to_json() for name, one in self.texture.items()},
            "holds": self.holds,
        }


def class_distances(
    generated: PatchStatistics,
    train: PatchStatistics,
    reference: PatchStatistics,
    *,
    splits: int = SPLITS,
    seed: int = 0,
) -> ClassDistances:
    """Compare the generated patches of one terrain with its reference split (see the module).

    Args:
        generated: statistics of the generated patches.
        train: of the real patches of the train split, with their overlap groups.
        reference: of the real patches of the reference split.
        splits: random splits for the floor.
        seed: of the splits and of the bootstrap.

    Raises:
        InputError: one of the three has no patch.
    """
    for name, side in (("generated", generated), ("train", train), ("reference", reference)):
        if not len(side):
            raise InputError(f"There is no {name} patch of this terrain; give at least one.")
    made, trained, real = pooled_sets(generated), pooled_sets(train), pooled_sets(reference)
    drawn, others = weights_of_splits(train.groups, len(reference), splits, seed)
    # The drawn patches stand for the reference split, those of other ground for what was trained on.
    one, other = (pooled_sets(train, weights) for weights in (drawn, others)) if len(drawn) else (None, None)
    again = pooled_sets(generated, _bootstrap(len(generated), seed))

    def distance(measure: Callable[[Pooled, Pooled], NDArray[Any]]) -> Distance:
        between = None if one is None or other is None else np.asarray(measure(other, one))
        median = None if between is None or not np.isfinite(between).any() else float(np.nanmedian(between))
        spread = float(np.nanstd(measure(again, real)))
        return Distance(float(measure(made, real)), float(measure(trained, real)), median, spread)

    texture = {}
    for name in TEXTURES:
        index = GLCM_NAMES.index(name)
        texture[name] = Texture(
            float(made.means[index]),
            float(trained.means[index]),
            float(real.means[index]),
            distance(lambda mine, theirs, i=index: np.abs(mine.means[..., i] - theirs.means[..., i])),  # type: ignore[misc]
        )
    return ClassDistances(
        len(generated),
        len(train),
        len(reference),
        distance(lambda mine, theirs: wasserstein1(mine.histogram, theirs.histogram)),
        distance(lambda mine, theirs: kl_divergence(theirs.histogram, mine.histogram)),
        texture,
    )


def _bootstrap(count: int, seed: int) -> NDArray[np.float64]:
    """Return ``(BOOTSTRAP, count)``: how often each patch is drawn, with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), BOOTSTRAP).astype(np.float64)


# The real side -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealPatch:
    """A real patch: float32 ``(height, width)`` amplitude and what is known of it."""

    name: str
    amplitude: NDArray[np.float32]
    terrain: str
    group: str
    split: str


@dataclass(frozen=True)
class RealClass:
    """The real patches of one terrain, of one polarisation.

    Attributes:
        train: statistics of the train and validation splits.
        reference: statistics of the reference split.
        patches: amplitudes of the reference split.
        reached: ``(n,)`` best correlation of each of them with a training patch.
    """

    train: PatchStatistics
    reference: PatchStatistics
    patches: tuple[NDArray[np.float32], ...]
    reached: NDArray[np.float64]


@dataclass(frozen=True)
class RealSet:
    """What generated patches are measured against.

    Attributes:
        classes: by terrain.
        training: every training patch, ``copies.averaged``.
        names: of the training patches.
        polarisation: of all patches.
    """

    classes: dict[str, RealClass]
    training: tuple[NDArray[np.float32], ...]
    names: tuple[str, ...]
    polarisation: str | None = None

    @property
    def reached(self) -> float:
        """The best correlation of any reference patch with a training patch."""
        return max((float(one.reached.max()) for one in self.classes.values() if len(one.reached)), default=0.0)


def real_set(
    patches: Iterable[RealPatch], *, polarisation: str | None = None, device: str = "cpu", copies: bool = True
) -> RealSet:
    """Measure real patches, some 20 ms each.

    What is not of the ``reference`` split is on the train side of the floors, the ``validation`` split too, which was
    taken from the train patches; copies are looked for among the ``train`` patches only.

    Args:
        patches: of one polarisation and one scale, all of one size or larger.
        polarisation: of all of them.
        device: torch device of the correlations.
        copies: also take how near reference patches come to training patches.

    Raises:
        InputError: a terrain has patches in one of the two splits only.
    """
    rows: dict[str, list[RealPatch]] = {}
    measured: dict[str, dict[str, list[PatchStatistics]]] = {}
    training, names = [], []
    for patch in patches:
        side = "reference" if patch.split == "reference" else "train"
        kept = rows.setdefault(patch.terrain, [])
        sides = measured.setdefault(patch.terrain, {"train": [], "reference": []})
        sides[side].append(patch_statistics([patch.amplitude], [patch.group]))
        if patch.split == "train":
            training.append(averaged(patch.amplitude))
            names.append(patch.name)
        elif patch.split == "reference":
            kept.append(patch)
    classes = {}
    for terrain, sides in sorted(measured.items()):
        for split, found in sides.items():
            if not found:
                raise InputError(f"The terrain {terrain!r} has no patch of the split {split!r}; prepare both splits.")
        amplitudes = tuple(patch.amplitude for patch in rows[terrain])
        reached = nearest_crops(amplitudes, training, device=device)[0] if copies else np.zeros(0)
        classes[terrain] = RealClass(concat(sides["train"]), concat(sides["reference"]), amplitudes, reached)
    if not classes:
        raise InputError("The data have no real SAR patch with a terrain; label them, or prepare other data.")
    return RealSet(classes, tuple(training), tuple(names), polarisation)


# The generated side ------------------------------------------------------------------------------------------------


def prompts_of(terrain: str, config: EvaluationConfig) -> tuple[str, ...]:
    """Return the prompts of a terrain."""
    return config.prompts.get(terrain) or (f"a SAR image of {PHRASES.get(terrain, (terrain,))[0]}",)


def generate_class(
    engine: Engine,
    spec: CheckpointSpec,
    terrain: str,
    seed: int,
    config: EvaluationConfig,
    folder: Path,
    *,
    stop: Stop = lambda: False,
) -> list[NDArray[np.float32]] | None:
    """Make the patches of one terrain with the studio's engine, each written as it is made; those that are there stay.

    Args:
        engine: of the studio.
        spec: checkpoint of its catalogue.
        terrain: whose prompts.
        seed: of the first patch; prompt k has the k-th equal share of the seeds that follow.
        config: how many, steps and guidance.
        folder: float16 ``SEED.npy`` each, and ``made.json``; patches of other weights or settings are deleted first.
        stop: asked between denoising steps.

    Returns:
        The amplitudes in order of their seeds; ``None`` when stopped.

    Raises:
        InputError: the engine refuses the request.
        SarGenError: it fails.
    """
    from sar_gen.request import Failed, GenerationRequest, PatchReady

    prompts = prompts_of(terrain, config)
    plain = [spec.prompt_for(prompt) for prompt in prompts]
    facts = {
        "checkpoint": spec.id, "sha256": dict(spec.sha256), "prompts": plain, "seed": seed, "patches": config.patches,
        "steps": config.steps, "guidance": config.guidance,
    }  # fmt: skip
    _same_patches(folder, facts)
    edges = np.linspace(0, config.patches, len(plain) + 1).astype(int)
    for prompt, first, end in zip(plain, edges, edges[1:], strict=False):
        while True:
            missing = [s for s in range(seed + int(first), seed + int(end)) if not (folder / f"{s}.npy").is_file()]
            if not missing:
                break
            if stop():
                return None
            count = min(seed + int(end) - missing[0], engine.settings.max_count)
            request = GenerationRequest(
                prompt, checkpoint=spec.id, count=count, seed=missing[0], steps=config.steps,
                guidance=config.guidance,
            )  # fmt: skip
            cancel = threading.Event()
            for event in engine.generate(request, cancel=cancel, previews=False):
                if isinstance(event, PatchReady):
                    _write_patch(folder / f"{event.seed}.npy", event.amplitude)
                elif isinstance(event, Failed):
                    raise InputError(event.message) if event.user_error else SarGenError(event.message)
                if stop():
                    cancel.set()
    return [read_patch_file(folder / f"{s}.npy") for s in range(seed, seed + config.patches)]


def read_patch_file(path: Path) -> NDArray[np.float32]:
    """Return a patch that ``generate_class`` wrote, float32 ``(height, width)``."""
    amplitude: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
    return amplitude


def _write_patch(path: Path, amplitude: NDArray[np.float32]) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, amplitude.astype(np.float16))  # steps of 0.0005 at most, finer than a histogram's bin
    write_atomic(path, buffer.getvalue())


def _same_patches(folder: Path, facts: Mapping[str, Any]) -> None:
    """Delete patches that were made otherwise, and write down how these are made."""
    path = folder / "made.json"
    text = json.dumps(facts, indent=1)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    for old in folder.glob("*.npy"):
        old.unlink()
    write_atomic(path, text.encode())


def measure_class(
    amplitudes: Sequence[NDArray[np.float32]],
    terrain: str,
    real: RealSet,
    config: EvaluationConfig,
    clip: SarClip | None,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return every measure of one terrain's generated patches as JSON data.

    Args:
        amplitudes: of the generated patches, ``(height, width)`` each.
        terrain: one of ``real.classes``.
        real: what they are measured against.
        config: which prompts were used, and what is measured.
        clip: for prompt agreement; ``None`` leaves it out.
        device: torch device of the correlations.
    """
    known = real.classes[terrain]
    found = class_distances(patch_statistics(amplitudes), known.train, known.reference).to_json()
    found["prompts"] = list(prompts_of(terrain, config))
    if clip is not None and min(amplitudes[0].shape) >= 64:
        found["agreement"] = _agreement(amplitudes, terrain, real, config, clip)
    if config.copies:
        values, rows = nearest_crops(amplitudes, real.training, device=device)
        top = int(values.argmax())
        found["copies"] = {
            "highest": float(values.max()),
            "median": float(np.median(values)),
            "real_highest": float(known.reached.max()),
            "real_median": float(np.median(known.reached)),
            "limit": real.reached,
            "above": int((values > real.reached).sum()),
            "nearest": real.names[rows[top]] if rows[top] >= 0 else None,
            "patch": top,
        }
    return found


def _agreement(
    amplitudes: Sequence[NDArray[np.float32]], terrain: str, real: RealSet, config: EvaluationConfig, clip: SarClip
) -> dict[str, Any]:
    """Return 1 - mean cosine of patches and their prompts, beside the same of as many reference patches."""
    from sar_gen.quality.semantic import prompt_agreement

    prompts = prompts_of(terrain, config)
    edges = np.linspace(0, len(amplitudes), len(prompts) + 1).astype(int)
    known = real.classes[terrain].patches
    parts = [
        prompt_agreement(
            amplitudes[first:end],
            prompt,
            clip,
            polarisation=real.polarisation,
            reference=known,
        )
        for prompt, first, end in zip(prompts, edges, edges[1:], strict=False)
        if end > first
    ]
    weights = np.array([len(part.scores) for part in parts], dtype=np.float64)

    def mean(values: list[float | None]) -> float | None:
        return None if None in values else float(np.average(np.array(values, dtype=np.float64), weights=weights))

    scores = np.concatenate([part.scores for part in parts])
    value, floor, high = (mean([getattr(p.measure, name) for p in parts]) for name in ("value", "floor", "floor_95"))
    return {
        "value": value,
        "floor": floor,
        "floor_95": high,
        "ratio": value / floor if value is not None and floor else None,
        "within": None if value is None or high is None else value <= high,
        "spread": float(scores.std() / np.sqrt(len(scores))),
    }


def evaluate_checkpoint(
    engine: Engine,
    spec: CheckpointSpec,
    real: RealSet,
    config: EvaluationConfig,
    folder: Path,
    *,
    terrains: Sequence[str] | None = None,
    clip: SarClip | None = None,
    device: str = "cpu",
    stop: Stop = lambda: False,
    say: Say = lambda _: None,
) -> dict[str, Any] | None:
    """Generate patches of each terrain with the studio's engine and measure them; a later call goes on.

    Args:
        engine: of the studio.
        spec: checkpoint of its catalogue.
        real: what they are measured against.
        config: how many, and which measures.
        folder: where patches are kept, a folder a terrain.
        terrains: some of ``real.classes``; ``None`` for all.
        clip: for prompt agreement; ``None`` leaves it out.
        device: torch device of the correlations.
        stop: asked between denoising steps.
        say: told how it goes.

    Returns:
        ``{"checkpoint", "strategy", "steps", "guidance", "classes": {terrain: measures}, "seconds", "holds"}``;
        ``None`` when stopped before all terrains were made.

    Raises:
        InputError: a terrain is not among the real patches, or the engine refuses the request.
        SarGenError: the engine fails, or a patch cannot be written.
    """
    chosen = list(real.classes if terrains is None else terrains)
    for terrain in chosen:
        if terrain not in real.classes:
            raise InputError(f"There are no real patches of {terrain!r}; choose among {', '.join(real.classes)}.")
    started = time.monotonic()
    order = sorted(real.classes)
    classes = {}
    for terrain in chosen:
        seed = config.seed + SEED_STEP * order.index(terrain)
        amplitudes = generate_class(engine, spec, terrain, seed, config, folder / terrain, stop=stop)
        if amplitudes is None:
            return None
        classes[terrain] = measure_class(amplitudes, terrain, real, config, clip, device=device)
        say(f"{spec.id}, {terrain}: {words_of(classes[terrain])}.")
    return {
        "checkpoint": spec.id,
        "strategy": spec.strategy,
        "steps": spec.steps if config.steps is None else config.steps,
        "guidance": spec.guidance if config.guidance is None else config.guidance,
        "classes": classes,
        "seconds": time.monotonic() - started,
        "holds": all(one["holds"] for one in classes.values()),
    }


def words_of(found: Mapping[str, Any]) -> str:
    """Return the main numbers of ``measure_class`` as words."""
    amplitude, divergence = found["wasserstein1"], found["kl_divergence"]
    contrast = found["texture"]["contrast"]
    return (
        f"W1 {amplitude['value']:.3f} (floor {amplitude['floor']:.3f}), "
        f"KL {divergence['value']:.3f} ({divergence['floor']:.3f}), "
        f"contrast {contrast['generated']:.1f} (train {contrast['train']:.1f}, reference {contrast['reference']:.1f})"
    )


def digest_of(values: Any) -> str:
    """Return a short hash of JSON data, for the names of kept results."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
