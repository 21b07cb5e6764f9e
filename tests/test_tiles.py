"""Large rasters: windows and tiles, their scale, their groups, what is left out, and memory."""

import tracemalloc

import numpy as np
import pytest
import tifffile

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, read_patch, read_tiles, tiff_bytes

AMPLITUDE = PixelMeaning("amplitude")


@pytest.fixture
def scene(tmp_path):
    """A raster of 3 x 4 tiles of 64 pixels, and 5 rows and 7 columns more."""
    values = np.random.default_rng(0).gamma(4, 20, (197, 263)).astype(np.float32)
    tifffile.imwrite(tmp_path / "scene.tif", values, tile=(48, 80))
    return tmp_path / "scene.tif", values


def test_tiles_are_the_raster_cut_up(scene):
    path, values = scene
    said = []
    tiles = list(read_tiles(path, AMPLITUDE, 64, say=said.append))
    peak = values.astype(np.float64).mean() + 3 * values.astype(np.float64).std()
    places = [(64 * i, 64 * j, 64, 64) for i in range(3) for j in range(4)]
    assert [tile.window for tile in tiles] == places
    assert tiles[5].name == "scene_r00064_c00064"
    for tile in tiles:
        row, column, height, width = tile.window
        expected = np.clip(values[row : row + height, column : column + width] / peak, 0, 1)
        np.testing.assert_allclose(tile.amplitude, expected, rtol=1e-5)
        assert tile.scale == tiles[0].scale
        assert tile.path == path
    assert said == ["scene.tif: 12 of 12 tiles of 64 x 64 pixels; 5 rows and 7 columns at the far edges fill no tile."]


def test_every_reading_of_a_raster_has_one_scale(scene):
    path, values = scene
    scales = {tile.scale for side in (32, 64) for tile in read_tiles(path, AMPLITUDE, side)}
    scales |= {tile.scale for tile in read_tiles(path, AMPLITUDE, 32, window=(10, 10, 70, 70))}
    patch = read_patch(path, AMPLITUDE, window=(50, 60, 40, 30))
    assert scales == {patch.scale}
    np.testing.assert_allclose(patch.amplitude, np.clip(values[50:90, 60:90] / patch.scale.peak, 0, 1), rtol=1e-5)
    given = Scale(50.0, 30.0, "mine")
    assert {tile.scale for tile in read_tiles(path, PixelMeaning("amplitude", given), 64)} == {given}


def test_a_part_does_not_scale_itself(scene):
    path, _ = scene
    with pytest.raises(InputError, match=r"less than 4 times the pixels.*give a scale"):
        read_patch(path, AMPLITUDE, window=(0, 0, 197, 263))
    with pytest.raises(InputError, match="less than 4 times"):
        list(read_tiles(path, AMPLITUDE, 150))


def test_neighbours_share_a_group(scene):
    path, _ = scene
    groups = {tile.window[:2]: tile.group for tile in read_tiles(path, AMPLITUDE, 64, group_tiles=2)}
    assert len(set(groups.values())) == 4
    assert groups[0, 0] == groups[0, 64] == groups[64, 64] != groups[0, 128]
    assert groups[128, 0] != groups[64, 0]
    assert all("scene.tif" in group for group in groups.values())
    assert len({tile.group for tile in read_tiles(path, AMPLITUDE, 64)}) == 1  # 4 x 4 tiles


def test_a_window_is_walked_by_its_own_tiles(scene):
    path, values = scene
    tiles = list(read_tiles(path, AMPLITUDE, 32, window=(7, 11, 65, 40)))
    assert [tile.window for tile in tiles] == [(7, 11, 32, 32), (39, 11, 32, 32)]
    np.testing.assert_allclose(
        tiles[1].amplitude, np.clip(values[39:71, 11:43] / tiles[1].scale.peak, 0, 1), rtol=1e-5
    )


def test_tiles_without_data_are_left_out_and_counted(tmp_path):
    values = np.random.default_rng(0).gamma(4, 20, (128, 128)).astype(np.float32)
    values[0, 5], values[3, 40], values[40, 70] = -9999, np.nan, np.inf  # one pixel each in tiles 0, 1 and 6
    values[:32, 64:96] = 0  # tile 2: constant
    values[32:64, :32][:, :4] = 0  # tile 4: an eighth is 0, perhaps a border
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "-9999", True)])
    said = []
    tiles = list(read_tiles(tmp_path / "a.tif", AMPLITUDE, 32, say=said.append))
    numbers = [tile.window[0] // 32 * 4 + tile.window[1] // 32 for tile in tiles]
    assert numbers == [3, 4, 5, *range(7, 16)]
    assert said == [
        "a.tif: 12 of 16 tiles of 32 x 32 pixels; 3 left out that hold pixels without data or not finite; 1 left out "
        "that are constant; 1 hold over 1 % of pixels that are exactly 0: if these are no data, say so (nodata 0)."
    ]
    good = values[np.isfinite(values) & (values >= 0)].astype(np.float64)
    assert tiles[0].scale.peak == pytest.approx(good.mean() + 3 * good.std(), rel=1e-6)
    known = list(read_tiles(tmp_path / "a.tif", PixelMeaning("amplitude", nodata=0), 32))
    assert len(known) == 11
    good = good[good > 0]
    assert known[0].scale.peak == pytest.approx(good.mean() + 3 * good.std(), rel=1e-6)


def test_constant_ground_has_no_part_in_a_pooled_scale(tmp_path):
    values = np.random.default_rng(0).gamma(4, 20, (512, 1024)).astype(np.uint16)
    values[256:, 512:] = 0
    np.save(tmp_path / "a.npy", values)
    patch = read_patch(tmp_path / "a.npy", AMPLITUDE, window=(0, 0, 64, 64))
    good = np.concatenate([values[:256].ravel(), values[256:, :512].ravel()]).astype(np.float64)
    assert patch.scale.peak == pytest.approx(good.mean() + 3 * good.std(), rel=1e-6)


def test_nothing_to_read(tmp_path):
    np.save(tmp_path / "flat.npy", np.full((256, 256), 3, np.float32))
    np.save(tmp_path / "zero.npy", np.zeros((256, 256), np.float32))
    np.save(tmp_path / "small.npy", np.ones((40, 400), np.float32))
    for name in ("flat", "zero"):
        with pytest.raises(InputError, match=rf"{name}\.npy has no pixels with data above zero"):
            list(read_tiles(tmp_path / f"{name}.npy", AMPLITUDE, 64))
    with pytest.raises(InputError, match=r"no tile of 64 x 64 pixels that is full of data .* 16 constant"):
        list(read_tiles(tmp_path / "flat.npy", PixelMeaning("amplitude", Scale(3, 0, "x")), 64))
    with pytest.raises(InputError, match="less than one tile of 64 x 64"):
        list(read_tiles(tmp_path / "small.npy", AMPLITUDE, 64))
    with pytest.raises(InputError, match="at least 32"):
        read_tiles(tmp_path / "small.npy", AMPLITUDE, 31)
    with pytest.raises(InputError, match="smaller side"):
        read_tiles(tmp_path / "small.npy", AMPLITUDE, 200, max_pixels=10_000)
    with pytest.raises(InputError, match="at least 1"):
        read_tiles(tmp_path / "small.npy", AMPLITUDE, 32, group_tiles=0)


def test_complex_signal_says_what_it_means(tmp_path):
    rng = np.random.default_rng(0)
    signal = (rng.normal(size=(128, 128)) + 1j * rng.normal(size=(128, 128))).astype(np.complex64)
    np.save(tmp_path / "slc.npy", signal)
    tile = next(read_tiles(tmp_path / "slc.npy", side=64))
    modulus = np.abs(signal).astype(np.float64)
    peak = modulus.mean() + 3 * modulus.std()
    np.testing.assert_allclose(tile.amplitude, np.clip(modulus[:64, :64] / peak, 0, 1), rtol=1e-5)
    assert read_patch(tmp_path / "slc.npy", window=(0, 0, 64, 64)).scale == tile.scale
    np.save(tmp_path / "real.npy", modulus)
    with pytest.raises(InputError, match="does not say what its pixels mean"):
        next(read_tiles(tmp_path / "real.npy", side=64))


def test_files_of_the_studio_are_cut_without_a_scale(tmp_path):
    amplitude = np.random.default_rng(0).uniform(0, 1, (96, 64)).astype(np.float32)
    facts = {"amplitude": {"encoding": "db", "polarisation": "VH"}}
    (tmp_path / "a.tif").write_bytes(tiff_bytes(amplitude, facts))
    tiles = list(read_tiles(tmp_path / "a.tif", side=32))
    assert len(tiles) == 6
    np.testing.assert_array_equal(tiles[3].amplitude, amplitude[32:64, 32:])
    assert (tiles[3].encoding, tiles[3].polarisation, tiles[3].scale) == ("db", "VH", None)
    patch = read_patch(tmp_path / "a.tif", window=(1, 2, 33, 34))
    np.testing.assert_array_equal(patch.amplitude, amplitude[1:34, 2:36])
    assert (patch.encoding, patch.name) == ("db", "a_r00001_c00002")


@pytest.mark.parametrize("kind", ["tiff", "npy"])
def test_memory_does_not_grow_with_the_raster(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("sar_gen.patches._BLOCK_PIXELS", 2**16)
    side, path = 2048, tmp_path / f"a.{kind}"  # 8 MiB; a block of it becomes 0.5 MiB in float64
    square = np.random.default_rng(0).integers(1, 60000, (256, 256)).astype(np.uint16)
    values = np.tile(square, (8, 8))
    np.save(path, values) if kind == "npy" else tifffile.imwrite(path, values, tile=(256, 256))
    whole = values.nbytes
    del values
    read_patch(path, PixelMeaning("amplitude", Scale(1, 1, "x")), window=(0, 0, 32, 32))  # what is imported is
    tracemalloc.start()
    try:
        tiles = [(tile.window, tile.scale) for tile in read_tiles(path, AMPLITUDE, 256)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tiles) == (side // 256) ** 2
    assert peak < whole / 3
    assert tiles[0][1].peak == pytest.approx(square.mean() + 3 * square.std(), rel=1e-9)
