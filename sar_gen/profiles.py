"""How fast and how exactly pictures are made: named switches, and the profiles that set them. Plain data, no torch.

A request names a profile; single switches may be set otherwise (``--switch reuse=1``). What each switch gains, and
what it does to the pictures, is measured by ``python -m sar_gen bench generate``, and is not promised here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sar_gen.errors import InputError


def _switch(default: Any, title: str, help: str, choices: tuple[Any, ...] | None = None) -> Any:
    return field(default=default, metadata={"title": title, "help": help, "choices": choices})


WHERE = ("off", "gpu", "on")


@dataclass(frozen=True)
class Switches:
    """What may be changed about how pictures are made; the defaults are what diffusers' own pipelines do.

    Attributes:
        precision: of the UNet on a CPU: ``float32``; ``auto`` is bfloat16 where the processor calculates in it.
            On a GPU the placement decides (bfloat16 where it can).
        wide_sampler: latents and sampler are kept in float32 whatever the UNet's precision.
        fused_projections: query, key and value of an attention are one matrix product; ``gpu``: on a GPU only.
        channels_last: memory layout of the UNet's convolutions; ``gpu``: on a GPU only.
        compiled: the repeated blocks of UNet and VAE are compiled by torch (in the background; eager until then);
            ``gpu``: on a GPU only.
        graphs: on CUDA, the UNet's kernels are launched as one CUDA graph; not where features are used again.
        guidance_start: share of the steps before guidance sets in (arXiv 2404.07724).
        guidance_end: share of the steps after which it ends; outside of the two only the prompt's branch is computed.
        reuse: deep features of the UNet are computed each so many steps and used again between (arXiv 2312.00858).
        steps: share of the card's default steps that is made, where a request asks for none.
        decoder: ``float32``, or ``narrow``: the VAE's decoder in the UNet's 16 bits up to its last layer.
        quantised: weights of the UNet's linear layers in fewer bits by torchao (optional package): ``none``, ``int8``
            or ``fp8``.
    """

    precision: str = _switch("float32", "Precision", "of the UNet on a CPU", ("float32", "auto"))
    wide_sampler: bool = _switch(False, "Sampler in float32", "latents and sampler in float32")
    fused_projections: str = _switch("off", "Fused projections", "query, key and value in one product", WHERE)
    channels_last: str = _switch("off", "Channels last", "memory layout of convolutions", WHERE)
    compiled: str = _switch("off", "Compiled", "repeated blocks compiled by torch, in the background", WHERE)
    graphs: bool = _switch(False, "CUDA graphs", "one launch a step, on CUDA")
    guidance_start: float = _switch(0.0, "Guidance from", "share of the steps before guidance sets in")
    guidance_end: float = _switch(1.0, "Guidance to", "share of the steps after which guidance ends")
    reuse: int = _switch(1, "Reuse", "steps between two computations of the UNet's deep features")
    steps: float = _switch(1.0, "Steps", "share of the card's steps")
    decoder: str = _switch("float32", "Decoder", "precision of the VAE's decoder", ("float32", "narrow"))
    quantised: str = _switch("none", "Quantised", "weights in fewer bits by torchao", ("none", "int8", "fp8"))

    def __post_init__(self) -> None:
        if not 0 <= self.guidance_start <= self.guidance_end <= 1:
            raise InputError(
                f"Guidance runs from {self.guidance_start:g} to {self.guidance_end:g} of the steps; choose shares "
                "from 0 to 1, the start before the end."
            )
        if not 1 <= self.reuse <= 10:
            raise InputError(f"The switch reuse is {self.reuse}; choose 1 (never) to 10.")
        if not 0.1 <= self.steps <= 1:
            raise InputError(f"The switch steps is {self.steps:g}; choose a share from 0.1 to 1.")
        for one in dataclasses.fields(self):
            choices, value = one.metadata["choices"], getattr(self, one.name)
            if choices is not None and value not in choices:
                raise InputError(f"The switch {one.name} is {value!r}; choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Profile:
    """A named set of switches.

    Attributes:
        name: stable name.
        title: for people.
        summary: one sentence.
        switches: that it sets.
    """

    name: str
    title: str
    summary: str
    switches: Switches


_EXACT = Switches(precision="auto", wide_sampler=True, fused_projections="gpu", compiled="gpu", graphs=True)
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("exact", "Exact", "The pictures of diffusers' own pipeline, to rounding, made sooner.", _EXACT),
        Profile(
            "fast",
            "Fast",
            "Fewer steps, guidance only where it matters, deep features used again: near, but not the same pictures.",
            dataclasses.replace(_EXACT, guidance_end=0.6, reuse=2, steps=0.8, decoder="narrow", channels_last="gpu"),
        ),
        Profile("plain", "Plain", "As diffusers' own pipeline does it; in float32 on a CPU.", Switches()),
    )
}
DEFAULT_PROFILE = "exact"


def profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PROFILES:
        raise InputError(f"The profile {name!r} is unknown; choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def switches_of(name: str, changes: Mapping[str, Any] | None = None) -> Switches:
    """Return the switches of a profile with single ones set otherwise.

    Raises:
        InputError: an unknown profile or switch, or a value that cannot be.
    """
    found = profile(name).switches
    known = {one.name for one in dataclasses.fields(Switches)}
    for key in changes or {}:
        if key not in known:
            raise InputError(f"The switch {key!r} is unknown; choose one of {', '.join(sorted(known))}.")
    return dataclasses.replace(found, **(changes or {}))


def for_strategy(switches: Switches, distilled: bool) -> Switches:
    """Return the switches for a strategy; one that was distilled to a few steps needs each of them whole."""
    return dataclasses.replace(switches, steps=1.0, reuse=1) if distilled else switches


def read_switches(texts: Sequence[str]) -> dict[str, Any]:
    """Read switches as a command line gives them, ``NAME=VALUE`` each.

    Raises:
        InputError: an unknown switch, or a value that is not of its kind.
    """
    kinds: dict[str, type] = {name: type(value) for name, value in dataclasses.asdict(Switches()).items()}
    found: dict[str, Any] = {}
    for text in texts:
        name, mark, value = (part.strip() for part in text.partition("="))
        if not mark or name not in kinds:
            raise InputError(f"The switch {text!r} is unknown; give NAME=VALUE with one of {', '.join(kinds)}.")
        kind = kinds[name]
        words = {
            "on": True,
            "true": True,
            "yes": True,
            "1": True,
            "off": False,
            "false": False,
            "no": False,
            "0": False,
        }
        try:
            found[name] = words[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            wanted = "on or off" if kind is bool else {int: "a whole number", float: "a number"}.get(kind, "a word")
            raise InputError(f"The switch {name} is {value!r}; give {wanted}.") from error
    return found
