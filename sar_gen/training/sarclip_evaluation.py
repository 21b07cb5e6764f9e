"""What SAR-CLIP can do, in numbers: zero-shot accuracy, retrieval, and the scores of right and wrong captions.

Pure functions on features (rows of unit length) and facts; chance levels and baselines stand beside every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.quality.semantic import HeldOut, SarClip, auc
from sar_gen.training.captions import (
    GROUNDS,
    PHRASES,
    PROMPTS,
    TERRAINS,
    Caption,
    agreement,
    caption,
    class_prompts,
)
from sar_gen.training.sarclip_data import Record, TrainingData

BOOTSTRAP = 1000
MIN_PATCHES = 10
"""A ground with fewer held-out patches gets no calibration of its own."""
CALIBRATION_TEMPLATES = PROMPTS[:2]

Features = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Accuracy:
    """Zero-shot classification of ``n`` patches.

    Attributes:
        accuracy: share of the patches whose own class scores highest.
        balanced: mean over classes of the same share.
        interval: 95 % interval of ``accuracy``, bootstrap over groups of shared ground.
        majority: share of the most frequent class: what always answering it would give.
        chance: 1 / number of classes.
        confusion: ``(true, answered)`` counts in the order of the classes.
    """

    accuracy: float
    balanced: float
    interval: tuple[float, float]
    majority: float
    chance: float
    confusion: NDArray[np.int64]


def zero_shot(
    images: Features, classes: Features, labels: NDArray[np.int64], groups: Sequence[str], seed: int = 0
) -> Accuracy:
    """Classify images by the class feature of highest cosine.

    Args:
        images: ``(n, d)``.
        classes: ``(c, d)``.
        labels: ``(n,)`` in [0, c).
        groups: ground of each image, for the interval.
        seed: of the bootstrap.
    """
    count = len(classes)
    answers = np.argmax(images @ classes.T, axis=1)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    per_class = np.diag(confusion)[confusion.sum(axis=1) > 0] / confusion.sum(axis=1)[confusion.sum(axis=1) > 0]
    right = (answers == labels).astype(np.float64)
    _, index = np.unique(np.array(groups), return_inverse=True)
    hits, sizes = np.bincount(index, right), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(BOOTSTRAP, len(sizes)))
    shares = hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return Accuracy(
        accuracy=float(right.mean()),
        balanced=float(per_class.mean()),
        interval=(float(low), float(high)),
        majority=float(np.bincount(labels).max() / len(labels)),
        chance=1 / count,
        confusion=confusion,
    )


def retrieval(
    queries: Features, targets: Features, matches: NDArray[np.bool_], ranks: Sequence[int]
) -> dict[str, Any]:
    """Return recall at ``ranks``: the share of queries with a match among their best targets, beside chance.

    Args:
        queries: ``(n, d)``.
        targets: ``(m, d)``.
        matches: ``(n, m)``, which targets are right for a query; queries without any are left out.
        ranks: for example 1 and 5.
    """
    usable = matches.any(axis=1)
    order = np.argsort(-(queries[usable] @ targets.T), axis=1, kind="stable")
    sorted_matches = np.take_along_axis(matches[usable], order, axis=1)
    found: dict[str, Any] = {"queries": int(usable.sum()), "targets": len(targets)}
    for rank in ranks:
        found[f"recall_at_{rank}"] = round(float(sorted_matches[:, :rank].any(axis=1).mean()), 4)
        found[f"chance_at_{rank}"] = round(float(_chance(matches[usable].sum(axis=1), len(targets), rank).mean()), 4)
    return found


def _chance(right: NDArray[np.int64], total: int, rank: int) -> NDArray[np.float64]:
    """Probability that ``rank`` targets drawn without replacement hold at least one of ``right`` among ``total``."""
    miss = np.ones(len(right))
    for drawn in range(min(rank, total)):
        miss *= np.maximum(total - right - drawn, 0) / (total - drawn)
    return 1 - miss


def fixed_captions(records: Sequence[Record], seed: int) -> list[Caption]:
    """Return one caption a record, the same for the same seed."""
    return [caption(record.facts, Random(f"{seed}-{record.name}")) for record in records]


def class_features(model: SarClip, names: Sequence[str], polarisation: str) -> NDArray[np.float32]:
    """Return one unit feature a ground: the mean over its plain prompts, with and without the polarisation."""
    rows = []
    for name in names:
        texts = class_prompts(name) + class_prompts(name, polarisation)
        mean = model.text_features(texts).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


def evaluate(model: SarClip, data: TrainingData, split: str = "reference", seed: int = 0) -> dict[str, Any]:
    """Measure a model on the patches of one split, which it was not trained on.

    Returns:
        JSON data: ``zero_shot`` (VV terrains), ``zero_shot_vh`` (grounds of the scenes), ``retrieval`` in both
        directions with matches by class and by all facts of a caption, and ``calibration``: for the VV terrains
        together (``vv``), the VH grounds together (``vh``) and each of them with enough patches, 101 quantiles of the
        scores of right and wrong plain prompts, with the probability that right is above wrong (``auc``).
    """
    found: dict[str, Any] = {"split": split, "calibration": {}}
    vv = data.indices(split, "VV")
    if vv:
        images = model.image_features(data.amplitudes(vv))
        records = [data.records[i] for i in vv]
        labels = np.array([TERRAINS.index(record.terrain) for record in records])
        found["zero_shot"] = _zero_shot(model, images, labels, records, TERRAINS, "VV", seed)
        found["retrieval"] = _retrieval(model, images, labels, records, seed)
        found["calibration"] |= _calibration(model, images, records, TERRAINS, "vv")
    vh = data.indices(split, "VH")
    if vh:
        images = model.image_features(data.amplitudes(vh))
        records = [data.records[i] for i in vh]
        true = np.array([[record.facts[name] == 1 for name in GROUNDS] for record in records])
        one = true.sum(axis=1) == 1
        if one.any():
            present = [i for i in range(len(GROUNDS)) if true[one, i].any()]
            labels = np.array([present.index(int(np.argmax(row))) for row in true[one]])
            chosen = [record for record, keep in zip(records, one, strict=True) if keep]
            names = [GROUNDS[i] for i in present]
            found["zero_shot_vh"] = _zero_shot(model, images[one], labels, chosen, names, "VH", seed)
        found["calibration"] |= _calibration(model, images, records, GROUNDS, "vh")
    return found


def held_out(model: SarClip, data: TrainingData, split: str = "reference") -> HeldOut:
    """Return the features of a split's patches, by which scores are read."""
    chosen = data.indices(split)
    return HeldOut(model.image_features(data.amplitudes(chosen)), tuple(data.records[i].facts for i in chosen))


def _zero_shot(
    model: SarClip,
    images: Features,
    labels: NDArray[np.int64],
    records: Sequence[Record],
    names: Sequence[str],
    polarisation: str,
    seed: int,
) -> dict[str, Any]:
    groups = [record.group for record in records]
    result = zero_shot(images, class_features(model, names, polarisation), labels, groups, seed)
    return {
        "classes": list(names),
        "patches": len(records),
        "groups": len(set(groups)),
        "accuracy": round(result.accuracy, 4),
        "interval_95": [round(value, 4) for value in result.interval],
        "balanced_accuracy": round(result.balanced, 4),
        "majority_baseline": round(result.majority, 4),
        "chance": round(result.chance, 4),
        "confusion": result.confusion.tolist(),
    }


def _retrieval(
    model: SarClip, images: Features, labels: NDArray[np.int64], records: Sequence[Record], seed: int
) -> dict[str, Any]:
    captions = fixed_captions(records, seed)
    texts = model.text_features([entry.text for entry in captions])
    terrain = np.array([next((t for t in TERRAINS if t in entry.stated), "") for entry in captions])
    by_class = np.array(TERRAINS)[labels][:, None] == terrain[None]
    by_facts = np.array([[agreement(record.facts, entry.stated) == 1 for entry in captions] for record in records])
    named = terrain != ""
    return {
        "image_to_text_class": retrieval(images, texts[named], by_class[:, named], (1, 5)),
        "text_to_image_class": retrieval(texts[named], images, by_class[:, named].T, (1, 5)),
        "image_to_text_facts": retrieval(images, texts, by_facts, (1, 5)),
        "text_to_image_facts": retrieval(texts, images, by_facts.T, (1, 5)),
    }


def _calibration(
    model: SarClip, images: Features, records: Sequence[Record], names: Sequence[str], polarisation: str
) -> dict[str, Any]:
    """Score every patch with plain prompts of every ground that is surely right or surely wrong for it."""
    right: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    wrong: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    patches = dict.fromkeys(names, 0)
    for name in names:
        texts = [template.format(phrase) for phrase in PHRASES[name] for template in CALIBRATION_TEMPLATES]
        texts += [f"{text}, {polarisation.upper()} polarisation" for text in texts]
        scores = images @ model.text_features(texts).T
        truth = np.array([record.facts[name] for record in records])
        right[name].append(scores[truth == 1].ravel())
        wrong[name].append(scores[truth == 0].ravel())
        patches[name] = int((truth == 1).sum())
    found = {}
    groups = {polarisation: list(names), **{name: [name] for name in names}}
    for key, members in groups.items():
        good = np.concatenate([part for name in members for part in right[name]])
        bad = np.concatenate([part for name in members for part in wrong[name]])
        count = sum(patches[name] for name in members)
        if count < MIN_PATCHES or not bad.size:
            continue
        found[key] = {
            "patches": count,
            "auc": round(auc(good, bad), 4),
            "right": _quantiles(good),
            "wrong": _quantiles(bad),
        }
    return found


def _quantiles(scores: NDArray[Any]) -> list[float]:
    return [round(float(value), 4) for value in np.quantile(scores, np.linspace(0, 1, 101))]
