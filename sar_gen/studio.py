"""The one core behind the page and the command line: request in, saved patches and their report out."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sar_gen import checkpoints, references
from sar_gen.errors import InputError, SarGenError
from sar_gen.imports import without_collection
from sar_gen.request import (
    Done,
    EngineState,
    Event,
    Failed,
    GenerationRequest,
    Judged,
    Loading,
    Notice,
    PatchReady,
    Selected,
    Stopped,
    check_request,
)
from sar_gen.runs import Run, RunRecord, RunStore
from sar_gen.settings import Settings

if TYPE_CHECKING:
    from sar_gen.engine import Engine
    from sar_gen.quality.report import QualityReport
    from sar_gen.quality.semantic import SarClip
    from sar_gen.selection import Selection
    from sar_gen.serving.client import Answer, RemoteEngine


class Studio:
    """An engine, a run store and the reference sets. torch is imported when the engine is first needed.

    With ``settings.backend`` the engine is the backend's, and its catalogue is shown; all else happens here.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()
        self.store = RunStore(self.settings.runs)
        self._engine: Engine | RemoteEngine | None = None
        self._engine_lock = threading.Lock()
        self._importing = EngineState("idle", "Nothing is loaded yet.")
        self._cancels: dict[str, threading.Event] = {}
        self._clip: SarClip | None = None

    @property
    def engine(self) -> Engine | RemoteEngine:
        """The engine, made (and torch imported: some seconds on two cores) at the first use; the backend's, if any."""
        with self._engine_lock:
            if self._engine is None and self.settings.backend:
                from sar_gen.serving.client import RemoteEngine

                self._engine = RemoteEngine(self.settings)
            elif self._engine is None:
                with without_collection():
                    from sar_gen.engine import Engine

                self._engine = Engine(self.settings)
            return self._engine

    @property
    def state(self) -> EngineState:
        """What the engine is doing; never waits."""
        if self._engine is None and not self.settings.backend:
            return self._importing
        return self.engine.state

    def warm_up(self) -> None:
        """Import torch and load the chosen checkpoint in the background; ``state`` tells how it goes."""

        def work() -> None:
            self._importing = EngineState("loading", "Starting the engine (torch and diffusers).")
            try:
                self.engine.warm_up(self.settings.checkpoint)
            except Exception as error:
                self._importing = EngineState("failed", f"The engine could not start: {error}")

        threading.Thread(target=work, name="sar-gen-warm-up", daemon=True).start()

    def generate(
        self,
        request: GenerationRequest,
        *,
        reference: str | None = None,
        keep: int | None = None,
        previews: bool = True,
        token: str = "",
        store: RunStore | None = None,
    ) -> Iterator[Event]:
        """Check a request, then return an iterator over its events.

        Each patch is on disk before its ``Saved`` event; with a ``reference`` the finished patches are judged
        before ``Done`` or ``Stopped``. With ``keep`` the report is on the patches nearest to the reference, as many;
        the others stay in the run. ``token`` names the request for ``stop``; ``store`` is where the run goes, the
        studio's own where it is left out.

        Raises:
            InputError: the request, checkpoint or reference is wrong; raised at once, before any work.
            SarGenError: the runs folder cannot be written, or a backend does not take the request.
        """
        request, spec = check_request(request, checkpoints.catalogue(self.settings), self.settings)
        if keep is not None and reference is None:
            raise InputError("The best patches are those nearest to a reference; choose a reference set.")
        if keep is not None and not 1 <= keep <= request.count:
            raise InputError(f"{keep} of {request.count} patches cannot be kept; choose 1 to {request.count}.")
        reference_set = None
        warnings: Sequence[str] = ()
        if reference is not None:
            reference_set = references.load_reference(reference, self.settings)
            warnings = references.check_comparable(
                reference_set, spec.amplitude_encoding, spec.polarisation_of(request.prompt)
            )
        cancel = self._cancels.setdefault(token, threading.Event()) if token else threading.Event()
        events: Generator[Event, None, None] | Answer | None = None
        try:
            # A backend may refuse, which is known before there is a run; the engine here would first import torch.
            if self.settings.backend:
                events = self._remote.generate(request, cancel=cancel, previews=previews)
            run = (store or self.store).begin(request, checkpoint_facts(spec, request.prompt), {})
        except BaseException:
            self._cancels.pop(token, None)
            if events is not None:
                events.close()
            raise
        events = self._started(request, cancel, previews) if events is None else events
        return self._saved(events, run, reference_set, warnings, keep, token)

    @property
    def _remote(self) -> RemoteEngine:
        from sar_gen.serving.client import RemoteEngine

        engine = self.engine
        assert isinstance(engine, RemoteEngine)
        return engine

    def _started(
        self, request: GenerationRequest, cancel: threading.Event, previews: bool
    ) -> Generator[Event, None, None]:
        """Say that torch is being imported, where it is, instead of being silent for ten seconds."""
        if self._engine is None:
            yield Loading("Starting the engine (torch and diffusers).")
        yield from self.engine.generate(request, cancel=cancel, previews=previews)

    def stop(self, token: str) -> None:
        """Stop the request called ``token``, now or before it begins; others go on."""
        self._cancels.setdefault(token, threading.Event()).set()

    def judge(
        self,
        amplitudes: Sequence[NDArray[np.float32]],
        reference: references.ReferenceSet,
        *,
        prompt: str | None = None,
        polarisation: str | None = None,
    ) -> QualityReport:
        """Compare patches, float32 ``(height, width)`` amplitude each, with a reference set.

        With a ``prompt`` their agreement with it is measured too, by SAR-CLIP: some 0.3 s a patch on two cores.
        """
        from sar_gen.comparison import with_prompt
        from sar_gen.quality.report import compare
        from sar_gen.quality.statistics import patch_statistics

        report = compare(patch_statistics(amplitudes), reference.statistics, reference_name=reference.name)
        return report if prompt is None else with_prompt(report, amplitudes, prompt, self.sarclip(), polarisation)

    def best(
        self, amplitudes: Sequence[NDArray[np.float32]], reference: references.ReferenceSet, keep: int
    ) -> Selection:
        """Choose the ``keep`` patches that lie nearest to a reference; SAR-CLIP tells how diverse they are."""
        from sar_gen.features import features_of
        from sar_gen.quality.statistics import patch_statistics
        from sar_gen.selection import select

        return select(
            patch_statistics(amplitudes),
            lambda: features_of(amplitudes, self.sarclip()),
            reference.statistics,
            keep,
            reference_name=reference.name,
            features_name=self.sarclip().label,
        )

    def sarclip(self) -> SarClip:
        """Return the CLIP that ships, loaded once."""
        from sar_gen.quality.semantic import load_sarclip

        if self._clip is None:
            self._clip = load_sarclip(None, self.settings)
        return self._clip

    def last_run(self) -> RunRecord | None:
        """Return the newest run that has a finished patch."""
        return next((run for run in self.store.list(limit=50) if run.images), None)

    def _saved(
        self,
        events: Generator[Event, None, None] | Answer,
        run: Run,
        reference: references.ReferenceSet | None,
        warnings: Sequence[str],
        keep: int | None,
        token: str,
    ) -> Iterator[Event]:
        """Pass events on, writing each patch first, and close the run whatever happens."""
        seconds = {"load": 0.0, "generate": 0.0, "save": 0.0, "compare": 0.0}
        amplitudes: list[NDArray[np.float32]] = []
        closed = False
        try:
            for event in events:
                if isinstance(event, PatchReady):
                    started = time.perf_counter()
                    if not amplitudes:
                        run.device = self.engine.where()
                        if self.settings.backend:
                            run.versions = self._remote.versions()
                        run.checkpoint = {**run.checkpoint, "parts": self.engine.identity()}
                    saved = run.save_patch(event.index, event.seed, event.amplitude)
                    amplitudes.append(event.amplitude)
                    seconds["save"] += time.perf_counter() - started
                    yield event
                    yield saved
                elif isinstance(event, Done | Stopped | Failed):
                    if not isinstance(event, Failed):
                        seconds.update(event.seconds)
                    report = None
                    if reference is not None and amplitudes:
                        started = time.perf_counter()
                        judged = amplitudes
                        if keep is not None and keep < len(amplitudes):
                            selection = self.best(amplitudes, reference, keep)
                            run.selection = selection.to_json()
                            judged = [amplitudes[place] for place in selection.kept]
                            yield Selected(selection)
                        report = self.judge(
                            judged,
                            reference,
                            prompt=run.request.prompt,
                            polarisation=run.checkpoint["polarisation"],
                        )
                        if run.selection is not None:
                            report = dataclasses.replace(report, notes=(*report.notes, run.selection["text"]))
                        seconds["compare"] = time.perf_counter() - started
                        for warning in warnings:
                            yield Notice(warning)
                        yield Judged(report)
                    status = {Done: "done", Stopped: "stopped", Failed: "failed"}[type(event)]
                    if isinstance(event, Failed):
                        run.notices.append(event.message)
                    run.finish(status, seconds, None if report is None else report.to_json())
                    closed = True
                    if isinstance(event, Done):
                        event = Done(seconds)
                    elif isinstance(event, Stopped):
                        event = Stopped(event.finished, seconds)
                    yield event
                else:
                    if isinstance(event, Notice):
                        run.notices.append(event.message)
                    yield event
        except SarGenError as error:  # a patch could not be written: say so; what was written stays
            yield Failed(str(error), len(run.images))
        finally:
            self._cancels.pop(token, None)
            events.close()  # sets the cancel flag, so that the engine does not work for nobody
            if not closed:
                self._close_quietly(run, seconds)

    def _close_quietly(self, run: Run, seconds: dict[str, float]) -> None:
        """Mark a run that was left (page closed, disk full) as stopped; on a full disk it stays as it is."""
        try:
            run.finish("stopped", seconds)
        except SarGenError:
            return


def checkpoint_facts(spec: checkpoints.CheckpointSpec, prompt: str) -> dict[str, Any]:
    """Return what a run records of its checkpoint: enough to load the same weights again and to read the pixels."""
    names = (
        "id",
        "title",
        "family",
        "base",
        "strategy",
        "repo_id",
        "revision",
        "amplitude_encoding",
        "model_encoding",
        "mono",
        "sha256",
    )
    return {**{name: getattr(spec, name) for name in names}, "polarisation": spec.polarisation_of(prompt)}


def load_amplitude(path: Path) -> NDArray[np.float32]:
    """Read a run's float32 ``.npy`` amplitude, shape ``(height, width)``."""
    amplitude: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return amplitude
