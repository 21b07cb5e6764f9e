"""The Library tab: every run on disk with a thumbnail; one click shows it, another opens it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sar_gen.errors import SarGenError
from sar_gen.runs import RunRecord
from sar_gen.studio import Studio
from sar_gen.ui import views
from sar_gen.ui.generate import QUIET, Generate, open_dropped, reopened, reopened_outputs
from sar_gen.ui.results import gallery_items, settings_used
from sar_gen.ui.theme import markup

SHOWN = 120
EMPTY = (
    '<div class="sg-blank"><h3>No runs yet</h3><p>Every patch that is generated is kept here, with the settings that '
    "made it.</p></div>"
)


def build_library(studio: Studio, tab: Generate, tabs: gr.Tabs, library_tab: gr.Tab) -> None:
    """Build the tab; the list is read anew whenever the tab is opened."""
    with gr.Row(elem_id="library"):
        with gr.Column(elem_classes=["sg-pane", "sg-runs"], scale=3):
            with gr.Row(elem_classes="sg-chartbar"):
                search = gr.Textbox(
                    label="Search",
                    show_label=False,
                    container=False,
                    placeholder="Search prompts, checkpoints, seeds",
                    elem_id="library-search",
                    scale=1,
                )
                summary = markup("", elem_id="library-summary")
            blank = markup(EMPTY)
            runs = gr.Gallery(
                format="png",
                show_label=False,
                columns=5,
                allow_preview=False,
                buttons=[],
                object_fit="cover",
                visible=False,
                interactive=False,
                elem_id="library-runs",
                elem_classes="sg-thumbs",
                height="auto",
            )
        with gr.Column(elem_classes=["sg-pane", "sg-run"], scale=2, min_width=320):
            drop = gr.File(
                label="Open a run: drop one of its PNGs or its run.json",
                elem_classes="sg-drop",
                file_types=[".png", ".json"],
                height=92,
                elem_id="library-drop",
            )
            line = markup("", elem_id="library-line")
            with gr.Column(visible=False) as details:
                patches = gr.Gallery(
                    format="png",
                    show_label=False,
                    columns=4,
                    allow_preview=False,
                    buttons=["download"],
                    object_fit="cover",
                    interactive=False,
                    elem_id="library-patches",
                    elem_classes="sg-thumbs",
                    height="auto",
                )
                open_ = gr.Button("Open in Generate", variant="primary", elem_id="library-open")
                settings = markup("")
    listed = gr.State([])
    chosen = gr.State("")

    def refresh(query: str | None) -> tuple[Any, ...]:
        records = matching([run for run in studio.store.list(limit=SHOWN) if run.images], query or "")
        items = [(str(run.images[0].view), caption(run)) for run in records]
        text = f"{len(records)} run{'s' if len(records) != 1 else ''} in {studio.settings.runs}" if records else ""
        return (
            gr.Gallery(items, visible=bool(items), selected_index=None),
            gr.HTML(visible=not items),
            views.sentence(text),
            [str(run.folder) for run in records],
        )

    def select(folders: Sequence[str], event: gr.SelectData) -> tuple[Any, ...]:
        folder = folders[int(event.index)]
        try:
            record = studio.store.open(Path(folder))
        except SarGenError as error:
            return gr.skip(), gr.skip(), gr.skip(), "", views.sentence(str(error), "warn")
        shown = gr.Gallery(gallery_items(record), selected_index=None)
        return gr.Column(visible=True), shown, settings_used(record, 0), folder, ""

    def reopen(folder: str) -> dict[Any, Any]:
        try:
            record = studio.store.open(Path(folder))
        except SarGenError as error:
            return {line: views.sentence(str(error), "warn")}
        return {**reopened(tab, studio, record, f"Opened run {record.id}"), tabs: gr.Tabs(selected="generate")}

    def dropped(path: str | None) -> dict[Any, Any]:
        if path is None:
            return {line: gr.skip()}
        update = open_dropped(tab, studio, Path(path))
        if tab.results.shown in update or tab.inputs.prompt in update:
            update[tabs] = gr.Tabs(selected="generate")
            return {**update, line: "", drop: None}
        return {line: update.get(tab.results.status, ""), drop: None}

    lists = [runs, blank, summary, listed]
    gr.on(
        [library_tab.select, search.change],
        refresh,
        search,
        lists,
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    runs.select(select, listed, [details, patches, settings, chosen, line], concurrency_limit=None, **QUIET)
    outputs = [*reopened_outputs(tab), tabs, line]
    open_.click(reopen, chosen, outputs, concurrency_limit=None, **QUIET)
    drop.upload(dropped, drop, [*outputs, drop], concurrency_limit=None, **QUIET)


def matching(records: Sequence[RunRecord], query: str) -> list[RunRecord]:
    """Return the runs that hold every word of ``query`` in prompt, checkpoint, id or seeds."""
    words = query.lower().split()

    def text(run: RunRecord) -> str:
        seeds = " ".join(str(image.seed) for image in run.images)
        return f"{run.request.prompt} {run.request.checkpoint} {run.id} {seeds}".lower()

    return [run for run in records if all(word in text(run) for word in words)]


def caption(run: RunRecord) -> str:
    """Return the line under a run's thumbnail."""
    when = run.created[5:16].replace("T", " ")
    count = f" · {len(run.images)} patches" if len(run.images) != 1 else ""
    return f"{run.request.prompt}\n{when}{count}"
