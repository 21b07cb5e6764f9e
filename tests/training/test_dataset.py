import dataclasses
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sar_gen.amplitude import S1_VV
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, read_patch
from sar_gen.reference_statistics import pair_amplitude
from sar_gen.training import dataset as module
from sar_gen.training.config import DataConfig
from sar_gen.training.dataset import Dataset, batch_indices, open_dataset, open_manifest, read_pixels
from sar_gen.training.manifest import PatchRow, meaning_to_json, write_manifest

SIZES = ((64, 64), (72, 64), (40, 70))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty patches of three sizes, of which each pixel is known: patch, row and column are in it."""
    where = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(30):
        height, width = SIZES[i % 3]
        Image.fromarray(stored(i)).save(where / f"p{i}.png")
        split = "train" if i < 27 else "validation"
        captions = (f"one {i}", f"two {i}", f"three {i}")
        terrain = "rare" if i < 3 else "common" if i < 12 else None
        rows.append(PatchRow(f"p{i}", f"p{i}.png", height, width, split, f"g{i // 3}", captions, terrain))
    write_manifest(where / "manifest.jsonl", rows)
    return where


def stored(i):
    height, width = SIZES[i % 3]
    rows, columns = np.mgrid[:height, :width]
    return (i * 2000 + rows * 10 + columns).astype(np.uint16)


def opened(folder, resolution=64, seed=3, **changes) -> Dataset:
    config = DataConfig(manifest=folder / "manifest.jsonl", **{"batch": 3, "cache": "none", **changes})
    return open_manifest(config, resolution, seed)


def same(one, other):
    assert (one.keys, one.indices, one.captions, one.terrains) == (
        other.keys, other.indices, other.captions, other.terrains,
    )  # fmt: skip
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("balance", ["none", "terrain"])
def test_step_and_seed_alone_say_what_a_batch_is(folder, balance):
    flips = ("horizontal",)
    straight = list(opened(folder, balance=balance, flips=flips).batches(0, 40))
    later = list(opened(folder, balance=balance, flips=flips).batches(17, 40))
    for one, other in zip(straight[17:], later, strict=True):
        same(one, other)
    other = list(opened(folder, seed=4, balance=balance, flips=flips).batches(0, 40))
    assert [batch.keys for batch in other] != [batch.keys for batch in straight]


@pytest.mark.parametrize("balance", ["none", "terrain"])
def test_two_processes_see_what_one_of_double_batch_sees(folder, balance):
    two, one = opened(folder, balance=balance), opened(folder, balance=balance, batch=6)
    for whole, first, second in zip(
        one.batches(5, 20), two.batches(5, 20, 0, 2), two.batches(5, 20, 1, 2), strict=True
    ):
        assert whole.keys == first.keys + second.keys
        assert whole.captions == first.captions + second.captions
        np.testing.assert_array_equal(whole.pixels, np.concatenate([first.pixels, second.pixels]))


def test_each_patch_is_seen_once_an_epoch_and_buckets_take_turns_by_their_size(folder):
    data = opened(folder)
    batches = list(data.batches(0, 900))
    seen = Counter(key for batch in batches for key in batch.keys)
    assert len(seen) == 27
    assert max(seen.values()) - min(seen.values()) <= 2  # 100 times each
    assert {batch.pixels.shape for batch in batches} == {(3, 64, 64), (3, 40, 64)}
    first = [batch.pixels.shape[1] for batch in batches[:9]]
    assert 2 <= first.count(40) <= 4  # 9 of 27 patches
    indices = np.arange(10)
    drawn = np.concatenate(list(batch_indices([indices], 4, 1, 0, 5)))
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    tiny = np.concatenate(list(batch_indices([indices[:2]], 7, 1, 3, 6)))  # smaller than a batch
    assert Counter(tiny.tolist()).most_common() in ([(0, 11), (1, 10)], [(1, 11), (0, 10)])


def test_terrains_are_drawn_alike_and_groups_by_the_root_of_their_size():
    sizes = {("a", "x"): 1, ("a", "y"): 9, (None, "z"): 40}
    rows = [
        PatchRow(f"{t}{g}{i}", "f.png", 64, 64, "train", f"{t}{g}", terrain=t)
        for (t, g), n in sizes.items()
        for i in range(n)
    ]
    weights = module.terrain_weights(rows)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == pytest.approx(1 / 2 * 1 / 4)  # sqrt(1) of sqrt(1) + sqrt(9)
    assert weights[1:10].sum() == pytest.approx(1 / 2 * 3 / 4)
    assert weights[10:].sum() == pytest.approx(1 / 2)
    drawn = np.concatenate(list(batch_indices([np.arange(50)], 100, 0, 0, 100, [weights])))
    share = np.bincount(drawn, minlength=50) / len(drawn)
    assert share[0] == pytest.approx(1 / 8, abs=0.015)
    assert share[10:].sum() == pytest.approx(1 / 2, abs=0.02)


def test_crops_are_cut_and_never_resampled(folder):
    for places, config in (("random", "none"), ("centre", "memory")):
        starts = set()
        for batch in opened(folder, cache=config).batches(0, 60):
            for index, pixels in zip(batch.indices, batch.pixels, strict=True):
                i, (height, width) = index, pixels.shape
                first = round(float(pixels[0, 0]) * 65535) - i * 2000
                top, left = first // 10, first % 10  # rows may carry from columns over 9 only beyond the crop's start
                whole = (stored(i) / 65535).astype(np.float32)
                np.testing.assert_array_equal(pixels, whole[top : top + height, left : left + width])
                starts.add((SIZES[i % 3], top, left))
        if places == "centre":
            assert starts == {((64, 64), 0, 0), ((72, 64), 4, 0), ((40, 70), 0, 3)}
        else:
            assert {top for size, top, _ in starts if size == (72, 64)} == set(range(9))
            assert {left for size, _, left in starts if size == (40, 70)} == set(range(7))


@pytest.mark.parametrize(
    ("size", "resolution", "crop"),
    [
        ((256, 256), 256, (256, 256)), ((1024, 300), 512, (512, 256)), ((63, 130), 512, (56, 128)),
        ((100, 100), 100, (96, 96)), ((8, 64), 64, (8, 64)),
    ],
)  # fmt: skip
def test_sides_are_multiples(size, resolution, crop):
    assert module.crop_size(*size, resolution, "p") == crop


def test_flips_are_along_the_axes_that_are_asked_for_only(folder):
    plain = list(opened(folder, cache="memory").batches(0, 40))
    for name, axis in (("horizontal", 1), ("vertical", 0)):
        turned = 0
        for one, flipped in zip(plain, opened(folder, cache="memory", flips=(name,)).batches(0, 40), strict=True):
            for a, b in zip(one.pixels, flipped.pixels, strict=True):
                if not np.array_equal(a, b):
                    np.testing.assert_array_equal(np.flip(a, axis), b)
                    turned += 1
        assert 40 < turned < 80  # half of 120


def test_captions_are_of_the_patch_and_dropped_as_often_as_asked_for(folder):
    batches = list(opened(folder, caption_dropout=0.25).batches(0, 400))
    pairs = [pair for batch in batches for pair in zip(batch.keys, batch.captions, strict=True)]
    dropped = sum(caption is None for _, caption in pairs) / len(pairs)
    assert dropped == pytest.approx(0.25, abs=0.04)
    kept = [(key, caption.split()) for key, caption in pairs if caption]
    assert all(key == f"p{number}" for key, (_, number) in kept)
    assert set(Counter(word for _, (word, _) in kept)) == {"one", "two", "three"}


def test_terrains_are_left_out_and_unknown_ones_refused(folder):
    rows = opened(folder, leave_out=("rare",)).rows
    assert {row.terrain for row in rows} == {"common", None}
    with pytest.raises(InputError, match="no terrain 'tundra' to leave out; it has None, common, rare"):
        opened(folder, leave_out=("tundra",))
    with pytest.raises(InputError, match="no optical patch in the split 'train' to train on; it has 27 train sar"):
        opened(folder, modality="optical")
    with pytest.raises(InputError, match="needed here; give data"):
        open_manifest(DataConfig(shards="x-*.tar"), 64, 0)


def test_what_is_kept_in_memory_is_limited_and_the_same(folder, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 20_000)
    limited, free = opened(folder), opened(folder)
    free._room = 2**30
    for _ in range(2):
        for i in range(6):
            np.testing.assert_array_equal(limited.pixels(i), free.pixels(i))
    assert sum(values.nbytes for values in limited._kept.values()) <= 20_000
    assert len(free._kept) == 6
    assert limited.pixels(0).dtype == np.float32


def test_pixels_are_the_studios_amplitude_or_grey(tmp_path):
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (64, 80), dtype=np.uint8)
    colour = random.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "sar.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    half = random.random((64, 80)).astype(np.float16)
    np.save(tmp_path / "half.npy", half)
    meaning = meaning_to_json(PixelMeaning("db", S1_VV, (-25.0, 0.0)))
    row = PatchRow("a", "sar.png", 64, 80, "train", "g", meaning=meaning)
    np.testing.assert_allclose(read_pixels(row, tmp_path), pair_amplitude(grey), rtol=2e-6)
    part = dataclasses.replace(row, source="sar.png", row=8, column=16, height=32, width=40)
    window = read_pixels(part, tmp_path)
    np.testing.assert_array_equal(window, read_pixels(row, tmp_path)[8:40, 16:56])
    known = read_patch(tmp_path / "sar.png", PixelMeaning("db", S1_VV, (-25.0, 0.0)), window=(8, 16, 32, 40))
    np.testing.assert_array_equal(window, known.amplitude)
    optical = PatchRow("b", "colour.png", 64, 80, "train", "g", modality="optical")
    luminance = np.asarray(Image.fromarray(colour).convert("L")) / 255
    np.testing.assert_allclose(read_pixels(optical, tmp_path), luminance, atol=1.01 / 255)  # Pillow cuts off
    floats = PatchRow("c", "half.npy", 64, 80, "train", "g")
    np.testing.assert_array_equal(read_pixels(floats, tmp_path), half.astype(np.float32))
    with pytest.raises(InputError, match="its row of the manifest says 64 and 64"):
        read_pixels(dataclasses.replace(floats, width=64), tmp_path)
    with pytest.raises(InputError, match="3 unlike channels"):
        read_pixels(dataclasses.replace(optical, modality="sar"), tmp_path)


def test_an_error_in_a_file_reaches_the_reader_of_batches(folder, tmp_path):
    write_manifest(tmp_path / "manifest.jsonl", [PatchRow("a", "gone.png", 64, 64, "train", "g")])
    data = open_dataset(DataConfig(manifest=tmp_path, batch=1), 64, 0)
    with pytest.raises(InputError, match="There is no file"):
        next(data.batches(0, 3))
