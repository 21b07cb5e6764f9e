import io
import itertools
import tarfile
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sar_gen.amplitude import S1_VH
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning
from sar_gen.training.config import DataConfig
from sar_gen.training.dataset import ShardDataset, open_dataset, read_pixels
from sar_gen.training.manifest import PatchRow, meaning_to_json
from sar_gen.training.shards import INDEX, pixels_of, read_index, read_shard, write_index, write_shard

PER_SHARD = 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six shards of 41 patches of two sizes, two of them of another terrain, and the patches' pixels by key."""
    where = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    rows, pixels = [], {}
    for i in range(41):
        height, width = (40, 64) if i % 4 else (48, 72)
        values = random.integers(0, 65536, (height, width), dtype=np.uint16)
        Image.fromarray(values).save(where / f"p{i}.png")
        terrain = "rare" if i in (3, 30) else "common"
        split = "train" if i < 39 else "validation"
        rows.append(PatchRow(f"p{i}", f"p{i}.png", height, width, split, f"g{i}", ("one", "two"), terrain))
        pixels[f"p{i}"] = (values / 65535).astype(np.float32)
    entries = [
        write_shard(where / f"train-{n:06d}.tar", rows[first : first + PER_SHARD], where)
        for n, first in enumerate(range(0, 41, PER_SHARD))
    ]
    write_index(where, entries)
    return where, pixels


def opened(where, seed=2, **changes) -> ShardDataset:
    data = open_dataset(
        DataConfig(shards=str(where / "train-*.tar"), **{"batch": 3, "cache": "none", "shuffle": 8, **changes}),
        64,
        seed,
    )
    assert isinstance(data, ShardDataset)
    return data


def facts(batches):
    return [(batch.keys, batch.captions, batch.pixels.tobytes()) for batch in batches]


def test_webdataset_reads_what_is_written(shards):
    import json

    import webdataset

    where, pixels = shards
    pattern = str(where / "train-{000000..000005}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [sample["__key__"].rsplit("/")[-1] for sample in samples] == [f"p{i}" for i in range(41)]
    for sample in samples:
        values = np.asarray(Image.open(io.BytesIO(sample["png"])))
        row = json.loads(sample["json"])
        np.testing.assert_array_equal((values / 65535).astype(np.float32), pixels[row["key"]])


def test_what_webdataset_writes_is_read(shards, tmp_path):
    import webdataset

    row = PatchRow("k", "k.npy", 8, 16, "train", "g", ("a SAR image",))
    values = np.random.default_rng(0).random((8, 16)).astype(np.float32)
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": "some/where/k", "npy": values, "json": row.to_json()})
    (sample,) = read_shard(tmp_path / "x.tar")
    assert sample.row == row
    np.testing.assert_array_equal(pixels_of(sample), values)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("index", [True, False])
def test_a_stream_that_is_resumed_equals_the_unbroken_one(shards, world, index):
    where, _ = shards
    for rank in range(world):
        whole = facts(opened(where).batches(0, 40, rank, world))
        assert len(whole) == 40
        for start in (1, 6, 13, 14, 15, 33):  # an epoch of one process is 14 batches
            data = opened(where)
            if not index:
                data._counts.clear()
            assert facts(data.batches(start, 40, rank, world)) == whole[start:]
    assert facts(opened(where, seed=3).batches(0, 40)) != facts(opened(where).batches(0, 40))


def test_an_epoch_holds_every_patch_and_the_pixels_are_its_own(shards):
    where, pixels = shards
    train = [f"p{i}" for i in range(39)]
    count = opened(where)._batch_count(opened(where).shards)
    assert count == 10 + 4  # 29 of one size, 10 of the other, by three
    for epoch in range(3):
        batches = list(opened(where).batches(epoch * count, (epoch + 1) * count))
        seen = Counter(key for batch in batches for key in batch.keys)
        assert sorted(seen) == sorted(train)
        assert sum(seen.values()) == 42  # the last batch of a size is filled up
        for batch in batches:
            for key, crop in zip(batch.keys, batch.pixels, strict=True):
                whole = pixels[key]
                assert any(np.array_equal(crop, whole[:, left : left + 64]) for left in range(whole.shape[1] - 63))


def test_processes_see_different_shards(shards):
    where, _ = shards
    own = []
    for rank in range(2):
        data = opened(where)
        first = data._batch_count([data.shards[i] for i in range(3)])
        own.append({key for batch in data.batches(0, min(first, 6), rank, 2) for key in batch.keys})
    assert not own[0] & own[1]
    with pytest.raises(InputError, match="6 shards cannot be dealt out to 7 processes"):
        opened(where).batches(0, 1, 0, 7)


def test_terrains_are_left_out_and_nothing_is_refused(shards):
    where, _ = shards
    keys = {key for batch in opened(where, leave_out=("rare",)).batches(0, 14) for key in batch.keys}
    assert keys == {f"p{i}" for i in range(39)} - {"p3", "p30"}
    for changes, sentence in (
        ({"leave_out": ("tundra",)}, "no terrain 'tundra'"),
        ({"split": "reference"}, "no sar patch of the split 'reference'"),
        ({"balance": "terrain"}, "set data.balance to 'none'"),
        ({"shards": str(where / "nothing-*.tar")}, "No shard is called"),
    ):
        with pytest.raises(InputError, match=sentence):
            opened(where, **changes) if "shards" not in changes else open_dataset(DataConfig(**changes), 64, 0)


def test_a_window_of_a_picture_becomes_a_file_of_its_own(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "scene.png")
    meaning = meaning_to_json(PixelMeaning("amplitude", S1_VH))
    row = PatchRow("a", "scene.png", 16, 24, "train", "g", meaning=meaning, source="scene.png", row=8, column=32)
    write_shard(tmp_path / "x.tar", [row], tmp_path)
    (sample,) = read_shard(tmp_path / "x.tar")
    assert (sample.row.file, sample.row.window) == ("a.png", None)
    np.testing.assert_array_equal(pixels_of(sample), read_pixels(row, tmp_path))


def test_memory_does_not_grow_with_the_shards(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (128, 128), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png")
    size = (tmp_path / "p.png").stat().st_size

    def rows(shard):
        return [PatchRow(f"s{shard}-{i}", "p.png", 128, 128, "train", "g") for i in range(40)]

    peaks = []
    for count in (2, 12):
        folder = tmp_path / str(count)
        write_index(folder, [write_shard(folder / f"train-{n:06d}.tar", rows(n), tmp_path) for n in range(count)])
        data = opened(folder, shuffle=20)
        tracemalloc.start()
        for _ in data.batches(0, count * 13):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5 * size
    assert peaks[1] < 60 * size  # of 480 patches


def test_damaged_and_foreign_shards_are_one_sentence(tmp_path, shards):
    where, _ = shards
    whole = (where / "train-000000.tar").read_bytes()
    cut = tmp_path / "train-cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"train-cut\.tar cannot be read as a tar file"):
        list(read_shard(cut))
    cut.write_bytes(b"no tar")
    with pytest.raises(InputError, match="cannot be read as a tar file"):
        list(read_shard(cut))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(InputError, match=r"x\.tar: a needs a picture and a \.json file"):
        list(read_shard(tmp_path / "x.tar"))


def test_an_index_that_does_not_fit_is_not_trusted(tmp_path, shards):
    where, _ = shards
    target = tmp_path / "train-000000.tar"
    target.write_bytes((where / "train-000000.tar").read_bytes())
    (tmp_path / INDEX).write_bytes((where / INDEX).read_bytes())
    assert list(read_index(tmp_path)) == ["train-000000.tar"]
    target.write_bytes(target.read_bytes() + bytes(512))
    assert read_index(tmp_path) == {}
    assert len(list(itertools.islice(opened(tmp_path).batches(2, 8), 6))) == 6
