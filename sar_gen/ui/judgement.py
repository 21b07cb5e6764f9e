"""The right column of the Generate tab: a real patch beside the generated one, and how close the two sets are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sar_gen import references
from sar_gen.errors import InputError, SarGenError
from sar_gen.patches import PixelMeaning
from sar_gen.quality.report import Measure, QualityReport
from sar_gen.quality.wording import meaning_of, number, reading, title_of, verdict_class
from sar_gen.settings import Settings
from sar_gen.ui import judging, views
from sar_gen.ui.theme import markup

REMAPS = [("Linear", "linear"), ("dB", "db"), ("Density", "density")]
AXES = [("Linear", "linear"), ("Log", "log"), ("dB", "db")]
SCOPES = [("This patch", "one"), ("All patches", "all")]
MEANINGS = [
    ("Studio amplitude, 0 to 1", "studio"),
    ("Linear amplitude", "amplitude"),
    ("Intensity (power)", "intensity"),
    ("Decibels", "db"),
]
DEFAULT_REFERENCE = "s1-gorge"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
CHARTS = {
    "amplitude": "Histogram of amplitudes",
    "texture": "Texture descriptors",
    "spectrum": "Power spectra",
    "speckle": "Autocorrelation of speckle",
}
TEXTURES = [("Means", "means"), ("By direction", "directions")]


@dataclass(frozen=True)
class Judgement:
    """The components of the column. ``front`` is the chart in front, ``scored`` changes when a prompt was scored."""

    reference: gr.Dropdown
    remap: gr.Radio
    real: gr.HTML
    previous: gr.Button
    next: gr.Button
    real_index: gr.State
    scope: gr.Radio
    verdict: gr.HTML
    axis: gr.Radio
    texture_kind: gr.Radio
    windows: gr.Checkbox
    histogram: gr.HTML
    texture: gr.HTML
    spectrum: gr.HTML
    speckle: gr.HTML
    table: gr.HTML
    score: gr.Button
    score_line: gr.HTML
    scored: gr.State
    charts: gr.Column
    front: gr.State
    dark: gr.Checkbox


def build_judgement(settings: Settings) -> Judgement:
    """Build the column; the first real patch is drawn when the page loads."""
    choices = reference_choices(settings)
    names = [value for _, value in choices]
    value = DEFAULT_REFERENCE if DEFAULT_REFERENCE in names else (names[0] if names else None)
    with gr.Column(elem_classes=["sg-pane", "sg-judgement"], elem_id="judgement", min_width=320):
        with gr.Row(elem_classes="sg-tools"):
            reference = gr.Dropdown(
                choices, value=value, label="Reference", show_label=False, container=False, scale=3,
                elem_id="reference", min_width=150,
            )  # fmt: skip
            remap = gr.Radio(
                REMAPS, value="linear", label="Display", show_label=False, container=False, scale=0, min_width=160,
                elem_id="remap", elem_classes="sg-segments",
            )  # fmt: skip
        real = markup(views.empty_tile("real", "", "", "Real"), elem_id="real-tile", elem_classes="sg-stage")
        with gr.Row(elem_classes="sg-step"):
            previous = gr.Button("‹", size="sm", min_width=26, scale=0, elem_id="real-previous")
            next_ = gr.Button("›", size="sm", min_width=26, scale=0, elem_id="real-next")
        verdict = markup(waiting(), elem_id="verdict")
        with gr.Column(visible=False, elem_classes="sg-charts") as charts:
            scope = gr.Radio(
                SCOPES, value="one", label="Judged", show_label=False, container=False, elem_id="scope",
                elem_classes=["sg-segments", "sg-scope"],
            )  # fmt: skip
            with gr.Tabs(elem_id="chart-tabs", elem_classes="sg-subtabs", selected="amplitude"):
                tabs = {}
                with gr.Tab("Amplitude", id="amplitude") as tabs["amplitude"]:
                    histogram = markup("", elem_id="histogram")
                    axis = _choice(AXES, "Axis", "axis")
                with gr.Tab("Texture", id="texture") as tabs["texture"]:
                    texture = markup("", elem_id="texture")
                    texture_kind = _choice(TEXTURES, "Texture", "texture-kind")
                with gr.Tab("Spectrum", id="spectrum") as tabs["spectrum"]:
                    spectrum = markup("", elem_id="spectrum")
                with gr.Tab("Speckle", id="speckle") as tabs["speckle"]:
                    speckle = markup("", elem_id="speckle")
                    windows = gr.Checkbox(
                        False, label="Outline the homogeneous ground on both pictures", container=False,
                        elem_id="windows",
                    )  # fmt: skip
                with gr.Tab("Measures", id="measures") as tabs["measures"]:
                    score = gr.Button("Score the prompt (SAR-CLIP)", size="sm", elem_id="score-prompt", visible=False)
                    score_line = markup("", elem_id="score-line")
                    table = markup("", elem_id="measures")
        with gr.Accordion("Use my own patches as reference", open=False, elem_classes="sg-card", elem_id="own"):
            _build_upload(reference, settings)
        # Read by the redraw handlers; the page's script sets it, because only the browser knows the colours in use.
        dark = gr.Checkbox(False, visible="hidden", elem_id="dark-figures", label="Dark figures")
    real_index = gr.State(0)
    for button, step in ((previous, -1), (next_, 1)):
        button.click(
            lambda index, step=step: index + step, real_index, real_index, queue=False, api_visibility="private"
        )
    front = gr.State("amplitude")
    for name, tab in tabs.items():
        tab.select(lambda name=name: name, None, front, concurrency_limit=None, **QUIET)
    return Judgement(
        reference, remap, real, previous, next_, real_index, scope, verdict, axis, texture_kind, windows, histogram,
        texture, spectrum, speckle, table, score, score_line, gr.State(0), charts, front, dark,
    )  # fmt: skip


def _choice(choices: list[tuple[str, str]], label: str, elem_id: str) -> gr.Radio:
    """Return a choice under a chart; the first one is chosen."""
    return gr.Radio(
        choices, value=choices[0][1], label=label, show_label=False, container=False, elem_id=elem_id,
        elem_classes=["sg-segments", "sg-axis"],
    )  # fmt: skip


def _build_upload(reference: gr.Dropdown, settings: Settings) -> None:
    markup(views.sentence("PNG (8 or 16 bit), TIFF or NPY. One scale is taken for the whole set, never one a patch."))
    files = gr.File(
        label="Patches", file_count="multiple", height=84, elem_classes="sg-drop", elem_id="own-files",
        file_types=[".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg"],
    )  # fmt: skip
    with gr.Row(elem_classes="sg-pair"):
        meaning = gr.Dropdown(
            MEANINGS, value="amplitude", label="The values are", min_width=120, elem_id="own-meaning"
        )
        name = gr.Textbox(label="Name", placeholder="my-forest", max_lines=1, min_width=100, elem_id="own-name")
    add = gr.Button("Add reference set", size="sm", elem_id="own-add")
    line = markup("", elem_id="own-line")

    def add_set(paths: list[str] | None, kind: str, title: str) -> tuple[Any, str]:
        try:
            info = add_uploaded(paths or [], kind, title, settings)
        except SarGenError as error:
            return gr.skip(), views.sentence(str(error), "warn")
        text = f"{info.title}: {info.count} patch{'es' if info.count != 1 else ''} added."
        return gr.Dropdown(reference_choices(settings), value=info.name), views.sentence(text)

    add.click(add_set, [files, meaning, name], [reference, line], api_visibility="private")


def add_uploaded(paths: Sequence[str], kind: str, name: str, settings: Settings) -> references.ReferenceInfo:
    """Add uploaded files as a reference set of the user's own.

    Raises:
        InputError: no file, no name, or a file that cannot be used.
    """
    if not paths:
        raise InputError("There is no file yet; drop at least two real patches.")
    if not name.strip():
        raise InputError("The set has no name; type one, for example my-forest.")
    meaning = PixelMeaning(encoding=kind, scale=None if kind == "studio" else "pool")  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        for path in map(Path, paths):
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        return references.add_reference(Path(folder), name.strip(), meaning, settings, copy=True)


def reference_choices(settings: Settings) -> list[tuple[str, str]]:
    """Return ``(title with the number of patches, name)`` of every reference set."""
    return [(f"{info.title} · {info.count}", info.name) for info in references.list_references(settings)]


def waiting() -> str:
    """Return what stands in the verdict's place before there is anything to judge."""
    return (
        '<div class="sg-verdict none"><p>Generate a patch to see how close it comes to this real ground: amplitudes, '
        "texture and looks, each beside what two sets of real patches differ by.</p></div>"
    )


def verdict(report: QualityReport, warnings: Sequence[str] = ()) -> str:
    """Return the verdict sentence, coloured by what is beyond the real spread, with its notes."""
    count = f"{report.generated_count} generated · {report.reference_count} real"
    lines = "".join(views.sentence(text, "warn") for text in warnings)
    return (
        f'<div class="sg-verdict {verdict_class(report)}" role="status"><p>{escape(report.verdict)}</p>{lines}'
        f"<small>{escape(count)}</small></div>"
    )


def table(report: QualityReport, link: str) -> str:
    """Return the measures: value, real-versus-real floor with the interval of 95 %, their ratio, and in words."""
    rows = "".join(_row(name, measure) for name, measure in report.measures.items())
    notes = "".join(views.sentence(note) for note in report.notes)
    return (
        '<table class="sg-measures"><thead><tr><th scope="col">Measure</th><th scope="col">Value</th>'
        '<th scope="col" title="what two samples of real SAR differ by: median, and the interval that holds 95 %">'
        'Floor (95 %)</th><th scope="col" title="value divided by floor">Ratio</th><th scope="col">Reading</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>{notes}{f'<p>{link}</p>' if link else ''}"
    )


def _row(name: str, measure: Measure) -> str:
    ratio = "–" if measure.ratio is None else f"{measure.ratio:.2f}"
    floor = number(measure.floor)
    if measure.interval is not None:
        floor += f"<small>{' – '.join(map(number, measure.interval))}</small>"
    kind, words = reading(measure)
    unit = f' title="{escape(measure.unit)}"' if measure.unit else ""
    return (
        f'<tr><th scope="row" title="{escape(meaning_of(name))}">{escape(title_of(name))}</th>'
        f'<td{unit}>{number(measure.value)}</td><td>{floor}</td><td class="{kind}">{ratio}</td>'
        f'<td class="{kind}">{escape(words)}</td></tr>'
    )


def real_tile(real: judging.RealPatch | None, address: str) -> str:
    """Return the real patch with where it comes from."""
    if real is None:
        return views.empty_tile("real", "No picture", "<p>Only the statistics of this set ship.</p>", "Real")
    height, width = real.patch.amplitude.shape
    badge = "This set ships as statistics; a patch of another set is shown" if real.stands_in else ""
    aside = f"{width} × {height} px · {real.index + 1}/{real.count} · {real.patch.name} · {real.set_title}"
    return views.tile(
        address, role="real", title="Real", aside=aside, alt=f"Real SAR patch {real.patch.name}", badge=badge
    )
