"""NPY files: one two-dimensional array of numbers, never Python objects."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np

from sar_gen.errors import InputError
from sar_gen.rasters.raster import Raster, Read, Window, check_size, read_plain

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_npy(name: str, file: BinaryIO, max_pixels: int) -> Raster:
    """Return an NPY file as a raster, in C or Fortran order and either byte order.

    Raises:
        InputError: it is not a ``(height, width)`` array of integers, floats or complex numbers, or is cut off.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise InputError(f"{name} is an NPY file of version {version}; save a plain two-dimensional array.")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects, which are never loaded; save a plain array of numbers.")
    if len(shape) != 2 or dtype.kind not in "uifc":
        raise InputError(
            f"{name} holds an array of shape {shape} and type {dtype}; save one (height, width) array of numbers."
        )
    height, width = shape
    if not height * width:
        check_size(name, width, height, max_pixels)
    start = file.tell()
    if file.seek(0, io.SEEK_END) - start < height * width * dtype.itemsize:
        raise EOFError("the file ends early")

    def read(_: int, window: Window) -> Read:
        row, column, rows, columns = window
        if fortran:
            values = read_plain(file, start, dtype, height, (column, row, columns, rows)).T
        else:
            values = read_plain(file, start, dtype, width, window)
        return values.astype(dtype.newbyteorder("="), copy=False), None

    return Raster(name, "NPY", height, width, dtype.newbyteorder("="), ("",), read, max_pixels)
