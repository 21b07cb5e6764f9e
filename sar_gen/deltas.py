"""Quantised deltas: what training changed in a whole part, as a few bits a weight on top of the base's file.

``delta.safetensors`` in a part's folder (``unet/``, ``text_encoder/``, ``text_encoder_2/``, ``vae/``) holds, for each
tensor NAME of the base that changed,

    NAME::codes       8 bits: int8 (rows, columns); 4 bits: uint8 (rows, ceil(columns / 2)), two codes a byte, the
                      first in the low half, each with 8 added
    NAME::scales      float16 (rows, ceil(columns / group)); one for each group of ``group`` neighbours in a row
    NAME::difference  float32, in the tensor's own shape: norms, biases and tensors under ``MIN_COUNT`` values

or, of a low-rank delta, in the place of codes and scales

    NAME::up          float16 (rows, rank)
    NAME::down        float16 (rank, columns); the change is up x down

where a tensor of shape (out, in, ...) is taken as ``rows`` = out by ``columns`` = in x ... . The weight is

    W = base + 2^-15 x scale x code,

summed in float32 and then cast. Codes are symmetric: -127 to 127, or -7 to 7. The factor 2^-15 keeps the scales of
small changes out of float16's subnormal numbers: full precision from 2e-9 up, 2.0 at most. With 8 bits no value is
clipped, so that each is off by half a step (2^-15 scale / 2) at most. With 4 bits a group's scale is the one of the
smallest squared error among ``CLIPS`` of the scale that clips nothing.

A delta of N weights takes about N (bits / 8 + 2 / group) bytes: 25 million take 25.8 MB at 8 bits, 13.3 MB at 4.

The file's metadata: ``sar_gen_delta`` (version of this format), ``bits``, ``group`` and ``base_sha256``, the SHA-256
of each weight file of the base's part, in order: a delta fits that base only.

``python -m sar_gen.deltas BASE_FOLDER STRATEGY_FOLDER OUT --bits 4`` rewrites a strategy folder with whole parts as
one with deltas.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, sha256_of, write_atomic
from sar_gen.weights import Header, read_header, weight_files

if TYPE_CHECKING:
    import torch

DELTA_FILE = "delta.safetensors"
VERSION = "1"
GROUP = 64
MIN_COUNT = 1024
"""Tensors of fewer values, and those of one dimension, are kept as float32 differences."""
UNIT = 2.0**-15
CLIPS: dict[int, tuple[float, ...]] = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)}
"""By bits, the shares of the unclipped scale that are tried for each group."""
CODES, SCALES, DIFFERENCE, UP, DOWN = "::codes", "::scales", "::difference", "::up", "::down"
_ALL = (CODES, SCALES, DIFFERENCE, UP, DOWN)


@dataclass(frozen=True)
class DeltaFacts:
    """What the header of a delta file tells.

    Attributes:
        bits: of a code, 8 or 4.
        group: values that share a scale.
        base_sha256: of the base's weight files of this part, in order.
        names: the tensors that it changes, without the ``text_model.`` prefix of older CLIP files.
    """

    bits: int
    group: int
    base_sha256: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class DeltaError:
    """How far a quantised delta is off.

    Attributes:
        delta: root mean square of (quantised - true) over that of the true delta.
        weights: the same difference over the root mean square of the tuned weights.
    """

    delta: float
    weights: float


@dataclass(frozen=True)
class PartReport:
    """One part that ``make_deltas`` rewrote.

    Attributes:
        part: for example ``unet``.
        parameters: values of the tensors that changed.
        bytes_before: of the whole part's files.
        bytes_after: of the delta.
        error: of the delta as written.
        unclipped_error: relative error of the delta with scales that clip nothing; the same for 8 bits.
    """

    part: str
    parameters: int
    bytes_before: int
    bytes_after: int
    error: DeltaError
    unclipped_error: float


def delta_facts(path: Path) -> DeltaFacts:
    """Check a delta file by its header, and return what it tells; the data is not read.

    Raises:
        InputError: it is cut off, of another format or version, or its tensors do not belong together.
    """
    header = read_header(path)
    where = f"{path.parent.name}/{path.name}"
    facts = header.metadata
    if facts.get("sar_gen_delta") != VERSION:
        raise InputError(
            f"{where} is not a quantised delta of format {VERSION} (its metadata say "
            f"{facts.get('sar_gen_delta', 'nothing')}); write it again with 'python -m sar_gen.deltas'."
        )
    hashes = tuple(facts.get("base_sha256", "").split())
    bits, group = facts.get("bits", ""), facts.get("group", "")
    if bits not in ("4", "8") or not group.isdigit() or int(group) < 2 or int(group) % 2 or not hashes:
        raise InputError(
            f"{where} does not state bits (4 or 8), group and base_sha256 as it should; write the delta again."
        )
    names = {key.rpartition("::")[0] for key in header.tensors}
    for name in names:
        mine = {kind: header.tensors.get(f"{name}{kind}") for kind in _ALL}
        kinds = {kind: tensor.dtype for kind, tensor in mine.items() if tensor is not None}
        right = {CODES: "I8" if bits == "8" else "U8", SCALES: "F16"}
        if not name or kinds not in (right, {DIFFERENCE: "F32"}, {UP: "F16", DOWN: "F16"}):
            raise InputError(f"{where} does not hold {name or 'its tensors'} as codes and scales; write it again.")
    if not names or len(header.tensors) != sum(1 if f"{n}{DIFFERENCE}" in header.tensors else 2 for n in names):
        raise InputError(f"{where} holds tensors that belong to no delta; write it again.")
    return DeltaFacts(int(bits), int(group), hashes, tuple(sorted(names)))


def check_shapes(path: Path, base_shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Check from the header that each tensor of a delta has its place in the base.

    Args:
        path: of the delta.
        base_shapes: ``{tensor: shape}`` of the base's part, without ``text_model.`` prefixes.
        name: of the strategy, for the sentence.

    Raises:
        InputError: a tensor is not in the base, or of another shape.
    """
    facts, header = delta_facts(path), read_header(path)
    for tensor in facts.names:
        shape = base_shapes.get(tensor)
        found = {kind: header.tensors[f"{tensor}{kind}"].shape for kind in _kinds(header, tensor)}
        if shape is None or found != _stored_shapes(shape, facts.bits, facts.group, found):
            raise InputError(
                f"The {path.parent.name} delta of {name} does not fit its base ({tensor}: "
                f"{'it is not in the base' if shape is None else 'the base has ' + 'x'.join(map(str, shape))}); "
                "choose the base that it was trained from."
            )


def check_base(path: Path, base_sha256: Sequence[str], name: str) -> None:
    """Check that a delta was made on these weight files.

    Args:
        path: of the delta.
        base_sha256: of the base's weight files of this part, in order.
        name: of the strategy, for the sentence.

    Raises:
        InputError: it was made on others.
    """
    wanted = delta_facts(path).base_sha256
    if wanted != tuple(base_sha256):
        raise InputError(
            f"The {path.parent.name} delta of {name} was made on other weights than its base has (sha256 "
            f"{_brief(wanted)} instead of {_brief(base_sha256)}); bring the base that it was made on."
        )


def quantise(
    base: Mapping[str, torch.Tensor],
    tuned: Mapping[str, torch.Tensor],
    bits: int,
    group: int = GROUP,
    clips: Sequence[float] | None = None,
    rank: int | None = None,
) -> dict[str, torch.Tensor]:
    """Quantise what changed from ``base`` to ``tuned``.

    Args:
        base: tensors by name; names may carry ``text_model.`` or not.
        tuned: the same, or some of them; what is left out is as in the base.
        bits: 8 or 4.
        group: values of a row that share a scale; even.
        clips: shares of the unclipped scale to try; ``None`` takes ``CLIPS``.
        rank: keep a matrix's change as the nearest one of this rank (its largest singular values), where that is
            smaller than codes and scales; bits, group and clips then are of the others.

    Returns:
        The tensors of a delta file (see the module's docstring); those that did not change are left out.

    Raises:
        InputError: a name or a shape is not the base's, a value is not finite, or a change is so large (over 14 at 4
            bits) that it is no delta of a fine-tuned model.
    """
    import torch

    if bits not in CLIPS or group < 2 or group % 2:
        raise InputError(f"A delta of {bits} bits in groups of {group} is not made; take 4 or 8 bits, an even group.")
    found: dict[str, torch.Tensor] = {}
    theirs = {_short(name): name for name in base}
    with torch.no_grad():
        for name in tuned:
            short = _short(name)
            if short.endswith("position_ids"):
                continue
            if short not in theirs or base[theirs[short]].shape != tuned[name].shape:
                raise InputError(f"{name} has no place of its shape in the base; choose the base it was trained from.")
            old, new = base[theirs[short]].float().cpu(), tuned[name].float().cpu()
            if torch.equal(old, new):
                continue
            delta = new - old
            if not bool(torch.isfinite(delta).all()):
                raise InputError(
                    f"{name} holds values that are not numbers; the training went wrong, use an earlier one."
                )
            if delta.dim() < 2 or delta.numel() < MIN_COUNT:
                found[f"{short}{DIFFERENCE}"] = delta.contiguous()
                continue
            if rank is not None and 16 * rank * sum(delta.flatten(1).shape) < bits * delta.numel():
                found[f"{short}{UP}"], found[f"{short}{DOWN}"] = low_rank(delta.flatten(1), rank)
                continue
            codes, scales = _quantised(delta.flatten(1), bits, group, CLIPS[bits] if clips is None else clips)
            if not bool(torch.isfinite(scales).all()):
                raise InputError(f"{name} changed by more than a delta can hold; ship this part whole.")
            found[f"{short}{CODES}"] = codes if bits == 8 else _packed(codes)
            found[f"{short}{SCALES}"] = scales
    return found


def low_rank(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float16 ``(rows, rank)`` and ``(rank, columns)`` whose product is nearest to a float32 matrix.

    By its singular values (Eckart and Young, 1936), each shared evenly between the two.
    """
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    return (left[:, :rank] * roots).half().contiguous(), (roots[:, None] * right[:rank]).half().contiguous()


def dequantise(
    tensors: Mapping[str, torch.Tensor], name: str, shape: Sequence[int], bits: int, group: int = GROUP
) -> torch.Tensor:
    """Return the delta of one tensor, float32 of its own shape.

    Args:
        tensors: of a delta, as ``quantise`` gives them.
        name: of the tensor, without ``text_model.``.
        shape: of the tensor in the base.
        bits: 8 or 4.
        group: values of a row that share a scale.
    """
    import torch

    if f"{name}{DIFFERENCE}" in tensors:
        return tensors[f"{name}{DIFFERENCE}"].float().reshape(tuple(shape))
    if f"{name}{UP}" in tensors:
        return (tensors[f"{name}{UP}"].float() @ tensors[f"{name}{DOWN}"].float()).reshape(tuple(shape))
    rows, columns = shape[0], math.prod(shape[1:])
    codes = tensors[f"{name}{CODES}"]
    if bits == 4:
        codes = torch.stack(((codes & 15).to(torch.int8) - 8, (codes >> 4).to(torch.int8) - 8), dim=2).flatten(1)
    steps = tensors[f"{name}{SCALES}"].float() * UNIT
    numbers = codes[:, :columns].float()
    whole = columns // group * group
    # Whole groups at once, without a matrix of steps as large as the codes; then what is left of a row.
    numbers[:, :whole].unflatten(1, (-1, group)).mul_(steps[:, : whole // group].unsqueeze(2))
    numbers[:, whole:].mul_(steps[:, whole // group :])
    return numbers.reshape(rows, *shape[1:])


def error(
    base: Mapping[str, torch.Tensor],
    tuned: Mapping[str, torch.Tensor],
    delta: Mapping[str, torch.Tensor],
    bits: int,
    group: int = GROUP,
) -> DeltaError:
    """Return how far ``base`` plus a quantised delta is from ``tuned``, over all tensors of ``tuned``.

    Args:
        base: as for ``quantise``.
        tuned: the same.
        delta: from ``quantise``.
        bits: 8 or 4.
        group: values of a row that share a scale.
    """
    theirs = {_short(name): name for name in base}
    changed = {key.rpartition("::")[0] for key in delta}
    wrong = true = weights = 0.0
    for name, tensor in tuned.items():
        short = _short(name)
        if short.endswith("position_ids"):
            continue
        new = tensor.double().cpu()
        weights += float(new.square().sum())
        if short in changed:
            difference = new - base[theirs[short]].double().cpu()
            true += float(difference.square().sum())
            wrong += float((dequantise(delta, short, new.shape, bits, group).double() - difference).square().sum())
    return DeltaError(math.sqrt(wrong / true) if true else 0.0, math.sqrt(wrong / weights) if weights else 0.0)


def write_delta(
    path: Path, delta: Mapping[str, torch.Tensor], bits: int, base_sha256: Sequence[str], group: int = GROUP
) -> None:
    """Write a delta file, whole or not at all.

    Args:
        path: ``…/unet/delta.safetensors``.
        delta: from ``quantise``.
        bits: as given there.
        base_sha256: of the base's weight files of this part, in the order of ``weights.weight_files``.
        group: as given to ``quantise``.

    Raises:
        InputError: nothing changed.
        SarGenError: it cannot be written.
    """
    from safetensors.torch import save

    if not delta:
        raise InputError(f"Nothing changed in {path.parent.name}, so there is no delta to write; leave the part out.")
    metadata = {
        "sar_gen_delta": VERSION,
        "bits": str(bits),
        "group": str(group),
        "base_sha256": " ".join(base_sha256),
    }
    write_atomic(path, save(dict(delta), metadata))


def apply_delta(module: torch.nn.Module, base_files: Sequence[Path], delta_file: Path) -> None:
    """Write ``base + delta`` into the tensors of a module that a delta changes, in place, one tensor at a time.

    The sum is made in float32 from the base's file, whatever the module holds, and cast to the module's dtype. The
    other tensors are left alone. ``check_base`` is the caller's.

    Args:
        module: the part, on any device but ``meta``.
        base_files: the base's weight files of this part.
        delta_file: of the strategy.

    Raises:
        InputError: a name or a shape is not the module's or the base's.
    """
    import torch
    from safetensors import safe_open

    from sar_gen.switching import few_threads, size_of

    facts, header = delta_facts(delta_file), read_header(delta_file)
    mine = {_short(name): tensor for name, tensor in module.state_dict().items()}
    with ExitStack() as stack, few_threads(size_of(mine.values())), torch.no_grad():
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in base_files]
        places = {_short(name): (file, name) for file in files for name in file.keys()}  # noqa: SIM118 - not a dict
        delta = stack.enter_context(safe_open(delta_file, framework="pt"))
        for name in facts.names:
            target = mine.get(name)
            if target is None or name not in places:
                raise InputError(f"{name} of {delta_file.name} has no place in the base")
            file, long = places[name]
            base = file.get_tensor(long).to(target.device).float()
            kinds = _kinds(header, name)
            tensors = {f"{name}{kind}": delta.get_tensor(f"{name}{kind}").to(target.device) for kind in kinds}
            shapes = {kind: tuple(tensors[f"{name}{kind}"].shape) for kind in kinds}
            if base.shape != target.shape or shapes != _stored_shapes(
                tuple(base.shape), facts.bits, facts.group, shapes
            ):
                raise InputError(f"{name} of {delta_file.name} has no place of its shape in the base")
            # A sum and a product, each rounded to nearest in float32: the same numbers on every device.
            target.copy_(dequantise(tensors, name, base.shape, facts.bits, facts.group).add_(base))


def make_deltas(
    base: Path,
    strategy: Path,
    out: Path,
    bits: int,
    *,
    variant: str | None = None,
    group: int = GROUP,
    rank: int | None = None,
) -> list[PartReport]:
    """Write a strategy folder with whole parts again, as one with deltas; everything else in it is copied.

    The card's ``sha256`` becomes that of the new weight files.

    Args:
        base: complete pipeline folder of the base.
        strategy: folder with at least one whole part.
        out: the new folder; whole or not there at all.
        bits: 8 or 4.
        variant: of the base's weight files; the base card's when left out.
        group: values of a row that share a scale.
        rank: of a low-rank delta; see ``quantise``.

    Returns:
        One report a part.

    Raises:
        InputError: ``out`` is there, the strategy does not fit the base, or has no whole part that changed.
        SarGenError: it cannot be written.
    """
    from safetensors.torch import load_file

    from sar_gen import folders

    if out.exists():
        raise InputError(f"{out} is there already; give another name, or delete it.")
    variant = variant or _card_variant(base)
    family = folders.check_pipeline(base, variant)
    files = folders.strategy_files(strategy)
    folders.check_fits(files, base, family, strategy.name, variant)
    if not files.full:
        raise InputError(f"{strategy} has no whole part (unet/, text_encoder/, vae/) to make a delta of.")
    reports = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
    except OSError as problem:
        raise SarGenError(describe_os_error(out, problem)) from problem
    try:
        beside.chmod(0o755)
        whole = {path.resolve() for paths in files.full.values() for path in paths}
        shutil.copytree(
            strategy, beside, dirs_exist_ok=True, ignore=lambda folder, names: _among(folder, names, whole)
        )
        for part, paths in files.full.items():
            of_base = weight_files(base / part, variant)
            old = {name: tensor for path in of_base for name, tensor in load_file(path).items()}
            new = {name: tensor for path in paths for name, tensor in load_file(path).items()}
            delta = quantise(old, new, bits, group, rank=rank)
            unclipped = error(old, new, quantise(old, new, bits, group, (1.0,), rank), bits, group).delta
            place = beside / part / DELTA_FILE
            write_delta(place, delta, bits, [sha256_of(path) for path in of_base], group)
            reports.append(
                PartReport(
                    part,
                    sum(new[name].numel() for name in new if any(f"{_short(name)}{kind}" in delta for kind in _ALL)),
                    sum(path.stat().st_size for path in paths),
                    place.stat().st_size,
                    error(old, new, delta, bits, group),
                    unclipped,
                )
            )
        folders.check_fits(folders.strategy_files(beside), base, family, strategy.name, variant)
        _update_card(beside)
        os.replace(beside, out)
    except OSError as problem:
        raise SarGenError(describe_os_error(out, problem)) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return reports


def _quantised(
    delta: torch.Tensor, bits: int, group: int, clips: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes ``(rows, columns)`` and float16 scales ``(rows, groups)`` of a float32 matrix."""
    import torch

    columns = delta.shape[1]
    top = 2 ** (bits - 1) - 1
    padded = torch.nn.functional.pad(delta, (0, -columns % group)).unflatten(1, (-1, group))
    largest = padded.abs().amax(dim=2)
    scales, codes, smallest = None, None, None
    for clip in clips:
        tried = _half_up(largest * (clip / (top * UNIT)))
        step = (tried.float() * UNIT).unsqueeze(2)
        # A group without change has the step 0 and the codes 0.
        numbers = (padded / torch.where(step > 0, step, 1.0)).round().clamp(-top, top)
        wrong = (numbers * step - padded).square().sum(dim=2)
        if scales is None or codes is None or smallest is None:
            scales, codes, smallest = tried, numbers, wrong
        else:
            better = wrong < smallest
            scales, smallest = torch.where(better, tried, scales), torch.where(better, wrong, smallest)
            codes = torch.where(better.unsqueeze(2), numbers, codes)
    assert scales is not None and codes is not None
    return codes.flatten(1)[:, :columns].to(torch.int8).contiguous(), scales.contiguous()


def _half_up(values: torch.Tensor) -> torch.Tensor:
    """Return the smallest float16 not below each value >= 0, so that a scale never clips by its own rounding."""
    import torch

    half = values.half()
    # The bits of positive float16 numbers, read as whole numbers, are in the order of the numbers.
    return (half.view(torch.int16) + (half.float() < values).to(torch.int16)).view(torch.float16)


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """Return codes -7 to 7 two a byte, uint8 ``(rows, ceil(columns / 2))``."""
    import torch

    shifted = (torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)) + 8).to(torch.uint8)
    return (shifted[:, 0::2] | (shifted[:, 1::2] << 4)).contiguous()


def _stored_shapes(
    shape: tuple[int, ...], bits: int, group: int, found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a tensor's delta has to have, of the kinds that were found."""
    if DIFFERENCE in found or not shape:
        return {DIFFERENCE: shape}
    rows, columns = shape[0], math.prod(shape[1:])
    if UP in found:
        rank = found[UP][-1]
        return {UP: (rows, rank), DOWN: (rank, columns)}
    return {CODES: (rows, columns if bits == 8 else -(-columns // 2)), SCALES: (rows, -(-columns // group))}


def _kinds(header: Header, name: str) -> list[str]:
    return [kind for kind in _ALL if f"{name}{kind}" in header.tensors]


def _short(name: str) -> str:
    return name.removeprefix("text_model.")


def _brief(hashes: Sequence[str]) -> str:
    return ", ".join(f"{digest[:12]}…" for digest in hashes)


def _among(folder: str, names: Sequence[str], paths: set[Path]) -> Iterator[str]:
    return (name for name in names if (Path(folder) / name).resolve() in paths)


def _card_variant(folder: Path) -> str | None:
    from sar_gen.checkpoints import read_card

    card = read_card(folder / "card.toml") if (folder / "card.toml").is_file() else {}
    return card.get("variant")


def _update_card(folder: Path) -> None:
    """Put the SHA-256 of every weight file into the card, if there is one; the rest of it stays as it is written."""
    import tomlkit

    path = folder / "card.toml"
    if not path.is_file():
        return
    card = tomlkit.parse(path.read_text(encoding="utf-8"))
    card.pop("sha256", None)
    table = tomlkit.table()
    for file in sorted(folder.rglob("*.safetensors")):
        table[file.relative_to(folder).as_posix()] = sha256_of(file)
    card["sha256"] = table
    write_atomic(path, tomlkit.dumps(card).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for bad input, 1 for a failure of ours."""
    parser = argparse.ArgumentParser(prog="python -m sar_gen.deltas", description="Whole parts as quantised deltas.")
    parser.add_argument("base", type=Path, metavar="BASE_FOLDER", help="pipeline folder that was trained from")
    parser.add_argument("strategy", type=Path, metavar="STRATEGY_FOLDER", help="folder with whole parts")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8, help="of a code (default 8)")
    parser.add_argument("--rank", type=int, help="keep changes of matrices as products of this rank")
    parser.add_argument("--variant", help="of the base's weight files, for example fp16")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    given = parser.parse_args(arguments)
    try:
        reports = make_deltas(
            given.base, given.strategy, given.out, given.bits, variant=given.variant, rank=given.rank
        )
    except SarGenError as problem:
        print(problem, file=sys.stderr)
        return 2 if isinstance(problem, InputError) else 1
    if given.json:
        print(json.dumps({"folder": str(given.out), "bits": given.bits, "parts": [asdict(r) for r in reports]}))
        return 0
    for report in reports:
        print(
            f"{report.part}: {report.parameters:,} values, {report.bytes_before / 1e6:.2f} MB -> "
            f"{report.bytes_after / 1e6:.2f} MB; relative RMS error of the delta {report.error.delta:.2%} "
            f"({report.unclipped_error:.2%} without clipping), of the weights {report.error.weights:.2e}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
