"""The reader on files written here by other means, and on everything that a user may drop by mistake."""

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from sar_gen.amplitude import Scale, quantise
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, npy_bytes, read_folder, read_patch, read_values, tiff_bytes

STUDIO = PixelMeaning("studio")
SCALE = Scale(1.0, 1.0, "test")  # peak 4


@pytest.fixture
def amplitude():
    return np.random.default_rng(0).uniform(0, 1, (20, 31)).astype(np.float32)


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


def studio_png(path, amplitude, beside=True, remap="linear", **facts):
    """Write a view as a run does, with the float amplitude beside it."""
    name = path.with_suffix(".npy").name
    settings = {
        "request": {"prompt": "x"},
        "remap": remap,
        "amplitude": {
            "file": name,
            "sha256": sha(amplitude),
            "encoding": "linear",
            "polarisation": "VV",
            **facts,
        },
    }
    text = PngImagePlugin.PngInfo()
    text.add_text("sar_gen", json.dumps(settings))
    Image.fromarray(quantise(amplitude)).save(path, pnginfo=text)
    if beside:
        np.save(path.with_suffix(".npy"), amplitude)
    return path


# Values of each kind of file


def test_png_8_and_16_bit_keep_their_levels(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    for name, levels in (("a.png", 255), ("b.png", 65535)):
        values, metadata = read_values(tmp_path / name)
        assert values.dtype == np.float32
        assert metadata["levels"] == levels
        np.testing.assert_allclose(values / levels, grey / 255, atol=1e-7)
        np.testing.assert_allclose(read_patch(tmp_path / name, STUDIO).amplitude, grey / 255, atol=1e-7)


def test_suffix_does_not_matter_but_content_does(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "really.png")
    (tmp_path / "really.png").rename(tmp_path / "odd.tif")
    assert read_values(tmp_path / "odd.tif")[1]["format"] == "PNG"


def test_equal_channels_are_one(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    opaque = np.full_like(grey, 255)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([grey] * 3 + [opaque])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, opaque]), "LA").save(tmp_path / "la.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png")
    for name in ("rgb.png", "rgba.png", "la.png", "p.png"):
        assert np.array_equal(read_values(tmp_path / name)[0], grey)


def test_jpeg(tmp_path):
    grey = np.full((32, 32), 90, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_values(tmp_path / "a.jpg")[0] - 90).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16, np.int16, np.complex64])
def test_tiff_and_npy_of_every_type(tmp_path, dtype):
    values = (np.arange(300).reshape(15, 20) % 251).astype(dtype)
    if np.iscomplexobj(values):
        values += 2j
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(values))
    for name in ("a.tif", "a.npy", "fortran.npy"):
        read, metadata = read_values(tmp_path / name)
        assert read.dtype == (np.complex64 if np.iscomplexobj(values) else np.float32)
        assert metadata["dtype"] == np.dtype(dtype).name
        np.testing.assert_array_equal(read, values)


def test_tiff_compressed_by_other_programs(tmp_path):
    values = np.random.default_rng(0).normal(-12, 3, (40, 50)).astype(np.float32)
    for scheme in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        Image.fromarray(values).save(tmp_path / f"{scheme}.tif", compression=scheme)
        np.testing.assert_array_equal(read_values(tmp_path / f"{scheme}.tif")[0], values)
    tifffile.imwrite(tmp_path / "tiled.tif", values, tile=(16, 16), compression="zlib")
    np.testing.assert_array_equal(read_values(tmp_path / "tiled.tif")[0], values)
    tifffile.imwrite(tmp_path / "big_endian.tif", values, byteorder=">")
    np.testing.assert_array_equal(read_values(tmp_path / "big_endian.tif")[0], values)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sentinel_1_slc_of_complex_integers(tmp_path, byteorder):
    pairs = (
        np.random.default_rng(0).integers(-3000, 3000, (12, 10, 2)).astype(np.dtype(np.int16).newbyteorder(byteorder))
    )
    path = tmp_path / "slc.tif"
    tifffile.imwrite(
        path, pairs.view(np.dtype(np.int32).newbyteorder(byteorder))[..., 0], byteorder=byteorder, rowsperstrip=5
    )
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["SampleFormat"].overwrite(5)
    values, _ = read_values(path)
    np.testing.assert_array_equal(values, pairs[..., 0] + 1j * pairs[..., 1])
    patch = read_patch(path, PixelMeaning("amplitude", Scale(1000, 1000, "x")))
    np.testing.assert_allclose(
        patch.amplitude, np.clip(np.hypot(pairs[..., 0], pairs[..., 1]) / 4000, 0, 1), atol=1e-6
    )


def test_archive_members_are_read_without_a_file(tmp_path):
    content = io.BytesIO()
    np.save(content, np.ones((4, 4), np.float32))
    content.seek(0)
    assert read_values(tmp_path / "member.npy", file=content)[0].sum() == 16


# Meaning


def test_every_meaning_gives_the_same_amplitude(tmp_path):
    linear = np.random.default_rng(0).uniform(0.01, 5, (16, 18))
    expected = np.clip(linear / 4, 0, 1)
    np.save(tmp_path / "amplitude.npy", linear)
    np.save(tmp_path / "intensity.npy", linear**2)
    np.save(tmp_path / "db.npy", 20 * np.log10(linear))
    for name in ("amplitude", "intensity", "db"):
        patch = read_patch(tmp_path / f"{name}.npy", PixelMeaning(name, SCALE, polarisation="VH"))
        np.testing.assert_allclose(patch.amplitude, expected, rtol=2e-6)
        assert patch.amplitude.dtype == np.float32
        assert (patch.encoding, patch.polarisation, patch.scale) == ("linear", "VH", SCALE)


def test_quantised_decibels(tmp_path):
    Image.fromarray(np.array([[0, 51, 255]] * 3, dtype=np.uint8)).save(tmp_path / "a.png")
    patch = read_patch(tmp_path / "a.png", PixelMeaning("db", Scale(1.0, 0.0, "x"), (-25.0, 0.0)))
    np.testing.assert_allclose(patch.amplitude[0], [10**-1.25, 0.1, 1.0], rtol=1e-6)
    with pytest.raises(InputError, match="db_range"):
        read_patch(tmp_path / "a.png", PixelMeaning("db", SCALE))


def test_grey_levels_as_relative_amplitude(tmp_path):
    Image.fromarray(np.full((3, 3), 100, dtype=np.uint8)).save(tmp_path / "a.png")
    patch = read_patch(tmp_path / "a.png", PixelMeaning("amplitude", Scale(50.0, 50.0, "grey")))
    assert patch.amplitude[0, 0] == pytest.approx(0.5)


def test_pooled_scale_is_one_for_the_folder_and_keeps_brightness(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"dark": rng.gamma(4, 0.1, (30, 30)), "light": rng.gamma(4, 0.4, (20, 40))}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    (tmp_path / "readme.txt").write_text("not a patch")
    dark, light = read_folder(tmp_path, PixelMeaning("amplitude"))
    pixels = np.concatenate([a.astype(np.float32).ravel() for a in arrays.values()])
    peak = pixels.mean() + 3 * pixels.std()
    np.testing.assert_allclose(dark.amplitude, np.clip(arrays["dark"] / peak, 0, 1), rtol=1e-5)
    assert light.amplitude.mean() > 3 * dark.amplitude.mean()
    assert dark.scale == light.scale
    assert (dark.name, light.name) == ("dark.npy", "light.npy")


def test_pool_and_missing_scales_are_refused_for_one_patch(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    with pytest.raises(InputError, match="whole set"):
        read_patch(tmp_path / "a.npy", PixelMeaning("amplitude"))
    with pytest.raises(InputError, match="scale"):
        read_patch(tmp_path / "a.npy", PixelMeaning("amplitude", None))


def test_values_that_contradict_the_meaning_are_refused(tmp_path):
    np.save(tmp_path / "db.npy", np.full((4, 4), -12.0))
    np.save(tmp_path / "slc.npy", np.ones((4, 4), np.complex64))
    np.save(tmp_path / "i32.npy", np.ones((4, 4), np.int32))
    for encoding in ("amplitude", "intensity"):
        with pytest.raises(InputError, match="are these decibels"):
            read_patch(tmp_path / "db.npy", PixelMeaning(encoding, SCALE))
    with pytest.raises(InputError, match=r"-12 to -12.*\[0, 1\]"):
        read_patch(tmp_path / "db.npy", STUDIO)
    with pytest.raises(InputError, match="complex"):
        read_patch(tmp_path / "slc.npy", PixelMeaning("intensity", SCALE))
    with pytest.raises(InputError, match="int32"):
        read_patch(tmp_path / "i32.npy", STUDIO)


def test_unknown_meaning_is_refused():
    with pytest.raises(InputError, match="studio, amplitude, intensity, db"):
        PixelMeaning("power")
    with pytest.raises(InputError, match="lower end first"):
        PixelMeaning("db", SCALE, (0, -25))


# Files of the studio


def test_studio_png_leads_to_the_float_amplitude(tmp_path, amplitude):
    patch = read_patch(studio_png(tmp_path / "000_seed7.png", amplitude))
    np.testing.assert_array_equal(patch.amplitude, amplitude)
    assert (patch.encoding, patch.polarisation, patch.path) == ("linear", "VV", tmp_path / "000_seed7.npy")


def test_studio_png_alone_is_quantised_amplitude(tmp_path, amplitude):
    patch = read_patch(studio_png(tmp_path / "a.png", amplitude, beside=False, encoding="db"))
    np.testing.assert_allclose(patch.amplitude, amplitude, atol=0.5 / 255 + 1e-6)
    assert patch.encoding == "db"


def test_studio_png_under_another_view_is_not_measured(tmp_path, amplitude):
    with pytest.raises(InputError, match="density view"):
        read_patch(studio_png(tmp_path / "a.png", amplitude, beside=False, remap="density"))


def test_changed_amplitude_file_is_noticed(tmp_path, amplitude):
    path = studio_png(tmp_path / "a.png", amplitude)
    np.save(tmp_path / "a.npy", amplitude / 2)
    with pytest.raises(InputError, match="changed"):
        read_patch(path)


def test_amplitude_name_cannot_lead_out_of_the_folder(tmp_path, amplitude):
    np.save(tmp_path / "secret.npy", amplitude)
    (tmp_path / "sub").mkdir()
    path = studio_png(tmp_path / "sub" / "a.png", amplitude, beside=False, file="../secret.npy")
    assert read_patch(path).path == path


def test_npy_alone_is_known_by_its_png(tmp_path, amplitude):
    studio_png(tmp_path / "a.png", amplitude)
    assert read_patch(tmp_path / "a.npy").polarisation == "VV"
    assert len(read_folder(tmp_path)) == 1  # the view and its amplitude are one patch


def test_run_folder_gives_each_patch_once_and_no_guide(tmp_path, amplitude):
    images = []
    for index in range(2):
        path = studio_png(tmp_path / f"{index:03d}.png", amplitude * (index + 1) / 2)
        images.append(
            {"amplitude_file": f"{index:03d}.npy", "view": path.name, "sha256": sha(amplitude * (index + 1) / 2)}
        )
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "guide.png")
    checkpoint = {"amplitude_encoding": "linear", "polarisation": "VH"}
    (tmp_path / "run.json").write_text(json.dumps({"images": images, "checkpoint": checkpoint}))
    patches = read_folder(tmp_path)
    assert [p.name for p in patches] == ["000.npy", "001.npy"]
    np.testing.assert_array_equal(patches[1].amplitude, amplitude)
    assert patches[0].polarisation == "VH"
    assert len(read_folder(tmp_path, STUDIO)) == 2


def test_a_run_of_the_store_is_read(tmp_path, amplitude):
    from sar_gen.request import GenerationRequest
    from sar_gen.runs import RunStore

    facts = {"id": "x", "amplitude_encoding": "linear", "polarisation": "VV"}
    run = RunStore(tmp_path).begin(GenerationRequest("a gorge"), facts, {})
    saved = run.save_patch(0, 7, amplitude)
    for path in (saved.view, saved.amplitude_file):
        np.testing.assert_array_equal(read_patch(path).amplitude, amplitude)
    assert [p.path for p in read_folder(run.folder)] == [saved.amplitude_file]


def test_unknown_meaning_of_a_file_is_asked_for(tmp_path, amplitude):
    Image.fromarray(quantise(amplitude)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", amplitude)
    for name in ("a.png", "b.npy"):
        with pytest.raises(InputError, match=f"{name} does not say what its pixels mean"):
            read_patch(tmp_path / name)


def test_written_files_are_read_back(tmp_path, amplitude):
    facts = {"amplitude": {"encoding": "linear", "polarisation": "VV"}, "seed": 7}
    (tmp_path / "a.tif").write_bytes(tiff_bytes(amplitude, facts))
    (tmp_path / "a.npy").write_bytes(npy_bytes(amplitude))
    patch = read_patch(tmp_path / "a.tif")
    np.testing.assert_array_equal(patch.amplitude, amplitude)
    assert patch.polarisation == "VV"
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.float32
    assert read_values(tmp_path / "a.tif")[1]["studio"] == facts
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), amplitude)
    assert tiff_bytes(amplitude, facts) == tiff_bytes(amplitude, facts)
    np.testing.assert_array_equal(np.load(io.BytesIO(npy_bytes(amplitude * 1j))), amplitude * 1j)


# What a user may drop by mistake


def refused(path, says, **kwargs):
    with pytest.raises(InputError, match=says) as caught:
        read_values(path, **kwargs)
    assert path.name in str(caught.value) or str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_a_picture(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "empty")
    (tmp_path / "text.png").write_text("hello")
    refused(tmp_path / "text.png", "whatever its name")
    refused(tmp_path / "gone.png", "no file")
    refused(tmp_path, "folder")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.npy", "lzw.tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_cut_off(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, noise)
    elif name == "a.tif":
        tifffile.imwrite(path, noise)
    else:
        Image.fromarray(noise).save(path, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "damaged or cut off")


def bomb_png(width, height):
    """A PNG header that announces a size, with no pixels behind it: decoding it could only fail otherwise."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_200_megapixels_are_refused_from_the_header(tmp_path):
    (tmp_path / "huge.png").write_bytes(bomb_png(20_000, 10_000))
    refused(tmp_path / "huge.png", r"20000 x 10000 = 200 megapixels, more than the 100")
    (tmp_path / "huge.png").write_bytes(bomb_png(2**31 - 1, 2**31 - 1))
    refused(tmp_path / "huge.png", "megapixels")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (20_000, 10_000)})
    (tmp_path / "huge.npy").write_bytes(header.getvalue())
    refused(tmp_path / "huge.npy", "cut off")
    with (tmp_path / "huge.npy").open("r+b") as sparse:
        sparse.truncate(len(header.getvalue()) + 4 * 20_000 * 10_000)
    refused(tmp_path / "huge.npy", "200 megapixels")
    tifffile.imwrite(tmp_path / "big.tif", np.zeros((50, 60), np.float32))
    refused(tmp_path / "big.tif", "60 x 50", max_pixels=2999)
    Image.new("L", (60, 50)).save(tmp_path / "big.jpg")
    refused(tmp_path / "big.jpg", "60 x 50", max_pixels=2999)
    assert read_values(tmp_path / "big.jpg", max_pixels=3000)[0].shape == (50, 60)


@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_values_that_are_not_finite(tmp_path, suffix):
    values = np.zeros((10, 10), np.float32)
    values[0, :3], values[1, 1] = np.nan, np.inf
    path = tmp_path / f"a.{suffix}"
    np.save(path, values) if suffix == "npy" else tifffile.imwrite(path, values)
    refused(path, "4 of 100 pixels")


def test_geotiff_without_data(tmp_path):
    values = np.full((10, 10), -12, np.float32)
    values[:2] = -9999
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "-9999", True)])
    refused(tmp_path / "a.tif", r"20 of 100 pixels without data \(-9999\)")


def test_unlike_channels_and_several_bands(tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "rgb.png")
    refused(tmp_path / "rgb.png", "3 unlike channels")
    Image.fromarray(np.dstack([colour[..., 0], np.zeros((16, 16), np.uint8)]), "LA").save(tmp_path / "clear.png")
    refused(tmp_path / "clear.png", "transparent")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg")
    refused(tmp_path / "cmyk.jpg", "CMYK")
    bands = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    tifffile.imwrite(tmp_path / "separate.tif", bands, photometric="minisblack", planarconfig="separate")
    refused(tmp_path / "separate.tif", "2 bands, none of them named; say which is meant")
    tifffile.imwrite(tmp_path / "pages.tif", bands, photometric="minisblack")
    refused(tmp_path / "pages.tif", "2 bands, none of them named")
    tifffile.imwrite(tmp_path / "rgb.tif", colour)
    refused(tmp_path / "rgb.tif", "3 unlike channels")


def test_overviews_of_a_geotiff_are_not_bands(tmp_path):
    values = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(values)
        writer.write(values[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(read_values(tmp_path / "a.tif")[0], values)


def test_pickles_and_odd_arrays_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.save(tmp_path / "pickle.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    refused(tmp_path / "pickle.npy", "Python objects")
    assert not (tmp_path / "sprung").exists()
    np.save(tmp_path / "cube.npy", np.zeros((3, 4, 5)))
    refused(tmp_path / "cube.npy", r"shape \(3, 4, 5\)")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    refused(tmp_path / "text.npy", "type <U1")
    np.save(tmp_path / "nothing.npy", np.zeros((0, 4)))
    refused(tmp_path / "nothing.npy", "no pixels")


def test_folders_without_patches(tmp_path):
    with pytest.raises(InputError, match="holds no patches"):
        read_folder(tmp_path, STUDIO)
    with pytest.raises(InputError, match="no folder"):
        read_folder(tmp_path / "gone", STUDIO)


def test_one_bad_file_in_a_folder_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    (tmp_path / "b.png").write_text("x")
    with pytest.raises(InputError, match=r"b\.png"):
        read_folder(tmp_path, STUDIO)
