"""A data set of SAR and optical pictures of the same made-up ground, in two terrains: for the foundation."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from sar_gen.training import captions
from sar_gen.training.manifest import PatchRow, write_manifest

LEVELS = {"forest": 0.4, "river": 0.15}
WORDS = ["forest", "river", "image", "optical", "sar", "radar", "water", "trees", "of", "a", "an", "aerial"]


def bag_of_words(texts):
    """A teacher of text whose words have random directions of their own, and a text their sum."""
    rows = []
    for text in texts:
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in captions.words(text)]
        row = sum(np.random.default_rng(seed).standard_normal(24) for seed in seeds or [0])
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, np.float32)


def write_ground(folder: Path, train: int = 6, reference: int = 3, side: int = 64) -> Path:
    """Write the patches of both terrains, two to an overlap group, and return the manifest."""
    random = np.random.default_rng(0)
    rows = []
    (folder / "patches").mkdir(parents=True)
    for terrain, level in LEVELS.items():
        for split, count in (("train", train), ("reference", reference)):
            for i in range(count):
                ground = gaussian_filter(random.standard_normal((side, side)), 4)
                ground = level * np.exp(2 * ground / ground.std() / 4)
                pictures = {
                    "sar": np.clip(ground * np.sqrt(random.gamma(4, 1 / 4, (side, side))), 0, 1),
                    "optical": np.clip(ground + 0.02 * random.standard_normal((side, side)), 0, 1),
                }
                for modality, picture in pictures.items():
                    key = f"{terrain}-{split}-{i}-{modality}"
                    file = f"patches/{key}.png"
                    if modality == "sar":
                        stored = np.rint(picture * 65535).astype(np.uint16)
                        words = (f"a SAR image of {terrain}", f"a radar image of {terrain}")
                    else:
                        stored = np.rint(picture * 255).astype(np.uint8)
                        words = (f"an optical image of {terrain}",)
                    Image.fromarray(stored).save(folder / file)
                    rows.append(
                        PatchRow(
                            key, file, side, side, split, f"{terrain}-{split}-{i // 2}", words, terrain,
                            "VV" if modality == "sar" else None, modality, source=file.removeprefix("patches/"),
                        )
                    )  # fmt: skip
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"
