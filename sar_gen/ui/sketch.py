"""The sketch: an editor with one brush a terrain class, chosen by name."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from sar_gen.guides import Palette, PaletteClass, load_palette
from sar_gen.ui.choices import on_choice
from sar_gen.ui.theme import PICK, markup

CANVAS = 512
SCENE = (
    "element.addEventListener('click', event => { const card = event.target.closest('[data-scene]');"
    " if (card) trigger('scene', { name: card.dataset.scene }); })"
)
"""Script of HTML with cards of unseen scenes: the event ``scene`` brings the name of the one that was clicked."""
BRUSH = 36


@dataclass(frozen=True)
class Sketch:
    """The components of the sketch tab; ``grounded`` is the event that laid new ground."""

    scenes: gr.HTML
    editor: gr.ImageEditor
    brushes: gr.HTML
    ground: gr.Dropdown
    view: gr.HTML
    grounded: Any


def build_sketch(scenes: str) -> Sketch:
    """Build the editor with the colours of the studio's palette, under the scenes to start from."""
    offered = markup(scenes, js_on_load=SCENE, elem_id="sketch-scenes")
    palette = load_palette()
    first = palette.classes[0]
    with gr.Row(elem_classes="sg-brushbar"):
        brushes = markup(brush_buttons(palette, first.name), js_on_load=PICK, elem_id="brushes")
        ground = gr.Dropdown(
            [(entry.label, entry.name) for entry in palette.classes],
            value=palette.classes[palette.background].name,
            label="Ground",
            elem_id="ground",
            scale=0,
            min_width=120,
        )
    editor = gr.ImageEditor(
        value=canvas(palette.classes[palette.background]), type="numpy", image_mode="RGB", format="png", sources=(),
        show_label=False, label="Sketch", brush=_brush(palette, first), eraser=gr.Eraser(default_size=BRUSH),
        canvas_size=(CANVAS, CANVAS), fixed_canvas=True, layers=False, transforms=(), buttons=[],
        elem_id="sketch-editor", height=500,
    )  # fmt: skip
    view = markup("", elem_id="sketch-view")

    def choose(event: gr.EventData) -> tuple[str, Any]:
        entry = _entry(palette, str(event.text))
        return brush_buttons(palette, entry.name), gr.ImageEditor(brush=_brush(palette, entry))

    brushes.pick(choose, None, [brushes, editor], queue=False, show_progress="hidden", api_visibility="private")
    grounded = on_choice(
        ground,
        lambda name: canvas(_entry(palette, name)),
        [],
        editor,
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )
    return Sketch(offered, editor, brushes, ground, view, grounded)


def brush_buttons(palette: Palette, chosen: str) -> str:
    """Return one button a class, with its colour and name."""
    buttons = "".join(
        f'<button type="button" class="sg-brush" data-text="{escape(entry.name)}" '
        f'aria-pressed="{"true" if entry.name == chosen else "false"}"><i style="background:{_hex(entry)}"></i>'
        f"{escape(entry.label)}</button>"
        for entry in palette.classes
    )
    return f'<div class="sg-brushes" role="group" aria-label="Brush">{buttons}</div>'


def canvas(ground: PaletteClass) -> dict[str, Any]:
    """Return an empty sketch on one kind of ground."""
    pixels: NDArray[np.uint8] = np.full((CANVAS, CANVAS, 3), ground.colour, dtype=np.uint8)
    return {"background": pixels, "layers": [], "composite": None}


def drawing(value: dict[str, Any] | None) -> NDArray[np.uint8] | None:
    """Return the editor's picture, uint8 ``(height, width, 3)``; ``None`` while the editor was never opened."""
    if not value:
        return None
    pixels = value.get("composite")
    pixels = value.get("background") if pixels is None else pixels
    return None if pixels is None else np.ascontiguousarray(pixels[..., :3])


def _entry(palette: Palette, name: str) -> PaletteClass:
    return next((entry for entry in palette.classes if entry.name == name), palette.classes[0])


def _brush(palette: Palette, chosen: PaletteClass) -> gr.Brush:
    return gr.Brush(
        default_size=BRUSH,
        colors=[_hex(entry) for entry in palette.classes],
        default_color=_hex(chosen),
        color_mode="fixed",
    )


def _hex(entry: PaletteClass) -> str:
    return "#{:02x}{:02x}{:02x}".format(*entry.colour)
