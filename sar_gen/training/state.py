"""What an interrupted run goes on from: states on disk, the journal of its steps, the clock of a time budget.

A work folder holds::

    config.json           the settings that every call of one run must share
    states/step-00000500/ accelerate's state at that step, whole or not there at all
    journal.jsonl         one line a step: loss, rate, seconds; cut back to the step that a run goes on from
    tensorboard/          event files, where they were asked for
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import describe_os_error, write_atomic

STATES, JOURNAL, CONFIG = "states", "journal.jsonl", "config.json"
PREFIX = "step-"


def check_same_run(work: Path, settings: Mapping[str, Any], *, resume: bool, lasting: bool = True) -> None:
    """Make ``work`` the folder of a run with these settings, or check that it is.

    Args:
        work: of the run.
        settings: JSON data; what may change between two calls (a time budget) does not belong in it.
        resume: go on with what is there.
        lasting: write it down (one process of several does).

    Raises:
        InputError: it holds states of other settings, or of a run that was not asked to go on.
    """
    path = work / CONFIG
    plain = json.loads(json.dumps(settings, default=str))
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if known is not None and latest(work) is not None:
        if not resume:
            raise InputError(
                f"{work} holds an unfinished run; go on with it (--resume), or delete the folder to start anew."
            )
        changed = sorted(_flat(plain).items() ^ _flat(known).items())
        if changed:
            names = sorted({name for name, _ in changed})
            raise InputError(
                f"{work} holds an unfinished run with other settings ({', '.join(names[:4])}); "
                "give the same ones, or delete the folder to start anew."
            )
    if lasting:
        write_atomic(path, json.dumps(plain, indent=1).encode())


def latest(work: Path) -> tuple[int, Path] | None:
    """Return the step and folder of the last whole state, ``None`` where there is none."""
    found = _states(work)
    return found[-1] if found else None


def save_state(accelerator: Any, work: Path, step: int, keep: int) -> None:
    """Write accelerate's state of ``step``: beside its place first, then renamed; keep the last ``keep`` states.

    Raises:
        SarGenError: the folder cannot be written.
    """
    place = work / STATES / f"{PREFIX}{step:08d}"
    beside = place.with_name(f".{place.name}.part")
    try:
        if accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(beside), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            replace_folder(beside, place)
            for _, old in _states(work)[:-keep]:
                shutil.rmtree(old)
    except OSError as error:
        raise SarGenError(describe_os_error(place, error)) from error
    accelerator.wait_for_everyone()


def replace_folder(new: Path, place: Path) -> None:
    """Put a folder in the place of another; what was there is deleted only after.

    A crash between the two renames leaves the old folder beside the place, with ``.old`` after its name.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for path in new.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if place.exists():
        old = place.with_name(f".{place.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(place, old)
        os.replace(new, place)
        shutil.rmtree(old)
    else:
        os.replace(new, place)


class Journal:
    """The steps of a run, in a file of JSON lines, and in TensorBoard where asked for."""

    def __init__(self, work: Path, start: int, *, tensorboard: bool = False, write: bool = True) -> None:
        """Go on after step ``start``: later lines, of a run that was cut off, are dropped.

        Raises:
            InputError: TensorBoard was asked for and is not installed.
        """
        self._path = work / JOURNAL
        self._write = write
        self._writer: Any = None
        if not write:
            return
        kept = [line for line in read_journal(work) if line["step"] <= start]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "run.tensorboard needs the package tensorboard; install it or leave the option out."
                ) from error
            self._writer = SummaryWriter(str(work / "tensorboard"), purge_step=start + 1)

    def add(self, step: int, **values: Any) -> None:
        """Write one line; numbers also go to TensorBoard, by name."""
        if not self._write:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in _flat(values).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what TensorBoard holds."""
        if self._writer is not None:
            self._writer.close()


def read_journal(work: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's journal; a last line that was cut off is left out."""
    path = work / JOURNAL
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def new_accelerator(precision: str, device: str, **options: Any) -> Any:
    """Return accelerate's Accelerator for a run.

    What an earlier run left in this process, perhaps of another precision, goes: accelerate refuses a second one.

    Args:
        precision: ``no``, ``bf16`` or ``fp16``.
        device: ``cpu``; else accelerate takes the CUDA device of its process.
        **options: of the Accelerator.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=device == "cpu", **options)


def seed_of(*numbers: int) -> int:
    """Return one seed, of 63 bits, of several numbers, such as seed, step and process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@dataclasses.dataclass
class Clock:
    """Time of one call: ``over`` once the budget of ``minutes`` is spent."""

    minutes: float | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.started

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return self.minutes is not None and self.seconds >= 60 * self.minutes


def _states(work: Path) -> list[tuple[int, Path]]:
    folder = work / STATES
    found = [path for path in folder.glob(f"{PREFIX}*") if path.is_dir()] if folder.is_dir() else []
    return sorted((int(path.name.removeprefix(PREFIX)), path) for path in found)


def _flat(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = tuple(value) if isinstance(value, list) else value
    return flat
