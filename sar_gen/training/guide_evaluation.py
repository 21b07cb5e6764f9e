"""How a guide is followed, measured on held-out pairs through the engine: `python -m sar_gen guides measure`.

For each kind of guide and each held-out place four pictures are set beside the real SAR of that place: guided by the
guide of the place, not guided, and guided by the guide of another place (the shuffled baseline), all of one seed.

- ``low_pass``: Pearson correlation with the real SAR of the place after a Gaussian of ``LOW_PASS`` pixels.
- ``edges``: the same of the gradient's magnitude after a Gaussian of ``EDGES`` pixels.
- for maps, ``iou``: intersection over union of water, urban and all other ground between the map and a classification
  of the SAR image, summed over the places. The classifier (Gaussian laws of three local features, fitted on real SAR
  and maps of the training split) is far from perfect, so the real SAR of the places is classified as well: what it
  reaches is what following a map can reach.
- amplitude and texture: distances of guided and of unguided patches to the real ones (``quality.report``), and their
  ratio.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from sar_gen import checkpoints
from sar_gen.amplitude import grey_picture, quantise
from sar_gen.conditioning import FINEST, coarse_sar
from sar_gen.engine import Engine
from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.guide_networks import NetworkSpec
from sar_gen.guides import CLASSES, render
from sar_gen.quality.report import compare
from sar_gen.quality.statistics import patch_statistics
from sar_gen.request import Failed, GenerationRequest, Guide, GuideKind, PatchReady
from sar_gen.settings import Settings
from sar_gen.training.config import DataConfig
from sar_gen.training.dataset import Dataset, open_manifest
from sar_gen.training.guide_planes import row_map, row_optical

LOW_PASS = 4.0
EDGES = 2.0
LOCAL = (3.0, 8.0)
"""Standard deviations in pixels of the neighbourhoods that the classifier looks at."""
GROUND = ("water", "urban", "other")
FITTED = 120
"""Training patches that the classifier is fitted on."""
MEASURES = ("wasserstein1", "glcm_contrast", "glcm_homogeneity", "glcm_energy", "glcm_correlation", "enl", "spectrum")
Say = Callable[[str], None]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class KindResult:
    """What was found for one kind of guide.

    Attributes:
        kind: of guide.
        places: number of held-out places.
        correlation: ``{measure: {case: (mean, standard error)}}``, cases ``guided``, ``unguided``, ``shuffled``.
        iou: for maps, ``{case: {ground: IoU}}``, with the case ``real``; empty for other kinds.
        distances: ``{measure: {case: distance to the real patches}}``, cases ``guided`` and ``unguided``.
    """

    kind: str
    places: int
    correlation: dict[str, dict[str, tuple[float, float]]]
    iou: dict[str, dict[str, float]]
    distances: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Following:
    """How a network is followed.

    Attributes:
        network: its id.
        checkpoint: that it steered.
        steps: of denoising.
        kinds: what was found by kind.
        sheets: ``{kind: pictures}``, rows of guide, guided, unguided, shuffled and real patch.
    """

    network: str
    checkpoint: str
    steps: int
    kinds: tuple[KindResult, ...]
    sheets: dict[str, list[list[NDArray[np.uint8]]]]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the pictures."""
        return {
            "network": self.network,
            "checkpoint": self.checkpoint,
            "steps": self.steps,
            "kinds": [dataclasses.asdict(kind) for kind in self.kinds],
        }


def measure(
    network: NetworkSpec,
    data: Path,
    settings: Settings,
    *,
    kinds: Sequence[str] | None = None,
    count: int = 32,
    steps: int | None = None,
    split: str = "reference",
    say: Say = lambda _: None,
) -> Following:
    """Measure how a network is followed.

    Args:
        network: of layout ``studio`` or ``picture``.
        data: prepared data set with optical halves.
        settings: catalogue and device.
        kinds: to measure; ``None`` is all that it reads.
        count: places.
        steps: of denoising; ``None`` is the checkpoint's.
        split: of the data that the places are from.
        say: told how it goes.

    Raises:
        InputError: a kind that it does not read, or data without optical halves.
        SarGenError: generation failed.
    """
    chosen = list(kinds or [kind for kind in ("map", "optical", "sar") if kind in network.kinds])
    for kind in chosen:
        if kind not in network.kinds:
            raise InputError(f"{network.title} does not read {kind!r}; it reads {', '.join(network.kinds)}.")
    spec = checkpoints.resolve(checkpoints.catalogue(settings), network.base)
    places = open_manifest(DataConfig(manifest=data, split=split), spec.resolution, 0)
    numbers = spread([row.terrain or row.polarisation or "" for row in places.rows], count)
    real = [places.crops([number])[0] for number in numbers]
    maps = Maps(places, settings.home / "maps")
    classifier = None
    if "map" in chosen:
        say("Fitting the classifier of water and urban ground on real SAR.")
        train = open_manifest(DataConfig(manifest=data, split="train"), spec.resolution, 0)
        own = spread([row.terrain or row.polarisation or "" for row in train.rows], FITTED)
        classifier = fit_ground(train, own, Maps(train, settings.home / "maps"))
    engine = Engine(settings)
    found, sheets = [], {}
    try:

        def make(text: str, numbers: Sequence[int], guides: Sequence[Guide | None]) -> list[Values]:
            made = []
            for i, (number, guide) in enumerate(zip(numbers, guides, strict=True)):
                say(f"{text}: {i + 1} of {len(numbers)}")
                row = places.rows[number]
                request = GenerationRequest(
                    row.captions[0] if row.captions else "a SAR image",
                    checkpoint=spec.id,
                    seed=1000 + i,
                    steps=steps,
                    guides=() if guide is None else (guide,),
                )
                made.append(only_patch(engine, request))
            return made

        unguided = make("without a guide", numbers, [None] * len(numbers))
        for kind in chosen:
            guides = [guide_of(places, number, kind, maps, network.id) for number in numbers]
            others = [*guides[1:], guides[0]]
            cases = {
                "guided": make(f"{kind}: its own guide", numbers, guides),
                "unguided": unguided,
                "shuffled": make(f"{kind}: another place's guide", numbers, others),
            }
            drawn = [maps(number) for number in numbers] if kind == "map" else []
            found.append(judged(kind, cases, real, drawn, [places.rows[n] for n in numbers], classifier))
            sheets[kind] = [
                [guide.image, *(grey(cases[case][i]) for case in cases), grey(real[i])]
                for i, guide in enumerate(guides)
            ]
        identity = engine.identity()
    finally:
        engine.close()
    return Following(network.id, str(identity["checkpoint"]), steps or spec.steps, tuple(found), sheets)


def spread(labels: Sequence[str], count: int) -> list[int]:
    """Return up to ``count`` places, as many of each label as can be, evenly spread over those of a label."""
    by_label: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        by_label.setdefault(label, []).append(place)
    chosen: list[int] = []
    left = count
    for i, label in enumerate(sorted(by_label, key=lambda name: len(by_label[name]))):
        own = by_label[label]
        take = min(len(own), left // (len(by_label) - i))
        chosen += [own[k * len(own) // take] for k in range(take)]
        left -= take
    return sorted(chosen)


class Maps:
    """Class maps of a data set's patches, made of their optical pictures once."""

    def __init__(self, data: Dataset, folder: Path) -> None:
        self._data, self._folder = data, folder
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, number: int) -> NDArray[np.uint8]:
        """Return the class map of a patch's centre crop, ``(height, width)`` uint8."""
        return row_map(
            self._data.rows[number], self._data.folder, self._folder, self._data.crop_sizes()[number], self._kept
        )

    def optical(self, number: int) -> Values:
        """Return the optical grey of a patch's centre crop, ``(height, width)`` in [0, 1]."""
        return row_optical(self._data.rows[number], self._data.folder, self._data.crop_sizes()[number], self._kept)


def guide_of(data: Dataset, number: int, kind: str, maps: Maps, way: str) -> Guide:
    """Return the guide of a place as a user would give it: 8-bit pictures."""
    if kind == "map":
        image = render(maps(number))
    elif kind == "optical":
        image = np.repeat(np.rint(maps.optical(number) * 255).astype(np.uint8)[..., None], 3, axis=2)
    else:
        amplitude = data.crops([number])[0]
        small = max(1, amplitude.shape[0] // FINEST), max(1, amplitude.shape[1] // FINEST)
        image = grey_picture(coarse_sar(amplitude, small, 1))
    known: GuideKind = kind  # type: ignore[assignment]
    return Guide(known, image, data.rows[number].key, way=way)


def only_patch(engine: Engine, request: GenerationRequest) -> Values:
    """Return the one patch of a request.

    Raises:
        SarGenError: it failed.
    """
    patch: Values | None = None
    for event in engine.generate(request, previews=False):
        if isinstance(event, Failed):
            raise SarGenError(event.message)
        if isinstance(event, PatchReady):
            patch = event.amplitude
    assert patch is not None
    return patch


def judged(
    kind: str,
    cases: Mapping[str, Sequence[Values]],
    real: Sequence[Values],
    maps: Sequence[NDArray[np.uint8]],
    rows: Sequence[Any],
    classifier: Mapping[str, Ground] | None,
) -> KindResult:
    """Measure the cases of one kind of guide against the real SAR of the places."""
    correlation = {
        name: {
            case: mean_and_error([function(a, b) for a, b in zip(made, real, strict=True)])
            for case, made in cases.items()
        }
        for name, function in (("low_pass", low_pass_correlation), ("edges", edge_correlation))
    }
    iou: dict[str, dict[str, float]] = {}
    if maps and classifier is not None:
        wanted = [ground_of(class_map) for class_map in maps]
        for case, made in {**cases, "real": real}.items():
            seen = [classifier[str(row.polarisation)].classify(patch) for row, patch in zip(rows, made, strict=True)]
            iou[case] = dict(zip(GROUND, intersection_over_union(wanted, seen), strict=True))
    statistics = patch_statistics(list(real))
    distances: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for case in ("guided", "unguided"):
        report = compare(patch_statistics(list(cases[case])), statistics, reference_name="held-out places")
        for name in MEASURES:
            value = report.measures[name].value if name in report.measures else None
            if value is not None:
                distances[name][case] = float(value)
    return KindResult(kind, len(real), correlation, iou, distances)


def low_pass_correlation(one: Values, other: Values) -> float:
    """Return the Pearson correlation of two patches after a Gaussian of ``LOW_PASS`` pixels; 0 where one is flat."""
    return correlation_of(gaussian_filter(one, LOW_PASS), gaussian_filter(other, LOW_PASS))


def edge_correlation(one: Values, other: Values) -> float:
    """Return the Pearson correlation of two patches' gradient magnitudes at a scale of ``EDGES`` pixels."""
    return correlation_of(gaussian_gradient_magnitude(one, EDGES), gaussian_gradient_magnitude(other, EDGES))


def correlation_of(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the Pearson correlation of two images; 0 where one is flat."""
    first, second = one - one.mean(), other - other.mean()
    norm = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum()) / norm if norm > 0 else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of values and its standard error."""
    spread_of = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), spread_of / float(np.sqrt(len(values)))


# Water, urban and other ground in SAR ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """A Gaussian law of the local features of each ground, and how often it occurs.

    Attributes:
        means: ``(grounds, features)``.
        covariances: ``(grounds, features, features)``.
        shares: ``(grounds,)`` of the training ground; 0 where a ground does not occur.
    """

    means: NDArray[np.float64]
    covariances: NDArray[np.float64]
    shares: NDArray[np.float64]

    def classify(self, amplitude: Values) -> NDArray[np.uint8]:
        """Return the likeliest ground of each pixel, ``(height, width)`` numbers into ``GROUND``."""
        features = ground_features(amplitude)
        scores = np.full((len(GROUND), *amplitude.shape), -np.inf)
        for ground, share in enumerate(self.shares):
            if share == 0:
                continue
            centred = features - self.means[ground]
            inverse = np.linalg.inv(self.covariances[ground])
            distance = np.einsum("hwi,ij,hwj->hw", centred, inverse, centred)
            # All grounds alike: with their shares of the training ground, water would never be found.
            scores[ground] = -0.5 * (distance + np.linalg.slogdet(self.covariances[ground])[1])
        return scores.argmax(axis=0).astype(np.uint8)


def ground_features(amplitude: Values) -> NDArray[np.float64]:
    """Return local features, ``(height, width, 3)``: log mean amplitude near and wide, log of the local spread."""
    near, wide = (gaussian_filter(amplitude.astype(np.float64), scale) for scale in LOCAL)
    variance = gaussian_filter(amplitude.astype(np.float64) ** 2, LOCAL[0]) - near**2
    return np.stack([np.log(near + 1e-3), np.log(wide + 1e-3), 0.5 * np.log(np.maximum(variance, 1e-7))], axis=-1)


def fit_ground(data: Dataset, numbers: Sequence[int], maps: Callable[[int], NDArray[np.uint8]]) -> dict[str, Ground]:
    """Fit the classifier of each polarisation on real SAR and the maps of its ground."""
    seen: dict[str, list[tuple[NDArray[np.float64], NDArray[np.uint8]]]] = {}
    for number in numbers:
        features = ground_features(data.crops([number])[0])[::4, ::4].reshape(-1, 3)
        ground = ground_of(maps(number))[::4, ::4].ravel()
        seen.setdefault(str(data.rows[number].polarisation), []).append((features, ground))
    return {name: ground_laws(*map(np.concatenate, zip(*pairs, strict=True))) for name, pairs in seen.items()}


def ground_laws(features: NDArray[np.float64], ground: NDArray[np.uint8]) -> Ground:
    """Return the laws of features ``(n, k)`` by ground ``(n,)``."""
    width = features.shape[1]
    means, covariances, shares = np.zeros((len(GROUND), width)), np.tile(np.eye(width), (len(GROUND), 1, 1)), []
    for number in range(len(GROUND)):
        own = features[ground == number]
        shares.append(len(own) / len(ground) if len(own) > width else 0.0)
        if shares[-1]:
            means[number] = own.mean(axis=0)
            covariances[number] = np.cov(own, rowvar=False) + 1e-6 * np.eye(width)
    return Ground(means, covariances, np.array(shares))


def ground_of(class_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return water, urban or other ground of a class map, numbers into ``GROUND``."""
    table = np.full(len(CLASSES), GROUND.index("other"), np.uint8)
    for name in GROUND[:2]:
        table[CLASSES.index(name)] = GROUND.index(name)
    found: NDArray[np.uint8] = table[class_map]
    return found


def intersection_over_union(wanted: Sequence[NDArray[Any]], seen: Sequence[NDArray[Any]]) -> list[float]:
    """Return the IoU of each ground, summed over the maps; NaN where it occurs in neither."""
    found = []
    for number in range(len(GROUND)):
        both = sum(int(((a == number) & (b == number)).sum()) for a, b in zip(wanted, seen, strict=True))
        either = sum(int(((a == number) | (b == number)).sum()) for a, b in zip(wanted, seen, strict=True))
        found.append(both / either if either else float("nan"))
    return found


# Results ---------------------------------------------------------------------------------------------------------


def markdown(found: Following) -> str:
    """Return the tables as Markdown."""
    return "\n".join(_lines(found))


def _lines(found: Following) -> Iterator[str]:
    yield f"`{found.network}` on `{found.checkpoint}`, {found.steps} steps."
    yield ""
    yield "| guide | places | measure | guided | not guided | another place's guide |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for kind in found.kinds:
        for name, title in (("low_pass", "low-pass correlation"), ("edges", "edge correlation")):
            cells = [f"{mean:.2f} ± {error:.2f}" for mean, error in kind.correlation[name].values()]
            yield f"| {kind.kind} | {kind.places} | {title} | {' | '.join(cells)} |"
    for kind in found.kinds:
        if kind.iou:
            yield ""
            yield "| ground | IoU, guided | not guided | another place's map | real SAR | guided / real |"
            yield "| --- | --- | --- | --- | --- | --- |"
            for ground in GROUND:
                values = [kind.iou[case][ground] for case in ("guided", "unguided", "shuffled", "real")]
                share = values[0] / values[-1] if values[-1] else float("nan")
                yield f"| {ground} | {' | '.join(f'{value:.2f}' for value in values)} | {share:.2f} |"
    yield ""
    yield "| guide | distance to real SAR | guided | not guided | ratio |"
    yield "| --- | --- | --- | --- | --- |"
    for kind in found.kinds:
        for name, found_by in kind.distances.items():
            if {"guided", "unguided"} <= found_by.keys():
                guided, plain = found_by["guided"], found_by["unguided"]
                ratio = guided / plain if plain else float("inf")
                yield f"| {kind.kind} | {name} | {guided:.4g} | {plain:.4g} | {ratio:.2f} |"


def write(found: Following, folder: Path) -> None:
    """Write ``following.json``, ``following.md`` and a sheet of pictures a kind.

    Raises:
        SarGenError: the folder cannot be written.
    """
    write_atomic(folder / "following.json", json.dumps(found.to_json(), indent=1).encode())
    write_atomic(folder / "following.md", (markdown(found) + "\n").encode())
    for kind, rows in found.sheets.items():
        buffer = io.BytesIO()
        sheet(rows[:: max(1, len(rows) // 8)][:8]).save(buffer, "png")
        write_atomic(folder / f"following-{kind}.png", buffer.getvalue())


def sheet(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> Image.Image:
    """Return pictures in rows: guide, guided, not guided, another place's guide, real."""
    height, width = rows[0][-1].shape[:2]
    gap = 4
    canvas = Image.new("RGB", (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            image = Image.fromarray(picture).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(image, (j * (width + gap), i * (height + gap)))
    return canvas


def grey(amplitude: Values) -> NDArray[np.uint8]:
    """Return a patch as an 8-bit view."""
    return quantise(amplitude)
