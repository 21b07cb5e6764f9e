"""Umbra open data: spotlight SAR in X band, under a metre, CC BY 4.0.

Umbra has no search service; ``umbra-py`` keeps an index of its bucket (a weekly snapshot, fetched once, about 90 MB).
Its ``to_xarray`` averages over fractions of pixels and masks zeros, which changes speckle, so the pixels are read
here, on their own grid, from the address that it resolves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from sar_gen.errors import InputError, SarGenError
from sar_gen.open_data.pull import PullRequest, planned_scenes, pull
from sar_gen.open_data.scenes import Scene, Search, check_http, extra
from sar_gen.patches import PixelMeaning
from sar_gen.reference_build import Progress
from sar_gen.references import ReferenceInfo
from sar_gen.settings import Settings

PACKAGE = "umbra-py[load]"
PRODUCT = "GEC"
SPACING = 0.5
"""Metres from pixel to pixel, about; only sizes the cells that group patches."""
SENSOR = "Umbra spotlight, X band, geocoded (GEC)"
LICENCE = "CC BY 4.0"
CREDIT = "Contains Umbra open data, licensed under CC BY 4.0."
NOTE = (
    "Umbra GEC pixels are detected amplitude in grey levels scaled for each product and not calibrated, so each "
    "acquisition has a scale of its own and brightness does not compare between sets."
)


def pull_umbra(
    wanted: Search,
    name: str,
    settings: Settings,
    *,
    size: int = 256,
    index: Path | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ReferenceInfo:
    """Fetch the patches of a box from Umbra's open data and add them as a set, in ``settings.home``.

    Args:
        wanted: box, days, polarisation and number of acquisitions.
        name: of the set.
        settings: where the set is kept.
        size: side of a patch in pixels.
        index: an index file of ``umbra-py``; by default its own.
        say: told what takes long.
        progress: called with patches done and in all; counts anew in each of three phases.
        cancel: when set, the call stops soon; the same call goes on from there.

    Raises:
        InputError: the extra is missing or nothing is found.
        SarGenError: the index or a scene cannot be read.
        BuildStoppedError: ``cancel`` was set.
    """
    extra("umbra_py", PACKAGE)
    extra("rasterio", PACKAGE)
    request = PullRequest(
        name,
        PixelMeaning("amplitude", "pool", polarisation=wanted.polarisation.upper()),
        wanted.bbox,
        size,
        SPACING,
        own_scales=True,
        credit=CREDIT,
        licence=LICENCE,
        sensor=SENSOR,
        note=NOTE,
        query=f"umbra {wanted}",
    )
    scenes = planned_scenes(request, settings)
    if scenes is None:
        scenes = search(wanted, index=index, say=say)
    return pull(request, scenes, settings, progress=progress, cancel=cancel)


def search(
    wanted: Search, *, index: Path | None = None, say: Callable[[str], None] | None = None
) -> tuple[Scene, ...]:
    """Return the acquisitions with a geocoded image that touch a box, newest first.

    Args:
        wanted: box, days, polarisation and number of acquisitions.
        index: an index file of ``umbra-py``; by default its own (``UMBRA_INDEX_DB``), fetched when it is not there.
        say: told what takes long.

    Raises:
        InputError: ``umbra-py`` is not installed, the index is missing, or the search finds nothing.
        SarGenError: the index cannot be fetched or read.
    """
    umbra = extra("umbra_py", PACKAGE)
    where = extra("umbra_py.index", PACKAGE)
    if index is not None and not index.is_file():
        raise InputError(f"There is no index {index}; leave it out to fetch Umbra's, or check the path.")
    path = index or where.default_index_path()
    try:
        if not path.is_file():
            if say is not None:
                say("Fetching the index of Umbra open data (once, about 90 MB).")
            where.refresh_from_release(path)
        with umbra.CatalogIndex(path) as opened:
            items = list(
                opened.search(
                    bbox=wanted.bbox, start=wanted.first, end=wanted.last, product_types=[PRODUCT],
                    polarizations=[wanted.polarisation], canonical=True,
                )
            )  # fmt: skip
        items.sort(key=lambda item: (str(item.datetime), item.id), reverse=True)
        scenes = [
            Scene(item.id, check_http(item.asset_href(PRODUCT), item.id), str(item.datetime or "")[:10])
            for item in items[: wanted.limit]
        ]
    except InputError:
        raise
    except Exception as error:  # umbra-py raises its own errors, requests' and SQLite's
        raise SarGenError(f"The index of Umbra open data cannot be used ({error}); try again later.") from error
    if not scenes:
        raise InputError(
            f"Umbra has no open {wanted.polarisation} image in that box and time; widen the box or the dates."
        )
    return tuple(scenes)
