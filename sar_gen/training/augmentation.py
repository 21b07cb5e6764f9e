"""What a generated set is worth: terrain classifiers trained with and without it, scored on real patches.

    python -m sar_gen experiment augmentation --minutes 30

Arms, each with the same real patches, weights and number of steps for one seed:

- ``real``: k real patches a class.
- ``real + classical``: the same, varied classically (``classifier.varied``).
- ``real + generated``: half of each batch real, half generated.
- ``real + generated + classical``.
- ``generated``, ``generated + classical``: without real patches.
- ``all real``: every real training patch, for what there is to be had.
- ``without real NAME``: the class NAME is learned from generated patches alone, the others from k real patches and
  generated ones; ``NAME left out`` likewise, but the others from real patches alone.

Scored is the balanced accuracy (mean recall of the classes) on the real patches of another split, which share no
ground with those trained on. The k patches of a class lie on as many pieces of ground as possible. Intervals are
Student's, over seeds (choice of patches, weights, batches); differences to ``real`` are paired by seed. They say
nothing about other test patches.

A generator that itself was trained on real patches brings what it learned from them: with k = 5 the arm ``real +
generated`` rests on more real data than five patches a class. The table says how many.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic.dataclasses import dataclass

from sar_gen.errors import InputError
from sar_gen.files import sha256_of, write_atomic
from sar_gen.training.config import STRICT, Positive
from sar_gen.training.manifest import PatchRow, manifest_path, read_manifest
from sar_gen.training.state import Clock

if TYPE_CHECKING:
    from sar_gen.training.classifier import ClassifierConfig

CONFIG = Path(__file__).resolve().parent / "configs" / "augmentation.toml"
SHOT_ARMS = ("real", "real + classical", "real + generated", "real + generated + classical")
PLAIN_ARMS = ("generated", "generated + classical", "all real")
RESULTS = "results.jsonl"

Say = Callable[[str], None]


@dataclass(frozen=True, config=STRICT)
class ClassifierSettings:
    """Settings of ``classifier.ClassifierConfig`` that are set otherwise; see there."""

    steps: Positive | None = None
    batch: Positive | None = None
    looks: Positive | None = None
    widths: tuple[Positive, Positive, Positive, Positive] | None = None


@dataclass(frozen=True, config=STRICT)
class AugmentationConfig:
    """The whole experiment.

    Attributes:
        real: manifest of real patches with terrains.
        generated: manifest of a generated set with the same terrains (``python -m sar_gen augment``).
        work: folder of the results; a later call goes on from it.
        output: folder of the table and the figure.
        terrains: the classes.
        shots: numbers k of real patches a class.
        seeds: how many seeds.
        left_out: terrains that are learned from generated patches alone.
        left_out_shots: k of the other terrains there.
        polarisation: of the real patches.
        train: split that is trained on.
        test: split that is scored.
        real_known: how many real patches the generator was trained on, for the table.
        classifier: network and training.
        processes: trainings at once, one core each.
        title: of the table.
        credit: of the data.
    """

    real: Path
    generated: Path
    work: Path
    output: Path
    terrains: tuple[str, ...]
    shots: tuple[Positive, ...] = (5, 10, 20, 50)
    seeds: Positive = 5
    left_out: tuple[str, ...] = ()
    left_out_shots: Positive = 50
    polarisation: str | None = "VV"
    train: str = "train"
    test: str = "reference"
    real_known: int | None = None
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    processes: Positive = 2
    title: str = "What a generated set is worth"
    credit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.terrains)) < 2 or len(set(self.terrains)) != len(self.terrains):
            raise ValueError("terrains must be two or more different names")
        for name in self.left_out:
            if name not in self.terrains:
                raise ValueError(f"left_out names {name!r}, which is none of the terrains")


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One training: an arm, its number of real patches a class (0: none, or all) and a seed."""

    arm: str
    shots: int
    seed: int


def without_real(terrain: str) -> str:
    """Return the name of the arm that learns a terrain from generated patches, beside generated ones of all."""
    return f"without real {terrain}"


def left_out(terrain: str) -> str:
    """Return the name of the arm that learns a terrain from generated patches, and the others from real ones."""
    return f"{terrain} left out"


def trials(config: AugmentationConfig) -> list[Trial]:
    """Return every training, seed by seed, so that an experiment that is cut short has whole seeds."""
    found = []
    for seed in range(config.seeds):
        found += [Trial(arm, shots, seed) for shots in config.shots for arm in SHOT_ARMS]
        found += [Trial(arm, 0, seed) for arm in PLAIN_ARMS]
        for terrain in config.left_out:
            found += [Trial(arm(terrain), config.left_out_shots, seed) for arm in (without_real, left_out)]
    return found


def chosen(groups: Sequence[str], count: int, seed: int) -> list[int]:
    """Return the places of ``count`` patches, drawn from as many groups as possible.

    Args:
        groups: of all patches of a class; one name is one piece of ground.
        count: how many.
        seed: of the draw. A smaller count draws the first ones of a larger.

    Raises:
        InputError: there are fewer patches.
    """
    if count > len(groups):
        raise InputError(f"There are {len(groups)} real patches of a class, fewer than {count}; choose a smaller k.")
    numbers = np.random.default_rng(seed)
    shuffled = [int(place) for place in numbers.permutation(len(groups))]
    rounds: dict[str, int] = {}
    turn = {}
    for place in shuffled:  # the n-th patch of a group has its turn after the (n-1)-th of all groups
        turn[place] = rounds[groups[place]] = rounds.get(groups[place], -1) + 1
    return sorted(shuffled, key=lambda place: turn[place])[:count]


class Pools:
    """The patches of the experiment, read once: after multilook, by terrain."""

    def __init__(self, config: AugmentationConfig, looks: int, say: Say) -> None:
        say("Reading the patches")
        real = [row for row in read_manifest(config.real) if row.modality == "sar"]
        real = [row for row in real if config.polarisation in (None, row.polarisation)]
        generated = read_manifest(config.generated)
        self.real: dict[str, Any] = {}
        self.groups: dict[str, list[str]] = {}
        self.test: dict[str, Any] = {}
        self.generated: dict[str, Any] = {}
        for terrain in config.terrains:
            train = _of(real, terrain, config.train, config.real)
            self.groups[terrain] = [row.group for row in train]
            chosen(self.groups[terrain], max(*config.shots, config.left_out_shots * bool(config.left_out)), 0)
            self.real[terrain] = _read(train, config.real, looks)
            self.test[terrain] = _read(_of(real, terrain, config.test, config.real), config.real, looks)
            self.generated[terrain] = _read(_of(generated, terrain, None, config.generated), config.generated, looks)

    def of(self, trial: Trial, config: AugmentationConfig) -> list[list[Any]]:
        """Return the sources of each class that a trial trains on."""
        classes = []
        for place, terrain in enumerate(config.terrains):
            generated = self.generated[terrain]
            if trial.arm == "all real":
                classes.append([self.real[terrain]])
                continue
            if trial.arm.startswith("generated") or trial.arm in (without_real(terrain), left_out(terrain)):
                classes.append([generated])
                continue
            # One draw for a class and seed, whatever the arm: arms differ in nothing but what they add.
            places = chosen(self.groups[terrain], trial.shots, 1000 * trial.seed + place)
            sources = [self.real[terrain][places]]
            if "generated" in trial.arm or trial.arm.startswith("without real "):
                sources.append(generated)
            classes.append(sources)
        return classes


def run(
    config: AugmentationConfig,
    *,
    minutes: float | None = None,
    say: Say = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train and score what is missing, write the table, and return it as JSON data; a later call goes on.

    Args:
        config: the experiment.
        minutes: end after so long.
        say: is told how it goes.
        stop: asked before each training.

    Raises:
        InputError: a manifest or its patches cannot be used, or the work folder is another experiment's.
        SarGenError: a folder cannot be written.
    """
    from sar_gen.training import augmentation_table
    from sar_gen.training.classifier import ClassifierConfig

    changes = {name: value for name, value in dataclasses.asdict(config.classifier).items() if value is not None}
    settings = ClassifierConfig(**changes)
    used = json.loads(json.dumps(dataclasses.asdict(settings)))
    clock = Clock(minutes)
    done = _begun(config, used)
    missing = [trial for trial in trials(config) if trial not in done]
    if missing:
        pools = Pools(config, settings.looks, say)
        counts = {
            name: {t: len(getattr(pools, name)[t]) for t in config.terrains} for name in ("real", "generated", "test")
        }
        write_atomic(config.work / "counts.json", json.dumps(counts, indent=1).encode())
        total = len(done) + len(missing)
        for trial, found in _scored(missing, config, settings, pools, lambda: clock.over or stop()):
            _append(config.work / RESULTS, {**dataclasses.asdict(trial), "recalls": found})
            done[trial] = found
            shots = f", k = {trial.shots}" if trial.shots else ""
            say(f"{len(done)} of {total}: {trial.arm}{shots}, seed {trial.seed}: {np.mean(found):.3f}")
    report = augmentation_table.report(config, done, _counts(config.work), used)
    augmentation_table.write(report, config.output)
    return report


def _scored(
    missing: Sequence[Trial],
    config: AugmentationConfig,
    settings: ClassifierConfig,
    pools: Pools,
    over: Callable[[], bool],
) -> Iterator[tuple[Trial, list[float]]]:
    """Yield each trial with its recalls as it is done, in the order of arrival, until ``over``.

    Each process trains on one thread: such small networks are no quicker on two, and sums are then the same whatever
    the number of processes.
    """
    if config.processes == 1:
        _begin(config, settings, pools)
        for trial in missing:
            if over():
                return
            yield trial, _score(trial)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.processes, context, _begin, (config, settings, pools)) as workers:
        waiting = list(reversed(missing))
        running: dict[Future[list[float]], Trial] = {}
        while running or (waiting and not over()):
            while waiting and len(running) < config.processes and not over():
                trial = waiting.pop()
                running[workers.submit(_score, trial)] = trial
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


_WORK: tuple[AugmentationConfig, ClassifierConfig, Pools] | None = None  # of this process


def _begin(config: AugmentationConfig, settings: ClassifierConfig, pools: Pools) -> None:
    global _WORK
    import torch

    _WORK = config, settings, pools
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to every process; the first one decides
    torch.set_num_threads(1)


def _score(trial: Trial) -> list[float]:
    """Train and score one classifier."""
    from sar_gen.training.classifier import recalls, train_classifier

    assert _WORK is not None, "begun"
    config, settings, pools = _WORK
    classifier = train_classifier(
        pools.of(trial, config), settings, seed=trial.seed, classical=trial.arm.endswith("classical")
    )
    pictures = [pools.test[terrain] for terrain in config.terrains]
    labels = np.repeat(range(len(pictures)), [len(one) for one in pictures])
    return recalls(classifier.predict(np.concatenate(pictures)), labels, len(pictures))


def _of(rows: Sequence[PatchRow], terrain: str, split: str | None, manifest: Path) -> list[PatchRow]:
    found = [row for row in rows if row.terrain == terrain and split in (None, row.split)]
    if not found:
        where = f"{manifest}" if split is None else f"{manifest}, split {split!r}"
        raise InputError(f"There is no patch of the terrain {terrain!r} in {where}; correct terrains, or make some.")
    return found


def _read(rows: Sequence[PatchRow], manifest: Path, looks: int) -> Any:
    from sar_gen.training.classifier import multilook
    from sar_gen.training.row_pixels import read_pixels

    folder = manifest_path(manifest).parent
    return np.stack([multilook(read_pixels(row, folder), looks) for row in rows])


def _begun(config: AugmentationConfig, settings: dict[str, Any]) -> dict[Trial, list[float]]:
    """Return what is known from earlier calls; the work folder belongs to one experiment and one generated set."""
    manifest = manifest_path(config.generated)
    facts = {
        "terrains": list(config.terrains),
        "polarisation": config.polarisation,
        "splits": [config.train, config.test],
        "classifier": settings,
        "generated": sha256_of(manifest),
        "real": sha256_of(manifest_path(config.real)),
    }
    path = config.work / "experiment.json"
    if path.is_file() and json.loads(path.read_text()) != facts:
        raise InputError(
            f"{config.work} holds results of other patches or settings; choose another work folder, or remove it."
        )
    if not path.is_file():
        write_atomic(path, json.dumps(facts, indent=1).encode())
    known = {}
    results = config.work / RESULTS
    if results.is_file():
        for line in results.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                known[Trial(row["arm"], row["shots"], row["seed"])] = row["recalls"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off while it was written: that training is done again
    return known


def _counts(work: Path) -> dict[str, Any]:
    path = work / "counts.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _append(path: Path, row: dict[str, Any]) -> None:
    """Write one line and make sure that it is on the disk."""
    before = b""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            before = b"" if file.read() == b"\n" else b"\n"  # a line that was cut off ends here
    with path.open("ab") as file:
        file.write(before + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
