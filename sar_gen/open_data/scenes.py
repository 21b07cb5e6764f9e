"""What a search of a catalogue of open data finds."""

from __future__ import annotations

import importlib
import math
import re
from dataclasses import dataclass
from typing import Any

from sar_gen.errors import InputError

BBox = tuple[float, float, float, float]
"""West, south, east, north, in degrees."""
POLARISATIONS = ("VV", "VH", "HH", "HV")


@dataclass(frozen=True)
class Search:
    """What is looked for.

    Attributes:
        bbox: west, south, east, north in degrees.
        first: first day, ``YYYY-MM-DD``; ``None`` is open.
        last: last day, inclusive; ``None`` is open.
        polarisation: ``VV``, ``VH``, ``HH`` or ``HV``.
        limit: most acquisitions.

    Raises:
        InputError: a date or the polarisation is not one.
    """

    bbox: BBox
    first: str | None = None
    last: str | None = None
    polarisation: str = "VV"
    limit: int = 4

    def __post_init__(self) -> None:
        check_date(self.first)
        check_date(self.last)
        check_polarisation(self.polarisation)


@dataclass(frozen=True)
class Scene:
    """One acquisition.

    Attributes:
        id: of the catalogue.
        url: http(s) address of its GeoTIFF, as the catalogue gives it (not signed).
        date: day of acquisition, ``YYYY-MM-DD``, or empty.
    """

    id: str
    url: str
    date: str


def parse_bbox(text: str) -> BBox:
    """Return ``west,south,east,north`` in degrees.

    Raises:
        InputError: these are not four numbers, or not a box on Earth; one over the date line is two boxes.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{text!r} is no bounding box; give west,south,east,north in degrees, for example 8.4,47.3,8.6,47.5."
        ) from None
    if not (math.isfinite(west + south + east + north) and -180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise InputError(f"The box {text} is not on Earth; give west,south,east,north in degrees, the smaller first.")
    return west, south, east, north


def check_date(text: str | None) -> str | None:
    """Return an ISO day as it is.

    Raises:
        InputError: it is not ``YYYY-MM-DD``.
    """
    if text is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", text):
        raise InputError(f"{text!r} is no date; give it as YYYY-MM-DD.")
    return text


def check_polarisation(text: str) -> str:
    """Return a polarisation in capitals.

    Raises:
        InputError: it is unknown.
    """
    if text.upper() not in POLARISATIONS:
        raise InputError(f"The polarisation {text!r} is unknown; choose one of {', '.join(POLARISATIONS)}.")
    return text.upper()


def check_http(url: str, what: str) -> str:
    """Return an http(s) address as it is; others could name files of this machine.

    Raises:
        InputError: it is not an http(s) address.
    """
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{what} is at {url or 'no address'}, which is not open over http; choose another catalogue.")
    return url


def extra(module: str, package: str) -> Any:
    """Import an optional package.

    Raises:
        InputError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"Open data are read with {package}, which is not installed; run 'pip install \"{package}\"'."
        ) from None
