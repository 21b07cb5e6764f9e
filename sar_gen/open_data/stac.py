"""Sentinel-1 RTC through a STAC API (item search, version 1.0).

Only what is needed of the API is spoken: one search with ``collections``, ``bbox`` and ``datetime``, its next pages,
and the collection's licence. https://github.com/radiantearth/stac-api-spec
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from sar_gen.errors import InputError, SarGenError
from sar_gen.open_data.pull import PullRequest, planned_scenes, pull
from sar_gen.open_data.scenes import Scene, Search, check_http, extra
from sar_gen.patches import FileEncoding, PixelMeaning
from sar_gen.reference_build import Progress
from sar_gen.references import ReferenceInfo
from sar_gen.settings import Settings

DEFAULT_URL = "https://planetarycomputer.microsoft.com/api/stac/v1"
DEFAULT_COLLECTION = "sentinel-1-rtc"
KNOWN: dict[str, FileEncoding] = {"sentinel-1-rtc": "intensity"}
"""What collections hold: Planetary Computer's RTC is gamma0 as linear power."""
PC_HOST = "planetarycomputer.microsoft.com"
PC_TOKEN = "https://planetarycomputer.microsoft.com/api/sas/v1/token/{collection}"
"""Address of a read token for a collection's files, free of charge; a key may be sent along."""
PC_KEY = "PC_SDK_SUBSCRIPTION_KEY"
TIMEOUT = 60
MAX_ANSWER = 64 << 20
MAX_PAGES = 50


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        scenes: newest first, as far as the catalogue sorts them so.
        encoding: what the pixels are, where the catalogue or ``KNOWN`` says it.
        licence: of the collection.
        providers: who made it.
        sensor: in words.
        spacing: distance of pixels in metres.
    """

    scenes: tuple[Scene, ...]
    encoding: FileEncoding | None
    licence: str
    providers: str
    sensor: str
    spacing: float


def pull_s1_rtc(
    wanted: Search,
    name: str,
    settings: Settings,
    *,
    size: int = 256,
    url: str = DEFAULT_URL,
    collection: str = DEFAULT_COLLECTION,
    encoding: FileEncoding | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ReferenceInfo:
    """Fetch the patches of a box from a STAC catalogue and add them as a set, in ``settings.home``.

    Args:
        wanted: box, days, polarisation and number of acquisitions.
        name: of the set.
        settings: where the set is kept.
        size: side of a patch in pixels.
        url: of the STAC API.
        collection: id.
        encoding: what the pixels are, where neither the catalogue nor ``KNOWN`` says it.
        progress: called with patches done and in all; counts anew in each of three phases.
        cancel: when set, the call stops soon; the same call goes on from there.

    Raises:
        InputError: ``rasterio`` is missing, nothing is found, or it is not known what the pixels are.
        SarGenError: the catalogue or a scene cannot be read.
        BuildStoppedError: ``cancel`` was set.
    """
    extra("rasterio", "rasterio")
    found = search(url, collection, wanted)
    known = encoding or found.encoding
    if known not in ("amplitude", "intensity", "db"):
        raise InputError(
            f"The catalogue does not say what the pixels of {collection} are; say it: --encoding amplitude, intensity "
            "or db."
        )
    request = PullRequest(
        name,
        PixelMeaning(known, "pool", polarisation=wanted.polarisation.upper()),
        wanted.bbox,
        size,
        found.spacing,
        licence=found.licence,
        sensor=found.sensor,
        note=f"{collection} of {url}, read as {known}; for comparison with sets of the same processing.",
        query=f"{url} {collection} {wanted}",
    )
    scenes = planned_scenes(request, settings) or found.scenes
    years = sorted({scene.date[:4] for scene in scenes if scene.date})
    credit = f"Contains modified Copernicus Sentinel data {', '.join(years)}; {found.providers}."
    tokens: dict[str, str] = {}
    return pull(
        dataclasses.replace(request, credit=credit),
        scenes,
        settings,
        sign=lambda address: signed(address, tokens, collection, url),
        progress=progress,
        cancel=cancel,
    )


def search(url: str, collection: str, wanted: Search) -> Found:
    """Return the scenes of a collection that touch a box.

    Args:
        url: of the STAC API (its landing page).
        collection: id.
        wanted: box, days, polarisation (the name of the asset, in any case) and number of scenes.

    Raises:
        InputError: the address is no STAC API, has no such collection, or the search finds nothing.
        SarGenError: the catalogue cannot be reached.
    """
    url = check_http(url, "The catalogue").rstrip("/")
    about = _json(f"{url}/collections/{urllib.parse.quote(collection, safe='')}")
    query = {
        "collections": collection,
        "bbox": ",".join(f"{side:.10g}" for side in wanted.bbox),
        "limit": str(min(wanted.limit, 100)),
    }
    if wanted.first or wanted.last:
        start = f"{wanted.first}T00:00:00Z" if wanted.first else ".."
        query["datetime"] = f"{start}/{f'{wanted.last}T23:59:59Z' if wanted.last else '..'}"
    page: str | None = f"{url}/search?{urllib.parse.urlencode(query)}"
    body: dict[str, Any] | None = None
    scenes: list[Scene] = []
    asset: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    items = 0
    for _ in range(MAX_PAGES):
        if page is None or len(scenes) >= wanted.limit:
            break
        answer = _json(page, body)
        for item in _list(answer, "features"):
            items += 1
            found = _asset(item, wanted.polarisation)
            if found is not None and len(scenes) < wanted.limit:
                asset, properties = asset or found, properties or item.get("properties", {})
                date = str((item.get("properties") or {}).get("datetime") or "")[:10]
                href = urllib.parse.urljoin(page, str(found.get("href", "")))
                scenes.append(Scene(str(item.get("id")), check_http(href, f"{item.get('id')}"), date))
        page, body = _next(answer, page, body)
    if not scenes:
        if items:
            raise InputError(
                f"None of the {items} scenes found is {wanted.polarisation}; choose another polarisation."
            )
        raise InputError(f"{collection} has no scene in that box and time; widen the box or the dates.")
    providers = [str(provider.get("name")) for provider in _list(about, "providers")]
    return Found(
        tuple(scenes),
        _encoding(collection, asset),
        str(about.get("license") or "not stated by the catalogue"),
        ", ".join(providers) or urllib.parse.urlsplit(url).netloc,
        _sensor(properties),
        _spacing(asset, properties),
    )


def signed(url: str, tokens: dict[str, str], collection: str, catalogue: str) -> str:
    """Return the address with the read token that Planetary Computer asks for; any other address as it is.

    Args:
        url: of a file.
        tokens: by collection; a token that was fetched is kept here.
        collection: id.
        catalogue: address of the catalogue that gave ``url``.

    Raises:
        SarGenError: no token could be had.
    """
    if urllib.parse.urlsplit(catalogue).netloc != PC_HOST or not url.startswith("https://"):
        return url
    if ".blob.core.windows.net/" not in url or "?" in url:
        return url
    if collection not in tokens:
        key = os.environ.get(PC_KEY)
        answer = _json(
            PC_TOKEN.format(collection=collection), headers={"Ocp-Apim-Subscription-Key": key} if key else {}
        )
        tokens[collection] = str(answer.get("token", ""))
    return f"{url}?{tokens[collection]}"


def _asset(item: dict[str, Any], polarisation: str) -> dict[str, Any] | None:
    assets = item.get("assets")
    for name, asset in assets.items() if isinstance(assets, dict) else ():
        if str(name).upper() == polarisation.upper() and isinstance(asset, dict):
            return asset
    return None


def _encoding(collection: str, asset: dict[str, Any]) -> FileEncoding | None:
    """Return what the pixels are: the unit of the asset's band where it is said, else what is known."""
    units = [str(band.get("unit", "")).lower() for band in (*_list(asset, "raster:bands"), *_list(asset, "bands"))]
    if any(unit in ("db", "decibel", "decibels") for unit in units):
        return "db"
    return KNOWN.get(collection)


def _sensor(properties: dict[str, Any]) -> str:
    band = properties.get("sar:frequency_band")
    parts = [properties.get("constellation") or properties.get("platform"), properties.get("sar:instrument_mode")]
    parts += [f"{band} band" if band else None, properties.get("sar:product_type")]
    return ", ".join(str(part) for part in parts if part) or "unknown sensor"


def _spacing(asset: dict[str, Any], properties: dict[str, Any]) -> float:
    bands = [*_list(asset, "raster:bands"), *_list(asset, "bands")]
    values = [band.get("spatial_resolution") for band in bands]
    values += [asset.get("gsd"), properties.get("gsd"), properties.get("sar:pixel_spacing_range")]
    return next((float(value) for value in values if isinstance(value, int | float) and value > 0), 10.0)


def _next(answer: dict[str, Any], page: str, body: dict[str, Any] | None) -> tuple[str | None, dict[str, Any] | None]:
    for link in _list(answer, "links"):
        if link.get("rel") == "next" and link.get("href"):
            href = check_http(urllib.parse.urljoin(page, str(link["href"])), "The catalogue's next page")
            if str(link.get("method", "GET")).upper() != "POST":
                return href, None
            more = link.get("body") or {}
            return href, {**(body or {}), **more} if link.get("merge") else more
    return None, None


def _list(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values = data.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _json(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
    host = urllib.parse.urlsplit(url).netloc
    data = None if body is None else json.dumps(body).encode()
    known = {"Accept": "application/json, application/geo+json", "User-Agent": "sar-studio", **(headers or {})}
    if data is not None:
        known["Content-Type"] = "application/json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, known), timeout=TIMEOUT) as answer:
            text = answer.read(MAX_ANSWER + 1)
        if len(text) > MAX_ANSWER:
            raise SarGenError(f"{host} answered with more than can be read; ask for fewer scenes (--limit).")
        found = json.loads(text)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise SarGenError(f"{host} asks for a key; set {PC_KEY}, or choose another catalogue (--stac).") from error
        if error.code == 404:
            raise InputError(f"{host} has nothing at {url}; check the catalogue and the collection.") from error
        raise SarGenError(f"{host} answered with an error ({error.code}); try again later.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise SarGenError(f"{host} cannot be reached ({reason}); check the network and the address.") from error
    except ValueError as error:
        raise InputError(f"{url} is no STAC API (its answer is not JSON); check the address.") from error
    if not isinstance(found, dict):
        raise InputError(f"{url} is no STAC API; check the address.")
    return found
