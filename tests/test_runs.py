import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from sar_gen.errors import InputError, SarGenError
from sar_gen.request import IMAGE_TO_IMAGE, GenerationRequest, Guide
from sar_gen.runs import RunStore, amplitude_sha256, request_from_json, request_from_png, settings_from_png

FACTS = {"id": "tiny", "amplitude_encoding": "linear", "polarisation": "VV"}


def amplitude(seed=0, shape=(24, 32)):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def make_run(store, request=None, count=2, status="done"):
    run = store.begin(request or GenerationRequest("a river"), FACTS, {"device": "cpu"})
    for i in range(count):
        run.save_patch(i, 7 + i, amplitude(i))
    run.finish(status, {"generate": 1.0})
    return run


def test_every_patch_is_listed_as_soon_as_it_is_saved(store):
    run = store.begin(GenerationRequest("a river", count=3), FACTS, {})
    saved = run.save_patch(0, 7, amplitude())
    record = store.open(run.id)
    assert record.status == "running"
    assert [image.seed for image in record.images] == [7]
    np.testing.assert_array_equal(np.load(saved.amplitude_file), amplitude())


def test_view_is_the_quantised_amplitude(store):
    run = make_run(store, count=1)
    grey = np.asarray(Image.open(run.images[0].view))
    assert grey.dtype == np.uint8
    np.testing.assert_allclose(grey / 255, amplitude(), atol=0.5 / 255 + 1e-6)


def test_same_request_gives_the_same_bytes(store):
    first, second = make_run(store), make_run(store)
    assert first.folder != second.folder
    for a, b in zip(first.images, second.images, strict=True):
        assert a.view.read_bytes() == b.view.read_bytes()
        assert a.amplitude_file.read_bytes() == b.amplitude_file.read_bytes()


def test_sha256_is_of_the_float_bytes():
    a = amplitude()
    assert amplitude_sha256(a) == amplitude_sha256(np.asfortranarray(a))
    assert amplitude_sha256(a) != amplitude_sha256(np.nextafter(a, np.float32(2)))


def test_request_comes_back_from_the_run_and_from_the_png(store):
    guide = Guide("map", np.full((8, 8, 3), 200, np.uint8), "drawn")
    request = GenerationRequest("a river", count=2, seed=7, steps=5, guidance=1.5, guides=(guide,), strength=0.4)
    run = make_run(store, request)
    record = store.open(run.id)
    assert len(record.request.guides) == 1
    np.testing.assert_array_equal(record.request.guides[0].image, guide.image)
    assert record.request.to_json() == request.to_json()
    assert request_from_png(run.images[0].view).to_json() == request.to_json()


def test_open_by_folder_json_and_a_png_that_was_moved(store, tmp_path):
    make_run(store, GenerationRequest("another"), count=1)
    run = store.begin(GenerationRequest("a river"), FACTS, {})
    run.save_patch(0, 99, amplitude(99))
    moved = tmp_path / "download.png"
    moved.write_bytes(run.images[0].view.read_bytes())
    for way in (run.folder, run.folder / "run.json", run.images[0].view, moved):
        assert store.open(way).id == run.id


def test_list_is_newest_first_and_passes_over_damage(store):
    ids = [make_run(store, count=1).id for _ in range(3)]
    (store.folder / "99999999-damaged").mkdir()
    (store.folder / "99999999-damaged" / "run.json").write_text("{")
    assert [record.id for record in store.list()] == ids[::-1]
    assert [record.id for record in store.list(limit=1)] == ids[-1:]


def test_a_patch_whose_file_has_gone_is_left_out(store):
    run = make_run(store, count=2)
    run.images[0].amplitude_file.unlink()
    assert [image.index for image in store.open(run.id).images] == [1]


def test_no_clock_time_in_the_png(store):
    settings = settings_from_png(make_run(store, count=1).images[0].view)
    assert "created" not in json.dumps(settings)
    assert settings["amplitude"]["encoding"] == "linear"


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_png(store, tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png is not a readable PNG"):
        store.open(path)


def test_a_foreign_png_and_an_unknown_run(store, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(InputError, match="carries no studio settings"):
        store.open(tmp_path / "foreign.png")
    with pytest.raises(InputError, match="There is no run 'nothing'"):
        store.open("nothing")


def test_runs_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SarGenError, match="not a folder"):
        RunStore(tmp_path / "file").begin(GenerationRequest("a river"), FACTS, {})


def several_guides():
    """Codes of one band, a drawing with transparent parts, and SAR; each goes its own way."""
    random = np.random.default_rng(0)
    drawn = random.integers(0, 256, (16, 12, 4)).astype(np.uint8)
    return (
        Guide(
            "map",
            np.full((8, 8), 80, np.uint8),
            "worldcover.tif",
            "net",
            0.5,
            palette="worldcover",
            notes=("A.", "B."),
        ),
        Guide("sketch", drawn, way="net", start=0.25, end=0.75),
        Guide(
            "sar", np.repeat(random.integers(0, 256, (9, 10, 1)), 3, axis=2).astype(np.uint8), "x.png", "other", 2.0
        ),
    )


def test_several_guides_come_back_with_all_that_was_said_of_them(store):
    request = GenerationRequest("a river", guides=several_guides())
    run = make_run(store, request, count=1)
    assert sorted(path.name for path in run.folder.glob("guide*")) == ["guide.png", "guide_1.png", "guide_2.png"]
    for found in (store.open(run.id).request, request_from_png(run.images[0].view)):
        assert len(found.guides) == 3
        for one, given in zip(found.guides, request.guides, strict=True):
            np.testing.assert_array_equal(one.image, given.image)
            assert one.image.dtype == np.uint8
            assert dataclasses.replace(one, image=given.image) == given
            assert one.sha256 == hashlib.sha256(given.image.tobytes()).hexdigest()
        assert found.to_json() == request.to_json()
    data = json.loads((run.folder / "run.json").read_text())
    assert [(guide["file"], guide["way"], guide["weight"], guide["notes"]) for guide in data["guides"]] == [
        ("guide.png", "net", 0.5, ["A.", "B."]),
        ("guide_1.png", "net", 1.0, []),
        ("guide_2.png", "other", 2.0, []),
    ]
    assert [guide["sha256"] for guide in data["guides"]] == [guide.sha256 for guide in request.guides]
    assert data["request"]["guides"][1]["palette"] == "studio"
    assert settings_from_png(run.images[0].view)["guides"] == data["guides"]


def test_a_guide_whose_picture_has_gone_is_left_out_and_the_others_stay_theirs(store):
    run = make_run(store, GenerationRequest("a river", guides=several_guides()), count=1)
    (run.folder / "guide_1.png").unlink()
    left = store.open(run.id).request.guides
    assert [guide.kind for guide in left] == ["map", "sar"]
    np.testing.assert_array_equal(left[1].image, several_guides()[2].image)


def test_a_run_from_before_there_were_profiles_is_made_again_as_it_was():
    data = GenerationRequest("a river", steps=3).to_json()
    assert request_from_json(data).profile is None
    del data["profile"], data["switches"]
    assert request_from_json(data) == GenerationRequest("a river", steps=3, profile="plain")


def test_a_run_from_before_there_were_several_guides_still_opens(store):
    """Its one guide went by image-to-image, whatever networks there are now."""
    guide = Guide("sketch", np.random.default_rng(0).integers(0, 256, (16, 12, 3)).astype(np.uint8), "drawn")
    run = make_run(store, GenerationRequest("a river", guides=(guide,), strength=0.4), count=1)
    path = run.folder / "run.json"
    data = json.loads(path.read_text())
    del data["guides"], data["request"]["guides"]
    data["guide"] = {"kind": "sketch", "name": "drawn", "file": "guide.png", "sha256": guide.sha256}
    data["request"]["guide"] = {"kind": "sketch", "name": "drawn"}
    path.write_text(json.dumps(data))
    request = store.open(run.id).request
    [found] = request.guides
    assert (found.kind, found.name, found.way, found.weight, found.palette) == (
        *("sketch", "drawn", IMAGE_TO_IMAGE, 1.0, "studio"),
    )
    np.testing.assert_array_equal(found.image, guide.image)
    assert request.start_guide is found
    assert request.strength == 0.4
    data["guide"] = data["request"]["guide"] = None
    path.write_text(json.dumps(data))
    assert store.open(run.id).request.guides == ()


def test_the_guide_of_another_run_is_not_taken_for_its_own(tmp_path):
    store = RunStore(tmp_path)
    guide = Guide("map", np.zeros((8, 8, 3), np.uint8))
    run = store.begin(GenerationRequest("a river", guides=(guide,)), {}, {})
    assert len(store.open(run.id).request.guides) == 1
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(run.folder / "guide.png")
    assert store.open(run.id).request.guides == ()
