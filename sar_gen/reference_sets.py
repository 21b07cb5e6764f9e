"""Sets of real SAR as plain data: what they are made of, and what stands between them and other patches."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sar_gen.amplitude import AmplitudeEncoding, Scale
from sar_gen.errors import InputError
from sar_gen.patches import Patch
from sar_gen.quality.statistics import PatchStatistics, patch_statistics

Origin = Literal["shipped", "package", "user", "folder"]


@dataclass(frozen=True)
class ReferenceInfo:
    """What is known of a set without loading it.

    Attributes:
        name: what it is asked for by.
        title: what the user reads.
        count: number of patches.
        polarisation: ``VV``, ``VH``, ... or ``None`` where unknown.
        encoding: of its amplitude.
        has_patches: whether real patches can be shown, not only their statistics.
        credit: whose data.
        origin: where it comes from.
    """

    name: str
    title: str
    count: int
    polarisation: str | None
    encoding: AmplitudeEncoding
    has_patches: bool
    credit: str
    origin: Origin


@dataclass(frozen=True)
class ReferenceSet:
    """A set of real SAR.

    Attributes:
        name: what it is asked for by.
        title: what the user reads.
        encoding: of its amplitude.
        polarisation: ``VV``, ``VH``, ... or ``None`` where unknown.
        sensor: in words.
        statistics: one row a patch.
        patches: real patches to show: none where only statistics ship, at most ``SHOWN`` of a user's set.
        scale: the pair that brought linear amplitude to [0, 1], one for the set; ``None`` where unknown.
        credit: whose data.
        licence: on what terms.
        note: what one should know when comparing.
        splits: one of ``train`` and ``reference`` a patch where the source was split, else empty.
    """

    name: str
    title: str
    encoding: AmplitudeEncoding
    polarisation: str | None
    sensor: str
    statistics: PatchStatistics
    patches: tuple[Patch, ...] = ()
    scale: Scale | None = None
    credit: str = ""
    licence: str = ""
    note: str = ""
    splits: tuple[str, ...] = ()


def from_patches(
    patches: Sequence[Patch],
    name: str,
    *,
    title: str | None = None,
    sensor: str = "unknown sensor",
    credit: str = "",
    licence: str = "",
    note: str = "",
    statistics: PatchStatistics | None = None,
) -> ReferenceSet:
    """Return patches as a set, measured unless ``statistics`` are given.

    Patches with a ``group`` keep it; every other one is a group of its own.

    Raises:
        InputError: there is no patch, or they differ in encoding or polarisation.
    """
    if not patches:
        raise InputError(f"The reference set {name!r} has no patches; give at least one.")
    for attribute, what in (("encoding", "amplitude encoding"), ("polarisation", "polarisation")):
        values = sorted({str(getattr(patch, attribute)) for patch in patches})
        if len(values) > 1:
            raise InputError(
                f"The patches of {name!r} differ in {what} ({', '.join(values)}), which are never pooled; "
                "make one set of each."
            )
    if statistics is None:
        statistics = patch_statistics(patch.amplitude for patch in patches)
        groups = tuple(p.group or own for p, own in zip(patches, statistics.groups, strict=True))
        statistics = dataclasses.replace(statistics, groups=groups)
    scales = {patch.scale for patch in patches}
    return ReferenceSet(
        name=name,
        title=title or name,
        encoding=patches[0].encoding,
        polarisation=patches[0].polarisation,
        sensor=sensor,
        statistics=statistics,
        patches=tuple(patches),
        scale=scales.pop() if len(scales) == 1 else None,
        credit=credit or next((patch.credit for patch in patches if patch.credit), ""),
        licence=licence,
        note=note,
    )


def check_comparable(reference: ReferenceSet, encoding: AmplitudeEncoding, polarisation: str | None) -> list[str]:
    """Say what stands between a reference set and patches of a checkpoint, before they are compared.

    Decibel floats are brought to linear amplitude when they are read, exactly; an 8-bit decibel picture of unknown
    range cannot be, and so cannot be compared with linear amplitude.

    Args:
        reference: the set.
        encoding: of the checkpoint's output.
        polarisation: of the checkpoint's output or of the prompt (``VV``, ``VH``, ``VV+VH``); ``None`` is unknown.

    Returns:
        Warnings, one sentence each.

    Raises:
        InputError: the encodings cannot be reconciled.
    """
    warnings = []
    names = {"linear": "linear amplitude", "db": "decibels of unknown range", "unknown": "an unknown encoding"}
    if {encoding, reference.encoding} == {"linear", "db"}:
        raise InputError(
            f"The checkpoint gives {names[encoding]} and {reference.name} is in {names[reference.encoding]}, which "
            "cannot be converted exactly; choose a reference set in the checkpoint's own encoding."
        )
    if "unknown" in (encoding, reference.encoding):
        whose = "checkpoint's" if encoding == "unknown" else "reference set's"
        warnings.append(
            f"The {whose} amplitude encoding is unknown, so distances to {reference.name} mean little: they mix the "
            "encoding's difference with the pictures'."
        )
    elif encoding == "db":
        warnings.append("Both are decibel pictures; their distances mean something only if their ranges are the same.")
    generated = set(re.findall(r"[HV]{2}", (polarisation or "").upper()))
    if reference.polarisation and generated and reference.polarisation.upper() not in generated:
        warnings.append(
            f"{reference.name} is {reference.polarisation} and the patches are {polarisation}: they differ in level "
            f"and texture whatever the checkpoint does; choose a {polarisation} set."
        )
    return warnings
