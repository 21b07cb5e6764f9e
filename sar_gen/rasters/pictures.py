"""PNG and JPEG, which are decoded whole."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin

from sar_gen.errors import InputError
from sar_gen.rasters.raster import Raster, Read, Window, check_size

STUDIO_KEY = "sar_gen"
"""Under this key the studio's settings lie in PNG text and in the JSON of a TIFF's description."""

ORIENTATION = 274
"""Tag of EXIF and TIFF: how the picture is to be turned when it is shown."""

_GREY, _RGB = ("",), ("red", "green", "blue")
_HEADER = 8 + 8 + 13  # PNG signature, length and name of the first chunk, and that chunk


def open_png(name: str, file: BinaryIO, max_pixels: int) -> Raster:
    """Return a PNG as a raster: grey of 2 to 16 bits (2 and 4 bits become the same grey in 8), colour of 8 bits.

    Raises:
        InputError: it is larger than ``max_pixels``, 1-bit, 16-bit colour, animated or to be shown turned.
    """
    width, height, depth, colour = struct.unpack(">IIBB", file.read(_HEADER)[16:26])
    check_size(name, width, height, max_pixels, whole=True)
    if depth == 16 and colour != 0:
        raise InputError(f"{name} is a 16-bit colour PNG; save the one band that is meant as 16-bit greyscale.")
    if depth == 1:
        raise InputError(f"{name} is a 1-bit picture, black and white only; SAR amplitude needs grey levels.")
    file.seek(0)
    # The plugin itself, not Image.open, whose limit against decompression bombs is a global of its own.
    image = PngImagePlugin.PngImageFile(file)
    if getattr(image, "is_animated", False):
        raise InputError(f"{name} is an animated PNG; save the one picture that is meant.")
    image.load()
    check_upright(name, image.getexif().get(ORIENTATION))
    return _raster(name, "PNG", image, max_pixels, parsed(image.text.get(STUDIO_KEY)))


def open_jpeg(name: str, file: BinaryIO, max_pixels: int) -> Raster:
    """Return a JPEG as a raster.

    Raises:
        InputError: it is larger than ``max_pixels``, CMYK or to be shown turned.
    """
    image = JpegImagePlugin.JpegImageFile(file)
    check_size(name, image.width, image.height, max_pixels, whole=True)
    check_upright(name, image.getexif().get(ORIENTATION))
    image.load()
    return _raster(name, "JPEG", image, max_pixels, None)


def check_upright(name: str, orientation: Any) -> None:
    """Refuse pictures that say that they are to be shown turned or mirrored.

    Raises:
        InputError: the orientation is one of 2 to 8. SAR looks sideways: which way it looks must not be in doubt.
    """
    if orientation in range(2, 9):
        raise InputError(
            f"{name} asks to be shown turned or mirrored (EXIF orientation {orientation}), which leaves in doubt "
            "which way the SAR looks; save it upright."
        )


def parsed(text: Any) -> dict[str, Any] | None:
    """Return the JSON object in a text, ``None`` where there is none."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _raster(name: str, kind: str, image: Any, max_pixels: int, studio: dict[str, Any] | None) -> Raster:
    if image.mode not in ("P", "PA", "L", "LA", "I", "I;16", "RGB", "RGBA"):
        raise InputError(f"{name} has {image.mode} colours; save it as greyscale.")
    array, clear = _channels(image)
    colour = array.ndim == 3
    height, width = array.shape[:2]
    if image.mode in ("P", "PA") and not (array == array[..., :1]).all():
        raise InputError(f"{name} is a palette picture in colours; SAR amplitude is one band: save it as greyscale.")

    if clear is not None and not clear.any():
        clear = None

    def read(band: int, window: Window) -> Read:
        row, column, rows, columns = window
        part = slice(row, row + rows), slice(column, column + columns)
        return (array[..., band] if colour else array)[part], None if clear is None else clear[part]

    return Raster(
        name, kind, height, width, array.dtype, _RGB if colour else _GREY, read, max_pixels,
        whole=True, colour=colour, missing_is="transparent", studio=studio,
    )  # fmt: skip


def _channels(image: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return ``(height, width)`` or ``(height, width, 3)`` values, and where pixels are at all transparent."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    array = np.asarray(image)
    if array.dtype == np.int32:  # PIL's mode "I", in which some versions give 16-bit greyscale
        array = array.astype(np.uint16)
    if image.mode in ("LA", "RGBA"):
        values = array[..., 0] if image.mode == "LA" else array[..., :3]
        return values, array[..., -1] < 255
    key = image.info.get("transparency")  # one grey or colour that stands for transparent
    if key is None or isinstance(key, bytes):
        return array, None
    clear = array == np.asarray(key)
    return array, clear if array.ndim == 2 else clear.all(axis=2)
