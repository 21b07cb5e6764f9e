"""The comparison of fine-tuning strategies as one command: foundation, every strategy, unseen terrains, one table.

    python -m sar_gen experiment CONFIG.toml --minutes 8

Stages run in the order of the settings, most telling first. A call with ``--minutes`` does as much as fits and ends
cleanly; the next one goes on, in the middle of a stage where need be. The table is written after each stage; rows that
have not been run are listed as such.

A row is a strategy (``hybrid``), trained on the SAR of every terrain and measured on each; or a strategy without a
terrain (``hybrid without river``): trained on the SAR of the others and measured on that one, whose pictures the base
has seen in optical only. The row ``base`` is trained on no SAR at all, so it is unseen on every terrain. A row
``hybrid, 8-bit delta`` is the row ``hybrid`` as a quantised delta on the base (``sar_gen.deltas``), measured with the
same seeds. A row ``hybrid, seed 1`` is the row ``hybrid`` trained with another seed; where two rows have several
trainings each, they are compared by those.

The work folder holds::

    foundation/            text encoders, VAE, the pipeline with a random UNet
    checkpoints/           the base and every strategy, a catalogue of its own
    runs/                  states that an unfinished training goes on from
    patches/ROW/TERRAIN/   what was generated
    real/                  what was measured of the real patches
    done/                  a file a finished stage: settings, seconds, numbers
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from sar_gen import checkpoints
from sar_gen.errors import InputError
from sar_gen.files import sha256_of, write_atomic
from sar_gen.settings import Settings
from sar_gen.strategies import STRATEGIES, strategy
from sar_gen.training import experiment_table
from sar_gen.training.config import (
    STRICT,
    DataConfig,
    DenoiserConfig,
    LoraConfig,
    Positive,
    RunConfig,
    TrainingConfig,
    VaeConfig,
    check_config,
)
from sar_gen.training.evaluation import EvaluationConfig, RealClass, RealPatch, RealSet, digest_of, real_set
from sar_gen.training.foundation import FoundationConfig
from sar_gen.training.state import Clock

Say = Callable[[str], None]
Stop = Callable[[], bool]
WITHOUT = " without "
DELTA = re.compile(r",\s*([48])-bit delta$")
SEED = re.compile(r",\s*seed (\d+)$")
BASE = "base"
CONFIGS = Path(__file__).resolve().parent / "configs"
"""Settings that ship: ``experiment-embedded.toml`` for one H100, ``experiment-small.toml`` and ``experiment-toy.toml``
for two cores."""
LEAST = 0.2
"""Minutes that must be left for a stage to be begun: loading a pipeline takes a part of that."""


@dataclass(frozen=True, config=STRICT)
class TuningConfig:
    """How strategies are trained on SAR.

    Attributes:
        batch: patches a step.
        balance: of the patches.
        caption_dropout: share of captions that are dropped.
        token_init: word that the learned token starts from.
        denoiser: of all strategies.
        changes: by strategy, values of ``denoiser`` that are others there (a LoRA wants a higher rate).
        lora: by part, as in a training run.
        vae: of strategies that train a part of the VAE.
    """

    batch: Positive = 32
    balance: str = "none"
    caption_dropout: float = 0.1
    token_init: str | None = "radar"
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    lora: dict[str, LoraConfig] = field(default_factory=dict)
    vae: VaeConfig = field(default_factory=VaeConfig)

    def __post_init__(self) -> None:
        for name in self.changes:
            strategy(name)
            self.denoiser_of(name)

    def denoiser_of(self, name: str) -> DenoiserConfig:
        """Return the settings of one strategy.

        Raises:
            InputError: a change is not one of ``denoiser``.
        """
        own = {**dataclasses.asdict(self.denoiser), **self.changes.get(name, {})}
        return check_config(own, DenoiserConfig, f"tuning.changes.{name}")


@dataclass(frozen=True, config=STRICT)
class ExperimentConfig:
    """The whole comparison.

    Attributes:
        data: manifest of a prepared data set of SAR with terrains and captions, and of optical pictures for the
            foundation.
        work: folder of everything that is made; a later call goes on from it.
        output: folder of table and pictures.
        rows: what is compared, in the order in which it is run (see the module).
        base: catalogue id of a base that is there already, instead of a foundation.
        polarisation: of the real patches that are measured against; others are trained on, never measured.
        foundation: how the base is made.
        tuning: how strategies are trained.
        evaluation: what is generated and measured.
        run: precision, compiling, states, seed.
        minutes: estimates for ``--list``: ``text``, ``vae``, ``base``, ``real``, ``training`` and ``evaluation`` of a
            row.
        title: of the table.
        licence: for the cards.
        credit: for the cards.
    """

    data: Path
    work: Path
    output: Path
    rows: tuple[str, ...]
    base: str | None = None
    polarisation: str | None = "VV"
    foundation: FoundationConfig = field(default_factory=FoundationConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    minutes: dict[str, float] = field(default_factory=dict)
    title: str = "Comparison of fine-tuning strategies"
    licence: str | None = None
    credit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        slugs = [slug_of(row) for row in self.rows]
        if not slugs:
            raise ValueError("rows is empty; name at least one strategy")
        if len(set(slugs)) < len(slugs):
            raise ValueError("a row is there twice")
        for row in self.rows:
            name, terrain = split_row(row)
            if name == BASE and terrain:
                raise ValueError("the base is trained on no SAR at all: 'base' alone is its row, for every terrain")
            if strategy(name).from_scratch:
                raise ValueError(f"{name!r} is not trained on a base")
            delta = delta_of(row)
            if delta and (delta[0] not in self.rows[: self.rows.index(row)] or not _has_whole_part(name)):
                raise ValueError(f"{row!r} needs the row {delta[0]!r} before it, with a part that is trained whole")
            first, seed = seed_of(row)
            if seed is None:
                continue
            if first not in self.rows or name == BASE:
                raise ValueError(f"{row!r} is another training of a row {first!r}, which is not trained here")
            if seed == self.run.seed:
                raise ValueError(f"{row!r} has the seed of the row {first!r}: run.seed is {seed}")

    @property
    def made(self) -> bool:
        """Whether the base is made here."""
        return self.base is None


def changed(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass that are not at their defaults, deeply.

    What a stage was done with is known by these: a setting that a later version adds does not undo what is done.
    """
    found = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        factory = one.default_factory
        default = factory() if factory is not dataclasses.MISSING else one.default
        if value != default:
            found[one.name] = changed(value) if dataclasses.is_dataclass(value) else value
    return found


def _has_whole_part(name: str) -> bool:
    return "full" in strategy(name).trained().values()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One piece of the work.

    Attributes:
        name: stable; ``hybrid: training``.
        kind: ``text``, ``vae``, ``base``, ``real``, ``training``, ``delta`` or ``evaluation``.
        row: that it belongs to; empty for what all rows need.
        done: it is finished.
        seconds: spent on it so far.
        estimate: minutes that it takes in all; ``None`` where nothing is known.
    """

    name: str
    kind: str
    row: str = ""
    done: bool = False
    seconds: float = 0.0
    estimate: float | None = None

    @property
    def slug(self) -> str:
        """Name of its file."""
        return slug_of(self.name)


def split_row(row: str) -> tuple[str, str | None]:
    """Return strategy and left-out terrain of a row."""
    name, _, terrain = SEED.sub("", DELTA.sub("", row)).partition(WITHOUT)
    return name.strip(), terrain.strip() or None


def delta_of(row: str) -> tuple[str, int] | None:
    """Return which row this one is a delta of, and with how many bits; ``None`` where it is none.

    >>> delta_of("hybrid, 8-bit delta")
    ('hybrid', 8)
    """
    found = DELTA.search(row)
    return (row[: found.start()].strip(), int(found[1])) if found else None


def seed_of(row: str) -> tuple[str, int | None]:
    """Return which row this one is another training of, and its seed; the row itself and ``None`` where it is none.

    >>> seed_of("hybrid without river, seed 1, 8-bit delta")
    ('hybrid without river, 8-bit delta', 1)
    """
    trained = DELTA.sub("", row)
    found = SEED.search(trained)
    return (SEED.sub("", trained) + row[len(trained) :], int(found[1])) if found else (row, None)


def slug_of(name: str) -> str:
    """Return a name as an id of the catalogue.

    >>> slug_of("unet-full+te-lora without river")
    'unet-full-te-lora-without-river'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-")


class Experiment:
    """One experiment in its work folder; see the module."""

    def __init__(self, config: ExperimentConfig, settings: Settings, say: Say = print) -> None:
        """Look at what is done.

        Raises:
            InputError: the data are not there, or a finished stage had other settings.
        """
        from sar_gen.training.manifest import manifest_path

        self.config, self.say = config, say
        self.manifest = manifest_path(config.data)
        self.outer = settings
        self.settings = dataclasses.replace(
            settings, home=config.work / "home", checkpoints=config.work / "checkpoints", runs=config.work / "outputs"
        )
        self._data = sha256_of(self.manifest)
        if not config.made:
            self._base_spec()
        self.text_options: dict[str, Any] = {}  # of training.text.make_text: another teacher, other words
        self._engine: Any = None
        self._clip: Any = None
        self._real: RealSet | None = None

    # What there is to do -------------------------------------------------------------------------------------------

    def stages(self, only: Sequence[str] = ()) -> list[Stage]:
        """Return the stages in order; with ``only``, those of these rows and what they need.

        Raises:
            InputError: there is no such row, or a finished stage had other settings.
        """
        unknown = [row for row in only if row not in self.config.rows]
        if unknown:
            raise InputError(f"There is no row {unknown[0]!r}; the rows are {', '.join(self.config.rows)}.")
        found = [Stage(name, name) for name in (("text", "vae", "base") if self.config.made else ())]
        found.append(Stage("real patches", "real"))
        for row in self.config.rows:
            if only and row not in only:
                continue
            if delta_of(row):
                found.append(Stage(f"{row}: quantising", "delta", row))
            elif split_row(row)[0] != BASE:
                found.append(Stage(f"{row}: training", "training", row))
            found.append(Stage(f"{row}: evaluation", "evaluation", row))
        return self._estimated([self._looked_at(stage) for stage in found])

    def _looked_at(self, stage: Stage) -> Stage:
        known = self._known(stage)
        if known is None:
            return stage
        same = known["digest"] == self._digest(stage)
        if known["done"] and not same:
            if stage.kind in ("real", "evaluation"):
                return stage  # quickly made again
            raise InputError(
                f"{self._file(stage)} was done with other settings or data; give another work folder, or delete it "
                "and what was made of it to do it again."
            )
        return dataclasses.replace(stage, done=known["done"] and same, seconds=known["seconds"] if same else 0.0)

    def _estimated(self, stages: list[Stage]) -> list[Stage]:
        """Take the mean of finished stages of a kind as the estimate, or what the settings say."""
        found = []
        for stage in stages:
            known = [one.seconds / 60 for one in stages if one.kind == stage.kind and one.done]
            estimate = float(np.mean(known)) if known else self.config.minutes.get(stage.kind)
            found.append(dataclasses.replace(stage, estimate=stage.seconds / 60 if stage.done else estimate))
        return found

    def _digest(self, stage: Stage) -> str:
        """Return a hash of all settings that a stage depends on; folders and defaults are not among them."""
        config, foundation = self.config, self.config.foundation
        run = {k: v for k, v in dataclasses.asdict(config.run).items() if k in ("seed", "precision", "save_type")}
        text = [self._data, run, foundation.size, changed(foundation.text)]
        vae = [self._data, run, foundation.size, foundation.resolution, foundation.encoding, foundation.vae_leave_out,
               foundation.vae_start and foundation.vae_start.name,
               changed(foundation.vae)]  # fmt: skip
        placeless = dataclasses.replace(foundation, vae_start=None)
        base = [text, vae, changed(placeless)] if config.made else [config.base]
        real = [self._data, config.polarisation, self._side(), config.evaluation.copies]
        if stage.kind in ("text", "vae", "base", "real"):
            return digest_of({"text": text, "vae": vae, "base": base, "real": real}[stage.kind])
        name, terrain = split_row(stage.row)
        tuning = config.tuning
        lora = {part: changed(one) for part, one in tuning.lora.items()}
        own = [tuning.batch, tuning.balance, tuning.caption_dropout, tuning.token_init, lora,
               changed(config.tuning.denoiser_of(name))]  # fmt: skip
        if any(part.startswith("vae") for part in strategy(name).trained()):
            own.append(changed(tuning.vae))
        training: list[Any] = [base, self._data, {**run, "seed": self._seed(stage.row)}, name, terrain, own]
        if stage.kind == "training":
            return digest_of(training)
        if delta_of(stage.row):
            training = [training, delta_of(stage.row)]
        if stage.kind == "delta":
            return digest_of(training)
        return digest_of([training if name != BASE else base, real, changed(config.evaluation)])

    def _seed(self, row: str) -> int:
        """Return the seed that a row is trained with."""
        seed = seed_of(row)[1]
        return self.config.run.seed if seed is None else seed

    def _side(self) -> int:
        """Return the side in pixels of what is generated and measured."""
        if self.config.made:
            return self.config.foundation.resolution
        return self._base_spec().resolution

    def _file(self, stage: Stage) -> Path:
        return self.config.work / "done" / f"{stage.slug}.json"

    def _known(self, stage: Stage) -> dict[str, Any] | None:
        path = self._file(stage)
        if not path.is_file():
            return None
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return known

    # Doing it ------------------------------------------------------------------------------------------------------

    def run(self, *, minutes: float | None = None, only: Sequence[str] = (), stop: Stop = lambda: False) -> bool:
        """Do what fits into ``minutes``, write the table, and return whether all of it is done.

        Raises:
            InputError: the settings do not go together.
            SarGenError: a stage failed.
        """
        clock = Clock(minutes)
        try:
            for stage in self.stages(only):
                if stage.done:
                    continue
                left = None if minutes is None else minutes - clock.seconds / 60
                if stop() or (left is not None and left < LEAST):
                    break
                self.say(f"{stage.name} begins" + ("." if left is None else f", {left:.1f} minutes left."))
                if not self._do(stage, left, lambda: clock.over or stop()):
                    break
                self.write_table(pictures=False)
        finally:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
        self.write_table()
        waiting = [stage.name for stage in self.stages(only) if not stage.done]
        if waiting:
            self.say(f"{len(waiting)} stages are left, the next is {waiting[0]}; the same command goes on.")
        return not waiting

    def _do(self, stage: Stage, left: float | None, stop: Stop) -> bool:
        """Do one stage, or a part of it; write down what came of it, and return whether it is done."""
        started, before = time.monotonic(), self._known(stage) or {}
        spent = before.get("seconds", 0.0) if before.get("digest") == self._digest(stage) else 0.0
        work = {
            "text": self._text, "vae": self._vae, "base": self._base, "real": self._measure_real,
            "training": self._train, "delta": self._quantise, "evaluation": self._evaluate,
        }  # fmt: skip
        if stage.kind in ("text", "vae", "base", "training"):
            if self._engine is not None:
                self._engine.free()
            fresh_start(compiled=self.config.run.compile)
        found = work[stage.kind](stage, left, stop)
        seconds = spent + time.monotonic() - started
        data = {"stage": stage.name, "digest": self._digest(stage), "done": found is not None, "seconds": seconds}
        write_atomic(self._file(stage), json.dumps({**data, "result": found}, indent=1, allow_nan=False).encode())
        if found is not None:
            self.say(f"{stage.name} is done after {seconds / 60:.1f} minutes.")
        return found is not None

    @property
    def _foundation(self) -> Path:
        return self.config.work / "foundation"

    def _device(self) -> str:
        from sar_gen.pipelines import resolve_device

        return resolve_device(self.settings.device)

    def _card(self) -> dict[str, Any]:
        card: dict[str, Any] = {"polarisation": self.config.polarisation, "credit": list(self.config.credit)}
        return {**card, "licence": self.config.licence}

    def _text(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        from sar_gen.training import foundation

        return foundation.text_stage(
            self.config.foundation, self.manifest, self._foundation, device=self._device(), minutes=left,
            say=self.say, **self.text_options,
        )  # fmt: skip

    def _vae(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        from sar_gen.training import foundation

        return foundation.vae_stage(
            self.config.foundation, self.manifest, self._foundation, self.config.run,
            device=self._device(), minutes=left, say=self.say, stop=stop,
        )  # fmt: skip

    def _base(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        from sar_gen.training import foundation

        return foundation.base_stage(
            self.config.foundation, self.manifest, self._foundation, self.settings.checkpoints / BASE,
            self.config.run, self.settings, minutes=left, say=self.say, stop=stop, **self._card(),
        )  # fmt: skip

    def _base_spec(self) -> checkpoints.CheckpointSpec:
        """Return the base; one of the user's catalogue is linked into the experiment's first.

        Raises:
            InputError: there is none.
        """
        if self.config.base is None:
            return checkpoints.resolve(checkpoints.catalogue(self.settings), BASE)
        spec = checkpoints.resolve(checkpoints.catalogue(self.outer), self.config.base)
        if spec.kind != "pipeline":
            raise InputError(f"{spec.id} goes on the base {spec.base}; name that one as base.")
        place = self.settings.checkpoints / spec.id
        if spec.path is not None and not place.exists():
            if not (spec.path / "card.toml").is_file():
                raise InputError(f"{spec.path} has no card.toml, which says what its grey values are; add one.")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(spec.path.resolve(), target_is_directory=True)
        return spec

    def training_config(self, row: str) -> TrainingConfig:
        """Return the run that trains a row."""
        config, tuning = self.config, self.config.tuning
        name, terrain = split_row(row)
        modes = strategy(name).trained()
        slug = slug_of(row)
        seed = seed_of(row)[1]
        title = strategy(name).title + (f", without {terrain}" if terrain else "")
        return TrainingConfig(
            base=self._base_spec().id,
            strategy=name,
            output=self.settings.checkpoints / slug,
            title=title if seed is None else f"{title}, seed {seed}",
            data=DataConfig(
                manifest=self.manifest,
                batch=tuning.batch,
                resolution=self._side(),
                balance=tuning.balance,  # type: ignore[arg-type]
                caption_dropout=tuning.caption_dropout,
                leave_out=(terrain,) if terrain else (),
            ),
            token_init=tuning.token_init if "token" in modes else None,
            lora={part: own for part, own in tuning.lora.items() if modes.get(part) == "lora"},  # type: ignore[misc]
            denoiser=tuning.denoiser_of(name),
            vae=tuning.vae,
            run=dataclasses.replace(config.run, work=config.work / "runs" / slug, seed=self._seed(row)),
        )

    def _train(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        from sar_gen.training.loop import train

        config = self.training_config(stage.row)
        result = train(config, self.settings, resume=True, minutes=left, say=self.say, stop=stop)
        if not result.finished:
            return None
        shutil.rmtree(config.work, ignore_errors=True)  # states and caches; nothing goes on from them
        files = [path for path in config.output.rglob("*.safetensors") if path.is_file()]
        return {
            "trainable": dict(result.trainable),
            "peak_memory": result.peak_memory,
            "steps": result.steps,
            "batch": config.data.batch,
            "loss": float(np.mean(result.losses[-50:])) if result.losses else None,
            "bytes": sum(path.stat().st_size for path in files),
        }

    def _quantise(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        from sar_gen.deltas import make_deltas
        from sar_gen.training.parts import write_card

        delta = delta_of(stage.row)
        assert delta is not None
        base = checkpoints.local_folder(self._base_spec(), self.settings)
        trained, out = (self.settings.checkpoints / slug_of(row) for row in (delta[0], stage.row))
        if not trained.is_dir():
            raise InputError(f"The row {delta[0]!r} is not trained yet; run it before its delta.")
        shutil.rmtree(out, ignore_errors=True)
        reports = make_deltas(base, trained, out, delta[1])
        card = checkpoints.read_card(out / "card.toml")
        title = f"{card.get('title', delta[0])}, {delta[1]}-bit delta"
        write_card(out, {**{k: v for k, v in card.items() if k != "sha256"}, "id": out.name, "title": title})
        return {
            "parts": [dataclasses.asdict(report) for report in reports],
            "bytes": sum(path.stat().st_size for path in out.rglob("*.safetensors")),
        }

    def _measure_real(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        real = self._read_real()
        save_real(self.config.work / "real", real)
        self._real = real
        return {
            "classes": {name: [len(one.train), len(one.reference)] for name, one in real.classes.items()},
            "reached": real.reached,
        }

    def _read_real(self) -> RealSet:
        from sar_gen.training.foundation import centre, open_split
        from sar_gen.training.manifest import read_manifest

        side, patches = self._side(), []
        splits = {row.split for row in read_manifest(self.manifest) if row.modality == "sar"}
        for split in sorted(splits):
            data = open_split(self.manifest, split, "sar", side)
            for index, row in enumerate(data.rows):
                fits = self.config.polarisation is None or row.polarisation == self.config.polarisation
                if row.terrain is not None and fits:
                    patches.append((data, index, row, split))
        polarisations = {row.polarisation for _, _, row, _ in patches}
        if len(polarisations) > 1:
            raise InputError("The data have several polarisations, which are never pooled; set polarisation.")
        self.say(f"Measuring {len(patches)} real patches.")
        return real_set(
            (
                RealPatch(row.key, centre(data.pixels(index), side), row.terrain, row.group, split)
                for data, index, row, split in patches
            ),
            polarisation=self.config.polarisation,
            device=self._device(),
            copies=self.config.evaluation.copies,
        )

    def real(self) -> RealSet:
        """Return what is measured of the real patches."""
        if self._real is None:
            self._real = load_real(self.config.work / "real")
        return self._real

    def _evaluate(self, stage: Stage, left: float | None, stop: Stop) -> dict[str, Any] | None:
        from sar_gen.engine import Engine
        from sar_gen.training.evaluation import evaluate_checkpoint

        name, terrain = split_row(stage.row)
        real = self.real()
        base = self._base_spec()
        spec = checkpoints.resolve(
            checkpoints.catalogue(self.settings), base.id if name == BASE else slug_of(stage.row)
        )
        if self._engine is None:
            self._engine = Engine(self.settings)
        if self.config.evaluation.sarclip and self._clip is None:
            from sar_gen.quality.semantic import load_sarclip

            self._clip = load_sarclip(None, self.outer, device=self._device())
        return evaluate_checkpoint(
            self._engine, spec, real, self.config.evaluation, self.patches(stage.row),
            terrains=None if terrain is None else [terrain], clip=self._clip, device=self._device(), stop=stop,
            say=self.say,
        )  # fmt: skip

    def patches(self, row: str) -> Path:
        """Return the folder of a row's patches."""
        return self.config.work / "patches" / slug_of(row)

    # What came of it -----------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Return all that is known as JSON data: settings, foundation, rows with their status, findings."""
        stages = self.stages()
        by_name = {stage.name: stage for stage in stages}

        def result(name: str) -> Any:
            stage = by_name.get(name)
            known = self._known(stage) if stage is not None and stage.done else None
            return {**known["result"], "seconds": known["seconds"]} if known else None

        rows = []
        for row in self.config.rows:
            name, terrain = split_row(row)
            first, seed = seed_of(row)
            training = result(f"{row}: quantising" if delta_of(row) else f"{row}: training")
            evaluation = result(f"{row}: evaluation")
            begun = any(stage.seconds for stage in stages if stage.row == row)
            status = "done" if evaluation else "trained" if training else "begun" if begun else "not run"
            rows.append(
                {"row": row, "strategy": name, "title": STRATEGIES.get(name, strategy(name)).title,
                 "without": terrain, "delta": delta_of(row), "again": None if seed is None else (first, seed),
                 "status": status, "training": training, "evaluation": evaluation}
            )  # fmt: skip
        config = self.config
        foundation = {name: result(name) for name in ("text", "vae", "base")} if config.made else None
        report = {
            "title": config.title,
            "size": config.foundation.size if config.made else None,
            "base": config.base,
            "resolution": config.foundation.resolution if config.made else None,
            "encoding": config.foundation.encoding if config.made else None,
            "vae_left_out": list(config.foundation.vae_leave_out) if config.made else [],
            "polarisation": config.polarisation,
            "device": device_words(self._device()),
            "precision": config.run.precision,
            "evaluation": dataclasses.asdict(config.evaluation),
            "foundation": foundation,
            "real": result("real patches"),
            "rows": rows,
            "stages": [dataclasses.asdict(stage) for stage in stages],
            "credit": list(config.credit),
        }
        report["findings"] = experiment_table.findings(rows)
        return report

    def write_table(self, pictures: bool = True) -> dict[str, Any]:
        """Write ``table.json``, ``table.md`` and the pictures to the output folder; return the report."""
        report = self.report()
        output = self.config.output
        text = json.dumps(report, indent=1, allow_nan=False, default=str)
        write_atomic(output / "table.json", (text + "\n").encode())
        write_atomic(output / "table.md", experiment_table.markdown(report).encode())
        if pictures and any(row["status"] == "done" for row in report["rows"]):
            for name, picture in experiment_table.sheets(report, self.real(), self.patches).items():
                write_atomic(output / name, picture)
        return report


def listing(stages: Sequence[Stage]) -> list[tuple[str, str, str]]:
    """Return rows for ``--list``: stage, ``done``, ``next``, ``begun`` or ``not run``, and minutes."""
    rows = [("stage", "status", "minutes")]
    waiting = False
    for stage in stages:
        status = "done" if stage.done else "begun" if stage.seconds else "not run" if waiting else "next"
        waiting = waiting or not stage.done
        minutes = "-" if stage.estimate is None else f"{stage.estimate:.1f}" + ("" if stage.done else " (estimated)")
        rows.append((stage.name, status, minutes))
    return rows


def save_real(folder: Path, real: RealSet) -> None:
    """Keep what was measured of the real patches; amplitudes as float16."""
    import io

    from sar_gen.reference_files import pack_statistics

    shutil.rmtree(folder, ignore_errors=True)
    for name, one in real.classes.items():
        for split in ("train", "reference"):
            write_atomic(folder / f"{name}-{split}.npz", pack_statistics(getattr(one, split)))
        buffer = io.BytesIO()
        patches = {f"p{i}": patch.astype(np.float16) for i, patch in enumerate(one.patches)}
        np.savez(buffer, reached=one.reached, **patches)  # type: ignore[arg-type]
        write_atomic(folder / f"{name}-patches.npz", buffer.getvalue())
    buffer = io.BytesIO()
    np.savez(buffer, **{f"p{i}": picture.astype(np.float16) for i, picture in enumerate(real.training)})  # type: ignore[arg-type]
    write_atomic(folder / "training.npz", buffer.getvalue())
    facts = {"classes": list(real.classes), "names": list(real.names), "polarisation": real.polarisation}
    write_atomic(folder / "real.json", json.dumps(facts).encode())


def load_real(folder: Path) -> RealSet:
    """Return what ``save_real`` kept."""
    from sar_gen.reference_files import unpack_statistics

    facts = json.loads((folder / "real.json").read_text(encoding="utf-8"))
    classes = {}
    for name in facts["classes"]:
        train, reference = (
            unpack_statistics((folder / f"{name}-{split}.npz").read_bytes())[0] for split in ("train", "reference")
        )
        with np.load(folder / f"{name}-patches.npz") as file:
            patches = tuple(file[f"p{i}"].astype(np.float32) for i in range(len(file.files) - 1))
            classes[name] = RealClass(train, reference, patches, file["reached"])
    with np.load(folder / "training.npz") as file:
        training = tuple(file[f"p{i}"].astype(np.float32) for i in range(len(file.files)))
    return RealSet(classes, training, tuple(facts["names"]), facts["polarisation"])


def fresh_start(*, compiled: bool) -> None:
    """Make a stage independent of those before it: peak memory counts anew, and so do compiled programs.

    CUDA's peak is torch's, that of the process is reset where Linux can. torch gives up compiling a function after
    some versions of it, and each row is another one; what was compiled stays in its cache on disk.
    """
    import gc

    import torch

    gc.collect()
    if compiled:
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def device_words(device: str) -> str:
    """Return what calculates, in words."""
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
