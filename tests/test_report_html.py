"""The HTML report is read back as a browser would: whole, self-contained, and with the figures of the comparison."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sar_gen import report_html
from sar_gen.amplitude import view
from sar_gen.comparison import compare_patches
from sar_gen.errors import InputError
from sar_gen.patches import Patch
from sar_gen.plots.style import DARK, LIGHT
from sar_gen.quality.sets import TrainingFeatures, compare_sets
from sar_gen.quality.wording import number, reading, title_of
from sar_gen.references import from_patches, load_reference
from sar_gen.report_html import MOST_PICTURES, html_document, write_html
from sar_gen.settings import Settings

ATTACK = '<img src=x onerror="alert(1)">.png'
VOID = {"meta", "img", "br", "source", "input", "link"}


class Page(HTMLParser):
    """Tables as texts, pictures and figures as bytes, and every address; complains of tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.images, self.tables, self.words = [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "srcset", "href") if name in values]
        if tag == "img":
            self.images.append((values["alt"], values["src"]))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, first):
        return next(table for table in self.tables if table[0][0] == first)


def speckled(count, mode, seed, prefix):
    rng = np.random.default_rng(seed)
    return [
        Patch(
            np.clip(rng.rayleigh(mode * rng.uniform(0.9, 1.1), (64, 64)), 0, 1).astype(np.float32),
            f"{prefix}{i}.png",
            polarisation="VV",
            group=f"{prefix}{i}",
            credit=f"credit of {prefix}",
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return dataclasses.replace(Settings(), home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def comparison(settings):
    real = dataclasses.replace(
        from_patches(speckled(9, 0.2, 0, "real"), "my-real"), credit="Whose data & co", licence="CC BY 4.0"
    )
    judged = speckled(3, 0.2, 1, "made")
    judged[1] = dataclasses.replace(judged[1], amplitude=judged[1].amplitude ** 2, name=ATTACK)
    return dataclasses.replace(compare_patches(judged, real, settings=settings), warnings=("Mind the <gap>.",))


@pytest.fixture(scope="module")
def text(comparison):
    """Drawing fourteen figures takes seconds: once for all tests that look at the whole page."""
    return html_document(comparison, about="made by a test")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def pixels(address):
    kind, data = address.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_page_is_whole_and_needs_nothing_else(comparison, text, page, tmp_path):
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"<script|https?://|url\(|@import", text)
    assert ATTACK not in text
    write_html(tmp_path / "report.html", comparison, about="made by a test")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    said = " ".join(page.words)
    for words in (comparison.report.verdict, "Mind the <gap>.", "Whose data & co", "CC BY 4.0", "credit of made"):
        assert words in said
    assert all(note in said for note in comparison.report.notes)
    assert said.rstrip().endswith("made by a test")


def test_judged_and_real_patches_are_shown_under_one_remap(comparison):
    page = Page(report_html._pictures(comparison, "density"))
    shown = dict(page.images)
    mean = comparison.report.amplitude["reference"]["mean"]
    order = [alt.removeprefix("Judged patch ") for alt, _ in page.images if alt.startswith("Judged")]
    assert order == [row.name for row in comparison.rows]
    assert order[0] == ATTACK  # the worst first
    for patch in comparison.patches:
        expected = view(patch.amplitude, "density", mean)
        np.testing.assert_array_equal(pixels(shown[f"Judged patch {patch.name}"]), expected)
    real = [address for alt, address in page.images if alt.startswith("Real patch")]
    assert len(real) == 9
    for address, patch in zip(real, comparison.reference.patches, strict=True):
        np.testing.assert_array_equal(pixels(address), view(patch.amplitude, "density", mean))
    with pytest.raises(InputError, match="linear, db, density, gamma"):
        html_document(comparison, remap="square")


def test_large_and_many_pictures_are_limited_and_said(comparison, monkeypatch):
    large = np.full((1024, 520), 0.2, np.float32)
    large[::2, ::2] = 1
    shown = report_html._view(large, "linear", 0.2)
    assert shown.shape == (512, 260)
    np.testing.assert_array_equal(shown, round(255 * (3 * 0.2 + 1) / 4))
    assert "520 × 1024 px, shown at 1 : 2" in report_html._reduced_note(large)
    monkeypatch.setattr(report_html, "MOST_PICTURES", 2)
    page = Page(report_html._pictures(comparison, "linear"))
    assert sum(alt.startswith("Judged") for alt, _ in page.images) == 2
    assert any("the 2 worst of 3" in words for words in page.words)
    assert MOST_PICTURES == 24


def test_tables_hold_the_figures_of_the_comparison(comparison, page):
    rows = page.table("Measure")[1:]
    assert [row[0] for row in rows] == [title_of(name) for name in comparison.report.measures]
    for row, measure in zip(rows, comparison.report.measures.values(), strict=True):
        low, high = measure.interval
        assert row[3] == number(measure.value)
        assert row[5:7] == [number(measure.floor), f"{number(low)} to {number(high)}"]
        ratio = "–" if measure.ratio is None else f"{measure.ratio:.2f}"  # block edges: real sets have none either
        assert row[7:] == [ratio, reading(measure)[1]]
    patches = page.table("Patch")[1:]
    assert [row[0] for row in patches] == [row.name for row in comparison.rows]
    for cells, row in zip(patches, comparison.rows, strict=True):
        assert cells[1] == title_of(row.worst)
        assert cells[2:] == [f"{ratio:.2f}" for ratio in (row.ratio, *row.ratios.values())]
    laws = [table for table in page.tables if table[0][0] == "Law"]
    for table, fits in zip(laws, (comparison.fits, comparison.reference_fits), strict=True):
        assert [row[0] for row in table[1:]] == [fit.title for fit in fits]
        assert table[1][4] == "0"
        assert [row[3] for row in table[1:]] == [f"{fit.ks:.3f}" for fit in fits]
        assert table[1][5] == ", ".join(f"{name} {value:.4g}" for name, value in fits[0].parameters.items())


def test_figures_come_for_light_and_dark_pages(text):
    figures = re.findall(r'<picture><source srcset="([^"]+)" media="[^"]+"><img src="([^"]+)"', text)
    assert len(figures) == 7 + 3  # and the scales of three maps

    def inks(image):
        return set(map(tuple, image[image[..., 3] == 255][:, :3].tolist()))

    for dark, light in figures:
        on_dark, on_light = inks(pixels(dark)), inks(pixels(light))
        for colours, own, other in ((LIGHT, on_light, on_dark), (DARK, on_dark, on_light)):
            written = {tuple(bytes.fromhex(colour[1:])) for colour in (colours.text, colours.muted)}
            assert written & own
            assert not written & other


def test_constant_patches_give_a_page_that_says_so(settings, comparison):
    flat = [Patch(np.full((64, 64), 0.3, np.float32), "flat.png", polarisation="VV")]
    page = Page(html_document(compare_patches(flat, comparison.reference, settings=settings)))
    said = " ".join(page.words)
    assert "No law can be fitted" in said
    assert "There is no generated patch with a spectrum to draw" in said
    assert "no homogeneous ground" in said


def test_a_set_that_ships_as_statistics_has_no_pictures(settings, comparison):
    shipped = dataclasses.replace(comparison, reference=load_reference("s1-gorge", settings))
    page = Page(report_html._pictures(shipped, "linear"))
    assert "Of this reference only statistics are at hand." in page.words
    assert sum(alt.startswith("Judged") for alt, _ in page.images) == len(page.images) == 3


def test_set_measures_and_nearest_training_patches_are_listed():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(80, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    groups = [str(i) for i in range(80)]
    training = TrainingFeatures(
        "the training patches", features[20:50], tuple(f"train{i}" for i in range(30)), tuple(groups[20:50]),
        features[50:],
    )  # fmt: skip
    sets = compare_sets(features[20:30], features[:20], groups[:20], training=training)
    page = Page(report_html._sets(sets))
    assert [row[0] for row in page.table("Measure")[1:]] == ["Kernel distance", "Density", "Coverage"]
    pairs = next(table for table in page.tables if "Nearest training patch" in table[0])
    assert [row[1] for row in pairs[1:]] == [pair.training for pair in sets.memorisation.pairs]
    assert sets.words in page.words
