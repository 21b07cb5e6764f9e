import csv
import json

import numpy as np
import pytest
from PIL import Image

from sar_gen.amplitude import S1_VH, normalise
from sar_gen.errors import InputError
from sar_gen.reference_statistics import pair_amplitude
from sar_gen.training import sen12
from sar_gen.training.config import DataConfig
from sar_gen.training.dataset import open_manifest, read_pixels
from sar_gen.training.manifest import read_manifest
from sar_gen.training.sarclip_data import REFERENCE_SCENES, VALIDATION_SCENES

SIDE = 256


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder in the layout of the data: 32 pairs in 16 groups, and four scenes of 512 pixels."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    for name in ("s1_pairs/sar", "s1_pairs/optical", "s1_scenes/sar", "s1_scenes/optical"):
        (folder / name).mkdir(parents=True)
    pairs, scenes = [], []
    for i in range(32):
        grey = np.clip(random.normal(120 + 2 * i, 25, (SIDE, SIDE)), 0, 255).astype(np.uint8)
        terrain = ("forest", "river")[i % 2]
        row = {"split": "train" if i < 24 else "reference", "terrain": terrain, "overlap_group": str(i // 2)}
        for kind, picture in (("sar", grey), ("optical", np.roll(grey, 8))):
            row[kind] = f"s1_pairs/{kind}/{terrain}_{i:05d}.jpg"
            Image.fromarray(picture).save(folder / row[kind], quality=90)
        pairs.append(row)
    for name in ("001", "002", VALIDATION_SCENES[0], REFERENCE_SCENES[0]):
        grey = np.clip(110 * np.sqrt(random.gamma(5, 1 / 5, (512, 512))), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"s1_scenes/sar/{name}.png")
        colour = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(colour).save(folder / f"s1_scenes/optical/{name}.jpg")
        scenes.append({"scene": name, "sar": f"s1_scenes/sar/{name}.png", "optical": f"s1_scenes/optical/{name}.jpg"})
    for name, rows in (("s1_pairs.csv", pairs), ("s1_scenes.csv", scenes)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "data"
    return out, sen12.prepare_sen12(source, out)


def test_rows_point_into_the_sources_own_files(source, made):
    out, summary = made
    rows = {row.key: row for row in read_manifest(out)}
    assert len(rows) == 2 * (32 + 4 * 9)
    assert sum(path.stat().st_size for path in out.iterdir() if path.is_file()) < 200_000  # the manifest alone
    pair = rows["vv-river_00003"]
    grey = np.asarray(Image.open(source / pair.file))
    np.testing.assert_allclose(read_pixels(pair, out), pair_amplitude(grey), rtol=2e-6)
    optical = rows["optical-vv-river_00003"]
    picture = np.asarray(Image.open(source / optical.file))
    np.testing.assert_array_equal(read_pixels(optical, out), (picture / 255).astype(np.float32))
    scene = rows["vh-002-128-256"]
    grey = np.asarray(Image.open(source / scene.file))[128:384, 256:512]
    np.testing.assert_allclose(read_pixels(scene, out), normalise(grey, S1_VH), rtol=2e-6)
    half = rows["optical-vh-002-128-256"]
    colour = np.asarray(Image.open(source / half.file).convert("L"))[64:192, 128:256]
    np.testing.assert_allclose(read_pixels(half, out), colour / 255, atol=1.01 / 255)
    assert summary["train"]["sar VH"] == summary["train"]["optical without label"] == 18
    assert json.loads(json.dumps(summary)) == summary


def test_splits_go_by_ground(made):
    out, summary = made
    rows = read_manifest(out)
    splits = {row.group: row.split for row in rows}
    assert splits["scene-001"] == splits["scene-002"] == "train"
    assert (splits[f"scene-{VALIDATION_SCENES[0]}"], splits[f"scene-{REFERENCE_SCENES[0]}"]) == (
        "validation", "reference",
    )  # fmt: skip
    assert {splits[f"pairs-{i}"] for i in range(12, 16)} == {"reference"}
    assert 1 <= [splits[f"pairs-{i}"] for i in range(12)].count("validation") <= 5
    assert sum(summary[split]["patches"] for split in ("train", "validation", "reference")) == len(rows)


def test_captions_say_modality_and_ground(made):
    for row in read_manifest(made[0]):
        assert len(row.captions) >= 2
        sar = row.modality == "sar"
        assert all(("SAR" in text) == sar for text in row.captions)
        assert all(not sar or row.polarisation != "VH" or "VH" in text for text in row.captions)
        if row.terrain:
            assert row.captions[0].endswith({"forest": "of forest", "river": "of a river"}[row.terrain])


def test_batches_are_made_of_it(made):
    for modality, sides in (("sar", {256}), ("optical", {128, 256})):
        data = open_manifest(DataConfig(manifest=made[0], modality=modality, batch=4, balance="terrain"), 256, 0)
        assert {batch.pixels.shape[1] for batch in data.batches(0, 8)} == sides


def test_packed_it_is_carried_whole_or_in_parts(source, made, tmp_path):
    out, _ = made
    whole = sen12.pack(out, tmp_path / "whole")
    assert whole["left_out"] == []
    rows = read_manifest(tmp_path / "whole")
    assert rows == read_manifest(out)
    assert not any(path.is_symlink() for path in (tmp_path / "whole").rglob("*"))
    for name in {row.file for row in rows}:
        assert (tmp_path / "whole" / name).read_bytes() == (source / name).read_bytes()
    assert whole["bytes"] == sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    part = sen12.pack(out, tmp_path / "part", whole["bytes"] - 1)
    assert part["left_out"] == ["optical-reference", "optical-vh"]
    assert part["bytes"] < whole["bytes"]
    kept = read_manifest(tmp_path / "part")
    assert {row.key for row in rows} - {row.key for row in kept} == {
        row.key for row in rows if row.modality == "optical" and (row.split == "reference" or row.terrain is None)
    }
    assert all((tmp_path / "part" / row.optical).is_file() for row in kept if row.optical)
    vv = sen12.pack(out, tmp_path / "vv", without=("vh",))
    assert {row.polarisation for row in read_manifest(tmp_path / "vv")} == {"VV", None}
    assert vv["left_out"] == ["vh"]
    with pytest.raises(InputError, match=r"over 0\.0; raise it"):
        sen12.pack(out, tmp_path / "small", 1000)
    with pytest.raises(InputError, match="no part 'water'"):
        sen12.pack(out, tmp_path / "small", without=("water",))


def test_made_again_it_is_the_same_and_nothing_of_anybody_is_replaced(source, made, tmp_path):
    out, summary = made
    before = (out / "manifest.jsonl").read_bytes()
    assert sen12.prepare_sen12(source, out) == summary
    assert (out / "manifest.jsonl").read_bytes() == before
    (tmp_path / "s1_pairs").mkdir()
    with pytest.raises(InputError, match="is there already"):
        sen12.prepare_sen12(source, tmp_path)
    with pytest.raises(InputError, match=r"s1_pairs\.csv is missing"):
        sen12.prepare_sen12(tmp_path, tmp_path / "out")
