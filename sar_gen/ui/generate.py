"""The Generate tab: the three columns side by side, and the events between them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from sar_gen import checkpoints, references
from sar_gen import request as requests
from sar_gen.errors import InputError, SarGenError
from sar_gen.request import GenerationRequest
from sar_gen.runs import RunImage, RunRecord, request_from_png, settings_from_png
from sar_gen.settings import Settings
from sar_gen.studio import Studio
from sar_gen.ui import judgement as judged
from sar_gen.ui import judging, views
from sar_gen.ui.guide_events import (
    QUIET,
    SOURCE,
    asked_guides,
    filled_guides,
    filled_outputs,
    guide_events,
    source_inputs,
)
from sar_gen.ui.guiding import Source
from sar_gen.ui.inputs import (
    FORM,
    Inputs,
    build_inputs,
    form_of,
    kept_of,
    read_form,
    suggested_reference,
    with_choices,
)
from sar_gen.ui.judgement import Judgement, build_judgement
from sar_gen.ui.results import Results, build_results, kept_places, show_run
from sar_gen.ui.scenes import load_scenes
from sar_gen.ui.told import told

WAITING_ROOM = 8  # requests that follow the engine at once; the engine works on one, in the order of arrival
PREVIEW_NOTE = "Preview in the making; it is never measured."


@dataclass(eq=False)  # compared by identity: a new ticket is always a new run
class Ticket:
    """A checked request on its way to the engine.

    Attributes:
        token: names the request for ``Studio.stop``.
        request: what is asked for, complete.
        reference: set to judge the run with, ``None`` where none is comparable.
        keep: how many patches are kept, those nearest to the reference; ``None`` is all.
        expected: for a replay, sha256 of the amplitude by seed.
    """

    token: str
    request: GenerationRequest
    reference: str | None = None
    keep: int | None = None
    expected: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Generate:
    """The tab's components that other parts of the page use."""

    inputs: Inputs
    results: Results
    judgement: Judgement
    ticket: gr.State


def load_presets(studio: Studio) -> list[dict[str, str]]:
    """Return the scenes that the page offers before the first run: name, prompt, reference."""
    presets: list[dict[str, str]] = json.loads((studio.settings.assets / "presets.json").read_text(encoding="utf-8"))
    return presets


def build_generate(studio: Studio) -> Generate:
    """Build the tab."""
    presets, scenes = load_presets(studio), load_scenes(studio.settings)
    with gr.Row(elem_id="workbench"):
        inputs = build_inputs(studio.settings)
        results = build_results(presets, scenes)
        judgement = build_judgement(studio.settings)
    ticket = gr.State(None)
    tab = Generate(inputs, results, judgement, ticket)
    guide_events(tab, studio, scenes)
    _run_events(tab, studio)
    _history_events(tab, studio)
    _redraw_events(tab, studio)
    _preset_events(tab, presets, studio.settings)
    return tab


# ---- run


def _run_events(tab: Generate, studio: Studio) -> None:
    inputs, results, judgement, ticket = tab.inputs, tab.results, tab.judgement, tab.ticket

    def begin(*values: Any) -> dict[Any, Any]:
        source, listed = Source(*values[:SOURCE]), values[SOURCE]
        form = dict(zip(FORM, values[SOURCE + 1 :], strict=True))
        reference = source.reference
        try:
            asked, spec = requests.check_request(
                read_form(form, asked_guides(source, listed, form, studio)),
                checkpoints.catalogue(studio.settings),
                studio.settings,
            )
            fitting, keep = comparable(reference, asked, spec, studio), kept_of(form)
            if keep is not None and fitting is None:
                raise InputError("The best patches are those nearest to a reference set; choose one that fits.")
        except Exception as error:
            return refused(tab, told(error))
        return accepted(tab, Ticket(uuid.uuid4().hex, asked, fitting, keep))

    def replay(shown: dict[str, Any] | None, reference: str | None) -> dict[Any, Any]:
        try:
            record = open_run(shown, studio)
            asked, spec = requests.check_request(
                record.request, checkpoints.catalogue(studio.settings), studio.settings
            )
        except Exception as error:
            return refused(tab, told(error))
        expected = {image.seed: image.sha256 for image in record.images}
        fitting = comparable(reference, asked, spec, studio)
        keep = len(kept_places(record)) or None if fitting is not None else None
        new = Ticket(uuid.uuid4().hex, asked, fitting, keep, expected)
        return accepted(tab, new)

    def run(new: Ticket | None) -> Iterator[dict[Any, Any]]:
        yield from follow(tab, studio, new)

    begun = [ticket, results.status, results.note, results.tabs, inputs.generate, inputs.stop, inputs.seed]
    # Queued, because a state's change is only told to queued events; without a limit, so that it never waits.
    inputs.generate.click(
        begin,
        [*source_inputs(tab), inputs.card.listed, *inputs.form()],
        begun,
        concurrency_limit=None,
        **QUIET,
    )
    results.replay.click(replay, [results.shown, judgement.reference], begun, concurrency_limit=None, **QUIET)
    run_outputs = [
        results.stage, results.status, results.note, results.gallery, results.files, results.png, results.amplitude,
        results.json, results.details, results.settings, results.shown, inputs.generate, inputs.stop,
    ]  # fmt: skip
    ticket.change(
        run,
        ticket,
        run_outputs,
        concurrency_id="gpu",
        concurrency_limit=WAITING_ROOM,
        **QUIET,
    )
    inputs.stop.click(lambda new: stop(studio, new), ticket, results.note, queue=False, **QUIET)
    inputs.reuse.click(
        lambda shown: reuse(studio, shown),
        results.shown,
        [inputs.seed, inputs.random],
        concurrency_limit=None,
        **QUIET,
    )


def comparable(name: str | None, asked: GenerationRequest, spec: Any, studio: Studio) -> str | None:
    """Return the reference set's name where the run can be judged with it; the panel says why where it cannot."""
    try:
        if name is None:
            return None
        reference = references.load_reference(name, studio.settings)
        references.check_comparable(reference, spec.amplitude_encoding, spec.polarisation_of(asked.prompt))
    except SarGenError:
        return None
    return name


def refused(tab: Generate, message: str) -> dict[Any, Any]:
    """Return the page after a request that is not started: the sentence, nothing else changes."""
    gr.Warning(message, title="Not started")
    return {tab.results.status: views.status(message, "failed")}


def accepted(tab: Generate, ticket: Ticket) -> dict[Any, Any]:
    """Return the page as it is while the ticket waits for its first event."""
    return {
        tab.ticket: ticket,
        tab.results.status: views.status("Starting…", "busy", 0.0),
        tab.results.note: "",
        tab.results.tabs: gr.Tabs(selected="result"),
        tab.inputs.generate: gr.Button(visible=False),
        tab.inputs.stop: gr.Button("Stop", visible=True, interactive=True),
        tab.inputs.seed: ticket.request.seed,
    }


def stop(studio: Studio, ticket: Ticket | None) -> str:
    """Stop this page's own request."""
    if ticket is None:
        return ""
    studio.stop(ticket.token)
    return views.sentence("Stopping after this step…")


def reuse(studio: Studio, shown: dict[str, Any] | None) -> tuple[Any, Any]:
    """Return the seed of the patch on the stage, with Random off."""
    try:
        record = open_run(shown, studio)
    except Exception as error:
        gr.Warning(told(error))
        return gr.skip(), gr.skip()
    assert shown is not None
    return record.images[shown["index"]].seed, False


def follow(tab: Generate, studio: Studio, ticket: Ticket | None) -> Iterator[dict[Any, Any]]:
    """Run a ticket and yield what changes on the page, event by event."""
    if ticket is None:
        return
    idle = {tab.inputs.generate: gr.Button(visible=True), tab.inputs.stop: gr.Button(visible=False)}
    started = time.monotonic()
    saved: list[requests.Saved] = []
    try:
        events = studio.generate(ticket.request, reference=ticket.reference, keep=ticket.keep, token=ticket.token)
        for event in events:
            if isinstance(event, requests.Saved):
                saved.append(event)
                record = studio.store.open(event.view.parent)
                yield show_run(tab.results, record, len(record.images) - 1)
            elif isinstance(event, requests.Notice):
                yield {tab.results.note: views.sentence(event.message)}
            elif isinstance(event, requests.Selected):
                yield {tab.results.note: views.sentence(event.selection.text)}
            elif isinstance(event, requests.Done | requests.Stopped | requests.Failed):
                yield {**ended(event, ticket, saved, time.monotonic() - started, tab, studio), **idle}
            else:
                update = progress(event, ticket.request, tab)
                if update:
                    yield update
    except Exception as error:
        yield {tab.results.status: views.status(told(error), "failed"), **idle}


def progress(event: requests.Event, asked: GenerationRequest, tab: Generate) -> dict[Any, Any]:
    """Return what an event in the middle of a run changes on the page."""
    status = tab.results.status
    if isinstance(event, requests.Queued):
        text = f"Waiting: {event.position} request{'s' if event.position != 1 else ''} before yours."
        return {status: views.status(text, "busy", 0.0)}
    if isinstance(event, requests.Loading):
        return {status: views.status(event.message, "busy", 0.0)}
    if isinstance(event, requests.Step):
        return {status: step_line(event)}
    if isinstance(event, requests.Preview):
        tile = views.tile(
            views.png_url(judging.view(event.amplitude, "linear", None)),
            role="generated live",
            title="In the making",
            aside=f"patch {event.index + 1} of {asked.count} · seed {asked.seed + event.index}",
            badge="preview",
        )
        return {tab.results.stage: tile}
    return {}


def step_line(event: requests.Step) -> str:
    """Return the progress line of a denoising step."""
    share = (event.first + event.size * event.step / max(event.steps, 1)) / max(event.count, 1)
    last = event.first + event.size
    which = f"patch {last}" if event.size == 1 else f"patches {event.first + 1} to {last}"
    text = f"Step {event.step} of {event.steps} · {which} of {event.count}"
    return views.status(text, "busy", share, f"{views.duration(event.eta)} left")


def ended(
    event: requests.Event, ticket: Ticket, saved: list[requests.Saved], seconds: float, tab: Generate, studio: Studio
) -> dict[Any, Any]:
    """Return the last line of a run, and the patch on the stage again where a preview covered it."""
    made = f"{len(saved)} patch{'es' if len(saved) != 1 else ''}"
    if isinstance(event, requests.Failed):
        kept = f" The {made} finished before are kept." if saved else ""
        line = views.status(event.message + kept, "failed")
    elif isinstance(event, requests.Stopped):
        text = f"Stopped; the {made} finished before are kept." if saved else "Stopped before the first patch."
        line = views.status(text, "stopped", None, views.duration(seconds))
    else:
        text = f"{made[0].upper()}{made[1:]} saved"
        if ticket.expected:
            same = sum(ticket.expected.get(item.seed) == item.sha256 for item in saved)
            text = f"Replayed: {same} of {len(saved)} identical to the run before, bit for bit"
        line = views.status(text, "done", None, views.duration(seconds))
    update: dict[Any, Any] = {tab.results.status: line}
    if saved:  # the run's JSON is complete only now
        record = studio.store.open(saved[-1].view.parent)
        best = [k for k, image in enumerate(record.images) if image.index in kept_places(record)[:1]]
        update.update(show_run(tab.results, record, best[0] if best else len(saved) - 1))
        if not isinstance(event, requests.Done):  # a preview of the patch that was given up covers the last one
            update[tab.results.shown] = {**update[tab.results.shown], "ended": time.time()}
    return update


# ---- history


def _history_events(tab: Generate, studio: Studio) -> None:
    results = tab.results

    def recover() -> dict[Any, Any]:
        record = studio.last_run()
        if record is None:
            return {results.status: views.status("There is no run to recover yet.", "failed")}
        return reopened(tab, studio, record, f"Recovered the last run, of {record.created[:16].replace('T', ' ')}")

    def open_file(path: str) -> dict[Any, Any]:
        return open_dropped(tab, studio, Path(path))

    outputs = reopened_outputs(tab)
    results.recover.click(recover, None, outputs, concurrency_limit=None, **QUIET)
    results.open.upload(open_file, results.open, outputs, concurrency_limit=None, **QUIET)


def reopened_outputs(tab: Generate) -> list[Any]:
    """The components that ``reopened`` may change."""
    results, inputs = tab.results, tab.inputs
    return [
        results.stage, results.status, results.note, results.gallery, results.files, results.png, results.amplitude,
        results.json, results.details, results.settings, results.shown, results.tabs, *filled_outputs(tab),
        *inputs.form(),
    ]  # fmt: skip


def reopened(tab: Generate, studio: Studio, record: RunRecord, text: str, index: int = 0) -> dict[Any, Any]:
    """Return the page with a run of before: its patches and the form that made them."""
    update = show_run(tab.results, record, index)
    update[tab.results.status] = views.status(text, "done", None, f"{len(record.images)} of {record.request.count}")
    update[tab.results.note] = "".join(views.sentence(notice) for notice in record.notices)
    update[tab.results.tabs] = gr.Tabs(selected="result")
    kept = {"count": len(kept_places(record)), "best_of": record.request.count} if record.selection else None
    return {**update, **filled_form(tab, record.request, record.id, studio, kept)}


def filled_form(
    tab: Generate,
    asked: GenerationRequest,
    run: str | None,
    studio: Studio,
    kept: dict[str, int] | None = None,
) -> dict[Any, Any]:
    """Return the form with a request's values and its guides.

    ``run`` is the id of the run that holds these, ``kept`` the counts of a best-of run.
    """
    values = form_of(asked) | (kept or {})
    update: dict[Any, Any] = dict(zip(tab.inputs.form(), (values[name] for name in FORM), strict=True))
    inputs = tab.inputs
    try:
        spec = checkpoints.resolve(checkpoints.catalogue(studio.settings), asked.checkpoint, asked.strategy)
        offers = with_choices(studio.settings, asked.checkpoint, asked.checkpoint, spec.strategy)
        update |= {inputs.checkpoint: offers["checkpoint"], inputs.strategy: offers["strategy"]}
    except InputError:  # the checkpoint is gone; the form stays at another one
        update |= {inputs.checkpoint: gr.skip(), inputs.strategy: gr.skip()}
    return {**update, **filled_guides(tab, asked, run, studio)}


def open_dropped(tab: Generate, studio: Studio, path: Path) -> dict[Any, Any]:
    """Open the run of a dropped PNG or run JSON; where the run is gone, its settings still fill the form."""
    try:
        if path.suffix.lower() == ".json":
            try:
                identity = str(json.loads(path.read_text(encoding="utf-8"))["id"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path.name} is not a run's JSON; drop a PNG or run.json of the studio.") from error
            record = studio.store.open(identity)
            return reopened(tab, studio, record, f"Opened run {record.id}")
        asked = request_from_png(path)
        try:
            record = studio.store.open(path)
        except Exception as error:
            lost = " Its guide is kept in the run's folder alone; give it again." if had_guides(path) else ""
            return {
                **filled_form(tab, asked, None, studio),
                tab.results.status: views.status(told(error) + lost, "stopped"),
            }
        return reopened(tab, studio, record, f"Opened run {record.id}")
    except Exception as error:
        gr.Warning(told(error), title="Not opened")
        return {tab.results.status: views.status(told(error), "failed")}


def had_guides(path: Path) -> bool:
    """Return whether the run that made a PNG had guides."""
    asked = settings_from_png(path)["request"]
    return bool(asked.get("guides") or asked.get("guide"))


def open_run(shown: dict[str, Any] | None, studio: Studio) -> RunRecord:
    """Return the run on the stage.

    Raises:
        InputError: there is none, or its folder has gone.
    """
    if not shown:
        raise InputError("There is no patch yet; generate one first.")
    record = studio.store.open(Path(shown["run"]))
    if not record.images:
        raise InputError(f"The files of run {record.id} are gone.")
    return record


# ---- redraw


def _redraw_events(tab: Generate, studio: Studio) -> None:
    results, judgement = tab.results, tab.judgement

    def score(*values: Any) -> Iterator[tuple[Any, ...]]:
        yield from scored(studio, *values)

    def select(shown: dict[str, Any] | None, event: gr.SelectData) -> dict[Any, Any]:
        try:
            record = open_run(shown, studio)
        except Exception as error:
            return {results.status: views.status(told(error), "failed")}
        update = show_run(results, record, int(event.index))
        del update[results.gallery]  # it is what was clicked
        return update

    selected = [
        results.status, results.files, results.png, results.amplitude, results.json, results.details, results.settings,
        results.shown,
    ]  # fmt: skip
    results.gallery.select(select, results.shown, selected, concurrency_limit=None, **QUIET)

    gr.on(
        [
            results.shown.change,
            judgement.reference.change,
            judgement.remap.change,
            judgement.real_index.change,
            judgement.windows.change,
        ],
        lambda *values: tiles(studio, *values),
        [results.shown, judgement.reference, judgement.remap, judgement.real_index, judgement.windows],
        [results.stage, judgement.real],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    gr.on(
        [
            results.shown.change,
            judgement.reference.change,
            judgement.scope.change,
            judgement.axis.change,
            judgement.texture_kind.change,
            judgement.front.change,
            judgement.scored.change,
            judgement.dark.change,
        ],
        lambda *values: panel(studio, *values),
        [
            results.shown,
            judgement.reference,
            judgement.scope,
            judgement.axis,
            judgement.texture_kind,
            judgement.front,
            judgement.dark,
        ],
        [
            judgement.verdict,
            judgement.charts,
            judgement.histogram,
            judgement.texture,
            judgement.spectrum,
            judgement.speckle,
            judgement.table,
            judgement.score,
            judgement.score_line,
        ],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    # Seconds of work: an event of its own, so that no redraw waits for it.
    judgement.score.click(
        score,
        [results.shown, judgement.reference, judgement.scope, judgement.scored],
        [judgement.score, judgement.score_line, judgement.scored],
        concurrency_id="prompt",
        concurrency_limit=1,
        **QUIET,
    )


def draw_first(tab: Generate, studio: Studio, loaded: Any) -> None:
    """Draw the real patch once the page's choices are restored (after the event ``loaded``)."""
    judgement = tab.judgement
    loaded.then(
        lambda *values: tiles(studio, None, *values)[1],
        [judgement.reference, judgement.remap, judgement.real_index, judgement.windows],
        judgement.real,
        concurrency_limit=None,
        **QUIET,
    )


def tiles(
    studio: Studio,
    shown: dict[str, Any] | None,
    reference: str | None,
    remap: judging.Remap,
    real_index: int,
    windows: bool = False,
) -> tuple[Any, Any]:
    """Return the generated and the real picture under one remap; the first is left alone before there is a run.

    With ``windows`` their homogeneous ground is outlined.
    """
    try:
        real = None if reference is None else judging.real_patch(reference, real_index, studio.settings)
        record = open_run(shown, studio) if shown else None
        image = record.images[shown["index"]] if record and shown else None
        amplitude = judging.amplitude_of(image.amplitude_file) if image else None
    except Exception as error:
        return gr.skip(), views.empty_tile("real", "Not shown", views.sentence(told(error), "warn"), "Real")
    made, truth = judging.views_of(amplitude, real.patch.amplitude if real else None, remap, windows)
    right = judged.real_tile(real, "" if truth is None else views.png_url(truth))
    if made is None or image is None or record is None:
        return gr.skip(), right
    assert amplitude is not None
    height, width = amplitude.shape
    left = views.tile(
        views.png_url(made),
        role="generated",
        title="Generated",
        aside=f"seed {image.seed} · {width} × {height} px · {image.index + 1}/{len(record.images)}",
        alt=f"Generated SAR patch, seed {image.seed}: {record.request.prompt}",
    )
    return left, right


def panel(
    studio: Studio,
    shown: dict[str, Any] | None,
    reference: str | None,
    scope: str,
    axis: judging.Axis = "linear",
    texture: str = "means",
    front: str = "amplitude",
    dark: bool = False,
) -> tuple[Any, ...]:
    """Return verdict, charts and table for what is on the stage.

    Of the charts the one in ``front`` is drawn; others come back where they were drawn before, and are empty else.

    Returns:
        Updates of verdict, the column of charts, one a chart in the order of ``judging.CHARTS``, table, score button
        and what the score says.
    """
    nothing = (gr.Column(visible=False), *[""] * len(judging.CHARTS), "", gr.Button(visible=False), "")
    if not shown or reference is None:
        return judged.waiting(), *nothing
    try:
        record = open_run(shown, studio)
        images = judging.chosen(record, shown["index"], scope)
        loaded = references.load_reference(reference, studio.settings)
        warnings = references.check_comparable(
            loaded, record.checkpoint.get("amplitude_encoding", "unknown"), record.checkpoint.get("polarisation")
        )
        score = judging.prompt_score(record, images)
        report = judging.with_prompt(judging.report_on(images, reference, studio.settings), score)
        charts = [
            _chart(
                name,
                images,
                reference,
                studio.settings,
                axis=axis,
                by_direction=texture == "directions",
                dark=dark,
                only_kept=name != front,
            )
            for name in judging.CHARTS
        ]
    except Exception as error:
        return f'<div class="sg-verdict none"><p>{views.sentence(told(error), "warn")}</p></div>', *nothing
    document = judging.report_document(report, record, images)
    link = views.json_link(document, f"report_{record.id}_{reference}.json", "Export report (JSON)")
    return (
        judged.verdict(report, warnings),
        gr.Column(visible=True),
        *charts,
        judged.table(report, link),
        gr.Button(visible=score is None),
        "" if score is None else views.sentence(f"Prompt: {score.text}" if score.text else ""),
    )


def _chart(
    name: judging.Chart, images: tuple[RunImage, ...], reference: str, settings: Settings, **options: Any
) -> str:
    """Return a chart as HTML, or why there is nothing to draw."""
    try:
        png = judging.chart(name, images, reference, settings, **options)
    except InputError as error:
        return views.sentence(str(error), "warn")
    if png is None:
        return ""
    alt = f"{judged.CHARTS[name]}, generated and {reference}"
    return f'<img class="sg-figure" src="{views.data_url("image/png", png)}" alt="{alt}"/>'


def scored(
    studio: Studio, shown: dict[str, Any] | None, reference: str | None, scope: str, count: int
) -> Iterator[tuple[Any, ...]]:
    """Score the prompt of what is on the stage, and say so; yields updates of the button, its line and the count."""
    yield gr.Button(interactive=False), views.sentence("SAR-CLIP is reading the patches…"), count
    try:
        record = open_run(shown, studio)
        assert shown is not None
        if reference is None:
            raise InputError("No reference set is chosen; choose one first.")
        judging.score_prompt(studio, record, judging.chosen(record, shown["index"], scope), reference)
    except Exception as error:
        yield gr.Button(interactive=True), views.sentence(told(error), "warn"), count
        return
    yield gr.Button(interactive=True), "", count + 1  # the change of the count redraws the panel


# ---- presets


def _preset_events(tab: Generate, presets: list[dict[str, str]], settings: Settings) -> None:
    by_name = {preset["name"]: preset for preset in presets}

    def choose(event: gr.EventData) -> tuple[Any, Any]:
        preset = by_name.get(str(event.name))
        if preset is None:
            return gr.skip(), gr.skip()
        return preset["prompt"], preset.get("reference", gr.skip())

    tab.results.stage.preset(choose, None, [tab.inputs.prompt, tab.judgement.reference], queue=False, **QUIET)

    # A chosen example or word names its ground: patches are judged by real patches of that ground from then on.
    def fitting(name: str, strategy: str | None, event: gr.EventData) -> Any:
        return suggested_reference(settings, name, strategy, str(event.text)) or gr.skip()

    for hint in (tab.inputs.words, tab.inputs.examples):
        hint.pick(fitting, [tab.inputs.checkpoint, tab.inputs.strategy], tab.judgement.reference, queue=False, **QUIET)
