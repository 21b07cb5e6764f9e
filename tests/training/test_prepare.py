import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sar_gen.amplitude import Scale, normalise, pooled_scale
from sar_gen.errors import InputError, SarGenError
from sar_gen.training import prepare as module
from sar_gen.training.config import DataConfig
from sar_gen.training.dataset import open_dataset, read_pixels
from sar_gen.training.manifest import read_manifest
from sar_gen.training.prepare import PrepareOptions, prepare
from sar_gen.training.shards import pixels_of, read_shard
from tests.rasters.test_sicd import write_sicd

OPTIONS = PrepareOptions(tile=32, block=2, encoding="amplitude")


def amplitude(shape=(220, 250), seed=0, level=50.0):
    random = np.random.default_rng(seed)
    ground = 1 + np.sin(np.arange(shape[1]) / 20)[None] * np.cos(np.arange(shape[0]) / 15)[:, None] * 0.5
    return (level * ground * np.sqrt(random.gamma(3, 1 / 3, shape))).astype(np.float32)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the summary, which names times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != module.SUMMARY
    }


def test_patches_are_the_normalised_raster_and_no_pixel_is_in_two_splits(tmp_path):
    values = amplitude()
    tifffile.imwrite(tmp_path / "scene_VV.tif", values, rowsperstrip=7, compression="zlib")
    options = dataclasses.replace(OPTIONS, stride=16)
    summary = prepare(tmp_path / "scene_VV.tif", tmp_path / "out", options)
    rows = read_manifest(tmp_path / "out")
    scale = pooled_scale([values], "all")
    owner = np.full(values.shape, "", dtype="U10")
    for row in rows:
        expected = normalise(values[row.row : row.row + 32, row.column : row.column + 32], scale)
        np.testing.assert_allclose(read_pixels(row, tmp_path / "out"), expected, atol=0.51 / 65535)
        part = owner[row.row : row.row + 32, row.column : row.column + 32]
        assert set(np.unique(part)) <= {"", row.split}
        part[:] = row.split
    assert set(np.unique(owner)) == {"", "train", "validation", "reference"}
    # Blocks of 64 pixels lie 68 apart, with 3 x 3 patches each; across, a fourth of 46 pixels has one column.
    assert summary["patches"] == len(rows) == (3 * 3) * (3 * 3 + 1)
    assert sum(summary["splits"].values()) == len(rows)
    assert {row.polarisation for row in rows} == {"VV"}
    assert rows[0].captions == ("a SAR image", "a SAR image, VV polarisation")
    (taken,) = summary["scales"].values()
    assert (taken["mean"], taken["std"]) == (pytest.approx(scale.mean), pytest.approx(scale.std))
    data = open_dataset(DataConfig(manifest=tmp_path / "out", batch=4), 32, 0)
    assert next(data.batches(0, 1)).pixels.shape == (4, 32, 32)


def test_complex_signal_needs_no_encoding_and_gives_its_modulus(tmp_path):
    random = np.random.default_rng(0)
    signal_ = (random.normal(size=(130, 130)) + 1j * random.normal(size=(130, 130))).astype(np.complex64)
    np.save(tmp_path / "slc.npy", signal_)
    prepare(
        tmp_path / "slc.npy", tmp_path / "out", dataclasses.replace(OPTIONS, encoding=None, split=(1, 0, 0), gap=0)
    )
    rows = read_manifest(tmp_path / "out")
    assert len(rows) == 16
    expected = normalise(np.abs(signal_)[:32, :32], pooled_scale([np.abs(signal_)], ""))
    np.testing.assert_allclose(read_pixels(rows[0], tmp_path / "out"), expected, atol=0.51 / 65535)


def test_sicd_is_cut_too(tmp_path):
    random = np.random.default_rng(0)
    pixels = (random.normal(size=(70, 90)) + 1j * random.normal(size=(70, 90))).astype(np.complex64)
    write_sicd(tmp_path / "a.nitf", pixels, "RE32F_IM32F", polarisation="V:V")
    options = dataclasses.replace(OPTIONS, encoding=None, split=(1, 0, 0))
    assert prepare(tmp_path / "a.nitf", tmp_path / "out", options)["patches"] == 4
    row = read_manifest(tmp_path / "out")[3]
    assert (row.row, row.column, row.polarisation) == (32, 32, "VV")
    expected = normalise(np.abs(pixels)[32:64, 32:64], pooled_scale([np.abs(pixels)], ""))
    np.testing.assert_allclose(read_pixels(row, tmp_path / "out"), expected, atol=0.51 / 65535)


def test_scales_are_of_images_or_of_acquisitions_and_never_of_two_polarisations(tmp_path):
    levels = {"one/a_VV.tif": 10, "one/b_VV.tif": 90, "one/a_VH.tif": 3, "two/c_VV.tif": 40}
    values = {}
    for seed, (name, level) in enumerate(levels.items()):
        values[name] = amplitude((64, 64), seed, level)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / "in" / name, values[name])
    options = dataclasses.replace(OPTIONS, split=(1, 0, 0))
    pooled = prepare(tmp_path / "in", tmp_path / "pooled", options)["scales"]
    both = pooled_scale([values["one/a_VV.tif"], values["one/b_VV.tif"]], "")
    assert set(pooled) == {"one VV", "one VH", "two VV"}
    assert pooled["one VV"]["mean"] == pytest.approx(both.mean)
    assert pooled["one VV"]["std"] == pytest.approx(both.std)
    each = prepare(tmp_path / "in", tmp_path / "each", dataclasses.replace(options, scale="image"))["scales"]
    assert each["one/b_VV.tif"]["mean"] == pytest.approx(values["one/b_VV.tif"].mean(dtype=float))
    fixed = dataclasses.replace(options, scale=Scale(50, 25, "known"))
    prepare(tmp_path / "in", tmp_path / "fixed", fixed)
    row = next(row for row in read_manifest(tmp_path / "fixed") if row.source == "one/b_VV.tif" and not row.row)
    expected = np.clip(values["one/b_VV.tif"][:32, row.column : row.column + 32] / 125, 0, 1)
    np.testing.assert_allclose(read_pixels(row, tmp_path / "fixed"), expected, atol=0.51 / 65535)


def test_patches_without_data_and_constant_ones_are_left_out(tmp_path):
    values = amplitude((128, 128))
    values[:20, :20] = 0
    values[40, 100] = np.nan
    values[64:128, 64:96] = 7
    tifffile.imwrite(tmp_path / "a.tif", values)
    options = dataclasses.replace(OPTIONS, nodata=0, gap=0, split=(1, 0, 0))
    summary = prepare(tmp_path / "a.tif", tmp_path / "out", options)
    assert summary["left_out"] == {"with pixels without data": 2, "constant": 2}
    assert summary["patches"] == 12
    places = {(row.row, row.column) for row in read_manifest(tmp_path / "out")}
    assert not places & {(0, 0), (32, 96), (64, 64), (96, 64)}


@pytest.mark.parametrize("shards", [None, 10])
def test_what_is_cut_off_anywhere_goes_on_and_ends_the_same(tmp_path, monkeypatch, shards):
    for name in ("a_VV.tif", "b_VV.tif"):
        tifffile.imwrite(tmp_path / name, amplitude(seed=ord(name[0])))
    (tmp_path / "in").mkdir()
    for name in ("a_VV.tif", "b_VV.tif"):
        os.rename(tmp_path / name, tmp_path / "in" / name)
    options = dataclasses.replace(OPTIONS, captions="attributes", shards=shards)
    whole = prepare(tmp_path / "in", tmp_path / "whole", options)
    writes = []
    write = module.write_atomic

    def failing(path, data):
        writes.append(path)
        if len(writes) == stop:
            raise SarGenError("cut off")
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", failing)
    monkeypatch.setattr("sar_gen.training.shards.write_atomic", failing)
    stop = 3  # of each call: the plan, one step further, and the cut
    calls = 0
    while calls < 60:
        calls += 1
        writes.clear()
        try:
            summary = prepare(tmp_path / "in", tmp_path / "out", options)
            break
        except SarGenError:
            continue
    else:
        pytest.fail("it does not get on")
    assert calls > 3
    assert {**summary, "manifest": 0} == {**whole, "manifest": 0}
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    monkeypatch.setattr(module, "open_source", None)
    assert prepare(tmp_path / "in", tmp_path / "out", options) == summary  # finished: nothing is read


def test_a_killed_process_is_gone_on_with(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", amplitude())
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from sar_gen.training.prepare import PrepareOptions, prepare\n"
        "seen = []\n"
        "def progress(done, total):\n"
        "    seen.append(done)\n"
        "    if len(seen) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "options = PrepareOptions(tile=32, block=2, encoding='amplitude')\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), options, progress=progress)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.tif"), str(tmp_path / "out")]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "unfinished").is_dir()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert stamps
    prepare(tmp_path / "a.tif", tmp_path / "out", OPTIONS)
    prepare(tmp_path / "a.tif", tmp_path / "whole", OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())  # not made again


def test_other_options_do_not_go_on_with_a_data_set(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", amplitude())
    prepare(tmp_path / "a.tif", tmp_path / "out", OPTIONS)
    with pytest.raises(InputError, match="holds something else already"):
        prepare(tmp_path / "a.tif", tmp_path / "out", dataclasses.replace(OPTIONS, stride=16))
    (tmp_path / "begun" / "unfinished").mkdir(parents=True)
    (tmp_path / "begun" / "unfinished" / "plan.json").write_text('{"digest": "other"}')
    with pytest.raises(InputError, match="another data set, not finished"):
        prepare(tmp_path / "a.tif", tmp_path / "begun", OPTIONS)


def test_shards_hold_the_same_patches_and_nothing_is_left_beside_them(tmp_path):
    tifffile.imwrite(tmp_path / "a_VH.tif", amplitude())
    options = dataclasses.replace(OPTIONS, captions="attributes")
    prepare(tmp_path / "a_VH.tif", tmp_path / "files", options)
    summary = prepare(tmp_path / "a_VH.tif", tmp_path / "shards", dataclasses.replace(options, shards=7))
    rows = {row.key: row for row in read_manifest(tmp_path / "files")}
    samples = [sample for name in summary["shards"] for sample in read_shard(tmp_path / "shards" / name)]
    assert sorted(sample.row.key for sample in samples) == sorted(rows)
    for sample in samples:
        row = rows[sample.row.key]
        assert dataclasses.replace(sample.row, file=row.file) == row
        np.testing.assert_array_equal(pixels_of(sample), read_pixels(row, tmp_path / "files"))
    counts = [len(list(read_shard(path))) for path in sorted((tmp_path / "shards").glob("train-*.tar"))]
    assert set(counts[:-1]) == {7}
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == sorted(
        [*summary["shards"], "shards.json", module.SUMMARY]
    )
    order = [sample.row.key for sample in read_shard(tmp_path / "shards" / "train-000000.tar")]
    assert order != sorted(order)  # shuffled
    data = open_dataset(DataConfig(shards=str(tmp_path / "shards" / "train-*.tar"), batch=4, cache="none"), 32, 0)
    assert next(data.batches(3, 4)).pixels.shape == (4, 32, 32)


def test_labels_name_the_ground(tmp_path):
    for name in ("a_VV.tif", "b_VV.tif"):
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "in" / name, amplitude(seed=ord(name[0])))
    (tmp_path / "labels.csv").write_text(
        "file,terrain,caption\na_VV.tif,Forest,\n"
        "b_VV,harbour,a SAR image of cranes\nb_VV,harbour,a SAR image of a quay\n"
    )
    options = dataclasses.replace(OPTIONS, captions=str(tmp_path / "labels.csv"), parquet=True)
    summary = prepare(tmp_path / "in", tmp_path / "out", options)
    assert summary["manifest"].endswith("manifest.parquet")
    rows = read_manifest(tmp_path / "out")
    forest = [row for row in rows if row.source == "a_VV.tif"]
    harbour = [row for row in rows if row.source == "b_VV.tif"]
    assert {row.terrain for row in forest} == {"forest"}
    assert all(row.captions[0] == "a SAR image of forest" and len(row.captions) > 1 for row in forest)
    assert {row.terrain for row in harbour} == {"harbour"}
    assert {row.captions for row in harbour} == {("a SAR image of cranes", "a SAR image of a quay")}


def test_the_optical_picture_is_cut_with_the_raster_and_described(tmp_path):
    values = amplitude((256, 256))
    (tmp_path / "in").mkdir()
    (tmp_path / "optical").mkdir()
    tifffile.imwrite(tmp_path / "in" / "scene_VV.tif", values)
    picture = np.random.default_rng(0).integers(100, 110, (128, 128), dtype=np.uint8)
    picture[:, 64:] = np.random.default_rng(1).integers(0, 2, (128, 64)) * 200 + 50  # finely patterned: built up
    Image.fromarray(picture).save(tmp_path / "optical" / "scene.png")
    options = dataclasses.replace(
        OPTIONS, tile=64, block=1, gap=0, captions="attributes", optical=tmp_path / "optical", split=(1, 0, 0)
    )
    prepare(tmp_path / "in", tmp_path / "out", options)
    rows = read_manifest(tmp_path / "out")
    sar = [row for row in rows if row.modality == "sar"]
    optical = {row.group: row for row in rows if row.modality == "optical"}
    assert len(sar) == len(optical) == 16
    for row in sar:
        other = optical[row.group]
        assert row.optical == other.file
        assert (other.height, other.width, other.split) == (32, 32, row.split)
        crop = np.asarray(Image.open(tmp_path / "out" / other.file))
        top, left = row.row // 2, row.column // 2
        np.testing.assert_array_equal(crop, picture[top : top + 32, left : left + 32])
        built_up = any(word in " ".join(other.captions) for word in ("buildings", "built-up", "houses", "city"))
        assert built_up == (left >= 64)
        assert all("SAR" in caption for caption in row.captions)
        assert not any("SAR" in caption or "VV" in caption for caption in other.captions)


def test_memory_is_bounded_by_windows_not_by_the_raster(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_PIXELS", 2**14)
    monkeypatch.setattr("sar_gen.patches._BLOCK_PIXELS", 2**16)
    peaks = []
    for height in (512, 4096):
        path = tmp_path / f"{height}.npy"
        random = np.random.default_rng(0)
        np.save(path, random.gamma(1, 1, (height, 512)).astype(np.complex64))
        options = PrepareOptions(tile=64, block=2, split=(1, 0, 0))
        tracemalloc.start()
        prepare(path, tmp_path / str(height), options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1.5e6  # of 16 MB more; what grows is the notes
    assert peaks[1] < 8e6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tile": 20}, "multiple of 8 from 32 on"),
        ({"stride": 40}, "The stride 40"),
        ({"encoding": None}, "does not say what its pixels are"),
        ({"split": (0.5, 0.1, 0.1)}, "are not shares"),
        ({"block": 50}, "one piece of ground for 3 splits"),
        ({"tile": 512}, "give a smaller tile"),
        ({"captions": "vlm:a/b"}, "give their folder"),
        ({"captions": "nothing.csv"}, "nothing.csv cannot be read"),
        ({"polarisation": "VH"}, "is in VV, but VH was said"),
        ({"shards": 4, "parquet": True}, "leave out --parquet or --shards"),
        ({"optical": Path("nowhere")}, "There is no folder nowhere"),
        ({"band": "blue"}, "has no band 'blue'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path, changes, sentence):
    tifffile.imwrite(tmp_path / "a_VV.tif", amplitude())
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "a_VV.tif", tmp_path / "out", dataclasses.replace(OPTIONS, **changes))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_patch_is_never_scaled_by_itself(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", amplitude((40, 40)))
    options = dataclasses.replace(OPTIONS, scale="image", split=(1, 0, 0))
    with pytest.raises(InputError, match="less than 4 times the pixels of a patch"):
        prepare(tmp_path / "a.tif", tmp_path / "out", options)


def test_the_summary_is_json(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", amplitude())
    summary = prepare(tmp_path / "a.tif", tmp_path / "out", OPTIONS)
    assert json.loads(json.dumps(summary)) == summary
