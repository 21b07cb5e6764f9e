"""The card "Guide" of the left column: where a guide comes from, how it is read, and the guides beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sar_gen import palettes
from sar_gen.request import DEFAULT_STRENGTH, IMAGE_TO_IMAGE
from sar_gen.ui.choices import ONLY_WAY, Choice
from sar_gen.ui.guiding import PALETTES, SOURCES, UPLOAD_KINDS, Listed
from sar_gen.ui.theme import PICK, markup

FILE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".npy"]
GUIDE_FORM = ("guide", "guide_kind", "palette", "way", "weight", "start", "end", "strength")


@dataclass(frozen=True)
class GuideCard:
    """The components of the card; those named in ``GUIDE_FORM`` are remembered and sent.

    Attributes:
        guide: where the guide comes from.
        options: all that a guide needs, hidden without one.
        upload: what a guide from a file needs.
        guide_kind: what the file shows.
        palette: of a class map.
        legend: of that palette.
        guide_file: the file.
        runs: what a guide from a past run needs.
        picks: patches of past runs.
        picked: the ``Picked`` one, or ``None``.
        view: what is really used.
        way: the network that reads the guide, or image-to-image.
        way_line: what that means.
        pull: brings a network's files.
        strength: of image-to-image.
        steering: the three sliders of a network.
        weight: of what the network adds.
        start: share of the steps before it sets in.
        end: share of the steps after which it ends.
        resize: takes the guide's size for the scene.
        size_line: what that size means.
        add: keeps this guide and makes room for another one.
        rows: the guides that were added.
        listed: these guides, ``Listed``.
        conflict: why the guides cannot go together.
        filled: changes when values were filled in by the studio, so that the card is described anew.
    """

    guide: gr.Radio
    options: gr.Column
    upload: gr.Column
    guide_kind: gr.Dropdown
    palette: gr.Dropdown
    legend: gr.HTML
    guide_file: gr.File
    runs: gr.Column
    picks: gr.HTML
    picked: gr.State
    view: gr.HTML
    way: Choice
    way_line: gr.HTML
    pull: gr.Button
    strength: gr.Slider
    steering: gr.Column
    weight: gr.Slider
    start: gr.Slider
    end: gr.Slider
    resize: gr.Button
    size_line: gr.HTML
    add: gr.Button
    rows: gr.HTML
    listed: gr.State
    conflict: gr.HTML
    filled: gr.State


def build_guide_card() -> GuideCard:
    """Build the card without a guide."""
    with gr.Column(elem_classes="sg-card", elem_id="guide-card"):
        guide = gr.Radio(SOURCES, value="none", label="Guide", elem_id="guide", elem_classes="sg-segments")
        with gr.Column(visible=False, elem_classes="sg-part") as options:
            with gr.Column(visible=False, elem_classes="sg-part") as upload:
                guide_kind = gr.Dropdown(UPLOAD_KINDS, value="map", label="The image shows", elem_id="guide-kind")
                palette = gr.Dropdown(PALETTES, value=palettes.AUTO, label="Its classes are", elem_id="guide-palette")
                guide_file = gr.File(
                    label="Guide image", elem_classes="sg-drop", file_types=FILE_TYPES, height=72, elem_id="guide-file"
                )
                legend = markup("", elem_id="guide-legend")
            with gr.Column(visible=False, elem_classes="sg-part") as runs:
                picks = markup("", js_on_load=PICK, elem_id="guide-picks")
            view = markup("", elem_id="guide-view")
            way = Choice(ONLY_WAY, value=IMAGE_TO_IMAGE, label="Read by", visible=False, elem_id="guide-way")
            way_line = markup("", elem_id="guide-way-line")
            pull = gr.Button("Download this network", size="sm", visible=False, elem_id="guide-pull")
            strength = _slider(
                0.05, 1, DEFAULT_STRENGTH, "Strength", "guide-strength", info="low keeps the guide, high redraws it"
            )
            with gr.Column(visible=False, elem_classes="sg-part") as steering:
                weight = _slider(0, 2, 1, "Weight", "guide-weight")
                with gr.Row(elem_classes="sg-pair"):
                    start = _slider(0, 1, 0, "Start", "guide-start")
                    end = _slider(0, 1, 1, "End", "guide-end")
            resize = gr.Button("Use the guide's size", size="sm", visible=False, elem_id="guide-size")
            size_line = markup("", elem_id="guide-size-line")
            add = gr.Button("Add another guide", size="sm", visible=False, elem_id="guide-add")
        rows = markup("", js_on_load=PICK, elem_id="guide-rows")
        conflict = markup("", elem_id="guide-conflict")
    picked, listed, filled = gr.State(None), gr.State(Listed()), gr.State(0.0)
    guide.change(shown_parts, guide, [options, upload, runs], queue=False, show_progress="hidden")
    return GuideCard(
        guide, options, upload, guide_kind, palette, legend, guide_file, runs, picks, picked, view, way, way_line,
        pull, strength, steering, weight, start, end, resize, size_line, add, rows, listed, conflict, filled,
    )  # fmt: skip


def shown_parts(source: str) -> tuple[Any, Any, Any]:
    """Return what of the card is shown for a source: the options, those of a file, those of a past run."""
    return (
        gr.Column(visible=source != "none"),
        gr.Column(visible=source == "image"),
        gr.Column(visible=source == "run"),
    )


def _slider(low: float, high: float, value: float, label: str, elem_id: str, info: str | None = None) -> gr.Slider:
    return gr.Slider(
        low, high, value=value, step=0.05, label=label, info=info, buttons=[], min_width=60, elem_id=elem_id
    )
