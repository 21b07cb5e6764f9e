"""The sensitivity table: which measures notice which fault, in multiples of what real patches do to each other.

    python -m sar_gen.sensitivity DATA_FOLDER [--out assets] [--count N]

``DATA_FOLDER`` holds ``s1_pairs.csv`` and its pictures (see ``reference_statistics``). For each terrain, sets of N
real patches are drawn at random, as far as possible one from each overlap group, and compared with the real patches of
all groups that were not drawn from, as ``quality.report`` does for its floors. The 95th percentile of a measure over
these splits is its floor. Then the same is done with sets of N patches that have a fault: the table holds the median
of value / floor. One measure is not part of ``quality.report``: for another terrain only, ``kernel_distance``
(``quality.sets``) on the SAR-CLIP features of the real patches that ship with the studio. Everything is seeded: the
same data give the same table.
Written are ``sensitivity.json`` and ``sensitivity.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.quality import report
from sar_gen.quality.faults import FAULTS
from sar_gen.quality.kernel import distances_of_splits, gaussian_kernel, median_distance
from sar_gen.quality.splits import group_numbers, random_splits, split_weights
from sar_gen.quality.statistics import PatchStatistics, patch_statistics
from sar_gen.reference_statistics import TERRAINS, VV_CREDIT, Pair, pair_amplitude, read_grey, read_pairs
from sar_gen.settings import ROOT

FEATURES = ROOT / "assets" / "references" / "features.safetensors"
"""SAR-CLIP features of the real patches, by set, in the order of the data (``sar_gen.features``)."""
COUNT = 14
"""Patches of a set: the most that all terrains can draw one from each group, from half of their groups."""
DRAWS = 2000
"""Splits for each floor, for each check of it and for each fault."""
FAULTY_A_GROUP = 8
"""Patches of a group that are given faults, drawn at random: a set takes one or two from a group, and one flight
line holds 354."""
HALVES = 20
"""Times that the ground of a terrain is halved for the check on other ground."""
HALF_COUNT = 7
"""Patches of a set in that check: the most that half of the fewest groups allow."""
KERNEL = "kernel_distance"
BEYOND = 1.5
"""A fault counts as noticed when the median set lies this many floors away."""
FLOOR_SEED, CHECK_SEED, FAULT_SEED, HALF_SEED = 1, 2, 3, 4

Ratios = dict[str, dict[str, float | None]]
"""By fault, then by measure: median of value / floor."""


@dataclass(frozen=True)
class Terrain:
    """One terrain, real and with faults.

    Attributes:
        real: every patch.
        chosen: ``(m,)`` int, the rows of ``real`` that were given faults; every group has some.
        faulty: by fault, those m patches with the fault.
    """

    real: PatchStatistics
    chosen: NDArray[np.int64]
    faulty: dict[str, PatchStatistics]


def measure_terrain(pairs: Sequence[Pair], seed: int = FAULT_SEED) -> Terrain:
    """Return what is measured of a terrain's patches, and of some of each group with each fault."""
    groups = [pair.group for pair in pairs]
    real = patch_statistics((pair_amplitude(read_grey(pair.sar)) for pair in pairs), groups)
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for group in sorted(set(groups)):
        rows = [row for row, name in enumerate(groups) if name == group]
        chosen += generator.permutation(rows)[:FAULTY_A_GROUP].tolist()
    faulty = {
        fault.name: patch_statistics(
            (
                fault.apply(pair_amplitude(read_grey(pairs[row].sar)), np.random.default_rng([seed, row]))
                for row in chosen
            ),
            [groups[row] for row in chosen],
        )
        for fault in FAULTS
        if fault.apply is not None
    }
    return Terrain(real, np.array(chosen, dtype=np.int64), faulty)


def weights_of_splits(
    groups: Sequence[str], count: int, splits: int, seed: int, eligible: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return random splits by group as ``(splits, n)`` weights: of the drawn patches, and of those of other ground.

    Args:
        groups: one a patch.
        count: patches to draw in each split, as far as possible one from each of at most half of the groups.
        splits: how many.
        seed: of the draws.
        eligible: rows that may be drawn (some of each group); ``None`` for all.
    """
    numbers = group_numbers(groups)
    return split_weights(random_splits(numbers, count, splits, np.random.default_rng(seed), eligible), len(numbers))


def distances(
    drawn: PatchStatistics,
    drawn_weights: NDArray[np.float64],
    real: PatchStatistics,
    real_weights: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return every measure of ``quality.report`` for each split, ``(splits,)``; NaN where a descriptor is undefined.

    Args:
        drawn: the patches that sets are drawn from, n of them.
        drawn_weights: ``(splits, n)`` 1 for the patches of a set.
        real: the real patches, m of them.
        real_weights: ``(splits, m)``.
    """
    return report.set_distances(report.pooled_sets(drawn, drawn_weights), report.pooled_sets(real, real_weights))


def real_distances(real: PatchStatistics, count: int, splits: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return every measure of real against real, for each of many random splits."""
    drawn, others = weights_of_splits(real.groups, count, splits, seed)
    return distances(real, drawn, real, others)


def floors_95(real: PatchStatistics, count: int, splits: int, seed: int) -> dict[str, float]:
    """Return the 95th percentile of every measure of real against real, without measures that are never defined."""
    found = {name: row[np.isfinite(row)] for name, row in real_distances(real, count, splits, seed).items()}
    return {name: float(np.percentile(row, 95)) for name, row in found.items() if len(row)}


def exceedance(values: dict[str, NDArray[np.float64]], floors: dict[str, float]) -> dict[str, float]:
    """Return the share of the splits in which each measure is above its floor."""
    return {name: _share_above(values[name], floor) for name, floor in floors.items()}


def held_out_exceedance(real: PatchStatistics, splits: int, seed: int) -> dict[str, float]:
    """Return how often real against real exceeds a floor that was taken on other ground.

    The groups are halved at random, ``HALVES`` times: the floor comes from splits within one half and is tried on
    splits within the other; the mean over the halvings is returned.
    """
    generator = np.random.default_rng(seed)
    names = sorted(set(real.groups))
    shares: dict[str, list[float]] = {}
    for half in range(HALVES):
        first = set(generator.permutation(names)[: len(names) // 2].tolist())
        one, other = (
            real.subset([row for row, group in enumerate(real.groups) if (group in first) == wanted])
            for wanted in (True, False)
        )
        floors = floors_95(one, HALF_COUNT, splits, seed + half)
        for name, share in exceedance(real_distances(other, HALF_COUNT, splits, seed + half), floors).items():
            shares.setdefault(name, []).append(share)
    return {name: float(np.mean(values)) for name, values in shares.items()}


def fault_ratios(terrain: Terrain, floors: dict[str, float], count: int, splits: int, seed: int) -> Ratios:
    """Return the median of value / floor over sets of ``count`` faulty patches against real ones of other groups."""
    drawn, others = weights_of_splits(terrain.real.groups, count, splits, seed, terrain.chosen)
    drawn = drawn[:, terrain.chosen]
    return {
        name: _ratios(distances(faulty, drawn, terrain.real, others), floors)
        for name, faulty in terrain.faulty.items()
    }


def terrain_ratios(
    other: PatchStatistics, real: PatchStatistics, floors: dict[str, float], count: int, splits: int, seed: int
) -> dict[str, float | None]:
    """Return the same for real patches of another terrain in the place of faulty ones."""
    drawn, _ = weights_of_splits(other.groups, count, splits, seed)
    _, others = weights_of_splits(real.groups, count, splits, seed)
    return _ratios(distances(other, drawn, real, others), floors)


def kernel_distances(
    drawn: NDArray[Any],
    drawn_splits: NDArray[np.float64],
    real: NDArray[Any],
    real_groups: Sequence[str],
    real_splits: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return ``kernel.kernel_distance`` for each split, ``(splits,)``, with the bandwidth of all real patches.

    Args:
        drawn: ``(n, d)`` unit features of the patches that sets are drawn from.
        drawn_splits: ``(splits, n)`` 1 for the patches of a set.
        real: ``(m, d)`` of the real patches.
        real_groups: of the real patches.
        real_splits: ``(splits, m)`` 1 for those that a set is compared with.
    """
    groups = group_numbers(real_groups)
    bandwidth = median_distance(real, groups) or 1.0
    kernels = (
        gaussian_kernel(drawn, drawn, bandwidth),
        gaussian_kernel(drawn, real, bandwidth),
        gaussian_kernel(real, real, bandwidth),
    )
    return distances_of_splits(kernels, (np.arange(len(drawn)), groups), (drawn_splits, real_splits))


def kernel_table(
    features: dict[str, NDArray[Any]], groups: Mapping[str, Sequence[str]], count: int, splits: int
) -> dict[str, dict[str, Any]]:
    """Return, by terrain, the floor of the kernel distance, how often real exceeds it, and the ratio of each other.

    Args:
        features: ``(n, d)`` unit features of each terrain's patches.
        groups: of the same patches.
        count: patches of a set.
        splits: random splits for each number.
    """
    table = {}
    drawn = {name: weights_of_splits(groups[name], count, splits, FAULT_SEED)[0] for name in features}
    for name, real in features.items():
        real_to_real = []
        for seed in (FLOOR_SEED, CHECK_SEED):
            mine, others = weights_of_splits(groups[name], count, splits, seed)
            real_to_real.append(kernel_distances(real, mine, real, groups[name], others))
        floor, again = float(np.percentile(real_to_real[0], 95)), real_to_real[1]
        _, others = weights_of_splits(groups[name], count, splits, FAULT_SEED)
        ratios = {
            other: _ratio(kernel_distances(rows, drawn[other], real, groups[name], others), floor)
            for other, rows in features.items()
            if other != name
        }
        table[name] = {"floor_95": floor, "other_splits": _share_above(again, floor), "ratios": ratios}
    return table


def held_out_kernel_ratios(
    features: dict[str, NDArray[Any]], pairs: dict[str, list[Pair]], splits: int
) -> dict[str, dict[str, float | None]]:
    """Return the ratios of other terrains, for sets of ``HALF_COUNT`` patches that SAR-CLIP was not trained on.

    Sets are drawn from the ``reference`` split only and compared with the ``train`` patches; the floor likewise.
    At most half of the held-out groups are drawn from; terrains with fewer than four of them are left out.
    """
    held = {name: np.array([pair.split == "reference" for pair in rows]) for name, rows in pairs.items()}
    groups = {name: np.array([pair.group for pair in rows]) for name, rows in pairs.items()}
    usable = [name for name in features if len(set(groups[name][held[name]])) >= 4 and (~held[name]).any()]
    generator = np.random.default_rng(FAULT_SEED)
    drawn = {}
    for name in usable:
        names = np.unique(groups[name][held[name]])
        rows = np.zeros((splits, len(groups[name])))
        for split in range(splits):
            for group in generator.choice(names, min(HALF_COUNT, len(names) // 2), replace=False):
                rows[split, generator.choice(np.flatnonzero(held[name] & (groups[name] == group)))] = 1
        drawn[name] = rows
    table = {}
    for name in usable:
        others = np.tile(~held[name], (splits, 1)).astype(np.float64)
        values = {
            other: kernel_distances(features[other], drawn[other], features[name], list(groups[name]), others)
            for other in usable
        }
        floor = float(np.percentile(values[name], 95))
        table[name] = {other: _ratio(row, floor) for other, row in values.items() if other != name}
    return table


def read_features(path: Path, pairs: dict[str, list[Pair]]) -> dict[str, NDArray[Any]] | None:
    """Return the unit features of each terrain's patches; ``None`` where the file is missing or of other patches."""
    from safetensors.numpy import load_file

    if not path.is_file():
        return None
    found = load_file(path)
    features = {name: found.get(f"s1-{name}") for name in pairs}
    if any(rows is None or len(rows) != len(pairs[name]) for name, rows in features.items()):
        return None
    values = {name: rows.astype(np.float64) for name, rows in features.items() if rows is not None}
    return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in values.items()}


def measure(folder: Path, count: int = COUNT, splits: int = DRAWS, features_file: Path = FEATURES) -> dict[str, Any]:
    """Return everything that ``sensitivity.json`` holds.

    Args:
        folder: the data.
        count: patches of a set.
        splits: random splits for each number.
        features_file: SAR-CLIP features of the same patches; the kernel distance is left out where they are not.

    Raises:
        InputError: the data are incomplete, or a terrain has fewer than four groups.
    """
    every = read_pairs(folder)
    pairs = {name: [pair for pair in every if pair.terrain == name] for name in TERRAINS}
    for name, chosen in pairs.items():
        if len({pair.group for pair in chosen}) < 4:
            raise InputError(
                f"s1_pairs.csv has fewer than four overlap groups of terrain {name!r}, which cannot be halved and "
                "split again; bring the whole data folder."
            )
    terrains = {name: measure_terrain(chosen) for name, chosen in pairs.items()}
    rows = {name: _terrain_row(name, terrains, count, splits) for name in terrains}
    features = read_features(features_file, pairs)
    held_out = None
    if features is not None:
        groups = {name: terrain.real.groups for name, terrain in terrains.items()}
        for name, kernel in kernel_table(features, groups, count, splits // 4).items():
            row = rows[name]
            row["floor_95"][KERNEL] = _rounded(kernel["floor_95"])
            row["real_beyond_floor"]["other_splits"][KERNEL] = _rounded(kernel["other_splits"])
            for other, ratio in kernel["ratios"].items():
                row["other_terrains"][other][KERNEL] = ratio
        held_out = held_out_kernel_ratios(features, pairs, splits // 4)
    for row in rows.values():
        # One number a measure for "another terrain": the median of the four.
        row["ratios"]["terrain"] = _medians(row["other_terrains"].values())
    return {
        "what": "Median over random sets of value / floor, by fault and measure; the floor is the 95th percentile of "
        "the same measure between real patches, over random splits by overlap group.",
        "command": f"python -m sar_gen.sensitivity DATA_FOLDER --count {count} --splits {splits}",
        "credit": VV_CREDIT,
        "licence": "CC BY 4.0",
        "count": count,
        "splits": splits,
        "seeds": {"floor": FLOOR_SEED, "check": CHECK_SEED, "fault": FAULT_SEED, "halves": HALF_SEED},
        "faults": [{"letter": f.letter, "name": f.name, "title": f.title, "words": f.words} for f in FAULTS],
        "pooled": {fault.name: _medians([row["ratios"][fault.name] for row in rows.values()]) for fault in FAULTS},
        "terrains": rows,
        "kernel_distance_held_out": held_out,
    }


def _terrain_row(name: str, terrains: dict[str, Terrain], count: int, splits: int) -> dict[str, Any]:
    """Return what is kept of one terrain, but for the kernel distance."""
    terrain = terrains[name]
    real = terrain.real
    floors = floors_95(real, count, splits, FLOOR_SEED)
    again = exceedance(real_distances(real, count, splits, CHECK_SEED), floors)
    return {
        "patches": len(real.groups),
        "groups": len(set(real.groups)),
        "patches_with_faults": len(terrain.chosen),
        "floor_95": {measure: _rounded(value) for measure, value in floors.items()},
        "real_beyond_floor": {
            "other_splits": _rounded_all(again),
            "other_ground": _rounded_all(held_out_exceedance(real, splits // 10, HALF_SEED)),
        },
        "ratios": fault_ratios(terrain, floors, count, splits, FAULT_SEED),
        "other_terrains": {
            other: terrain_ratios(terrains[other].real, real, floors, count, splits, FAULT_SEED)
            for other in terrains
            if other != name
        },
    }


def markdown(data: dict[str, Any]) -> str:
    """Return the tables for the documentation."""
    faults = data["faults"]
    measures = list(next(iter(data["terrains"].values()))["floor_95"])
    head = [f"{fault['letter']} {fault['title']}" for fault in faults]
    lines = [
        "# Which measures notice which fault",
        "",
        f"Real Sentinel-1 patches with a fault, {data['count']} at a time, against real patches of other ground: "
        f"median of the measure over {data['splits']:,} random sets, as a multiple of its floor. The floor is the "
        "95th percentile of the same measure between real patches and real patches, over as many random splits by "
        f"overlap group. Median over {len(data['terrains'])} terrain classes; **bold** from {BEYOND:g} floors on.",
        "",
        _row(["measure", *head]),
        _row(["---", *["---:"] * len(faults)]),
        *(
            _row([_name(measure), *(_cell(data["pooled"][fault["name"]].get(measure)) for fault in faults)])
            for measure in measures
        ),
        "",
        *(f"- {fault['letter']}: {fault['words']}" for fault in faults),
        "",
        *_notes(data),
        "",
        "The measure that notices most, in each terrain (in brackets `kernel_distance` †):",
        "",
        _row(["terrain", *head]),
        _row(["---", *["---"] * len(faults)]),
    ]
    for name, terrain in data["terrains"].items():
        lines.append(_row([name, *(_best_cell(terrain["ratios"][fault["name"]]) for fault in faults)]))
    lines += [
        "",
        "Another terrain (g), pair by pair: the measure that notices most when patches of the row are judged by the "
        "column's set (in brackets `kernel_distance` †).",
        "",
        _row(["patches of", *data["terrains"]]),
        _row(["---", *["---"] * len(data["terrains"])]),
    ]
    for row in data["terrains"]:
        pairings = {column: terrain["other_terrains"].get(row) for column, terrain in data["terrains"].items()}
        lines.append(_row([row, *("" if pairing is None else _best_cell(pairing) for pairing in pairings.values())]))
    lines += [
        "",
        "How often real against real exceeds the floor (5 % is what a 95th percentile promises): on other random "
        "splits of the same patches, and, in brackets, on other ground (the groups halved at random "
        f"{HALVES} times, {data['splits'] // 10} sets of {HALF_COUNT} each, floor from one half, tried on the other).",
        "",
        _row(["measure", *data["terrains"]]),
        _row(["---", *["---:"] * len(data["terrains"])]),
    ]
    for measure in measures:
        beyond = [terrain["real_beyond_floor"] for terrain in data["terrains"].values()]
        lines.append(_row([_name(measure), *(_shares(entry, measure) for entry in beyond)]))
    sizes = ", ".join(f"{n} {t['patches']} in {t['groups']}" for n, t in data["terrains"].items())
    lines += [
        "",
        f"Patches and overlap groups: {sizes}. Faults were given to at most {FAULTY_A_GROUP} patches of a group. "
        "The splits of the first check are drawn anew but from the same patches as those of the floor, so that it "
        "shows that the percentile holds for that ground, not for any other; the second check does that, and "
        "exceeds 5 % where ground is scarce and uneven: a floor describes the ground that it was taken on.",
        "",
        f"Made by `{data['command']}`, seeds {', '.join(f'{k} {v}' for k, v in data['seeds'].items())}. Statistics of "
        f"{data['credit'].rstrip('.')}. The patches themselves are not part of this repository.",
        "",
    ]
    return "\n".join(lines)


def _ratios(values: dict[str, NDArray[np.float64]], floors: dict[str, float]) -> dict[str, float | None]:
    return {name: _ratio(values[name], floor) for name, floor in floors.items()}


def _ratio(values: NDArray[np.float64], floor: float) -> float | None:
    """Return the median over the splits of value / floor; ``None`` where no value is defined or the floor is 0."""
    known = values[np.isfinite(values)]
    return _rounded(np.median(known) / floor) if len(known) and floor > 0 else None


def _medians(rows: Any) -> dict[str, float | None]:
    """Return the median of each measure over rows that may lack it."""
    rows = list(rows)
    found: dict[str, float | None] = {}
    for name in rows[0]:
        known = [row[name] for row in rows if row.get(name) is not None]
        found[name] = _rounded(np.median(known)) if known else None
    return found


def _share_above(values: NDArray[np.float64], floor: float) -> float:
    known = values[np.isfinite(values)]
    return float((known > floor).mean()) if len(known) else float("nan")


def _notes(data: dict[str, Any]) -> list[str]:
    """Return what a reader must know of block edges, of other terrains, and of the kernel distance."""
    best = {name: max(_known(row["ratios"]["terrain"]).values()) for name, row in data["terrains"].items()}
    noticed = [f"{name} {ratio:.2f}" for name, ratio in best.items() if ratio >= BEYOND]
    rest = [f"{name} {ratio:.2f}" for name, ratio in best.items() if ratio < BEYOND]
    lines = [
        "`block_edges` counts only what a set has more than the real patches, which are from JPEG (quality 75) "
        "themselves. Terrains resemble each other at 10 m: by the measures of a comparison alone, patches of the "
        f"other terrains are {BEYOND:g} floors away from {', '.join(noticed) or 'none'}"
        + (f", and not from {', '.join(rest)}." if rest else "."),
    ]
    held_out = data["kernel_distance_held_out"]
    if held_out:
        known = {name: [value for value in row.values() if value is not None] for name, row in held_out.items()}
        words = ", ".join(f"{name} {np.median(row):.2f}" for name, row in known.items() if row)
        lines[0] += (
            " † `kernel_distance` (MMD² of SAR-CLIP features, a squared distance) was taken for other terrains only, "
            f"over {data['splits'] // 4} sets, and it flatters itself: SAR-CLIP was trained on nine in ten of these "
            "patches and the names of their "
            f"terrains. Sets of {HALF_COUNT} patches that it was not trained on, against those that it was, floor "
            f"likewise, are fewer floors away (median over the other terrains: {words})."
        )
    return lines


def _known(ratios: dict[str, float | None]) -> dict[str, float]:
    """Return the ratios that are defined, without the kernel distance."""
    return {name: value for name, value in ratios.items() if value is not None and name != KERNEL}


def _best_cell(ratios: dict[str, float | None]) -> str:
    """Return the measure that notices most, and the kernel distance, which knows the patches, beside it."""
    known = _known(ratios)
    if not known:
        return _cell(None)
    name = max(known, key=lambda name: known[name])
    trained = f" ({_cell(ratios[KERNEL])}†)" if KERNEL in ratios else ""
    return f"{_cell(known[name])} `{name}`{trained}"


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _rounded_all(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _rounded(value) if np.isfinite(value) else None for name, value in values.items()}


def _name(measure: str) -> str:
    return f"`{measure}`{' †' if measure == KERNEL else ''}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    return f"**{text}**" if ratio >= BEYOND else text


def _shares(entry: dict[str, dict[str, float | None]], measure: str) -> str:
    here, there = (entry[key].get(measure) for key in ("other_splits", "other_ground"))
    return f"{_percent(here)} ({_percent(there)})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sar_gen.sensitivity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with s1_pairs.csv and the pictures that it names")
    parser.add_argument("--out", type=Path, default=ROOT / "assets", help="where to write (default: assets)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"patches of a set (default: {COUNT})")
    parser.add_argument("--splits", type=int, default=DRAWS, help=f"random splits a number (default: {DRAWS})")
    parser.add_argument("--features", type=Path, default=FEATURES, help="SAR-CLIP features of the patches")
    options = parser.parse_args(arguments)
    try:
        if options.count < 1 or options.splits < 20:
            raise InputError("Give --count of 1 or more and --splits of 20 or more.")
        data = measure(options.data, options.count, options.splits, options.features)
        text = markdown(data)
        write_atomic(options.out / "sensitivity.json", (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
        write_atomic(options.out / "sensitivity.md", text.encode())
    except SarGenError as error:
        parser.exit(2 if isinstance(error, InputError) else 1, f"{error}\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
