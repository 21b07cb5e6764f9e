"""The Compare tab without a page: what is read, what is kept, what is said and drawn."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image

from sar_gen import references
from sar_gen.amplitude import Scale, view
from sar_gen.comparison import compare_patches
from sar_gen.errors import InputError
from sar_gen.patches import Patch
from sar_gen.request import GenerationRequest
from sar_gen.runs import RunStore
from sar_gen.settings import Settings
from sar_gen.ui import compare, compare_views, comparing
from sar_gen.ui.compare_form import SHOWN_RUN, read_form
from sar_gen.ui.comparing import Dropped, Shelf

ATTACK = '<img src=x onerror="alert(1)">'


@pytest.fixture
def settings(tmp_path):
    return dataclasses.replace(Settings(), home=tmp_path / "home", runs=tmp_path / "runs")


def speckle(seed, looks=4, level=0.3, side=64):
    """Amplitude of Gamma intensity of one level."""
    rng = np.random.default_rng(seed)
    return np.clip(level * np.sqrt(rng.gamma(looks, 1 / looks, (side, side))), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    patches = [Patch(speckle(seed), f"real-{seed}.npy", group=f"ground {seed}") for seed in range(12)]
    return references.from_patches(patches, "test ground", title="Test ground")


@pytest.fixture(scope="module")
def comparison(reference):
    made = [
        Patch(speckle(100), "like-real.npy"),
        Patch(speckle(101, level=0.8), f"{ATTACK}.npy"),
        Patch(speckle(102, looks=20), "smooth.npy"),
    ]
    return compare_patches(made, reference, settings=Settings())


@pytest.fixture
def kept(comparison):
    shelf = Shelf()
    return shelf.get(shelf.put(comparison))


def write(path, amplitude):
    if path.suffix == ".npy":
        np.save(path, amplitude)
    else:
        Image.fromarray(np.rint(amplitude * 255).astype(np.uint8)).save(path)
    return path


# ---- what was dropped


def test_files_of_any_folder_are_read_together(tmp_path, settings):
    """Two uploads may have one name; each lies in a folder of its own."""
    for folder, seed in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.npy", speckle(seed))
    files = (tmp_path / "one" / "a.npy", tmp_path / "two" / "a.npy")
    patches = comparing.read_dropped(Dropped(files, "studio"), "the files", settings)
    assert [patch.name for patch in patches] == ["a (2).npy", "a.npy"]
    assert np.array_equal(patches[1].amplitude, speckle(1))
    assert np.array_equal(patches[0].amplitude, speckle(2))


def test_one_scale_is_taken_for_all_files_or_the_reference_sets(tmp_path, settings):
    linear = [100 * speckle(1), 300 * speckle(2)]
    files = tuple(write(tmp_path / f"{i}.npy", values) for i, values in enumerate(linear))
    pooled = comparing.read_dropped(Dropped(files, "amplitude"), "the files", settings)
    pixels = np.concatenate([values.ravel() for values in linear]).astype(np.float64)
    peak = pixels.mean() + 3 * pixels.std()
    for patch, values in zip(pooled, linear, strict=True):
        np.testing.assert_allclose(patch.amplitude, np.clip(values / peak, 0, 1), rtol=1e-5)
    own = Scale(70.0, 20.0, "theirs")
    theirs = comparing.read_dropped(Dropped(files, "amplitude", scale="reference"), "the files", settings, own)
    np.testing.assert_allclose(theirs[0].amplitude, np.clip(linear[0] / 130, 0, 1), rtol=1e-5)
    typed = Dropped(files, "amplitude", scale="given", mean="70", std=" 20 ")
    given = comparing.read_dropped(typed, "the files", settings)
    assert np.array_equal(given[0].amplitude, theirs[0].amplitude)
    assert comparing.pools_own_scale(Dropped(files, "amplitude"))
    assert not comparing.pools_own_scale(typed)
    assert not comparing.pools_own_scale(Dropped(files, "studio"))


def test_grey_decibels_are_read_by_their_typed_range(tmp_path, settings):
    file = tmp_path / "grey.png"
    Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))).save(file)
    dropped = Dropped((file,), "db", low="−25", high="0", scale="given", mean="0.25", std="0.25")
    patch = comparing.read_dropped(dropped, "the files", settings)[0]
    expected = np.clip(10 ** ((-25 + np.arange(0, 256, 4) / 255 * 25) / 20), 0, 1)  # the scale's peak is 1
    np.testing.assert_allclose(patch.amplitude[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"meaning": None}, "It is not said what the values"),
        ({"meaning": "db", "low": "-25"}, "decibels at full scale of the files is empty"),
        ({"meaning": "db", "low": "dark", "high": "0"}, "decibels at grey 0 of the files is no number"),
        ({"meaning": "intensity", "scale": "reference"}, "states no scale"),
        ({"meaning": "intensity", "scale": "given", "mean": "1"}, "deviation of the files is empty"),
        ({"meaning": "intensity", "scale": "given", "mean": "1", "std": "-1"}, "must be above 0"),
        ({"meaning": "intensity", "scale": "given", "mean": "nan", "std": "1"}, "is no number"),
    ],
)
def test_what_is_not_said_is_asked_for(tmp_path, fields, words):
    with pytest.raises(InputError, match=re.escape(words)):
        comparing.pixel_meaning(Dropped((tmp_path / "a.npy",), **fields), "the files")


def test_no_file_and_a_file_that_is_too_large_are_refused(tmp_path, settings):
    with pytest.raises(InputError, match="There are no files"):
        comparing.read_dropped(Dropped((), "studio"), "the reference", settings)
    small = dataclasses.replace(settings, max_pixels=1000)
    with pytest.raises(InputError, match=r"a\.npy"):
        comparing.read_dropped(Dropped((write(tmp_path / "a.npy", speckle(1)),), "studio"), "the files", small)


def test_files_of_the_studio_say_what_they_are(tmp_path, settings):
    run = RunStore(settings.runs).begin(GenerationRequest(prompt="a SAR image of forest"), {"id": "sar-mini"}, {})
    run.save_patch(0, 7, speckle(7))
    picture, amplitude = run.folder / "000_seed7.png", run.folder / "000_seed7.npy"
    plain = write(tmp_path / "plain.png", speckle(8))
    assert comparing.says_itself([picture], settings)
    assert comparing.says_itself([picture, amplitude], settings)
    assert not comparing.says_itself([amplitude], settings)
    assert not comparing.says_itself([picture, plain], settings)
    assert not comparing.says_itself([], settings)
    (tmp_path / "text.png").write_text("no pixels")
    assert not comparing.says_itself([tmp_path / "text.png"], settings)
    # A picture and the float amplitude beside it are one patch, and it is the float that is judged.
    patches = comparing.read_dropped(Dropped((picture, amplitude), comparing.TOLD), "the files", settings)
    assert len(patches) == 1
    assert np.array_equal(patches[0].amplitude, speckle(7))


def test_a_chosen_folder_may_hold_other_files():
    names = ["b.PNG", "a.npy", "notes.txt", "run.json"]
    assert [path.name for path in comparing.usable(names)] == ["a.npy", "b.PNG"]


# ---- the form


def form(**changes):
    empty = [None, None, "", "", "pool", "", ""]
    values = {"source": "files", "own": empty, "run": SHOWN_RUN, "against": "set", "set": "s1-forest", "real": empty}
    values |= {"prompt": "", "features": False} | changes
    order = ("run", "against", "set")
    rest = [values[name] for name in order]
    return [values["source"], *values["own"], *rest, *values["real"], values["prompt"], values["features"]]


def test_the_form_becomes_a_question():
    files = ["/tmp/a.npy", "/tmp/b.npy"]
    own = [files, "db", "-25", "0", "given", "1", "2"]
    question = read_form(form(own=own, prompt="  a river ", features=True), None)
    assert question.dropped is not None
    assert [str(path) for path in question.dropped.files] == files
    assert dataclasses.astuple(question.dropped)[1:] == ("db", "-25", "0", "given", "1", "2")
    assert (question.reference, question.real, question.run) == ("s1-forest", None, None)
    assert (question.prompt, question.features) == ("a river", True)
    question = read_form(form(source="run", against="files", real=own), {"run": "/runs/one", "index": 0})
    assert str(question.run) == "/runs/one"
    assert question.dropped is None
    assert question.reference is None
    assert question.real is not None
    assert question.prompt is None
    assert str(read_form(form(source="run", run="/runs/two"), None).run) == "/runs/two"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "There are no patches to judge"),
        ({"source": "run"}, "There is no run in Generate yet"),
        ({"source": "run", "run": "/runs/a", "set": None}, "No reference set is chosen"),
        ({"source": "run", "run": "/runs/a", "against": "files"}, "There are no real patches"),
    ],
)
def test_what_is_missing_is_named(changes, words):
    with pytest.raises(InputError, match=words):
        read_form(form(**changes), None)


# ---- following


def test_progress_comes_as_it_is_said_and_the_result_last():
    def work(say):
        say("one")
        say("two")
        return 3

    assert list(comparing.follow(work, threading.Event())) == ["one", "two", (3,)]


def test_a_failure_comes_through():
    def work(say):
        raise InputError("The file is damaged.")

    with pytest.raises(InputError, match="damaged"):
        list(comparing.follow(work, threading.Event()))


def test_stopping_is_felt_at_once_and_ends_the_work():
    stop, ended = threading.Event(), threading.Event()

    def work(say):
        try:
            while True:
                say("still at it")
                time.sleep(0.01)
        finally:
            ended.set()

    lines = comparing.follow(work, stop)
    assert next(lines) == "still at it"
    stop.set()
    with pytest.raises(comparing.Stopped):
        list(lines)
    assert ended.wait(5)


def test_leaving_ends_the_work_too():
    stop = threading.Event()
    lines = comparing.follow(lambda say: [say(str(i)) for i in range(3)], stop)
    next(lines)
    lines.close()
    assert stop.is_set()


def test_more_than_a_few_at_once_wait_and_say_so():
    go = threading.Event()

    def slow(say):
        say("working")
        assert go.wait(10)
        return "done"

    first = [comparing.follow(slow, threading.Event()) for _ in range(comparing.AT_ONCE)]
    assert [next(each) for each in first] == ["working"] * comparing.AT_ONCE
    last = comparing.follow(slow, threading.Event())
    assert next(last) == "Waiting for another comparison to end"
    go.set()
    assert [list(each) for each in first] == [[("done",)]] * comparing.AT_ONCE
    assert list(last) == ["working", ("done",)]


# ---- comparisons at hand


def test_the_shelf_keeps_the_last_few(comparison):
    shelf = Shelf(most=2)
    first, second = shelf.put(comparison), shelf.put(comparison)
    assert first != second
    shelf.get(first)
    third = shelf.put(comparison)
    assert shelf.get(first).comparison is comparison
    with pytest.raises(InputError, match="press Compare again"):
        shelf.get(second)
    assert shelf.get(third)


def test_the_shelf_bounds_memory_but_keeps_the_newest(comparison):
    shelf = Shelf(most_bytes=1)
    first = shelf.put(comparison)
    assert shelf.get(first)
    second = shelf.put(comparison)
    assert shelf.get(second)
    with pytest.raises(InputError):
        shelf.get(first)


def test_one_patch_is_judged_alone(kept):
    whole = comparing.part(kept, None)
    assert whole.report is kept.comparison.report
    bright = comparing.part(kept, 1)
    assert len(bright.statistics) == 1
    assert bright.report.generated_count == 1
    assert bright.report.measures["wasserstein1"].within is False
    row = next(row for row in kept.comparison.rows if row.index == 1)
    assert bright.report.measures["wasserstein1"].value == pytest.approx(row.values["wasserstein1"])
    assert comparing.part(kept, 1) is bright


# ---- pictures


def test_both_pictures_share_one_remap_and_one_mean(kept, settings):
    real = comparing.real_beside(kept.comparison.reference, 14, settings)
    assert real is not None
    assert (real.index, real.count, real.stands_in) == (2, 12, False)
    judged, truth = kept.comparison.patches[1].amplitude, real.patch.amplitude
    left, right = comparing.pictures(kept, 1, real, "density", "picture")
    mean = float(truth.mean(dtype=np.float64))
    assert np.array_equal(left, view(judged, "density", mean))
    assert np.array_equal(right, view(truth, "density", mean))
    alone, none = comparing.pictures(kept, 1, None, "linear", "picture")
    assert none is None
    assert np.array_equal(alone, view(judged, "linear"))


@pytest.mark.parametrize("over", [value for _, value in compare.SHOWN if value != "picture"])
def test_windows_and_maps_cover_the_patch(kept, settings, over):
    real = comparing.real_beside(kept.comparison.reference, 0, settings)
    left, right = comparing.pictures(kept, 0, real, "linear", over)
    for picture in (left, right):
        assert picture.shape[2] == 3
        assert picture.shape[0] % 64 == 0
        assert (picture[..., 0] != picture[..., 1]).any(), "colour says what grey cannot"
    assert (comparing.legend(over, dark=False) is None) == (over == "windows")


def test_a_large_patch_is_shown_as_means_of_power():
    amplitude = np.random.default_rng(0).random((2000, 1600), dtype=np.float32)
    small = comparing.reduced(amplitude)
    assert small.shape == (1000, 800)
    assert small[0, 0] == pytest.approx(np.sqrt((amplitude[:2, :2] ** 2).mean()))
    assert comparing.reduced(amplitude[:1000, :1000]).base is amplitude
    wide = Patch(amplitude, "wide.npy")
    assert "1600 × 2000 px (shown at 1:2)" in compare_views.caption("generated", "Judged", wide, "1/1")


def test_a_set_without_pictures_gets_a_labelled_stand_in(settings):
    statistics_only = references.load_reference("s1-forest", settings)
    real = comparing.real_beside(statistics_only, 1, settings)
    if real is None:
        pytest.skip("the package of real patches is not installed")
    assert real.stands_in
    assert "stands in" in compare_views.real_caption(real)


@pytest.mark.parametrize("front", [*compare.CHARTS, "measures", "set"])
def test_every_tab_is_drawn_once_and_kept(kept, front):
    for index in (None, 2):
        html = compare.analysis(kept, index, "linear", False, front)
        assert html.count("data:image/png;base64,") == len(compare.CHARTS.get(front, ()))
        assert compare.analysis(kept, index, "linear", False, front) == html
    if front in ("amplitude", "texture"):
        assert compare.analysis(kept, 2, "linear", True, front) != html


def test_what_cannot_be_drawn_leaves_the_rest(reference):
    shelf = Shelf()
    flat = compare_patches([Patch(np.full((64, 64), 0.5, np.float32), "flat.npy")], reference, settings=Settings())
    html = compare.analysis(shelf.get(shelf.put(flat)), None, "linear", False, "speckle")
    assert "no homogeneous ground" in html
    assert "Speckle correlation" in html


# ---- what is said


def test_the_table_is_sorted_by_the_worst_measure_and_escaped(comparison):
    html = compare_views.rows_table(comparison)
    assert "<img src=x" not in html
    order = [int(found) for found in re.findall(r'<tr data-patch="(\d+)"', html)]
    assert sorted(order) == [0, 1, 2]
    ratios = [float(found) for found in re.findall(r"<td[^>]*><b>([\d.]+)</b>", html)]
    assert ratios == sorted(ratios, reverse=True)
    assert order == [row.index for row in comparison.rows]
    assert order[-1] == 0, "the patch that is like the real ones is the least bad"


def test_names_are_shortened_where_they_are_alike():
    long = [f"patch_{number:03d}_of_a_model.npy" for number in range(3)]
    assert compare_views.short_names(long) == ["patch_000…", "patch_001…", "patch_002…"]
    models = ["made-by-another-model-0.png", "made-by-another-model-1.png"]
    assert compare_views.short_names(models) == ["…model-0.png", "…model-1.png"]
    assert compare_views.short_names(["a.png", "b.npy"]) == ["a.png", "b.npy"]
    for alike in (["one-and-only-patch-of-this.npy"], ["a-name-of-two-files.npy"] * 2):
        assert all(compare_views.short_names(alike))


def test_the_verdict_shows_every_warning(comparison):
    told = dataclasses.replace(comparison, warnings=("The looks differ.", ATTACK))
    html = compare_views.verdict(told)
    assert "The looks differ." in html
    assert "<img src=x" not in html
    assert html.count("<li>") == 2
    assert "3 judged · 12 real of Test ground" in html


def test_laws_stand_beside_those_of_the_reference(comparison):
    html = compare_views.laws_table(comparison.fits, comparison.reference_fits)
    assert html.count("<tr>") == 2 + len(comparison.fits)
    assert "No law can be fitted" in compare_views.laws_table((), ())


def test_a_slider_is_a_labelled_range():
    left, right = compare_views.Picture("data:,a", ATTACK), compare_views.Picture("data:,b", "Real", ATTACK)
    html = compare_views.wipe(left, right, 2.0)
    assert 'type="range"' in html
    assert "aria-label=" in html
    assert "--aspect:2.0000" in html
    assert "<img src=x" not in html + compare_views.sides(left, right) + compare_views.sides(left, None)


# ---- exports


def test_exports_are_whole_files_with_names(kept):
    def saved(kind):
        link = compare.exported(kept, kind)
        name = re.search(r'download="([^"]+)"', link)
        data = re.search(r"base64,([^\"]+)", link)
        assert name is not None
        assert data is not None
        assert re.fullmatch(rf"sar-comparison_test-ground_\d{{8}}-\d{{6}}\.{kind}", name[1])
        return base64.b64decode(data[1]).decode()

    document = json.loads(saved("json"))
    assert document["generated_count"] == 3
    assert [patch["name"] for patch in document["patches"]] == [row.name for row in kept.comparison.rows]
    assert len(saved("csv").splitlines()) == 4


def test_a_scale_of_their_own_is_warned_of(tmp_path, settings):
    files = [str(write(tmp_path / f"{seed}.npy", 50 * speckle(seed))) for seed in range(3)]
    linear, studio = [files, "amplitude", "", "", "pool", "", ""], [files, "studio", "", "", "pool", "", ""]
    made = [[str(write(tmp_path / "made.npy", speckle(3)))], "studio", "", "", "pool", "", ""]
    said = []

    def warned(own, **changes):
        warnings = compare.answer(read_form(form(own=own, **changes), None), settings, said.append).warnings
        return [text for text in warnings if text == compare.OWN_SCALE or "scaled by" in text]

    assert warned(made) == []
    assert said[:2] == ["Reading the reference", "Reading the patches"]
    assert len(warned(linear)) == 1
    real = [[str(write(tmp_path / f"real-{seed}.npy", speckle(seed))) for seed in range(5, 8)], *made[1:]]
    assert warned(linear, against="files", real=real) == [compare.OWN_SCALE]
    with pytest.raises(InputError, match="studio amplitude"):
        warned(studio)
