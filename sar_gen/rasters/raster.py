"""What every format gives: a raster with bands that can be read by windows, and where it lies on the ground."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError

Window = tuple[int, int, int, int]
"""First row, first column, height and width, in pixels."""

Read = tuple[NDArray[Any], "NDArray[np.bool_] | None"]
"""Values of a window, and where they are missing (``None``: nowhere)."""

LEVELS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
"""Full scale of the integer types that can hold quantised amplitude."""

_POLARISATION = re.compile(r"(?<![A-Za-z])(VV|VH|HV|HH)(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Georeference:
    """Where the pixels lie.

    Attributes:
        crs: the coordinate reference system: ``EPSG:32633``, or the words that the file has for it.
        transform: ``(a, b, c, d, e, f)`` of ``x = a * column + b * row + c`` and ``y = d * column + e * row + f``, in
            the unit of ``crs``; column and row 0 are the outer corner of the first pixel (not its centre).
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def at(self, row: int, column: int) -> Georeference:
        """Return the georeference of a window whose first pixel is ``(row, column)``."""
        a, b, c, d, e, f = self.transform
        return Georeference(self.crs, (a, b, a * column + b * row + c, d, e, d * column + e * row + f))

    def to_json(self) -> dict[str, Any]:
        """Return the georeference as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Raster:
    """An open file of one or several bands.

    Attributes:
        name: of the file.
        format: ``PNG``, ``JPEG``, ``TIFF``, ``NPY`` or ``SICD``.
        height: in pixels.
        width: in pixels.
        dtype: of the values, in this machine's byte order.
        bands: what the file calls each band; empty where it does not name it.
        read_band: reads ``(band from 0, window)``; called by ``read``.
        max_pixels: larger windows are refused.
        whole: the format can only be decoded whole, which the pixel limit has allowed.
        colour: the first three bands are red, green and blue.
        nodata: the value that stands for no data.
        missing_is: what makes the pixels missing that ``read_band`` reports, in words.
        studio: the settings that the studio wrote.
        georeference: where it lies, where the file says so by one affine transform.
        range_axis: 0 where the rows, 1 where the columns run in range; ``None`` where the file does not say.
    """

    name: str
    format: str
    height: int
    width: int
    dtype: np.dtype[Any]
    bands: tuple[str, ...]
    read_band: Callable[[int, Window], Read] = field(repr=False)
    max_pixels: int
    whole: bool = False
    colour: bool = False
    nodata: float | None = None
    missing_is: str = "masked"
    studio: dict[str, Any] | None = None
    georeference: Georeference | None = None
    range_axis: int | None = None

    @property
    def levels(self) -> int | None:
        """Full scale of 8 and 16-bit values, ``None`` for others."""
        return LEVELS.get(self.dtype)

    @property
    def is_complex(self) -> bool:
        """Whether the file holds signal with phase, whose modulus is linear amplitude."""
        return self.dtype.kind == "c"

    def window(self, window: Window | None, limited: bool = True) -> Window:
        """Return the window, or that of the whole raster, checked.

        Args:
            window: what is asked for.
            limited: it is to be read at once.

        Raises:
            InputError: it does not lie in the raster, or has more than ``max_pixels``.
        """
        limit = self.max_pixels if limited else self.height * self.width
        if window is None:
            check_size(self.name, self.width, self.height, limit, self.whole)
            return 0, 0, self.height, self.width
        if len(window) != 4:
            raise InputError(f"The window {window} is not a window; give row, column, height and width.")
        row, column, height, width = (int(number) for number in window)
        if min(row, column) < 0 or min(height, width) < 1 or row + height > self.height or column + width > self.width:
            raise InputError(
                f"The window (row {row}, column {column}, height {height}, width {width}) is not inside {self.name}, "
                f"of {self.height} rows and {self.width} columns; give row, column, height and width inside it."
            )
        check_size(f"The window of {self.name}", width, height, limit)
        return row, column, height, width

    def band(self, band: int | str | None) -> int | None:
        """Return which band is meant, counted from 0; ``None`` where a colour picture's equal channels are to be one.

        Args:
            band: number from 1, the name that the file has for it, or a polarisation in that name.

        Raises:
            InputError: there is no such band, or several and none was asked for.
        """
        if band is None:
            if len(self.bands) == 1:
                return 0
            if self.colour and len(self.bands) == 3:
                return None
            raise InputError(f"{self.name} has {self._list()}; say which is meant (--band).")
        asked = str(band).strip()
        found = [index for index, name in enumerate(self.bands) if name.casefold() == asked.casefold()]
        if not found and asked.isdecimal() and 1 <= int(asked) <= len(self.bands):
            return int(asked) - 1
        if not found:
            word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(asked)}(?![A-Za-z0-9])", re.IGNORECASE)
            found = [index for index, name in enumerate(self.bands) if asked and word.search(name.replace("_", " "))]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(index + 1) for index in found)
            raise InputError(f"{self.name} has several bands {asked!r} ({numbers}); give the number (--band).")
        raise InputError(f"{self.name} has no band {asked!r}; it has {self._list()}.")

    def polarisation(self, band: int | None) -> str | None:
        """Return the polarisation in the name of a band, where the name holds exactly one."""
        name = "" if band is None else self.bands[band].replace("_", " ")
        found = {match.upper() for match in _POLARISATION.findall(name)}
        return found.pop() if len(found) == 1 else None

    def read(self, window: Window, band: int | None) -> Read:
        """Return the values of a window, and where they are missing.

        Args:
            window: as ``window`` returned it.
            band: as ``band`` returned it.

        Raises:
            InputError: the file is damaged, or its channels differ and no band was asked for.
        """
        with damaged(self.name):
            if band is not None:
                return self._masked(*self.read_band(band, window))
            values, missing = self.read_band(0, window)
            for other in (1, 2):
                if not np.array_equal(values, self.read_band(other, window)[0]):
                    raise InputError(
                        f"{self.name} has 3 unlike channels (red, green, blue); SAR amplitude is one: say which is "
                        "meant (--band), or save it as greyscale."
                    )
            return self._masked(values, missing)

    def _masked(self, values: NDArray[Any], missing: NDArray[np.bool_] | None) -> Read:
        if self.nodata is not None and not np.isnan(self.nodata):
            empty = values == self.nodata
            missing = empty if missing is None else missing | empty
        return values, missing

    def _list(self) -> str:
        if len(self.bands) == 1:
            return f"1 band{f' ({self.bands[0]})' if self.bands[0] else ''}"
        if not any(self.bands):
            return f"{len(self.bands)} bands, none of them named"
        return f"{len(self.bands)} bands ({', '.join(f'{i}: {name}' for i, name in enumerate(self.bands, 1))})"


def check_size(name: str, width: int, height: int, max_pixels: int, whole: bool = False) -> None:
    """Refuse rasters and windows of more than ``max_pixels``, and of none.

    Raises:
        InputError: the size cannot be read; for formats that are decoded ``whole`` no window can help.
    """
    if width * height > max_pixels:
        way = (
            "crop it, or save it as a TIFF, which is read by windows"
            if whole
            else "read a window of it (--window) or its tiles (--tile)"
        )
        raise InputError(
            f"{name} is {width} x {height} = {width * height / 1e6:.4g} megapixels, more than the "
            f"{max_pixels / 1e6:.4g} that are read at once; {way}, or raise SAR_GEN_MAX_PIXELS."
        )
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels; choose another file.")


def read_exactly(file: BinaryIO, count: int) -> bytes:
    """Return the next ``count`` bytes.

    Raises:
        EOFError: the file ends before.
    """
    data = file.read(count)
    if len(data) < count:
        raise EOFError("the file ends early")
    return data


def read_plain(file: BinaryIO, start: int, dtype: np.dtype[Any], width: int, window: Window) -> NDArray[Any]:
    """Return a window of an array that lies uncompressed, row by row, in a file; only its bytes are read.

    Args:
        file: seekable.
        start: byte at which the array begins.
        dtype: of its elements, with byte order.
        width: elements in a row.
        window: in elements.

    Raises:
        EOFError: the file ends before.
    """
    row, column, height, columns = window
    size = dtype.itemsize
    if columns == width:
        file.seek(start + row * width * size)
        return np.frombuffer(read_exactly(file, height * width * size), dtype).reshape(height, width)
    values = np.empty((height, columns), dtype)
    for index in range(height):
        file.seek(start + ((row + index) * width + column) * size)
        values[index] = np.frombuffer(read_exactly(file, columns * size), dtype)
    return values


@contextmanager
def damaged(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one sentence."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # on a damaged file a decoder may raise anything
        raise InputError(f"{name} is damaged or cut off and cannot be read; copy or export it again.") from error
