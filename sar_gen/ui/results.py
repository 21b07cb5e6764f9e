"""The middle column of the Generate tab: progress, the picture, the patches made so far and their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sar_gen.profiles import PROFILES
from sar_gen.request import IMAGE_TO_IMAGE, GenerationRequest, Guide
from sar_gen.runs import RunRecord
from sar_gen.ui import guide_views, views
from sar_gen.ui.guiding import KINDS
from sar_gen.ui.scenes import Scene
from sar_gen.ui.sketch import SCENE, Sketch, build_sketch
from sar_gen.ui.theme import markup

PRESET = (
    "element.addEventListener('click', event => { const card = event.target.closest('[data-preset]');"
    " if (card) trigger('preset', { name: card.dataset.preset }); })"
)


@dataclass(frozen=True)
class Results:
    """The components of the column. ``shown`` is ``{"run", "index"}`` of the patch on the stage, or ``None``."""

    tabs: gr.Tabs
    recover: gr.Button
    open: gr.UploadButton
    stage: gr.HTML
    status: gr.HTML
    note: gr.HTML
    gallery: gr.Gallery
    files: gr.Row
    png: gr.DownloadButton
    amplitude: gr.DownloadButton
    json: gr.DownloadButton
    replay: gr.Button
    details: gr.Accordion
    settings: gr.HTML
    sketch: Sketch
    sketch_tab: gr.Tab
    shown: gr.State


def build_results(presets: Sequence[dict[str, str]], scenes: Sequence[Scene]) -> Results:
    """Build the column in the state of before the first run."""
    unseen = guide_views.scene_cards(scenes)
    with gr.Column(elem_classes=["sg-pane", "sg-results"], elem_id="results", min_width=320):
        with gr.Row(elem_classes="sg-corner"):
            recover = gr.Button("Recover last run", size="sm", min_width=60, elem_id="recover")
            open_ = gr.UploadButton(
                "Open run…", file_types=[".png", ".json"], size="sm", min_width=60, elem_id="open-run"
            )
        with gr.Tabs(elem_id="stage-tabs", elem_classes="sg-subtabs", selected="result") as tabs:
            with gr.Tab("Result", id="result"):
                stage = markup(
                    views.invitation(presets, unseen),
                    js_on_load=f"{PRESET}; {SCENE}",
                    elem_id="stage",
                    elem_classes="sg-stage",
                )
                status = markup(views.status(""), elem_id="status")
                note = markup("", elem_id="note")
                gallery = gr.Gallery(
                    format="png",
                    show_label=False,
                    columns=6,
                    allow_preview=False,
                    buttons=[],
                    object_fit="cover",
                    visible=False,
                    elem_id="gallery",
                    elem_classes="sg-thumbs",
                    interactive=False,
                )
                with gr.Row(elem_classes="sg-files", visible=False) as files:
                    png = gr.DownloadButton("PNG", size="sm", min_width=60, elem_id="download-png")
                    amplitude = gr.DownloadButton("Float .npy", size="sm", min_width=60, elem_id="download-npy")
                    json = gr.DownloadButton("Run .json", size="sm", min_width=60, elem_id="download-json")
                    replay = gr.Button("Replay run", size="sm", min_width=60, elem_id="replay")
                with gr.Accordion(
                    "Settings used", open=True, visible=False, elem_classes="sg-card", elem_id="settings-used"
                ) as details:
                    used = markup("")
            with gr.Tab("Sketch", id="sketch", elem_id="sketch-tab") as sketch_tab:
                sketch = build_sketch(unseen)
    shown = gr.State(None)
    return Results(
        tabs, recover, open_, stage, status, note, gallery, files, png, amplitude, json, replay, details, used, sketch,
        sketch_tab, shown,
    )  # fmt: skip


def gallery_items(record: RunRecord) -> list[tuple[str, str]]:
    """Return the run's own PNG files with their seeds as captions; those that were chosen bear a star."""
    chosen = kept_places(record)
    stars = {image.index: "★ " if chosen and image.index in chosen else "" for image in record.images}
    return [(str(image.view), f"{stars[image.index]}seed {image.seed}") for image in record.images]


def kept_places(record: RunRecord) -> tuple[int, ...]:
    """Return the ``index`` of the patches that a best-of run kept, the nearest first; empty for others."""
    return tuple(record.selection["kept"]) if record.selection else ()


def show_run(results: Results, record: RunRecord, index: int) -> dict[Any, Any]:
    """Return what the column shows for patch ``index`` of a run; the tiles are redrawn by the change of ``shown``."""
    index = min(max(index, 0), len(record.images) - 1)
    image = record.images[index]
    return {
        results.gallery: gr.Gallery(gallery_items(record), selected_index=index, visible=True),
        results.files: gr.Row(visible=True),
        results.png: gr.DownloadButton(value=image.view),
        results.amplitude: gr.DownloadButton(value=image.amplitude_file),
        results.json: gr.DownloadButton(value=record.json_path),
        results.details: gr.Accordion(visible=True),
        results.settings: settings_used(record, index),
        results.shown: {"run": str(record.folder), "index": index, "count": len(record.images)},
    }


def settings_used(record: RunRecord, index: int) -> str:
    """Return what made a patch, as the run's JSON has it."""
    request, image = record.request, record.images[index]
    seconds = record.seconds.get("generate")
    guides = list(enumerate(request.guides, 1))
    rows = [
        ("Prompt", request.prompt),
        ("Negative", request.negative),
        ("Checkpoint", f"{record.checkpoint.get('title', request.checkpoint)} ({request.checkpoint})"),
        ("Strategy", str(record.checkpoint.get("strategy") or request.strategy or "")),
        ("Best of", record.selection["text"] if record.selection else ""),
        ("Seed", f"{image.seed} (run starts at {request.seed})"),
        ("Steps", f"{request.steps} · {request.scheduler} scheduler"),
        ("Guidance", f"{request.guidance:g}" if request.guidance is not None else ""),
        ("Speed", speed_used(request)),
        ("Size", f"{request.width} × {request.height} px"),
        *[(f"Guide {k}" if len(request.guides) > 1 else "Guide", guide_used(guide, request)) for k, guide in guides],
        ("Device", " ".join(str(value) for value in record.device.values())),
        ("Seconds", f"{seconds:.1f} for {len(record.images)} patches" if seconds else ""),
        ("Amplitude sha256", image.sha256),
        ("Run", record.id),
        ("Notices", " ".join(record.notices)),
    ]
    return views.properties(rows)


def speed_used(request: GenerationRequest) -> str:
    """Return the profile of a run, with the switches that were set otherwise."""
    if request.profile not in PROFILES:
        return str(request.profile or "")
    usual = dataclasses.asdict(PROFILES[request.profile].switches)
    other = [f"{name} {value}" for name, value in request.switches.items() if usual.get(name) != value]
    return ", ".join([PROFILES[request.profile].title, *other])


def guide_used(guide: Guide, request: GenerationRequest) -> str:
    """Return what a guide was, which way it went and the hash of its pixels."""
    if guide.way in (None, IMAGE_TO_IMAGE):
        how = f"image-to-image, strength {request.strength:g}"
    else:
        how = f"by {guide.way}, weight {guide.weight:g}, steps from {guide.start:.0%} to {guide.end:.0%}"
    return f"{KINDS[guide.kind]} ({guide.name}), {how} · sha256 {guide.sha256}"
