"""TIFF and GeoTIFF as other programs write them (tifffile and libtiff), read whole and by windows."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, Scale, read_patch, read_values
from sar_gen.rasters import Georeference, open_raster

WINDOW = (13, 29, 50, 61)  # crosses strips and tiles, and begins inside of one


def in_window(array):
    row, column, height, width = WINDOW
    return array[row : row + height, column : column + width]


def check(path, expected, **kwargs):
    """Both readings agree with the array, whose part the window must be."""
    np.testing.assert_array_equal(read_values(path, **kwargs)[0], expected)
    np.testing.assert_array_equal(read_values(path, window=WINDOW, **kwargs)[0], in_window(expected))


def values_of(dtype, shape=(100, 120)):
    rng = np.random.default_rng(0)
    values = rng.gamma(4, 8, shape)
    return (values + 1j * rng.gamma(4, 8, shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def gdal_metadata(items):
    inside = "".join(
        f'<Item name="{name}" sample="{sample}"{f" role={role!r}" if role else ""}>{text}</Item>'
        for name, sample, role, text in items
    )
    return (42112, "s", 0, f"<GDALMetadata>{inside}</GDALMetadata>", True)


# Layouts and encodings


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (16, 48)}])
@pytest.mark.parametrize("compression", [None, "zlib", "lzma"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.complex64])
def test_layouts(tmp_path, dtype, layout, compression, byteorder):
    values = values_of(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, byteorder=byteorder, compression=compression, photometric="minisblack", **layout)
    check(path, values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 7}, {"tile": (16, 48)}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bands_of_every_layout(tmp_path, planar, layout, compression):
    bands = values_of(np.float32, (3, 100, 120))
    stored = bands if planar == "separate" else np.moveaxis(bands, 0, -1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar, compression=compression, **layout)
    for index in range(3):
        check(path, bands[index], band=index + 1)
        check(path, bands[index], band=str(index + 1))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_bands_of_complex_signal(tmp_path, planar, byteorder):
    bands = values_of(np.complex64, (2, 100, 120))
    stored = bands if planar == "separate" else np.moveaxis(bands, 0, -1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric="minisblack", planarconfig=planar, tile=(16, 48), byteorder=byteorder, metadata=None
    )
    for index in range(2):
        check(path, bands[index], band=index + 1)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
def test_last_strip_filled_up(tmp_path, compression, planar):
    """Strips that all have as many rows as the first, though the picture ends within the last."""
    bands = values_of(np.uint8, (2, 150, 120))
    stored = bands if planar == "separate" else np.moveaxis(bands, 0, -1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric="minisblack", planarconfig=planar, compression=compression, rowsperstrip=50,
        metadata=None,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["ImageLength"].overwrite(120)
    for index in range(2):
        check(path, bands[index, :120], band=index + 1)


@pytest.mark.parametrize("scheme", ["tiff_lzw", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize(
    ("dtype", "predictor"), [(np.uint8, 1), (np.uint8, 2), (np.uint16, 2), (np.float32, 2), (np.float32, 3)]
)
def test_predictors_of_libtiff(tmp_path, scheme, dtype, predictor):
    values = values_of(dtype)
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path, compression=scheme, tiffinfo={317: predictor, 278: 9})
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.predictor == predictor
    check(path, values)


def test_packbits_of_libtiff(tmp_path):
    values = values_of(np.uint8)
    values[20:50] = 7
    Image.fromarray(values).save(tmp_path / "a.tif", compression="packbits")
    check(tmp_path / "a.tif", values)


def test_lzw_tiles(tmp_path):
    """Tiles that libtiff compressed one by one, in a file that tifffile laid out."""
    values = values_of(np.uint8)
    padded = np.pad(values, ((0, 12), (0, 24)))

    def tiles():
        for row in range(0, 112, 16):
            for column in range(0, 144, 48):
                content = io.BytesIO()
                tile = Image.fromarray(padded[row : row + 16, column : column + 48])
                tile.save(content, "TIFF", compression="tiff_lzw", tiffinfo={278: 16})
                content.seek(0)
                with tifffile.TiffFile(content) as tiff:
                    page = tiff.pages.first
                    (offset,), (count,) = page.dataoffsets, page.databytecounts
                yield content.getvalue()[offset : offset + count]

    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(tiles(), shape=(100, 120), dtype=np.uint8, tile=(16, 48), compression="none")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(5)
    check(path, values)


def test_jpeg_inside(tmp_path):
    values = np.repeat(np.repeat(values_of(np.uint8, (20, 24)), 5, 0), 5, 1)
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path, compression="jpeg", quality=90)
    with Image.open(path) as image:
        check(path, np.asarray(image))


def test_compressed_complex_integers_of_gdal(tmp_path):
    pairs = np.random.default_rng(0).integers(-3000, 3000, (100, 120, 2)).astype(np.int16)
    path = tmp_path / "slc.tif"
    tifffile.imwrite(path, pairs.view(np.int32)[..., 0], tile=(16, 48), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["SampleFormat"].overwrite(5)
    check(path, (pairs[..., 0] + 1j * pairs[..., 1]).astype(np.complex64))


class Counted(io.FileIO):
    """A file that counts the bytes that are read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.count += count
        return count


@pytest.mark.parametrize("layout", ["tiles", "compressed tiles", "one strip", "npy", "fortran npy"])
def test_only_what_a_window_touches_is_read(tmp_path, layout):
    values = np.random.default_rng(0).integers(0, 65536, (2048, 2048)).astype(np.uint16)  # 8 MiB
    path = tmp_path / "a.bin"
    if "npy" in layout:
        with path.open("wb") as file:
            np.save(file, np.asfortranarray(values) if layout == "fortran npy" else values)
    elif layout == "one strip":
        tifffile.imwrite(path, values)
    else:
        tifffile.imwrite(path, values, tile=(128, 128), compression="zlib" if "compressed" in layout else None)
    window = (1000, 1500, 100, 90)  # touches 2 x 2 tiles: 128 KiB
    with Counted(path) as file:
        read, _ = read_values(path, file=file, window=window, max_pixels=128 * 128)
        assert 100 * 90 * 2 <= file.count < 200_000
    np.testing.assert_array_equal(read, values[1000:1100, 1500:1590])
    with pytest.raises(InputError, match=r"2048 x 2048 = 4\.194 megapixels.*--window.*--tile"):
        read_values(path, max_pixels=128 * 128)
    with pytest.raises(InputError, match=r"The window of a\.bin is 129 x 128"):
        read_values(path, max_pixels=128 * 128, window=(0, 0, 128, 129))


def test_one_piece_too_large_to_decode_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((300, 300), np.uint8), compression="zlib", rowsperstrip=300)
    with pytest.raises(InputError, match=r"compressed in pieces of 300 x 300.*tiled TIFF"):
        read_values(path, window=(0, 0, 10, 10), max_pixels=1000)


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 0, 5), (96, 0, 5, 5), (0, 116, 5, 5), (0, 0, 101, 5)])
def test_windows_that_do_not_lie_inside(tmp_path, window):
    tifffile.imwrite(tmp_path / "a.tif", values_of(np.uint8))
    with pytest.raises(InputError, match=r"not inside a\.tif, of 100 rows and 120 columns"):
        read_values(tmp_path / "a.tif", window=window)


# Bands


def named_bands(path, names, photometric="minisblack", **kwargs):
    bands = values_of(np.float32, (len(names), 40, 50))
    tags = [gdal_metadata([("DESCRIPTION", i, "description", name) for i, name in enumerate(names)])]
    tifffile.imwrite(
        path, bands, photometric=photometric, planarconfig="separate", extratags=tags, metadata=None, **kwargs
    )
    return bands


def test_bands_are_chosen_by_number_name_or_polarisation(tmp_path):
    path = tmp_path / "a.tif"
    bands = named_bands(path, ["Sigma0_VV_db", "Sigma0_VH_db"])
    for band, index in ((1, 0), ("2", 1), ("vv", 0), ("VH", 1), ("sigma0_vh_db", 1)):
        values, metadata = read_values(path, band=band)
        np.testing.assert_array_equal(values, bands[index])
        assert metadata["bands"] == ("Sigma0_VV_db", "Sigma0_VH_db")
        assert metadata["polarisation"] == ("VV", "VH")[index]
    scale = Scale(30.0, 10.0, "test")
    assert read_patch(path, PixelMeaning("amplitude", scale), band="VH").polarisation == "VH"
    with pytest.raises(InputError, match=r"names the band 'Sigma0_VH_db', but VV was said"):
        read_patch(path, PixelMeaning("amplitude", scale, polarisation="VV"), band=2)


def test_bands_that_are_not_clear(tmp_path):
    path = tmp_path / "a.tif"
    named_bands(path, ["Sigma0_VV", "Gamma0_VV", "ratio VV/VH"])
    with pytest.raises(
        InputError, match=r"a\.tif has 3 bands \(1: Sigma0_VV, 2: Gamma0_VV, 3: ratio VV/VH\); say which.*--band"
    ):
        read_values(path)
    with pytest.raises(InputError, match=r"several bands 'VV' \(1, 2, 3\)"):
        read_values(path, band="VV")
    for band in ("HH", 0, 4, "-1", ""):
        with pytest.raises(InputError, match=rf"no band '{band}'; it has 3 bands \(1: Sigma0_VV"):
            read_values(path, band=band)
    assert read_values(path, band=3)[1]["polarisation"] is None  # the name holds two
    tifffile.imwrite(tmp_path / "one.tif", values_of(np.uint8))
    assert read_values(tmp_path / "one.tif", band=1)[0].shape == (100, 120)
    with pytest.raises(InputError, match="no band '2'; it has 1 band"):
        read_values(tmp_path / "one.tif", band=2)


def test_bands_that_snap_names(tmp_path):
    xml = "<Dimap_Document><BAND_NAME>Amplitude_VH</BAND_NAME><BAND_NAME>Amplitude_VV</BAND_NAME></Dimap_Document>"
    bands = values_of(np.float32, (2, 40, 50))
    tifffile.imwrite(
        tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate",
        extratags=[(65000, "s", 0, xml, True)],
    )  # fmt: skip
    np.testing.assert_array_equal(read_values(tmp_path / "a.tif", band="VV")[0], bands[1])


def test_images_of_one_file_are_bands(tmp_path):
    bands = values_of(np.float32, (2, 40, 50))
    tifffile.imwrite(tmp_path / "pages.tif", bands, photometric="minisblack")
    np.testing.assert_array_equal(read_values(tmp_path / "pages.tif", band=2)[0], bands[1])
    with tifffile.TiffWriter(tmp_path / "unlike.tif") as writer:
        writer.write(bands[0])
        writer.write(bands[1, ::2])
    with pytest.raises(InputError, match="2 images of different size or type"):
        read_values(tmp_path / "unlike.tif", band=1)


# No data


def test_nodata_of_floats_and_of_nan(tmp_path):
    values = values_of(np.float32)
    values[:2] = np.float32(-3.4028234663852886e38)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "-3.4028234663852886e+38", True)])
    with pytest.raises(InputError, match=r"240 of 12000 pixels without data \(-3\.40282e\+38\)"):
        read_values(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_values(tmp_path / "a.tif", window=(2, 0, 98, 120))[0], values[2:])
    values[:2] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values, extratags=[(42113, "s", 0, "nan", True)])
    with pytest.raises(InputError, match="240 of 12000 pixels that are NaN"):
        read_values(tmp_path / "nan.tif")


def test_nodata_that_the_user_knows(tmp_path):
    values = values_of(np.uint16)
    values[:3] = 0
    tifffile.imwrite(tmp_path / "a.tif", values)
    known = int((values == 0).sum())
    with pytest.raises(InputError, match=rf"{known} of 12000 pixels without data \(0\)"):
        read_patch(tmp_path / "a.tif", PixelMeaning("amplitude", Scale(30, 10, "x"), nodata=0))


def test_masks_alpha_and_gaps_are_no_data(tmp_path):
    values = values_of(np.uint8)
    mask = np.full(values.shape, 255, np.uint8)
    mask[:10] = 0
    with tifffile.TiffWriter(tmp_path / "mask.tif") as writer:
        writer.write(values)
        writer.write(mask, photometric="minisblack", subfiletype=1)
    with tifffile.TiffFile(tmp_path / "mask.tif", mode="r+b") as tiff:
        tiff.pages[1].tags["NewSubfileType"].overwrite(4)
    tifffile.imwrite(
        tmp_path / "alpha.tif", np.dstack([values, mask]), photometric="minisblack", planarconfig="contig",
        extrasamples=["unassalpha"],
    )  # fmt: skip
    tifffile.imwrite(tmp_path / "gap.tif", values, rowsperstrip=10)
    with tifffile.TiffFile(tmp_path / "gap.tif", mode="r+b") as tiff:
        tags = tiff.pages.first.tags
        for name in ("StripOffsets", "StripByteCounts"):
            tags[name].overwrite((0, *tags[name].value[1:]))
    for name in ("mask", "alpha", "gap"):
        with pytest.raises(InputError, match="1200 of 12000 pixels without data"):
            read_values(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(read_values(tmp_path / f"{name}.tif", window=(10, 0, 90, 120))[0], values[10:])


def test_scale_and_offset_of_gdal_are_applied(tmp_path):
    values = values_of(np.uint16)
    items = [("OFFSET", 0, "offset", "-0.5"), ("SCALE", 0, "scale", "0.01")]
    tifffile.imwrite(
        tmp_path / "a.tif", values, extratags=[gdal_metadata(items), (42113, "s", 0, "0", True)], metadata=None
    )
    read, metadata = read_values(tmp_path / "a.tif")
    np.testing.assert_allclose(read, values * 0.01 - 0.5, rtol=1e-6)
    assert (metadata["dtype"], metadata["levels"]) == ("float32", None)
    values[0, :7] = 0
    tifffile.imwrite(
        tmp_path / "b.tif", values, extratags=[gdal_metadata(items), (42113, "s", 0, "0", True)], metadata=None
    )
    with pytest.raises(InputError, match="7 of 12000 pixels without data"):
        read_values(tmp_path / "b.tif")


# Place


def geotiff(path, keys, scale=(10.0, 10.0, 0.0), tie=(0, 0, 0, 500000.0, 5000000.0, 0), matrix=None, text=""):
    directory = [1, 1, 0, len(keys)] + [number for key in keys for number in key]
    tags = [(34735, "H", len(directory), directory, True)]
    if matrix is None:
        tags += [(33550, "d", 3, scale, True), (33922, "d", len(tie), tie, True)]
    else:
        tags += [(34264, "d", 16, matrix, True)]
    if text:
        tags.append((34737, "s", 0, text, True))
    tifffile.imwrite(path, values_of(np.float32), extratags=tags, metadata=None)
    return read_values(path)[1]["georeference"]


PROJECTED, GEOGRAPHIC, AREA, POINT = (1024, 0, 1, 1), (1024, 0, 1, 2), (1025, 0, 1, 1), (1025, 0, 1, 2)


def test_crs_and_transform(tmp_path):
    path = tmp_path / "a.tif"
    utm = geotiff(path, [PROJECTED, AREA, (3072, 0, 1, 32633)])
    assert utm == Georeference("EPSG:32633", (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0))
    point = geotiff(path, [PROJECTED, POINT, (3072, 0, 1, 32633)])
    assert point.transform == (10.0, 0.0, 499995.0, 0.0, -10.0, 5000005.0)  # the corner of a pixel centred there
    tied = geotiff(path, [GEOGRAPHIC, AREA, (2048, 0, 1, 4326)], (0.5, 0.25, 0), (4, 8, 0, 10.0, 50.0, 0))
    assert tied == Georeference("EPSG:4326", (0.5, 0.0, 8.0, 0.0, -0.25, 52.0))
    matrix = (3.0, 1.0, 0, 7.0, -1.0, -3.0, 0, 9.0, 0, 0, 0, 0, 0, 0, 0, 1)
    turned = geotiff(path, [PROJECTED, AREA, (3072, 0, 1, 32633)], matrix=matrix)
    assert turned.transform == (3.0, 1.0, 7.0, -1.0, -3.0, 9.0)


def test_a_system_of_its_own_keeps_its_words(tmp_path):
    keys = [PROJECTED, AREA, (1026, 34737, 9, 0), (2048, 0, 1, 4326), (3072, 0, 1, 32767)]
    crs = geotiff(tmp_path / "a.tif", keys, text="my grid #|").crs
    assert "my grid" in crs
    assert not crs.startswith("EPSG")


def test_no_place_without_one_affine_transform(tmp_path):
    keys = [GEOGRAPHIC, AREA, (2048, 0, 1, 4326)]
    points = (0, 0, 0, 10.0, 50.0, 0, 119, 99, 0, 11.0, 49.0, 0)  # ground control points, as Sentinel-1 GRD has them
    tags = [(34735, "H", 16, [1, 1, 0, 3, *(n for key in keys for n in key)], True), (33922, "d", 12, points, True)]
    tifffile.imwrite(tmp_path / "gcp.tif", values_of(np.float32), extratags=tags, metadata=None)
    tifffile.imwrite(tmp_path / "plain.tif", values_of(np.float32))
    for name in ("gcp", "plain"):
        assert read_values(tmp_path / f"{name}.tif")[1]["georeference"] is None


def test_a_window_knows_its_place(tmp_path):
    path = tmp_path / "a.tif"
    matrix = (3.0, 1.0, 0, 7.0, -1.0, -3.0, 0, 9.0, 0, 0, 0, 0, 0, 0, 0, 1)
    whole = geotiff(path, [PROJECTED, AREA, (3072, 0, 1, 32633)], matrix=matrix)
    patch = read_patch(path, PixelMeaning("amplitude", Scale(30.0, 10.0, "x")), window=WINDOW)
    assert (patch.window, patch.name) == (WINDOW, "a_r00013_c00029")
    a, b, c, d, e, f = whole.transform
    column, row = 5.5, 7.25  # any place in the window is where it is in the file
    x, y = a * (29 + column) + b * (13 + row) + c, d * (29 + column) + e * (13 + row) + f
    a, b, c, d, e, f = patch.georeference.transform
    assert (a * column + b * row + c, d * column + e * row + f) == pytest.approx((x, y))
    assert patch.georeference.crs == "EPSG:32633"


# What is refused


def test_kinds_of_pixels_that_would_be_wrong_numbers(tmp_path):
    grey = values_of(np.uint8)

    def refused(says, **kwargs):
        tifffile.imwrite(tmp_path / "a.tif", **kwargs)
        with pytest.raises(InputError, match=says), open_raster(tmp_path / "a.tif", 10**6):
            pass

    refused("stores white as 0", data=grey, photometric="miniswhite")
    refused("colours \\(PALETTE\\)", data=grey, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    refused("shown turned", data=grey, extratags=[(274, "H", 1, 6, True)])
    refused("1-bit", data=grey > 20, photometric="minisblack")
    refused("volume of 4 layers", data=np.zeros((4, 32, 32), np.uint8), volumetric=True, photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif", grey, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(34887)
    with pytest.raises(InputError, match=r"compressed in a way that is not read \(TIFF compression 34887\)"):
        read_values(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", values_of(np.int32), compression="zlib", predictor=2)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages.first.tags["SampleFormat"].overwrite(5)
    with pytest.raises(InputError, match=r"a predictor that is not read for complex values \(2\)"):
        read_values(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_tiles_that_are_cut_off(tmp_path, compression, share):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values_of(np.float32), tile=(16, 16), compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="damaged or cut off"):
        read_values(path)
