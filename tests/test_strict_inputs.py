"""Every odd input that a user may give: a clear sentence, or the convention that is stated; never a wrong number."""

import os
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, read_folder, read_patch, read_values

STUDIO = PixelMeaning("studio")
SCALE = Scale(50.0, 50.0, "test")  # peak 200
AMPLITUDE = PixelMeaning("amplitude", SCALE)
GREY = np.random.default_rng(0).integers(1, 256, (40, 50)).astype(np.uint8)


def with_value(value, dtype=np.float32):
    array = GREY.astype(dtype)
    array[7, 9] = value
    return array


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def palette(colours):
    picture = Image.fromarray(GREY, "P")
    picture.putpalette(colours)
    return picture


def ramp(red, green, blue):
    return [int(level * part) for level in range(256) for part in (red, green, blue)]


# What is refused, by a sentence that says what is wrong and names the file


NPY = {
    "NaN": (with_value(np.nan), AMPLITUDE, "1 of 2000 pixels that are NaN or infinite"),
    "infinite": (with_value(np.inf), AMPLITUDE, "1 of 2000 pixels that are NaN or infinite"),
    "infinite in float32": (with_value(1e60, np.float64), AMPLITUDE, "1 of 2000 pixels that are NaN or infinite"),
    "NaN in signal": (with_value(complex(np.nan, 0), np.complex64), AMPLITUDE, "NaN or infinite"),
    "zero in decibels": (with_value(-np.inf), PixelMeaning("db", SCALE), "NaN or infinite"),
    "negative amplitude": (with_value(-1), AMPLITUDE, "values down to -1; amplitude is never negative"),
    "negative intensity": (with_value(-1), PixelMeaning("intensity", SCALE), "intensity is never negative"),
    "negative integer": (with_value(-1, np.int16), AMPLITUDE, "values down to -1"),
    "no decibels": (GREY.astype(np.float32), PixelMeaning("db", SCALE), "values up to 255, which are no decibels"),
    "integer decibels": (GREY, PixelMeaning("db", SCALE), "say which decibels its grey range covers"),
    "int64 decibels": (GREY.astype(np.int64), PixelMeaning("db", SCALE, (-25, 0)), "say which decibels"),
    "above one": (GREY.astype(np.float32), STUDIO, r"values from 1 to 255; studio amplitude lies in \[0, 1\]"),
    "int64 studio": (GREY.astype(np.int64), STUDIO, "holds int64 values; studio amplitude is 8-bit, 16-bit or float"),
    "intensity of signal": (GREY.astype(np.complex64), PixelMeaning("intensity", SCALE), "can only be 'amplitude'"),
    "bool": (GREY > 100, STUDIO, "type bool"),
    "text": (GREY.astype("U3"), STUDIO, "type <U3"),
    "dates": (GREY.astype("M8[s]"), STUDIO, "type datetime64"),
    "fields": (np.zeros((40, 50), [("a", "f4")]), STUDIO, "save one"),
    "one dimension": (GREY.ravel(), STUDIO, r"shape \(2000,\)"),
    "no dimension": (np.float32(0.5), STUDIO, r"shape \(\)"),
    "three dimensions": (GREY[None], STUDIO, r"shape \(1, 40, 50\)"),
    "no rows": (GREY[:0], STUDIO, "no pixels"),
    "no columns": (GREY[:, :0], STUDIO, "no pixels"),
    "no data": (with_value(0), PixelMeaning("amplitude", SCALE, nodata=0), r"1 of 2000 pixels without data \(0\)"),
    "no meaning": (GREY, None, "does not say what its pixels mean"),
    "signal without scale": (GREY.astype(np.complex64), None, "modulus is linear amplitude, but it has no scale"),
    "no scale": (GREY, PixelMeaning("amplitude", None), "has no scale"),
    "pooled alone": (GREY, PixelMeaning("amplitude"), "alone has no scale"),
}


@pytest.mark.parametrize("case", NPY)
def test_arrays_that_are_refused(tmp_path, case):
    array, meaning, says = NPY[case]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=says) as caught:
        read_patch(tmp_path / "a.npy", meaning)
    assert "a.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


PICTURES = {
    "turned jpeg": ("a.jpg", lambda p: Image.fromarray(GREY).save(p, exif=exif(6)), r"turned.*orientation 6"),
    "mirrored png": ("a.png", lambda p: Image.fromarray(GREY).save(p, exif=exif(2)), r"turned.*orientation 2"),
    "colours": ("a.png", lambda p: Image.fromarray(np.dstack([GREY, GREY // 2, GREY])).save(p), "3 unlike channels"),
    "colour palette": ("a.png", lambda p: palette(ramp(1, 0.5, 0)).save(p), "palette picture in colours"),
    "1 bit": ("a.png", lambda p: Image.fromarray(GREY).convert("1").save(p), "1-bit"),
    "part transparent": (
        "a.png",
        lambda p: Image.fromarray(np.dstack([GREY, np.where(GREY < 99, 254, 255).astype(np.uint8)])).save(p),
        rf"{(GREY < 99).sum()} of 2000 pixels without data \(transparent\)",
    ),
    "transparent grey": (
        "a.png", lambda p: Image.fromarray(GREY).save(p, transparency=int(GREY[3, 4])), r"without data \(transparent"
    ),
    "transparent 16-bit grey": (
        "a.png",
        lambda p: Image.fromarray(GREY.astype(np.uint16) * 257).save(p, transparency=int(GREY[3, 4]) * 257),
        r"without data \(transparent",
    ),
    "animated": (
        "a.png",
        lambda p: Image.fromarray(GREY).save(p, save_all=True, append_images=[Image.fromarray(GREY // 2)]),
        "animated",
    ),
    "gif": ("a.png", lambda p: Image.fromarray(GREY).save(p, format="GIF"), "is not a PNG, TIFF, JPEG, NPY or SICD"),
    "empty": ("a.png", lambda p: p.write_bytes(b""), "empty"),
    "compressed folder": ("a.npy", lambda p: np.savez(p.open("wb"), GREY), "is not a PNG"),
    "16-bit colour": (
        "a.png",
        lambda p: p.write_bytes(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 40, 50, 16, 2, 0, 0, 0) + b"\0" * 4
        ),
        "16-bit colour",
    ),
    "two bands": (
        "a.tif",
        lambda p: tifffile.imwrite(p, np.stack([GREY] * 2), photometric="minisblack", planarconfig="separate"),
        "2 bands, none of them named; say which is meant",
    ),
    "mixed bands": (
        "a.tif", lambda p: tifffile.imwrite(p, np.dstack([GREY, GREY // 2, GREY]), photometric="rgb"), "3 unlike"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_are_refused(tmp_path, case):
    name, write, says = PICTURES[case]
    write(tmp_path / name)
    with pytest.raises(InputError, match=says) as caught:
        read_patch(tmp_path / name, STUDIO)
    assert name in str(caught.value)


def test_huge_files_name_the_way_out(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    np.save(tmp_path / "a.npy", GREY)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    for name in ("a.tif", "a.npy"):
        with pytest.raises(InputError, match=rf"{name} is 50 x 40.*--window.*--tile.*SAR_GEN_MAX_PIXELS"):
            read_patch(tmp_path / name, STUDIO, 1999)
        assert read_patch(tmp_path / name, STUDIO, 1999, window=(0, 0, 39, 50)).amplitude.shape == (39, 50)
    with pytest.raises(InputError, match=r"a\.png is 50 x 40.*save it as a TIFF, which is read by windows"):
        read_patch(tmp_path / "a.png", STUDIO, 1999, window=(0, 0, 10, 10))


def test_a_raster_of_16k_by_16k_that_is_all_header(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (16384, 16384)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * 16384**2)  # a hole: 1 GiB that takes no room
    with pytest.raises(
        InputError, match=r"16384 x 16384 = 268\.4 megapixels, more than the 100 that are read at once"
    ):
        read_patch(tmp_path / "a.npy", STUDIO)
    patch = read_patch(tmp_path / "a.npy", STUDIO, window=(16000, 16000, 384, 384))
    assert patch.amplitude.shape == (384, 384)


# Links and folders


def test_links(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.npy").symlink_to(tmp_path / "a.npy")
    np.testing.assert_array_equal(read_values(tmp_path / "folder" / "link.npy")[0], GREY)
    assert len(read_folder(tmp_path / "folder", STUDIO)) == 1
    (tmp_path / "folder" / "gone.npy").symlink_to(tmp_path / "nowhere.npy")
    with pytest.raises(InputError, match=r"gone\.npy is a link to a file that is not there"):
        read_patch(tmp_path / "folder" / "gone.npy", STUDIO)
    with pytest.raises(InputError, match=r"holds a link to a file that is not there \(gone\.npy\)"):
        read_folder(tmp_path / "folder", STUDIO)
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    with pytest.raises(InputError, match="link to a file that is not there"):
        read_patch(tmp_path / "loop.npy", STUDIO)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(InputError, match="device or pipe"):
        read_patch(tmp_path / "pipe.npy", STUDIO)


def test_unlike_units_of_a_folder_have_no_common_scale(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    np.save(tmp_path / "b.npy", GREY.astype(np.uint16) * 257)
    np.save(tmp_path / "c.npy", GREY / np.float32(255))
    for meaning in (PixelMeaning("amplitude"), PixelMeaning("intensity"), AMPLITUDE):
        with pytest.raises(InputError, match=r"mixes uint8 values \(a\.npy\), uint16 values \(b\.npy\), floats \(c"):
            read_folder(tmp_path, meaning)
    finished = read_folder(tmp_path, STUDIO)  # full scale and 1 are the same
    for patch in finished:
        np.testing.assert_allclose(patch.amplitude, GREY / 255, rtol=1e-6)


def test_a_folder_that_is_all_dark_has_no_scale(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 50), np.float32))
    with pytest.raises(InputError, match="has no pixels with data above zero to take a scale from"):
        read_folder(tmp_path, PixelMeaning("amplitude"))


# What is read by a stated convention


def test_sizes_may_differ_and_each_pixel_counts_once(tmp_path):
    small, large = GREY[:32, :32].astype(np.float32), GREY.astype(np.float32) / 3
    np.save(tmp_path / "a.npy", small)
    np.save(tmp_path / "b.npy", large)
    patches = read_folder(tmp_path, PixelMeaning("amplitude"))
    assert [patch.amplitude.shape for patch in patches] == [(32, 32), (40, 50)]
    pixels = np.concatenate([small.ravel(), large.ravel()]).astype(np.float64)
    assert patches[0].scale.peak == pytest.approx(pixels.mean() + 3 * pixels.std(), rel=1e-6)


def test_constant_patches_are_read_and_judged_in_words(tmp_path):
    from sar_gen.quality.report import compare
    from sar_gen.quality.statistics import patch_statistics

    rng = np.random.default_rng(0)
    real = patch_statistics([np.clip(rng.gamma(4, 0.1, (64, 64)), 0, 1).astype(np.float32) for _ in range(6)])
    for level in (0, 0.5):
        np.save(tmp_path / "a.npy", np.full((64, 64), level, np.float32))
        patch = read_patch(tmp_path / "a.npy", STUDIO)
        assert (patch.amplitude == level).all()
        assert "nothing to judge" in compare(patch_statistics([patch.amplitude]), real, reference_name="real").verdict


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", ">i4", "i8", "u8", "f2", ">f4", "f8", "g", ">f8", ">c8", "c16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_type_and_byte_order(tmp_path, dtype, order):
    np.save(tmp_path / "a.npy", np.asarray(GREY, dtype=dtype, order=order))
    patch = read_patch(tmp_path / "a.npy", AMPLITUDE)
    np.testing.assert_allclose(patch.amplitude, np.clip(GREY / 200, 0, 1), rtol=1e-6)
    part = read_patch(tmp_path / "a.npy", AMPLITUDE, window=(3, 5, 33, 34))
    np.testing.assert_array_equal(part.amplitude, patch.amplitude[3:36, 5:39])


def test_pictures_that_are_grey_all_the_same(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "upright.jpg", exif=exif(1), quality=100)
    assert np.abs(read_values(tmp_path / "upright.jpg")[0] - GREY).max() <= 2
    halves = palette(ramp(0.5, 0.5, 0.5))
    halves.save(tmp_path / "palette.png")  # the colours, not the indices
    np.testing.assert_array_equal(read_values(tmp_path / "palette.png")[0], GREY // 2)
    opaque = np.dstack([GREY, np.full_like(GREY, 255)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_values(tmp_path / "opaque.png")[0], GREY)
    unused = next(level for level in range(256) if level not in GREY)
    Image.fromarray(GREY).save(tmp_path / "unused.png", transparency=unused)
    np.testing.assert_array_equal(read_values(tmp_path / "unused.png")[0], GREY)
    channels = np.dstack([GREY, GREY // 2, GREY // 4])
    Image.fromarray(channels).save(tmp_path / "colour.png")
    for band, index in (("green", 1), (3, 2)):
        np.testing.assert_array_equal(read_values(tmp_path / "colour.png", band=band)[0], channels[..., index])


def test_grey_of_2_and_4_bits_becomes_the_same_grey_of_8(tmp_path):
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    levels = np.arange(16, dtype=np.uint8)
    packed = bytes([0]) + bytes(levels[::2] << 4 | levels[1::2])
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 1, 4, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(packed))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_allclose(read_patch(tmp_path / "a.png", STUDIO).amplitude[0], levels / 15, atol=1e-6)
