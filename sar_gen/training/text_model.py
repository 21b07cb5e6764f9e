"""Tokenizer and text encoders of a small SDXL-format pipeline: building, what the pipeline reads of them, scale.

An SDXL pipeline encodes a prompt padded to 77 tokens without a mask. The UNet's context is the last state but one of
both encoders, side by side (so its ``cross_attention_dim`` is the sum of both widths), and its second input the
projected state of the second encoder at the first end token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sar_gen.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
ENCODERS = ("text_encoder", "text_encoder_2")
POOLED = "text_encoder_2.pooled"
OUTPUTS = ("text_encoder.mean", "text_encoder.end", "text_encoder_2.mean", "text_encoder_2.end", POOLED)
"""Where meaning is taught: the penultimate state's mean over the words and at the end token, and the pooled output."""


@dataclass(frozen=True)
class TextSize:
    """Size of the tokenizer, of both encoders and of the corpus that they learn from.

    Attributes:
        words: tokens of the tokenizer, special ones included; at least 514 (bytes, alone and at a word's end).
        widths: of both encoders; the UNet's context is as wide as their sum.
        layers: of both encoders; the pipeline leaves the last one out of its context.
        heads: of their attention.
        projection: width of the pooled output.
        common: common English words in the corpus.
        known: English words that are looked through for ones near the scene vocabulary.
        near: how many of those the corpus holds.
        scenes: phrases of the scene vocabulary in the corpus.
    """

    words: int
    widths: tuple[int, int]
    layers: tuple[int, int]
    heads: tuple[int, int]
    projection: int
    common: int
    known: int
    near: int
    scenes: int

    @property
    def context(self) -> int:
        """The ``cross_attention_dim`` of a UNet that reads these encoders."""
        return sum(self.widths)


SIZES = {
    "mini": TextSize(7168, (192, 256), (3, 4), (3, 4), 256, common=24_000, known=60_000, near=4_000, scenes=20_000),
    "tiny": TextSize(700, (32, 48), (2, 2), (2, 3), 32, common=200, known=300, near=20, scenes=200),
}
"""``mini``: 7.8 million parameters, 3.2 of them in the tables of tokens: a word of its own is worth more here than
another layer. Each width holds the main axes of the teacher's 384, and the two encoders err differently. ``tiny`` is
for tests."""


def build_tokenizer(texts: Iterable[str], size: TextSize) -> Any:
    """Return a ``CLIPTokenizer`` (byte-level BPE, lower case, 77 long) trained on ``texts``.

    A word that occurs more often becomes one token sooner.

    Raises:
        InputError: the size has no room for the bytes, or the texts have too few words for it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*alphabet, *(f"{letter}</w>" for letter in alphabet)))}
    room = size.words - len(vocab) - 2
    if room < 0:
        raise InputError(
            f"A tokenizer needs {len(vocab) + 2} tokens at least, not {size.words}; choose a larger size."
        )
    # CLIP's own splitting and normalising, taken from a tokenizer without words.
    rules = CLIPTokenizer(vocab={**vocab, START: len(vocab), END: len(vocab) + 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size.words, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges: list[tuple[str, str]] = []
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if left + right not in vocab:
            if room == 0:
                break
            vocab[left + right] = len(vocab)
            room -= 1
        merges.append((left, right))
    if room:
        raise InputError(f"The texts have too few words for {size.words} tokens ({room} are left); give more texts.")
    vocab |= {START: len(vocab), END: len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def weighted_words(
    words: Sequence[str], near: Sequence[str], scenes: Sequence[str], written: Sequence[str]
) -> Iterator[str]:
    """Yield texts for ``build_tokenizer``.

    Args:
        words: common words, most common first; the more common, the more often (Zipf's law).
        near: words near scenes; a little more.
        scenes: words of scenes; much more.
        written: captions, once each.
    """
    for rank, word in enumerate(words, 1):
        yield from (word for _ in range(2 + 20_000 // (rank + 10)))
    for texts, times in ((near, 8), (scenes, 60)):
        for text in texts:
            yield from (text for _ in range(times))
    yield from written


def build_encoders(size: TextSize, tokenizer: Any, seed: int = 0) -> tuple[Any, Any]:
    """Return a ``CLIPTextModel`` and a ``CLIPTextModelWithProjection`` with random weights, fixed by the seed."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    built = []
    for i, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection)):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.widths[i],
            intermediate_size=4 * size.widths[i],
            num_hidden_layers=size.layers[i],
            num_attention_heads=size.heads[i],
            max_position_embeddings=LENGTH,
            hidden_act="gelu",
            projection_dim=size.projection if i else size.widths[i],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        built.append(kind(config))
    return built[0], built[1]


def whole_words(tokenizer: Any) -> dict[str, int]:
    """Return ``{word: token}`` of the tokens of letters that end a word, and so may be one."""
    words = {token.removesuffix("</w>"): i for token, i in tokenizer.get_vocab().items() if token.endswith("</w>")}
    return {word: i for word, i in words.items() if word.isascii() and word.isalpha() and len(word) > 1}


def start_from_words(
    encoders: tuple[Any, Any], tokenizer: Any, words: Sequence[str], vectors: NDArray[Any], seed: int = 0
) -> None:
    """Give the tokens that are whole words the teacher's meaning, and the tables the scale of the layers.

    A word's row is its vector along the principal axes of all words (no whitening, so cosines stay), scaled to a
    variance of 1; other tokens are normal noise of standard deviation 0.3, positions of 0.1.

    Args:
        encoders: both.
        tokenizer: theirs.
        words: whole words of the tokenizer.
        vectors: float ``(words, teacher width)``, the teacher's.
        seed: of the noise.
    """
    tokens = whole_words(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    centred = torch.from_numpy(np.asarray(vectors, np.float32))
    centred = centred - centred.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh
    for encoder in encoders:
        width = encoder.config.hidden_size
        rows = centred @ axes[:width].T
        if rows.shape[1] < width:
            rows = torch.nn.functional.pad(rows, (0, width - rows.shape[1]))
        # A random rotation spreads the variance over the channels, as LayerNorm and the UNet like it.
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        table = encoder.get_input_embeddings().weight
        with torch.no_grad():
            table.copy_(0.3 * torch.randn(table.shape, generator=generator))
            table[[tokens[word] for word in words]] = (rows / rows.std().clamp_min(1e-6)) @ rotation
            positions = _positions(encoder)
            positions.copy_(0.1 * torch.randn(positions.shape, generator=generator))


def _positions(encoder: Any) -> Any:
    return next(value for name, value in encoder.named_parameters() if name.endswith("position_embedding.weight"))


def token_ids(tokenizer: Any, texts: Sequence[str], *, full: bool = True) -> torch.Tensor:
    """Return int64 ``(texts, 77)`` as a pipeline pads them, or (not ``full``) as long as the longest text."""
    padding = "max_length" if full else "longest"
    tokens = tokenizer(list(texts), padding=padding, max_length=LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(tokens.input_ids)


def outputs(encoders: tuple[Any, Any], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the pipeline reads of each text: a float32 vector ``(texts, width)`` for each name of ``OUTPUTS``.

    ``text_encoder.pads`` and ``text_encoder_2.pads`` come on top: the mean over the padding (zeros if there is none).

    Args:
        encoders: both.
        ids: int64 ``(texts, length)`` on their device, of ``token_ids``.
    """
    at = torch.arange(ids.shape[1], device=ids.device)
    end = (ids == encoders[0].config.eos_token_id).int().argmax(1)[:, None]
    places = {"mean": (at > 0) & (at < end), "end": at == end, "pads": at > end}
    found = {}
    for name, encoder in zip(ENCODERS, encoders, strict=True):
        out = encoder(ids, output_hidden_states=True)
        states = out.hidden_states[-2].float()
        for part, where in places.items():
            weight = where[..., None].to(states.dtype)
            found[f"{name}.{part}"] = (states * weight).sum(1) / weight.sum(1).clamp_min(1)
        if name == ENCODERS[1]:
            found[POOLED] = out.text_embeds.float()
    return found


def represent(
    encoders: tuple[Any, Any], tokenizer: Any, texts: Sequence[str], batch: int = 64
) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of texts as a pipeline encodes them, float32 ``(texts, width)``.

    Names are those of ``outputs``, and ``context``: the means of both encoders side by side, as the UNet has them.
    """
    device = next(encoders[0].parameters()).device
    parts: dict[str, list[NDArray[np.float32]]] = {}
    with torch.inference_mode():
        for first in range(0, len(texts), batch):
            ids = token_ids(tokenizer, texts[first : first + batch]).to(device)
            for name, value in outputs(encoders, ids).items():
                parts.setdefault(name, []).append(value.cpu().numpy())
    found = {name: np.concatenate(values) for name, values in parts.items()}
    found["context"] = np.concatenate([found[f"{name}.mean"] for name in ENCODERS], axis=1)
    return found


def scales(encoders: tuple[Any, Any], tokenizer: Any, texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the root mean square of what a pipeline reads.

    Of the penultimate states: ``tokens`` (words, end and padding), ``start`` (the start token) and ``largest_channel``
    (of ``tokens``); and ``pooled`` of the pooled output.
    """
    device = next(encoders[0].parameters()).device
    ids = token_ids(tokenizer, texts).to(device)
    found = {}
    with torch.inference_mode():
        for name, encoder in zip(ENCODERS, encoders, strict=True):
            out = encoder(ids, output_hidden_states=True)
            states = out.hidden_states[-2].float()
            found[name] = {
                "tokens": _rms(states[:, 1:]),
                "start": _rms(states[:, 0]),
                "largest_channel": float(states[:, 1:].square().mean((0, 1)).sqrt().max()),
            }
            if name == ENCODERS[1]:
                found[name]["pooled"] = _rms(out.text_embeds.float())
    return found


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def to_unit_scale(encoders: tuple[Any, Any], measured: Mapping[str, Mapping[str, float]]) -> None:
    """Scale the weights so that penultimate states (start token apart) and pooled output have a root mean square of 1.

    The sum that the layers of a pre-norm transformer add to is scaled by scaling everything that is added: both
    tables, and the last map of each attention and of each MLP. Each LayerNorm takes the factor out again, so nothing
    else changes (but for its epsilon of 1e-5).

    Args:
        encoders: both; changed in place.
        measured: of ``scales``.
    """
    ends = (
        "token_embedding.weight", "position_embedding.weight",
        "out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias",
    )  # fmt: skip
    with torch.no_grad():
        for name, encoder in zip(ENCODERS, encoders, strict=True):
            for key, value in encoder.named_parameters():
                if key.endswith(ends):
                    value.div_(measured[name]["tokens"])
        encoders[1].text_projection.weight.div_(measured[ENCODERS[1]]["pooled"])


def save(folder: Path, encoders: tuple[Any, Any], tokenizer: Any) -> None:
    """Write both tokenizers (the same one) and text encoders as a diffusers pipeline has them, in float32."""
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / name)
        # vocab.json and merges.txt beside tokenizer.json, for whoever reads CLIP's older layout.
        tokenizer.backend_tokenizer.model.save(str(folder / name))
    for name, encoder in zip(ENCODERS, encoders, strict=True):
        encoder.save_pretrained(folder / name)


def load(folder: Path) -> tuple[tuple[Any, Any], Any]:
    """Return both encoders (float32, CPU) and the tokenizer of a folder that ``save`` wrote."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    first, second = (
        kind.from_pretrained(folder / name, use_safetensors=True, local_files_only=True, dtype=torch.float32).eval()
        for kind, name in zip(kinds, ENCODERS, strict=True)
    )
    return (first, second), CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
