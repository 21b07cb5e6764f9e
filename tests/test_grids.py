"""Grids on tiny pipelines: same pictures as alone, order, stopping, going on, what fails."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from sar_gen import checkpoints, grid_figures, grids, references
from sar_gen.axes import parse_axis
from sar_gen.errors import InputError
from sar_gen.grids import CellBegun, CellDone, CellEvent, GridEnded, Plan, Stopper
from sar_gen.guides import render
from sar_gen.quality.nearness import floor_ratios, nearness
from sar_gen.quality.statistics import patch_statistics
from sar_gen.request import Done, GenerationRequest, Guide, Saved, Step
from sar_gen.runs import RunStore
from sar_gen.settings import ROOT, Settings
from sar_gen.studio import Studio, load_amplitude
from tests import tiny

REQUEST = GenerationRequest("a river", checkpoint="base", seed=5, steps=2)


@pytest.fixture(scope="module")
def module_studio(tmp_path_factory, one_thread):
    root = tmp_path_factory.mktemp("grids")
    folder = root / "checkpoints"
    tiny.checkpoint(folder / "base")
    tiny.strategy_folder(folder / "tuned", folder / "base", "unet-lora")
    tiny.checkpoint(folder / "decibels", seed=4, amplitude_encoding="db")
    tiny.network(folder / "net", folder / "base")
    broken = tiny.checkpoint(folder / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(ROOT / "checkpoints" / "sar-clip", folder / "sar-clip")
    return Studio(Settings(home=root / "home", runs=root / "runs", checkpoints=folder, device="cpu"))


@pytest.fixture
def studio(module_studio, tmp_path):
    """The module's engine with a runs folder of its own."""
    module_studio.settings = dataclasses.replace(module_studio.settings, runs=tmp_path / "runs")
    module_studio.store = RunStore(tmp_path / "runs")
    return module_studio


def plan(*axes, request=REQUEST, **options):
    return Plan(request, tuple(map(parse_axis, axes)), **options)


def made(studio, *axes, **options):
    grid = grids.new_grid(plan(*axes, **options), studio)
    return grid, list(grids.run(studio, grid))


def alone(studio, request):
    return [event.sha256 for event in studio.generate(request) if isinstance(event, Saved)]


def hashes(grid):
    return {place: [image["sha256"] for image in one.images] for place, one in grid.made.items()}


def test_each_cell_is_the_picture_that_its_request_makes_alone(studio):
    grid, events = made(studio, "strategy=base,unet-lora", "seed=5,9", "prompt=river,forest")
    assert isinstance(events[-1], GridEnded)
    assert not events[-1].stopped
    assert grid.status == "done"
    for (column, row, page), found in hashes(grid).items():
        request = dataclasses.replace(
            REQUEST, prompt=("a river", "a forest")[page], seed=(5, 9)[row], strategy=("base", "unet-lora")[column]
        )
        assert found == alone(studio, request)
    assert len({found[0] for found in hashes(grid).values()}) == 8


def test_the_grid_on_disk_is_the_grid_in_memory(studio):
    grid, _ = made(studio, "seed=1,2", "steps=1,2")
    opened = grids.open_grid(grid.id, studio.store.folder)
    assert (opened.plan, opened.cells, opened.made) == (grid.plan, grid.cells, grid.made)
    assert grids.open_grid(grid.folder / "grid.json").to_json() == grid.to_json()
    document = json.loads((grid.folder / "grid.json").read_text())
    assert [cell["request"]["seed"] for cell in document["cells"]] == [1, 2, 1, 2]
    assert [cell["request"]["steps"] for cell in document["cells"]] == [1, 1, 2, 2]
    assert [info["done"] for info in grids.list_grids(studio.store.folder)] == [4]


def test_checkpoints_and_strategies_change_least(studio):
    cells = grids.check_plan(plan("strategy=base,unet-lora", "seed=1..3", "profile=exact,plain"), studio.settings)
    catalogue = checkpoints.catalogue(studio.settings)
    for loaded, first in (("", "base"), ("tuned", "tuned")):
        order = grids.in_order(cells.values(), loaded, catalogue)
        assert sorted(cell.place for cell in order) == sorted(cells)
        kinds = [(cell.checkpoint, cell.request["profile"]) for cell in order]
        assert order[0].checkpoint == first
        assert sum(a != b for a, b in pairwise(kinds)) == 3  # four kinds, each once
        assert sum(a[0] != b[0] for a, b in pairwise(kinds)) == 1
    mixed = grids.check_plan(plan("checkpoint=base,decibels,tuned"), studio.settings)
    assert [c.checkpoint for c in grids.in_order(mixed.values(), "", catalogue)] == ["base", "tuned", "decibels"]


@pytest.mark.parametrize(
    ("axes", "options", "sentence"),
    [
        (["seed=1,2", "strategy=base,hybrid"], {}, "no checkpoint with the strategy 'hybrid'"),
        (["steps=2,900"], {}, r"steps is 900; choose 1 to 200. \(The cell with Steps 900.\)"),
        (["prompt=forest,river"], {}, "does not hold 'forest'"),
        (["checkpoint=base,gone"], {}, "'gone' is unknown"),
        (["guide-weight=0,1"], {}, "needs a guide"),
        (["strength=0.2,0.5"], {}, "would change nothing"),
        (["seed=1,2", "seed=3,4"], {}, "axis seed is given twice"),
        (["seed=1..500"], {}, "500 cells; choose 200 at most"),
        (["seed=1", "steps=1", "guidance=1", "negative=x"], {}, "one to three axes"),
        ([], {}, "one to three axes"),
        (["seed=1,2"], {"reference": "s1-moon"}, "s1-moon"),
        (["seed=1,2"], {"keep": 1}, "choose a reference set"),
        (["seed=1,2"], {"keep": 3, "reference": "s1-gorge"}, "3 of 1 patches cannot be kept"),
        (["checkpoint=decibels"], {"reference": "s1-gorge"}, "cannot be converted exactly"),
    ],
)
def test_what_is_wrong_in_any_cell_is_found_before_the_first(studio, axes, options, sentence):
    with pytest.raises(InputError, match=sentence):
        grids.new_grid(plan(*axes, **options), studio)
    assert not studio.store.folder.exists()


def test_cells_do_not_flood_the_runs_but_are_found(studio, tmp_path):
    grid, _ = made(studio, "seed=1..3")
    single = alone(studio, REQUEST)
    assert [record.images[0].sha256 for record in studio.store.list()] == single
    assert studio.last_run().images[0].sha256 == single[0]
    record = grid.record((1, 0, 0))
    assert record.request.seed == 2
    copy = tmp_path / "copy.png"
    shutil.copy(grid.picture((1, 0, 0)), copy)
    for name in (record.id, record.folder, record.json_path, grid.picture((1, 0, 0)), copy):
        assert studio.store.open(name).id == record.id


def test_measures_are_those_of_the_run_and_nearness_is_their_mean(studio):
    grid, _ = made(studio, "seed=1,2", reference="s1-gorge")
    reference = references.load_reference("s1-gorge", studio.settings)
    for place, one in grid.made.items():
        report = grid.record(place).report
        assert one.verdict == report["verdict"]
        for name, measure in report["measures"].items():
            assert one.measures[name] == {k: measure[k] for k in ("value", "floor", "ratio", "floor_95", "unit")}
        statistics = patch_statistics([load_amplitude(grid.amplitude_file(place))])
        by_hand = nearness(floor_ratios(statistics, reference.statistics))[0]
        assert one.number("nearness") == pytest.approx(by_hand)
    assert grid.measures()[:3] == ["nearness", "wasserstein1", "glcm_contrast"]
    assert "semantic" in grid.measures()


def test_the_best_of_a_cell_stands_for_it(studio):
    request = dataclasses.replace(REQUEST, count=4)
    grid, _ = made(studio, "steps=1,2", request=request, reference="s1-gorge", keep=1)
    reference = references.load_reference("s1-gorge", studio.settings)
    for place, one in grid.made.items():
        patches = [load_amplitude(image.amplitude_file) for image in grid.record(place).images]
        distances = nearness(floor_ratios(patch_statistics(patches), reference.statistics))
        assert one.shown == int(np.argmin(distances))
        assert one.number("nearness") == pytest.approx(distances.min())


def test_a_cell_that_cannot_be_compared_is_made_without_measures(studio):
    grid, _ = made(studio, "checkpoint=base,decibels", reference="s1-gorge")
    assert grid.made[0, 0, 0].measures
    assert grid.made[1, 0, 0].state == "done"
    assert not grid.made[1, 0, 0].measures
    assert "cannot be converted exactly" in grid.cells[1, 0, 0].note


def test_a_cell_that_fails_does_not_end_the_grid(studio):
    grid, events = made(studio, "checkpoint=broken,base", "seed=1,2")
    assert [one.state for one in grid.made.values()] == ["failed", "done", "failed", "done"]
    assert grid.made[0, 0, 0].message
    assert not events[-1].stopped
    again = grids.open_grid(grid.folder)
    assert again.made == grid.made
    assert [cell.place for cell in again.waiting] == [(0, 0, 0), (0, 1, 0)], "tried again when asked for"


def test_stop_keeps_what_is_there_and_only_the_rest_is_made(studio):
    grid = grids.new_grid(plan("seed=1..4", request=dataclasses.replace(REQUEST, steps=30)), studio)
    stopper, begun = Stopper(), []
    for event in grids.run(studio, grid, stopper):
        if isinstance(event, CellBegun):
            begun.append(event.cell.place)
        if isinstance(event, CellEvent) and isinstance(event.event, Step) and len(begun) == 3:
            stopper.stop(studio)
    assert event.stopped
    assert begun == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    opened = grids.open_grid(grid.folder)
    assert [one.state for one in opened.made.values()] == ["done", "done", "waiting", "waiting"]
    assert opened.status == "stopped"
    events = list(grids.run(studio, opened))
    assert [e.cell.place for e in events if isinstance(e, CellBegun)] == [(2, 0, 0), (3, 0, 0)]
    assert [e.share for e in events if isinstance(e, CellDone)] == [0.5, 1.0]
    assert hashes(opened)[0, 0, 0] == hashes(grid)[0, 0, 0]
    assert list(grids.run(studio, opened)) == [GridEnded(False)], "nothing is left to make"


def test_a_stop_that_comes_when_all_of_a_cell_is_there_keeps_it(studio):
    grid = grids.new_grid(plan("seed=1..3", reference="s1-gorge"), studio)
    stopper = Stopper()
    for event in grids.run(studio, grid, stopper):
        if isinstance(event, CellEvent) and isinstance(event.event, Saved):
            stopper.stop(studio)
    assert event.stopped
    last = next(record for record in grid.store.list() if record.images)
    place = next(place for place, one in grid.made.items() if one.run == last.id)
    assert grid.made[place].measures
    list(grids.run(studio, grid))
    made = [image.sha256 for record in grid.store.list() for image in record.images]
    assert len(made) == len(set(made)) == 3, "no picture was made twice"


def test_a_stop_while_a_cell_is_judged_begins_no_other(studio):
    grid = grids.new_grid(plan("seed=1..3", reference="s1-gorge"), studio)
    stopper = Stopper()
    for event in grids.run(studio, grid, stopper):
        if isinstance(event, CellEvent) and isinstance(event.event, Done):  # nothing is left to stop in this cell
            stopper.stop(studio)
    assert event.stopped
    assert [one.state for one in grid.made.values()] == ["done", "waiting", "waiting"]


def test_leaving_a_grid_stops_it_and_lets_others_in(studio):
    grid = grids.new_grid(plan("seed=1..3", request=dataclasses.replace(REQUEST, steps=30)), studio)
    events = grids.run(studio, grid)
    while not isinstance(next(events), CellDone):
        pass
    next(events)
    with pytest.raises(InputError, match="being made already"):
        grids.run(studio, grids.open_grid(grid.folder))
    assert len(alone(studio, REQUEST)) == 1, "another request has its turn between two cells"
    events.close()
    assert grids.open_grid(grid.folder).status == "stopped"
    assert not list(grids.run(studio, grids.open_grid(grid.folder)))[-1].stopped


def test_runs_that_were_finished_but_not_listed_are_taken(studio):
    grid, _ = made(studio, "seed=1..3", reference="s1-gorge")
    before = dict(grid.made)
    for place in ((0, 0, 0), (1, 0, 0), (2, 0, 0)):
        grid.made[place] = grids.WAITING
    grid.status = "running"
    grid.write()  # as a power failure leaves it
    second = grid.folder / "cells" / before[1, 0, 0].run / "run.json"
    cut = json.loads(second.read_text()) | {"status": "running", "report": None}
    second.write_text(json.dumps(cut))
    grid.store.open(before[2, 0, 0].run).images[0].amplitude_file.unlink()
    opened = grids.open_grid(grid.folder)
    assert opened.made[0, 0, 0].images == before[0, 0, 0].images
    assert opened.made[0, 0, 0].measures == before[0, 0, 0].measures
    assert [cell.place for cell in opened.waiting] == [(1, 0, 0), (2, 0, 0)]


KILLED = """
import sys
from pathlib import Path
from sar_gen import grids
from sar_gen.settings import Settings
from sar_gen.studio import Studio
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
studio = Studio(Settings(home=root / "home", runs=folder.parent, checkpoints=root / "checkpoints", device="cpu"))
for event in grids.run(studio, grids.open_grid(folder)):
    if isinstance(event, grids.CellBegun):
        print(event.number, flush=True)
"""


def test_a_killed_grid_goes_on(studio):
    """A process of its own is killed in its third cell."""
    request = dataclasses.replace(REQUEST, steps=60)
    grid = grids.new_grid(plan("strategy=base,unet-lora", "seed=1..3", request=request), studio)
    root = studio.settings.checkpoints.parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), str(grid.folder)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if line.strip() == "3":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    opened = grids.open_grid(grid.folder)
    kept = {place: one for place, one in opened.made.items() if one.state == "done"}
    assert len(kept) == 2
    assert opened.status == "running", "nobody could say otherwise"
    times = {place: opened.picture(place).stat().st_mtime_ns for place in kept}
    events = list(grids.run(studio, opened))
    assert sum(isinstance(e, CellDone) for e in events) == 4
    assert {place: opened.picture(place).stat().st_mtime_ns for place in kept} == times
    found = hashes(opened)
    assert len({one[0] for one in found.values()}) == 6
    for place in kept:
        assert opened.made[place] == kept[place]
    last = dataclasses.replace(request, strategy="unet-lora", seed=3)
    assert found[1, 2, 0] == alone(studio, last)


def test_guides_are_kept_with_the_grid(studio):
    classes = np.random.default_rng(0).integers(0, 6, (8, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    guide = Guide("map", render(classes), way="net")
    request = dataclasses.replace(REQUEST, guides=(guide,))
    grid = grids.new_grid(plan("guide-weight=0,0.5,1", request=request), studio)
    opened = grids.open_grid(grid.folder)  # the pixels come from the disk
    list(grids.run(studio, opened))
    found = hashes(opened)
    for column, weight in enumerate((0.0, 0.5, 1.0)):
        guides = (dataclasses.replace(guide, weight=weight),)
        assert found[column, 0, 0] == alone(studio, dataclasses.replace(REQUEST, guides=guides))
    assert len({one[0] for one in found.values()}) == 3
    lost = grids.new_grid(plan("guide-weight=0,1", request=request), studio)
    (lost.folder / "guide.png").unlink()
    list(grids.run(studio, lost))
    assert "picture of a guide is gone" in lost.made[0, 0, 0].message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "plan": {}}'])
def test_a_damaged_grid_is_refused(tmp_path, text):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "grid.json").write_text(text)
    with pytest.raises(InputError, match=r"damaged|another version"):
        grids.open_grid("one", tmp_path)
    assert grids.list_grids(tmp_path) == []
    with pytest.raises(InputError, match="no grid 'two'"):
        grids.open_grid("two", tmp_path)


# ---- figures of a grid


@pytest.fixture
def measured(studio):
    """Two columns, three rows; one cell has no measure."""
    grid = grids.new_grid(plan("steps=1,2", "seed=1..3"), studio)
    ratios = {(0, 0, 0): 2.0, (1, 0, 0): 1.0, (0, 1, 0): 3.0, (1, 1, 0): 0.5, (0, 2, 0): 1.5}
    for place, ratio in ratios.items():
        measures = {"enl": {"value": 10 * ratio, "floor": 10.0, "ratio": ratio}}
        grid.made[place] = grids.Made("done", measures=measures)
    return grid


def test_sorting_is_by_the_means_of_columns_and_rows(measured):
    assert grid_figures.arrangement(measured, "enl") == ([0, 1], [0, 1, 2])
    # columns: (2 + 3 + 1.5) / 3 and (1 + 0.5) / 2; rows: 1.5, 1.75, 1.5, of which the first is as planned
    assert grid_figures.arrangement(measured, "enl", sort=True) == ([1, 0], [0, 2, 1])
    assert grid_figures.ranking(measured, "enl") == [(1, 1, 0), (1, 0, 0), (0, 2, 0), (0, 0, 0), (0, 1, 0)]
    assert grid_figures.mean_ratio(measured, "enl", [(1, 2, 0)]) is None
    assert grid_figures.ranking(measured, "spectrum") == []


def test_time_is_told_by_runs_of_the_same_checkpoint(studio):
    alone(studio, dataclasses.replace(REQUEST, guidance=1.0))  # 2 steps without guidance and the decoder: 4 units
    [record] = studio.store.list()
    record = dataclasses.replace(record, seconds={"generate": 8.0, "compare": 0.5})
    cells = grids.check_plan(plan("guidance=1,2", "steps=2,6"), studio.settings).values()
    # units of 2 s: 2+2, 4+2, 6+2, 12+2
    assert grid_figures.estimate(cells, [record]) == pytest.approx(2.0 * (4 + 6 + 8 + 14))
    judged = grids.check_plan(plan("guidance=1,2", reference="s1-gorge"), studio.settings).values()
    assert grid_figures.estimate(judged, [record]) == pytest.approx(2.0 * (4 + 6) + 2 * 0.5)
    other = dataclasses.replace(record, checkpoint={"id": "other"}, seconds={"generate": 80.0})
    assert grid_figures.estimate(cells, [other, record]) == pytest.approx(64.0)
    assert grid_figures.estimate(cells, [other]) == pytest.approx(640.0)
    assert grid_figures.estimate(cells, []) is None
    assert grid_figures.remaining(30.0, 0.25) == pytest.approx(90.0)
    assert grid_figures.remaining(30.0, 0.0) is None


def test_shares_grow_to_one(studio):
    _, events = made(studio, "seed=1,2", "steps=1,3")
    shares = [event.share for event in events if not isinstance(event, GridEnded)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def luminance(colour):
    return sum(w * (int(colour[i : i + 2], 16) / 255) ** 2.2 for w, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5)))


def test_figures_can_be_read_on_their_colours_and_good_and_bad_differ_for_colour_blind_eyes():
    seen = [grid_figures.colour(ratio) for ratio in np.linspace(0.2, 6, 59)]
    assert seen[0] == grid_figures.colour(1.0)
    assert seen[-1] == grid_figures.colour(4.0)
    for colour in [*seen, grid_figures.colour(None)]:
        light, dark = sorted((luminance(colour), luminance(grid_figures.ink(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, colour

    # Blue minus yellow, (R + G) / 2 - B, is what red-green blind eyes still see: it has to grow all the way.
    def warmth(ratio):
        red, green, blue = (int(grid_figures.colour(ratio)[i : i + 2], 16) for i in (1, 3, 5))
        return (red + green) / 2 - blue

    values = [warmth(ratio) for ratio in (1, 1.5, 2, 3)]
    assert all(after - before > 20 for before, after in pairwise(values))
    assert warmth(4) > 60


def test_it_takes_little_time_to_plan_the_largest_grid(studio):
    started = time.monotonic()
    assert len(grids.check_plan(plan("seed=1..20", "steps=1..10"), studio.settings)) == 200
    assert time.monotonic() - started < 5
