"""Whether a patch shows what the prompt says: agreement of SAR-CLIP's image and text features.

SAR-CLIP is a small CLIP (Radford et al. 2021, arXiv 2103.00020) that ``sar_gen.training.sarclip`` trains on real
Sentinel-1 patches. A score is the cosine of two unit features. A cosine says little by itself, and each wording shifts
it, so the features of real held-out patches ship with the weights (``held-out.safetensors``), with what is known of
them: the same prompt is scored with those that it is right for and those that it is wrong for, and a score is read as
its percentile among both. Where too few of them fit, the card's (``sar-clip.toml``) scores of plain captions serve.

torch, transformers and tokenizers are imported when a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import tomllib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sar_gen import folders, hub
from sar_gen.errors import InputError
from sar_gen.files import sha256_of, write_atomic
from sar_gen.quality.report import Measure, Spread
from sar_gen.settings import Settings
from sar_gen.training.captions import GROUNDS, POLARISATIONS, TERRAINS, agreement, stated_facts, words
from sar_gen.weights import PICKLE_SUFFIXES, choose_weights, read_header, weight_files

FOLDER = "sar-clip"
CARD = "sar-clip.toml"
"""Not ``card.toml``: that name marks a checkpoint that generates."""

HELD_OUT = "held-out.safetensors"
MIN_RIGHT = 10
"""With fewer held-out patches that a prompt is right for, it is read by the card's scores."""

SIDE = 224
"""Side in pixels of the squares that the image tower sees: a 256-pixel patch is seen as four that overlap."""
LOOKS = 2
"""Each ``LOOKS`` x ``LOOKS`` pixels are averaged in intensity first (multilooking): the tower sees 112 x 112."""
NOISE_FLOOR = 1e-3
"""Added to intensity before the logarithm: -30 dB under amplitude 1."""
ROUGHNESS_WINDOW = 7
CHANNELS = 2
MIN_SIDE = 64
MAX_TILES = 8
"""Squares along one side; a larger patch is sampled by squares that are evenly spaced."""
BATCH = 64
BATCH_CPU = 16
"""Squares that go through the image tower together. On a CPU what lies between its layers should fit the cache, and in
memory that the allocator gives out again: a patch takes 0.21 s of one core with 16, 0.29 s with 64."""
REMEMBERED = 4096
"""Patches whose features are kept, so that a prompt and a set are judged by one pass (2 MB)."""
WEAK_AUC = 0.75
"""Under it, a report says how often real patches are misread."""
UNKNOWN = "[unk]"
NOT_SAR_TRAINED = "not SAR-trained"
STOP_WORDS = frozenset(
    words(
        "a an and are as at be by for from has in into is it its of on or over seen showing taken that the there this "
        "to under with"
    )
)
"""Not reported when they are unknown: they carry no meaning that a patch could show."""


@dataclass(frozen=True)
class Scores:
    """Scores of held-out real patches with right and with wrong captions, as evenly spaced quantiles, 0 to 100 %.

    Attributes:
        right: of right captions.
        wrong: of wrong captions.
        patches: that have right captions here.
        auc: probability that a right caption scores higher than a wrong one; 0.5 is guessing.
        one_prompt: whether all captions were the same prompt (else wordings differ, and shift the scores).
    """

    right: tuple[float, ...]
    wrong: tuple[float, ...]
    patches: int
    auc: float
    one_prompt: bool = False

    def percentiles(self, score: float) -> tuple[float, float]:
        """Return the percentile, 0 to 100, of a score among the right and among the wrong captions."""
        return _percentile(score, self.right), _percentile(score, self.wrong)


@dataclass(frozen=True)
class HeldOut:
    """Unit features ``(n, d)`` of real patches that the model was not trained on, and their ``captions.facts``."""

    features: NDArray[np.float32]
    facts: tuple[Mapping[str, int], ...]


@dataclass(frozen=True)
class PromptAgreement:
    """How far patches show what the prompt says.

    Attributes:
        measure: for ``report.compare``: 1 - mean cosine, so that less is better, beside what real patches score.
        scores: ``(n,)`` cosine of each patch with the prompt.
        right_percentile: of the mean score among the right captions of real patches, 0 to 100; ``None`` uncalibrated.
        wrong_percentile: of the mean score among the wrong ones.
        calibrated_on: whose scores it was read by, in words.
        calibration: these scores, to be drawn; ``None`` where there are none.
        unknown_words: words of the prompt that the model has never seen.
        text: one sentence.
        notes: what limits it.
    """

    measure: Measure
    scores: NDArray[np.float32]
    right_percentile: float | None
    wrong_percentile: float | None
    calibrated_on: str
    unknown_words: tuple[str, ...]
    text: str
    notes: tuple[str, ...]
    calibration: Scores | None = None


@dataclass(frozen=True)
class SarClip:
    """A loaded CLIP and how to use it.

    Attributes:
        name: title of the weights.
        sar_trained: whether it was trained on SAR.
        label: ``name``, and that it is not SAR-trained where that is so.
        calibration: ``{ground or polarisation: Scores}``; empty where there is none.
        card: ``sar-clip.toml`` as it is.
        model: transformers ``CLIPModel`` in float32.
        tokenizer: tokenizers ``Tokenizer``.
        device: torch device of the model.
        mean: of the channels of a general CLIP's input.
        std: of the same.
        held_out: real patches to read scores by, if they ship with the weights.
        weights: SHA-256 of the weights file (of several, of their hashes): features belong to it.
    """

    name: str
    sar_trained: bool
    calibration: Mapping[str, Scores]
    card: Mapping[str, Any]
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    device: str = "cpu"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    held_out: HeldOut | None = field(default=None, repr=False)
    weights: str = ""
    _known: OrderedDict[bytes, NDArray[np.float32]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The name, with a warning where the model has never seen SAR."""
        return self.name if self.sar_trained else f"{self.name} ({NOT_SAR_TRAINED})"

    @property
    def own_input(self) -> bool:
        """Whether the image tower takes ``sar_pixels`` (else pictures, as a general CLIP)."""
        return bool(self.card)

    def image_features(self, amplitudes: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Return unit features ``(n, d)`` of patches of any size from ``MIN_SIDE`` on.

        A patch is cut into squares of ``SIDE`` that cover it evenly; their features are averaged. One with a side
        under ``SIDE`` is continued by its mirror image. Features of the last ``REMEMBERED`` patches are kept.

        Args:
            amplitudes: ``(height, width)`` each, the studio's linear amplitude.

        Raises:
            InputError: a patch is not a finite 2-D array, or smaller than ``MIN_SIDE``.
        """
        rows = [np.zeros((0, int(self.model.config.projection_dim)), np.float32)]
        for first in range(0, len(amplitudes), BATCH):
            patches = [_checked(amplitude) for amplitude in amplitudes[first : first + BATCH]]
            # Features are kept of weights that are known only: those in training change.
            rows.append(self._remembered(patches) if self.weights else self._features(patches))
        return np.concatenate(rows)

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features ``(n, d)`` of texts; what is longer than the text tower reads is left out."""
        import torch

        if not texts:
            return np.zeros((0, int(self.model.config.projection_dim)), np.float32)
        ids = token_ids(self.tokenizer, texts, int(self.model.config.text_config.max_position_embeddings))
        with torch.inference_mode():
            found = [text_embedding(self.model, torch.from_numpy(ids[i : i + 256]).to(self.device)).cpu().numpy()
                     for i in range(0, len(ids), 256)]  # fmt: skip
        return _unit(np.concatenate(found))

    def score(self, amplitudes: Sequence[NDArray[Any]], prompt: str) -> NDArray[np.float32]:
        """Return the cosine of each patch with the prompt, ``(n,)`` in [-1, 1]."""
        scores: NDArray[np.float32] = self.image_features(amplitudes) @ self.text_features([prompt])[0]
        return scores

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Return the words of a prompt that the model has never seen; a general CLIP spells any word."""
        if self.tokenizer.token_to_id(UNKNOWN) is None:
            return ()
        found = [w for w in words(prompt) if self.tokenizer.token_to_id(w) is None and w not in STOP_WORDS]
        return tuple(dict.fromkeys(found))

    def _remembered(self, patches: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        keys = [hashlib.sha256(str(patch.shape).encode() + patch.tobytes()).digest() for patch in patches]
        with self._lock:
            known = {key: self._known[key] for key in keys if key in self._known}
        new = {key: patch for key, patch in zip(keys, patches, strict=True) if key not in known}
        if new:
            known |= dict(zip(new, self._features(list(new.values())), strict=True))
        with self._lock:
            self._known.update((key, known[key]) for key in new)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return np.stack([known[key] for key in keys])

    def _features(self, patches: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        import torch

        tiles: list[NDArray[np.float32]] = []
        owners: list[int] = []
        features: list[Any] = []
        batch = BATCH_CPU if self.device == "cpu" else BATCH

        def flush() -> None:
            if tiles:
                features.append(self._tile_features(torch.from_numpy(np.stack(tiles))))
                tiles.clear()

        for number, patch in enumerate(patches):
            for tile in tiles_of(patch):
                tiles.append(tile)
                owners.append(number)
                if len(tiles) == batch:
                    flush()
        flush()
        sums = np.zeros((len(patches), int(self.model.config.projection_dim)), np.float64)
        if owners:
            np.add.at(sums, np.array(owners), np.concatenate(features))
        return _unit(sums)

    def _tile_features(self, tiles: Any) -> NDArray[np.float64]:
        import torch

        with torch.inference_mode():
            tiles = tiles.to(self.device)
            pixels = sar_pixels(tiles) if self.own_input else self._picture(tiles)
            return _unit(image_embedding(self.model, pixels).float().cpu().numpy().astype(np.float64))

    def _picture(self, tiles: Any) -> Any:
        """Return a decibel view (-30 to 0 dB as black to white), in the size and channels of a general CLIP."""
        import torch
        from torch.nn import functional

        view = 1 + torch.log10(tiles.square() + NOISE_FLOOR) / 3
        side = int(self.model.config.vision_config.image_size)
        sized = functional.interpolate(view[:, None], (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=tiles.device).view(shape)
        return (sized - mean) / torch.tensor(self.std, device=tiles.device).view(shape)


def load_sarclip(
    source: str | Path | None = None,
    settings: Settings | None = None,
    *,
    device: str = "cpu",
    revision: str | None = None,
    sar_trained: bool | None = None,
) -> SarClip:
    """Load SAR-CLIP, or another CLIP in the layout of transformers; only safetensors, and no foreign code.

    Args:
        source: folder, or ``owner/name`` on the hub; ``None`` is the one that ships with the studio.
        settings: where that is.
        device: torch device; the model is small enough for the CPU.
        revision: commit, branch or tag on the hub.
        sar_trained: what to say of weights that carry no ``sar-clip.toml``; ``None`` calls them not SAR-trained.

    Raises:
        InputError: no such folder or repository, not a CLIP, pickled or damaged weights.
        SarGenError: the hub cannot be reached.
    """
    settings = settings or Settings.from_env()
    if source is None:
        folder, name = settings.checkpoints / FOLDER, "SAR-CLIP"
        if not weight_files(folder):
            raise InputError(
                f"SAR-CLIP is not in {folder}; bring the whole folder, or train it (sar_gen.training.sarclip)."
            )
    elif Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
        name = folder.name
    elif isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        folder, name = _from_hub(source, revision), source
    else:
        raise InputError(f"{source} is neither a folder nor a hub id (owner/name); give one that holds a CLIP model.")
    return _load_folder(folder, name, device, sar_trained)


def prompt_agreement(
    amplitudes: Sequence[NDArray[Any]],
    prompt: str,
    model: SarClip,
    *,
    polarisation: str | None = None,
    reference: Sequence[NDArray[Any]] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> PromptAgreement:
    """Score patches against the prompt, and read the score by what real patches do.

    The measure is ``1 - mean cosine``. Its floor is what as many real patches score with this very prompt: those of
    ``reference``, else the held-out patches for which all that the prompt states is true (``captions.agreement``).
    ``floor`` is the median of ``draws`` such means, with its percentiles as in ``report.compare``.
    Where fewer than ``MIN_RIGHT`` patches fit, single scores of plain captions are drawn from the card: of the ground
    that the prompt names, else of its polarisation. That floor is wider, since wordings differ.

    Args:
        amplitudes: ``(height, width)`` each, the studio's linear amplitude.
        prompt: what they should show.
        model: from ``load_sarclip``.
        polarisation: ``VV`` or ``VH``, for a prompt that names none.
        reference: real patches that the prompt describes, instead of the card's.
        draws: number of means for the floor.
        seed: of the draws.

    Raises:
        InputError: no patch, an empty prompt, or a patch that cannot be read.
    """
    if not len(amplitudes):
        raise InputError("There is no patch to compare with the prompt; give at least one.")
    if not words(prompt):
        raise InputError("The prompt is empty, so there is nothing to agree with; give the prompt of the patches.")
    unknown = model.unknown_words(prompt)
    notes = [] if model.sar_trained else [f"{model.label}: what it says of SAR is a guess."]
    if unknown:
        notes.append(f"{model.name} has never seen the words {_listed(unknown)}; they do little to the score.")
    meaningful = [word for word in words(prompt) if word not in STOP_WORDS and word not in unknown]
    scores = model.score(amplitudes, prompt)
    if not meaningful:
        notes.append("No word of the prompt is known, so the score says nothing.")
        measure = Measure(None, None, "1 - cosine", None, None)
        return PromptAgreement(measure, scores, None, None, "", unknown, notes[-1], tuple(notes))
    value = float(scores.mean())
    calibrated_on, calibration = _calibration_for(model, prompt, polarisation)
    right = wrong = None
    real, together = None, len(amplitudes)
    if calibration is not None:
        right, wrong = calibration.percentiles(value)
        real = np.array(calibration.right)
        together = len(amplitudes) if calibration.one_prompt else 1
        if not calibration.one_prompt:
            notes.append(f"Few real patches fit the prompt, so it is read by {calibrated_on}.")
        if calibration.auc < WEAK_AUC:
            notes.append(
                f"Give this little weight: of {calibrated_on}, the right ones score above the wrong ones in "
                f"{calibration.auc:.0%} of the cases only (guessing: 50%)."
            )
    if reference is not None and len(reference):
        real, together = model.score(reference, prompt).astype(np.float64), len(amplitudes)
        calibrated_on = f"{len(reference)} given real patches"
        right = _percentile(value, np.sort(real))
    if real is None:
        notes.append("These weights have no calibration for it, so the score cannot be read; give real patches.")
    return PromptAgreement(
        measure=_measure(value, real, together, draws, seed),
        scores=scores,
        right_percentile=right,
        wrong_percentile=wrong,
        calibrated_on=calibrated_on,
        unknown_words=unknown,
        text=_sentence(value, right, wrong, model),
        notes=tuple(notes),
        calibration=calibration,
    )


# What the towers take and give; training uses the same -------------------------------------------------------------


def sar_pixels(tiles: Any) -> Any:
    """Return what the image tower sees of amplitude tiles, ``(n, CHANNELS, SIDE / LOOKS, SIDE / LOOKS)``.

    Intensity is multilooked by ``LOOKS`` in both directions and brought to decibels. The channels:

    0. ``(dB + 10) / 7``, about zero mean and unit variance over the patches of S1_VV;
    1. the standard deviation of those decibels in 7 x 7 pixels, ``(std - 3) / 2``: relief and buildings are rough
       where speckle alone, of some 18 looks, is not.

    The transform is the same for VV and VH: both are amplitude over mean + 3 std of their own scale.

    Args:
        tiles: torch float ``(n, SIDE, SIDE)``, the studio's linear amplitude.
    """
    import torch
    from torch.nn import functional

    intensity = functional.avg_pool2d(tiles[:, None].square(), LOOKS)
    db = 10 * torch.log10(intensity + NOISE_FLOOR)
    margin = ROUGHNESS_WINDOW // 2
    # Of the mean square less the squared mean; centred first, so that float32 is exact enough.
    centred = functional.pad(db + 10, (margin,) * 4, mode="reflect")
    mean = functional.avg_pool2d(centred, ROUGHNESS_WINDOW, stride=1)
    square = functional.avg_pool2d(centred.square(), ROUGHNESS_WINDOW, stride=1)
    rough = (square - mean.square()).clamp_min(0).sqrt()
    return torch.cat([(db + 10) / 7, (rough - 3) / 2], dim=1)


def image_embedding(model: Any, pixels: Any) -> Any:
    """Return the projected image features ``(n, d)`` of a CLIPModel, not normalised."""
    found = model.get_image_features(pixel_values=pixels)
    return getattr(found, "pooler_output", found)  # a tensor before transformers 5


def text_embedding(model: Any, ids: Any) -> Any:
    """Return the projected text features ``(n, d)`` of a CLIPModel, not normalised."""
    found = model.get_text_features(input_ids=ids)
    return getattr(found, "pooler_output", found)


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> NDArray[np.int64]:
    """Return token ids ``(n, at most length)``; shorter texts are filled with 0, longer ones keep their end token.

    No attention mask is needed: the text tower looks backwards only and is read at the end token.
    """
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    cut = [ids if len(ids) <= length else [*ids[: length - 1], ids[-1]] for ids in encoded]
    out = np.zeros((len(cut), max(len(ids) for ids in cut)), np.int64)
    for row, ids in zip(out, cut, strict=True):
        row[: len(ids)] = ids
    return out


def tiles_of(amplitude: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the squares of ``SIDE`` that cover a patch evenly, at most ``MAX_TILES`` along a side."""
    short = [max(0, SIDE - size) for size in amplitude.shape]
    if any(short):
        amplitude = np.pad(amplitude, [(0, short[0]), (0, short[1])], mode="symmetric")
    tops, lefts = (
        np.rint(np.linspace(0, size - SIDE, min(MAX_TILES, -(-size // SIDE)))).astype(int) for size in amplitude.shape
    )
    return [amplitude[top : top + SIDE, left : left + SIDE] for top in tops for left in lefts]


# Loading -----------------------------------------------------------------------------------------------------------


def read_card(path: Path) -> dict[str, Any]:
    """Read ``sar-clip.toml``.

    Raises:
        InputError: it cannot be read or was made for another image transform.
    """
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the folder again.") from error
    transform = card.get("input", {})
    if (transform.get("side"), transform.get("looks"), transform.get("channels")) != (SIDE, LOOKS, CHANNELS):
        raise InputError(f"{path} describes an image input that this version does not make; use weights made by it.")
    return card


def read_held_out(path: Path) -> HeldOut:
    """Read the features that ``write_held_out`` wrote.

    Raises:
        InputError: it is damaged or something else.
    """
    header = read_header(path)

    from safetensors.numpy import load_file

    try:
        features = load_file(path)["features"].astype(np.float32)
        facts = tuple({str(k): int(v) for k, v in row.items()} for row in json.loads(header.metadata["facts"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} does not hold features of held-out patches; copy the folder again.") from error
    if len(features) != len(facts):
        raise InputError(f"{path} does not say what its patches show; copy the folder again.")
    return HeldOut(_unit(features), facts)


def write_held_out(path: Path, held_out: HeldOut) -> None:
    """Write features (float16) with the facts of their patches."""
    from safetensors.numpy import save

    metadata = {"facts": json.dumps([dict(row) for row in held_out.facts])}
    write_atomic(path, save({"features": held_out.features.astype(np.float16)}, metadata=metadata))


def _load_folder(folder: Path, name: str, device: str, sar_trained: bool | None) -> SarClip:
    config = folders.read_json(folder / "config.json")
    if config.get("model_type") != "clip" or "auto_map" in config:
        raise InputError(
            f"{name} is not a plain CLIP model ({config.get('model_type', 'no model_type')}); give a CLIPModel folder "
            "with config.json, model.safetensors and tokenizer.json."
        )
    weights = weight_files(folder)
    if not weights:
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() in PICKLE_SUFFIXES:
                read_header(path)  # raises the sentence about pickles
        raise InputError(f"{name} has no model.safetensors; only safetensors weights are loaded.")
    for path in weights:
        read_header(path)
    card = read_card(folder / CARD) if (folder / CARD).is_file() else {}
    held_out = folder / HELD_OUT if card and (folder / HELD_OUT).is_file() else None
    digests = {path.name: sha256_of(path) for path in (*weights, *([held_out] if held_out else []))}
    for path in (*weights, *([held_out] if held_out else [])):
        known = card.get("sha256", {}).get(path.name)
        if known and known != digests[path.name]:
            raise InputError(f"{path} is not the file that its card describes; copy or download the folder again.")
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise InputError(f"{name} has no tokenizer.json; save its fast tokenizer beside the weights.")

    import torch
    from tokenizers import Tokenizer
    from transformers import CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # the libraries raise anything, down to plain Exception
        raise InputError(f"{name} cannot be loaded as CLIP ({_first_line(error)}); get it again.") from error
    channels = int(model.config.vision_config.num_channels)
    if channels != (CHANNELS if card else 3):
        raise InputError(f"{name} takes pictures of {channels} channels, which are not made; use other weights.")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    statistics: dict[str, Any] = {}
    if not card and (folder / "preprocessor_config.json").is_file():
        picture = folders.read_json(folder / "preprocessor_config.json")
        if "image_mean" in picture and "image_std" in picture:
            statistics = {"mean": tuple(picture["image_mean"]), "std": tuple(picture["image_std"])}
    trained = bool(card.get("sar_trained", True)) if card else bool(sar_trained)
    return SarClip(
        name=str(card.get("title", name)),
        sar_trained=trained,
        calibration=_calibrations(card),
        card=card,
        model=model.to(device, torch.float32).eval(),
        tokenizer=tokenizer,
        device=device,
        held_out=None if held_out is None else read_held_out(held_out),
        weights=_together([digests[path.name] for path in weights]),
        **statistics,
    )


def _from_hub(repo_id: str, revision: str | None) -> Path:
    hint = f"connect and try again, or download {repo_id} elsewhere and give its folder"
    listing = hub.list_repository(repo_id, revision, hint=hint)
    weights = choose_weights([name for name in listing.files if "/" not in name])
    if not weights:
        raise InputError(f"{repo_id} has no model.safetensors; only safetensors weights are loaded.")
    wanted = [*weights, "config.json", "tokenizer.json"]
    wanted += [name for name in (CARD, HELD_OUT, "preprocessor_config.json") if name in listing.files]
    files = {name: listing.files.get(name, hub.RemoteFile()) for name in wanted}
    return hub.download(repo_id, listing.commit, files, hint=hint)


def _calibrations(card: Mapping[str, Any]) -> dict[str, Scores]:
    try:
        return {
            name: Scores(
                right=tuple(map(float, data["right"])),
                wrong=tuple(map(float, data["wrong"])),
                patches=int(data["patches"]),
                auc=float(data["auc"]),
            )
            for name, data in card.get("calibration", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The calibration in {CARD} is not usable ({error}); copy the folder again.") from error


# Reading a score ---------------------------------------------------------------------------------------------------


def auc(right: NDArray[np.floating[Any]], wrong: NDArray[np.floating[Any]]) -> float:
    """Return the probability that a right caption scores higher than a wrong one, ties half (Mann-Whitney)."""
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, side="left")
    upto = np.searchsorted(ordered, right, side="right")
    return float((below + upto).mean() / (2 * len(wrong)))


def _calibration_for(model: SarClip, prompt: str, polarisation: str | None) -> tuple[str, Scores | None]:
    """Return whose scores a prompt is read by, in words, and these scores."""
    stated = stated_facts(prompt)
    named = next((name for name in POLARISATIONS if name in stated), (polarisation or "").lower())
    if named not in POLARISATIONS:  # the labels that a prompt names exist in one polarisation only
        named = "vh" if any(name in GROUNDS for name in stated) else "vv"
    grounds = [name for name in stated if name in (*TERRAINS, *GROUNDS)]
    if model.held_out is not None and stated:
        truth = np.array([agreement(facts, (*stated, named)) for facts in model.held_out.facts])
        alike = np.array([facts[named] == 1 for facts in model.held_out.facts])
        scores = (model.held_out.features @ model.text_features([prompt])[0]).astype(np.float64)
        right, wrong = scores[truth == 1], scores[(truth == 0) & alike]
        if len(right) >= MIN_RIGHT and len(wrong):
            words_for = f"{len(right)} real held-out patches that fit the prompt and {len(wrong)} that do not"
            steps = np.linspace(0, 1, 101)
            quantiles = [tuple(np.quantile(part, steps).tolist()) for part in (right, wrong)]
            return words_for, Scores(quantiles[0], quantiles[1], len(right), auc(right, wrong), one_prompt=True)
    key = grounds[0] if len(grounds) == 1 and grounds[0] in model.calibration else named
    found = model.calibration.get(key)
    if found is None:
        return "", None
    ground = key.upper() if key in POLARISATIONS else key
    return f"plain captions of {found.patches} real held-out patches ({ground})", found


def _measure(value: float, real: NDArray[np.float64] | None, count: int, draws: int, seed: int) -> Measure:
    if real is None or len(real) < 2:
        return Measure(1 - value, None, "1 - cosine", None, None, generated=value)
    rng = np.random.default_rng(seed)
    # Between the quantiles (or the real scores) any score may be drawn: linear interpolation.
    means = np.quantile(real, rng.random((draws, count))).mean(axis=1)
    floor, floor_95 = float(np.median(1 - means)), float(np.percentile(1 - means, 95))
    mean = float(real.mean())
    p05, p95 = np.percentile(real, [5, 95])
    low, high = (float(value) for value in np.percentile(1 - means, [2.5, 97.5]))
    return Measure(
        1 - value,
        floor,
        "1 - cosine",
        (1 - value) / floor if floor > 0 else None,
        floor_95,
        generated=value,
        reference=mean,
        relative=(value - mean) / abs(mean) if mean else None,
        spread=Spread(float(real.std(ddof=1)), float(p05), float(p95)),
        interval=(low, high),
    )


def _sentence(value: float, right: float | None, wrong: float | None, model: SarClip) -> str:
    figure = f"cosine {value:.2f}, {model.label}"
    if right is None:
        return f"The prompt agreement cannot be read without calibration ({figure})."
    text = f"Scores above {_share(right)} of the right captions of real patches"
    if wrong is not None:
        text += f" and {_share(wrong)} of the wrong ones"
    if wrong is None:
        meaning = "the patches agree with the prompt" if right >= 5 else "real patches agree better with the prompt"
    elif right >= 5 and wrong >= 95:
        meaning = "the patches show what the prompt says"
    elif right >= 5 and wrong >= 50:
        meaning = "it may be what the prompt says, but wrong captions score like this too"
    else:
        meaning = "the patches do not show what the prompt says"
    return f"{text}: {meaning} ({figure})."


def _share(percentile: float) -> str:
    return "hardly any" if percentile < 1 else "nearly all" if percentile > 99 else f"{percentile:.0f} %"


def _percentile(score: float, quantiles: Sequence[float] | NDArray[np.float64]) -> float:
    """Return 0 to 100: the share of a distribution, given by evenly spaced quantiles, that is at most ``score``."""
    values = np.asarray(quantiles, dtype=np.float64)
    if score < values[0]:
        return 0.0
    if score >= values[-1]:
        return 100.0
    return float(np.interp(score, values, np.linspace(0, 100, len(values))))


def _checked(amplitude: NDArray[Any]) -> NDArray[np.float32]:
    array = np.asarray(amplitude)
    if array.ndim != 2 or np.iscomplexobj(array):
        raise InputError(f"A patch has shape {array.shape}; give real amplitude of shape (height, width).")
    if min(array.shape) < MIN_SIDE:
        raise InputError(
            f"A patch of {array.shape[1]}x{array.shape[0]} is too small to show a scene; {MIN_SIDE} pixels a side are "
            "needed."
        )
    if not np.isfinite(array).all():
        raise InputError("A patch holds NaN or infinite values; replace them or choose another patch.")
    return np.clip(array, 0, 1).astype(np.float32)


def _unit(features: NDArray[Any]) -> NDArray[Any]:
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(norm, 1e-12)).astype(np.float32)


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _together(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
