"""TIFF and GeoTIFF, read by the strips or tiles that a window touches.

The package tifffile parses the file's structure and, with its companion imagecodecs, decodes the segments; only the
part of an uncompressed segment that lies in a window is read here, by its place in the file.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.rasters.pictures import ORIENTATION, STUDIO_KEY, check_upright, parsed
from sar_gen.rasters.raster import Georeference, Raster, Read, Window, check_size, read_exactly, read_plain

_GDAL_METADATA, _GDAL_NODATA, _SNAP_XML = 42112, 42113, 65000
_NONE, _JPEG = 1, 7
# Besides these two: LZW, DEFLATE and its old number, PackBits, LZMA and Zstandard. LERC is left out: where it masks
# pixels without data, imagecodecs 2026.3 returns 0 for them, and moves the values of the bands beside them.
_LOSSLESS = (5, 8, 32946, 32773, 34925, 50000)
_COMPLEX_INTEGER, _SAMPLE_FORMATS = 5, (1, 2, 3, 5, 6)  # unsigned, signed, float, complex integer, complex
_HORIZONTAL, _FLOATING = 2, 3  # predictors
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RED_GREEN_BLUE = 0, 1, 2  # photometric interpretations
_ALPHA = (1, 2)
_POINT, _USER_DEFINED = 2, 32767  # GeoTIFF: pixels are points; not in the EPSG list


@dataclass(frozen=True)
class _Image:
    """One image of a TIFF, as its tags describe it."""

    height: int
    width: int
    samples: int
    separate: bool  # each sample has segments of its own
    dtype: np.dtype[Any]  # of the values that a reader gets
    stored: np.dtype[Any] | None  # of the numbers, as they lie in segments that are read in part; two a complex value
    segment: tuple[int, int]  # height and width of a strip or tile
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode: Callable[[bytes, int], NDArray[Any]]  # bytes and index of a segment to (rows, columns, samples)

    @property
    def grid(self) -> tuple[int, int]:
        """Segments down and across."""
        return -(-self.height // self.segment[0]), -(-self.width // self.segment[1])


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
        if len({(page.imagewidth, page.imagelength, page.bitspersample, page.sampleformat) for page in images}) > 1:
            raise InputError(
                f"{name} holds {len(images)} images of different size or type; save the one that is meant as a file "
                "of its own."
            )
        size = first.imagelength, first.imagewidth
        pages = [_image(name, page, max_pixels) for page in images]
        masks = [
            _image(name, page, max_pixels)
            for page in all_pages
            if page.is_mask and (page.imagelength, page.imagewidth) == size
        ]
        alpha = _alpha(first)
        facts = _gdal_facts(first)
        studio = (parsed(first.description) or {}).get(STUDIO_KEY)
        georeference = _georeference(first)
        nodata = _number(first.tags.valueof(_GDAL_NODATA))
    bands = [(page, sample) for page in pages for sample in range(page.samples) if sample != alpha]
    names = [facts.names.get(index, "") for index in range(len(bands))]
    colour = first.photometric == _RED_GREEN_BLUE and len(bands) == 3 and not any(names)
    if colour:
        names = ["red", "green", "blue"]
    scales = {index: facts.scales[index] for index in range(len(bands)) if index in facts.scales}

    def read(band: int, window: Window) -> Read:
        page, sample = bands[band]
        values, missing = _read(file, page, sample, window)
        hidden = [_read(file, mask, 0, window)[0] == 0 for mask in masks]
        if alpha is not None:
            opacity = _read(file, page, alpha, window)[0]
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
        name, "TIFF", *size, np.dtype(np.float32) if scales else pages[0].dtype,
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


def _image(name: str, page: Any, max_pixels: int) -> _Image:
    bits, kind, compression, predictor = page.bitspersample, page.sampleformat, page.compression, page.predictor
    for tag, what in (("BitsPerSample", "size"), ("SampleFormat", "type")):
        value = page.tags.valueof(tag)
        if isinstance(value, tuple) and len(set(value)) > 1:
            raise InputError(f"{name} has bands of different number {what}s; save the band that is meant by itself.")
    if page.dtype is None or kind not in _SAMPLE_FORMATS or bits not in (1, 8, 16, 32, 64, 128):
        raise InputError(f"{name} has samples of {bits} bits (sample format {kind}), which are not read; save floats.")
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    one = separate or page.samplesperpixel == 1
    if compression not in (_NONE, *_LOSSLESS) and not (compression == _JPEG and bits == 8 and one):
        raise InputError(
            f"{name} is compressed in a way that is not read (TIFF compression {int(compression)}); save it without "
            "compression, or with DEFLATE, LZW or ZSTD."
        )
    if predictor not in (1, _HORIZONTAL, _FLOATING) or (predictor != 1 and page.dtype.kind == "c"):
        of = " for complex values" if page.dtype.kind == "c" else ""
        raise InputError(f"{name} uses a predictor that is not read{of} ({int(predictor)}); save it without.")
    rows = page.rowsperstrip if 0 < page.rowsperstrip < page.imagelength else page.imagelength
    height, width = segment = (page.tilelength, page.tilewidth) if page.is_tiled else (rows, page.imagewidth)
    if compression != _NONE and height * width > max_pixels:
        raise InputError(
            f"{name} is compressed in pieces of {width} x {height} = {height * width / 1e6:.4g} megapixels, more than "
            f"the {max_pixels / 1e6:.4g} that are read at once; save it as a tiled TIFF, or raise SAR_GEN_MAX_PIXELS."
        )
    stored = None
    if compression == _NONE and predictor == 1 and bits > 1 and page.fillorder == 1:
        pair = page.dtype.kind == "c"
        letter = "i" if kind == _COMPLEX_INTEGER else "f" if pair else page.dtype.kind
        stored = np.dtype(f"{page.parent.byteorder}{letter}{bits // (16 if pair else 8)}")
    image = _Image(
        page.imagelength, page.imagewidth, page.samplesperpixel, separate, page.dtype, stored, segment,
        tuple(page.dataoffsets), tuple(page.databytecounts), _decoder(page),
    )  # fmt: skip
    if not min(segment) > 0 or len(image.offsets) < image.grid[0] * image.grid[1] * (image.samples if separate else 1):
        raise EOFError("segments are missing")
    return image


def _decoder(page: Any) -> Callable[[bytes, int], NDArray[Any]]:
    decode, tables, tiled = page.decode, page.jpegtables, page.is_tiled

    def decoded(data: bytes, index: int) -> NDArray[Any]:
        try:
            return decode(data, index, jpegtables=tables)[0][0]
        except Exception:
            if tiled:
                raise
            # Some writers fill the last strip up with rows below the picture: it is as large as the first.
            return decode(data, 0, jpegtables=tables)[0][0]

    return decoded


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


def _read(file: BinaryIO, image: _Image, sample: int, window: Window) -> Read:
    """Return one sample of a window, and which pixels lie in segments that were left out of the file."""
    row, column, height, width = window
    values = np.empty((height, width), image.dtype)
    missing: NDArray[np.bool_] | None = None
    (tall, wide), (down, across) = image.segment, image.grid
    first, samples, sample = (sample * down * across, 1, 0) if image.separate else (0, image.samples, sample)
    tiles = itertools.product(
        range(row // tall, -(-(row + height) // tall)), range(column // wide, -(-(column + width) // wide))
    )
    for i, j in tiles:
        top, left = max(row, i * tall), max(column, j * wide)
        bottom, right = min(row + height, (i + 1) * tall), min(column + width, (j + 1) * wide)
        here = slice(top - row, bottom - row), slice(left - column, right - column)
        index = first + i * across + j
        if not image.counts[index]:
            missing = np.zeros((height, width), bool) if missing is None else missing
            missing[here], values[here] = True, 0
        elif image.stored is not None:
            numbers = samples * (2 if image.dtype.kind == "c" else 1)  # of a pixel
            part = top - i * tall, (left - j * wide) * numbers, bottom - top, (right - left) * numbers
            pixels = read_plain(file, image.offsets[index], image.stored, wide * numbers, part)
            values[here] = pixels.astype(values.real.dtype).view(image.dtype)[:, sample::samples]
        else:
            file.seek(image.offsets[index])
            block = image.decode(read_exactly(file, image.counts[index]), index)
            values[here] = block[top - i * tall : bottom - i * tall, left - j * wide : right - j * wide, sample]
    return values, missing
