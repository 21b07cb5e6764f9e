"""UNet and text encoders as the one module that is trained, and what it is fed: latents and text, computed once.

The text goes the way of diffusers' pipelines (``StableDiffusionXLPipeline.encode_prompt``): of SDXL the penultimate
hidden states of both encoders side by side and the pooled output of the second; of SD 1.5 the last hidden state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sar_gen.files import write_atomic
from sar_gen.strategies import with_token

Text = dict[str, torch.Tensor]
BLOCK = 32
"""Rows of a cache that are made at once."""
AT_ONCE = 32 * 256 * 256
"""Pixels that the VAE encodes at once: two patches of 1024 x 1024."""
DEVICE_BYTES = 4_000_000_000
"""Most bytes of rows that are kept on the device itself; more are kept in the machine's memory."""


class Denoiser(torch.nn.Module):
    """The UNet, with the text encoders where these are trained too.

    One module, so that one ``forward`` reaches every trained parameter, which is what data-parallel training needs.
    """

    def __init__(self, pipe: Any, *, trains_text: bool, control: Any = None) -> None:
        super().__init__()
        self.unet = pipe.unet
        self.control = control
        self.text_encoder = pipe.text_encoder if trains_text else None
        self.text_encoder_2 = getattr(pipe, "text_encoder_2", None) if trains_text else None

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, text: Text, guide: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the prediction, ``(n, c, h, w)``.

        Args:
            noisy: latents ``(n, c, h, w)``.
            timesteps: ``(n,)``.
            text: ``context`` (and ``pooled``), or token ``ids`` (and ``ids_2``) with ``kept``: 0 where the text is
                dropped; for SDXL also ``time_ids`` ``(n, 6)``.
            guide: what the ControlNet reads, ``(n, planes, height, width)`` in pixels.
        """
        if "ids" in text:
            text = {**text, **encode_text(self.text_encoder, self.text_encoder_2, text)}
        added = {"text_embeds": text["pooled"], "time_ids": text["time_ids"]} if "time_ids" in text else None
        options: dict[str, Any] = {"added_cond_kwargs": added, "return_dict": False}
        if self.control is None:
            return self.unet(noisy, timesteps, text["context"], **options)[0]
        down, middle = self.control(noisy, timesteps, text["context"], guide, **options)
        return self.unet(
            noisy, timesteps, text["context"], down_block_additional_residuals=down,
            mid_block_additional_residual=middle, **options,
        )[0]  # fmt: skip


def encode_text(encoder: Any, encoder_2: Any, text: Text) -> Text:
    """Return ``context`` ``(n, 77, width)`` and, for SDXL, ``pooled`` of token ids; zeros where ``kept`` is 0."""
    if encoder_2 is None:
        context = encoder(text["ids"])[0]
        return {"context": context * text["kept"].to(context.dtype).view(-1, 1, 1)}
    first = encoder(text["ids"], output_hidden_states=True).hidden_states[-2]
    second = encoder_2(text["ids_2"], output_hidden_states=True)
    context = torch.cat([first, second.hidden_states[-2]], dim=-1)
    kept = text["kept"].to(context.dtype)
    return {"context": context * kept.view(-1, 1, 1), "pooled": second[0] * kept.view(-1, 1)}


class TextSource:
    """Captions as the denoiser takes them: token ids, or what frozen encoders make of them, computed once.

    A dropped caption (``None``) is what the pipeline gives without a negative prompt: zeros, where it is told to force
    them, half of the time, and the empty caption otherwise, so that an empty negative prompt is a known input too.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        trained: bool,
        token: str | None,
        dtype: torch.dtype,
        device: torch.device,
        cache: RowCache | None = None,
        captions: Sequence[str] = (),
    ) -> None:
        """Take the encoders of ``pipe``.

        Args:
            pipe: the pipeline.
            trained: give token ids, since what the encoders make of them changes.
            token: learned token that every caption is to name.
            dtype: of the encoders' output.
            device: of what is given.
            cache: rows of ``captions`` (then the empty one) that are kept.
            captions: every caption, as the data have them.
        """
        self._pipe, self._trained, self._token = pipe, trained, token
        self._dtype, self._device, self._cache = dtype, device, cache
        self._places = {caption: i for i, caption in enumerate((*captions, ""))}
        self._zeros = bool(pipe.config.get("force_zeros_for_empty_prompt", False))

    def __call__(self, captions: Sequence[str | None], size: tuple[int, int], odd: int) -> Text:
        """Return the text of a batch.

        Args:
            captions: of the patches, ``None`` where dropped.
            size: height and width of the patches in pixels; their "original size" of SDXL, which is never cropped
                from a larger picture here.
            odd: number of the batch; decides which half of the dropped captions are zeros.
        """
        kept = [not (c is None and self._zeros and (i + odd) % 2 == 0) for i, c in enumerate(captions)]
        plain = [caption or "" for caption in captions]
        text = self._ids(plain) if self._trained or self._cache is None else self._cached(plain)
        keep = torch.tensor(kept, device=self._device)
        if self._trained:
            text["kept"] = keep
        else:
            if "ids" in text:
                with torch.no_grad():
                    text = encode_text(self._pipe.text_encoder, self._second, {**text, "kept": keep})
            text = {name: self._masked(value, keep) for name, value in text.items()}
        if self._second is not None:
            ids = torch.tensor([*size, 0, 0, *size], device=self._device, dtype=torch.float32)
            text["time_ids"] = ids.repeat(len(captions), 1)
        return text

    @property
    def _second(self) -> Any:
        return getattr(self._pipe, "text_encoder_2", None)

    def _masked(self, value: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        value = value.to(self._device, self._dtype)
        return value * keep.to(value.dtype).view(-1, *(1 for _ in value.shape[1:]))

    def _ids(self, captions: Sequence[str]) -> Text:
        names = [with_token(c, self._token) if self._token and c else c for c in captions]
        found: Text = {}
        for key, tokenizer in (("ids", self._pipe.tokenizer), ("ids_2", getattr(self._pipe, "tokenizer_2", None))):
            if tokenizer is None:
                continue
            texts = [self._pipe.maybe_convert_prompt(name, tokenizer) for name in names]
            tokens = tokenizer(
                texts,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            found[key] = tokens.input_ids.to(self._device)
        return found

    @torch.no_grad()
    def _encoded(self, captions: list[str]) -> torch.Tensor:
        """Return context and pooled output of captions, one row of numbers each."""
        text = {**self._ids(captions), "kept": torch.ones(len(captions), device=self._device)}
        made = encode_text(self._pipe.text_encoder, self._second, text)
        return torch.cat([value.flatten(1) for value in made.values()], dim=1)

    def _cached(self, captions: Sequence[str]) -> Text:
        assert self._cache is not None

        every = [*self._places]

        def make(rows: list[int]) -> list[torch.Tensor]:
            return list(self._encoded([every[row] for row in rows]))

        flat = torch.stack(self._cache.get([self._places[caption] for caption in captions], make))
        length = self._pipe.tokenizer.model_max_length
        wide = self._pipe.text_encoder.config.hidden_size
        if self._second is None:
            return {"context": flat.view(len(captions), length, wide)}
        wide += self._second.config.hidden_size
        context, pooled = flat[:, : length * wide], flat[:, length * wide :]
        return {"context": context.reshape(len(captions), length, wide), "pooled": pooled}


def text_width(pipe: Any) -> int:
    """Return how many numbers the text of one caption has: the context's and the pooled ones."""
    second = getattr(pipe, "text_encoder_2", None)
    wide = pipe.text_encoder.config.hidden_size + (second.config.hidden_size if second is not None else 0)
    pooled = second.config.projection_dim if second is not None else 0
    return int(pipe.tokenizer.model_max_length * wide + pooled)


class RowCache:
    """Rows of numbers that are computed once, in memory or in a file that a later call finds again.

    Rows are made in blocks of neighbours, and always the same ones: a product's last bits depend on what else is in a
    batch, and a run that goes on would meet the rows in other company. On disk they are float16: half of the space,
    and finer than bfloat16.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        path: Path | None = None,
        facts: object = None,
        *,
        block: int = BLOCK,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make a cache of ``len(shapes)`` rows.

        Args:
            shapes: of each row.
            path: of the file (with ``.json`` beside it); ``None`` keeps the rows in memory.
            facts: JSON data on what the rows depend on; a file of other facts is begun anew.
            block: rows that are made at once.
            device: that rows in memory are kept on, where all together take less than ``DEVICE_BYTES``.
        """
        self._shapes = list(shapes)
        self._block = block
        self._kept: dict[int, torch.Tensor] = {}
        self._file: Any = None
        self._ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self._shapes)])
        self._device = torch.device(device if 4 * int(self._ends[-1]) <= DEVICE_BYTES else "cpu")
        if path is None:
            return
        beside = path.with_name(path.name + ".json")
        digest = hashlib.sha256(json.dumps([self._shapes, facts], default=str, sort_keys=True).encode()).hexdigest()
        same = path.is_file() and beside.is_file() and beside.read_text(encoding="utf-8") == digest
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(self._ends[-1]) + len(self._shapes)
        self._file = np.memmap(path, np.float16, "r+" if same else "w+", shape=(size,))
        if not same:
            self._file.flush()
            write_atomic(beside, digest.encode())

    def get(self, rows: Sequence[int], make: Callable[[list[int]], list[torch.Tensor]]) -> list[torch.Tensor]:
        """Return rows; ``make(block)`` gives, in order, the rows of a block of which one is not there yet."""
        for block in dict.fromkeys(row // self._block for row in rows if not self._has(row)):
            members = list(range(block * self._block, min((block + 1) * self._block, len(self._shapes))))
            for row, made in zip(members, make(members), strict=True):
                self._put(row, made)
        return [self._read(row) for row in rows]

    def _has(self, row: int) -> bool:
        if self._file is None:
            return row in self._kept
        return bool(self._file[int(self._ends[-1]) + row] == 1)

    def _put(self, row: int, made: torch.Tensor) -> None:
        if self._file is None:
            # A copy: a row that is a view would keep the whole batch that it was made in.
            self._kept[row] = made.detach().to(self._device, copy=True).reshape(self._shapes[row])
            return
        values = made.detach().to("cpu", torch.float16).numpy().ravel()
        self._file[self._ends[row] : self._ends[row + 1]] = values
        # The mark after the values: a call that is cut off between the two makes the row again.
        self._file[int(self._ends[-1]) + row] = 1

    def _read(self, row: int) -> torch.Tensor:
        if self._file is None:
            return self._kept[row]
        values = np.array(self._file[self._ends[row] : self._ends[row + 1]])
        return torch.from_numpy(values).reshape(self._shapes[row])


class LatentSource:
    """Latents of patches: the posterior of the frozen VAE, computed once, and a draw from it each time."""

    def __init__(
        self,
        vae: Any,
        *,
        encode: Callable[[np.ndarray], np.ndarray],
        device: torch.device,
        cache: RowCache | None = None,
        crops: Callable[[Sequence[int]], Sequence[np.ndarray]] | None = None,
    ) -> None:
        """Take the VAE.

        Args:
            vae: diffusers' AutoencoderKL, float32.
            encode: brings pixels to the model's grey (``amplitude.to_model``).
            device: of the latents.
            cache: one row a patch of the data, ``(2, c, h, w)``: mean and standard deviation.
            crops: gives the pixels of rows of the cache (``Dataset.crops``).
        """
        self._vae, self._encode, self._device = vae, encode, device
        self._cache, self._crops = cache, crops

    def __call__(self, pixels: np.ndarray, rows: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Return float32 latents ``(n, c, h, w)``, scaled as the UNet takes them.

        Args:
            pixels: ``(n, height, width)`` in [0, 1]; not read where rows are kept.
            rows: numbers of the patches in the data; not read where none are kept.
            generator: of the draw, on the device.
        """
        if self._cache is None:
            posterior = self._posterior(pixels)
        else:
            posterior = torch.stack(self._cache.get(rows, self._made)).to(self._device, torch.float32)
        mean, spread = posterior[:, 0], posterior[:, 1]
        noise = torch.randn(mean.shape, generator=generator, device=self._device)
        return scaled(self._vae, mean + spread * noise)

    def _made(self, rows: list[int]) -> list[torch.Tensor]:
        assert self._crops is not None
        crops = self._crops(rows)
        made: dict[int, torch.Tensor] = {}
        for shape in dict.fromkeys(crop.shape for crop in crops):
            own = [i for i, crop in enumerate(crops) if crop.shape == shape]
            at_once = max(1, AT_ONCE // (shape[0] * shape[1]))
            for first in range(0, len(own), at_once):
                part = own[first : first + at_once]
                made |= dict(zip(part, self._posterior(np.stack([crops[i] for i in part])), strict=True))
        return [made[i] for i in range(len(rows))]

    @torch.no_grad()
    def _posterior(self, pixels: np.ndarray) -> torch.Tensor:
        grey = torch.from_numpy(np.ascontiguousarray(self._encode(pixels), np.float32)).to(self._device)
        posterior = self._vae.encode(grey.unsqueeze(1).repeat(1, 3, 1, 1) * 2 - 1).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1)


def scaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return a VAE's latents as its UNet takes them: the inverse of what ``engine.decode`` does before decoding."""
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        latents = (latents - torch.tensor(mean).view(shape).to(latents)) / torch.tensor(std).view(shape).to(latents)
    return latents * vae.config.scaling_factor
