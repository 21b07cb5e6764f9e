"""The judgement column without a page: what is drawn, kept and scored for a run on disk."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from sar_gen import checkpoints
from sar_gen.quality.laws import fit_laws
from sar_gen.quality.report import Measure
from sar_gen.quality.wording import NAMES, meaning_of, number, title_of, verdict_class
from sar_gen.references import load_reference
from sar_gen.request import GenerationRequest
from sar_gen.settings import ROOT, Settings
from sar_gen.studio import Studio, checkpoint_facts
from sar_gen.ui import judgement, judging
from sar_gen.ui.generate import panel, scored, tiles
from sar_gen.ui.results import gallery_items, settings_used

REFERENCE = "s1-gorge"


def speckled(seed):
    """Four-look speckle on two fields, as bright as the reference, 128 x 128."""
    rng = np.random.default_rng(seed)
    power = np.full((128, 128), 0.08)
    power[:, 64:] = 0.12
    return np.clip(np.sqrt(power * rng.gamma(4, 1 / 4, power.shape)), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    return Studio(dataclasses.replace(Settings(), home=root / "home", runs=root / "runs", device="cpu"))


def make_run(studio, patches, report=None):
    spec = checkpoints.catalogue(studio.settings)["sar-mini"]
    request = GenerationRequest("a SAR image of forest", count=len(patches), seed=1, steps=2)
    run = studio.store.begin(request, checkpoint_facts(spec, request.prompt), {})
    for index, patch in enumerate(patches):
        run.save_patch(index, index + 1, patch)
    run.finish("done", {}, report)
    return run


@pytest.fixture(scope="module")
def run(studio):
    return make_run(studio, [speckled(0), speckled(1)])


def shown(run, index=0):
    return {"run": str(run.folder), "index": index, "count": len(run.images)}


def drawn(html):
    return "data:image/png;base64," in html


@pytest.mark.parametrize("front", [*judging.CHARTS, "measures"])
def test_only_the_chart_in_front_is_drawn_and_then_kept(studio, front):
    run = make_run(studio, [speckled(10 + len(front))])
    place = (*judging.CHARTS, "measures").index(front)
    verdict, column, *charts, table, button, line = panel(
        studio, shown(run), REFERENCE, "one", "linear", "means", front
    )
    assert "s1-gorge" in verdict
    assert column.visible
    assert [drawn(html) for html in charts] == [at == place for at in range(4)]
    assert "Wasserstein-1" in table
    assert (button.visible, line) == (True, "")
    again = panel(studio, shown(run), REFERENCE, "one", "linear", "means", "measures")[2:6]
    assert again == tuple(charts)  # what was drawn is still there when another tab is in front


def test_the_texture_is_drawn_by_direction_when_asked(studio, run):
    means, directions = (
        panel(studio, shown(run), REFERENCE, "one", "linear", kind, "texture")[3] for kind in ("means", "directions")
    )
    assert drawn(means)
    assert drawn(directions)
    assert means != directions


def test_quick_laws_are_those_of_the_pixels(run):
    images = judging.chosen(run, 0, "all")
    fits = judging.fits_of(images)
    assert {fit.name for fit in fits} == set(judging.QUICK_LAWS)
    pixels = np.stack([np.load(image.amplitude_file) for image in images])
    exact = {fit.name: fit for fit in fit_laws(pixels, judging.QUICK_LAWS)}
    assert fits[0].name == next(iter(exact))
    for fit in fits:
        assert fit.ks == pytest.approx(exact[fit.name].ks, abs=0.01)
    assert judging.fits_of(images) is fits


def test_constant_patches_say_why_there_is_nothing_to_draw(studio):
    run = make_run(studio, [np.full((64, 64), 0.3, np.float32)])
    for front, words in (("spectrum", "no generated patch with a spectrum"), ("speckle", "no homogeneous ground")):
        charts = panel(studio, shown(run), REFERENCE, "one", "linear", "means", front)[2:6]
        assert words in charts[judging.CHARTS.index(front)]
    assert judging.fits_of(tuple(run.images)) == ()
    assert drawn(panel(studio, shown(run), REFERENCE, "one")[2])


def test_windows_are_outlined_on_both_pictures(studio, run):
    plain, outlined = (tiles(studio, shown(run), "ben-vv", "linear", 0, windows) for windows in (False, True))
    for before, after in zip(plain, outlined, strict=True):
        assert before != after
        caption = re.compile(r"<figcaption>.*")
        assert caption.search(before).group() == caption.search(after).group()  # the size is the patch's own
    made, _ = judging.views_of(speckled(0), None, "linear", True)
    assert made.shape == (256, 256, 3)
    assert (made == (63, 182, 200)).all(axis=2).any()


def test_a_prompt_is_scored_when_asked_and_kept(studio, run):
    assert panel(studio, shown(run), REFERENCE, "one")[7].visible
    first, last = list(scored(studio, shown(run), REFERENCE, "one", 4))
    assert (first[0].interactive, first[2]) == (False, 4)
    assert (last[0].interactive, last[1], last[2]) == (True, "", 5)
    *_, table, button, line = panel(studio, shown(run), REFERENCE, "one")
    assert "Prompt agreement" in table
    assert not button.visible
    assert "right captions of real patches" in line
    document = json.loads(base64.b64decode(re.search(r'href="data:[^,]+,([^"]+)"', table).group(1)))
    assert 0 < document["measures"]["semantic"]["value"] < 2
    assert panel(studio, shown(run, 1), REFERENCE, "one")[7].visible, "another patch is another question"
    assert panel(studio, shown(run), REFERENCE, "all")[7].visible


def test_the_score_of_the_run_is_that_of_all_its_patches(studio):
    patches = [speckled(2), speckled(3)]
    reference = load_reference(REFERENCE, studio.settings)
    report = studio.judge(patches, reference, prompt="a SAR image of forest", polarisation="VV")
    run = make_run(studio, patches, report.to_json())
    record = studio.store.open(run.folder)
    score = judging.prompt_score(record, judging.chosen(record, 0, "all"))
    assert score.measure == report.measures["semantic"]
    assert f"Prompt: {score.text}" in report.notes
    assert judging.prompt_score(record, judging.chosen(record, 0, "one")) is None
    told = judging.with_prompt(judging.report_on(judging.chosen(record, 0, "all"), REFERENCE, studio.settings), score)
    assert told.measures["semantic"] == report.measures["semantic"]
    assert "Prompt agreement" in panel(studio, shown(run), REFERENCE, "all")[6]


def test_a_missing_sar_clip_is_said_and_blocks_nothing(tmp_path, run):
    settings = dataclasses.replace(Settings(), home=tmp_path, runs=run.folder.parent, checkpoints=tmp_path / "none")
    (tmp_path / "none").mkdir()
    shutil.copy(ROOT / "checkpoints" / "sar-mini" / "card.toml", tmp_path / "none")
    last = list(scored(Studio(settings), shown(run, 1), REFERENCE, "one", 4))[-1]
    assert "SAR-CLIP is not in" in last[1]
    assert last[2] == 4


def test_the_table_shows_the_interval_and_names_every_measure():
    report = dataclasses.make_dataclass("Report", ["measures", "notes"])(
        {
            "spectrum_direction": Measure(0.2, 0.1, "dB", 2.0, 0.3, interval=(0.04, 0.31)),
            "new_measure": Measure(None, None, "", None, None),
        },
        (),
    )
    html = judgement.table(report, "")
    assert f"{number(0.1)}<small>0.04 – 0.31</small>" in html
    assert "Spectrum by direction" in html
    assert "new measure" in html
    assert (title_of("new_measure"), meaning_of("new_measure")) == ("new measure", "")
    assert {"kernel_distance", "density", "coverage", "semantic", "speckle_correlation"} <= set(NAMES)


@pytest.mark.parametrize(
    ("lead", "other", "kind"), [(0.02, 0.02, "good"), (0.02, 0.2, "fair"), (0.2, 0.02, "poor"), (0.2, 0.2, "poor")]
)
def test_a_verdict_is_not_green_where_anything_is_beyond(lead, other, kind):
    def measure(value):
        return Measure(value, 0.03, "", value / 0.03, 0.05)

    report = dataclasses.make_dataclass("Report", ["measures"])({"wasserstein1": measure(lead), "enl": measure(other)})
    assert verdict_class(report) == kind


def test_a_best_of_run_is_judged_by_what_it_kept(studio):
    run = make_run(studio, [speckled(4), speckled(5), speckled(6)])
    record = dataclasses.replace(studio.store.open(run.folder), selection={"kept": [2, 0], "text": "Kept 2 of 3."})
    assert [image.index for image in judging.chosen(record, 0, "all")] == [0, 2]
    assert [image.index for image in judging.chosen(record, 1, "one")] == [1]
    captions = [caption for _, caption in gallery_items(record)]
    assert [caption.startswith("★") for caption in captions] == [True, False, True]
    assert "Kept 2 of 3." in settings_used(record, 0)
