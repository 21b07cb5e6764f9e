"""The left column of the Compare tab: what is judged, by which real ground, and what the values of files mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from sar_gen.errors import InputError
from sar_gen.patches import SUFFIXES
from sar_gen.settings import Settings
from sar_gen.ui import comparing, views
from sar_gen.ui import judgement as judged
from sar_gen.ui.comparing import TOLD, Dropped
from sar_gen.ui.generate import QUIET
from sar_gen.ui.theme import markup

SOURCES = [("Files", "files"), ("A run", "run")]
REFERENCES = [("A set", "set"), ("Files", "files")]
MEANINGS = [("As the studio wrote them", TOLD), *judged.MEANINGS]
JUDGED_SCALES = [
    ("One, of all these files", "pool"),
    ("The reference set's own", "reference"),
    ("Typed in", "given"),
]
REAL_SCALES = [("One, of all these files", "pool"), ("Typed in", "given")]
SHOWN_RUN = "shown"
DEFAULT_REFERENCE = "s1-forest"


@dataclass(frozen=True)
class FileInputs:
    """Components that take files and what their values mean."""

    files: gr.File
    folder: gr.UploadButton
    meaning: gr.Dropdown
    low: gr.Textbox
    high: gr.Textbox
    scale: gr.Dropdown
    mean: gr.Textbox
    std: gr.Textbox

    def fields(self) -> list[Any]:
        """The components in the order of ``dropped_of``."""
        return [self.files, self.meaning, self.low, self.high, self.scale, self.mean, self.std]


@dataclass(frozen=True)
class CompareForm:
    """The components of the column."""

    source: gr.Radio
    own_part: gr.Column
    own: FileInputs
    run_part: gr.Column
    run: gr.Dropdown
    against: gr.Radio
    set_part: gr.Column
    reference: gr.Dropdown
    real_part: gr.Column
    real: FileInputs
    prompt: gr.Textbox
    features: gr.Checkbox
    go: gr.Button
    stop: gr.Button
    status: gr.HTML

    def fields(self) -> list[Any]:
        """The components in the order of ``read_form``."""
        return [
            self.source, *self.own.fields(), self.run, self.against, self.reference, *self.real.fields(), self.prompt,
            self.features,
        ]  # fmt: skip


def build_form(settings: Settings) -> CompareForm:
    """Build the column."""
    sets = judged.reference_choices(settings)
    names = [name for _, name in sets]
    first = DEFAULT_REFERENCE if DEFAULT_REFERENCE in names else (names[0] if names else None)
    with gr.Column(elem_classes=["sg-pane", "sg-inputs"], elem_id="compare-inputs", min_width=240):
        with gr.Column(elem_classes="sg-scroll"):
            with gr.Column(elem_classes="sg-card"):
                source = gr.Radio(
                    SOURCES, value="files", label="Judge", elem_id="compare-source", elem_classes="sg-segments"
                )
                with gr.Column(elem_classes="sg-part") as own_part:
                    own = _build_files("judged", JUDGED_SCALES)
                with gr.Column(visible=False, elem_classes="sg-part") as run_part:
                    run = gr.Dropdown(
                        [("Shown in Generate", SHOWN_RUN)], value=SHOWN_RUN, label="Run", elem_id="compare-run"
                    )
            with gr.Column(elem_classes="sg-card"):
                against = gr.Radio(
                    REFERENCES, value="set", label="Real ground", elem_id="compare-against", elem_classes="sg-segments"
                )
                with gr.Column(elem_classes="sg-part") as set_part:
                    reference = gr.Dropdown(sets, value=first, label="Reference set", elem_id="compare-reference")
                with gr.Column(visible=False, elem_classes="sg-part") as real_part:
                    real = _build_files("real", REAL_SCALES)
            with gr.Accordion("SAR-CLIP", open=False, elem_classes="sg-card", elem_id="compare-clip"):
                prompt = gr.Textbox(
                    label="Prompt to agree with", lines=2, max_lines=4, elem_id="compare-prompt",
                    placeholder="what the patches should show (optional)",
                )  # fmt: skip
                features = gr.Checkbox(
                    False, label="Set statistics (SAR-CLIP features)", elem_id="compare-features",
                    info="distance, diversity, memorisation; half a second a patch",
                )  # fmt: skip
        with gr.Column(elem_classes="sg-act"):
            status = markup(views.status(""), elem_id="compare-status")
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="compare-stop")
    return CompareForm(
        source, own_part, own, run_part, run, against, set_part, reference, real_part, real, prompt, features, go,
        stop, status,
    )  # fmt: skip


def form_events(form: CompareForm, settings: Settings) -> None:
    """Show what belongs to each choice, and take folders and files that say what they are."""
    parts = (
        (form.source, "files", form.own_part),
        (form.source, "run", form.run_part),
        (form.against, "set", form.set_part),
        (form.against, "files", form.real_part),
    )
    for choice, value, part in parts:
        choice.change(
            lambda chosen, value=value: gr.Column(visible=chosen == value), choice, part, queue=False, **QUIET
        )
    for files in (form.own, form.real):
        _file_events(files, settings)


def _build_files(name: str, scales: Sequence[tuple[str, str]]) -> FileInputs:
    kinds = list(SUFFIXES)
    with gr.Column(elem_classes="sg-filebox"):
        files = gr.File(
            label="Patches", file_count="multiple", elem_classes="sg-drop", elem_id=f"{name}-files", file_types=kinds,
            height=76,
        )  # fmt: skip
        folder = gr.UploadButton(
            "Choose a folder…", file_count="directory", size="sm", min_width=60, elem_id=f"{name}-folder"
        )  # fmt: skip
    meaning = gr.Dropdown(MEANINGS, value=None, label="The values are", elem_id=f"{name}-meaning")
    with gr.Row(visible=False, elem_classes="sg-pair") as decibels:
        low = gr.Textbox(
            label="dB at grey 0", max_lines=1, placeholder="e.g. -25", min_width=60, elem_id=f"{name}-low"
        )
        high = gr.Textbox(
            label="dB at full scale", max_lines=1, placeholder="e.g. 0", min_width=60, elem_id=f"{name}-high"
        )
    scale = gr.Dropdown(
        list(scales), value="pool", label="Scale (mean + 3 deviations is 1)", visible=False, elem_id=f"{name}-scale"
    )
    with gr.Row(visible=False, elem_classes="sg-pair") as given:
        mean = gr.Textbox(label="Mean", max_lines=1, placeholder="e.g. 0.27", min_width=60, elem_id=f"{name}-mean")
        std = gr.Textbox(label="Deviation", max_lines=1, placeholder="e.g. 0.18", min_width=60, elem_id=f"{name}-std")

    def fit(value: str | None, chosen: str) -> tuple[Any, Any, Any]:
        scaled = value not in (None, TOLD, "studio")
        return (
            gr.Row(visible=value == "db"),
            gr.Dropdown(visible=scaled),
            gr.Row(visible=scaled and chosen == "given"),
        )

    gr.on([meaning.change, scale.change], fit, [meaning, scale], [decibels, scale, given], queue=False, **QUIET)
    return FileInputs(files, folder, meaning, low, high, scale, mean, std)


def _file_events(inputs: FileInputs, settings: Settings) -> None:
    def known(paths: list[str] | None) -> Any:
        """Choose the meaning where every file says it; drop that choice where they no longer do."""
        return TOLD if comparing.says_itself(comparing.usable(paths or []), settings) else gr.skip()

    def from_folder(paths: list[str] | None) -> tuple[Any, Any]:
        found = comparing.usable(paths or [])
        if not found:
            gr.Warning("The folder holds no PNG, TIFF, JPEG or NPY files; choose the folder of the patches.")
            return gr.skip(), gr.skip()
        return [str(path) for path in found], known([str(path) for path in found])

    inputs.files.upload(known, inputs.files, inputs.meaning, concurrency_limit=None, **QUIET)
    inputs.folder.upload(from_folder, inputs.folder, [inputs.files, inputs.meaning], concurrency_limit=None, **QUIET)


def dropped_of(
    files: list[str] | None, meaning: str | None, low: str, high: str, scale: str, mean: str, std: str
) -> Dropped:
    """Return what the file components hold."""
    return Dropped(tuple(map(Path, files or [])), meaning, low, high, scale, mean, std)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Question:
    """What is compared, as the form has it; nothing is read yet."""

    dropped: Dropped | None
    run: Path | None
    reference: str | None
    real: Dropped | None
    prompt: str | None
    features: bool


def read_form(values: Sequence[Any], shown_run: dict[str, Any] | None) -> Question:
    """Return the question that the form asks.

    Args:
        values: of ``CompareForm.fields``.
        shown_run: the run on the Generate tab, ``{"run", …}``, where there is one.

    Raises:
        InputError: something is missing.
    """
    source, *rest = values
    own, (run, against, reference), real, (prompt, features) = rest[:7], rest[7:10], rest[10:17], rest[17:]
    folder = None
    if source == "run":
        if run == SHOWN_RUN and not shown_run:
            raise InputError("There is no run in Generate yet; generate patches first, or choose another run.")
        folder = Path(shown_run["run"] if shown_run and run == SHOWN_RUN else run)
    elif not own[0]:
        raise InputError("There are no patches to judge; drop PNG, TIFF, JPEG or NPY files, or take a run.")
    if against == "set" and not reference:
        raise InputError("No reference set is chosen; choose one, or drop real patches.")
    if against == "files" and not real[0]:
        raise InputError("There are no real patches; drop at least two, or choose a reference set.")
    return Question(
        dropped=dropped_of(*own) if folder is None else None,
        run=folder,
        reference=reference if against == "set" else None,
        real=dropped_of(*real) if against == "files" else None,
        prompt=(prompt or "").strip() or None,
        features=bool(features),
    )
