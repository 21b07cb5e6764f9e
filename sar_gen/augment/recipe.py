"""A plan with everything looked up: counts, checkpoints and their hashes, guide files, references.

A ``Recipe`` is plain data, so that a worker anywhere can have it. ``bound`` is what the bytes of a set depend on: a
folder that holds a set goes on only with the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar_gen import checkpoints, references
from sar_gen.augment.plan import ClassPlan, GuidesPlan, Plan, Words, folder_of
from sar_gen.checkpoints import CheckpointSpec
from sar_gen.errors import InputError
from sar_gen.quality.nearness import NEARNESS, floor_ratios
from sar_gen.request import MAX_SEED, GenerationRequest, Guide, check_request
from sar_gen.settings import Settings
from sar_gen.training.manifest import read_manifest

PICTURES = (".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class GuideFiles:
    """The pictures of one folder, by name, that a guide is drawn from; ``plan`` says what they are."""

    plan: GuidesPlan
    names: tuple[str, ...]


@dataclass(frozen=True)
class ClassRecipe:
    """One class with everything looked up.

    Attributes:
        name: the label.
        label: its number, in the plan's order.
        folder: of its patches.
        count: patches to make.
        templates: of its prompts.
        words: by slot.
        reference: set that it is judged by, if any.
        checkpoint: id of the checkpoint that makes it.
        guides: drawn from, one of each.
    """

    name: str
    label: int
    folder: str
    count: int
    templates: Words
    words: dict[str, Words]
    reference: str | None
    checkpoint: str
    guides: tuple[GuideFiles, ...]


@dataclass(frozen=True)
class Recipe:
    """A plan with everything looked up.

    Attributes:
        plan: as it was written.
        classes: in the plan's order.
        profile: that was asked for, or the setting's.
        bound: what the set's bytes depend on, as JSON data by name.
        weights: SHA-256 of each weight file by checkpoint.
        warnings: what a user of the set must know, one sentence each.
    """

    plan: Plan
    classes: tuple[ClassRecipe, ...]
    profile: str
    bound: dict[str, Any]
    weights: dict[str, dict[str, str]]
    warnings: tuple[str, ...]

    @property
    def total(self) -> int:
        """Patches asked for."""
        return sum(one.count for one in self.classes)


def recipe_of(plan: Plan, settings: Settings) -> Recipe:
    """Look everything up that a plan names, and check it; no weights are loaded.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    catalogue = checkpoints.catalogue(settings)
    counts = class_counts(plan)
    classes = tuple(
        ClassRecipe(
            one.name, label, folder_of(one.name), counts[one.name], plan.prompts_of(one), plan.words_of(one),
            plan.reference_of(one), _checkpoint(plan, one, catalogue).id,
            tuple(GuideFiles(guides, _pictures(guides.folder)) for guides in _guides(plan, one)),
        )
        for label, one in enumerate(plan.classes)
    )  # fmt: skip
    total = sum(counts.values())
    if not total:
        raise InputError("There is no patch to make: every class has what it should; raise a count or the target.")
    last = plan.seed + total * plan.gate.attempts - 1
    if last > MAX_SEED - settings.max_count:
        raise InputError(
            f"The plan's seeds run from {plan.seed} to {last}, beyond {MAX_SEED - settings.max_count}; choose a lower "
            "seed, fewer patches or fewer attempts."
        )
    if plan.batch > settings.max_count:
        raise InputError(f"The batch is {plan.batch}; choose 1 to {settings.max_count} (SAR_GEN_MAX_COUNT).")
    profile = settings.profile if plan.profile is None else plan.profile
    warnings: list[str] = []
    weights: dict[str, dict[str, str]] = {}
    bound = _settings_of(plan, profile, total)
    for one in classes:
        spec = catalogue[one.checkpoint]
        check_request(first_request(plan, one, settings), catalogue, settings)
        for id in dict.fromkeys((one.checkpoint, spec.base)):
            if id in catalogue and id not in weights:
                weights[id] = checkpoints.weight_hashes(catalogue[id], settings)
                bound[f"weights of {id}"] = _digest(weights[id])
        if spec.amplitude_encoding != "linear":
            warnings.append(f"What the pixels of {spec.title} mean is not known to be linear amplitude.")
        if one.reference is not None:
            reference = references.load_reference(one.reference, settings)
            warnings += references.check_comparable(reference, spec.amplitude_encoding, _polarisation(one, spec))
            check_measures(reference, plan)
            bound[f"reference {one.reference}"] = _reference_digest(reference)
        bound[f"class {one.name}"] = {
            "count": one.count, "label": one.label, "prompts": list(one.templates),
            "vocabulary": {name: list(words) for name, words in sorted(one.words.items())},
            "reference": one.reference, "checkpoint": one.checkpoint, "guides": [_guide_bound(g) for g in one.guides],
        }  # fmt: skip
    return Recipe(plan, classes, profile, bound, weights, tuple(dict.fromkeys(warnings)))


def class_counts(plan: Plan) -> dict[str, int]:
    """Return how many patches are made of each class.

    Raises:
        InputError: the manifest of the existing set cannot be read, or knows none of the classes.
    """
    there: Counter[str | None] = Counter()
    balance = plan.balance
    if balance is not None:
        rows = read_manifest(balance.existing)
        there = Counter(row.terrain for row in rows if (row.split, row.modality) == (balance.split, "sar"))
        if not any(one.name in there for one in plan.classes):
            known = ", ".join(sorted(str(name) for name in there)) or "no SAR patch"
            raise InputError(
                f"{balance.existing} has none of the plan's classes in the split {balance.split!r}; it has {known}: "
                "call the classes as it does, or give counts."
            )
    counts = {}
    for one in plan.classes:
        target = 0 if balance is None else max(0, balance.target - there[one.name])
        counts[one.name] = target if one.count is None else one.count
    return counts


def first_request(plan: Plan, one: ClassRecipe, settings: Settings) -> GenerationRequest:
    """Return a request of a class with its first guides and every slot's first word, to be checked."""
    from sar_gen.augment.plan import filled

    words = {name: choices[0] for name, choices in one.words.items()}
    guides = tuple(read(files, files.names[0], settings) for files in one.guides)
    return request_of(plan, one, filled(one.templates[0], words), guides, plan.seed, 1)


def request_of(
    plan: Plan, one: ClassRecipe, prompt: str, guides: tuple[Guide, ...], seed: int, count: int, profile: str = ""
) -> GenerationRequest:
    """Return the request for some patches of a class with consecutive seeds."""
    return GenerationRequest(
        prompt=prompt, negative=plan.negative, checkpoint=one.checkpoint, count=count, seed=seed, steps=plan.steps,
        guidance=plan.guidance, width=plan.width, height=plan.height, scheduler=plan.scheduler, guides=guides,
        strength=plan.strength, profile=profile or plan.profile,
    )  # fmt: skip


def read(files: GuideFiles, name: str, settings: Settings) -> Guide:
    """Read one guide of a folder.

    Raises:
        InputError: the file cannot be used.
    """
    from sar_gen.guide_files import read_guide

    plan = files.plan
    guide = read_guide(plan.folder / name, plan.kind, settings.max_pixels, plan.palette)
    return dataclasses.replace(guide, way=plan.way, weight=plan.weight, start=plan.start, end=plan.end)


def check_every_guide(recipe: Recipe, settings: Settings, show: Callable[[int, int], None]) -> None:
    """Read and prepare every guide that may be drawn, so that none fails after hours of work.

    Raises:
        InputError: a file cannot be used; the sentence names it.
    """
    catalogue = checkpoints.catalogue(settings)
    rows = {(files, name, one.name): one for one in recipe.classes for files in one.guides for name in files.names}
    for done, ((files, name, _), one) in enumerate(rows.items(), 1):
        others = tuple(read(other, other.names[0], settings) for other in one.guides if other is not files)
        try:
            guide = read(files, name, settings)
            check_request(
                request_of(recipe.plan, one, "a SAR image", (guide, *others), recipe.plan.seed, 1), catalogue, settings
            )
        except InputError as error:
            raise InputError(f"The guide {name} of {files.plan.folder} cannot be used: {error}") from error
        show(done, len(rows))


def check_measures(reference: references.ReferenceSet, plan: Plan) -> None:
    """Check that a reference has the measures that a gate asks for.

    Raises:
        InputError: it has not, or a measure is unknown.
    """
    names = [name for name in plan.gate.measures if name != NEARNESS]
    try:
        floor_ratios(reference.statistics.subset([0]), reference.statistics, names)
    except InputError as error:
        raise InputError(f"The gate cannot judge by {reference.name}: {error}") from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between what two sets are bound to, one phrase each."""
    found = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}, {part}" for part in differences(old, new)]
        elif any(isinstance(value, dict | list) or len(str(value)) > 40 for value in (old, new)):
            found.append(f"{name} {'is gone' if new is None else 'is new' if old is None else 'is another'}")
        else:
            found.append(f"{name} was {_said(old)} and is {_said(new)}")
    return found


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)


def _settings_of(plan: Plan, profile: str, total: int) -> dict[str, Any]:
    names = (
        "name", "seed", "negative", "steps", "guidance", "width", "height", "scheduler", "batch", "threads", "split",
        "pixels", "shards",
    )  # fmt: skip
    found = {name: getattr(plan, name) for name in names}
    found |= {"profile": profile, "patches": total, "attempts": plan.gate.attempts, "gate": dict(plan.gate.measures)}
    if plan.guides or any(one.guides for one in plan.classes):
        found["strength"] = plan.strength
    return found


def _checkpoint(plan: Plan, one: ClassPlan, catalogue: Mapping[str, CheckpointSpec]) -> CheckpointSpec:
    own = one.checkpoint is not None  # a class with a checkpoint of its own takes no strategy from the plan
    strategy = one.strategy or (None if own else plan.strategy)
    return checkpoints.resolve(catalogue, one.checkpoint or plan.checkpoint, strategy)


def _polarisation(one: ClassRecipe, spec: CheckpointSpec) -> str | None:
    from sar_gen.augment.plan import filled

    return spec.polarisation_of(filled(one.templates[0], {name: choices[0] for name, choices in one.words.items()}))


def _guides(plan: Plan, one: ClassPlan) -> tuple[GuidesPlan, ...]:
    return plan.guides if one.guides is None else one.guides


def _pictures(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    except OSError as error:
        raise InputError(f"The guides' folder {folder} cannot be read ({error.strerror or error}).") from error
    if not names:
        raise InputError(f"The guides' folder {folder} has no picture; put PNG, TIFF, NPY or JPEG files there.")
    return tuple(names)


def _guide_bound(files: GuideFiles) -> dict[str, Any]:
    plan = files.plan
    sizes = [(name, (plan.folder / name).stat().st_size) for name in files.names]
    return {**{f.name: getattr(plan, f.name) for f in dataclasses.fields(plan) if f.name != "folder"},
            "files": len(sizes), "names and sizes": _digest(sizes)}  # fmt: skip


def _reference_digest(reference: references.ReferenceSet) -> str:
    sum_ = hashlib.sha256()
    for name, array in sorted(reference.statistics.arrays.items()):
        sum_.update(name.encode() + array.tobytes())
    return sum_.hexdigest()[:16]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
