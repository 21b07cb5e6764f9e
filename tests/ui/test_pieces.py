"""The pure parts of the page: what becomes of values and texts before gradio sees them."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import stat
import threading

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from sar_gen import checkpoints, hub
from sar_gen.errors import InputError, SarGenError
from sar_gen.quality.report import Measure
from sar_gen.quality.wording import reading
from sar_gen.request import GenerationRequest, Guide, Step
from sar_gen.settings import Settings
from sar_gen.ui import memory, views
from sar_gen.ui.downloads import download_lines, size
from sar_gen.ui.generate import step_line
from sar_gen.ui.inputs import FORM, RANDOM_SEEDS, appended, form_of, kept_of, picked, read_form, with_choices
from sar_gen.ui.told import told
from tests import fake

VALUES = {
    "checkpoint": "sar-mini", "strategy": "foundation", "prompt": "a SAR image of forest", "negative": "", "count": 2,
    "best_of": 0, "random": False, "seed": 7, "steps": 4, "guidance": 1.5, "scheduler": "default", "profile": "fast",
    "width": 256, "height": 256,
    "guide": "none", "guide_kind": "map", "palette": "auto", "way": "image-to-image", "weight": 1.0, "start": 0.0,
    "end": 1.0, "strength": 0.6,
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return dataclasses.replace(Settings(), home=tmp_path / "home", runs=tmp_path / "runs")


def test_the_form_becomes_a_request_and_back():
    request = read_form(VALUES, ())
    assert request == GenerationRequest(
        "a SAR image of forest", "", "sar-mini", "foundation", 2, 7, 4, 1.5, 256, 256, "default", (), 0.6, "fast"
    )
    assert form_of(request) == VALUES
    drawn = dataclasses.replace(request, guides=(Guide("sketch", np.zeros((8, 8, 3), np.uint8), weight=0.5),))
    assert (form_of(drawn)["guide"], form_of(drawn)["weight"]) == ("sketch", 0.5)


def test_best_of_makes_more_than_it_keeps():
    best = {**VALUES, "best_of": 8}
    assert (read_form(best, ()).count, kept_of(best)) == (8, 2)
    assert (read_form(VALUES, ()).count, kept_of(VALUES)) == (2, None)
    assert kept_of({**VALUES, "best_of": 2}) is None
    assert kept_of({**VALUES, "best_of": None}) is None


def test_a_random_seed_is_drawn_anew_and_needs_no_number():
    values = {**VALUES, "random": True, "seed": None}
    seeds = {read_form(values, ()).seed for _ in range(20)}
    assert len(seeds) > 15
    assert max(seeds) < RANDOM_SEEDS


@pytest.mark.parametrize("name", ["seed", "steps", "guidance", "width", "height", "count"])
def test_an_empty_number_is_named(name):
    with pytest.raises(InputError, match=r"is empty; type a number"):
        read_form({**VALUES, name: None}, ())


def test_an_example_takes_the_place_of_another_but_not_of_ones_own_words():
    examples = ("a river", "a forest")
    assert picked("a river", "a forest", examples) == "a forest"
    assert picked("", "a forest", examples) == "a forest"
    assert picked("my own scene", "a forest", examples) == "my own scene, a forest"
    assert picked("a river", "VV polarisation", examples) == "a river, VV polarisation"


def test_hints_are_appended_once():
    assert appended("", "forest") == "forest"
    assert appended("a SAR image of a river, ", "VV polarisation") == "a SAR image of a river, VV polarisation"
    assert appended("a SAR image of Forest", "forest") == "a SAR image of Forest"


def test_texts_are_escaped():
    attack = '<img src=x onerror="alert(1)">'
    for html in (
        views.status(attack, "failed", 0.5, attack),
        views.sentence(attack),
        views.chips([(attack, (attack,))], "word"),
        views.tile("data:,", role="real", title=attack, aside=attack, badge=attack),
        views.properties([(attack, attack)]),
        views.notes([attack]),
    ):
        assert "<img src=x" not in html


def test_a_picture_in_the_page_is_exact():
    pixels = np.random.default_rng(3).integers(0, 256, (32, 24), dtype=np.uint8)
    kind, data = views.png_url(pixels).split(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


def test_a_link_holds_the_whole_document():
    link = views.json_link({"a": [1, 2]}, "report.json", "Export")
    data = link.split("base64,")[1].split('"')[0]
    assert json.loads(base64.b64decode(data)) == {"a": [1, 2]}


def test_progress_counts_all_patches():
    html = step_line(Step(step=5, steps=10, first=1, size=1, count=4, seconds=3.0, eta=7.0))
    assert "Step 5 of 10 · patch 2 of 4" in html
    assert 'aria-valuenow="38"' in html  # (1 + 0.5) / 4
    assert "7.0 s left" in html


@pytest.mark.parametrize(
    ("measure", "kind"),
    [
        (Measure(0.02, 0.03, "", 0.67, 0.05), "good"),
        (Measure(0.04, 0.03, "", 1.33, 0.05), "good"),
        (Measure(0.055, 0.03, "", 1.83, 0.05), "fair"),
        (Measure(0.2, 0.03, "", 6.7, 0.05, relative=-0.3), "poor"),
        (Measure(0.2, None, "", None, None), "none"),
        (Measure(None, 0.1, "", None, None), "none"),
    ],
)
def test_a_measure_is_read_against_real_patches(measure, kind):
    assert reading(measure)[0] == kind


def test_a_reading_gives_the_direction():
    assert reading(Measure(0.2, 0.03, "", 6.7, 0.05, relative=-0.3))[1] == "off, 30% too low"


def test_a_download_tells_bytes_and_time_left_then_its_outcome(settings, monkeypatch):
    seen = threading.Event()

    def pull(spec, settings, progress):
        progress(hub.Progress("unet", 50_000_000, 200_000_000, 5e6, 30.0))
        assert seen.wait(10)

    monkeypatch.setattr(checkpoints, "pull", pull)
    lines = download_lines("sar-mini", None, settings)
    next(lines)
    line = next(lines)
    assert "50 MB of 200 MB · 5 MB/s" in line
    assert "30 s left" in line
    seen.set()
    assert "Downloaded." in list(lines)[-1]

    def cut(spec, settings, progress):
        raise SarGenError("The hub cannot be reached; the file unet is needed.")

    monkeypatch.setattr(checkpoints, "pull", cut)
    assert "the file unet is needed" in list(download_lines("sar-mini", None, settings))[-1]


def test_sizes_and_durations_are_for_people():
    assert [size(n) for n in (12, 137_000_000, 6_940_000_000)] == ["12 B", "137 MB", "6.94 GB"]
    assert [views.duration(s) for s in (4.71, 61, 600, 7200)] == ["4.7 s", "61 s", "10 min", "2.0 h"]


def test_an_unforeseen_failure_is_one_sentence(caplog):
    assert told(InputError("The prompt is empty.")) == "The prompt is empty."
    assert not caplog.records
    text = told(ValueError("two\nlines"))
    assert "\n" not in text
    assert "ValueError: two lines" in text
    assert caplog.records


def test_the_browser_key_is_made_once_and_private(settings):
    secret = memory.page_secret(settings)
    assert len(secret) >= 16
    assert memory.page_secret(settings) == secret
    path = settings.home / memory.SECRET_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_unwritable_home_still_gives_a_key(settings, tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    assert len(memory.page_secret(settings)) >= 16


def skipped(value):
    return isinstance(value, dict) and value == gr.skip()


def test_a_remembered_form_comes_back(settings):
    defaults = {**VALUES, "prompt": None, "seed": 0}
    saved = {"version": memory.VERSION, "form": VALUES}
    assert memory.restored(saved, FORM, defaults, settings) == [VALUES[name] for name in FORM]


@pytest.mark.parametrize(
    "saved", [None, "text", {}, {"version": 0, "form": VALUES}, {"version": memory.VERSION, "form": [1]}]
)
def test_a_strange_memory_is_forgotten(settings, saved):
    assert all(skipped(value) for value in memory.restored(saved, FORM, VALUES, settings))


def test_what_is_no_longer_possible_is_not_restored(settings):
    form = {**VALUES, "checkpoint": "gone", "scheduler": "magic", "count": "many", "random": 1, "palette": "gone"}
    form["profile"] = "gone"
    values = dict(zip(FORM, memory.restored({"version": 1, "form": form}, FORM, VALUES, settings), strict=True))
    for name in ("checkpoint", "strategy", "steps", "width", "scheduler", "count", "random", "palette", "profile"):
        assert skipped(values[name]), name
    assert values["prompt"] == VALUES["prompt"]


def test_presets_belong_to_the_studio(settings):
    from sar_gen import references

    presets = json.loads((settings.assets / "presets.json").read_text())
    known = {info.name for info in references.list_references(settings)}
    spec = checkpoints.catalogue(settings)["sar-mini"]
    for preset in presets:
        assert preset["reference"] in known
        assert spec.polarisation_of(preset["prompt"]) == "VV"


def test_a_page_that_is_loaded_again_offers_what_was_dropped_in(settings, tmp_path):
    settings = dataclasses.replace(settings, checkpoint_folders=(tmp_path / "trained",))
    (tmp_path / "trained").mkdir()
    before = with_choices(settings, "sar-mini", gr.skip(), gr.skip())
    folder = tmp_path / "trained" / "mine"
    fake.weights(folder / "unet" / "diffusion_pytorch_model.safetensors", {fake.UNET_KEY: (8, 2048)})
    (folder / "card.toml").write_text('id = "mine"\nbase = "sar-mini"\ntitle = "Mine"\n')
    after = with_choices(settings, "sar-mini", "mine", gr.skip())
    assert [c for c in after["checkpoint"].choices if c not in before["checkpoint"].choices] == [("Mine", "mine")]
    # the base's own, those that ship, the one that was dropped in
    assert [value for _, value in after["strategy"].choices] == ["foundation", "vae-decoder", "turbo", "unet-full"]
    assert after["checkpoint"].value == "mine"
    # What is shown is kept: an update holds only what it was given.
    assert "value" not in before["checkpoint"].constructor_args
    assert with_choices(settings, "gone", gr.skip(), gr.skip()).keys() == {"checkpoint"}
