"""The Grid tab in a browser: a grid of 3 x 4 on the embedded checkpoint, stopped, gone on with, and taken away."""

from __future__ import annotations

import io
import json
import re

import numpy as np
from PIL import Image
from playwright.sync_api import Page, Route, expect

from sar_gen import grid_figures, grids
from tests.browser.driver import ask, choose, look_at, set_number, status, thumbnails

TERRAINS = "mountain gorge, forest, winding river"


def turbo(page: Page, prompt: str) -> None:
    """Fill in Generate's form: four steps a patch."""
    choose(page, "strategy", "Turbo: few steps", exact=True)
    page.fill("#prompt textarea", prompt)
    page.locator("#random-seed input").uncheck()
    set_number(page, "seed", 3)


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Grid").click()
    expect(page.locator("#grid-base")).to_contain_text("Judged by")


def axis(page: Page, name: str, kind: str, values: str) -> None:
    """Choose an axis and, once the values that are offered first have come, write others."""
    field = page.locator(f"#grid-{name}-values textarea")
    if field.is_visible():
        field.fill("")
    choose(page, f"grid-{name}", kind, exact=True)
    expect(field).to_be_visible()
    expect(field).not_to_have_value("")
    field.fill(values)


def forest_in_pages(page: Page, columns: str, steps: str, size: str) -> None:
    """Ask for a grid of forests: seeds along the columns, one row, a page for each of two guidances."""
    turbo(page, "a SAR image of forest")
    open_tab(page)
    page.fill("#grid-columns-values textarea", columns)
    axis(page, "rows", "Steps", steps)
    axis(page, "pages", "Guidance", "1, 1.5")
    expect(page.locator("#grid-size")).to_contain_text(size)


def cells(page: Page, state: str):
    return page.locator(f"#grid-body .sg-cell.{state}")


def line(page: Page, kind: str):
    found = page.locator(f"#grid-status .sg-status.{kind}")
    found.wait_for()
    return found


def newest(app):
    folder = max(app.runs.glob("*/grid.json")).parent
    return grids.open_grid(folder)


def colours(page: Page) -> list[str]:
    shown = page.locator("#grid-body .sg-cell.done .sg-fig").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    return ["#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", text)[:3]) for text in shown]


def test_a_grid_of_3_by_4_is_made_looked_at_and_taken_away(app, page):
    turbo(page, "a SAR image of a mountain gorge")
    open_tab(page)
    expect(page.locator("#grid-base")).to_contain_text("Turbo")
    expect(page.locator("#grid-blank")).to_be_visible()
    page.fill("#grid-columns-values textarea", "1..four")
    expect(page.locator("#grid-size .warn")).to_contain_text("not a whole number")
    page.fill("#grid-columns-values textarea", "1..4")
    axis(page, "rows", "Prompt", "mountain gorge, forest")
    expect(page.locator("#grid-size")).to_contain_text("8 cells (4 × 2)")
    page.fill("#grid-rows-values textarea", TERRAINS)
    expect(page.locator("#grid-size")).to_contain_text("12 cells (4 × 3)")

    page.keyboard.press("Control+Enter")
    expect(page.locator("#grid-stop")).to_be_visible()
    expect(page.locator("#grid-run")).to_be_hidden()
    expect(cells(page, "running")).to_have_count(1)
    expect(cells(page, "waiting").first).to_be_visible()
    cells(page, "done").first.wait_for()
    first = cells(page, "done").first.locator("img").element_handle()
    expect(line(page, "done")).to_contain_text("All 12 cells made")
    assert first.evaluate("image => image.isConnected"), "a picture that is there is not drawn again"
    expect(page.locator("#grid-size")).to_contain_text("about")
    expect(page.locator("#grid-run")).to_be_visible()
    expect(page.locator("#grid-resume")).to_be_hidden()

    expect(cells(page, "done")).to_have_count(12)
    widths = page.locator("#grid-body img").evaluate_all("all => all.map(i => i.complete && i.naturalWidth)")
    assert widths == [256] * 12
    box = page.locator("#grid-body table").bounding_box()
    view = page.locator("#grid-body").bounding_box()
    assert box["width"] <= view["width"] + 1, "the whole grid is seen at once"
    assert box["height"] <= view["height"] + 1
    grid = newest(app)
    assert [cell.request["steps"] for cell in grid.cells.values()] == [4] * 12
    assert [cell.request["seed"] for cell in grid.cells.values()] == [1, 2, 3, 4] * 3

    # Any measure colours it: each cell by its own ratio, as the run's report has it.
    for title, name in (("Nearness", "nearness"), ("Power spectrum", "spectrum")):
        choose(page, "grid-measure", title, exact=True)
        expect(cells(page, "done").first).to_contain_text(f"{grid.made[0, 0, 0].number(name):.2f} ×")
        expected = [grid_figures.colour(one.number(name)) for one in grid.made.values()]
        assert colours(page) == expected
    page.locator("#grid-sort label", has_text="Nearest first").click()
    columns, rows = grid_figures.arrangement(grid, "spectrum", sort=True)
    expect(page.locator("#grid-body tbody th b")).to_have_text([TERRAINS.split(", ")[row] for row in rows])
    expect(page.locator("#grid-body thead th b")).to_have_text([str(column + 1) for column in columns])
    page.locator("#grid-sort label", has_text="Ranking").click()
    expect(page.locator("#grid-body .sg-ranked li")).to_have_count(12)
    best = grid_figures.ranking(grid, "spectrum")[0]
    expect(page.locator("#grid-body [data-place]").first).to_have_attribute("data-place", "-".join(map(str, best)))
    page.locator("#grid-sort label", has_text="As planned").click()

    # Details of a cell, closed and opened again.
    cell = page.locator('#grid-body [data-place="2-1-0"]')
    for _ in range(2):
        cell.click()
        expect(page.locator("#grid-details")).to_be_visible()
        expect(page.locator("#grid-detail .chosen")).to_contain_text("Power spectrum")
        expect(page.locator("#grid-detail")).to_contain_text(grid.made[2, 1, 0].images[0]["sha256"][:16])
        page.locator("#grid-close").click()
        expect(page.locator("#grid-details")).to_be_hidden()

    # What is taken away.
    for kind in ("png", "html", "json"):
        with page.expect_download() as download:
            page.locator(f"#grid-export-{kind}").click()
        assert download.value.suggested_filename == f"{grid.id}.{kind}"
        data = download.value.path().read_bytes()
        if kind == "png":
            sheet = np.asarray(Image.open(io.BytesIO(data)))
            assert min(sheet.shape[:2]) > 3 * 256
        elif kind == "html":
            assert data.decode().count("data:image/png;base64,") == 12
        else:
            assert len(json.loads(data)["cells"]) == 12

    # One click opens a cell in Generate: its picture, form and judgement.
    cell.hover()
    cell.locator(".sg-go").click()
    expect(status(page, "done")).to_contain_text("Cell of a grid: Seed 3, Prompt forest")
    expect(page.locator("#prompt textarea")).to_have_value("a SAR image of a forest")
    expect(page.locator("#seed input")).to_have_value("3")
    expect(page.locator("#stage figcaption")).to_contain_text("seed 3")
    expect(page.locator("#verdict p").first).to_contain_text("s1-gorge")
    with page.expect_download() as download:
        page.locator("#download-npy").click()
    assert download.value.path().read_bytes() == grid.amplitude_file((2, 1, 0)).read_bytes()

    # The grid's own settings come back.
    page.get_by_role("tab", name="Grid").click()
    expect(page.locator("#grid-size .warn")).to_contain_text("does not hold 'mountain gorge'")
    page.locator("#grid-again").click()
    expect(page.locator("#grid-size")).to_contain_text("12 cells (4 × 3)")
    expect(page.locator("#prompt textarea")).to_have_value("a SAR image of a mountain gorge")


def test_stop_keeps_the_cells_and_another_page_makes_the_rest(app, new_page):
    page = new_page()
    forest_in_pages(page, "1..3", "2", "6 cells (3 × 1 × 2)")
    page.locator("#grid-run").click()
    expect(cells(page, "done").nth(1)).to_be_visible()
    page.keyboard.press("Escape")
    expect(line(page, "stopped")).to_contain_text("are kept")
    grid = newest(app)
    kept = {place: one for place, one in grid.made.items() if one.state == "done"}
    assert 2 <= len(kept) < 6
    expect(page.locator("#grid-resume")).to_have_text(re.compile(f"Make the missing {6 - len(kept)} cells?"))
    page.context.close()
    page = new_page()
    open_tab(page)
    page.locator("#grid-earlier input").click()
    page.locator("#grid-earlier").get_by_role("option").first.click()
    expect(page.locator("#grid-heading")).to_contain_text(f"{len(kept)} of 6 cells")
    page.locator("#grid-resume").click()
    expect(line(page, "done")).to_contain_text("All 6 cells made")
    expect(cells(page, "done")).to_have_count(3)
    page.locator("#grid-page label", has_text="1.5").click()
    expect(page.locator("#grid-heading")).to_contain_text("Guidance 1.5")
    expect(cells(page, "done")).to_have_count(3)
    sources = page.locator("#grid-body img").evaluate_all("all => all.map(one => decodeURIComponent(one.src))")
    again = newest(app)
    assert again.id == grid.id
    assert {place: again.made[place] for place in kept} == kept
    assert [source.endswith(str(again.picture((i, 0, 1)))) for i, source in enumerate(sources)] == [True] * 3
    assert len(list((grid.folder / "cells").glob("*/0*.png"))) == 6, "no cell was made twice"


def test_a_page_chosen_while_the_grid_is_drawn_stays_chosen(app, page):
    forest_in_pages(page, "1", "1", "2 cells (1 × 1 × 2)")
    page.locator("#grid-run").click()
    expect(line(page, "done")).to_contain_text("All 2 cells made")
    expect(page.locator("#grid-heading")).to_contain_text("Guidance 1 ")

    held: list[Route] = []
    page.route("**/queue/join*", lambda route: held.append(route), times=1)  # the next drawing waits at the door
    page.locator("#grid-sort label", has_text="Nearest first").click()
    page.locator("#grid-page label", has_text="1.5").click()
    page.wait_for_function("() => document.querySelector('#grid-page label.selected').textContent.includes('1.5')")
    held[0].continue_()
    expect(page.locator("#grid-heading")).to_contain_text("Guidance 1.5")
    expect(page.locator("#grid-page label.selected")).to_have_text("1.5")
    expect(page.locator("#grid-sort label.selected")).to_have_text("Nearest first")


def test_the_cell_on_show_stays_when_the_list_of_earlier_grids_is_left(page):
    forest_in_pages(page, "1", "1", "2 cells (1 × 1 × 2)")
    page.locator("#grid-run").click()
    expect(line(page, "done")).to_contain_text("All 2 cells made")
    page.get_by_role("tab", name="Generate").click()
    open_tab(page)
    page.locator("#grid-earlier input").click()
    page.locator("#grid-earlier").get_by_role("option").first.click()
    expect(line(page, "done")).to_contain_text("Opened the grid")
    cells(page, "done").first.click()
    expect(page.locator("#grid-details")).to_be_visible()
    look_at(page, "grid-earlier", "#grid-base")
    expect(page.locator("#grid-details")).to_be_visible()


def test_another_page_has_its_turn_between_two_cells(app, new_page):
    first, second = new_page(), new_page()
    turbo(first, "a SAR image of a mountain gorge")
    open_tab(first)
    first.fill("#grid-columns-values textarea", "1..4")
    choose(first, "grid-rows", "None", exact=True)
    expect(first.locator("#grid-size")).to_contain_text("4 cells")
    ask(second, "a SAR image of a village", steps=2, seed=5)
    first.locator("#grid-run").click()
    expect(cells(first, "running")).to_have_count(1)
    second.locator("#generate").click()
    expect(thumbnails(second)).to_have_count(1)
    expect(first.locator("#grid-stop")).to_be_visible()
    expect(line(first, "done")).to_contain_text("All 4 cells made")


def test_the_axes_come_back_after_a_reload_and_a_bad_grid_is_not_started(app, page):
    open_tab(page)
    axis(page, "columns", "Guidance", "1, 1.5")
    axis(page, "pages", "Seed", "8..9")
    choose(page, "grid-rows", "None", exact=True)
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_selector("#real-tile img")
    open_tab(page)
    expect(page.locator("#grid-columns input")).to_have_value("Guidance")
    expect(page.locator("#grid-columns-values textarea")).to_have_value("1, 1.5")
    expect(page.locator("#grid-pages-values textarea")).to_have_value("8..9")
    expect(page.locator("#grid-rows-values")).to_be_hidden()
    expect(page.locator("#grid-base")).to_contain_text("write one in Generate")
    before = len(app.run_folders())
    page.locator("#grid-run").click()
    expect(line(page, "failed")).to_contain_text("The prompt is empty")
    assert len(app.run_folders()) == before
