"""The one file that SAR-CLIP is trained from: SAR images, splits and facts; the optical images are used up on the way.

``prepare`` reads ``s1_pairs.csv`` and ``s1_scenes.csv`` with the images that they name (the layout is that of
``sar_gen.reference_statistics``), derives every patch's facts (``captions``) and writes one ``.npz``:

- ``images``: uint8, the SAR files as they are (JPEG, PNG), one after the other; ``offsets``: int64, where each begins;
- ``records``: uint8, JSON: ``{"patches": [...], "limits": {...}}``.

Splits go by ground, never by patch. ``reference`` is the CSV's own and is never trained on; ``validation``, for early
stopping, is some overlap groups of its ``train`` part. VH scenes are held out whole.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.amplitude import S1_VH, normalise
from sar_gen.errors import InputError
from sar_gen.files import write_atomic
from sar_gen.reference_statistics import Pair, pair_amplitude, read_pairs, read_rows
from sar_gen.training.captions import Thresholds, facts, optical_fractions, sar_descriptors, thresholds

SIDE = 256
STEP = 128
"""Crops of scenes overlap by half, as the patches of SEN1-2 do."""
REFERENCE_SCENES = ("073", "161")
VALIDATION_SCENES = ("187",)
VALIDATION_SHARE = 0.2
"""Share of each terrain's overlap groups that is kept for validation."""
LARGE_GROUP = 0.15
"""A group with more than this share of a terrain's patches is trained on: some terrains come mostly from one place."""
SOURCES = ("pairs", "scenes")


@dataclass(frozen=True)
class Record:
    """One patch.

    Attributes:
        name: of the patch.
        image: number of the image in the file.
        top: of the crop in the image.
        left: of the crop in the image.
        split: ``train``, ``validation`` or ``reference``.
        group: patches of one group share ground.
        terrain: label, empty for a crop of a scene.
        polarisation: ``VV`` or ``VH``.
        water: fraction of the ground.
        built_up: fraction of the ground.
        brightness: dB.
        roughness: dB.
        facts: of ``captions.FACTS``, 1 true, 0 false, -1 unknown.
    """

    name: str
    image: int
    top: int
    left: int
    split: str
    group: str
    terrain: str
    polarisation: str
    water: float
    built_up: float
    brightness: float
    roughness: float
    facts: dict[str, int]


@dataclass(frozen=True)
class TrainingData:
    """What ``load`` returns: the source's grey, uint8 ``(n, 256, 256)``, and the records in that order."""

    grey: NDArray[np.uint8]
    records: list[Record]

    def amplitudes(self, indices: Sequence[int]) -> list[NDArray[np.float32]]:
        """Return the studio's amplitude of these patches."""
        return [amplitude_of(self.grey[i], self.records[i].polarisation) for i in indices]

    def indices(self, split: str, polarisation: str | None = None) -> list[int]:
        """Return the places of a split's patches, of one polarisation or of all."""
        return [
            i
            for i, record in enumerate(self.records)
            if record.split == split and polarisation in (None, record.polarisation)
        ]


def amplitude_of(grey: NDArray[np.uint8], polarisation: str) -> NDArray[np.float32]:
    """Return the studio's amplitude of the source's 8-bit grey: decibels in VV, linear in VH."""
    return pair_amplitude(grey) if polarisation == "VV" else normalise(grey, S1_VH)


def prepare(folder: Path, out: Path, seed: int = 0) -> dict[str, Any]:
    """Write the training file and return a summary: patches by split and ground, facts, bytes.

    Args:
        folder: the data.
        out: the ``.npz`` file.
        seed: of the choice of validation groups.

    Raises:
        InputError: the data are incomplete.
        SarGenError: ``out`` cannot be written.
    """
    files: list[bytes] = []
    rows: list[dict[str, Any]] = []
    pairs = read_pairs(folder)
    kept_back = validation_groups(pairs, seed)
    for pair in pairs:
        split = "validation" if pair.split == "train" and pair.group in kept_back else pair.split
        amplitude = pair_amplitude(_pixels(pair.sar, "L"))
        row: dict[str, Any] = {
            "name": pair.sar.stem,
            "top": 0,
            "left": 0,
            "split": split,
            "group": f"pairs-{pair.group}",
        }
        row |= {"image": len(files), "terrain": pair.terrain, "polarisation": "VV"}
        rows.append(row | _described(_pixels(pair.optical, "L"), amplitude))
        files.append(pair.sar.read_bytes())
    for scene in sorted(
        read_rows(folder / "s1_scenes.csv", ("scene", "sar", "optical")), key=lambda row: row["scene"]
    ):
        grey, optical = _pixels(folder / scene["sar"], "L"), _pixels(folder / scene["optical"], "RGB")
        factor = grey.shape[0] // optical.shape[0]
        split = "train"
        if scene["scene"] in REFERENCE_SCENES:
            split = "reference"
        elif scene["scene"] in VALIDATION_SCENES:
            split = "validation"
        for top in range(0, grey.shape[0] - SIDE + 1, STEP):
            for left in range(0, grey.shape[1] - SIDE + 1, STEP):
                crop = normalise(grey[top : top + SIDE, left : left + SIDE], S1_VH)
                ground = optical[top // factor : (top + SIDE) // factor, left // factor : (left + SIDE) // factor]
                name = f"{scene['scene']}-{top}-{left}"
                row = {"name": name, "top": top, "left": left, "split": split, "group": f"scene-{scene['scene']}"}
                row |= {"image": len(files), "terrain": "", "polarisation": "VH"}
                rows.append(row | _described(ground, crop))
        files.append((folder / scene["sar"]).read_bytes())
    limits = _limits(rows)
    for row in rows:
        row["facts"] = facts(
            terrain=row["terrain"] or None,
            polarisation=row["polarisation"],
            water=row["water"],
            built_up=row["built_up"],
            brightness=row["brightness"],
            roughness=row["roughness"],
            limits=limits[row["polarisation"]],
        )
    records = [Record(**row) for row in rows]
    data = {"patches": [asdict(record) for record in records]}
    data["limits"] = {name: limit.to_json() for name, limit in limits.items()}  # type: ignore[assignment]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        images=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
        records=np.frombuffer(json.dumps(data).encode(), np.uint8),
    )
    write_atomic(out, buffer.getvalue())
    return summary(records) | {"bytes": out.stat().st_size, "limits": data["limits"]}


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Return how many patches and groups there are by split, and how many patches have each fact, by split."""
    counts: dict[str, Any] = {}
    for split in ("train", "validation", "reference"):
        chosen = [record for record in records if record.split == split]
        true = Counter(name for record in chosen for name, value in record.facts.items() if value == 1)
        counts[split] = {"patches": len(chosen), "groups": len({record.group for record in chosen})} | dict(true)
    return counts


def validation_groups(pairs: Sequence[Pair], seed: int) -> set[str]:
    """Choose the overlap groups of the ``train`` split that are kept for validation.

    Of each terrain a share of the groups is drawn; groups that hold much of a terrain are never drawn. A group goes
    with all its patches, also those of other terrains.
    """
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in pairs:
        if pair.split == "train":
            groups[pair.terrain][pair.group] += 1
    random = Random(seed)
    large = {
        name
        for counts in groups.values()
        for name, count in counts.items()
        if count > LARGE_GROUP * counts.total() and len(counts) > 1
    }
    chosen: set[str] = set()
    for _, counts in sorted(groups.items()):
        small = sorted(set(counts) - large)
        wanted = round(VALIDATION_SHARE * len(counts)) - len(chosen & set(counts))
        free = [name for name in small if name not in chosen]
        chosen |= set(random.sample(free, max(0, min(wanted, len(free)))))
    return chosen


def load(path: Path) -> TrainingData:
    """Read the file that ``prepare`` wrote.

    Raises:
        InputError: it is missing or something else.
    """
    from PIL import Image

    try:
        with np.load(path, allow_pickle=False) as file:
            images, offsets = file["images"].tobytes(), file["offsets"]
            data = json.loads(file["records"].tobytes())
        records = [Record(**row) for row in data["patches"]]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with `sar_gen.training.sarclip prepare`.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a SAR-CLIP training file ({error}); prepare it again.") from error
    grey = np.empty((len(records), SIDE, SIDE), np.uint8)
    number, pixels = -1, np.empty((0, 0), np.uint8)
    for i, record in enumerate(records):
        if record.image != number:
            number = record.image
            with Image.open(io.BytesIO(images[offsets[number] : offsets[number + 1]])) as image:
                pixels = np.asarray(image.convert("L"))
        grey[i] = pixels[record.top : record.top + SIDE, record.left : record.left + SIDE]
    return TrainingData(grey, records)


def _described(optical: NDArray[np.uint8], amplitude: NDArray[np.float32]) -> dict[str, float]:
    water, built_up = optical_fractions(optical, amplitude, block=16 if optical.ndim == 2 else 8)
    brightness, roughness = sar_descriptors(amplitude)
    return {
        "water": round(water, 4),
        "built_up": round(built_up, 4),
        "brightness": round(brightness, 3),
        "roughness": round(roughness, 3),
    }


def _limits(rows: Sequence[dict[str, Any]]) -> dict[str, Thresholds]:
    """Return the thresholds of each polarisation, from the training patches only."""
    limits = {}
    for polarisation in sorted({row["polarisation"] for row in rows}):
        own = [row for row in rows if row["polarisation"] == polarisation and row["split"] == "train"]
        if not own:
            raise InputError(f"There is no training patch in {polarisation}; bring the whole data folder.")
        limits[polarisation] = thresholds([row["brightness"] for row in own], [row["roughness"] for row in own])
    return limits


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); bring the whole data folder.") from error
