"""The table and the figure of the augmentation experiment (``training.augmentation``)."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sar_gen.files import write_atomic

if TYPE_CHECKING:
    from sar_gen.training.augmentation import AugmentationConfig, Trial

COVERED = 0.95
"""Of the intervals."""


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds with its interval; ``low`` and ``high`` are ``None`` for fewer than two seeds."""

    value: float
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return dataclasses.asdict(self)


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of independent values with Student's 95 % interval: mean +- t s / sqrt(n).

    Raises:
        ValueError: there is no value.
    """
    from scipy.stats import t

    if not len(values):
        raise ValueError("no values")
    value, count = float(np.mean(values)), len(values)
    if count < 2:
        return Mean(value, None, None, count)
    half = float(t.ppf((1 + COVERED) / 2, count - 1) * np.std(values, ddof=1) / count**0.5)
    return Mean(value, value - half, value + half, count)


def verdict(difference: Mean) -> str:
    """Return ``gain``, ``loss`` or ``undecided``: the last where the interval holds 0 or there is none."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "gain" if difference.low > 0 else "loss"


def report(
    config: AugmentationConfig,
    results: Mapping[Trial, Sequence[float]],
    counts: Mapping[str, Any],
    classifier: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that was found, as JSON data.

    Args:
        config: the experiment.
        results: recall of each terrain, by trial.
        counts: patches by source and terrain.
        classifier: its settings.
    """
    from sar_gen.training.augmentation import PLAIN_ARMS, SHOT_ARMS, left_out, trials, without_real

    wanted = trials(config)
    rows = []
    arms = [(arm, shots) for shots in config.shots for arm in SHOT_ARMS] + [(arm, 0) for arm in PLAIN_ARMS]
    for arm, shots in arms:
        found = _by_seed(results, arm, shots)
        row: dict[str, Any] = {"arm": arm, "shots": shots, "seeds": len(found)}
        if found:
            accuracy = {seed: float(np.mean(recalls)) for seed, recalls in found.items()}
            row |= {
                "accuracy": mean_of(list(accuracy.values())).to_json(),
                "recalls": {
                    terrain: mean_of([recalls[place] for recalls in found.values()]).to_json()
                    for place, terrain in enumerate(config.terrains)
                },
            }
            if shots and arm != "real":
                row |= _against(accuracy, _accuracies(results, "real", shots))
        rows.append(row)
    unseen = []
    for terrain in config.left_out:
        place, shots = config.terrains.index(terrain), config.left_out_shots
        for arm in (left_out(terrain), without_real(terrain), "real", "real + generated"):
            found = _by_seed(results, arm, shots)
            unseen.append(
                {
                    "terrain": terrain,
                    "arm": arm,
                    "shots": shots,
                    "seeds": len(found),
                    "recall": mean_of([r[place] for r in found.values()]).to_json() if found else None,
                    "accuracy": mean_of([float(np.mean(r)) for r in found.values()]).to_json() if found else None,
                }
            )
    return {
        "title": config.title,
        "terrains": list(config.terrains),
        "seeds": config.seeds,
        "done": sum(trial in results for trial in wanted),
        "wanted": len(wanted),
        "real_known": config.real_known,
        "counts": dict(counts),
        "classifier": dict(classifier),
        "credit": list(config.credit),
        "rows": rows,
        "left_out": unseen,
        "chance": 1 / len(config.terrains),
    }


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``table.json``, ``table.md`` and ``accuracy.png``.

    Raises:
        SarGenError: the folder cannot be written.
    """
    write_atomic(folder / "table.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "table.md", markdown(report).encode())
    picture = figure(report)
    if picture is not None:
        write_atomic(folder / "accuracy.png", picture)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table for people."""
    lines = [f"# {report['title']}", "", *_facts(report), ""]
    lines += [
        "| trained on | k | balanced accuracy | difference to `real` | reading | "
        + " | ".join(report["terrains"])
        + " |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(report["terrains"]),
    ]
    for row in report["rows"]:
        cells = [row["arm"], str(row["shots"] or "-")]
        if not row["seeds"]:
            cells += ["not run"] + [""] * (2 + len(report["terrains"]))
        else:
            cells += [_interval(row["accuracy"])]
            cells += [_interval(row["difference"], True), row["verdict"]] if "difference" in row else ["", ""]
            cells += [f"{row['recalls'][terrain]['value']:.2f}" for terrain in report["terrains"]]
        lines.append("| " + " | ".join(cells) + " |")
    if report["left_out"]:
        lines += [
            "",
            "## A terrain without one real patch",
            "",
            "`left out`: that terrain is learned from generated patches alone, the others from real patches alone, so "
            "whatever tells generated from real tells it too. `without real`: the others are learned from real and "
            "generated patches. Both stand beside the same k with real patches of the terrain.",
            "",
            "| terrain | trained on | k | its recall | balanced accuracy |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in report["left_out"]:
            known = [_interval(row["recall"]), _interval(row["accuracy"])] if row["recall"] else ["not run", ""]
            lines.append("| " + " | ".join([row["terrain"], row["arm"], str(row["shots"]), *known]) + " |")
    return "\n".join([*lines, "", *report["credit"], ""])


def figure(report: Mapping[str, Any]) -> bytes | None:
    """Return accuracy over k for each arm as PNG; ``None`` where there is nothing to draw."""
    from matplotlib.figure import Figure

    from sar_gen.training.augmentation import PLAIN_ARMS, SHOT_ARMS

    known = [row for row in report["rows"] if row["seeds"]]
    if not any(row["shots"] for row in known):
        return None
    drawn = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = drawn.add_subplot()
    colours = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73")  # Okabe and Ito's, told apart by colour-blind people
    for arm, colour, marker in zip(SHOT_ARMS, colours, "osD^", strict=True):
        rows = [row for row in known if row["arm"] == arm]
        if not rows:
            continue
        x = np.array([row["shots"] for row in rows]) * 1.02 ** (SHOT_ARMS.index(arm) - 1.5)
        y = np.array([row["accuracy"]["value"] for row in rows])
        low, high = (
            np.array([row["accuracy"]["value" if row["accuracy"][end] is None else end] for row in rows])
            for end in ("low", "high")
        )
        axes.errorbar(x, y, [y - low, high - y], label=arm, color=colour, marker=marker, capsize=3)
    for arm, style in zip(PLAIN_ARMS, (":", "-.", "--"), strict=True):
        rows = [row for row in known if row["arm"] == arm]
        if rows:
            axes.axhline(rows[0]["accuracy"]["value"], color="#7a7a7a", linestyle=style, label=arm)
    axes.axhline(report["chance"], color="#bbbbbb", linewidth=0.8)
    shots = sorted({row["shots"] for row in known if row["shots"]})
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.minorticks_off()
    axes.set_xlabel("real patches a class")
    axes.set_ylabel("balanced accuracy on real patches")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _facts(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{report['done']} of {report['wanted']} trainings are done; {report['seeds']} seeds, mean and 95 % interval "
        f"(Student's, over seeds). Chance is {report['chance']:.2f}. The last columns are the recalls."
    ]
    counts = report["counts"]
    if counts:
        for name, words in (
            ("real", "Real patches to draw from"),
            ("generated", "Generated patches"),
            ("test", "Real patches that are scored"),
        ):
            listed = ", ".join(f"{terrain} {count}" for terrain, count in counts[name].items())
            lines.append(f"{words}: {listed}.")
    if report["real_known"]:
        lines.append(
            f"The generator itself was trained on {report['real_known']:,} real patches, so the arms with generated "
            "patches rest on more real data than k says."
        )
    used = report["classifier"]
    lines.append(
        f"Classifier: ResNet, widths {', '.join(map(str, used['widths']))}, {used['steps']} steps of {used['batch']} "
        f"patches whatever it is given, {used['looks']} x {used['looks']} pixels joined."
    )
    return [part for line in lines for part in (line, "")][:-1]


def _against(accuracy: Mapping[int, float], real: Mapping[int, float]) -> dict[str, Any]:
    """Return the difference to ``real``, paired by seed."""
    both = sorted(set(accuracy) & set(real))
    if not both:
        return {}
    difference = mean_of([accuracy[seed] - real[seed] for seed in both])
    return {"difference": difference.to_json(), "verdict": verdict(difference)}


def _accuracies(results: Mapping[Trial, Sequence[float]], arm: str, shots: int) -> dict[int, float]:
    return {seed: float(np.mean(recalls)) for seed, recalls in _by_seed(results, arm, shots).items()}


def _by_seed(results: Mapping[Trial, Sequence[float]], arm: str, shots: int) -> dict[int, Sequence[float]]:
    return {trial.seed: recalls for trial, recalls in results.items() if (trial.arm, trial.shots) == (arm, shots)}


def _interval(mean: Mapping[str, Any], signed: bool = False) -> str:
    sign = "+" if signed else ""
    if mean["low"] is None:
        return f"{mean['value']:{sign}.3f}"
    return f"{mean['value']:{sign}.3f} ({mean['low']:{sign}.3f} to {mean['high']:{sign}.3f})"
