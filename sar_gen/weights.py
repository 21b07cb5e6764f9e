"""Weight files, looked at without loading them: safetensors only, whole, and of the right family.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length ``n`` of the header,
``n`` bytes of JSON ``{name: {"dtype", "shape", "data_offsets"}}``, then the data.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sar_gen.errors import InputError

Family = Literal["sdxl", "sd15"]
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own reader
CROSS_ATTENTION = {768: "sd15", 1024: "sd2", 2048: "sdxl"}  # width of the text context by model family


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header describes it: ``dtype`` in safetensors' names (``F32``, ``BF16``)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(tensor.count for tensor in self.tensors.values())


def read_header(path: Path) -> Header:
    """Check that ``path`` is a whole safetensors file and return its header; the data is not read.

    Raises:
        InputError: wrong suffix, a pickle (under any name), a text file, an empty or a truncated file.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError(
            f"{path.name} is a pickle checkpoint, which can run code when it is opened; convert it to .safetensors."
        )
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path.name} is not a .safetensors file; weights are read from .safetensors only.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 2 <= length <= MAX_HEADER else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    if len(start) < 8:
        raise InputError(f"{path.name} is empty or cut off ({size} bytes); copy or download it again.")
    if text.startswith(b"{") and len(text) < length:
        raise InputError(f"{path.name} is cut off inside its header; copy or download it again.")
    try:
        data = json.loads(text)
        metadata = {str(k): str(v) for k, v in data.pop("__metadata__", {}).items()}
        tensors = {name: Tensor(str(t["dtype"]), tuple(int(n) for n in t["shape"])) for name, t in data.items()}
        end = max((int(t["data_offsets"][1]) for t in data.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        # Only now: the length of a good header may begin with the same bytes.
        if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1] <= 5):
            raise InputError(
                f"{path.name} is named .safetensors but holds a pickle, which can run code when it is opened; "
                "it is refused; ask its author for a real .safetensors file."
            ) from None
        raise InputError(f"{path.name} is not a safetensors file (it has no such header); get it again.") from error
    if 8 + length + end != size:
        raise InputError(
            f"{path.name} is cut off or damaged: its header announces {8 + length + end} bytes, the file has {size}; "
            "copy or download it again."
        )
    if path.suffix != ".safetensors":
        # Libraries below ask for the suffix letter by letter, and take anything else for a pickle.
        raise InputError(f"{path.name} has capital letters in its suffix; rename it to {path.stem}.safetensors.")
    return Header(tensors, metadata)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files of one pipeline part: the wanted variant, else the plain ones, shards in order.

    Args:
        folder: for example ``…/unet``.
        variant: ``fp16`` picks ``*.fp16.safetensors`` where there are any.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return [folder / name for name in choose_weights(names, variant)]


_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(\.(?P<variant>[a-z0-9]+))?(-\d{5}-of-\d{5})?(\.(?P<after>[a-z0-9]+))?"
    r"\.safetensors",
    re.IGNORECASE,
)


def choose_weights(names: list[str], variant: str | None = None) -> list[str]:
    """Of the file names in one part's folder, return those that ``from_pretrained`` would read for ``variant``."""
    found: dict[str | None, list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name)
        if match:
            found.setdefault(match["variant"] or match["after"], []).append(name)
    chosen = found.get(variant) or found.get(None) or []
    whole = [name for name in chosen if "-of-" not in name]
    return whole or chosen


@dataclass(frozen=True)
class LoraFacts:
    """What a LoRA's keys and shapes tell.

    Attributes:
        style: ``diffusers`` (also PEFT's ``lora_A``/``lora_B``) or ``kohya``.
        parts: among ``unet``, ``text_encoder``, ``text_encoder_2``.
        family: ``sdxl`` or ``sd15``; ``None`` where the file does not tell.
        cross_attention: width of the text context it was made for, ``None`` when it leaves that layer alone.
    """

    style: Literal["diffusers", "kohya"]
    parts: tuple[str, ...]
    family: Family | None
    cross_attention: int | None


_KOHYA = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder"}
_DOWN = (".lora_A.", ".lora.down.", ".lora_down.", ".lora_linear_layer.down.")


def lora_facts(header: Header, name: str) -> LoraFacts:
    """Return what kind of LoRA a header describes.

    The family follows from the keys and shapes: a second text encoder or a UNet transformer deeper than one block
    means SDXL; else the width of the text context (``attn2.to_k`` takes 768 in SD 1.5, 2048 in SDXL).

    Args:
        header: of the file.
        name: of the file, for the sentence.

    Raises:
        InputError: not a LoRA, a kind that diffusers does not load, or for another model (SD 2, SD 3, FLUX).
    """
    keys = list(header.tensors)
    if any(".hada_" in key or ".lokr_" in key or ".oft_" in key for key in keys):
        raise InputError(f"{name} is a LoHa, LoKr or OFT file; only LoRA is loaded: convert it or train a LoRA.")
    if not any(part in key for key in keys for part in _DOWN):
        raise InputError(f"{name} holds no LoRA weights; give a LoRA in diffusers or kohya format.")
    kohya = {part for key in keys for prefix, part in _KOHYA.items() if key.startswith(prefix)}
    dotted = {
        part for key in keys for part in ("unet", "text_encoder", "text_encoder_2") if key.startswith(part + ".")
    }
    known = sum(key.startswith(tuple(_KOHYA)) for key in keys), sum(key.split(".")[0] in dotted for key in keys)
    if max(known) != len(keys):
        odd = next(k for k in keys if not k.startswith(tuple(_KOHYA)) and k.split(".")[0] not in dotted)
        raise InputError(
            f"{name} has keys for another kind of model ({odd}); LoRAs for the UNet and text encoders of SDXL or "
            "SD 1.5 are loaded, with diffusers or kohya keys."
        )
    width = next(
        (
            tensor.shape[1]
            for key, tensor in header.tensors.items()
            if re.search(r"attn2[._]to_[kv]", key) and any(part in key for part in _DOWN) and len(tensor.shape) >= 2
        ),
        None,
    )
    deep = any(re.search(r"transformer_blocks[._][1-9]", key) for key in keys)
    parts = kohya | dotted
    family: Family | None = None
    if "text_encoder_2" in parts or deep or any(key.startswith("lora_te1_") for key in keys):
        family = "sdxl"
    elif width is not None:
        guess = CROSS_ATTENTION.get(width)
        if guess == "sd2":
            raise InputError(f"{name} is a LoRA for Stable Diffusion 2; SDXL and SD 1.5 are supported.")
        family = guess  # type: ignore[assignment]
    order = ("unet", "text_encoder", "text_encoder_2")
    return LoraFacts("kohya" if kohya else "diffusers", tuple(p for p in order if p in parts), family, width)
