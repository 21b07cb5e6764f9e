"""Captions that a data set is trained with: from labels, from attributes, or from a vision-language model.

Every caption of a SAR patch says "SAR" (which a learned token takes the place of) and every caption of an optical
picture says what it is, so that the model is told which of the two it is to draw. The facts and their words are those
of ``captions``; what is stated is true of the patch. Bright, dark, rough, smooth and the polarisation belong to the
radar and are never said of an optical picture.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen.errors import InputError, SarGenError
from sar_gen.training.captions import (
    ATTRIBUTES,
    BLOCK,
    FACTS,
    GROUNDS,
    PHRASES,
    POLARISATIONS,
    TERRAINS,
    Thresholds,
    optical_fractions,
)
from sar_gen.training.manifest import Modality

STYLES: dict[Modality, tuple[str, ...]] = {
    "sar": ("a SAR image", "a SAR patch", "a SAR scene", "SAR amplitude"),
    "optical": ("an optical image", "an aerial photograph", "an optical satellite image"),
}
CAPTIONS = 6
"""Captions a patch, the first of them plain."""

_SEEN = ("water", "buildings")  # attributes that an optical picture shows too
_LEAD = re.compile(
    r"^\s*(?:this (?:image )?(?:is|shows)|the (?:image|picture|photo) (?:is|shows|depicts))?\s*"
    r"(?:an?|the)?\s*(?:[\w-]+ ){0,3}?(?:image|photo|photograph|picture|view|shot)\s+(?:of|showing|that shows)\s+",
    re.IGNORECASE,
)


def captions_of(
    known: Mapping[str, int], modality: Modality, seed: str, *, count: int = CAPTIONS, polarised: bool = False
) -> tuple[str, ...]:
    """Return different captions of a patch, the same for the same seed; the first is plain.

    Args:
        known: facts (``captions.FACTS``) as true (1), false (0) or unknown (-1).
        modality: what the caption says that it is of.
        seed: for example the patch's key.
        count: captions at most.
        polarised: every caption states the polarisation, in place of half of them.
    """
    random = Random(f"{modality} {seed}")
    grounds = [name for name in (*TERRAINS, *GROUNDS) if known.get(name) == 1]
    polarisation = next((name for name in POLARISATIONS if known.get(name) == 1), None)
    tail = f", {PHRASES[polarisation][0]}" if polarisation and polarised and modality == "sar" else ""
    plain = STYLES[modality][0] + (f" of {PHRASES[grounds[0]][0]}" if grounds else "") + tail
    found = {plain: None}
    for _ in range(8 * count):  # where little is known, there are few
        if len(found) >= count:
            break
        found[_sentence(known, modality, grounds, polarisation, polarised, random)] = None
    return tuple(found)


def label_captions(
    label: str, polarisation: str | None, seed: str, *, modality: Modality = "sar", count: int = CAPTIONS
) -> tuple[str, ...]:
    """Return captions of a patch of which a label is all that is known: a terrain, or any other words."""
    known = dict.fromkeys(FACTS, -1)
    if polarisation and polarisation.lower() in POLARISATIONS:
        known[polarisation.lower()] = 1
    name = label.strip().lower()
    if name in (*TERRAINS, *GROUNDS):
        return captions_of(known | {name: 1}, modality, seed, count=count)
    tails = ("", f", {polarisation.upper()} polarisation") if polarisation and modality == "sar" else ("",)
    made = [f"{style} of {label.strip()}{tail}" for tail in tails for style in STYLES[modality][:3]]
    return tuple(made[:count])


@dataclass(frozen=True)
class Seen:
    """What the optical picture of a patch shows, as fractions of its ground."""

    water: float
    built_up: float


def optical_attributes(optical: NDArray[np.uint8], amplitude: NDArray[np.float32]) -> Seen:
    """Return what an optical picture shows, by the rules of ``captions.optical_fractions``, meant for 10 to 20 m.

    Built-up ground is found on the picture alone. Water is not: on the ten scenes of ``reference_statistics`` the
    picture alone, smooth, dark and bluish, calls up to 38 % of wooded mountains water. So what it takes for water
    has to be dark to the radar too.

    Args:
        optical: ``(height, width)`` grey or ``(height, width, 3)`` colour, 0 to 255.
        amplitude: the studio's, of the same ground, a whole number of times as fine.
    """
    factor = amplitude.shape[0] // optical.shape[0]
    return Seen(*optical_fractions(optical, amplitude, max(1, BLOCK // factor)))


def attribute_facts(
    *,
    terrain: str | None,
    polarisation: str | None,
    seen: Seen | None,
    brightness: float,
    roughness: float,
    limits: Thresholds,
) -> dict[str, int]:
    """Return the facts of a patch of any sensor and place; what nothing shows stays unknown.

    Args:
        terrain: label, where there is one of ``captions.TERRAINS``.
        polarisation: where it is known.
        seen: on the co-registered optical picture, where there is one.
        brightness: of the SAR patch in dB (``captions.sar_descriptors``).
        roughness: of the SAR patch in dB.
        limits: of the patches of this polarisation (``captions.thresholds``).
    """
    known = dict.fromkeys(FACTS, -1)
    for name in POLARISATIONS:
        if polarisation:
            known[name] = int(name == polarisation.lower())
    if seen is not None:
        known["buildings"] = _between(seen.built_up, 0.03, 0.15)
        known["city"] = _between(seen.built_up, 0.15, 0.5)
        known["water"] = _between(seen.water, 0.01, 0.05)
        known["open water"] = _between(seen.water, 0.2, 0.6)
    if terrain in TERRAINS:
        known |= {name: int(name == terrain) for name in TERRAINS}
        known["open water"] = known["city"] = -1  # the label says the ground
    for low, high, value, edges in (
        ("dark", "bright", brightness, (limits.dark, limits.maybe_dark, limits.maybe_bright, limits.bright)),
        ("smooth", "rough", roughness, (limits.smooth, limits.maybe_smooth, limits.maybe_rough, limits.rough)),
    ):
        known[low] = 1 if value <= edges[0] else -1 if value <= edges[1] else 0
        known[high] = 1 if value >= edges[3] else -1 if value >= edges[2] else 0
    return known


def optical_facts(known: Mapping[str, int]) -> dict[str, int]:
    """Return the facts that an optical picture shares with the SAR patch of the same ground."""
    return {name: value for name, value in known.items() if name in (*TERRAINS, *GROUNDS, *_SEEN)}


@dataclass(frozen=True)
class Labels:
    """What a CSV file says of patches or of the files that they are cut from: terrain or label, captions."""

    terrains: dict[str, str]
    captions: dict[str, tuple[str, ...]]

    def of(self, *names: str) -> tuple[str | None, tuple[str, ...]]:
        """Return label and captions of the first of these names (of the patch, then of its file) that is listed."""
        for name in names:
            if name in self.terrains or name in self.captions:
                return self.terrains.get(name), self.captions.get(name, ())
        return None, ()


def read_labels(path: Path) -> Labels:
    """Read labels: a CSV file with a column ``file``, and ``terrain``, ``caption`` or both.

    ``file`` is the name of a raster, with or without its ending, or of a patch. Several rows of one file give several
    captions.

    Raises:
        InputError: the file or a column is missing, or a file has two terrains.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read ({error}); give a CSV file with the columns file and terrain."
        ) from error
    columns = set(rows[0]) if rows else set()
    if "file" not in columns or not columns & {"terrain", "caption"}:
        raise InputError(f"{path} needs a column 'file', and 'terrain' or 'caption'; add it to its first line.")
    terrains: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for row in rows:
        name = (row["file"] or "").strip()
        terrain, caption = ((row.get(column) or "").strip() for column in ("terrain", "caption"))
        for known in {name, Path(name).stem}:
            if terrain and terrains.setdefault(known, terrain) != terrain:
                raise InputError(f"{path} calls {name} both {terrains[known]!r} and {terrain!r}; keep one.")
            if caption:
                captions.setdefault(known, []).append(caption)
    return Labels(terrains, {name: tuple(dict.fromkeys(texts)) for name, texts in captions.items()})


class VlmCaptioner:
    """Describes pictures with an image-to-text model of transformers: safetensors only, and no code of others.

    Args:
        source: hub id (``owner/name``) or a folder.
        revision: commit, branch or tag on the hub.
        device: torch device.
        prompt: what chat models are asked.

    Raises:
        InputError: there is no such model, or it is of another kind.
    """

    PROMPT = "Describe what is on the ground in this aerial picture in at most twelve words."
    TOKENS = 40

    def __init__(self, source: str, revision: str | None = None, device: str = "cpu", prompt: str = PROMPT) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging

        if not Path(source).expanduser().is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise InputError(
                f"{source} is neither a folder nor a hub id (owner/name); give one of a captioning model."
            )
        where: dict[str, Any] = {"revision": revision} if revision else {}
        logging.disable_progress_bar()
        try:
            self._processor = AutoProcessor.from_pretrained(source, trust_remote_code=False, **where)
            model = AutoModelForImageTextToText.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False, **where
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"{source} cannot be used to caption pictures ({reason}); give another model.") from error
        self._model, self._device, self._prompt = model.to(device).eval(), device, prompt

    def describe(self, picture: NDArray[np.uint8]) -> str:
        """Return what is on a picture, without "an image of" before it; the same picture gives the same words.

        Args:
            picture: ``(height, width)`` grey or ``(height, width, 3)`` colour.

        Raises:
            SarGenError: the model says nothing.
        """
        import torch
        from PIL import Image

        image = Image.fromarray(picture).convert("RGB")
        if getattr(self._processor, "chat_template", None):
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self._prompt}]}]
            text = self._processor.apply_chat_template(turn, add_generation_prompt=True)
            inputs = self._processor(images=image, text=text, return_tensors="pt")
        else:
            inputs = self._processor(images=image, return_tensors="pt")
        inputs = inputs.to(self._device)
        with torch.no_grad():
            made = self._model.generate(**inputs, max_new_tokens=self.TOKENS, do_sample=False)
        start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        text = self._processor.batch_decode(made[:, start:], skip_special_tokens=True)[0]
        words = bare_description(text)
        if not words:
            raise SarGenError("The captioning model says nothing of a picture; choose another model.")
        return words


def bare_description(text: str) -> str:
    """Return a description as it stands after "an image of": its first sentence, without that beginning.

    >>> bare_description("This is an aerial view of green fields beside a river. The fields are small.")
    'green fields beside a river'
    """
    first = re.split(r"[.!?](?=\s|$)", " ".join(text.split()), maxsplit=1)[0]
    words = _LEAD.sub("", first).strip(" ,;:")
    lead = words.split(" ", 1)[0]
    return words if len(lead) > 1 and lead.isupper() else words[:1].lower() + words[1:]


def described(words: str, modality: Modality, polarisation: str | None = None) -> tuple[str, ...]:
    """Return captions of a description of the ground."""
    return label_captions(words, polarisation, words, modality=modality)


def _sentence(
    known: Mapping[str, int],
    modality: Modality,
    grounds: list[str],
    polarisation: str | None,
    polarised: bool,
    random: Random,
) -> str:
    """Put some of the true facts into words."""
    style = random.choice(STYLES[modality])
    radar = modality == "sar"
    attributes = [name for name in (ATTRIBUTES if radar else _SEEN) if known.get(name) == 1]
    ground = random.choice(grounds) if grounds and random.random() < 0.9 else None
    chosen = random.sample(attributes, min(random.choice((0, 1, 1, 2)), len(attributes)))
    text = style
    tails = []
    for name in chosen:
        phrase = random.choice(PHRASES[name])
        if name not in _SEEN and phrase == PHRASES[name][0] and text == style and random.random() < 0.7:
            text = f"a {phrase} {style[2:]}" if style.startswith("a ") else f"{phrase} {style}"
        else:
            tails.append(phrase)
    if ground:
        text += random.choice((" of ", " showing ")) + random.choice(PHRASES[ground])
    if radar and polarisation and (polarised or random.random() < 0.5):
        tails.append(random.choice(PHRASES[polarisation]))
    tails.sort(key=lambda phrase: not phrase.startswith(("with ", "near ")))
    return text + "".join(f" {phrase}" if phrase.startswith(("with ", "near ")) else f", {phrase}" for phrase in tails)


def _between(value: float, low: float, high: float) -> int:
    return 1 if value >= high else -1 if value >= low else 0
