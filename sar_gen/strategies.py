"""What is trained, part by part: the one table that training, loading, the page and the documents read.

A strategy says for each part of a latent diffusion pipeline whether it stays as it is in the base, is trained
whole, or is trained as a low-rank addition. The rows follow the comparison of fine-tuning techniques for SAR in
arXiv 2506.13307 (full or LoRA UNet, text encoders, a learned ``<SAR>`` token, and the VAE variants).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sar_gen.errors import InputError

PartMode = Literal["frozen", "full", "lora", "learned"]
DEFAULT_TOKEN = "<SAR>"
_PARTS = ("unet", "text_encoder", "text_encoder_2", "token", "vae_encoder", "vae_decoder", "control")
TITLES: dict[PartMode, str] = {
    "frozen": "as in the base",
    "full": "trained whole",
    "lora": "LoRA",
    "learned": "learned",
}


@dataclass(frozen=True)
class Lora:
    """A low-rank addition to a part's layers: ``W + (alpha / rank) B A`` (arXiv 2106.09685).

    Attributes:
        rank: rows of A.
        alpha: scale of the product, times the rank.
        targets: ends of the names of the layers that get one.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
LORA: dict[str, Lora] = {
    "unet": Lora(32, 32, _ATTENTION),
    "text_encoder": Lora(16, 16, _CLIP_ATTENTION),
    "text_encoder_2": Lora(16, 16, _CLIP_ATTENTION),
    "vae_decoder": Lora(16, 16, ("conv_in", "conv_out", "conv1", "conv2", "conv", "conv_shortcut", *_ATTENTION)),
}
"""What ``lora`` means by part, wherever a run says nothing else."""


@dataclass(frozen=True)
class Strategy:
    """One row of the table.

    Attributes:
        name: stable name, used on cards and on the command line.
        title: name for people.
        summary: one sentence on what it does and costs.
        unet: mode of the denoiser.
        text_encoder: mode of the first text encoder.
        text_encoder_2: mode of the second one (ignored by family ``sd15``, which has none).
        token: ``learned`` when a token embedding (``<SAR>``) is added to each text encoder.
        vae_encoder: mode of the VAE's encoder.
        vae_decoder: mode of the VAE's decoder.
        control: ``full`` when a ControlNet that reads guides is trained beside the frozen rest (arXiv 2302.05543).
        from_scratch: the parts start from random weights, not from a base.
        distilled: the parts learn from the base itself, to need fewer steps, and not from data.
    """

    name: str
    title: str
    summary: str
    unet: PartMode = "frozen"
    text_encoder: PartMode = "frozen"
    text_encoder_2: PartMode = "frozen"
    token: PartMode = "frozen"
    vae_encoder: PartMode = "frozen"
    vae_decoder: PartMode = "frozen"
    control: PartMode = "frozen"
    from_scratch: bool = False
    distilled: bool = False

    @property
    def vae(self) -> PartMode:
        """The strongest mode among the two halves of the VAE."""
        return self.vae_decoder if self.vae_encoder == "frozen" else self.vae_encoder

    def modes(self, family: str = "sdxl") -> dict[str, PartMode]:
        """Return ``{part: mode}`` of the parts that the family has."""
        return {p: getattr(self, p) for p in _PARTS if not (family == "sd15" and p == "text_encoder_2")}

    def trained(self, family: str = "sdxl") -> dict[str, PartMode]:
        """Return ``{part: mode}`` of the parts that differ from the base."""
        return {part: mode for part, mode in self.modes(family).items() if mode != "frozen"}


def _row(name: str, title: str, summary: str, *, te: PartMode = "frozen", **modes: PartMode | bool) -> Strategy:
    return Strategy(name, title, summary, text_encoder=te, text_encoder_2=te, **modes)  # type: ignore[arg-type]


_ROWS = (
    _row("base", "Base, as published", "Nothing is trained: what the base itself makes of the prompt."),
    _row("token", "Learned token", "Only the embedding of a new token, <SAR>; a few kilobytes.", token="learned"),
    _row("unet-lora", "UNet LoRA", "A low-rank addition to the denoiser; tens of megabytes.", unet="lora"),
    _row("unet-full", "UNet, whole", "The whole denoiser; gigabytes for an SDXL-sized one.", unet="full"),
    _row(
        "unet-full+te-full",
        "UNet and text encoders, whole",
        "Everything but the VAE is trained; the text encoders may forget words that the captions lack.",
        unet="full",
        te="full",
    ),
    _row(
        "unet-full+te-lora",
        "UNet whole, text encoders LoRA",
        "The whole denoiser, with a low-rank addition to the text encoders.",
        unet="full",
        te="lora",
    ),
    _row(
        "unet-lora+te-lora+token",
        "UNet LoRA, text encoders LoRA, learned token",
        "Low-rank additions everywhere and a <SAR> token; small files.",
        unet="lora",
        te="lora",
        token="learned",
    ),
    _row(
        "hybrid",
        "Hybrid: UNet whole, text encoders LoRA, learned token",
        "The whole denoiser, LoRA on both text encoders and a <SAR> token: the best of arXiv 2506.13307.",
        unet="full",
        te="lora",
        token="learned",
    ),
    _row("vae-decoder", "VAE decoder, whole", "Only how latents become pixels: speckle texture.", vae_decoder="full"),
    _row(
        "vae-decoder-lora",
        "VAE decoder LoRA",
        "A low-rank addition to how latents become pixels.",
        vae_decoder="lora",
    ),
    _row(
        "vae-full",
        "VAE, encoder and decoder whole",
        "Both halves of the VAE; the latents move, so the denoiser has to be trained on them afterwards.",
        vae_encoder="full",
        vae_decoder="full",
    ),
    _row(
        "control",
        "Guides: ControlNet",
        "A network that reads guides (map, optical image, coarse SAR); the checkpoint itself stays as it is.",
        control="full",
    ),
    _row(
        "turbo",
        "Turbo: few steps",
        "The whole denoiser, distilled from the base to a few steps without guidance: several times faster.",
        unet="full",
        distilled=True,
    ),
    _row(
        "foundation",
        "Trained from scratch",
        "Every part is trained from random weights: no base.",
        unet="full",
        te="full",
        vae_encoder="full",
        vae_decoder="full",
        from_scratch=True,
    ),
)

STRATEGIES: dict[str, Strategy] = {row.name: row for row in _ROWS}
# What a name may be joined of with '+', in this order; every row but 'base' and 'foundation' is such a join.
_ATOMS: dict[str, dict[str, PartMode]] = {
    "unet-full": {"unet": "full"},
    "unet-lora": {"unet": "lora"},
    "te-full": {"text_encoder": "full", "text_encoder_2": "full"},
    "te-lora": {"text_encoder": "lora", "text_encoder_2": "lora"},
    "token": {"token": "learned"},
    "vae-decoder": {"vae_decoder": "full"},
    "vae-decoder-lora": {"vae_decoder": "lora"},
    "vae-full": {"vae_encoder": "full", "vae_decoder": "full"},
    "control": {"control": "full"},
}
_ATOM_TITLES = {"te-full": "text encoders, whole", "te-lora": "text encoders, LoRA"}


def strategy(name: str) -> Strategy:
    """Return a row of the table by name, or make one: ``unet-lora+te-lora``, ``hybrid+vae-decoder``.

    Raises:
        InputError: there is no such strategy, or its pieces train one part twice; the sentence names the rows.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    modes: dict[str, PartMode] = {}
    titles = []
    for piece in name.split("+"):
        added = STRATEGIES["hybrid"].trained() if piece == "hybrid" else _ATOMS.get(piece)
        if not added or modes.keys() & added.keys():
            raise InputError(
                f"The strategy {name!r} is unknown; choose one of {', '.join(STRATEGIES)}, or join pieces that train "
                "different parts, such as 'hybrid+vae-decoder'."
            )
        modes |= added
        titles.append(_ATOM_TITLES.get(piece) or STRATEGIES[piece].title)
    return Strategy(name, "; ".join(titles), "A combination of strategies of the table.", **modes)  # type: ignore[arg-type]


def strategy_of_parts(modes: Mapping[str, PartMode]) -> str:
    """Name the strategy whose trained parts are ``modes`` (frozen parts may be left out); the inverse of ``strategy``.

    Training one text encoder counts as training both: a LoRA may leave one alone.

    Raises:
        InputError: one text encoder is trained whole and the other one as LoRA.
    """
    found: dict[str, PartMode] = {part: mode for part, mode in modes.items() if mode != "frozen"}
    encoders = {found[part] for part in ("text_encoder", "text_encoder_2") if part in found}
    if len(encoders) > 1:
        raise InputError("One text encoder is trained whole and the other one as LoRA; no strategy does that.")
    if encoders:
        found["text_encoder"] = found["text_encoder_2"] = encoders.pop()
    for row in STRATEGIES.values():
        if row.trained() == found and not (row.from_scratch or row.distilled):
            return row.name
    return "+".join(
        atom
        for atom, parts in _ATOMS.items()
        if all(found.get(p) == m for p, m in parts.items()) and not (atom == "vae-decoder" and "vae_encoder" in found)
    )


def with_token(text: str, token: str) -> str:
    """Return a caption or prompt that names the learned token: in place of the word SAR, or before everything.

    >>> with_token("a SAR image of forest", "<SAR>")
    'a <SAR> image of forest'
    """
    if token in text:
        return text
    changed, count = re.subn(r"\bSAR\b", lambda _: token, text, count=1)
    return changed if count else f"{token} {text}"
