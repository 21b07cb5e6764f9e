"""The Grid tab without a page: what is read of its form, what is said and drawn."""

from __future__ import annotations

import dataclasses
import re

import gradio as gr
import numpy as np
import pytest

from sar_gen import grids
from sar_gen.axes import parse_axis
from sar_gen.errors import InputError
from sar_gen.grids import CellEvent, Made
from sar_gen.request import GenerationRequest, Loading, Preview, Queued, Saved, Step
from sar_gen.settings import Settings
from sar_gen.ui import grid as tab
from sar_gen.ui import grid_form, grid_views, memory
from sar_gen.ui.grid_form import NONE
from sar_gen.ui.inputs import FORM, form_of
from tests.test_grid_export import ATTACK, grid_of

REQUEST = GenerationRequest("a SAR image of a mountain gorge", steps=20, guidance=2.0, width=256, height=256)


@pytest.fixture
def settings(tmp_path):
    return dataclasses.replace(Settings(), home=tmp_path / "home", runs=tmp_path / "runs")


@pytest.fixture
def grid(tmp_path):
    """Three columns, two rows; figures grow from 0.5 by 1, cell by cell."""
    return grid_of(tmp_path / "runs" / "one-grid", "seed=1..3", "guidance=1,2")


def places(html):
    return re.findall(r'data-place="([^"]+)"', html)


# ---- the form


def test_axes_are_read_and_those_left_out_are_passed_over():
    axes = grid_form.read_axes(["seed", "1..4", NONE, "left from before", "strategy", "base, turbo"])
    assert axes == (parse_axis("seed=1..4"), parse_axis("strategy=base,turbo"))
    with pytest.raises(InputError, match="No axis is chosen"):
        grid_form.read_axes([NONE, "", None, None, NONE, ""])
    with pytest.raises(InputError, match="not a whole number"):
        grid_form.read_axes(["seed", "one", NONE, "", NONE, ""])


def test_a_strategy_keeps_its_own_steps_unless_the_form_was_changed(settings):
    from sar_gen import checkpoints

    spec = checkpoints.catalogue(settings)["sar-mini"]
    asked = dataclasses.replace(REQUEST, steps=spec.steps, guidance=spec.guidance, profile="exact")
    strategies = (parse_axis("strategy=base,turbo"),)
    assert grid_form.left_open(asked, strategies, settings) == dataclasses.replace(asked, steps=None, guidance=None)
    assert grid_form.left_open(asked, (parse_axis("seed=1,2"),), settings) == asked
    changed = dataclasses.replace(asked, steps=spec.steps + 1, guidance=spec.guidance + 0.5)
    assert grid_form.left_open(changed, strategies, settings) == changed
    others = grid_form.left_open(asked, (parse_axis("checkpoint=sar-mini,sar-mini-turbo"),), settings)
    assert (others.steps, others.width, others.height) == (None, None, None)


def test_axes_of_guides_are_offered_where_there_are_guides():
    names = [[name for _, name in grid_form.axis_choices(guides, optional=True)] for guides in (0, 1, 2)]
    assert names[0][0] == NONE
    assert not any(name.startswith("guide") or name == "strength" for name in names[0])
    assert "guide-weight" in names[1]
    assert "guide-weight:2" not in names[1]
    assert {"guide-weight", "guide-weight:1", "guide-weight:2", "guide-end:2"} <= set(names[2])
    assert NONE not in [name for _, name in grid_form.axis_choices(0, optional=False)]


def test_words_are_offered_until_they_are_chosen(settings):
    html = grid_form.words("strategy", "base", REQUEST, settings)
    assert re.findall('data-text="([^"]+)"', html) == ["vae-decoder", "turbo"]
    assert grid_form.words("seed", "1..4", REQUEST, settings) == ""
    assert grid_form.appended("base, ", "turbo") == "base, turbo"
    assert grid_form.appended("", "gorge, deep") == '"gorge, deep"'
    assert grid_form.first_values("strategy", REQUEST, settings) == "base, vae-decoder, turbo"
    assert grid_form.first_values(NONE, REQUEST, settings) == ""


def test_the_axes_are_remembered(settings):
    names = [*FORM, *grid_form.FIELDS]
    fields = ["guide-weight:2", "0..1/0.5", "strategy", "base, turbo", NONE, ""]
    defaults = form_of(REQUEST) | dict(zip(grid_form.FIELDS, ["seed", "1..4", NONE, "", NONE, ""], strict=True))
    saved = {"version": memory.VERSION, "form": form_of(REQUEST) | dict(zip(grid_form.FIELDS, fields, strict=True))}
    assert memory.restored(saved, names, defaults, settings)[-6:] == fields
    saved["form"]["grid_columns"] = "gone"
    assert memory.restored(saved, names, defaults, settings)[-6] == gr.skip()


def test_what_a_grid_costs_is_said_before_it_starts():
    assert "<b>12 cells</b> (4 × 3) · about 27 s" in grid_views.size_line(4, 3, 1, 27.2)
    assert "(2 × 1 × 3) · time unknown" in grid_views.size_line(2, 1, 3, None)
    assert "<b>1 cell</b>" in grid_views.size_line(1, 1, 1, 1.0)


# ---- the grid


def test_pictures_are_files_that_are_sent_once(grid):
    html = grid_views.body(grid, "nearness", grid_views.PLANNED, 0)
    assert "data:" not in html
    for place in grid.cells:
        assert f'src="gradio_api/file={grid.picture(place)}"' in html
    assert len(html) < 6 * 1000


def test_cells_wait_run_fail_and_are_selected(grid):
    grid.made[0, 0, 0] = grids.WAITING
    grid.made[1, 0, 0] = Made("failed", message=f"Too little memory {ATTACK}")
    grid.made[2, 0, 0] = grids.WAITING
    html = grid_views.body(grid, "nearness", grid_views.PLANNED, 0, running=(2, 0, 0), selected=(0, 1, 0))
    assert re.findall('class="sg-cell ([a-z ]+)"', html) == [
        "waiting", "failed", "running", "done selected", "done", "done",
    ]  # fmt: skip
    assert "<img src=x" not in html
    assert places(html) == ["0-1-0", "1-1-0", "2-1-0"]
    assert grid_views.place_of("2-1-0") == (2, 1, 0)
    assert "3 of 6 cells, 1 failed" in grid_views.heading(grid, 0)


def test_a_grid_is_sorted_by_its_means_or_as_a_ranking(grid):
    grid.made[2, 1, 0] = dataclasses.replace(
        grid.made[2, 1, 0], measures={"enl": {"value": 1.0, "floor": 10.0, "ratio": 0.1}}
    )
    # figures: 0.5 1.5 2.5 / 3.5 4.5 -; column means 2, 3, 2.5
    planned, best = (grid_views.body(grid, "nearness", sort, 0) for sort in (grid_views.PLANNED, grid_views.BEST))
    assert places(planned) == ["0-0-0", "1-0-0", "2-0-0", "0-1-0", "1-1-0", "2-1-0"]
    assert places(best) == ["0-0-0", "2-0-0", "1-0-0", "0-1-0", "2-1-0", "1-1-0"]
    assert re.findall('mean of its cells">([^<]+)', best) == ["2.00 ×", "2.50 ×", "3.00 ×", "1.50 ×", "4.00 ×"]
    assert places(grid_views.body(grid, "nearness", grid_views.LIST, 0)) == [
        "0-0-0",
        "1-0-0",
        "2-0-0",
        "0-1-0",
        "1-1-0",
    ]
    assert "No cell has this measure" in grid_views.body(grid, "spectrum", grid_views.LIST, 0)


def test_details_tell_value_floor_and_ratio(grid):
    html = grid_views.details(grid, (1, 0, 0), "wasserstein1")
    row = re.search("<tr class=chosen>(.*?)</tr>", html)
    assert row is not None
    assert [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td>(.*?)</td>", row[1])] == ["0.03", "0.02", "1.50 ×"]
    assert grid.made[1, 0, 0].images[0]["sha256"][:16] in html
    assert "It is noise." in html


def test_the_legend_is_there_only_for_figures(grid):
    assert "1 × floor" in grid_views.legend(grid, "nearness")
    for place, one in grid.made.items():
        grid.made[place] = dataclasses.replace(one, measures={})
    assert grid_views.legend(grid, "nearness") == ""
    assert "seed 0" in grid_views.body(grid, "nearness", grid_views.PLANNED, 0)


def test_every_measure_of_a_report_can_be_chosen():
    names = [name for _, name in grid_views.MEASURES]
    assert names[:2] == ["nearness", "wasserstein1"]
    assert {"semantic", "enl", "spectrum_direction", "js_divergence"} <= set(names)
    assert len(names) == len(set(names))


# ---- progress


def test_the_status_line_tells_what_the_cell_does(grid):
    cell = grid.cells[0, 0, 0]

    def line(event, share=0.5):
        return tab.cell_line("Cell 2 of 6", CellEvent(cell, event, share), 0.0)

    step = line(Step(step=1, steps=4, first=1, size=1, count=2, seconds=1.0, eta=1.0))
    assert "Cell 2 of 6 · step 1 of 4" in step
    assert 'data-cell="0.625"' in step  # one patch and a quarter of two
    assert 'aria-valuenow="50"' in step
    assert "left" in step
    assert "waiting: 2 requests before it" in line(Queued(2))
    assert "Loading it" in line(Loading("Loading it"))
    assert 'src="data:image/png' in line(Preview(0, np.zeros((4, 4), np.float32)))
    assert line(Preview(1, np.zeros((4, 4), np.float32))) == "", "another patch than the one that is shown"
    assert line(Saved(0, 1, grid.folder, grid.folder, "")) == ""


def test_nothing_is_drawn_of_a_grid_that_has_gone(grid):
    with pytest.raises(InputError, match="no grid yet"):
        tab.open_shown(None)
    shown = tab.as_shown(grid, (1, 0, 0))
    assert shown != tab.as_shown(grid, (1, 0, 0)), "so that the change draws it"
    assert tab.open_shown(shown).made.keys() == grid.made.keys()
    (grid.folder / "grid.json").unlink()
    with pytest.raises(InputError, match="There is no grid"):
        tab.open_shown(shown)
