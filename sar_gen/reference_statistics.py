"""Builds what ships instead of real patches: their statistics, and the laws that sketches are filled with.

    python -m sar_gen.reference_statistics DATA_FOLDER [--assets FOLDER]

``DATA_FOLDER`` holds ``s1_pairs.csv`` (SEN1-2 patches with a terrain class) and ``s1_scenes.csv`` (VH scenes) with the
images that they name. Written are ``references/index.json`` with one ``.npz`` a set, and
``guides/class_statistics.json``. The same data give the same numbers.

How each source becomes the studio's linear amplitude was measured on the data, not documented by the sources:

- ``s1_pairs``: 8-bit decibels, sigma0 of -25 to 0 dB over 0 to 255; the scale is ``S1_VV``.
- ``s1_scenes``: 8-bit linear amplitude without calibration; the scale is ``S1_VH``.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import S1_VH, S1_VV, Scale, db_to_linear, normalise
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import sha256_of, write_atomic
from sar_gen.guides import OPTICAL_SCALE, optical_order
from sar_gen.palettes import CLASSES, load_palette
from sar_gen.quality.statistics import patch_statistics
from sar_gen.quality.texture import GLCM_NAMES
from sar_gen.references import INDEX, pack_statistics
from sar_gen.settings import ROOT

DB_FLOOR, DB_SPAN = -25.0, 25.0
CROP = 256
WINDOW = 64
"""Side of the windows that class laws are taken over: 640 m of ground, about the size of what one paints."""
LAGS = 25
TERRAINS = {
    "forest": "Forest",
    "gorge": "Mountain gorges",
    "agriculture": "Agriculture",
    "river": "River valleys",
    "residential": "Residential areas",
}
TERRAIN_OF_CLASS = {"fields": "agriculture", "forest": "forest", "urban": "residential", "bare": "gorge"}
QUIET = 0.02
"""Share of the windows, those of least variance, that the sensor's looks and speckle correlation are taken from."""
WATER_DB = -18.5
WATER_SPREAD_DB = 2.65
WATER_PIXELS = 5000
ROAD_BELOW_FIELDS_DB = 4.0

SENTINEL = "contains modified Copernicus Sentinel data"
VV_CREDIT = f"SEN1-2 (Schmitt, Hughes, Zhu 2018), CC BY 4.0; {SENTINEL} 2016-2017."
VH_CREDIT = f"VolkovVl/Optical-SAR-dataset; {SENTINEL} 2020."


@dataclass(frozen=True)
class Pair:
    """One row of ``s1_pairs.csv``; ``sar`` and ``optical`` are paths."""

    split: str
    terrain: str
    group: str
    sar: Path
    optical: Path


@dataclass(frozen=True)
class Windows:
    """Log-intensity statistics of ``WINDOW`` x ``WINDOW`` windows, one row each.

    Attributes:
        mean: ``(n,)`` mean of ln(intensity).
        covariance: ``(n, LAGS)`` autocovariance of ln(intensity) at 0, 1, ... pixels, mean of the two directions.
        clipped: ``(n,)`` share of the pixels at the ends of the source's 8-bit scale.
        built_up: ``(n,)`` bool, whether the optical window is bright and finely patterned.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    clipped: NDArray[np.float64]
    built_up: NDArray[np.bool_]


def read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file.

    Raises:
        InputError: it is missing or lacks one of ``columns``.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; give the folder that holds it.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InputError(f"{path} has no rows with the column {missing[0]!r}; see the data's README for its layout.")
    return rows


def read_pairs(folder: Path) -> list[Pair]:
    """Return the rows of ``s1_pairs.csv`` in ``folder``, sorted by file name."""
    rows = read_rows(folder / "s1_pairs.csv", ("split", "terrain", "overlap_group", "sar", "optical"))
    pairs = [
        Pair(row["split"], row["terrain"], row["overlap_group"], folder / row["sar"], folder / row["optical"])
        for row in rows
    ]
    return sorted(pairs, key=lambda pair: pair.sar.name)


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Return an 8-bit picture as ``(height, width)`` grey.

    Raises:
        InputError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); bring the whole data folder.") from error


def pair_sigma0_db(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return sigma0 in dB of a grey picture of ``s1_pairs``."""
    return grey.astype(np.float64) / 255 * DB_SPAN + DB_FLOOR


def pair_amplitude(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the studio's amplitude of a grey picture of ``s1_pairs``."""
    return normalise(db_to_linear(pair_sigma0_db(grey)), S1_VV)


def scene_crops(grey: NDArray[np.uint8], side: int = CROP) -> list[NDArray[np.float32]]:
    """Return the studio's amplitude of a scene of ``s1_scenes``, cut into squares side by side."""
    amplitude = normalise(grey, S1_VH)
    rows, columns = (size // side for size in amplitude.shape)
    return [
        amplitude[side * i : side * (i + 1), side * j : side * (j + 1)] for i in range(rows) for j in range(columns)
    ]


def build_references(folder: Path, out: Path) -> dict[str, Any]:
    """Write the statistics of every set to ``out`` and return the index that was written beside them.

    Args:
        folder: the data.
        out: where ``index.json`` and the ``.npz`` files go.

    Raises:
        InputError: the data are incomplete.
    """
    pairs = read_pairs(folder)
    sets = []
    for terrain, title in TERRAINS.items():
        chosen = [pair for pair in pairs if pair.terrain == terrain]
        if not chosen:
            raise InputError(f"s1_pairs.csv has no patch of terrain {terrain!r}; bring the whole data folder.")
        sets.append(
            _write_set(
                out,
                name=f"s1-{terrain}",
                title=f"{title} (Sentinel-1 VV)",
                amplitudes=(pair_amplitude(read_grey(pair.sar)) for pair in chosen),
                groups=[pair.group for pair in chosen],
                splits=[pair.split for pair in chosen],
                polarisation="VV",
                scale=S1_VV,
                credit=VV_CREDIT,
                licence="CC BY 4.0",
                note="8-bit decibels (-25 to 0 dB) of a JPEG source brought to linear amplitude; detail below 2 "
                "pixels is slightly altered. Patches of one overlap group share ground.",
            )
        )
    scenes = sorted(read_rows(folder / "s1_scenes.csv", ("scene", "sar")), key=lambda row: row["scene"])
    crops = [(row["scene"], crop) for row in scenes for crop in scene_crops(read_grey(folder / row["sar"]))]
    sets.append(
        _write_set(
            out,
            name="s1-vh",
            title="Los Angeles basin (Sentinel-1 VH)",
            amplitudes=(crop for _, crop in crops),
            groups=[scene for scene, _ in crops],
            splits=[""] * len(crops),
            polarisation="VH",
            scale=S1_VH,
            credit=VH_CREDIT,
            licence="open and modifiable (README of VolkovVl/Optical-SAR-dataset)",
            note="Relative amplitude without calibration: compare it with VH of the same scale only, never with VV.",
        )
    )
    index = {"glcm": list(GLCM_NAMES), "sets": sets}
    write_atomic(out / INDEX, _json_bytes(index))
    return index


def _write_set(
    out: Path,
    *,
    name: str,
    title: str,
    amplitudes: Iterable[NDArray[np.float32]],
    groups: Sequence[str],
    splits: Sequence[str],
    polarisation: str,
    scale: Scale,
    credit: str,
    licence: str,
    note: str,
) -> dict[str, Any]:
    path = out / f"{name}.npz"
    write_atomic(path, pack_statistics(patch_statistics(amplitudes, groups), splits))
    counts = {split: splits.count(split) for split in sorted(set(splits)) if split}
    return {
        "name": name,
        "title": title,
        "file": path.name,
        "sha256": sha256_of(path),
        "count": len(groups),
        "groups": len(set(groups)),
        "splits": counts,
        "encoding": "linear",
        "polarisation": polarisation,
        "sensor": "Sentinel-1 IW, C band, 10 m",
        "scale": scale.to_json(),
        "credit": credit,
        "licence": licence,
        "note": note,
    }


def build_class_statistics(folder: Path) -> dict[str, Any]:
    """Return what ``class_statistics.json`` holds: a law a class, from the ``train`` patches only.

    In the product model of ``guides``, the variance of ln(intensity) is psi1(L) + psi1(a) and its mean
    ln(m) + psi(L) - ln(L) + psi(a) - ln(a), with L looks, texture order a and mean m (log-cumulants: Nicolas 2002,
    Traitement du Signal 19(3), 139-167). They are taken over 64-pixel windows and the median window of a class is
    kept: logarithms and medians keep layover and single bright targets from deciding what a field looks like.

    Raises:
        InputError: the data are incomplete.
    """
    pairs = [pair for pair in read_pairs(folder) if pair.split == "train"]
    windows: dict[str, list[Windows]] = defaultdict(list)
    water_levels: list[float] = []
    water_pixels = 0
    local: list[NDArray[np.float64]] = []
    agreement: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        grey, optical = read_grey(pair.sar), read_grey(pair.optical)
        amplitude = pair_amplitude(grey)
        windows[pair.terrain].append(log_windows(amplitude, grey, optical))
        smooth = local_intensity(amplitude)
        local.append(smooth)
        agreement[pair.terrain].append(optical_agreement(optical, smooth))
        if pair.terrain == "river":
            mask = water_mask(pair_sigma0_db(grey))
            water_pixels += int(mask.sum())
            if mask.any():
                water_levels.append(float(np.median(amplitude[mask] ** 2)))
    if not water_levels:
        raise InputError("No river patch of the train split shows water; bring the whole data folder.")
    terrain = {name: _stack(parts) for name, parts in windows.items()}
    missing = [name for name in TERRAIN_OF_CLASS.values() if name not in terrain]
    if missing:
        raise InputError(f"s1_pairs.csv has no train patch of terrain {missing[0]!r}; bring the whole data folder.")
    looks, speckle = sensor_speckle(_stack(list(terrain.values())))
    classes = _class_laws(terrain, looks, speckle, float(np.median(water_levels)))
    classes["water"]["source"] += f" Found in {len(water_levels)} river patches, {water_pixels} pixels."
    quantiles = np.quantile(np.concatenate(local), np.linspace(0, 1, 65))
    return {
        "what": "Laws that a class map is filled with: I = mean x texture x speckle, each Gamma (sar_gen/guides.py).",
        "credit": VV_CREDIT,
        "encoding": "linear",
        "polarisation": "VV",
        "scale": S1_VV.to_json(),
        "pixel": "10 m; lengths and correlations are in pixels",
        "patches": len(pairs),
        "looks_note": f"Looks and speckle correlation belong to the sensor and its processing, so every class has the "
        f"same: from the {QUIET:.0%} of the unclipped windows with the least variance.",
        "classes": {name: classes[name] for name in CLASSES},
        "local_intensity": {
            "what": f"quantiles 0 to 1 of the mean intensity around a pixel (Gaussian, {OPTICAL_SCALE:g} pixels), "
            "all terrains",
            "quantiles": [_rounded(value) for value in quantiles],
        },
        "optical": {
            "what": "Spearman correlation of guides.optical_order with that mean intensity: median over the patches",
            "rank_correlation": {name: round(float(np.median(v)), 3) for name, v in sorted(agreement.items())},
        },
    }


def log_windows(
    amplitude: NDArray[np.float32], grey: NDArray[np.uint8] | None = None, optical: NDArray[np.uint8] | None = None
) -> Windows:
    """Return the log-intensity statistics of a patch's windows.

    Args:
        amplitude: ``(height, width)`` above 0.
        grey: the source's 8-bit values, to count its clipped pixels; ``None`` counts none.
        optical: the co-registered optical picture, to find built-up windows; ``None`` finds none.
    """
    from scipy.ndimage import gaussian_filter

    log = _windows(2 * np.log(amplitude.astype(np.float64)))
    mean = log.mean(axis=(1, 2))
    centred = log - mean[:, None, None]
    covariance = np.empty((len(log), LAGS))
    for lag in range(LAGS):
        across = (centred[:, :, : WINDOW - lag] * centred[:, :, lag:]).mean(axis=(1, 2))
        down = (centred[:, : WINDOW - lag] * centred[:, lag:]).mean(axis=(1, 2))
        covariance[:, lag] = (across + down) / 2
    clipped = np.zeros(len(log)) if grey is None else _windows((grey == 0) | (grey == 255)).mean(axis=(1, 2))
    built_up = np.zeros(len(log), dtype=bool)
    if optical is not None:
        # Roofs and streets are bright, and pattern the picture within a few pixels; found by looking at such windows.
        values = optical.astype(np.float64)
        fine = _windows(values - gaussian_filter(values, 3)).std(axis=(1, 2))
        built_up = (fine > 35) & (_windows(values).mean(axis=(1, 2)) > 90)
    return Windows(mean, covariance, clipped, built_up)


def sensor_speckle(windows: Windows) -> tuple[float, list[float]]:
    """Return the looks, and the correlation of the speckle at 0, 1, ... pixels, from the quietest windows.

    What correlation is left at 8 pixels is ground, not speckle, and is taken off.
    """
    usable = np.flatnonzero(windows.clipped < 0.005)
    if not usable.size:
        raise InputError("Every window of the data is clipped, so its speckle cannot be measured; check the data.")
    order = usable[np.argsort(windows.covariance[usable, 0], kind="stable")]
    quiet = windows.covariance[order[: max(1, round(QUIET * usable.size))]].mean(axis=0)
    speckle = quiet[:8] - quiet[8]
    correlation = np.clip(speckle / speckle[0], 0, 1)
    return inverse_trigamma(float(speckle[0])), [round(float(value), 3) for value in correlation]


def class_law(windows: Windows, looks: float, speckle: Sequence[float]) -> dict[str, Any]:
    """Return mean intensity, texture order and texture length of the median window (log-cumulants)."""
    from scipy.special import digamma, polygamma

    covariance = np.median(windows.covariance, axis=0)
    texture = covariance - float(polygamma(1, looks)) * np.pad(speckle, (0, LAGS - len(speckle)))
    mean = float(np.median(windows.mean)) - float(digamma(looks)) + np.log(looks)
    order = None
    length = 0.0
    # Less than a tenth of the variance is not told from none.
    if texture[0] > 0.1 * covariance[0]:
        order = inverse_trigamma(float(texture[0]))
        mean += np.log(order) - float(digamma(order))
        length = _crossing(texture / texture[0], float(np.exp(-1)))
    return {
        "mean_intensity": _rounded(np.exp(mean)),
        "texture_order": None if order is None else round(order, 3),
        "texture_length": round(length, 2),
    }


def water_mask(sigma0_db: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where a patch shows open water: dark, smooth and large.

    Dark is a mean power under -18.5 dB around the pixel (9 x 9), smooth a standard deviation of at most 2.65 dB there
    (speckle alone has 2.2 dB), large a connected region of 5,000 pixels after opening. Looked at on all river
    patches: what remains are lakes, reservoirs and wide rivers; gravel beds and shadows are brighter, rougher or
    smaller.
    """
    from scipy import ndimage

    power = ndimage.uniform_filter(10 ** (sigma0_db / 10), 9)
    mean = ndimage.uniform_filter(sigma0_db, 9)
    variance = ndimage.uniform_filter(sigma0_db**2, 9) - mean**2
    mask = (10 * np.log10(power) < WATER_DB) & (variance < WATER_SPREAD_DB**2)
    labels, _ = ndimage.label(ndimage.binary_opening(mask, np.ones((3, 3))))
    large = np.bincount(labels.ravel()) >= WATER_PIXELS
    large[0] = False
    return large[labels]


def local_intensity(amplitude: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean intensity around every eighth pixel, flat."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(amplitude.astype(np.float64) ** 2, OPTICAL_SCALE)[4::8, 4::8].ravel()


def optical_agreement(optical: NDArray[np.uint8], smooth: NDArray[np.float64]) -> float:
    """Return the Spearman correlation of the optical conversion with ``local_intensity``; 0 for a flat picture."""
    from scipy.stats import spearmanr

    order, _ = optical_order(optical / 255)
    picked = order[4::8, 4::8].ravel()
    return 0.0 if np.ptp(picked) == 0 or np.ptp(smooth) == 0 else float(spearmanr(picked, smooth)[0])


def inverse_trigamma(value: float) -> float:
    """Return x with psi1(x) = ``value``, x between 0.05 and 10,000."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    low, high = 0.05, 1e4
    value = float(np.clip(value, polygamma(1, high), polygamma(1, low)))
    return float(brentq(lambda x: float(polygamma(1, x)) - value, low, high))


def _class_laws(
    terrain: dict[str, Windows], looks: float, speckle: list[float], water_median: float
) -> dict[str, dict[str, Any]]:
    from scipy.special import gammaincinv

    sensor = {"looks": round(looks, 2), "speckle_correlation": speckle}
    reference = {entry.name: entry.reference for entry in load_palette().classes}
    laws: dict[str, dict[str, Any]] = {}
    for name, source in TERRAIN_OF_CLASS.items():
        windows = terrain[source]
        text = f"Median of the {WINDOW} px windows of the {source} patches."
        if name == "urban":
            windows = _where(windows, windows.built_up)
            if not len(windows.mean):
                raise InputError("No residential window looks built up in the optical pictures; check the data.")
            text = (
                f"Median of the {len(windows.mean)} windows ({WINDOW} px) of the residential patches whose optical "
                "picture is bright and finely patterned; the others are the fields and slopes around."
            )
        laws[name] = {**class_law(windows, looks, speckle), **sensor, "measured": True, "source": text}
    flat = {"texture_order": None, "texture_length": 0.0}
    # A third of the water lies at the source's -25 dB floor: the mean would be too high, the median is not moved.
    laws["water"] = {
        "mean_intensity": _rounded(water_median * looks / gammaincinv(looks, 0.5)),
        **flat,
        **sensor,
        "measured": True,
        "source": f"Dark (under {WATER_DB:g} dB), smooth (at most {WATER_SPREAD_DB:g} dB) regions of {WATER_PIXELS} "
        "pixels or more in river patches. The mean follows from the median, which the source's -25 dB floor does not "
        "move; no texture is told from none there.",
    }
    fields = laws["fields"]["mean_intensity"]
    laws["road"] = {
        "mean_intensity": _rounded(fields * 10 ** (-ROAD_BELOW_FIELDS_DB / 10)),
        **flat,
        **sensor,
        "measured": False,
        "source": f"ASSUMED, not measured: {ROAD_BELOW_FIELDS_DB:g} dB below fields and without texture. Asphalt is "
        "smooth at C band, but a road is about one 10 m pixel wide and none can be picked out of the data reliably.",
    }
    for name, law in laws.items():
        law["reference"] = reference[name]
    return laws


def _windows(values: NDArray[Any]) -> NDArray[Any]:
    """Return ``(n, WINDOW, WINDOW)`` windows side by side; what is left over at the edges is dropped."""
    rows, columns = (size // WINDOW for size in values.shape)
    cut = values[: rows * WINDOW, : columns * WINDOW]
    return cut.reshape(rows, WINDOW, columns, WINDOW).swapaxes(1, 2).reshape(-1, WINDOW, WINDOW)


def _stack(parts: Sequence[Windows]) -> Windows:
    return Windows(
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.covariance for part in parts]),
        np.concatenate([part.clipped for part in parts]),
        np.concatenate([part.built_up for part in parts]),
    )


def _where(windows: Windows, mask: NDArray[np.bool_]) -> Windows:
    return Windows(windows.mean[mask], windows.covariance[mask], windows.clipped[mask], windows.built_up[mask])


def _crossing(correlation: NDArray[np.float64], level: float) -> float:
    """Return where a correlation first falls to ``level``, in pixels, by linear interpolation; its end if never."""
    below = np.flatnonzero(correlation <= level)
    if not below.size:
        return float(correlation.size - 1)
    after = int(below[0])
    high, low = correlation[after - 1], correlation[after]
    return after - 1 + float((high - level) / (high - low))


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _json_bytes(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()


def _lines(index: dict[str, Any], classes: dict[str, Any]) -> Iterator[str]:
    for entry in index["sets"]:
        yield f"{entry['name']}: {entry['count']} patches, {entry['groups']} groups"
    for name, law in classes["classes"].items():
        order = "none" if law["texture_order"] is None else f"{law['texture_order']} over {law['texture_length']} px"
        yield f"{name}: mean intensity {law['mean_intensity']}, texture {order}, looks {law['looks']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build everything; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sar_gen.reference_statistics", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, help="folder with s1_pairs.csv and s1_scenes.csv")
    parser.add_argument("--assets", type=Path, default=ROOT / "assets", help="where to write (default: assets)")
    options = parser.parse_args(arguments)
    try:
        classes = build_class_statistics(options.data)
        index = build_references(options.data, options.assets / "references")
        write_atomic(options.assets / "guides" / "class_statistics.json", _json_bytes(classes))
    except SarGenError as error:
        parser.exit(2 if isinstance(error, InputError) else 1, f"{error}\n")
    print("\n".join(_lines(index, classes)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
