"""What is taken away of a grid, and the command line that makes one on the embedded checkpoint."""

import base64
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sar_gen import grid_export, grid_sheet, grids
from sar_gen.amplitude import view
from sar_gen.axes import parse_axis
from sar_gen.cli import main
from sar_gen.grid_figures import colour
from sar_gen.grids import Grid, Made, Plan
from sar_gen.request import GenerationRequest
from sar_gen.runs import RunStore
from sar_gen.settings import ROOT

ATTACK = '<img src=x onerror="alert(1)">'


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def grid_of(folder, *axes, side=(120, 128), prompt="a river"):
    """A grid whose cells hold noise: no engine is needed to export one."""
    request = GenerationRequest(prompt, steps=2, guidance=1.0, width=side[1], height=side[0])
    plan = Plan(request, tuple(map(parse_axis, axes)), "s1-gorge")
    cells, made, store = {}, {}, RunStore(folder / "cells")
    for number, place in enumerate(plan.places()):
        amplitude = np.random.default_rng(number).random(side, dtype=np.float32)
        run = store.begin(request, {"polarisation": "VV"}, {})
        saved = run.save_patch(0, number, amplitude)
        run.finish("done", {"generate": 1.0})
        image = {"seed": number, "sha256": saved.sha256, "view": saved.view.name}
        image["amplitude_file"] = saved.amplitude_file.name
        ratio = 0.5 + number
        measures = {
            "nearness": {"value": ratio, "floor": 1.0, "ratio": ratio, "unit": "floors"},
            "wasserstein1": {"value": ratio / 50, "floor": 0.02, "ratio": ratio, "unit": "amplitude"},
        }
        cells[place] = grids.Cell(place, request.to_json(), "sar-mini", "s1-gorge")
        made[place] = Made("done", run.id, (image,), seconds=1.0, measures=measures, verdict="It is noise.")
    grid = Grid(folder.name, folder, plan, cells, made, "2026-01-01T00:00:00+0000", "done", {"torch": "2"})
    grid.write()
    return grid


@pytest.fixture
def grid(tmp_path):
    return grid_of(tmp_path / "grid", "seed=1..3", "guidance=1,2")


def found_at(sheet, patch):
    """Return the row and column where a picture lies in a sheet, pixel by pixel."""
    height, width = patch.shape
    for y in range(sheet.shape[0] - height + 1):
        for x in np.flatnonzero(sheet[y, : sheet.shape[1] - width + 1] == patch[0, 0]):
            if np.array_equal(sheet[y : y + height, x : x + width], patch):
                return y, int(x)
    return None


@pytest.mark.parametrize("remap", ["linear", "db"])
def test_the_sheet_holds_every_patch_pixel_by_pixel_in_its_place(grid, remap):
    picture = Image.open(io.BytesIO(grid_sheet.sheet_png(grid, "nearness", remap)))
    assert json.loads(picture.text["sar_gen_grid"])["synthetic"] is True
    sheet = np.asarray(picture)
    grey = np.where((sheet == sheet[..., :1]).all(axis=2), sheet[..., 0].astype(int), -1)
    at = {place: found_at(grey, view(np.load(grid.amplitude_file(place)), remap).astype(int)) for place in grid.cells}
    assert all(at.values())
    assert at[0, 0, 0][0] == at[1, 0, 0][0] == at[2, 0, 0][0] < at[0, 1, 0][0] == at[2, 1, 0][0]
    assert at[0, 0, 0][1] == at[0, 1, 0][1] < at[1, 0, 0][1] < at[2, 0, 0][1] == at[2, 1, 0][1]
    for number, place in enumerate(grid.cells):  # the colour of its figure, just below it
        y, x = at[place]
        assert tuple(sheet[y + 120 + 2, x + 2]) == rgb(colour(0.5 + number))


def test_the_sheet_shows_pages_what_is_missing_and_what_failed(tmp_path):
    grid = grid_of(tmp_path / "grid", "seed=1,2", "guidance=1,2", "steps=1..3")
    whole = Image.open(io.BytesIO(grid_sheet.sheet_png(grid, "nearness")))
    one = grid_of(tmp_path / "one", "seed=1,2", "guidance=1,2")
    assert whole.height > 2.5 * Image.open(io.BytesIO(grid_sheet.sheet_png(one, "nearness"))).height - 400
    before = grid_sheet.sheet_png(one, "wasserstein1")
    one.made[0, 0, 0] = grids.WAITING
    one.made[1, 0, 0] = Made("failed", message="The device has too little memory for this request.")
    after = Image.open(io.BytesIO(grid_sheet.sheet_png(one, "wasserstein1")))
    assert after.size == Image.open(io.BytesIO(before)).size
    assert after.tobytes() != Image.open(io.BytesIO(before)).tobytes()


def test_large_grids_are_reduced_and_say_so(grid, monkeypatch):
    said = []
    monkeypatch.setattr(grid_sheet, "LARGEST", 6 * 120 * 128 // 4)
    original = grid_sheet._foot
    monkeypatch.setattr(grid_sheet, "_foot", lambda *args: said.extend(original(*args)) or said)
    pictures, factor = grid_sheet._pictures(grid, "linear")
    amplitude = np.load(grid.amplitude_file((0, 0, 0)))
    mean = (amplitude[0::2, 0::2] + amplitude[1::2, 0::2] + amplitude[0::2, 1::2] + amplitude[1::2, 1::2]) / 4
    assert factor == 2
    assert np.abs(pictures[0, 0, 0].astype(int) - np.rint(mean * 255)).max() <= 1
    grid_sheet.sheet_png(grid, "nearness")
    assert "1/2 of their size" in " ".join(said)


def test_the_html_needs_nothing_else_and_holds_the_pictures_lossless(tmp_path):
    grid = grid_of(tmp_path / "grid", "seed=1..3", "prompt=river,forest", prompt=f"a river {ATTACK}")
    text = grid_export.html_document(grid, "wasserstein1")
    assert "<script" not in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(""", text)
    assert "<img src=x" not in text
    assert "Synthetic" in text
    pictures = [base64.b64decode(part) for part in re.findall(r"data:image/png;base64,([^']+)'", text)]
    assert len(pictures) == 6
    for place, data in zip(grid.cells, pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), view(np.load(grid.amplitude_file(place))))
    for number, one in enumerate(grid.made.values()):
        assert one.images[0]["sha256"][:16] in text
        assert f"{0.5 + number:.2f} ×" in text
    assert "mean 1.50 ×" in text, "of the first row"


def test_exports_are_written_beside_and_whole(grid):
    paths = grid_export.write_exports(grid, "wasserstein1")
    assert {path.name for path in paths.values()} == {"grid.png", "grid.html", "grid.json"}
    assert {path.name for path in grid.folder.iterdir()} == {"grid.png", "grid.html", "grid.json", "cells"}
    document = json.loads(paths["json"].read_text())
    assert document["synthetic"] is True
    for cell, one in zip(document["cells"], grid.made.values(), strict=True):
        assert cell["images"][0]["sha256"] == one.images[0]["sha256"]
        assert cell["request"]["prompt"] == "a river"
        assert cell["measures"]["wasserstein1"]["floor"] == 0.02


def test_a_grid_without_measures_can_be_taken_away(grid):
    for place, one in grid.made.items():
        grid.made[place] = Made("done", one.run, one.images)
    text = grid_export.html_document(grid)
    assert grid.made[0, 0, 0].images[0]["sha256"][:16] in text
    assert "floor" not in text.split("</style>")[1]
    assert grid_sheet.sheet_png(grid, "nearness")


# ---- command line


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "sar_gen", *map(str, arguments)],
            capture_output=True, text=True, cwd=ROOT, check=False,
            env={**os.environ, "SAR_GEN_HOME": str(home), "SAR_GEN_RUNS": str(home / "runs"), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    return run


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The command line in this process, which imports torch once."""
    monkeypatch.setenv("SAR_GEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAR_GEN_RUNS", str(tmp_path / "runs"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sar_gen", *map(str, arguments)])
        main()
        return capsys.readouterr()

    return run


def test_generate_grid_and_resume(here, tmp_path):
    asked = ("generate", "a SAR image of a mountain gorge", "--steps", 2)
    axes = ("--grid", "strategy=base,turbo", "--grid", "seed=7")
    document = json.loads(here(*asked, *axes, "--reference", "s1-gorge", "--out", tmp_path / "mine", "--json").out)
    assert [cell["state"] for cell in document["cells"]] == ["done", "done"]
    assert [cell["checkpoint"] for cell in document["cells"]] == ["sar-mini", "sar-mini-turbo"]
    assert all(cell["measures"]["nearness"]["ratio"] > 0 for cell in document["cells"])
    for kind in ("png", "html", "json"):
        assert os.path.getsize(document["files"][kind]) > 1000
    alone = json.loads(here(*asked, "--strategy", "turbo", "--seed", 7, "--json").out)
    assert document["cells"][1]["images"][0]["sha256"] == alone["images"][0]["sha256"]

    grid = grids.open_grid(document["folder"])
    assert grid.folder.parent == tmp_path / "mine"
    grid.amplitude_file((0, 0, 0)).unlink()
    said = here("generate", "--resume-grid", grid.folder).out
    assert "1 of them made before" in said
    assert said.count("000_seed7.png") == 1
    assert "Power spectrum" in said
    again = grids.open_grid(grid.folder).made[0, 0, 0].images[0]["sha256"]
    assert again == document["cells"][0]["images"][0]["sha256"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a river", "--grid", "seed=a"), "not a whole number"),
        (("a river", "--grid", "strategy=turbo,hybrid"), "no checkpoint with the strategy 'hybrid'"),
        (("--resume-grid", "gone"), "no grid 'gone'"),
        (("a river", "--resume-grid", "gone"), "leave out the prompt"),
        (("--grid", "seed=1,2"), "prompt is empty"),
    ],
)
def test_bad_input_is_one_sentence(cli, arguments, sentence):
    result = cli("generate", *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
