"""The Compare tab in a browser: images of another model, judged by real ground."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from sar_gen.request import GenerationRequest
from sar_gen.runs import RunStore
from tests.browser.driver import choose, status


def speckle(seed: int, looks: float = 2.7, level: float = 0.36, side: int = 256) -> np.ndarray:
    """Amplitude of Gamma speckle on ground of several levels."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.gamma(8, 1 / 8, (8, 8)), np.ones((side // 8, side // 8)))
    return np.clip(level * np.sqrt(ground * rng.gamma(looks, 1 / looks, (side, side))), 0, 1).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    """Two patches: the one that comes later in the alphabet is far too bright."""
    near, bright = tmp_path / "near.npy", tmp_path / "too-bright.png"
    np.save(near, speckle(1))
    Image.fromarray(np.rint(speckle(2, level=0.9) * 255).astype(np.uint8)).save(bright)
    return [near, bright]


@pytest.fixture
def tab(page) -> Page:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-blank")).to_be_visible()
    return page


def drop(page: Page, whose: str, files) -> None:
    page.locator(f"#{whose}-files input[type=file]").set_input_files(files)
    expect(page.locator(f"#{whose}-files tr.file")).to_have_count(len(files))


def compare(page: Page) -> None:
    page.locator("#compare-go").click()
    page.locator("#compare-status .sg-status.done").wait_for()
    expect(page.locator("#compare-stage img").first).to_be_visible()


def rows(page: Page):
    return page.locator("#compare-rows tbody tr")


def test_dropped_images_are_judged_shown_and_exported(tab, files):
    page = tab
    drop(page, "judged", files)
    choose(page, "judged-meaning", "Studio amplitude")
    expect(page.get_by_label("Reference set")).to_have_value(re.compile("^Forest"))
    compare(page)

    expect(page.locator("#compare-status")).to_contain_text("Compared 2 patches")
    expect(page.locator("#compare-verdict .sg-verdict p")).to_contain_text("s1-forest")
    expect(page.locator("#compare-verdict small")).to_contain_text("2 judged")
    # The worst patch stands first and is open.
    expect(rows(page)).to_have_count(2)
    ratios = [float(text) for text in page.locator("#compare-rows td b").all_inner_texts()]
    assert ratios == sorted(ratios, reverse=True)
    expect(rows(page).first).to_have_attribute("aria-selected", "true")
    names = page.locator("#compare-rows tbody th").all_inner_texts()
    expect(page.locator("#compare-patch .sg-what")).to_contain_text(names[0])
    width = page.locator("#compare-stage img").first.evaluate("image => image.complete && image.naturalWidth")
    assert width == 256

    # A row opens its patch, by mouse and by keyboard.
    before = page.locator("#compare-stage img").first.get_attribute("src")
    rows(page).nth(1).click()
    expect(page.locator("#compare-patch .sg-what")).to_contain_text(names[1])
    expect(rows(page).nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#compare-stage img").first).not_to_have_attribute("src", before or "")
    rows(page).nth(1).press("ArrowUp")
    expect(page.locator("#compare-patch .sg-what")).to_contain_text(names[0])
    expect(page.locator("#compare-patch-next")).to_have_attribute("aria-label", "Next judged patch")
    page.locator("#compare-patch-next").click()
    expect(page.locator("#compare-patch")).to_contain_text("2/2")
    expect(page.locator("#compare-real")).to_contain_text("1/6")
    page.locator("#compare-real-next").click()
    expect(page.locator("#compare-real")).to_contain_text("2/6")

    # The slider moves by keyboard and by mouse, and stays where it was when the patch changes.
    page.locator("#compare-mode label", has_text="Slider").click()
    slider = page.locator(".sg-wipe input[type=range]")
    expect(slider).to_have_value("50")
    slider.press("ArrowRight")
    expect(slider).to_have_value("51")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    share = slider.input_value()
    assert 15 <= int(share) <= 25
    assert page.locator(".sg-wipe").evaluate("e => e.style.getPropertyValue('--wipe')") == f"{share}%"
    clip = page.locator(".sg-wipe .over").evaluate("e => getComputedStyle(e).clipPath")
    assert clip != "none"
    rows(page).first.click()
    expect(page.locator("#compare-patch")).to_contain_text("1/2")
    expect(page.locator(".sg-wipe input")).to_have_value(share)

    # Every chart is drawn when its tab is opened.
    expect(page.locator("#compare-histogram img")).to_be_visible()
    expect(page.locator("#compare-laws tbody tr")).to_have_count(6)
    charts = page.locator("#compare-charts")
    for name, count in (("Texture", 2), ("Spectrum", 1), ("Speckle", 1)):
        charts.get_by_role("tab", name=name).click()
        expect(page.locator(f"#compare-{name.lower()} img")).to_have_count(count)
    expect(page.locator("#compare-speckle")).to_contain_text("Ratio image")
    charts.get_by_role("tab", name="Measures").click()
    expect(page.locator("#compare-measures tbody tr", has_text="Wasserstein-1")).to_be_visible()
    page.locator("#compare-scope label", has_text="This patch").click()
    expect(page.locator("#compare-measures .sg-said")).to_contain_text("s1-forest")
    for option in ("Homogeneous windows", "Map: local ENL"):
        before = page.locator(".sg-wipe .over").get_attribute("src")
        choose(page, "compare-over", option)
        expect(page.locator(".sg-wipe .over")).not_to_have_attribute("src", before or "")

    # Downloads are whole.
    saved = {}
    for kind in ("json", "csv", "html"):
        with page.expect_download() as download:
            page.locator(f"#export-{kind}").click()
        assert re.fullmatch(rf"sar-comparison_s1-forest_[\d-]+\.{kind}", download.value.suggested_filename)
        saved[kind] = download.value.path().read_text()
    document = json.loads(saved["json"])
    assert [patch["name"] for patch in document["patches"]] == names
    assert document["verdict"] == page.locator("#compare-verdict p").inner_text()
    table = list(csv.DictReader(saved["csv"].splitlines()))
    assert [row["patch"] for row in table] == names
    assert float(table[0]["worst_ratio"]) == pytest.approx(ratios[0], abs=0.06)
    assert "data:image/png;base64," in saved["html"]
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", saved["html"]), "nothing is fetched from elsewhere"


def test_bad_input_gets_a_sentence_and_the_result_stays(tab, files, tmp_path):
    page = tab
    failed = page.locator("#compare-status .sg-status.failed")
    page.locator("#compare-go").click()
    expect(failed).to_contain_text("There are no patches to judge")
    drop(page, "judged", files[:1])
    page.locator("#compare-go").click()
    expect(failed).to_contain_text("It is not said what the values of the judged files mean")
    choose(page, "judged-meaning", "Studio amplitude")
    compare(page)
    verdict = page.locator("#compare-verdict p").inner_text()

    page.locator("#judged-files button[aria-label='Clear']").click()
    text = tmp_path / "notes.png"
    text.write_text("these are no pixels")
    drop(page, "judged", [text])
    page.locator("#compare-go").click()
    expect(failed).to_contain_text("notes.png")
    expect(page.locator("#compare-verdict p")).to_have_text(verdict)
    expect(page.locator("#compare-go")).to_be_visible()
    page.locator("#compare-against label", has_text="Files").click()
    page.locator("#compare-go").click()
    expect(failed).to_contain_text("There are no real patches")
    assert "Traceback" not in page.content()


def test_dropped_real_patches_are_the_reference(tab, files, tmp_path):
    page = tab
    real = [tmp_path / f"real-{seed}.npy" for seed in range(4)]
    for seed, path in enumerate(real):
        np.save(path, 40 * speckle(10 + seed, side=96))
    page.locator("#compare-against label", has_text="Files").click()
    drop(page, "real", real)
    choose(page, "real-meaning", "Linear amplitude")
    page.get_by_label("Scale").last.wait_for()
    drop(page, "judged", files[:1])
    choose(page, "judged-meaning", "Studio amplitude")
    page.keyboard.press("Control+Enter")
    page.locator("#compare-status .sg-status.done").wait_for()
    expect(page.locator("#compare-verdict small")).to_contain_text("4 real of Dropped patches (4)")
    expect(page.locator("#compare-real .sg-what")).to_contain_text("real-0.npy")
    expect(page.locator("#compare-stage .sg-badge")).to_have_count(0)


def written_run(app, seed: int):
    """Write a run of one patch, as the studio does, and return its folder."""
    checkpoint = {"id": "sar-mini", "amplitude_encoding": "linear", "polarisation": "VV"}
    run = RunStore(app.runs).begin(GenerationRequest(prompt="a SAR image of forest", seed=seed), checkpoint, {})
    run.save_patch(0, seed, speckle(seed))
    run.finish("done", {})
    return run.folder


def test_runs_are_compared_and_pages_do_not_see_each_other(app, new_page, files):
    older = written_run(app, 90)
    written_run(app, 91)
    first, second = new_page(), new_page()
    first.locator("#recover").click()
    status(first, "done")
    first.get_by_role("tab", name="Compare").click()
    first.locator("#compare-source label", has_text="A run").click()
    compare(first)
    expect(first.locator("#compare-patch .sg-what")).to_contain_text("seed91")

    second.get_by_role("tab", name="Compare").click()
    expect(second.locator("#compare-blank")).to_be_visible()
    drop(second, "judged", files)
    choose(second, "judged-meaning", "Studio amplitude")
    compare(second)
    expect(rows(second)).to_have_count(2)
    first.locator("#compare-remap label", has_text="dB").click()
    expect(first.locator("#compare-patch .sg-what")).to_contain_text("seed91")
    expect(rows(first)).to_have_count(1)

    # A run of before is chosen from the list; it is read as the studio wrote it.
    first.locator("#compare-run input").click()
    options = first.locator("#compare-run [role=option]")
    position = [path.name for path in reversed(app.run_folders())].index(older.name)
    options.nth(1 + position).click()
    compare(first)
    expect(first.locator("#compare-patch .sg-what")).to_contain_text("seed90")


def test_a_picture_of_the_studio_says_what_it_is(app, tab):
    page = tab
    drop(page, "judged", [written_run(app, 92) / "000_seed92.png"])
    expect(page.locator("#judged-meaning input")).to_have_value("As the studio wrote them")
    compare(page)
    expect(rows(page)).to_have_count(1)
