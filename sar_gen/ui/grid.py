"""The Grid tab: one request varied along axes, filled in live, coloured and sorted by any measure."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from sar_gen import grid_export, grid_figures, grids, references
from sar_gen import request as requests
from sar_gen.errors import InputError, SarGenError
from sar_gen.grids import Grid, Place, Plan, Stopper
from sar_gen.runs import RunRecord
from sar_gen.strategies import STRATEGIES
from sar_gen.studio import Studio
from sar_gen.ui import grid_form, grid_views, judging, views
from sar_gen.ui.choices import Choice, chosen_checkpoint, on_choice
from sar_gen.ui.compare import EXPORT_SCRIPT
from sar_gen.ui.generate import (
    QUIET,
    WAITING_ROOM,
    Generate,
    comparable,
    filled_form,
    reopened,
    reopened_outputs,
)
from sar_gen.ui.grid_form import FIELDS, NONE, GridForm, build_form
from sar_gen.ui.guide_events import SOURCE, asked_guides, filled_outputs, source_inputs
from sar_gen.ui.guiding import Source
from sar_gen.ui.inputs import FORM, read_form
from sar_gen.ui.judgement import reference_choices
from sar_gen.ui.theme import markup
from sar_gen.ui.told import told

KNOWN_RUNS = 30  # of before, that the time is estimated from
EXPORTS = (("PNG", "png"), ("HTML", "html"), ("JSON", "json"))

# One listener serves all cells: a click (Enter, Space) shows a cell's details, its arrow opens it in Generate.
CELLS_SCRIPT = """
const choose = cell => {
  if (!cell) return;
  element.querySelectorAll('.sg-cell.selected').forEach(other => other.classList.remove('selected'));
  cell.classList.add('selected');
  trigger('choose', { place: cell.dataset.place });
};
element.addEventListener('click', event => {
  const go = event.target.closest('[data-open]');
  if (go) trigger('leave', { place: go.dataset.open });
  else choose(event.target.closest('[data-place]'));
});
element.addEventListener('keydown', event => {
  if ((event.key === 'Enter' || event.key === ' ') && event.target.matches('[data-place]')) {
    event.preventDefault();
    choose(event.target);
  }
});
"""


@dataclass(eq=False)  # compared by identity: a new ticket is always a new run
class Ticket:
    """A grid on its way to be made; ``running`` from its acceptance to its last event."""

    grid: Grid
    stopper: Stopper
    running: bool = True


@dataclass(frozen=True)
class GridTab:
    """The components of the tab.

    ``shown`` is ``{"folder", "running", "version"}`` of the grid on show, or ``None``; ``chosen`` the key of the cell
    whose details are shown.
    """

    form: GridForm
    blank: gr.HTML
    result: gr.Column
    heading: gr.HTML
    legend: gr.HTML
    measure: gr.Dropdown
    sort: gr.Radio
    page: gr.Radio
    body: gr.HTML
    details: gr.Column
    detail: gr.HTML
    open: gr.Button
    close: gr.Button
    again: gr.Button
    exports: dict[str, gr.Button]
    saved: gr.HTML
    ticket: gr.State
    shown: gr.State
    chosen: gr.State

    def remembered(self) -> dict[str, Any]:
        """The fields that the browser remembers, by name."""
        return dict(zip(FIELDS, self.form.fields(), strict=True))


def build_grid(studio: Studio, generate: Generate, tabs: gr.Tabs, grid_tab: gr.Tab) -> GridTab:
    """Build the tab; what stands in Generate is read anew whenever the tab is opened."""
    with gr.Row(elem_id="grid"):
        form = build_form(studio.settings)
        with gr.Column(elem_id="grid-result", min_width=320):
            blank = markup(grid_views.EMPTY, elem_id="grid-blank")
            with gr.Column(visible=False, elem_id="grid-shown") as result:
                with gr.Row(elem_classes="sg-gridbar"):
                    heading = markup("", elem_id="grid-heading")
                    again = gr.Button("Use its settings", size="sm", min_width=50, elem_id="grid-again")
                    exports = {
                        kind: gr.Button(title, size="sm", min_width=50, elem_id=f"grid-export-{kind}")
                        for title, kind in EXPORTS
                    }
                with gr.Row(elem_classes="sg-gridbar"):
                    measure = gr.Dropdown(
                        grid_views.MEASURES, value=grids.NEARNESS, label="Measure", show_label=False, container=False,
                        elem_id="grid-measure", min_width=150,
                    )  # fmt: skip
                    sort = gr.Radio(
                        grid_views.SORTS, value=grid_views.PLANNED, label="Order", show_label=False, container=False,
                        elem_id="grid-sort", elem_classes="sg-segments", min_width=150,
                    )  # fmt: skip
                    page = gr.Radio(
                        [], label="Page", show_label=False, container=False, visible=False, elem_id="grid-page",
                        elem_classes="sg-segments", min_width=80,
                    )  # fmt: skip
                    legend = markup("", elem_id="grid-legend")
                with gr.Row(elem_id="grid-split"):
                    body = markup("", js_on_load=CELLS_SCRIPT, elem_id="grid-body")
                    with gr.Column(visible=False, elem_id="grid-details", min_width=240) as details:
                        with gr.Row(elem_classes="sg-files"):
                            open_ = gr.Button("Open in Generate", variant="primary", size="sm", elem_id="grid-open")
                            close = gr.Button("×", size="sm", min_width=28, scale=0, elem_id="grid-close")
                        detail = markup("", elem_id="grid-detail")
        saved = markup("", js_on_load=EXPORT_SCRIPT, elem_id="grid-saved")
    tab = GridTab(
        form, blank, result, heading, legend, measure, sort, page, body, details, detail, open_, close, again, exports,
        saved, gr.State(None), gr.State(None), gr.State(""),
    )  # fmt: skip
    _form_events(tab, generate, studio, grid_tab)
    _run_events(tab, generate, studio)
    _view_events(tab, studio)
    _leave_events(tab, generate, studio, tabs)
    _again_events(tab, generate, studio)
    _export_events(tab, studio)
    return tab


def asked_inputs(generate: Generate) -> list[Any]:
    """The components of Generate that say what is asked for; ``Asked`` reads their values."""
    return [*source_inputs(generate), generate.inputs.card.listed, *generate.inputs.form()]


@dataclass(frozen=True)
class Asked:
    """What stands in Generate."""

    source: Source
    listed: Any
    form: dict[str, Any]

    @classmethod
    def of(cls, values: tuple[Any, ...]) -> Asked:
        """Read the values of ``asked_inputs``."""
        form = dict(zip(FORM, values[SOURCE + 1 :], strict=True))
        return cls(Source(*values[:SOURCE]), values[SOURCE], form)

    def guides(self, studio: Studio) -> tuple[requests.Guide, ...]:
        """Return the guides.

        Raises:
            InputError: the form's guide is empty or cannot be read.
        """
        return asked_guides(self.source, self.listed, self.form, studio)

    def plan(self, fields: tuple[Any, ...], studio: Studio) -> Plan:
        """Return the plan of Generate's form and the axes.

        Raises:
            InputError: one sentence on what is wrong with either.
        """
        axes = grid_form.read_axes(fields)
        plan = grid_form.read_plan(self.form, self.guides(studio), axes, self.source.reference, studio.settings)
        spec = chosen_checkpoint(studio.settings, plan.request.checkpoint, plan.request.strategy)
        if comparable(plan.reference, plan.request, spec, studio) is None:
            return Plan(plan.request, plan.axes)
        return plan

    @property
    def rough(self) -> requests.GenerationRequest:
        """The request as far as the form tells, for what is offered: no guides, zeros for numbers that are missing."""
        return read_form({name: 0 if value is None else value for name, value in self.form.items()}, ())


NUMBER = SOURCE + 1 + len(FORM)  # of values of ``asked_inputs``

# ---- the form


def _form_events(tab: GridTab, generate: Generate, studio: Studio, grid_tab: gr.Tab) -> None:
    form, inputs = tab.form, asked_inputs(generate)
    fields = form.fields()

    def opened(*values: Any) -> dict[Any, Any]:
        return {**described(tab, Asked.of(values[:NUMBER]), values[NUMBER:], studio), form.earlier: earlier(studio)}

    def sized(*values: Any) -> dict[Any, Any]:
        return described(tab, Asked.of(values[:NUMBER]), values[NUMBER:], studio)

    listed = [
        form.base,
        form.size,
        *(component for row in form.rows for component in (row.name, row.values, row.words)),
    ]
    grid_tab.select(opened, [*inputs, *fields], [*listed, form.earlier], concurrency_limit=None, **QUIET)
    gr.on(
        [row.values.change for row in form.rows] + [row.name.change for row in form.rows],
        sized,
        [*inputs, *fields],
        listed,
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    for row in form.rows:

        def choose(name: str, *values: Any) -> Any:
            """Begin with values that make sense; the field is hidden where there is no axis."""
            text = ""
            with contextlib.suppress(InputError):
                text = grid_form.first_values(name, Asked.of(values).rough, studio.settings)
            return gr.Textbox(text, visible=name != NONE, placeholder=grid_form.hint(name))

        def pick(text: str, event: gr.EventData) -> str:
            return grid_form.appended(text or "", str(event.text))

        on_choice(row.name, choose, inputs, row.values, concurrency_limit=None, **QUIET)
        row.words.pick(pick, row.values, row.values, queue=False, **QUIET)


def described(tab: GridTab, asked: Asked, fields: tuple[Any, ...], studio: Studio) -> dict[Any, Any]:
    """Return what the column says of a form: what is common, the size of the grid or what is wrong with it."""
    settings, form, rough = studio.settings, tab.form, asked.rough
    guides: tuple[requests.Guide, ...] = ()
    with contextlib.suppress(InputError):
        guides = asked.guides(studio)
    update: dict[Any, Any] = {}
    for number, row in enumerate(form.rows):
        name, text = fields[2 * number] or NONE, fields[2 * number + 1] or ""
        update[row.name] = Choice(choices=grid_form.axis_choices(len(guides), number > 0))
        update[row.values] = gr.Textbox(visible=name != NONE, placeholder=grid_form.hint(name))
        update[row.words] = grid_form.words(name, text, rough, settings)
    spec = chosen_checkpoint(settings, rough.checkpoint, rough.strategy)
    own, judged = False, ""
    try:
        plan = asked.plan(fields, studio)
        own = plan.request.steps is None
        judged = plan.reference or ""
        cells = grids.check_plan(plan, settings)
        seconds = grid_figures.estimate(cells.values(), known_runs(studio))
        update[form.size] = grid_views.size_line(*plan.shape, seconds)
    except Exception as error:
        update[form.size] = views.sentence(told(error), "warn")
        judged = judged or asked.source.reference or ""
    titles = {info.name: info.title for info in references.list_references(settings)}
    strategy = STRATEGIES[spec.strategy].title if spec.strategy in STRATEGIES else spec.strategy
    common = dataclasses.replace(rough, guides=guides)
    update[form.base] = grid_views.base(
        common, spec.title, strategy, bool(asked.form["random"]), titles.get(judged, judged), own
    )
    return update


def sized_again(studio: Studio, *values: Any) -> Any:
    """Return the size of the planned grid and its time by what is known now; nothing where it cannot be made."""
    try:
        plan = Asked.of(values[:NUMBER]).plan(values[NUMBER:], studio)
        cells = grids.check_plan(plan, studio.settings)
    except Exception:
        return gr.skip()
    return grid_views.size_line(*plan.shape, grid_figures.estimate(cells.values(), known_runs(studio)))


def known_runs(studio: Studio) -> list[RunRecord]:
    """Return runs of before: the last ones, and the last cells of the two newest grids."""
    cells = [record for store in studio.store.grids()[:2] for record in store.list(KNOWN_RUNS // 3)]
    return [*studio.store.list(KNOWN_RUNS), *cells]


def earlier(studio: Studio) -> Any:
    """Return the list of grids on disk, none chosen."""
    found = grids.list_grids(studio.settings.runs)
    return gr.Dropdown([(grid_views.grid_choice(info), info["id"]) for info in found], value=None)


# ---- making


def _run_events(tab: GridTab, generate: Generate, studio: Studio) -> None:
    form = tab.form
    inputs = [*asked_inputs(generate), *form.fields()]

    def begin(*values: Any) -> dict[Any, Any]:
        try:
            plan = Asked.of(values[:NUMBER]).plan(values[NUMBER:], studio)
            grid = grids.new_grid(plan, studio)
        except Exception as error:
            return refused(tab, told(error))
        return {**accepted(tab, Ticket(grid, Stopper())), tab.chosen: "", tab.details: gr.Column(visible=False)}

    def resume(shown: dict[str, Any] | None) -> dict[Any, Any]:
        try:
            grid = open_shown(shown)
        except Exception as error:
            return refused(tab, told(error))
        return accepted(tab, Ticket(grid, Stopper()))

    def run(ticket: Ticket | None) -> Iterator[dict[Any, Any]]:
        yield from follow(tab, studio, ticket)

    begun = [tab.ticket, form.status, form.run, form.resume, form.stop, tab.shown, tab.chosen, tab.details]
    form.run.click(begin, inputs, begun, concurrency_limit=None, **QUIET)
    form.resume.click(resume, tab.shown, begun, concurrency_limit=None, **QUIET)
    made = tab.ticket.change(
        run,
        tab.ticket,
        [form.status, tab.shown, form.run, form.resume, form.stop],
        concurrency_id="grid",
        concurrency_limit=WAITING_ROOM,
        **QUIET,
    )
    # How long a grid takes is known better now.
    made.then(lambda *values: sized_again(studio, *values), inputs, form.size, concurrency_limit=None, **QUIET)
    form.stop.click(lambda ticket: stop(studio, ticket), tab.ticket, form.status, queue=False, **QUIET)


def refused(tab: GridTab, message: str) -> dict[Any, Any]:
    """Return the tab after a grid that is not started: the sentence, nothing else changes."""
    gr.Warning(message, title="Not started")
    return {tab.form.status: views.status(message, "failed")}


def accepted(tab: GridTab, ticket: Ticket) -> dict[Any, Any]:
    """Return the tab as it is while the ticket waits for its first event."""
    return {
        tab.ticket: ticket,
        tab.form.status: views.status("Starting…", "busy", 0.0),
        tab.form.run: gr.Button(visible=False),
        tab.form.resume: gr.Button(visible=False),
        tab.form.stop: gr.Button(visible=True),
        tab.shown: as_shown(ticket.grid),
    }


def stop(studio: Studio, ticket: Ticket | None) -> Any:
    """Stop this page's own grid."""
    if ticket is None:
        return gr.skip()
    ticket.stopper.stop(studio)
    return views.status("Stopping after this step…", "busy")


def as_shown(grid: Grid, running: Place | None = None) -> dict[str, Any]:
    """Return the grid on show; it differs each time, so that the change draws it anew."""
    place = None if running is None else grid_views.key(running)
    return {"folder": str(grid.folder), "running": place, "version": time.monotonic_ns()}


def open_shown(shown: dict[str, Any] | None) -> Grid:
    """Return the grid on show.

    Raises:
        InputError: there is none, or it has gone.
    """
    if not shown:
        raise InputError("There is no grid yet; make one, or open an earlier one.")
    return grids.open_grid(Path(shown["folder"]))


def follow(tab: GridTab, studio: Studio, ticket: Ticket | None) -> Iterator[dict[Any, Any]]:
    """Make a grid and yield what changes on the page, event by event."""
    if ticket is None:
        return
    grid, form, started = ticket.grid, tab.form, time.monotonic()
    try:
        for event in grids.run(studio, grid, ticket.stopper, previews=True):
            if isinstance(event, grids.CellBegun):
                where = f"Cell {event.number} of {event.count}"
                yield {
                    form.status: busy(where, event.share, started),
                    tab.shown: as_shown(grid, event.cell.place),
                }
            elif isinstance(event, grids.CellEvent):
                if line := cell_line(where, event, started):
                    yield {form.status: line}
            elif isinstance(event, grids.CellDone):
                yield {tab.shown: as_shown(grid)}
            else:
                ticket.running = False
                yield ended(tab, grid, event, time.monotonic() - started)
    except Exception as error:
        ticket.running = False
        yield {**idle(tab, grid), form.status: views.status(told(error), "failed"), tab.shown: as_shown(grid)}
    finally:
        ticket.running = False


def cell_line(where: str, event: grids.CellEvent, started: float) -> str:
    """Return the status line for what the engine says; empty for what changes nothing on the page."""
    said = event.event
    if isinstance(said, requests.Loading):
        return busy(f"{where} · {said.message}", event.share, started)
    if isinstance(said, requests.Queued):
        others = "one request" if said.position == 1 else f"{said.position} requests"
        return busy(f"{where} · waiting: {others} before it", event.share, started)
    if isinstance(said, requests.Step):
        done = (said.first + said.size * said.step / max(said.steps, 1)) / max(said.count, 1)
        line = busy(f"{where} · step {said.step} of {said.steps}", event.share, started)
        return line + f'<div hidden data-cell="{done:.3f}"></div>'
    if isinstance(said, requests.Preview) and said.index == 0:
        look = views.png_url(judging.view(said.amplitude, "linear", None))
        return busy(where, event.share, started) + f'<div hidden data-cell="0.5"><img src="{look}" alt=""/></div>'
    return ""


def busy(text: str, share: float, started: float) -> str:
    """Return the status line while cells are made."""
    left = grid_figures.remaining(time.monotonic() - started, share)
    return views.status(text, "busy", share, "" if left is None else f"{views.duration(left)} left")


def idle(tab: GridTab, grid: Grid) -> dict[Any, Any]:
    """Return the buttons while nothing is made."""
    missing = len(grid.waiting)
    text = f"Make the missing {missing} cell{'s' if missing != 1 else ''}"
    return {
        tab.form.run: gr.Button(visible=True),
        tab.form.resume: gr.Button(text, visible=missing > 0),
        tab.form.stop: gr.Button(visible=False),
    }


def ended(tab: GridTab, grid: Grid, event: grids.GridEnded, seconds: float) -> dict[Any, Any]:
    """Return the tab after the last event of a grid."""
    failed = sum(made.state == "failed" for made in grid.made.values())
    made = f"{grid.finished} of {len(grid.cells)} cells"
    if event.stopped:
        line = views.status(f"Stopped; {made} are kept.", "stopped", None, views.duration(seconds))
    elif failed:
        line = views.status(f"{made} made, {failed} failed: see why in their place.", "failed")
    else:
        line = views.status(f"All {len(grid.cells)} cells made", "done", None, views.duration(seconds))
    return {tab.form.status: line, tab.shown: as_shown(grid), **idle(tab, grid)}


# ---- looking


def _view_events(tab: GridTab, studio: Studio) -> None:
    def draw(*values: Any) -> dict[Any, Any]:
        return drawn(tab, *values)

    gr.on(
        [tab.shown.change, tab.measure.change, tab.sort.input, tab.page.input],
        draw,
        [tab.shown, tab.chosen, tab.measure, tab.sort, tab.page],
        [tab.blank, tab.result, tab.heading, tab.legend, tab.page, tab.body, tab.form.status],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )

    def choose(event: gr.EventData) -> str:
        return str(event.place)

    # Queued, because a state's change is only told to queued events.
    tab.body.choose(choose, None, tab.chosen, concurrency_limit=None, **QUIET)

    def detail(shown: dict[str, Any] | None, chosen: str, measure: str) -> tuple[Any, Any]:
        if not chosen:
            return gr.Column(visible=False), ""
        try:
            return gr.Column(visible=True), grid_views.details(open_shown(shown), grid_views.place_of(chosen), measure)
        except Exception as error:
            return gr.Column(visible=True), views.sentence(told(error), "warn")

    gr.on(
        [tab.chosen.change, tab.measure.change],
        detail,
        [tab.shown, tab.chosen, tab.measure],
        [tab.details, tab.detail],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    tab.close.click(lambda: "", None, tab.chosen, concurrency_limit=None, **QUIET)

    def reopen(name: str, ticket: Ticket | None) -> dict[Any, Any]:
        if ticket is not None and ticket.running:
            gr.Warning("A grid is being made on this page; stop it first, it goes on later.", title="Not opened")
            return {tab.shown: gr.skip()}
        try:
            grid = grids.open_grid(name, studio.settings.runs)
        except Exception as error:
            return {tab.form.status: views.status(told(error), "failed")}
        line = views.status(f"Opened the grid of {grid.created[:16].replace('T', ' ')}", "done")
        return {tab.shown: as_shown(grid), tab.chosen: "", tab.form.status: line, **idle(tab, grid)}

    outputs = [tab.shown, tab.chosen, tab.form.status, tab.form.run, tab.form.resume, tab.form.stop]
    on_choice(tab.form.earlier, reopen, [tab.ticket], outputs, concurrency_limit=None, **QUIET)


def drawn(
    tab: GridTab, shown: dict[str, Any] | None, chosen: str, measure: str, sort: str, page: str | None
) -> dict[Any, Any]:
    """Return the grid on show as it is on disk."""
    if not shown:
        return {tab.blank: gr.HTML(visible=True), tab.result: gr.Column(visible=False)}
    try:
        grid = open_shown(shown)
    except Exception as error:
        return {tab.form.status: views.status(told(error), "failed")}
    running = grid_views.place_of(shown["running"]) if shown["running"] else None
    selected = grid_views.place_of(chosen) if chosen else None
    pages = grid.plan.axes[2].labels if len(grid.plan.axes) > 2 else ()
    number = int(page) if page is not None and int(page) < len(pages) else 0
    listed: dict[str, Any] = {"choices": [(label, str(i)) for i, label in enumerate(pages)], "visible": bool(pages)}
    value = str(number) if pages else None
    if page != value:  # a page that is chosen while this is on its way stays chosen: it is not sent back
        listed["value"] = value
    return {
        tab.blank: gr.HTML(visible=False),
        tab.result: gr.Column(visible=True),
        tab.heading: grid_views.heading(grid, number),
        tab.legend: grid_views.legend(grid, measure),
        tab.page: gr.Radio(**listed),
        tab.body: grid_views.body(grid, measure, sort, number, running, selected),
    }


# ---- taking away


def _leave_events(tab: GridTab, generate: Generate, studio: Studio, tabs: gr.Tabs) -> None:
    """Open a cell in Generate: its picture, its form, and its judgement by the set that judged the grid."""
    outputs = [*reopened_outputs(generate), generate.judgement.reference, tabs, tab.form.status]

    def leave(shown: dict[str, Any] | None, place: str) -> dict[Any, Any]:
        try:
            grid = open_shown(shown)
            at = grid_views.place_of(place)
            record = grid.record(at)
        except Exception as error:
            return {tab.form.status: views.status(told(error), "failed")}
        update = reopened(generate, studio, record, f"Cell of a grid: {grid.plan.label(at)}", grid.made[at].shown)
        if grid.plan.reference in [name for _, name in reference_choices(studio.settings)]:
            update[generate.judgement.reference] = grid.plan.reference
        return {**update, tabs: gr.Tabs(selected="generate")}

    def at_once(shown: dict[str, Any] | None, event: gr.EventData) -> dict[Any, Any]:
        return leave(shown, str(event.place))

    tab.body.leave(at_once, tab.shown, outputs, concurrency_limit=None, **QUIET)
    tab.open.click(leave, [tab.shown, tab.chosen], outputs, concurrency_limit=None, **QUIET)


def _again_events(tab: GridTab, generate: Generate, studio: Studio) -> None:
    """Bring back what the grid on show was made with: Generate's form, the axes and the reference set."""
    fields = tab.form.fields()

    def again(shown: dict[str, Any] | None) -> dict[Any, Any]:
        try:
            grid = open_shown(shown)
            plan = grid.plan
            spec = chosen_checkpoint(studio.settings, plan.request.checkpoint, plan.request.strategy)
            asked = requests.completed(plan.request, spec, studio.settings)
        except Exception as error:
            return {tab.form.status: views.status(told(error), "failed")}
        run = next((made.run for made in grid.made.values() if made.run), None)
        update = filled_form(generate, asked, run, studio)
        texts = [text for axis in plan.axes for text in (axis.key, axis.text)]
        update |= dict(zip(fields, [*texts, *([NONE, ""] * (len(fields) // 2 - len(plan.axes)))], strict=True))
        if plan.reference in [name for _, name in reference_choices(studio.settings)]:
            update[generate.judgement.reference] = plan.reference
        return {**update, tab.form.status: views.status("Its settings are in Generate and here.", "done")}

    outputs = [*generate.inputs.form(), *filled_outputs(generate), *fields, generate.judgement.reference]
    tab.again.click(again, tab.shown, [*dict.fromkeys([*outputs, tab.form.status])], concurrency_limit=None, **QUIET)


def _export_events(tab: GridTab, studio: Studio) -> None:
    for kind, button in tab.exports.items():

        def save(shown: dict[str, Any] | None, measure: str, kind: str = kind) -> tuple[str, Any]:
            try:
                grid = open_shown(shown)
                path = grid_export.write_export(grid, kind, measure)
            except (SarGenError, OSError) as error:
                return "", views.status(told(error), "failed")
            name = f"{grid.id}{path.suffix}"
            link = (
                f'<a data-save="{time.monotonic_ns()}" download="{name}" href="{grid_views.address(path)}">{name}</a>'
            )
            return link, gr.skip()

        button.click(save, [tab.shown, tab.measure], [tab.saved, tab.form.status], concurrency_limit=None, **QUIET)
