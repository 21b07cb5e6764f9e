"""TIFF and GeoTIFF, read by the strips or tiles that a window touches.

The package tifffile parses the file's structure; segments are decoded here, because tifffile without its compiled
extra package reads no LZW and no floating-point predictor, and no complex integers (Sentinel-1 SLC) at all. LZW,
PackBits, LZMA and Zstandard are undone by the libtiff inside Pillow: a segment goes to it as a TIFF of plain bytes.
"""

from __future__ import annotations

import io
import itertools
import logging
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.rasters.pictures import ORIENTATION, STUDIO_KEY, check_upright, parsed
from sar_gen.rasters.raster import Georeference, Raster, Read, Window, check_size, read_exactly, read_plain

_GDAL_METADATA, _GDAL_NODATA, _SNAP_XML = 42112, 42113, 65000
_NONE, _LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 7, 8, 32773, 32946, 34925, 50000
_BY_PILLOW = (_LZW, _PACKBITS, _LZMA, _ZSTD)
_UNSIGNED, _SIGNED, _FLOAT, _COMPLEX_INTEGER, _COMPLEX = 1, 2, 3, 5, 6  # TIFF sample formats
_HORIZONTAL, _FLOATING = 2, 3  # predictors
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RED_GREEN_BLUE = 0, 1, 2  # photometric interpretations
_ALPHA = (1, 2)
_POINT, _USER_DEFINED = 2, 32767  # GeoTIFF: pixels are points; not in the EPSG list


@dataclass(frozen=True)
class _Page:
    """One image of a TIFF, as its tags describe it."""

    width: int
    height: int
    samples: int
    separate: bool  # each sample has segments of its own
    raw: np.dtype[Any]  # of one element as stored; pairs of integers for complex integers
    bits: int
    compression: int
    predictor: int
    segment: tuple[int, int]  # height and width of a strip or tile
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    jpeg_tables: bytes | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that a reader gets."""
        if self.raw.fields is not None:
            return np.dtype(np.complex64)
        return np.dtype(np.uint8) if self.bits == 1 else self.raw.newbyteorder("=")


def open_tiff(name: str, file: BinaryIO, max_pixels: int) -> Raster:
    """Return a TIFF as a raster; overviews are no bands, full-size images of one file are, masks and alpha neither.

    Raises:
        InputError: its kind of pixels, its compression or its structure is not read.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of its remarks is raised here
    with tifffile.TiffFile(file) as tiff:
        all_pages = [page for page in tiff.pages if not page.is_reduced]
        images = [page for page in all_pages if not page.is_mask]
        first = images[0]
        if first.imagewidth * first.imagelength < 1:
            check_size(name, first.imagewidth, first.imagelength, max_pixels)
        for page in images:
            _check_kind(name, page)
        pages = [_page(name, page) for page in images]
        if len({(page.width, page.height, page.raw) for page in pages}) > 1:
            raise InputError(
                f"{name} holds {len(pages)} images of different size or type; save the one that is meant as a file of "
                "its own."
            )
        masks = [_page(name, page) for page in all_pages if page.is_mask]
        masks = [mask for mask in masks if (mask.width, mask.height) == (pages[0].width, pages[0].height)]
        alpha = _alpha(first)
        facts = _gdal_facts(first)
        studio = (parsed(first.description) or {}).get(STUDIO_KEY)
        georeference = _georeference(first)
        nodata = _number(first.tags.valueof(_GDAL_NODATA))
    for page in (*pages, *masks):
        _check_segment(name, page, max_pixels)
    bands = [(page, sample) for page in pages for sample in range(page.samples) if sample != alpha]
    names = [facts.names.get(index, "") for index in range(len(bands))]
    colour = first.photometric == _RED_GREEN_BLUE and len(bands) == 3 and not any(names)
    if colour:
        names = ["red", "green", "blue"]
    scales = {index: facts.scales[index] for index in range(len(bands)) if index in facts.scales}

    def read(band: int, window: Window) -> Read:
        page, sample = bands[band]
        values, missing = _read(name, file, page, sample, window)
        hidden = [_read(name, file, mask, 0, window)[0] == 0 for mask in masks]
        if alpha is not None:
            opacity = _read(name, file, page, alpha, window)[0]
            hidden.append(opacity < (np.iinfo(opacity.dtype).max if opacity.dtype.kind in "iu" else 1))
        if nodata is not None and scales:  # what it stands for is the stored value, not the scaled one
            hidden.append(values == nodata)
        for more in hidden:
            missing = more if missing is None else missing | more
        if scales:
            scale, offset = scales.get(band, (1.0, 0.0))
            values = (values.astype(np.float64) * scale + offset).astype(np.float32)
        return values, missing if missing is not None and missing.any() else None

    return Raster(
        name, "TIFF", pages[0].height, pages[0].width, np.dtype(np.float32) if scales else pages[0].dtype,
        tuple(names), read, max_pixels, colour=colour, nodata=None if scales else nodata,
        missing_is="its no-data value, mask or gaps", studio=studio if isinstance(studio, dict) else None,
        georeference=georeference,
    )  # fmt: skip


# Structure ---------------------------------------------------------------------------------------------------------


def _check_kind(name: str, page: Any) -> None:
    orientation = page.tags.valueof(ORIENTATION)
    check_upright(name, orientation)
    if page.photometric == _WHITE_IS_ZERO and page.bitspersample > 1:
        raise InputError(f"{name} stores white as 0 and black as full scale; save it with black as 0.")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RED_GREEN_BLUE):
        kind = getattr(page.photometric, "name", page.photometric)
        raise InputError(f"{name} is a TIFF of colours ({kind}), not of values; save it as greyscale.")
    if page.bitspersample == 1:
        raise InputError(f"{name} is a 1-bit picture, black and white only; SAR amplitude needs grey levels.")
    if page.imagedepth > 1:
        raise InputError(f"{name} is a volume of {page.imagedepth} layers; save the layer that is meant.")
    described = page.imagej_description or {}
    if described.get("images", 1) > len(page.parent.pages):
        raise InputError(f"{name} is an ImageJ stack; save the one picture that is meant.")


def _page(name: str, page: Any) -> _Page:
    tags = page.tags
    bits, kind = page.bitspersample, page.sampleformat
    for tag, what in (("BitsPerSample", "size"), ("SampleFormat", "type")):
        value = tags.valueof(tag)
        if isinstance(value, tuple) and len(set(value)) > 1:
            raise InputError(f"{name} has bands of different number {what}s; save the band that is meant by itself.")
    order = page.parent.byteorder
    codes = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f", _COMPLEX: "c"}
    allowed = {_UNSIGNED: (8, 16, 32, 64), _SIGNED: (8, 16, 32, 64), _FLOAT: (16, 32, 64), _COMPLEX: (64, 128)}
    raw: np.dtype[Any]
    if bits == 1:
        raw = np.dtype(np.uint8)
    elif kind == _COMPLEX_INTEGER and bits in (32, 64):
        raw = np.dtype([(part, f"{order}i{bits // 16}") for part in ("real", "imaginary")])
    elif bits in allowed.get(kind, ()):
        raw = np.dtype(f"{order}{codes[kind]}{bits // 8}")
    else:
        raise InputError(f"{name} has samples of {bits} bits (sample format {kind}), which are not read; save floats.")
    tiled = bool(page.is_tiled)
    rows = page.rowsperstrip if 0 < page.rowsperstrip < page.imagelength else page.imagelength
    segment = (page.tilelength, page.tilewidth) if tiled else (rows, page.imagewidth)
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    result = _Page(
        page.imagewidth, page.imagelength, page.samplesperpixel, separate, raw, bits, int(page.compression),
        int(page.predictor), segment, tiled, tuple(page.dataoffsets), tuple(page.databytecounts),
        page.jpegtables,
    )  # fmt: skip
    if not (segment[0] > 0 and segment[1] > 0) or len(result.offsets) < _segments(result):
        raise EOFError("segments are missing")
    return result


def _segments(page: _Page) -> int:
    down, across = _grid(page)
    return down * across * (page.samples if page.separate else 1)


def _grid(page: _Page) -> tuple[int, int]:
    return -(-page.height // page.segment[0]), -(-page.width // page.segment[1])


def _check_segment(name: str, page: _Page, max_pixels: int) -> None:
    """Refuse compressed segments that are too large to be decoded, and compressions that cannot be."""
    readable = (_NONE, _DEFLATE, _OLD_DEFLATE, *_BY_PILLOW)
    if page.compression not in readable and not (page.compression == _JPEG and page.bits == 8 and _one(page)):
        raise InputError(
            f"{name} is compressed in a way that is not read (TIFF compression {page.compression}); save it without "
            "compression, or with DEFLATE, LZW or ZSTD."
        )
    if page.predictor not in (1, _HORIZONTAL, _FLOATING):
        raise InputError(f"{name} uses a predictor that is not read ({page.predictor}); save it without.")
    if page.predictor == _HORIZONTAL and page.raw.fields is not None and page.raw.fields["real"][0].byteorder == ">":
        raise InputError(
            f"{name} holds big-endian complex integers with a predictor, which is not read; save it without."
        )
    height, width = page.segment
    if page.compression != _NONE and height * width > max_pixels:
        raise InputError(
            f"{name} is compressed in pieces of {width} x {height} = {height * width / 1e6:.4g} megapixels, more than "
            f"the {max_pixels / 1e6:.4g} that are read at once; save it as a tiled TIFF, or raise SAR_GEN_MAX_PIXELS."
        )


def _one(page: _Page) -> bool:
    return page.samples == 1 or page.separate


def _alpha(page: Any) -> int | None:
    """Return which sample is alpha."""
    extra = tuple(page.extrasamples)
    for index, kind in enumerate(extra):
        if kind in _ALPHA:
            return page.samplesperpixel - len(extra) + index
    return None


# Metadata ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GdalFacts:
    names: dict[int, str]
    scales: dict[int, tuple[float, float]]


def _gdal_facts(page: Any) -> _GdalFacts:
    """Return the names of the bands (GDAL's, else SNAP's) and scale and offset of those that have any."""
    names: dict[int, str] = {}
    polarisations: dict[int, str] = {}
    numbers: dict[int, dict[str, float]] = {}
    for item in _elements(page.tags.valueof(_GDAL_METADATA), "Item"):
        sample = item.get("sample", "")
        text = (item.text or "").strip()
        if not sample.isdecimal() or not text:
            continue
        role, key = item.get("role"), str(item.get("name", "")).upper()
        if role == "description":
            names[int(sample)] = text
        elif key in ("POLARIZATION", "POLARISATION", "POLARIMETRIC_INTERP"):
            polarisations[int(sample)] = text
        elif role in ("scale", "offset"):
            numbers.setdefault(int(sample), {})[role] = float(text)
    if not names:
        found = _elements(page.tags.valueof(_SNAP_XML), "BAND_NAME")
        names = {index: (element.text or "").strip() for index, element in enumerate(found)}
    scales = {band: (known.get("scale", 1.0), known.get("offset", 0.0)) for band, known in numbers.items()}
    return _GdalFacts({**polarisations, **names}, {band: pair for band, pair in scales.items() if pair != (1.0, 0.0)})


def _elements(xml: Any, tag: str) -> list[ElementTree.Element]:
    if not isinstance(xml, str | bytes) or b"<!" in (xml.encode() if isinstance(xml, str) else xml):
        return []  # nothing, or a document type, whose entities could grow without end
    try:
        return list(ElementTree.fromstring(xml.strip("\0 \n") if isinstance(xml, str) else xml).iter(tag))
    except ElementTree.ParseError:
        return []


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _georeference(page: Any) -> Georeference | None:
    """Return the CRS and affine transform of a GeoTIFF; ``None`` where it has none (tie points only, for example)."""
    keys = page.geotiff_tags or {}
    scale, tie = keys.get("ModelPixelScale"), keys.get("ModelTiepoint")
    if "ModelTransformation" in keys:
        (a, b, _, c), (d, e, _, f) = keys["ModelTransformation"][:2]
    elif scale and tie and not isinstance(tie[0], list):
        (a, e), (b, d) = (scale[0], -scale[1]), (0.0, 0.0)
        column, row, _, x, y, _ = tie
        c, f = x - a * column, y - e * row
    else:
        return None
    if keys.get("GTRasterTypeGeoKey") == _POINT:  # given for pixel centres
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return Georeference(_crs(keys), (float(a), float(b), float(c), float(d), float(e), float(f)))


def _crs(keys: dict[str, Any]) -> str:
    """Return the EPSG code that the GeoTIFF keys name, or all that they say of a system of the file's own."""
    for key in ("ProjectedCSTypeGeoKey", "GeographicTypeGeoKey"):
        code = keys.get(key)
        if code is not None and int(code) != _USER_DEFINED:
            return f"EPSG:{int(code)}"
        if code is not None:
            break  # a projection of its own on a known geographic system is not that system
    said = {key: value for key, value in keys.items() if key.endswith("GeoKey") and key != "GTRasterTypeGeoKey"}
    return "; ".join(f"{key[:-6]} {getattr(value, 'name', value)}" for key, value in said.items()) or "unknown"


# Pixels ------------------------------------------------------------------------------------------------------------


def _read(name: str, file: BinaryIO, page: _Page, sample: int, window: Window) -> Read:
    """Return one sample of a window, and which pixels lie in segments that were left out of the file."""
    row, column, height, width = window
    values = np.empty((height, width), page.dtype)
    missing: NDArray[np.bool_] | None = None
    (tall, wide), (down, across) = page.segment, _grid(page)
    first = sample * down * across if page.separate else 0
    tiles = itertools.product(
        range(row // tall, -(-(row + height) // tall)), range(column // wide, -(-(column + width) // wide))
    )
    for i, j in tiles:
        top, left = max(row, i * tall), max(column, j * wide)
        bottom, right = min(row + height, (i + 1) * tall), min(column + width, (j + 1) * wide)
        here = slice(top - row, bottom - row), slice(left - column, right - column)
        inside = top - i * tall, left - j * wide, bottom - top, right - left
        index = first + i * across + j
        if not page.counts[index]:
            missing = np.zeros((height, width), bool) if missing is None else missing
            missing[here], values[here] = True, 0
        else:
            rows = tall if page.tiled else min(tall, page.height - i * tall)
            values[here] = _segment(name, file, page, index, rows, inside, 0 if page.separate else sample)
    return values, missing


def _segment(
    name: str, file: BinaryIO, page: _Page, index: int, rows: int, inside: Window, sample: int
) -> NDArray[Any]:
    """Return one sample of a part of a strip or tile."""
    samples = 1 if page.separate else page.samples
    wide = page.segment[1]
    row, column, height, width = inside
    if page.compression == _NONE and page.predictor == 1 and page.bits > 1:
        part = (row, column * samples, height, width * samples)
        pixels = read_plain(file, page.offsets[index], page.raw, wide * samples, part)
        return _numbers(pixels[:, sample::samples], page)
    file.seek(page.offsets[index])
    data = read_exactly(file, page.counts[index])
    row_bytes = -(-wide * samples * page.bits // 8)
    if page.compression == _JPEG:
        block = _jpeg(data, page.jpeg_tables)
        return block[row : row + height, column : column + width]
    plain = _decompressed(data, page.compression, rows, row_bytes)
    if len(plain) < rows * row_bytes:
        raise EOFError(f"{name}: a segment is too short")
    block = np.frombuffer(plain, np.uint8, rows * row_bytes).reshape(rows, row_bytes)
    if page.bits == 1:
        return np.unpackbits(block, axis=1)[row : row + height, column : column + width]
    pixels = _unpredicted(block, page, samples)
    return _numbers(pixels[row : row + height, column : column + width, sample], page)


def _numbers(pixels: NDArray[Any], page: _Page) -> NDArray[Any]:
    if page.raw.fields is None:
        return pixels
    return pixels["real"].astype(np.float32) + 1j * pixels["imaginary"].astype(np.float32)


def _decompressed(data: bytes, compression: int, rows: int, row_bytes: int) -> bytes:
    """Return the bytes of a segment, at most as many as its size says."""
    if compression == _NONE:
        return data
    if compression in (_DEFLATE, _OLD_DEFLATE):
        return zlib.decompressobj().decompress(data, rows * row_bytes)
    from PIL import TiffImagePlugin

    tags = [
        (256, row_bytes), (257, rows), (258, 8), (259, compression), (262, 1), (273, 0), (277, 1), (278, rows),
        (279, len(data)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data
    with TiffImagePlugin.TiffImageFile(io.BytesIO(content)) as image:
        image.load()
        return image.tobytes()


def _jpeg(data: bytes, tables: bytes | None) -> NDArray[np.uint8]:
    from PIL import JpegImagePlugin

    if tables:  # they end, and the data begin, with a marker of two bytes that falls away where the two are joined
        data = tables[:-2] + data[2:]
    with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
        image.load()
        return np.asarray(image)


def _unpredicted(block: NDArray[np.uint8], page: _Page, samples: int) -> NDArray[Any]:
    """Return ``(rows, columns, samples)`` elements of a segment's bytes (TIFF 6.0 part 2; Adobe technical note 3)."""
    rows = block.shape[0]
    size = page.raw.itemsize
    if page.predictor == _FLOATING:
        # Each row: differences of bytes; then all most significant bytes, all second ones, and so on.
        summed = np.cumsum(block.reshape(rows, -1, samples), axis=1, dtype=np.uint8)
        planes = summed.reshape(rows, size, -1).transpose(0, 2, 1)
        return np.ascontiguousarray(planes).view(page.raw.newbyteorder(">")).reshape(rows, -1, samples)
    if page.predictor == _HORIZONTAL:
        order = page.raw.byteorder if page.raw.fields is None else page.raw.fields["real"][0].byteorder
        words = block.view(np.dtype(f"u{size}").newbyteorder(order)).reshape(rows, -1, samples)
        summed = np.cumsum(words.astype(f"u{size}"), axis=1, dtype=f"u{size}")
        return summed.astype(words.dtype).view(page.raw)
    return block.view(page.raw).reshape(rows, -1, samples)
