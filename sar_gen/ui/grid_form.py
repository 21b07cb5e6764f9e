"""The left column of the Grid tab: what varies, along which axis, and how long that will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sar_gen.axes import AXES, Axis, join_values, read_axis, suggested
from sar_gen.checkpoints import catalogue
from sar_gen.errors import InputError
from sar_gen.grids import AXES_NAMES, Plan
from sar_gen.request import MAX_GUIDES, GenerationRequest, Guide, default_steps, switches_for
from sar_gen.settings import Settings
from sar_gen.ui import views
from sar_gen.ui.choices import Choice, chosen_checkpoint
from sar_gen.ui.inputs import kept_of, read_form
from sar_gen.ui.theme import PICK, markup

NONE = "none"
FIRST = (("seed", "1..4"), ("strategy", ""), (NONE, ""))  # what a fresh page offers
FIELDS = tuple(f"grid_{name.lower()}{part}" for name in AXES_NAMES for part in ("", "_values"))
"""Names of the fields, for what the browser remembers."""
OWN_DEFAULTS = ("checkpoint", "strategy", "profile")
"""Axes along which steps and guidance are each cell's own, unless the form was changed."""


@dataclass(frozen=True)
class Row:
    """The components of one axis."""

    name: gr.Dropdown
    values: gr.Textbox
    words: gr.HTML


@dataclass(frozen=True)
class GridForm:
    """The components of the column. ``earlier`` is the list of grids on disk."""

    base: gr.HTML
    rows: tuple[Row, Row, Row]
    size: gr.HTML
    status: gr.HTML
    run: gr.Button
    resume: gr.Button
    stop: gr.Button
    earlier: gr.Dropdown

    def fields(self) -> list[Any]:
        """The components whose values are the axes, in the order of ``FIELDS``."""
        return [component for row in self.rows for component in (row.name, row.values)]


def build_form(settings: Settings) -> GridForm:
    """Build the column; at first seeds along the columns and the checkpoint's strategies along the rows."""
    rows = []
    asked = GenerationRequest("", checkpoint=settings.checkpoint)
    with gr.Column(elem_classes=["sg-pane", "sg-inputs"], elem_id="grid-inputs", min_width=240):
        with gr.Column(elem_classes="sg-scroll"):
            with gr.Column(elem_classes="sg-card"):
                markup('<p class="sg-line"><b>From Generate</b>: every cell is made with what stands there, but for '
                       "the axes below.</p>")  # fmt: skip
                base = markup("", elem_id="grid-base")
            with gr.Column(elem_classes="sg-card"):
                for title, (name, text) in zip(AXES_NAMES, FIRST, strict=True):
                    rows.append(_build_row(title, name, text or first_values(name, asked, settings)))
            with gr.Column(elem_classes="sg-card"):
                earlier = gr.Dropdown([], value=None, label="Open an earlier grid", elem_id="grid-earlier")
        with gr.Column(elem_classes="sg-act"):
            size = markup("", elem_id="grid-size")
            status = markup(views.status(""), js_on_load=PROGRESS_SCRIPT, elem_id="grid-status")
            run = gr.Button("Make the grid", variant="primary", elem_id="grid-run")
            resume = gr.Button("Make what is missing", visible=False, elem_id="grid-resume")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="grid-stop")
    return GridForm(base, (rows[0], rows[1], rows[2]), size, status, run, resume, stop, earlier)


# The status line tells how far the cell in the making is, and its preview; they are shown in its place.
PROGRESS_SCRIPT = """
const show = () => {
  const said = element.querySelector('[data-cell]');
  const place = document.querySelector('#grid-body .sg-cell.running .sg-pic');
  if (!said || !place) return;
  place.style.setProperty('--done', said.dataset.cell);
  const look = said.querySelector('img');
  if (look) place.style.backgroundImage = `url(${look.src})`;
};
new MutationObserver(show).observe(element, { childList: true, subtree: true, attributes: true });
"""


def _build_row(title: str, name: str, text: str) -> Row:
    slug = title.lower()
    with gr.Column(elem_classes="sg-axisrow"):
        chosen = Choice(axis_choices(0, title != AXES_NAMES[0]), value=name, label=title, elem_id=f"grid-{slug}")
        values = gr.Textbox(
            text, label=f"Values of {slug}", show_label=False, container=False, max_lines=3, lines=1,
            placeholder=hint(name), elem_id=f"grid-{slug}-values", visible=name != NONE,
        )  # fmt: skip
        words = markup("", js_on_load=PICK, elem_id=f"grid-{slug}-words")
    return Row(chosen, values, words)


def axis_choices(guides: int, optional: bool) -> list[tuple[str, str]]:
    """Return ``(title, name)`` of the axes that can be chosen.

    Args:
        guides: how many guides the request has.
        optional: whether the axis may be left out.
    """
    found = [("None", NONE)] if optional else []
    for name, kind in AXES.items():
        if name == "switch" or ((kind.guides or name == "strength") and not guides):
            continue
        found.append((kind.title, name))
        if kind.guides and guides > 1:
            numbers = range(1, min(guides, MAX_GUIDES) + 1)
            found += [(Axis(name, (), str(number)).title, f"{name}:{number}") for number in numbers]
    return found


def hint(name: str) -> str:
    """Return what values an axis takes, in a few words."""
    kind = AXES.get(name.partition(":")[0])
    if kind is None:
        return ""
    if kind.number is not None:
        return "1..4 or 1, 2, 5" if kind.number is int else "1, 1.5, 2 or 0..1/0.25"
    return f"{kind.help}, separated by commas"


def words(name: str, text: str, asked: GenerationRequest, settings: Settings) -> str:
    """Return values to choose from as buttons, for an axis whose values have names; those chosen are left out."""
    kind = AXES.get(name.partition(":")[0])
    if kind is None or kind.number is not None or name == "size":
        return ""
    offered = kind.suggest(asked, catalogue(settings))
    try:
        chosen = read_axis(name, text).values if text.strip() else ()
    except InputError:
        chosen = ()
    return views.chips([("", [word for word in offered if word not in chosen])], "word")


def appended(text: str, word: str) -> str:
    """Return a list of values with one more."""
    text = text.strip().rstrip(",").rstrip()
    return f"{text}, {join_values([word])}" if text else join_values([word])


def first_values(name: str, asked: GenerationRequest, settings: Settings) -> str:
    """Return the values to begin with when an axis is chosen: of names the first four."""
    text = suggested(name, asked, catalogue(settings))
    kind = AXES.get(name.partition(":")[0])
    if kind is None or not text or kind.number is not None:
        return text
    return join_values(list(map(str, read_axis(name, text).values[:4])))


def read_axes(values: Sequence[Any]) -> tuple[Axis, ...]:
    """Return the axes that the form describes.

    Args:
        values: of ``GridForm.fields``.

    Raises:
        InputError: none is chosen, pages are chosen without rows, or values cannot be read.
    """
    pairs = [(str(name or NONE), str(text or "")) for name, text in zip(values[::2], values[1::2], strict=True)]
    chosen = [(name, text) for name, text in pairs if name != NONE]
    if not chosen:
        raise InputError("No axis is chosen; choose what varies along the columns.")
    return tuple(read_axis(name, text) for name, text in chosen)


def read_plan(
    form: Mapping[str, Any], guides: tuple[Guide, ...], axes: tuple[Axis, ...], reference: str | None,
    settings: Settings,
) -> Plan:  # fmt: skip
    """Return the plan: Generate's form, with what each strategy has of its own left open where it was not changed.

    Raises:
        InputError: a number of the form is missing.
    """
    asked = read_form(form, guides)
    return Plan(left_open(asked, axes, settings), axes, reference, kept_of(form) if reference else None)


def left_open(asked: GenerationRequest, axes: Sequence[Axis], settings: Settings) -> GenerationRequest:
    """Return a request without the values that stand in the form only because its checkpoint has them.

    A grid of strategies shall show each as it was made to be used: Turbo with 4 steps beside a base with 20.
    """
    names = {axis.name for axis in axes}
    if not names & set(OWN_DEFAULTS):
        return asked
    spec = chosen_checkpoint(settings, asked.checkpoint, asked.strategy)
    changes: dict[str, Any] = {}
    if asked.steps == default_steps(spec, switches_for(spec, asked.profile or settings.profile)):
        changes["steps"] = None
    if asked.guidance == spec.guidance:
        changes["guidance"] = None
    if "checkpoint" in names and asked.width == asked.height == spec.resolution:
        changes |= {"width": None, "height": None}
    return dataclasses.replace(asked, **changes)
