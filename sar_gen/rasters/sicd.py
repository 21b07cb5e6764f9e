"""SICD (NITF with complex SAR signal) through the package sarkit, an optional extra.

SICD's first dimension runs in range, its second across it (SICD Volume 1, NGA.STND.0024-1). The modulus of its signal
is linear amplitude; 8-bit amplitudes go through the table that the file brings for them.
"""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.rasters.raster import Raster, Read, Window

_POLARISATIONS = {f"{sent}:{received}": sent + received for sent in "VH" for received in "VH"}


def open_sicd(name: str, file: BinaryIO, max_pixels: int) -> Raster:
    """Return a SICD as a raster of complex64.

    Raises:
        InputError: the package sarkit is not installed, or the NITF is no SICD or a compressed one.
    """
    try:
        sicd = importlib.import_module("sarkit.sicd")
    except ImportError as error:
        raise InputError(f"{name} is a NITF file, which needs the package sarkit; pip install sarkit.") from error
    try:
        reader = sicd.NitfReader(file)
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(
            f"{name} is a NITF file but not a readable SICD; give a SICD, or convert it to GeoTIFF."
        ) from error
    if any(segment["subheader"]["IC"].value != "NC" for segment in reader.jbp["ImageSegments"]):
        raise InputError(f"{name} is a compressed or masked SICD, which is not read; convert it to GeoTIFF.")
    xml = reader.metadata.xmltree
    height, width = (int(_text(xml, f"ImageData/{{*}}{what}")) for what in ("NumRows", "NumCols"))
    table = _amplitude_table(xml)
    valid = _valid_area(xml)
    polarisation = _text(xml, "ImageFormation/{*}TxRcvPolarizationProc")

    def read(_: int, window: Window) -> Read:
        row, column, rows, columns = window
        values, _xml = reader.read_sub_image(row, column, row + rows, column + columns)
        return _signal(values, table), None if valid is None else _outside(valid, window)

    return Raster(
        name, "SICD", height, width, np.dtype(np.complex64), (_POLARISATIONS.get(polarisation, polarisation),), read,
        max_pixels, missing_is="outside the valid area", range_axis=0,
    )  # fmt: skip


def _text(xml: Any, path: str) -> str:
    return str(xml.findtext(f"{{*}}{path}") or "").strip()


def _signal(values: NDArray[Any], table: NDArray[np.float64] | None) -> NDArray[np.complex64]:
    """Return pixels of any of SICD's three types as complex numbers."""
    if values.dtype.names is None:
        return values.astype(np.complex64)
    if "real" in values.dtype.names:  # RE16I_IM16I
        return values["real"].astype(np.float32) + 1j * values["imag"].astype(np.float32)
    # AMP8I_PHS8I: phase in 256ths of a turn
    amplitude = values["amp"].astype(np.float64) if table is None else table[values["amp"]]
    return (amplitude * np.exp(2j * np.pi / 256 * values["phase"])).astype(np.complex64)


def _amplitude_table(xml: Any) -> NDArray[np.float64] | None:
    entries = xml.findall("{*}ImageData/{*}AmpTable/{*}Amplitude")
    if not entries:
        return None
    table = np.zeros(256)
    for entry in entries:
        table[int(entry.get("index"))] = float(entry.text)
    return table


def _valid_area(xml: Any) -> list[tuple[float, float]] | None:
    """Return the ``(column, row)`` corners of the valid area in pixels of this file."""
    vertices = xml.findall("{*}ImageData/{*}ValidData/{*}Vertex")
    if len(vertices) < 3:
        return None
    first_row, first_column = (int(_text(xml, f"ImageData/{{*}}{what}") or 0) for what in ("FirstRow", "FirstCol"))
    vertices = sorted(vertices, key=lambda vertex: int(vertex.get("index")))
    return [
        (int(vertex.findtext("{*}Col")) - first_column, int(vertex.findtext("{*}Row")) - first_row)
        for vertex in vertices
    ]


def _outside(corners: list[tuple[float, float]], window: Window) -> NDArray[np.bool_] | None:
    """Return which pixels of a window lie outside the polygon, whose edge belongs to it."""
    from PIL import Image, ImageDraw

    row, column, height, width = window
    mask = Image.new("L", (width, height), 1)
    ImageDraw.Draw(mask).polygon([(x - column, y - row) for x, y in corners], fill=0, outline=0)
    outside = np.asarray(mask).astype(bool)
    return outside if outside.any() else None
