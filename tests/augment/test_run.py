import csv
import gc
import hashlib
import json
import multiprocessing
import tarfile
import threading
import tomllib
import tracemalloc

import numpy as np
import psutil
import pytest
from PIL import Image

from sar_gen.augment.maker import Decision, patch_png
from sar_gen.augment.recipe import recipe_of
from sar_gen.augment.run import augment
from sar_gen.augment.store import Store
from sar_gen.errors import InputError
from sar_gen.palettes import load_palette
from sar_gen.training.config import DataConfig
from sar_gen.training.dataset import open_dataset
from sar_gen.training.manifest import read_manifest
from sar_gen.training.row_pixels import read_pixels
from sar_gen.training.shards import read_shard
from tests.augment import crash

TEXT = "the plan's text\n"


def contents(folder):
    """Return the SHA-256 of every file of a set."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def lines(folder):
    return [json.loads(text) for text in (folder / "requests.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    """The plan of a set that nothing interrupted."""
    plan = place.plan(tmp_path_factory.mktemp("sets") / "whole")
    assert augment(plan, TEXT, place.settings, workers=1).finished
    return plan


@pytest.fixture(scope="module")
def judged(place, tmp_path_factory):
    """The plan and the outcome of a set whose forest is judged by a reference."""
    classes = [
        {"name": "forest", "count": 5, "reference": "s1-forest", "vocabulary": {"place": ["trees", "a wood"]}},
        {"name": "Dry land", "count": 4, "vocabulary": {"place": ["sand"]}},
    ]
    plan = place.plan(tmp_path_factory.mktemp("sets") / "judged", classes=classes)
    return plan, augment(plan, TEXT, place.settings, workers=1)


# The set ------------------------------------------------------------------------------------------------------------


def test_training_reads_the_set_as_it_is(judged):
    plan, outcome = judged
    assert outcome.finished
    assert (outcome.state.made, outcome.state.missing, outcome.state.rejected) == (9, 0, 0)
    rows = read_manifest(plan.out)
    assert [row.key for row in rows] == [f"tiny-set-{i:06d}" for i in range(9)]
    assert sum(row.terrain == "forest" for row in rows) == 5
    assert {(row.split, row.modality, row.polarisation) for row in rows} == {("train", "sar", "VV")}
    listed = open_dataset(DataConfig(manifest=plan.out / "manifest.jsonl", batch=3, caption_dropout=0), 64, seed=0)
    (batch,) = listed.batches(0, 1)
    assert batch.pixels.shape == (3, 64, 64)
    assert None not in batch.captions
    streamed = open_dataset(
        DataConfig(shards=plan.out / "shards/train-*.tar", batch=9, caption_dropout=0), 64, seed=0
    )  # fmt: skip
    (batch,) = streamed.batches(0, 1)
    assert sorted(batch.keys) == [row.key for row in rows]
    for key, pixels in zip(batch.keys, batch.pixels, strict=True):
        row = next(row for row in rows if row.key == key)
        assert np.array_equal(pixels, read_pixels(row, plan.out))


def test_labels_journal_and_shards_say_the_same(judged):
    plan, _ = judged
    rows = {row.key: row for row in read_manifest(plan.out)}
    with (plan.out / "labels.csv").open() as file:
        labels = list(csv.DictReader(file))
    assert [(one["key"], one["file"], one["class"]) for one in labels] == [
        (row.key, row.file, row.terrain) for row in rows.values()
    ]
    assert {(one["label"], one["class"]) for one in labels} == {("0", "forest"), ("1", "Dry land")}
    for line in lines(plan.out):
        row = rows[line["key"]]
        assert row.captions == (line["request"]["prompt"],)
        assert (line["seed"], line["attempt"], line["rejected"]) == (50 + line["slot"], 0, [])
        assert (line["ratios"] == {}) == (row.terrain != "forest")
        assert row.file.startswith(f"patches/{'forest' if row.terrain == 'forest' else 'dry-land'}/")
    names = [f"train-{i:06d}.tar" for i in range(3)]  # of four patches each
    assert sorted(path.name for path in (plan.out / "shards").glob("*.tar")) == names
    webdataset = pytest.importorskip("webdataset")
    shards = [str(plan.out / "shards" / name) for name in names]
    found = {s["__key__"]: int(s["cls"]) for s in webdataset.WebDataset(shards, shardshuffle=False)}
    assert found == {one["key"]: int(one["label"]) for one in labels}


def test_the_card_says_synthetic_and_whom_to_name(place, judged):
    plan, outcome = judged
    text = (plan.out / "README.md").read_text()
    card = tomllib.loads((plan.out / "card.toml").read_text())
    assert "**Every patch here is synthetic.** 9 patches" in text
    assert card["synthetic"] is True
    assert (card["asked"], card["made"], card["missing"]) == (9, 9, 0)
    assert card["licence"] == "Apache-2.0"
    assert "Somebody, CC BY 4.0." in card["credit"]
    assert "- Somebody, CC BY 4.0." in text
    assert "SEN1-2" in card["reference_credit"]["s1-forest"]
    assert card["checkpoints"]["base"]["sha256"] == recipe_of(plan, place.settings).weights["base"]
    assert (plan.out / "plan.toml").read_text() == TEXT
    assert card["classes"]["forest"]["different_prompts"] == 6
    assert outcome.reports == {"forest": card["classes"]["forest"]["verdict"]}


def test_the_report_is_of_the_classes_with_a_reference(judged):
    plan, _ = judged
    report = json.loads((plan.out / "report.json").read_text())
    assert list(report["reports"]) == ["forest"]
    assert report["reports"]["forest"]["compared"] == report["reports"]["forest"]["made"] == 5
    page = (plan.out / "report.html").read_text()
    assert 'href="report-forest.html"' in page
    assert (plan.out / "report-forest.html").is_file()
    assert "Dry land" in page


def test_a_finished_set_is_left_alone(place, judged):
    plan, _ = judged
    before = contents(plan.out)
    outcome = augment(plan, "another text", place.settings, workers=1)
    assert (outcome.finished, outcome.state.fresh, list(outcome.reports)) == (True, 0, ["forest"])
    assert contents(plan.out) == before


# Going on -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    """Processes that begin with torch imported, as the workers of ``augment`` do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sar_gen.augment.preload"])
    return context


@pytest.mark.parametrize("points", [
    ["patch_without_line", "torn_line", "within_a_patch"],
    ["shard_not_written", "shard_without_index"],
    ["manifest_without_labels", "no_report", "half_a_card"],
])  # fmt: skip
def test_a_killed_run_goes_on_without_a_lost_or_doubled_patch(place, made, server, tmp_path, points):
    plan = place.plan(tmp_path / "killed")
    for name in points:
        process = server.Process(target=crash.make, args=(plan, place.settings, name))
        process.start()
        process.join(60)
        assert process.exitcode == -9, name
    last = augment(plan, TEXT, place.settings, workers=1)
    assert last.finished
    found = contents(plan.out)
    assert not [name for name in found if name.endswith(".part")]
    before = contents(made.out)
    assert found.pop("plan.toml") != before.pop("plan.toml")  # of the process that began it
    assert found == before


def test_a_stop_keeps_what_is_there_and_the_next_call_goes_on(place, made, tmp_path):
    plan = place.plan(tmp_path / "stopped")
    stop = threading.Event()
    first = augment(
        plan, TEXT, place.settings, workers=1, stop=stop,
        show=lambda state: stop.set() if state.decided == 3 else None,
    )  # fmt: skip
    assert (first.finished, first.stopped, first.state.decided) == (False, True, 3)
    assert len(lines(plan.out)) == 3
    assert not (plan.out / "manifest.jsonl").exists()
    second = augment(plan, TEXT, place.settings, workers=1, minutes=0)  # one unit, then the time is over
    assert (second.finished, second.stopped, second.state.decided, second.state.fresh) == (False, False, 4, 1)
    third = augment(plan, TEXT, place.settings, workers=1)
    assert (third.finished, third.state.fresh) == (True, 5)
    assert contents(plan.out) == contents(made.out)


def test_a_patch_that_was_lost_or_cut_is_made_again(place, made, tmp_path):
    plan = place.plan(tmp_path / "damaged")
    said = []
    augment(plan, TEXT, place.settings, workers=1)
    files = sorted((plan.out / "patches").rglob("*.png"))
    files[0].unlink()
    files[3].write_bytes(files[3].read_bytes()[:100])
    outcome = augment(plan, TEXT, place.settings, workers=1, say=said.append)
    assert outcome.state.fresh == 2
    assert any(text.startswith("2 lines of the journal") for text in said)
    assert contents(plan.out) == contents(made.out)


def test_processes_make_the_same_set_though_one_is_killed(place, made, tmp_path):
    plan = place.plan(tmp_path / "processes")
    killed = []

    def kill(state):
        if state.fresh and not killed:
            (server,) = (one for one in psutil.Process().children() if "forkserver" in " ".join(one.cmdline()))
            worker = server.children()[0]
            worker.kill()
            killed.append(worker.pid)

    outcome = augment(plan, TEXT, place.settings, workers=2, show=kill)
    assert killed
    assert (outcome.finished, outcome.workers) == (True, "2 processes")
    assert contents(plan.out) == contents(made.out)


# What is refused ----------------------------------------------------------------------------------------------------


def test_another_plan_in_the_folder_is_refused_and_the_difference_said(place, judged, tmp_path):
    plan, _ = judged
    other = place.plan(plan.out, seed=51)
    with pytest.raises(InputError, match=r"holds the set of another plan \(seed was 50 and is 51; "):
        augment(other, "", place.settings, workers=1)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").touch()
    with pytest.raises(InputError, match="is not empty and holds no augmentation set"):
        augment(place.plan(foreign), "", place.settings, workers=1)


def test_a_plan_that_failed_before_the_first_patch_may_be_corrected(place, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(maps / "a.png")
    with pytest.raises(InputError, match="Nothing is painted"):
        augment(place.plan(tmp_path / "set", guides=[{"folder": str(maps)}]), "", place.settings, workers=1)
    assert augment(place.plan(tmp_path / "set"), "corrected", place.settings, workers=1, minutes=0).state.fresh == 1
    assert (tmp_path / "set/plan.toml").read_text() == "corrected"


def test_two_processes_do_not_write_one_folder(place, tmp_path):
    recipe = recipe_of(place.plan(tmp_path / "set"), place.settings)
    store = Store(tmp_path / "set", recipe, "")
    with pytest.raises(InputError, match="Another process writes"):
        Store(tmp_path / "set", recipe, "")
    store.close()
    Store(tmp_path / "set", recipe, "").close()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"workers": 0}, "workers is 0; give 1"), ({"gpus_per_worker": 1}, "asked of Ray; give --ray too")],
)
def test_options_that_cannot_be(place, tmp_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        augment(place.plan(tmp_path / "set"), "", place.settings, **options)


# Gate and guides ----------------------------------------------------------------------------------------------------


def test_missing_patches_are_counted_and_said(place, tmp_path):
    plan = place.plan(
        tmp_path / "set", gate={"reference": "s1-forest", "measures": {"wasserstein1": 1e-9}, "attempts": 2}
    )  # fmt: skip
    outcome = augment(plan, "", place.settings, workers=1)
    assert outcome.finished
    assert (outcome.state.made, outcome.state.missing, outcome.state.rejected) == (0, 9, 18)
    assert outcome.classes["forest"] == {"asked": 5, "made": 0, "missing": 5, "left": 0, "rejected": 10}
    assert (plan.out / "manifest.jsonl").read_text() == ""
    assert not list(plan.out.glob("shards/*.tar"))
    assert "**9 patches are missing**" in (plan.out / "README.md").read_text()
    assert "9 patches are missing" in (plan.out / "report.html").read_text()
    seeds = [one["seed"] for line in lines(plan.out) for one in line["rejected"]]
    assert sorted(seeds) == list(range(50, 50 + 18))
    again = augment(plan, "", place.settings, workers=1)
    assert (again.state.fresh, again.state.missing) == (0, 9)


def test_guides_are_drawn_and_written_beside_as_masks(place, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    colours = load_palette().colours
    for name, number in (("left", 0), ("right", 2)):
        image = np.full((64, 64, 3), colours[number], np.uint8)
        image[:, 32:] = colours[3]
        Image.fromarray(image).save(maps / f"{name}.png")
    plan = place.plan(tmp_path / "set", guides=[{"folder": str(maps)}], batch=2, strength=0.6)
    outcome = augment(plan, "", place.settings, workers=1)
    assert outcome.finished
    rows = {row.key: row for row in read_manifest(plan.out)}
    palettes = json.loads((plan.out / "palettes.json").read_text())
    assert [tuple(one["colour"]) for one in palettes["studio"]] == [tuple(colour) for colour in colours.tolist()]
    names = set()
    for line in lines(plan.out):
        (mask,) = line["masks"]
        names.add(mask["guide"])
        values = np.asarray(Image.open(plan.out / mask["file"]))
        assert values.shape == (64, 64)
        assert set(np.unique(values)) == {0 if mask["guide"] == "left.png" else 2, 3}
        assert line["request"]["guides"][0]["sha256"] == mask["sha256"]
        assert rows[line["key"]].group == f"guide-{mask['sha256'][:16]}"
    assert names == {"left.png", "right.png"}
    shard = next((plan.out / "shards").glob("*.tar"))
    with tarfile.open(shard) as tar:
        key = next(iter(read_shard(shard))).row.key
        content = tar.extractfile(f"{key}.mask.png").read()
    line = next(line for line in lines(plan.out) if line["key"] == key)
    assert content == (plan.out / line["masks"][0]["file"]).read_bytes()


def test_float_pixels_without_shards(place, tmp_path):
    classes = [{"name": "a", "count": 2}]
    plan = place.plan(
        tmp_path / "set", pixels="npy", shards=0, classes=classes, prompts=["{class}"], vocabulary={},
        split="validation",
    )  # fmt: skip
    assert augment(plan, "", place.settings, workers=1).finished
    assert not (plan.out / "shards").exists()
    for row, line in zip(read_manifest(plan.out), lines(plan.out), strict=True):
        amplitude = read_pixels(row, plan.out)
        assert hashlib.sha256(amplitude.astype("<f4").tobytes()).hexdigest() == line["sha256"]
        assert row.split == "validation"


def test_memory_does_not_grow_with_what_is_written(place, tmp_path):
    classes = [{"name": "a", "count": 1250}]
    plan = place.plan(tmp_path / "set", classes=classes, prompts=["{class}"], vocabulary={}, shards=250)
    store = Store(plan.out, recipe_of(plan, place.settings), "")
    png = patch_png(np.full((32, 32), 0.5, np.float32), "a")

    def write(first, last):
        for start in range(first, last, 250):
            store.add([Decision(slot, line(store, slot), png) for slot in range(start, start + 250)])

    def line(store, slot):
        return {"slot": slot, "key": store.slots.key(slot), "class": "a", "made": True, "height": 32, "width": 32,
                "polarisation": "VV", "request": {"prompt": "a"}, "masks": [], "rejected": []}  # fmt: skip

    def held():
        """Bytes that calls from this file have left; other tests' threads may allocate meanwhile."""
        gc.collect()
        mine = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, __file__, all_frames=True)])
        return sum(trace.size for trace in mine.traces)

    write(0, 250)
    tracemalloc.start(16)  # frames: enough to reach this file from the deepest call
    try:
        write(250, 500)
        before = held()
        write(500, 1250)
        after = held()
    finally:
        tracemalloc.stop()
    store.close()
    assert after - before < 750 * 20  # bytes; a row that is kept takes thousands
