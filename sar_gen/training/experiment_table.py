"""The table of an experiment: Markdown, pictures, and which findings of arXiv 2506.13307 its numbers bear out.

Rows are the JSON data of ``experiment.Experiment.report``. Numbers over several terrains are means of value / floor:
floors differ by terrain, and 1 is what real patches do.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sar_gen.strategies import STRATEGIES, strategy
from sar_gen.training.evaluation import LIMIT, TEXTURES, WIDENING, read_patch_file

if TYPE_CHECKING:
    from sar_gen.training.evaluation import RealSet

MEASURES = {
    "wasserstein1": "Wasserstein-1",
    "kl_divergence": "KL(real, generated)",
    "texture": "GLCM",
    "agreement": "SAR-CLIP, 1 - cosine",
}
"""What strategies are compared by; ``texture`` is the mean over ``TEXTURES``. Less is better in all."""
SURE = 2.0
"""A difference between two trainings is called one from so many standard deviations of it on."""
CONFIDENCE = 0.95
"""Between several trainings of each it is called one where Welch's interval of it has no zero in it."""
EQUAL = 0.05
"""Means that differ by less, in floors, are called equal."""
SHOWN = 2
"""Patches of a terrain in a sheet."""
Verdict = Literal["yes", "no", "cannot be told", "not run"]


@dataclass(frozen=True)
class Comparison:
    """Two rows by one measure, over the terrains that both were measured on.

    Attributes:
        first: mean of value / floor.
        second: the same of the other row.
        deviation: standard deviation of ``first - second``: over draws of the generated patches, or over trainings
            (draws are in those).
        terrains: how many.
        nearer: on how many of them the first is nearer to real.
        trainings: of the first and of the second.
        sure: of so many deviations a difference is called one.
    """

    first: float
    second: float
    deviation: float
    terrains: int
    nearer: int
    trainings: tuple[int, int] = (1, 1)
    sure: float = SURE

    @property
    def verdict(self) -> Verdict:
        """Whether the first is nearer to real: by more than chance, on average."""
        difference = self.second - self.first
        if abs(difference) <= self.sure * self.deviation:
            return "cannot be told"
        return "yes" if difference > 0 else "no"

    @property
    def words(self) -> str:
        """The numbers, in words."""
        text = f"{self.first:.2f} against {self.second:.2f} floors, ± {self.deviation:.2f}"
        text = f"{text}, nearer on {self.nearer} of {self.terrains}"
        return text if self.trainings == (1, 1) else f"{text}; {self.trainings[0]} and {self.trainings[1]} trainings"


def scores(row: Mapping[str, Any], measure: str) -> dict[str, tuple[float, float]]:
    """Return ``{terrain: (value / floor, its standard deviation)}`` of one of ``MEASURES``; empty if not measured."""
    evaluation = row.get("evaluation")
    if not evaluation:
        return {}
    found = {}
    for terrain, known in evaluation["classes"].items():
        if measure == "texture":
            parts = [known["texture"][name]["distance"] for name in TEXTURES]
        else:
            parts = [known[measure]] if measure in known else []
        usable = [(part["value"], part["floor"], part["spread"]) for part in parts if part.get("floor")]
        if len(usable) < len(parts) or not usable:
            continue
        values = [value / floor for value, floor, _ in usable]
        # The descriptors are of the same patches: their spreads are added, not their squares.
        found[terrain] = (float(np.mean(values)), float(np.mean([spread / floor for _, floor, spread in usable])))
    return found


def mean_scores(rows: Iterable[Mapping[str, Any]], measure: str) -> list[float]:
    """Return ``mean_score`` of each row that it was measured of."""
    return [mean for row in rows if (mean := mean_score(row, measure)) is not None]


def mean_score(row: Mapping[str, Any], measure: str) -> float | None:
    """Return the mean of value / floor over the terrains."""
    found = scores(row, measure)
    return float(np.mean([value for value, _ in found.values()])) if found else None


def compare_rows(first: Mapping[str, Any], second: Mapping[str, Any], measure: str) -> Comparison | None:
    """Compare two rows by one measure; ``None`` where they share no terrain."""
    mine, theirs = scores(first, measure), scores(second, measure)
    shared = [terrain for terrain in mine if terrain in theirs]
    if not shared:
        return None
    variance = sum(mine[terrain][1] ** 2 + theirs[terrain][1] ** 2 for terrain in shared)
    return Comparison(
        float(np.mean([mine[terrain][0] for terrain in shared])),
        float(np.mean([theirs[terrain][0] for terrain in shared])),
        float(np.sqrt(variance) / len(shared)),
        len(shared),
        sum(mine[terrain][0] < theirs[terrain][0] for terrain in shared),
    )


def compare_trainings(
    firsts: Sequence[Mapping[str, Any]], seconds: Sequence[Mapping[str, Any]], measure: str
) -> Comparison | None:
    """Compare two rows that were trained several times each, by Welch's t-test (Biometrika 34, 1947) on their means.

    The deviation is that of the difference of means, sqrt(s1^2 / n1 + s2^2 / n2); ``sure`` the two-sided quantile of
    Student's t with the degrees of freedom of Welch and Satterthwaite.

    Args:
        firsts: trainings of the first row, two or more.
        seconds: trainings of the second row, two or more.
        measure: of ``MEASURES``.

    Returns:
        The comparison; ``None`` where not all of them share a terrain.

    Raises:
        ValueError: there is one training of a row only.
    """
    from scipy.stats import sem, t, ttest_ind

    if min(len(firsts), len(seconds)) < 2:
        raise ValueError("one training has no spread; compare_rows compares single ones")
    mine, theirs = ([scores(row, measure) for row in rows] for rows in (firsts, seconds))
    shared = [terrain for terrain in mine[0] if all(terrain in one for one in [*mine, *theirs])]
    if not shared:
        return None
    first, second = (np.array([[one[terrain][0] for terrain in shared] for one in group]) for group in (mine, theirs))
    of_first, of_second = first.mean(axis=1), second.mean(axis=1)
    deviation = float(np.hypot(sem(of_first), sem(of_second)))
    freedom = ttest_ind(of_first, of_second, equal_var=False).df if deviation else 1.0
    return Comparison(
        float(of_first.mean()),
        float(of_second.mean()),
        deviation,
        len(shared),
        int((first.mean(axis=0) < second.mean(axis=0)).sum()),
        (len(mine), len(theirs)),
        float(t.ppf((1 + CONFIDENCE) / 2, freedom)),
    )


def trainings(name: str, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the row of a name and its trainings with other seeds, as far as they were measured."""
    return [row for row in rows if row["evaluation"] and name in (row["row"], *(row["again"] or ())[:1])]


def compare(first: str, second: str, known: Mapping[str, Mapping[str, Any]], measure: str) -> Comparison | None:
    """Compare two rows by all their trainings where both have several, else by one of each; ``None`` if not run."""
    mine, theirs = (trainings(name, known.values()) for name in (first, second))
    if min(len(mine), len(theirs)) > 1:
        return compare_trainings(mine, theirs, measure)
    return compare_rows(known.get(first, {}), known.get(second, {}), measure)


# Findings ----------------------------------------------------------------------------------------------------------


def findings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the rows say of each finding of the paper, by measure.

    Returns:
        ``{"finding", "parts": [{"measure", "verdict", "words"}]}`` each; the verdict is ``yes``, ``no``, ``cannot be
        told`` (the difference is within chance) or ``not run``.
    """
    known = {row["row"]: row for row in rows}
    found = [
        _finding(
            "The hybrid (UNet whole, LoRA on the text encoders, learned token) is the best strategy",
            [_best("hybrid", known, measure) for measure in MEASURES],
        ),
        _finding(
            "A UNet that is trained whole captures the low-level statistics of SAR better than a LoRA does",
            [_pair("unet-full", "unet-lora", known, name) for name in ("wasserstein1", "kl_divergence", "texture")],
        ),
        _finding(
            "LoRA on the text encoders with a learned token keeps prompts as well as text encoders trained whole",
            [_suffices("hybrid", "unet-full+te-full", known)],
        ),
    ]
    for row in rows:
        if row["delta"]:
            whole, bits = row["delta"]
            parts = [_suffices(row["row"], whole, known, measure) for measure in MEASURES]
            found.append(_finding(f"A delta of {bits} bits measures like the weights that it is made of", parts))
    unseen = [row for row in rows if row["without"]]
    terrains = list(dict.fromkeys(row["without"] for row in unseen))
    for terrain in terrains:
        of_terrain = [row["row"] for row in unseen if row["without"] == terrain]
        found.append(
            _finding(
                f"Terrain without SAR in training ({terrain}) comes out as SAR: nearer to its real SAR than the base, "
                f"and within {LIMIT} floors",
                [part for name in of_terrain for part in _unseen(name, terrain, known)],
            )
        )
    return found


def _finding(text: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"finding": text, "parts": parts}


def _part(measure: str, verdict: str, words: str) -> dict[str, Any]:
    return {"measure": measure, "verdict": verdict, "words": words}


def _is_rival(row: Mapping[str, Any]) -> bool:
    """Whether a row may be called better than the hybrid: it has its VAE, and was trained on SAR of every terrain."""
    modes = strategy(row["strategy"]).trained()
    return _is_first(row) and not row["delta"] and bool(modes) and not any(part.startswith("vae") for part in modes)


def _is_first(row: Mapping[str, Any]) -> bool:
    """Whether a row saw the SAR of every terrain, and is not another training of one that did."""
    return not row["without"] and not row["again"]


def _best(name: str, known: Mapping[str, Mapping[str, Any]], measure: str) -> dict[str, Any]:
    title, rival = MEASURES[measure], [row for row in known.values() if _is_rival(row) and row["row"] != name]
    measured = {
        row["row"]: float(np.mean(mean_scores(trainings(row["row"], known.values()), measure)))
        for row in rival
        if mean_score(row, measure) is not None
    }
    if mean_score(known.get(name, {}), measure) is None or not measured:
        return _part(title, "not run", "")
    best = min(measured, key=lambda row: measured[row])
    found = compare(name, best, known, measure)
    missing = [row["row"] for row in rival if row["row"] not in measured]
    note = f" (not run: {', '.join(missing)})" if missing else ""
    assert found is not None
    return _part(title, found.verdict, f"{name} and the best of the others, {best}: {found.words}{note}")


def _pair(first: str, second: str, known: Mapping[str, Mapping[str, Any]], measure: str) -> dict[str, Any]:
    found = compare(first, second, known, measure)
    if found is None:
        return _part(MEASURES[measure], "not run", "")
    return _part(MEASURES[measure], found.verdict, f"{first} and {second}: {found.words}")


def _suffices(
    first: str, second: str, known: Mapping[str, Mapping[str, Any]], measure: str = "agreement"
) -> dict[str, Any]:
    """Say whether the first is no worse: nearer by more than chance, or as near to within ``EQUAL``."""
    found = compare(first, second, known, measure)
    if found is None:
        return _part(MEASURES[measure], "not run", "")
    equal = abs(found.first - found.second) < EQUAL
    return _part(MEASURES[measure], "yes" if equal else found.verdict, f"{first} and {second}: {found.words}")


def _unseen(name: str, terrain: str, known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    parts = []
    for measure in ("wasserstein1", "texture"):
        own = scores(known[name], measure).get(terrain)
        found = compare_rows(known[name], known.get("base", {}), measure)
        title = f"{MEASURES[measure]}, {name}"
        if own is None or found is None:
            parts.append(_part(title, "not run", ""))
            continue
        seen = scores(known.get(known[name]["strategy"], {}), measure).get(terrain)
        beside = "" if seen is None else f"; {seen[0]:.2f} with its SAR in training"
        verdict: Verdict = "no" if found.verdict == "no" or own[0] > LIMIT else found.verdict
        parts.append(_part(title, verdict, f"{own[0]:.2f} ± {own[1]:.2f} floors, base {found.second:.2f}{beside}"))
    return parts


# Markdown ----------------------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    rows = report["rows"]
    seen, unseen = [row for row in rows if not row["without"]], [row for row in rows if row["without"]]
    terrains = list((report["real"] or {}).get("classes", {}))
    lines = [f"# {report['title']}", "", *_facts(report), ""]
    waiting = [row["row"] for row in rows if row["status"] != "done"]
    if waiting:
        lines += [f"Not run yet, or not to the end: {', '.join(waiting)}. The same command goes on.", ""]
    lines += ["## Strategies", "", *_strategies(seen), "", *_several(rows)]
    if terrains:
        lines += ["## By terrain", "", *_legend(report), ""]
        for measure in ("wasserstein1", "kl_divergence"):
            lines += [f"{MEASURES[measure]}: value, in brackets value / floor; **bold** where it holds.", ""]
            lines += [*_by_terrain(seen, terrains, lambda known, name=measure: _distance(known[name])), ""]  # type: ignore[misc]
        for name in TEXTURES:
            lines += [f"GLCM {name}: mean over patches; **bold** where it lies in the interval.", ""]
            lines += [*_textures(seen, terrains, name), ""]
        lines += ["SAR-CLIP, 1 - cosine with the prompt: value, in brackets value / floor.", ""]
        lines += [*_by_terrain(seen, terrains, lambda known: _agreement(known.get("agreement"))), ""]
        lines += [*_copies(seen, terrains), ""]
    if unseen:
        lines += ["## Unseen terrain", "", *_unseen_table(unseen, rows, report), ""]
    lines += ["## What the paper found, and what these numbers say", "", *_findings(report), ""]
    if report["credit"]:
        lines += [" ".join(report["credit"]), ""]
    return "\n".join(lines)


def _facts(report: Mapping[str, Any]) -> list[str]:
    evaluation, foundation = report["evaluation"], report["foundation"]
    lines = []
    if report["size"] in ("toy", "tiny"):
        lines += [
            f"**{report['size'].capitalize()} size: it shows that everything runs, not which strategy is best.**",
            "",
        ]
    lines.append(
        f"{evaluation['patches']} patches of each terrain, {report['polarisation'] or 'one polarisation'}, linear "
        f"amplitude, made with the studio's engine; {report['device']}, precision {report['precision']}."
    )
    if foundation is None:
        lines.append(f"Base: {report['base']}.")
        return lines
    lines.append(
        f"Base: size {report['size']}, {report['resolution']} pixels, trained on optical pictures only; the model "
        f"works on the encoding {report['encoding']!r} of SAR."
    )
    if foundation["base"]:
        files = ", ".join(
            f"{name.split('/')[0]} {size / 1e6:.1f}" for name, size in foundation["base"]["bytes"].items()
        )
        lines.append(f"Its files in MB: {files}.")
    done = [f"{name} {found['seconds'] / 60:.1f}" for name, found in foundation.items() if found]
    if done:
        lines.append(f"Minutes: {', '.join(done)}.")
    if foundation["vae"]:
        measured = foundation["vae"]["reconstruction"]
        numbers = ", ".join(f"{n} {v:.3g}" for n, v in measured.items() if isinstance(v, int | float))
        lines.append(f"VAE on {foundation['vae']['held_out']} held-out SAR patches: {numbers}.")
    return lines


def _strategies(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["strategy", "status", "trained parameters", "peak memory", "minutes", "file"]
    lines = [_line([*head, *MEASURES.values(), "terrains that hold"]), _line(["---", "---", *["---:"] * 9])]
    for row in rows:
        training, evaluation = row["training"] or {}, row["evaluation"] or {}
        counts = training.get("trainable", {})
        total = sum(value for value in counts.values())
        base = not strategy(row["strategy"]).trained()
        holds = [one["holds"] for one in evaluation.get("classes", {}).values()]
        cells = [
            f"`{row['row']}`",
            row["status"],
            "0" if base else _count(total) if counts else "–",
            _gigabytes(training.get("peak_memory")),
            f"{training['seconds'] / 60:.1f}" if training else "–",
            _megabytes(training.get("bytes")),
            *(_number(mean_score(row, measure)) for measure in MEASURES),
            f"{sum(holds)} of {len(holds)}" if holds else "–",
        ]
        lines.append(_line(cells))
    parts = [
        f"- `{row['row']}`: " + ", ".join(f"{part} {count:,}" for part, count in row["training"]["trainable"].items())
        for row in rows
        if row["training"] and "trainable" in row["training"]
    ]
    note = [
        "",
        "Measures are means over the terrains of value / floor: 1 is what real patches do to each other. Memory is "
        "that of training, of the device's allocator on CUDA, of the process on a CPU. Trained parameters by part:",
        "",
    ]
    return [*lines, *(note + parts if parts else note[:2])]


def _several(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of rows that were trained several times; nothing where none was."""
    groups = {row["row"]: found for row in rows if len(found := trainings(row["row"], rows)) > 1}
    if not groups:
        return []
    lines = [
        "Trained several times, with other seeds: mean ± standard deviation over trainings.",
        "",
        _line(["strategy", "trainings", *MEASURES.values()]),
        _line(["---", "---:", *["---:"] * len(MEASURES)]),
    ]
    for name, group in groups.items():
        cells = []
        for measure in MEASURES:
            values = mean_scores(group, measure)
            cells.append(f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else "–")
        lines.append(_line([f"`{name}`", str(len(group)), *cells]))
    return [*lines, ""]


def _legend(report: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{name} {n[0]} train and {n[1]} reference" for name, n in report["real"]["classes"].items())
    return [
        f"Real patches: {counts}. A floor is the larger of train against reference and the median over random splits "
        f"of the train patches by overlap group. A distance holds up to {LIMIT} floors; a GLCM mean holds between the "
        f"train and the reference mean, the lower end lowered and the higher end raised by {WIDENING:.0%} of itself.",
    ]


def _by_terrain(
    rows: Sequence[Mapping[str, Any]], terrains: Sequence[str], cell: Callable[[Mapping[str, Any]], str]
) -> list[str]:
    lines = [_line(["strategy", *terrains]), _line(["---", *["---:"] * len(terrains)])]
    for row in rows:
        classes = (row["evaluation"] or {}).get("classes", {})
        cells = [cell(classes[terrain]) if terrain in classes else "not run" for terrain in terrains]
        lines.append(_line([f"`{row['row']}`", *cells]))
    return lines


def _textures(rows: Sequence[Mapping[str, Any]], terrains: Sequence[str], name: str) -> list[str]:
    lines = _by_terrain(rows, terrains, lambda known: _texture(known["texture"][name]))
    for kind in ("train", "reference"):
        real = []
        for terrain in terrains:
            known = [row["evaluation"]["classes"].get(terrain) for row in rows if row["evaluation"]]
            real.append(next((_number(one["texture"][name][kind]) for one in known if one), "–"))
        lines.append(_line([f"real, {kind}", *real]))
    return lines


def _copies(rows: Sequence[Mapping[str, Any]], terrains: Sequence[str]) -> list[str]:
    measured = [row for row in rows if row["evaluation"]]
    if not any("copies" in one for row in measured for one in row["evaluation"]["classes"].values()):
        return ["Copies of training patches were not looked for."]
    lines = [
        "Best correlation of a generated patch with any training patch, in brackets the best that reference patches "
        "of the terrain reach, and how many patches lie above the best of all reference patches.",
        "",
    ]
    return [*lines, *_by_terrain(rows, terrains, lambda known: _copy(known.get("copies")))]


def _unseen_table(
    unseen: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]
) -> list[str]:
    left_out = set(report["vae_left_out"])
    terrains = list(dict.fromkeys(row["without"] for row in unseen))
    seen_by_vae = [terrain for terrain in terrains if terrain not in left_out]
    lines = [
        "Each terrain was left out of the SAR of the fine-tuning and measured against its real SAR; the base saw it "
        "in optical pictures. `base` is trained on no SAR; rows without `without` saw the terrain's SAR.",
    ]
    if seen_by_vae and report["foundation"] is not None:
        lines.append(
            f"The VAE, which the base shares, was trained on SAR of all terrains, {', '.join(seen_by_vae)} too."
        )
    head = ["terrain", "row", "Wasserstein-1", "KL", *(f"GLCM {name}" for name in TEXTURES), "SAR-CLIP", "copies"]
    lines += ["", _line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for terrain in terrains:
        own = [row for row in unseen if row["without"] == terrain]
        names = {"base", *(row["strategy"] for row in own)}
        beside = [row for row in rows if _is_first(row) and not row["delta"] and row["strategy"] in names]
        for row in [*own, *beside]:
            known = ((row["evaluation"] or {}).get("classes", {})).get(terrain)
            cells = ["not run"] * 8 if known is None else _cells(known)
            lines.append(_line([terrain, f"`{row['row']}`", *cells]))
    return lines


def _cells(known: Mapping[str, Any]) -> list[str]:
    distances = [_distance(known[name]) for name in ("wasserstein1", "kl_divergence")]
    textures = [
        f"{_texture(known['texture'][name])} ({known['texture'][name]['train']:.3g} to "
        f"{known['texture'][name]['reference']:.3g})"
        for name in TEXTURES
    ]
    return [*distances, *textures, _agreement(known.get("agreement")), _copy(known.get("copies"))]


def _findings(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "Verdicts compare means of value / floor. ± is the standard deviation of the difference over draws of the "
        f"generated patches; within {SURE:g} of it nothing is said, but where equality is asked for, up to {EQUAL:g} "
        "floors count as equal. What another training run would give is not in it, but where both rows were trained "
        f"several times: there ± is over trainings, and nothing is said within Welch's {CONFIDENCE:.0%} interval. "
        "Rows that train a part of the VAE are not compared with the hybrid, which has the base's.",
        "",
        _line(["finding", "measure", "holds", "numbers"]),
        _line(["---"] * 4),
    ]
    for finding in report["findings"]:
        for part in finding["parts"]:
            lines.append(_line([finding["finding"], part["measure"], part["verdict"], part["words"] or "–"]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bold(text: str, holds: bool) -> str:
    return f"**{text}**" if holds else text


def _distance(known: Mapping[str, Any]) -> str:
    ratio = known["ratio"]
    return _bold(f"{known['value']:.3f} ({'–' if ratio is None else f'{ratio:.2f}'})", known["holds"])


def _texture(known: Mapping[str, Any]) -> str:
    return _bold(f"{known['generated']:.3g}", known["holds"])


def _agreement(known: Mapping[str, Any] | None) -> str:
    if known is None or known["value"] is None:
        return "–"
    return f"{known['value']:.3f} ({_number(known['ratio'])})"


def _copy(known: Mapping[str, Any] | None) -> str:
    return "–" if known is None else f"{known['highest']:.2f} ({known['real_highest']:.2f}), {known['above']}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _gigabytes(value: int | None) -> str:
    return "–" if not value else f"{value / 1e9:.2f} GB"


def _megabytes(value: int | None) -> str:
    if not value:
        return "–"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def _count(value: int) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k" if value >= 1e3 else str(value)


# Pictures ----------------------------------------------------------------------------------------------------------


def sheets(report: Mapping[str, Any], real: RealSet, patches: Callable[[str], Path]) -> dict[str, bytes]:
    """Return ``{name: PNG}``: ``strategies.png``, and ``unseen.png`` where terrains were left out.

    Args:
        report: of the experiment.
        real: whose reference patches stand in the first line.
        patches: folder of a row's patches.
    """
    rows = [row for row in report["rows"] if row["status"] == "done"]
    terrains = list(real.classes)
    found = {}
    seen = [row for row in rows if _is_first(row)]
    if seen:
        lines = [("real", {terrain: list(real.classes[terrain].patches[:SHOWN]) for terrain in terrains})]
        lines += [
            (row["row"], {terrain: _shown(patches(row["row"]) / terrain) for terrain in terrains}) for row in seen
        ]
        found["strategies.png"] = sheet(lines, terrains)
    without = list(dict.fromkeys(row["without"] for row in rows if row["without"]))
    if without:
        wanted = {row["strategy"] for row in rows if row["without"]}
        lines = [("real", {terrain: list(real.classes[terrain].patches[: 2 * SHOWN]) for terrain in without})]
        for name in [name for name in STRATEGIES if name in wanted | {"base"}]:
            if name == "base":
                lines.append(("base", {terrain: _shown(patches("base") / terrain, 2 * SHOWN) for terrain in without}))
                continue
            of_terrain = {
                terrain: _shown(patches(f"{name} without {terrain}") / terrain, 2 * SHOWN) for terrain in without
            }
            lines.append((f"{name}, unseen", of_terrain))
        found["unseen.png"] = sheet([line for line in lines if any(line[1].values())], without)
    return found


def sheet(lines: Sequence[tuple[str, Mapping[str, Sequence[Any]]]], terrains: Sequence[str]) -> bytes:
    """Return a PNG with a line of pictures for each of ``(name, {terrain: amplitudes})``, a column for each terrain.

    All are shown with the same remap (``amplitude.view``, linear), so that brightness can be compared.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sar_gen.amplitude import view

    across = max((len(own) for _, pictures in lines for own in pictures.values()), default=1)
    cell, names, title = 1.2, 1.9, 0.3  # inches: a picture, the names on the left, the line of terrains
    width, height = names + len(terrains) * (across + 0.08) * cell, title + len(lines) * 1.05 * cell
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), len(terrains), squeeze=False)
    for number, (name, pictures) in enumerate(lines):
        for place, terrain in enumerate(terrains):
            ax = axes[number][place]
            ax.set_axis_off()
            own = pictures.get(terrain) or []
            if len(own):
                gap = np.full((own[0].shape[0], max(2, own[0].shape[1] // 64)), 255, np.uint8)
                strip = [part for picture in own for part in (view(picture), gap)][:-1]
                ax.imshow(np.hstack(strip), cmap="gray", vmin=0, vmax=255)
            if number == 0:
                ax.set_title(terrain, fontsize=9)
            if place == 0:
                ax.text(-0.03, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(
        left=names / width, right=0.995, top=1 - title / height, bottom=0.0, wspace=0.04, hspace=0.05
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _shown(folder: Path, count: int = SHOWN) -> list[Any]:
    files = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))[:count]
    return [read_patch_file(path) for path in files]
