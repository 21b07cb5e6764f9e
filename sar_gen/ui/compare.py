"""The Compare tab: images of any origin beside real SAR, judged without a generator."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from sar_gen import references
from sar_gen.errors import InputError
from sar_gen.patches import read_folder
from sar_gen.references import ReferenceSet
from sar_gen.settings import Settings
from sar_gen.studio import Studio
from sar_gen.ui import compare_views as html
from sar_gen.ui import comparing, judging, views
from sar_gen.ui import judgement as judged
from sar_gen.ui.compare_form import SHOWN_RUN, CompareForm, Question, build_form, form_events, read_form
from sar_gen.ui.comparing import Shelf
from sar_gen.ui.generate import QUIET, Generate
from sar_gen.ui.library import caption as run_caption
from sar_gen.ui.theme import markup
from sar_gen.ui.told import told

if TYPE_CHECKING:
    from sar_gen.comparison import Comparison

MODES = [("Side by side", "sides"), ("Slider", "wipe")]
SHOWN = [
    ("Picture", "picture"),
    ("Homogeneous windows", "windows"),
    ("Map: local ENL", "looks"),
    ("Map: ratio to despeckled", "ratio"),
    ("Map: GLCM contrast", "contrast"),
    ("Map: GLCM dissimilarity", "dissimilarity"),
    ("Map: GLCM homogeneity", "homogeneity"),
    ("Map: GLCM correlation", "correlation"),
]
SHOWN_NOTES = {
    "windows": "Outlined: the homogeneous ground, found without a rectangle, that the looks (ENL) are taken from.",
}
SCOPES = [("All patches", "all"), ("This patch", "one")]
OWN_SCALE = (
    "The judged files were brought to [0, 1] by their own mean and deviation: whether they are too bright or too dark "
    "as a whole cannot be seen; type a scale where their unit is known."
)
RUNS = 40  # of the list to choose from; the newest
CHARTS = {
    "amplitude": (("histogram", "Histogram of amplitudes with fitted laws"),),
    "texture": (("texture", "Texture descriptors"), ("direction", "Texture by direction and distance")),
    "spectrum": (("spectrum", "Power spectra, radial and by direction"),),
    "speckle": (("speckle", "Autocorrelation of speckle"),),
}
MEASURES = {"spectrum": ("spectrum", "spectrum_direction"), "speckle": ("enl", "speckle_correlation")}

# One listener on the table serves all its rows: click, Enter and Space open a row, the arrows go to the next.
ROWS_SCRIPT = """
const open = row => { if (row) trigger('row', { index: Number(row.dataset.patch) }); };
element.addEventListener('click', event => open(event.target.closest('tr[data-patch]')));
element.addEventListener('keydown', event => {
  const row = event.target.closest('tr[data-patch]');
  if (!row) return;
  const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); open(row); }
  else if (next) { event.preventDefault(); next.focus(); open(next); }
});
"""
# The stage remembers where the slider stood, and marks the row of the patch that it shows.
STAGE_SCRIPT = """
const apply = () => {
  const wipe = element.querySelector('.sg-wipe');
  if (wipe) {
    const share = element.dataset.wipe || 50;
    wipe.style.setProperty('--wipe', share + '%');
    wipe.querySelector('input').value = share;
  }
  const shown = element.querySelector('[data-shown]')?.dataset.shown;
  document.querySelectorAll('#compare-rows tr[data-patch]').forEach(row => {
    const selected = row.dataset.patch === shown;
    if (selected === (row.getAttribute('aria-selected') === 'true')) return;
    row.setAttribute('aria-selected', selected);
    if (selected) row.scrollIntoView({ block: 'nearest' });
  });
  const names = { 'compare-patch-previous': 'Previous judged patch', 'compare-patch-next': 'Next judged patch',
    'compare-real-previous': 'Previous real patch', 'compare-real-next': 'Next real patch' };
  for (const id in names) document.getElementById(id)?.setAttribute('aria-label', names[id]);
};
element.addEventListener('input', event => {
  if (!event.target.matches('.sg-wipe input')) return;
  element.dataset.wipe = event.target.value;
  event.target.closest('.sg-wipe').style.setProperty('--wipe', event.target.value + '%');
});
// A new picture comes as a new element or as a new address of the one that is there.
new MutationObserver(apply).observe(element, {
  childList: true, subtree: true, attributes: true, attributeFilter: ['src', 'data-shown'],
});
apply();
"""
# What is exported arrives as a link; it is saved as a file at once, without a place on the server's disk.
EXPORT_SCRIPT = """
new MutationObserver(async () => {
  const link = element.querySelector('a[data-save]');
  if (!link) return;
  link.removeAttribute('data-save');
  const blob = await (await fetch(link.href)).blob();
  const saved = document.createElement('a');
  saved.href = URL.createObjectURL(blob);
  saved.download = link.download;
  saved.click();
  setTimeout(() => URL.revokeObjectURL(saved.href), 60000);
}).observe(element, { childList: true, subtree: true, attributes: true, attributeFilter: ['data-save'] });
"""


@dataclass(frozen=True)
class Viewer:
    """The two pictures, what chooses among them, and the table of patches."""

    mode: gr.Radio
    over: gr.Dropdown
    remap: gr.Radio
    stage: gr.HTML
    judged: gr.HTML
    real: gr.HTML
    steps: dict[str, tuple[gr.Button, gr.Button]]
    rows: gr.HTML


@dataclass(frozen=True)
class Charts:
    """The charts and tables, one tab each, and what chooses among them."""

    scope: gr.Radio
    axis: gr.Radio
    tab: gr.State
    histogram: gr.HTML
    laws: gr.HTML
    texture: gr.HTML
    spectrum: gr.HTML
    speckle: gr.HTML
    measures: gr.HTML
    sets: gr.HTML
    exports: dict[str, gr.Button]
    saved: gr.HTML

    def place(self, tab: str) -> gr.HTML:
        """The component that a tab is drawn into."""
        places = {"amplitude": self.histogram, "set": self.sets}
        component: gr.HTML = places.get(tab) or getattr(self, tab)
        return component

    def places(self) -> list[gr.HTML]:
        """Every component that drawing may change."""
        return [self.histogram, self.laws, self.texture, self.spectrum, self.speckle, self.measures, self.sets]


@dataclass(frozen=True)
class Compare:
    """The components of the tab. ``shown`` is ``{"key", "patch", "real"}``, or ``None``; the key is the shelf's."""

    form: CompareForm
    blank: gr.HTML
    result: gr.Column
    verdict: gr.HTML
    viewer: Viewer
    charts: Charts
    shown: gr.State


def build_compare(studio: Studio, generate: Generate, compare_tab: gr.Tab) -> None:
    """Build the tab; the runs and sets to choose from are read anew whenever the tab is opened."""
    settings = studio.settings
    with gr.Row(elem_id="compare"):
        form = build_form(settings)
        with gr.Column(elem_id="compare-result", min_width=320):
            blank = markup(html.EMPTY, elem_id="compare-blank")
            with gr.Column(visible=False, elem_id="compare-shown") as result:
                verdict = markup("", elem_id="compare-verdict")
                with gr.Row(elem_id="compare-split"):
                    viewer = _build_viewer()
                    charts = _build_charts()
    tab = Compare(form, blank, result, verdict, viewer, charts, gr.State(None))
    shelf = Shelf()
    dark = generate.judgement.dark
    form_events(form, settings)
    _list_events(tab, studio, compare_tab)
    _run_events(tab, generate.results.shown, studio, shelf)
    _view_events(tab, dark, settings, shelf)
    _chart_events(tab, dark, settings, shelf)
    _export_events(tab, shelf)


def _build_viewer() -> Viewer:
    with gr.Column(elem_classes=["sg-pane", "sg-viewer"], min_width=320):
        with gr.Row(elem_classes="sg-tools"):
            mode = gr.Radio(
                MODES, value="sides", label="View", show_label=False, container=False, scale=0, min_width=120,
                elem_id="compare-mode", elem_classes="sg-segments",
            )  # fmt: skip
            over = gr.Dropdown(
                SHOWN, value="picture", label="Shown", show_label=False, container=False, scale=1, min_width=110,
                elem_id="compare-over",
            )  # fmt: skip
            remap = gr.Radio(
                judged.REMAPS, value="linear", label="Display", show_label=False, container=False, scale=0,
                min_width=120, elem_id="compare-remap", elem_classes="sg-segments",
            )  # fmt: skip
        stage = markup("", js_on_load=STAGE_SCRIPT, elem_id="compare-stage")
        steps: dict[str, tuple[gr.Button, gr.Button]] = {}
        captions = {}
        with gr.Row(elem_classes="sg-captions"):
            for name in ("patch", "real"):
                with gr.Row(elem_classes="sg-caption"):
                    captions[name] = markup("", elem_id=f"compare-{name}")
                    steps[name] = (
                        gr.Button("‹", size="sm", min_width=26, scale=0, elem_id=f"compare-{name}-previous"),
                        gr.Button("›", size="sm", min_width=26, scale=0, elem_id=f"compare-{name}-next"),
                    )
        rows = markup("", js_on_load=ROWS_SCRIPT, elem_id="compare-rows")
    return Viewer(mode, over, remap, stage, captions["patch"], captions["real"], steps, rows)


def _build_charts() -> Charts:
    tab = gr.State("amplitude")
    with gr.Column(elem_classes=["sg-pane", "sg-analysis"], min_width=320):
        with gr.Row(elem_classes=["sg-tools", "sg-exports"]):
            scope = gr.Radio(
                SCOPES, value="all", label="Judged", show_label=False, container=False, scale=0, min_width=120,
                elem_id="compare-scope", elem_classes="sg-segments",
            )  # fmt: skip
            exports = {
                kind: gr.Button(text, size="sm", min_width=40, scale=0, elem_id=f"export-{kind}")
                for kind, text in (("html", "Report (HTML)"), ("json", "JSON"), ("csv", "CSV"))
            }
        saved = markup("", js_on_load=EXPORT_SCRIPT, elem_id="compare-saved")
        with gr.Tabs(elem_id="compare-charts", elem_classes="sg-subtabs", selected="amplitude"):
            with gr.Tab("Amplitude", id="amplitude") as amplitude_tab:
                histogram = markup("", elem_id="compare-histogram")
                axis = gr.Radio(
                    judged.AXES, value="linear", label="Axis", show_label=False, container=False,
                    elem_id="compare-axis", elem_classes=["sg-segments", "sg-axis"],
                )  # fmt: skip
                laws = markup("", elem_id="compare-laws")
            with gr.Tab("Texture", id="texture") as texture_tab:
                texture = markup("", elem_id="compare-texture")
            with gr.Tab("Spectrum", id="spectrum") as spectrum_tab:
                spectrum = markup("", elem_id="compare-spectrum")
            with gr.Tab("Speckle", id="speckle") as speckle_tab:
                speckle = markup("", elem_id="compare-speckle")
            with gr.Tab("Measures", id="measures") as measures_tab:
                measures = markup("", elem_id="compare-measures")
            with gr.Tab("Set", id="set") as set_tab:
                sets = markup("", js_on_load=ROWS_SCRIPT, elem_id="compare-sets")
    for each in (amplitude_tab, texture_tab, spectrum_tab, speckle_tab, measures_tab, set_tab):
        each.select(lambda chosen=each.id: chosen, None, tab, concurrency_limit=None, **QUIET)
    return Charts(scope, axis, tab, histogram, laws, texture, spectrum, speckle, measures, sets, exports, saved)


# ---- what can be chosen


def _list_events(tab: Compare, studio: Studio, compare_tab: gr.Tab) -> None:
    def lists(run: str, reference: str | None) -> tuple[Any, Any]:
        runs, sets = run_choices(studio), judged.reference_choices(studio.settings)
        known = [name for _, name in sets]
        chosen = reference if reference in known else (known[0] if known else None)
        return (
            gr.Dropdown(runs, value=run if run in {value for _, value in runs} else SHOWN_RUN),
            gr.Dropdown(sets, value=chosen),
        )

    fields = [tab.form.run, tab.form.reference]
    compare_tab.select(lists, fields, fields, concurrency_limit=None, **QUIET)


def run_choices(studio: Studio) -> list[tuple[str, str]]:
    """Return ``(what the user reads, folder)`` of the run on the Generate tab and of the newest runs on disk."""
    runs = [run for run in studio.store.list(limit=RUNS) if run.images]
    lines = [(" · ".join(run_caption(run).split("\n")[::-1]), str(run.folder)) for run in runs]
    return [("Shown in Generate", SHOWN_RUN), *lines]


# ---- comparing


def _run_events(tab: Compare, generated: gr.State, studio: Studio, shelf: Shelf) -> None:
    form = tab.form
    running: dict[str, threading.Event] = {}  # by page

    def compare(request: gr.Request, shown_run: dict[str, Any] | None, *values: Any) -> Iterator[dict[Any, Any]]:
        idle = {form.go: gr.Button(visible=True), form.stop: gr.Button(visible=False)}
        page = str(request.session_hash)
        stop = running[page] = threading.Event()
        started = time.monotonic()
        yield {
            form.status: html.busy("Starting", 0.0),
            form.go: gr.Button(visible=False),
            form.stop: gr.Button(visible=True),
        }
        try:
            question = read_form(values, shown_run)
            for item in comparing.follow(lambda say: answer(question, studio.settings, say), stop):
                seconds = time.monotonic() - started
                if isinstance(item, str):
                    yield {form.status: html.busy(item, seconds)}
                else:
                    yield {**compared(tab, shelf, item[0], views.duration(seconds)), **idle}
        except comparing.Stopped:
            yield {form.status: views.status("Stopped; nothing was changed.", "stopped"), **idle}
        except Exception as error:
            yield {form.status: views.status(told(error), "failed"), **idle}
        finally:
            if running.get(page) is stop:
                del running[page]

    def end(request: gr.Request) -> None:
        event = running.get(str(request.session_hash))
        if event is not None:
            event.set()

    outputs = [
        form.status, form.go, form.stop, tab.blank, tab.result, tab.verdict, tab.viewer.rows, tab.charts.scope,
        tab.shown,
    ]  # fmt: skip
    form.go.click(compare, [generated, *form.fields()], outputs, concurrency_limit=None, **QUIET)
    form.stop.click(end, None, None, queue=False, **QUIET)


def answer(question: Question, settings: Settings, say: Any) -> Comparison:
    """Read what is compared, and compare it.

    Raises:
        InputError: something cannot be read or compared.
    """
    from sar_gen.comparison import compare_patches

    say("Reading the reference")
    reference = real_set(question, settings)
    say("Reading the patches")
    if question.run is not None:
        patches = read_folder(question.run, None, settings.max_pixels)
    else:
        assert question.dropped is not None
        patches = comparing.read_dropped(question.dropped, "the judged files", settings, reference.scale)
    comparison = compare_patches(
        patches, reference, settings=settings, prompt=question.prompt, features=question.features, say=say
    )
    # Where the reference states a scale, the comparison itself warns of another one.
    if reference.scale is None and question.dropped is not None and comparing.pools_own_scale(question.dropped):
        comparison = replace(comparison, warnings=(*comparison.warnings, OWN_SCALE))
    return comparison


def real_set(question: Question, settings: Settings) -> ReferenceSet:
    """Return the reference set that is chosen or dropped."""
    if question.real is not None:
        return comparing.dropped_reference(question.real, settings)
    assert question.reference is not None
    return references.load_reference(question.reference, settings)


def compared(tab: Compare, shelf: Shelf, comparison: Comparison, seconds: str) -> dict[Any, Any]:
    """Return the page with a finished comparison: its worst patch is opened first."""
    count = len(comparison.patches)
    return {
        tab.form.status: views.status(f"Compared {count} patch{'es' if count != 1 else ''}", "done", None, seconds),
        tab.blank: gr.HTML(visible=False),
        tab.result: gr.Column(visible=True),
        tab.verdict: html.verdict(comparison),
        tab.viewer.rows: html.rows_table(comparison),
        tab.charts.scope: gr.Radio(value="all", visible=count > 1),
        tab.shown: {"key": shelf.put(comparison), "patch": comparison.rows[0].index, "real": 0},
    }


# ---- viewer


def _view_events(tab: Compare, dark: gr.Checkbox, settings: Settings, shelf: Shelf) -> None:
    viewer = tab.viewer

    def open_row(shown: dict[str, Any] | None, event: gr.EventData) -> Any:
        return {**shown, "patch": int(event.index)} if shown else gr.skip()

    def step_patch(shown: dict[str, Any] | None, step: int) -> Any:
        """Go up or down the table."""
        if not shown:
            return gr.skip()
        try:
            order = [row.index for row in shelf.get(shown["key"]).comparison.rows]
        except InputError as error:
            gr.Warning(told(error))
            return gr.skip()
        return {**shown, "patch": order[(order.index(shown["patch"]) + step) % len(order)]}

    def step_real(shown: dict[str, Any] | None, step: int) -> Any:
        return {**shown, "real": shown["real"] + step} if shown else gr.skip()

    for table in (viewer.rows, tab.charts.sets):
        table.row(open_row, tab.shown, tab.shown, concurrency_limit=None, **QUIET)
    for name, act in (("patch", step_patch), ("real", step_real)):
        for button, step in zip(viewer.steps[name], (-1, 1), strict=True):
            button.click(
                lambda shown, act=act, step=step: act(shown, step), tab.shown, tab.shown, concurrency_limit=None,
                **QUIET,
            )  # fmt: skip
    chosen = [viewer.remap, viewer.mode, viewer.over, dark]
    gr.on(
        [tab.shown.change, *(each.change for each in chosen)],
        lambda *values: stage(settings, shelf, *values),
        [tab.shown, *chosen],
        [viewer.stage, viewer.judged, viewer.real],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )


def stage(
    settings: Settings,
    shelf: Shelf,
    shown: dict[str, Any] | None,
    remap: judging.Remap,
    mode: comparing.Mode,
    over: str,
    dark: bool,
) -> tuple[Any, Any, Any]:
    """Return the two pictures under one remap, and their captions."""
    if not shown:
        return gr.skip(), gr.skip(), gr.skip()
    try:
        kept = shelf.get(shown["key"])
        comparison = kept.comparison
        patch = comparison.patches[shown["patch"]]
        real = comparing.real_beside(comparison.reference, shown["real"], settings)
        left, right = comparing.pictures(kept, shown["patch"], real, remap, over)
        scale = comparing.legend(over, dark)
    except Exception as error:
        return views.sentence(told(error), "warn"), "", ""
    picture = html.Picture(views.png_url(left), f"Judged patch {patch.name}")
    other = None
    if real is not None and right is not None:
        badge = "Stands in, from another set" if real.stands_in else ""
        other = html.Picture(views.png_url(right), f"Real patch {real.patch.name}", badge)
    height, width = patch.amplitude.shape
    two = html.wipe(picture, other, width / height) if mode == "wipe" and other else html.sides(picture, other)
    key = views.sentence(SHOWN_NOTES.get(over, ""))
    if scale is not None:
        key = f'<img class="sg-scale" src="{views.data_url("image/png", scale)}" alt="Colour scale of the map"/>'
    place = [row.index for row in comparison.rows].index(shown["patch"]) + 1
    return (
        f'<div data-shown="{shown["patch"]}">{two}{key}</div>',
        html.caption("generated", "Judged", patch, f"{place}/{len(comparison.patches)}"),
        html.real_caption(real),
    )


# ---- charts


def _chart_events(tab: Compare, dark: gr.Checkbox, settings: Settings, shelf: Shelf) -> None:
    charts = tab.charts

    def draw(shown: dict[str, Any] | None, scope: str, axis: judging.Axis, dark: bool, front: str) -> dict[Any, Any]:
        place = charts.place(front)
        if not shown:
            return {place: gr.skip()}
        try:
            kept = shelf.get(shown["key"])
            index = shown["patch"] if scope == "one" else None
            part = comparing.part(kept, index)
            drawn = {place: analysis(kept, index, axis, dark, front)}
            if front == "amplitude":
                drawn[charts.laws] = html.laws_table(part.fits, kept.comparison.reference_fits)
            if front == "speckle":
                real = comparing.real_beside(kept.comparison.reference, shown["real"], settings)
                drawn[place] += html.ratio_table(comparing.ratios_shown(kept, shown["patch"], real))
            return drawn
        except Exception as error:
            return {place: views.sentence(told(error), "warn")}

    # Only the tab in front is drawn; the drawings of a comparison are kept, so that going back costs nothing.
    gr.on(
        [tab.shown.change, charts.scope.change, charts.axis.change, charts.tab.change, dark.change],
        draw,
        [tab.shown, charts.scope, charts.axis, dark, charts.tab],
        charts.places(),
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )


def analysis(kept: comparing.Kept, index: int | None, axis: judging.Axis, dark: bool, front: str) -> str:
    """Return what a tab shows of all judged patches, or of patch ``index`` alone."""
    report = comparing.part(kept, index).report
    if front == "measures":
        said = "" if report is kept.comparison.report else f'<p class="sg-said">{escape(report.verdict)}</p>'
        return said + judged.table(report, "")
    if front == "set":
        return html.sets_table(kept.comparison.sets)
    pictures = ""
    for name, what in CHARTS[front]:
        try:
            png = comparing.chart(kept, index, name, axis, dark)
        except InputError as error:  # nothing to draw, as of constant patches; the rest of the tab still stands
            pictures += views.sentence(str(error), "warn")
            continue
        alt = f"{what}: judged and {kept.comparison.reference.title}"
        pictures += f'<img class="sg-figure" src="{views.data_url("image/png", png)}" alt="{escape(alt)}"/>'
    told_there = {name: report.measures[name] for name in MEASURES.get(front, ()) if name in report.measures}
    return pictures + (html.measures_table(told_there) if told_there else "")


# ---- exports


def _export_events(tab: Compare, shelf: Shelf) -> None:
    def export(kind: str, shown: dict[str, Any] | None, remap: judging.Remap) -> str:
        try:
            if not shown:
                raise InputError("There is nothing to export yet; compare first.")
            return exported(shelf.get(shown["key"]), kind, remap)
        except Exception as error:
            gr.Warning(told(error), title="Not exported")
            return ""

    for kind, button in tab.charts.exports.items():
        button.click(
            lambda *values, kind=kind: export(kind, *values), [tab.shown, tab.viewer.remap], tab.charts.saved,
            concurrency_limit=None, **QUIET,
        )  # fmt: skip


def exported(kept: comparing.Kept, kind: str, remap: judging.Remap = "linear") -> str:
    """Return a link that the page saves at once: ``html``, ``json`` or ``csv`` of the whole comparison.

    Args:
        kept: the comparison.
        kind: of the file.
        remap: under which the pictures of the HTML report are shown.
    """
    from sar_gen import comparison

    if kind == "json":
        text = json.dumps(comparison.to_json(kept.comparison), indent=1, allow_nan=False)
    elif kind == "csv":
        text = comparison.to_csv(kept.comparison)
    else:
        from sar_gen.report_html import html_document

        about = f"Compared with SAR studio on {time.strftime('%Y-%m-%d at %H:%M', time.localtime(kept.made))}."
        text = html_document(kept.comparison, remap=remap, about=about)
    media = {"json": "application/json", "csv": "text/csv", "html": "text/html"}[kind]
    address = views.data_url(media, text.encode())
    # The moment makes the link differ from the one before, so that the same file can be saved twice.
    return (
        f'<a data-save="{time.time()}" hidden download="{escape(file_name(kept, kind))}" href="{address}">{kind}</a>'
    )


def file_name(kept: comparing.Kept, kind: str) -> str:
    """Return what an export is called: the reference, and when the comparison was made."""
    name = re.sub(r"[^a-z0-9]+", "-", kept.comparison.reference.name.lower()).strip("-") or "reference"
    return f"sar-comparison_{name}_{time.strftime('%Y%m%d-%H%M%S', time.localtime(kept.made))}.{kind}"
