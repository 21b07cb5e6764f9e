"""What a user writes of an augmentation set: one TOML file, validated before anything is loaded.

    name = "rare-scenes"
    out = "sets/rare-scenes"              # relative to this file
    strategy = "turbo"
    seed = 1000
    prompts = ["a {sensor} image of {ground}", "a SAR image of {ground}"]

    [vocabulary]
    sensor = ["radar", "Sentinel-1"]

    [[classes]]
    name = "gorge"
    count = 200
    reference = "s1-gorge"
    vocabulary = { ground = ["a mountain gorge", "a canyon"] }

    [gate]
    attempts = 3
    measures = { wasserstein1 = 3.0, nearness = 2.5 }    # in floors: 1 is what single real patches do

Every table is a dataclass below, with its defaults; a key that none of them has is refused.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from sar_gen.request import DEFAULT_STRENGTH, MAX_SEED, GuideKind
from sar_gen.training.config import STRICT, Positive, Share, read_config

CLASS = "class"
"""This slot of a template is the class's own name."""
Count = Annotated[int, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
Words = tuple[str, ...]


@dataclass(frozen=True, config=STRICT)
class GuidesPlan:
    """A folder that a guide is drawn from for each patch (of a batch for all of its patches).

    Attributes:
        folder: of pictures; those of subfolders are not used.
        kind: what they show.
        way: network that reads them, or ``image-to-image``; ``None`` is the checkpoint's default.
        weight: of what the network adds.
        start: share of the steps before it sets in.
        end: share of the steps after which it ends.
        palette: of maps.
    """

    folder: Path
    kind: GuideKind = "map"
    way: str | None = None
    weight: Annotated[float, Field(ge=0, le=2)] = 1.0
    start: Share = 0.0
    end: Share = 1.0
    palette: str = "studio"


@dataclass(frozen=True, config=STRICT)
class ClassPlan:
    """One class of the set.

    Attributes:
        name: the label, ``terrain`` in the manifest.
        count: patches to make; ``None`` takes what ``[balance]`` says.
        prompts: templates in place of the plan's.
        vocabulary: words by slot, beside the plan's and before them where both have one.
        reference: real set that the gate and the report judge this class by; ``None`` takes the gate's.
        guides: in place of the plan's.
        checkpoint: in place of the plan's.
        strategy: in place of the plan's.
    """

    name: str
    count: Count | None = None
    prompts: Words = ()
    vocabulary: dict[str, Words] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    guides: tuple[GuidesPlan, ...] | None = None
    checkpoint: str | None = None
    strategy: str | None = None


@dataclass(frozen=True, config=STRICT)
class BalancePlan:
    """Bring every class that has no count of its own to one number.

    Attributes:
        target: patches of each class, those that exist and those that are made.
        existing: manifest of the set to be enlarged.
        split: of it that is counted.
    """

    target: Positive
    existing: Path
    split: Literal["train", "validation", "reference"] = "train"


@dataclass(frozen=True, config=STRICT)
class GatePlan:
    """Which patches are good enough.

    Attributes:
        measures: the most that a patch may be away from the class's reference, by measure, in floors: 1 is the median
            of single real patches. ``nearness`` is the mean over all measures. Empty: nothing is rejected.
        reference: of classes that name none.
        attempts: tries for one patch, each with another seed, before it is given up.
    """

    measures: dict[str, Above] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    attempts: Positive = 3


@dataclass(frozen=True, config=STRICT)
class Plan:
    """One augmentation set.

    Attributes:
        name: of the set: letters, digits, ``-`` and ``_``; patches are called after it.
        out: folder that is written.
        classes: what is made.
        prompts: templates; ``{slot}`` stands for a word of the vocabulary, ``{class}`` for the class's name.
        vocabulary: words by slot, for every class.
        checkpoint: catalogue id.
        strategy: ``None`` is the checkpoint's own.
        seed: of the first patch; see ``slots``.
        negative: what to avoid.
        steps: denoising steps; ``None`` is the card's, as for the next three.
        guidance: classifier-free guidance.
        width: pixels.
        height: pixels.
        scheduler: one of ``request.SCHEDULERS``.
        profile: how fast and how exactly; ``None`` is the setting's.
        strength: of guides by image-to-image.
        guides: folders that guides are drawn from.
        batch: patches that share prompt and guide, with consecutive seeds, and are made in one request: 1 on a CPU, as
            many as fit on a GPU.
        threads: of each process on a CPU. It decides the last bits of a patch, so it belongs to the set: the same
            number gives the same patches in one process, in several, and on Ray.
        gate: which patches are good enough.
        balance: where counts come from.
        split: of the manifest that the patches belong to.
        pixels: ``png``: 16-bit grey amplitude; ``npy``: float32.
        shards: patches of each WebDataset tar shard; 0 writes none.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,60}$")]
    out: Path
    classes: Annotated[tuple[ClassPlan, ...], Field(min_length=1)]
    prompts: Words = ()
    vocabulary: dict[str, Words] = dataclasses.field(default_factory=dict)
    checkpoint: str = "sar-mini"
    strategy: str | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    negative: str = ""
    steps: Positive | None = None
    guidance: Annotated[float, Field(ge=1, le=30)] | None = None
    width: Positive | None = None
    height: Positive | None = None
    scheduler: str = "default"
    profile: str | None = None
    strength: Share = DEFAULT_STRENGTH
    guides: tuple[GuidesPlan, ...] = ()
    batch: Positive = 1
    threads: Positive = 1
    gate: GatePlan = dataclasses.field(default_factory=GatePlan)
    balance: BalancePlan | None = None
    split: Literal["train", "validation", "reference"] = "train"
    pixels: Literal["png", "npy"] = "png"
    shards: Count = 1000

    def __post_init__(self) -> None:
        names = [one.name for one in self.classes]
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,60}", name):
                raise ValueError(f"the class name {name!r} should be letters, digits, spaces, '-' and '_'")
        folders = [folder_of(name) for name in names]
        twice = next((name for name, own in zip(names, folders, strict=True) if folders.count(own) > 1), None)
        if twice is not None:
            raise ValueError(f"the class {twice!r} is there twice")
        for one in self.classes:
            if one.count is None and self.balance is None:
                raise ValueError(f"the class {one.name!r} has no count; give it one, or a [balance]")
            if self.gate.measures and self.reference_of(one) is None:
                raise ValueError(
                    f"the class {one.name!r} has no reference for the gate; name one in the class or in [gate]"
                )
        self._check_words()

    def prompts_of(self, one: ClassPlan) -> Words:
        """Return the templates of a class."""
        return one.prompts or self.prompts

    def words_of(self, one: ClassPlan) -> dict[str, Words]:
        """Return the words of a class by slot."""
        return {**self.vocabulary, **one.vocabulary, CLASS: (one.name,)}

    def reference_of(self, one: ClassPlan) -> str | None:
        """Return the name of the real set that a class is judged by."""
        return one.reference or self.gate.reference

    def _check_words(self) -> None:
        used: set[str] = set()
        for one in self.classes:
            templates, words = self.prompts_of(one), self.words_of(one)
            if not templates:
                raise ValueError(f"the class {one.name!r} has no prompt; give prompts to the plan or to the class")
            wanted = {name for template in templates for name in slots_of(template)}
            for name in sorted(wanted - set(words)):
                raise ValueError(
                    f"a prompt of the class {one.name!r} has the slot {{{name}}}, which is not in the vocabulary"
                )
            for name in sorted(set(one.vocabulary) - wanted):
                raise ValueError(f"no prompt of the class {one.name!r} uses the words {name!r} of its vocabulary")
            used |= wanted - set(one.vocabulary)
        for name in sorted(set(self.vocabulary) - used):
            raise ValueError(f"no prompt uses the words {name!r} of the vocabulary")
        for words in (self.vocabulary, *(one.vocabulary for one in self.classes)):
            for name, choices in words.items():
                if not choices:
                    raise ValueError(f"the vocabulary has no words for {name!r}")
                if name == CLASS:
                    raise ValueError("the slot {class} is the class's own name; call the vocabulary's otherwise")


def read_plan(path: Path) -> Plan:
    """Read and validate a plan; relative paths in it are relative to its folder.

    Raises:
        InputError: unreadable, not TOML, an unknown key, or a value that does not fit; the first problem is named.
    """
    return read_config(path, Plan)


def slots_of(template: str) -> tuple[str, ...]:
    """Return the names of a template's slots, in order.

    Raises:
        ValueError: a bracket without its other, or anything but a name between them.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the prompt {template!r} has a bracket without its other ({error})") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion or not name.isidentifier():
            raise ValueError(f"the prompt {template!r} has {{{name}}}, which is not the name of a slot")
        names.append(name)
    return tuple(names)


def filled(template: str, words: Mapping[str, str]) -> str:
    """Return a template with its slots filled, and single spaces (an empty word leaves none behind)."""
    return " ".join(template.format_map(dict(words)).split())


def count_prompts(templates: Sequence[str], words: Mapping[str, Words]) -> int:
    """Return how many prompts the templates can give."""
    total = 0
    for template in templates:
        product = 1
        for name in set(slots_of(template)):
            product *= len(words[name])
        total += product
    return total


def folder_of(name: str) -> str:
    """Return the folder of a class: its name without capitals and spaces."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower())
