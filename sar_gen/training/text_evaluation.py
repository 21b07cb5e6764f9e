"""Whether text encoders place texts as the teacher does: held-out texts, and scene words outside the captions.

Similarities are cosines of vectors less a mean (of the texts compared, or of the candidates), since the states of a
transformer share a large common part; the teacher's are treated alike. No head is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError
from sar_gen.training import captions
from sar_gen.training.text_corpus import Corpus, Embed
from sar_gen.training.text_model import represent, scales

CLASSES = (*captions.TERRAINS, *captions.GROUNDS)

SCENES: dict[str, tuple[str, ...]] = {
    "harbour town": ("coast", "city", "residential"),
    "woodland": ("forest",),
    "ravine": ("gorge",),
    "orchard": ("agriculture", "forest"),
    "suburb": ("city", "residential"),
    "fjord": ("coast", "gorge", "open water"),
    "jungle": ("forest",),
    "rainforest": ("forest",),
    "pine grove": ("forest",),
    "spruce plantation": ("forest", "agriculture"),
    "timberland": ("forest",),
    "thicket": ("forest", "open land"),
    "conifer stand": ("forest",),
    "birch trees": ("forest",),
    "taiga": ("forest", "open land"),
    "mangrove swamp": ("forest", "coast"),
    "gully": ("gorge", "river"),
    "gulch": ("gorge", "river"),
    "chasm": ("gorge",),
    "alpine valley": ("gorge",),
    "rocky peaks": ("gorge",),
    "steep cliffs": ("gorge", "coast"),
    "mountain ridge": ("gorge",),
    "summit": ("gorge",),
    "escarpment": ("gorge", "open land"),
    "massif": ("gorge",),
    "vineyard": ("agriculture",),
    "wheat": ("agriculture",),
    "rice paddies": ("agriculture",),
    "maize plots": ("agriculture",),
    "ranch": ("agriculture", "open land"),
    "ploughed soil": ("agriculture", "open land"),
    "orange groves": ("agriculture", "forest"),
    "irrigated plain": ("agriculture", "open land"),
    "barley": ("agriculture",),
    "greenhouses": ("agriculture",),
    "pasture": ("agriculture", "open land"),
    "creek": ("river",),
    "brook": ("river",),
    "tributary": ("river",),
    "canal": ("river", "open water"),
    "waterway": ("river", "open water"),
    "oxbow": ("river",),
    "rapids": ("river",),
    "floodplain": ("river", "open land", "agriculture"),
    "estuary": ("river", "coast"),
    "river delta": ("river", "coast"),
    "hamlet": ("residential",),
    "cottages": ("residential",),
    "housing estate": ("residential", "city"),
    "bungalows": ("residential",),
    "neighbourhood": ("residential", "city"),
    "terraced homes": ("residential",),
    "market town": ("residential", "city"),
    "detached homes": ("residential",),
    "lagoon": ("open water", "coast"),
    "reservoir": ("open water",),
    "pond": ("open water",),
    "bay": ("open water", "coast"),
    "strait": ("open water", "coast"),
    "gulf": ("open water", "coast"),
    "deep blue waters": ("open water",),
    "waves": ("open water", "coast"),
    "beach": ("coast",),
    "seaside": ("coast",),
    "harbour": ("coast", "open water"),
    "port": ("coast", "city"),
    "sandy cove": ("coast",),
    "headland": ("coast",),
    "peninsula": ("coast",),
    "seafront promenade": ("coast", "city"),
    "fishing port": ("coast", "open water"),
    "downtown": ("city",),
    "metropolis": ("city",),
    "skyscrapers": ("city",),
    "factories": ("city",),
    "apartment blocks": ("city", "residential"),
    "warehouses": ("city",),
    "business district": ("city",),
    "capital": ("city",),
    "desert": ("open land",),
    "steppe": ("open land",),
    "heath": ("open land",),
    "dunes": ("open land", "coast"),
    "barren plain": ("open land",),
    "savanna": ("open land",),
    "badlands": ("open land", "gorge"),
    "shrubs": ("open land", "forest"),
    "tundra": ("open land",),
    "rocky wasteland": ("open land", "gorge"),
}
"""Scene words and the classes that a reader accepts; those of the captions' own words are shown, but not counted."""


def outside_captions() -> list[str]:
    """Return the keys of ``SCENES`` with a word that no caption holds."""
    known = set(captions.vocabulary())
    return [text for text in SCENES if not set(captions.words(text)) <= known]


def cosines(
    first: NDArray[np.float32], second: NDArray[np.float32], centre: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Return the cosines ``(n, m)`` of two sets of vectors less ``centre`` (the mean of ``second``)."""
    middle = second.mean(0) if centre is None else centre
    sides = [np.asarray(values - middle, np.float64) for values in (first, second)]
    units = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in sides]
    return np.asarray(units[0] @ units[1].T)


def neighbours(
    encoders: tuple[Any, Any],
    tokenizer: Any,
    queries: Sequence[str],
    candidates: Sequence[str],
    output: str = "context",
) -> list[list[tuple[str, float]]]:
    """Return for each query the candidates and their similarities, nearest first.

    Args:
        encoders: both.
        tokenizer: theirs.
        queries: texts.
        candidates: at least two texts; similarities are measured from their mean.
        output: what is compared; a name that ``text_model.represent`` gives.

    Raises:
        InputError: fewer than two candidates.
    """
    if len(candidates) < 2:
        raise InputError("Neighbours are found among two candidates at least; give more.")
    both = represent(encoders, tokenizer, [*queries, *candidates])[output]
    table = cosines(both[: len(queries)], both[len(queries) :])
    return [[(candidates[i], float(row[i])) for i in np.argsort(-row, kind="stable")] for row in table]


def rank_correlation(student: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
    """Return Spearman's correlation of the cosines of all pairs of texts, ``(texts, width)`` of either."""
    from scipy.stats import spearmanr

    pairs = np.triu_indices(len(student), 1)
    found = spearmanr(cosines(student, student)[pairs], cosines(teacher, teacher)[pairs])
    return float(found.statistic)


def class_table(vectors: NDArray[np.float32], prompts: Sequence[int], queries: int) -> NDArray[np.float64]:
    """Return the similarity of queries and classes, ``(queries, classes)``.

    Args:
        vectors: of the prompts of each class in turn, then of ``captions.PROMPTS`` filled with each query in turn.
        prompts: how many each class has.
        queries: how many there are.
    """
    ends = np.cumsum(prompts)
    classes = np.stack([part.mean(0) for part in np.split(vectors[: ends[-1]], ends[:-1])])
    asked = vectors[ends[-1] :].reshape(queries, len(captions.PROMPTS), -1).mean(1)
    return cosines(asked, classes)


def evaluate(
    encoders: tuple[Any, Any], tokenizer: Any, teacher: Embed, corpus: Corpus, *, most: int = 400
) -> dict[str, Any]:
    """Return JSON data: how far the student agrees with the teacher.

    - ``held_out``: Spearman's correlation of pairwise similarities by output, of (at most ``most``) texts of each kind
      in ``Corpus.held_out``.
    - ``classes``: share of the scene words outside the captions whose nearest class is the teacher's
      (``agreement``), and is one that a reader accepts (``accepted``; the teacher's own is ``teacher_accepted``).
    - ``shown``: the nearest classes of some words. ``scales``: see ``text_model.scales``.

    Args:
        encoders: both, in evaluation mode.
        tokenizer: theirs.
        teacher: gives its vectors.
        corpus: what was learned from.
        most: held-out texts of either kind.
    """
    found: dict[str, Any] = {"held_out": {}, "texts": len(corpus.texts)}
    for kind, texts in corpus.held_out.items():
        chosen = list(texts[:: max(1, len(texts) // most)])[:most]
        if len(chosen) < 3:
            continue
        goal = teacher(chosen)
        student = represent(encoders, tokenizer, chosen)
        spearman = {name: round(rank_correlation(values, goal), 4) for name, values in student.items()}
        found["held_out"][kind] = {"texts": len(chosen), "rank_correlation": spearman}
    queries, counted = list(SCENES), set(outside_captions())
    prompts = [captions.class_prompts(name) for name in CLASSES]
    texts_ = [text for part in prompts for text in part]
    texts_ += [template.format(query) for query in queries for template in captions.PROMPTS]
    counts = [len(part) for part in prompts]
    goal_table = class_table(teacher(texts_), counts, len(queries))
    tables = {
        name: class_table(values, counts, len(queries))
        for name, values in represent(encoders, tokenizer, texts_).items()
    }
    rows = [i for i, query in enumerate(queries) if query in counted]
    goal = goal_table.argmax(1)
    found["classes"] = {
        "words": len(rows),
        "teacher_accepted": _share(CLASSES[goal[i]] in SCENES[queries[i]] for i in rows),
        "agreement": {name: _share(table[i].argmax() == goal[i] for i in rows) for name, table in tables.items()},
        "accepted": {
            name: _share(CLASSES[table[i].argmax()] in SCENES[queries[i]] for i in rows)
            for name, table in tables.items()
        },
    }
    learned = set(corpus.texts)
    found["shown"] = {
        query: {
            "in_corpus": query in learned,
            "in_captions": query not in counted,
            "teacher": _nearest(goal_table[i]),
            **{name: _nearest(tables[name][i]) for name in ("context", "text_encoder.end", "text_encoder_2.end")},
            "pooled": _nearest(tables["text_encoder_2.pooled"][i]),
        }
        for i, query in enumerate(queries)
    }
    found["scales"] = {
        name: {key: round(value, 4) for key, value in values.items()}
        for name, values in scales(encoders, tokenizer, texts_[:: max(1, len(texts_) // 64)]).items()
    }
    return found


def summary(evaluation: Mapping[str, Any]) -> str:
    """Return the main figures in one line."""
    parts = []
    for kind, values in evaluation["held_out"].items():
        ranks = values["rank_correlation"]
        parts.append(f"held-out {kind}: context {ranks['context']:.3f}, pooled {ranks['text_encoder_2.pooled']:.3f}")
    classes = evaluation["classes"]
    parts.append(f"nearest class as the teacher's: {classes['agreement']['context']:.2f} of {classes['words']} words")
    return "; ".join(parts)


def _nearest(row: NDArray[np.float64], count: int = 3) -> dict[str, float]:
    return {CLASSES[i]: round(float(row[i]), 3) for i in np.argsort(-row)[:count]}


def _share(right: Any) -> float:
    values = list(right)
    return round(sum(map(bool, values)) / max(1, len(values)), 4)
