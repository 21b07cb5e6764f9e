"""Guides on the real page: drawn, uploaded, taken from examples, several at once, and brought back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from sar_gen import palettes
from sar_gen.guides import snap_to_palette
from sar_gen.settings import ROOT
from tests.browser.driver import ask, choose, status, type_number

DARK = 0.6  # mean amplitude of drawn water over that of the ground around; 0.4 to 0.5 as measured
EXAMPLE = ROOT / "assets" / "guides" / "examples" / "forest-airfield.png"
TREES, WATER, BUILT = (0, 100, 0), (0, 100, 200), (250, 0, 0)  # of ESA WorldCover


def draw(page: Page, points: list[tuple[float, float]]) -> None:
    """Draw one stroke with the mouse; points are shares of the canvas."""
    page.wait_for_selector("#sketch-editor canvas")
    page.wait_for_timeout(1500)
    box = page.locator("#sketch-editor canvas").first.bounding_box()
    assert box is not None
    side = min(box["width"], box["height"]) * 0.82  # the drawing lies in the middle of what is called the canvas
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    for number, (x, y) in enumerate(points):
        page.mouse.move(left + x * side, top + y * side)  # few moves: without a GPU each takes the canvas a while
        if not number:
            page.mouse.down()
    page.mouse.up()


def selected(page: Page) -> Locator:
    return page.locator("#guide label.selected")


def pictures(page: Page, where: str) -> list[np.ndarray]:
    """Return the pictures of a guide's view as the page has them."""
    import base64
    import io

    sources = page.locator(f"{where} img").evaluate_all("images => images.map(image => image.src)")
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in sources]


def test_a_drawn_river_is_dark_where_it_was_drawn(app, new_page):
    page = new_page()
    page.locator("#guide label", has_text="Sketch").click()
    draw(page, [(0.06, 0.2), (0.25, 0.3), (0.4, 0.5), (0.6, 0.55), (0.78, 0.7), (0.94, 0.85)])
    expect(page.locator("#sketch-view")).to_contain_text("Water")
    expect(page.locator("#guide-way-line")).to_contain_text("guide")
    ask(page, "a SAR image of farmland", count=1, steps=8, seed=5)
    page.locator("#generate").click()
    expect(status(page, "done")).to_contain_text("1 patch saved")

    folder = app.run_folders()[-1]
    amplitude = np.load(folder / "000_seed5.npy")
    drawn = Image.fromarray(np.uint8(snap_to_palette(np.asarray(Image.open(folder / "guide.png"))) == 0))
    water = np.asarray(drawn.resize(amplitude.shape[::-1], Image.Resampling.BOX)).astype(bool)
    rows = np.flatnonzero(water.any(axis=1))
    assert 0.04 < water.mean() < 0.3
    assert np.ptp(rows) > 0.5 * amplitude.shape[0], "the stroke runs from the upper left to the lower right"
    under, around = amplitude[water].mean(), amplitude[~water].mean()
    print(f"river {under:.3f}, around {around:.3f}, ratio {under / around:.2f}")
    assert under < DARK * around
    # Bands in the direction of the stroke beside it are not dark: the dark one is where it was drawn.
    for shift in (-50, 50):
        beside = np.roll(water, shift, axis=0) & ~water
        assert under < DARK * amplitude[beside].mean(), shift

    digest = json.loads((folder / "run.json").read_text())["guides"][0]["sha256"]
    expect(page.locator("#settings-used")).to_contain_text(digest)
    page.close()
    # The run brings its drawing back, and the form alone makes the same patch.
    other = new_page()
    other.locator("#recover").click()
    expect(selected(other)).to_have_text("Sketch")
    expect(other.locator("#prompt textarea")).to_have_value("a SAR image of farmland")
    other.locator("#generate").click()
    expect(status(other, "done")).to_contain_text("1 patch saved")
    assert app.run_folders()[-1] != folder
    np.testing.assert_array_equal(np.load(app.run_folders()[-1] / "000_seed5.npy"), amplitude)


def test_a_foreign_map_is_read_by_its_palette(page, tmp_path):
    columns = np.zeros((96, 96, 3), np.uint8)
    columns[:, :48], columns[:, 48:72], columns[:, 72:] = TREES, WATER, BUILT
    path = tmp_path / "worldcover.png"
    Image.fromarray(columns).save(path)
    page.locator("#guide label", has_text="Image").click()
    page.locator("#guide-file input[type=file]").set_input_files(path)
    expect(page.locator("#guide-view")).to_contain_text("ESA WorldCover")  # found by its colours
    for palette in ("found", "named"):
        if palette == "named":
            choose(page, "guide-palette", "ESA WorldCover")
        legend = page.locator("#guide-legend")
        expect(legend).to_contain_text("ESA WorldCover")
        if not legend.locator("table").is_visible():
            legend.locator("summary").click()
        row = legend.locator("tr", has_text="Permanent water")
        expect(row).to_be_visible()
        expect(row.locator("td").last).to_have_text("Water")
        assert "0, 100, 200" in (row.locator("i").evaluate("i => getComputedStyle(i).backgroundColor"))
        used = pictures(page, "#guide-view")[0]
        colours = palettes.load_palette().colours
        names = ["forest", "water", "urban"]
        for column, name in zip((60, 160, 230), names, strict=True):
            assert tuple(used[128, column]) == tuple(colours[palettes.CLASSES.index(name)]), (palette, name)


def test_an_example_fills_prompt_and_map_and_a_large_one_offers_its_size(page):
    assert page.locator("#stage .sg-scene").count() >= 9
    page.locator("#stage .sg-scene.wide").click()
    expect(page.locator("#guide-file")).to_contain_text("mountains")
    expect(selected(page)).to_have_text("Image")
    expect(page.locator("#guide-size")).to_have_text("Use the guide's size (1024 × 512)")
    expect(page.locator("#guide-size-line")).to_contain_text("overlapping windows")
    page.locator("#advanced > button").click()
    width = page.get_by_label("Width")
    expect(width).to_have_value("256")  # never by itself
    page.locator("#guide-size").click()
    expect(width).to_have_value("1024")
    expect(page.get_by_label("Height")).to_have_value("512")
    expect(page.locator("#guide-size")).to_be_hidden()
    expect(page.locator("#scene-size")).to_contain_text("large scene")

    page.locator("#stage .sg-scene[data-scene='Airfield in forest']").click()
    expect(page.locator("#prompt textarea")).to_have_value("a SAR image of an airfield in a forest")
    expect(selected(page)).to_have_text("Sketch")
    expect(page.locator("#sketch-view")).to_contain_text("Forest")
    for field in (width, page.get_by_label("Height")):
        type_number(page, field, 256)
    expect(page.locator("#sketch-view")).to_contain_text("to 256 x 256 pixels")
    example = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    np.testing.assert_array_equal(pictures(page, "#sketch-view")[0], example[1::2, 1::2])
    before = page.locator("#sketch-view img").first.get_attribute("src")
    draw(page, [(0.1, 0.9), (0.9, 0.9)])  # it can be drawn over
    expect(page.locator("#sketch-view img").first).not_to_have_attribute("src", str(before))
    assert (pictures(page, "#sketch-view")[0][-40:] == palettes.load_palette().colours[0]).all(axis=2).any()


@pytest.fixture
def tiny(app):
    """A tiny checkpoint with a network that reads guides, in a folder that the app looks into."""
    from tests import tiny as builders

    if not (app.checkpoints / "tiny").is_dir():
        builders.checkpoint(app.checkpoints / "tiny", title="Tiny")
        builders.network(
            app.checkpoints / "tiny-net", app.checkpoints / "tiny", title="Tiny network", default_for=["map"]
        )


def test_two_guides_go_by_networks_and_come_back(app, tiny, new_page, tmp_path):
    page = new_page()
    choose(page, "checkpoint", "Tiny")
    page.locator("#guide label", has_text="Image").click()
    page.locator("#guide-file input[type=file]").set_input_files(EXAMPLE)
    expect(page.locator("#guide-view")).to_contain_text("what the network gets")
    expect(page.locator("#guide-way input")).to_have_value("Tiny network")
    expect(page.locator("#guide-strength")).to_be_hidden()
    field = page.locator("#guide-weight input[type=number]")
    field.fill("1.5")
    field.blur()
    page.locator("#guide-add").click()
    expect(page.locator("#guide-rows .sg-item")).to_contain_text("weight 1.5")
    expect(selected(page)).to_have_text("None")

    optical = tmp_path / "optical.png"
    blocks = np.random.default_rng(0).integers(30, 220, (16, 16, 3))
    Image.fromarray(np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)).save(optical)
    page.locator("#guide label", has_text="Image").click()
    choose(page, "guide-kind", "Optical image")
    expect(page.locator("#guide-palette")).to_be_hidden()
    page.locator("#guide-file input[type=file]").set_input_files(optical)
    expect(page.locator("#guide-view")).to_contain_text("what the network gets")
    expect(field).to_have_value("1")
    choose(page, "guide-way", "Image-to-image")
    expect(page.locator("#guide-conflict")).to_contain_text("goes alone")
    expect(page.locator("#guide-strength")).to_be_visible()
    choose(page, "guide-way", "Tiny network")
    expect(page.locator("#guide-conflict .sg-line")).to_have_count(0)
    ask(page, "forest", count=1, steps=2, seed=3)
    page.locator("#generate").click()
    expect(status(page, "done")).to_contain_text("1 patch saved")
    folder = app.run_folders()[-1]
    asked = json.loads((folder / "run.json").read_text())["request"]["guides"]
    assert [(one["kind"], one["way"], one["weight"]) for one in asked] == [
        ("map", "tiny-net", 1.5),
        ("optical", "tiny-net", 1.0),
    ]

    other = new_page()
    other.locator("#recover").click()
    expect(other.locator("#guide-rows .sg-item")).to_contain_text("Class map")
    expect(selected(other)).to_have_text("Past run")
    expect(other.locator("#guide-view")).to_contain_text("Taken: guide 2")
    expect(other.locator("#guide-way input")).to_have_value("Tiny network")
    expect(other.locator("#guide-rows .sg-item")).to_contain_text("weight 1.5")
    other.locator("#generate").click()  # the form alone makes the same patch
    expect(status(other, "done")).to_contain_text("1 patch saved")
    again = app.run_folders()[-1]
    assert again != folder
    np.testing.assert_array_equal(np.load(again / "000_seed3.npy"), np.load(folder / "000_seed3.npy"))

    # A past run is a guide too: its picture as SAR, or the guide that it had.
    other.locator("#guide label", has_text="Past run").click()
    other.locator("#guide-picks .sg-picks button").first.click()
    expect(other.locator("#guide-view")).to_contain_text("as SAR")
    other.get_by_role("button", name="Its guide 1").click()
    expect(other.locator("#guide-view")).to_contain_text("Taken: guide 1")
    other.locator("#guide-rows .sg-item button").click()
    expect(other.locator("#guide-rows .sg-item")).to_have_count(0)
