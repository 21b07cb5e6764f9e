"""Takes the pictures of the README from the real app: ``python -m tests.browser.screenshots [FOLDER]``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from sar_gen.settings import ROOT
from tests.browser import driver

SIZE = {"width": 1440, "height": 900}
LARGEST = 600_000  # bytes of one picture


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        driver.running_app(Path(scratch)) as app,
        driver.running_browser() as browser,
    ):
        page = browser.new_context(viewport=SIZE, device_scale_factor=2, color_scheme="light").new_page()
        driver.open_page(page, app)
        expect(page.locator("#engine .sg-engine.ready")).to_be_visible(timeout=120_000)
        save(page, folder / "first-run-light.png")
        page.locator(".sg-preset", has_text="Mountain gorge").click()
        driver.set_number(page, "count", 4)
        page.locator("#random-seed input").uncheck()
        driver.set_number(page, "seed", 7)
        page.locator("#generate").click()
        page.locator("#status .sg-status.done").wait_for(timeout=300_000)
        page.locator("#histogram img").wait_for()
        driver.thumbnails(page).first.click()
        page.locator("#scope label", has_text="All patches").click()
        expect(page.locator("#verdict small")).to_contain_text("4 generated", timeout=30_000)
        settle(page)
        save(page, folder / "generate-light.png")
        page.locator("#theme").click()
        page.get_by_role("tab", name="Texture").click()
        settle(page)
        save(page, folder / "generate-dark.png")
        compare(page)
        page.get_by_role("tab", name="Texture").last.click()
        settle(page)
        save(page, folder / "compare-dark.png")
        page.locator("#theme").click()
        page.locator("#compare-charts button[role=tab]", has_text="Amplitude").click()
        settle(page)
        save(page, folder / "compare-light.png")

        page = browser.new_context(viewport=SIZE, device_scale_factor=2, color_scheme="dark").new_page()
        driver.open_page(page, app)
        page.locator("#recover").click()
        page.locator("#histogram img").wait_for()
        page.locator("#guide label", has_text="Sketch").click()
        draw(page)
        save(page, folder / "sketch-dark.png")

        # Twelve patches of speckle take many bytes: fewer pixels, so that the colours of the figures stay as they are.
        page = browser.new_context(viewport=SIZE, device_scale_factor=1, color_scheme="dark").new_page()
        driver.open_page(page, app)
        grid(page)
        save(page, folder / "grid-dark.png")


def grid(page: Page) -> None:
    """Lay seeds beside strategies, and look at one cell."""
    page.locator(".sg-preset", has_text="Mountain gorge").click()
    page.locator("#random-seed input").uncheck()
    page.get_by_role("tab", name="Grid").click()
    expect(page.locator("#grid-size")).to_contain_text("12 cells (4 × 3)")
    page.locator("#grid-run").click()
    page.locator("#grid-status .sg-status.done").wait_for(timeout=300_000)
    driver.choose(page, "grid-measure", "GLCM homogeneity")
    page.locator('#grid-body [data-place="2-0-0"]').click()
    page.locator("#grid-detail img").wait_for()
    settle(page)


def compare(page: Page) -> None:
    """Judge the run shown in Generate by real gorges."""
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-source label", has_text="run").click()
    driver.choose(page, "compare-reference", "Mountain gorges")
    page.locator("#compare-go").click()
    page.locator("#compare-status .sg-status.done").wait_for(timeout=120_000)
    expect(page.locator("#compare-stage img").first).to_be_visible()


def draw(page: Page) -> None:
    """Draw a river between fields and a forest."""
    page.wait_for_selector("#sketch-editor canvas")
    page.wait_for_timeout(2000)
    box = page.locator("#sketch-editor canvas").first.bounding_box()
    assert box is not None
    left, top, side = box["x"] + (box["width"] - 440) / 2, box["y"] + (box["height"] - 440) / 2, 440
    strokes = {
        "Forest": [[(0.12, 0.16), (0.3, 0.13), (0.2, 0.24), (0.36, 0.22), (0.15, 0.3), (0.3, 0.31)]],
        "Urban": [[(0.68, 0.72), (0.82, 0.74), (0.72, 0.8), (0.85, 0.83)]],
        "Water": [[(0.08, 0.62), (0.25, 0.5), (0.42, 0.52), (0.55, 0.6), (0.7, 0.5), (0.8, 0.34), (0.95, 0.28)]],
    }
    for name, lines in strokes.items():
        page.locator(".sg-brush", has_text=name).click()
        expect(page.locator(".sg-brush", has_text=name)).to_have_attribute("aria-pressed", "true")
        page.wait_for_timeout(6000)  # strokes are sent to the server; without a GPU that takes a while
        for line in lines:
            for number, (x, y) in enumerate(line):
                page.mouse.move(left + x * side, top + y * side, steps=3)
                if not number:
                    page.mouse.down()
                page.wait_for_timeout(150)
            page.mouse.up()
            page.wait_for_timeout(1500)
    expect(page.locator("#sketch-view")).to_contain_text("Water", timeout=60_000)
    page.mouse.move(5, 5)
    settle(page)


def settle(page: Page) -> None:
    """Wait until figures have arrived, images are decoded and nothing hovers."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(2500)


def save(page: Page, path: Path) -> None:
    """Write the page as a PNG of few colours, fewer where it would be too large."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for colours in (256, 192, 128, 96, 80, 64, 48):
        buffer = io.BytesIO()
        few = picture.quantize(palette=palette(picture, colours), dither=Image.Dither.NONE)
        few.save(buffer, "png", optimize=True)
        if buffer.tell() <= LARGEST:
            break
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {buffer.tell() / 1000:.0f} kB, {colours} colours")


def palette(picture: Image.Image, colours: int) -> Image.Image:
    """Choose colours by how many there are, not by their area: grey SAR would take all of them."""
    pixels = np.asarray(picture, dtype=np.uint32)
    packed, counts = np.unique((pixels << np.array([16, 8, 0], dtype=np.uint32)).sum(axis=2), return_counts=True)
    unique = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    flat = unique[np.argsort(counts)[::-1][: colours // 4]]  # areas of one colour stay as they are
    seen = counts >= 12  # less is the edge of a letter
    sample = np.repeat(unique[seen], np.ceil(np.log2(counts[seen])).astype(int), axis=0).astype(np.uint8)
    rest = Image.fromarray(sample[None]).quantize(colours - len(flat), Image.Quantize.MEDIANCUT)
    result = Image.new("P", (1, 1))
    result.putpalette(flat.astype(np.uint8).tobytes() + bytes(rest.getpalette() or []))
    return result


if __name__ == "__main__":
    main()
