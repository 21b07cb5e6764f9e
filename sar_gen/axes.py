"""The axes of a grid: which parts of a request vary, how their values are read, put into a request and written.

``AXES`` is the one table; the command line, the page and the exports read it. An axis is written as
``seed=1..4``, ``strategy=base,turbo``, ``prompt=mountain gorge,forest`` or, where it needs to say which one,
``guide-weight:2=0..1/0.25`` and ``switch:reuse=1,2``.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from sar_gen.checkpoints import CheckpointSpec, resolve, strategies_for
from sar_gen.errors import InputError
from sar_gen.profiles import PROFILES, Switches, read_switches
from sar_gen.request import IMAGE_TO_IMAGE, SCHEDULERS, GenerationRequest, Guide
from sar_gen.strategies import STRATEGIES

LONGEST = 1000
"""Most values of one axis; what a request or a machine can do is checked later."""
_RANGE = re.compile(r"\s*(-?[\d.]+?)\s*\.\.\s*(-?[\d.]+?)\s*(?:/\s*(-?[\d.]+)\s*)?")

Catalogue = Mapping[str, CheckpointSpec]


@dataclass(frozen=True)
class Axis:
    """One axis of a grid.

    Attributes:
        name: of ``AXES``.
        values: what its columns, rows or pages hold, in order; of a prompt, the first one is the text that is searched
            and the others take its place.
        of: which one is meant: the number of a guide from 1 (empty is all of them), or the name of a switch.
    """

    name: str
    values: tuple[Any, ...]
    of: str = ""

    @property
    def title(self) -> str:
        """Name for people: ``Seed``, ``Guide 2 weight``, ``Switch reuse``."""
        kind = AXES[self.name]
        if kind.guides and self.of:
            return kind.title.replace("Guide", f"Guide {self.of}")
        return f"{kind.title} {self.of}".strip()

    @property
    def labels(self) -> tuple[str, ...]:
        """Each value as a label."""
        return tuple(AXES[self.name].label(value) for value in self.values)

    @property
    def key(self) -> str:
        """Name as ``read_axis`` takes it: ``seed``, ``guide-weight:2``."""
        return f"{self.name}:{self.of}" if self.of else self.name

    @property
    def text(self) -> str:
        """The values as ``read_axis`` takes them."""
        return join_values([_switch_label(value) for value in self.values])

    def put(self, request: GenerationRequest, value: Any, catalogue: Catalogue) -> GenerationRequest:
        """Return the request with a value of this axis.

        Raises:
            InputError: the value does not go with the request (the searched text is not in the prompt, there is no
                such guide).
        """
        return AXES[self.name].put(request, value, self, catalogue)

    def to_json(self) -> dict[str, Any]:
        """Return the axis as JSON data, with its labels for whoever reads the file."""
        return {
            "name": self.name,
            "of": self.of,
            "title": self.title,
            "values": list(self.values),
            "labels": list(self.labels),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Axis:
        """Rebuild an axis.

        Raises:
            InputError: it is not one of this version.
        """
        try:
            if data["name"] not in AXES:
                raise KeyError(data["name"])
            return cls(data["name"], tuple(data["values"]), data["of"])
        except (KeyError, TypeError) as error:
            raise InputError("The axes of this grid cannot be read; it was written by another version.") from error


Put = Callable[[GenerationRequest, Any, Axis, Catalogue], GenerationRequest]


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        title: name for people.
        help: what its values are.
        put: puts a value into a request.
        read: one value from its text; ``of`` is which switch.
        label: writes a value.
        number: ``int`` or ``float`` where ranges can be given.
        empty: whether a value may be empty.
        guides: whether it is of guides: of all of them, or of one by its number.
        idle: why the axis would change nothing of a checked request; empty where it does.
        suggest: values to offer for a request.
        once: whether a grid may have one such axis only.
    """

    title: str
    help: str
    put: Put
    read: Callable[[str, str], Any] = lambda text, of: text
    label: Callable[[Any], str] = str
    number: type[int] | type[float] | None = None
    empty: bool = False
    guides: bool = False
    idle: Callable[[GenerationRequest, Axis], str] = lambda request, axis: ""
    suggest: Callable[[GenerationRequest, Catalogue], Sequence[str]] = lambda request, catalogue: ()
    once: bool = True


# ---- putting values into requests


def _field(name: str) -> Put:
    return lambda request, value, axis, catalogue: dataclasses.replace(request, **{name: value})


def _put_checkpoint(request: GenerationRequest, value: str, axis: Axis, catalogue: Catalogue) -> GenerationRequest:
    """Another checkpoint is used as it is: a strategy that was chosen on the one before is not looked for on it."""
    return dataclasses.replace(request, checkpoint=value, strategy=None)


def _put_strategy(request: GenerationRequest, value: str, axis: Axis, catalogue: Catalogue) -> GenerationRequest:
    """``base`` is the base itself, whatever it was trained by."""
    spec = resolve(dict(catalogue), request.checkpoint)
    if value == "base" and "base" not in strategies_for(dict(catalogue), request.checkpoint):
        value = catalogue[spec.base].strategy
    return dataclasses.replace(request, strategy=value)


def _put_prompt(request: GenerationRequest, value: str, axis: Axis, catalogue: Catalogue) -> GenerationRequest:
    searched, prompt = str(axis.values[0]), " ".join(request.prompt.split())
    if searched not in prompt:
        raise InputError(
            f"The prompt {prompt!r} does not hold {searched!r}, the first value of the axis prompt; that one is the "
            "text that the others take the place of."
        )
    return dataclasses.replace(request, prompt=prompt.replace(searched, value))


def _put_size(request: GenerationRequest, value: str, axis: Axis, catalogue: Catalogue) -> GenerationRequest:
    width, height = map(int, value.split("x"))
    return dataclasses.replace(request, width=width, height=height)


def _put_switch(request: GenerationRequest, value: Any, axis: Axis, catalogue: Catalogue) -> GenerationRequest:
    return dataclasses.replace(request, switches={**request.switches, axis.of: value})


def _of_guides(field: str) -> Put:
    def put(request: GenerationRequest, value: Any, axis: Axis, catalogue: Catalogue) -> GenerationRequest:
        if not request.guides:
            raise InputError(f"The axis {axis.name} needs a guide; give one, or choose another axis.")
        if axis.of and int(axis.of) > len(request.guides):
            raise InputError(f"There is no guide {axis.of}; there {_count(request.guides)}.")
        guides = tuple(
            dataclasses.replace(guide, **{field: value}) if _meant(axis, number) else guide
            for number, guide in enumerate(request.guides, 1)
        )
        return dataclasses.replace(request, guides=guides)

    return put


def _meant(axis: Axis, number: int) -> bool:
    return not axis.of or int(axis.of) == number


def _count(guides: Sequence[Guide]) -> str:
    return "is one" if len(guides) == 1 else f"are {len(guides)}"


# ---- what changes nothing


def _idle_steering(request: GenerationRequest, axis: Axis) -> str:
    meant = [guide for number, guide in enumerate(request.guides, 1) if _meant(axis, number)]
    if any(guide.way != IMAGE_TO_IMAGE for guide in meant):
        return ""
    return f"A guide by image-to-image has no {axis.name.removeprefix('guide-')}; vary the strength."


def _idle_strength(request: GenerationRequest, axis: Axis) -> str:
    return (
        "" if request.start_guide is not None else "The strength is of a guide by image-to-image, and there is none."
    )


# ---- reading and writing single values


def _one_of(names: Sequence[str], what: str) -> Callable[[str, str], str]:
    def read(text: str, of: str) -> str:
        if text not in names:
            raise InputError(f"The {what} {text!r} is unknown; choose one of {', '.join(names)}.")
        return text

    return read


def _read_size(text: str, of: str) -> str:
    found = re.fullmatch(r"(\d{1,6})(?:\s*[x×]\s*(\d{1,6}))?", text)
    if not found:
        raise InputError(f"The size {text!r} cannot be read; write pixels as 256, or width x height as 256x512.")
    return f"{int(found[1])}x{int(found[2] or found[1])}"


def _read_switch(text: str, of: str) -> Any:
    return read_switches([f"{of}={text}"])[of]


def _number_label(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _switch_label(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _number_label(value) if isinstance(value, int | float) else str(value)


def _strategy_label(value: str) -> str:
    """The title up to its explanation: ``Turbo`` of ``Turbo: few steps``."""
    if value == "base":
        return "Base"
    return STRATEGIES[value].title.partition(": ")[0] if value in STRATEGIES else value


def _text_label(value: str) -> str:
    return value or "(none)"


# ---- what to offer


def _suggest_strategies(request: GenerationRequest, catalogue: Catalogue) -> Sequence[str]:
    """The base first, by the word that means it whatever it was trained by."""
    if request.checkpoint not in catalogue:
        return ()
    base = catalogue[catalogue[request.checkpoint].base].strategy
    others = strategies_for(dict(catalogue), request.checkpoint)
    return ("base", *(name for name in others if name not in (base, "base")))


def _suggest_words(request: GenerationRequest, catalogue: Catalogue) -> Sequence[str]:
    """A word of the checkpoint's vocabulary that the prompt holds, and the others of its group: the longest first."""
    spec = catalogue.get(request.checkpoint)
    held = [
        (word, words)
        for words in (spec.vocabulary.values() if spec else ())
        for word in words
        if word in request.prompt
    ]
    if not held:
        return ()
    word, words = max(held, key=lambda pair: len(pair[0]))
    return (word, *(other for other in words if other != word))


def _suggest_profiles(request: GenerationRequest, catalogue: Catalogue) -> Sequence[str]:
    return tuple(PROFILES)


AXES: dict[str, Kind] = {
    # In the order in which values are put into a request: a checkpoint before a strategy on it.
    "checkpoint": Kind(
        "Checkpoint",
        "ids of the catalogue",
        _put_checkpoint,
        suggest=lambda request, catalogue: tuple(catalogue),
    ),
    "strategy": Kind(
        "Strategy",
        "strategies on the checkpoint's base; base is the base itself",
        _put_strategy,
        label=_strategy_label,
        suggest=_suggest_strategies,
    ),
    "profile": Kind(
        "Speed",
        "exact, fast or plain",
        _field("profile"),
        _one_of(tuple(PROFILES), "profile"),
        label=lambda value: PROFILES[value].title,
        suggest=_suggest_profiles,
    ),
    "switch": Kind(
        "Switch",
        "values of one switch of the profile, as in switch:reuse=1,2",
        _put_switch,
        _read_switch,
        label=_switch_label,
        once=False,
    ),
    "prompt": Kind(
        "Prompt",
        "the text that is searched in the prompt, then those that take its place",
        _put_prompt,
        label=_text_label,
        empty=True,
        suggest=_suggest_words,
        once=False,
    ),
    "negative": Kind(
        "Negative prompt",
        "what to avoid; empty is nothing",
        _field("negative"),
        label=_text_label,
        empty=True,
    ),
    "seed": Kind("Seed", "whole numbers", _field("seed"), number=int, suggest=lambda r, c: ("1..4",)),
    "steps": Kind("Steps", "whole numbers", _field("steps"), number=int, suggest=lambda r, c: ("4", "8", "16")),
    "guidance": Kind(
        "Guidance",
        "numbers; 1 is without",
        _field("guidance"),
        number=float,
        label=_number_label,
        suggest=lambda r, c: ("1", "1.5", "2", "3"),
    ),
    "scheduler": Kind(
        "Scheduler",
        ", ".join(SCHEDULERS),
        _field("scheduler"),
        _one_of(SCHEDULERS, "scheduler"),
        suggest=lambda r, c: SCHEDULERS,
    ),
    "size": Kind(
        "Size",
        "pixels, as 256 or 256x512 (width x height)",
        _put_size,
        _read_size,
        label=lambda value: value.replace("x", " × "),
        suggest=lambda r, c: ("256", "384", "512"),
    ),
    "strength": Kind(
        "Strength",
        "of image-to-image: 0 keeps the guide, 1 ignores it",
        _field("strength"),
        number=float,
        label=_number_label,
        idle=_idle_strength,
        suggest=lambda r, c: ("0.3", "0.5", "0.7", "0.9"),
    ),
    "guide-way": Kind(
        "Guide network",
        "networks that read the guide, or image-to-image",
        _of_guides("way"),
        guides=True,
    ),
    "guide-weight": Kind(
        "Guide weight",
        "0 is without, 1 as trained",
        _of_guides("weight"),
        number=float,
        label=_number_label,
        guides=True,
        idle=_idle_steering,
        suggest=lambda r, c: ("0", "0.5", "1", "1.5"),
    ),
    "guide-start": Kind(
        "Guide start",
        "share of the steps before it sets in",
        _of_guides("start"),
        number=float,
        label=_number_label,
        guides=True,
        idle=_idle_steering,
        suggest=lambda r, c: ("0", "0.25", "0.5"),
    ),
    "guide-end": Kind(
        "Guide end",
        "share of the steps after which it ends",
        _of_guides("end"),
        number=float,
        label=_number_label,
        guides=True,
        idle=_idle_steering,
        suggest=lambda r, c: ("0.25", "0.5", "1"),
    ),
}  # fmt: skip


def parse_axis(text: str) -> Axis:
    """Read an axis as the command line gives it: ``NAME=VALUES``, or ``NAME:WHICH=VALUES``.

    Raises:
        InputError: one sentence on what is wrong with it.
    """
    name, mark, values = text.partition("=")
    if not mark:
        raise InputError(f"The axis {text!r} has no values; write it as seed=1..4 or strategy=base,turbo.")
    return read_axis(name.strip(), values)


def read_axis(name: str, text: str) -> Axis:
    """Read an axis from its name (``seed``, ``guide-weight:2``, ``switch:reuse``) and the text of its values.

    Values are separated by commas; one that holds a comma stands in double quotes or has it after a backslash. Of
    numbers a range may be among them: ``1..4``, or ``0..1/0.25`` with its step; both ends belong to it.

    Raises:
        InputError: one sentence on what is wrong with it.
    """
    name, _, of = (part.strip() for part in name.partition(":"))
    kind = AXES.get(name)
    if kind is None:
        raise InputError(f"The axis {name!r} is unknown; choose one of {', '.join(AXES)}.")
    if name == "switch":
        known = [field.name for field in dataclasses.fields(Switches)]
        if of not in known:
            raise InputError(f"The axis switch needs one of {', '.join(known)}; write it as switch:reuse=1,2.")
    elif of and not (kind.guides and re.fullmatch("[1-9]", of)):
        wanted = f"write {name}:2 for the second guide" if kind.guides else f"write {name}=…"
        raise InputError(f"The axis {name}:{of} cannot be read; {wanted}.")
    parts = split_values(text, name)
    values: list[Any] = []
    for part in parts:
        if not part and not (kind.empty and (name != "prompt" or values)):
            raise InputError(
                f"The axis {name} has an empty value; give values separated by commas, such as {_example(name)}."
            )
        values += _numbers(part, name, kind.number) if kind.number else [kind.read(part, of)]
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise InputError(f"The axis {name} has {kind.label(twice)!r} twice; leave one of them out.")
    if name == "prompt" and len(values) < 2:
        raise InputError(
            "The axis prompt has one value; give the text that is searched in the prompt, then what takes its place."
        )
    if len(values) > LONGEST:
        raise InputError(f"The axis {name} has {len(values)} values; give {LONGEST} at most.")
    return Axis(name, tuple(values), of)


def split_values(text: str, name: str) -> list[str]:
    """Split a text at its commas, except those in double quotes or after a backslash.

    Raises:
        InputError: it is empty, or its quotes do not match.
    """
    line = " ".join(text.split())
    if not line:
        raise InputError(f"The axis {name} has no values; write it as {_example(name)}.")
    try:
        [parts] = csv.reader([line], skipinitialspace=True, escapechar="\\", strict=True)
    except (csv.Error, ValueError) as error:
        raise InputError(
            f"The values of the axis {name} cannot be read; put a value that holds a comma or quotes into double "
            "quotes, with a backslash before those inside."
        ) from error
    return [part.strip() for part in parts]


def join_values(values: Sequence[str]) -> str:
    """Return texts as ``split_values`` reads them again."""
    return ", ".join(
        '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if re.search(r'[,"\\]', value) else value
        for value in values
    )


def suggested(name: str, request: GenerationRequest, catalogue: Catalogue) -> str:
    """Return values to begin with for an axis of a request, as text; empty where there are none to offer."""
    kind = AXES.get(name.partition(":")[0])
    return "" if kind is None else join_values(kind.suggest(request, catalogue))


def _example(name: str) -> str:
    kind = AXES[name]
    if kind.number is int:
        return f"{name}=1..4"
    examples = {"strategy": "base,turbo", "prompt": "gorge,forest", "size": "256,512", "scheduler": "ddim,euler"}
    return f"{name}={'0..1/0.25' if kind.number else examples.get(name, 'ONE,ANOTHER')}"


def _numbers(text: str, name: str, kind: type[int] | type[float]) -> list[Any]:
    """Return the number that a text is, or those of a range."""
    found = _RANGE.fullmatch(text)
    try:
        if not found:
            return [_number(Decimal(text), kind)]
        first, last = Decimal(found[1]), Decimal(found[2])
        step = Decimal(found[3] or 1)
        if step <= 0:
            raise InputError(f"The axis {name} has the step {found[3]}; give one above 0.")
        count = int(abs(last - first) / step) + 1
        if count > LONGEST:
            raise InputError(f"The axis {name} has {count} values; give {LONGEST} at most.")
        if count == 1 and first != last:
            raise InputError(
                f"The range {text!r} of the axis {name} ends before its first step; give a smaller one, such as "
                f"{found[1]}..{found[2]}/{abs(last - first) / 2:g}."
            )
        return [_number(first + (step if last > first else -step) * i, kind) for i in range(count)]
    except InvalidOperation as error:
        what = "a whole number" if kind is int else "a number"
        raise InputError(
            f"The axis {name} has the value {text!r}, which is not {what}; give values such as {_example(name)}."
        ) from error


def _number(value: Decimal, kind: type[int] | type[float]) -> Any:
    if not value.is_finite() or (kind is int and value != value.to_integral_value()):
        raise InvalidOperation
    return kind(value)
