"""What a training run is told: one TOML file, validated before anything is loaded; unknown keys are refused.

    base = "sar-mini"                      # catalogue id, or a pipeline folder
    strategy = "hybrid"                    # a row of sar_gen.strategies, or pieces joined with '+'
    output = "checkpoints/my-hybrid"       # the strategy folder that is written, relative to this file

    [data]
    manifest = "data/manifest.jsonl"
    batch = 4

    [denoiser]
    steps = 2000
    learning_rate = 1e-4

Every table is a dataclass below, with its defaults; a key that none of them has is an error.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from sar_gen.errors import InputError
from sar_gen.strategies import Strategy, strategy

STRICT = ConfigDict(extra="forbid")
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]

Precision = Literal["no", "bf16", "fp16"]
"""Of accelerate's mixed precision; what is trained is always kept in float32."""
SaveType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which patches, how many at once, and what is done to them.

    Attributes:
        manifest: of a prepared data set (``prepare``); give this or ``shards``.
        shards: WebDataset tar shards (glob), streamed and never held in memory.
        split: of the manifest.
        modality: ``sar`` or ``optical``.
        batch: patches a step and process.
        resolution: largest side of a training crop, pixels; larger patches are cropped, never resampled. ``None``: the
            base's.
        caption_dropout: share of patches whose caption is dropped (zeros or the empty caption, as the base expects).
        flips: axes along which half of the patches are flipped; none unless asked for, since SAR looks sideways.
        balance: ``none`` draws each patch once an epoch; ``terrain`` draws terrains alike and, in one, groups of n
            patches as sqrt(n).
        leave_out: terrains that are not trained on.
        cache: keep latents and text in memory (``memory``), on disk (``disk``), or compute them each step (``none``).
        shuffle: patches in the shuffle buffer of ``shards``.
    """

    manifest: Path | None = None
    shards: Path | None = None
    split: str = "train"
    modality: Literal["sar", "optical"] = "sar"
    batch: Positive = 4
    resolution: Annotated[int, Field(ge=32)] | None = None
    caption_dropout: Share = 0.1
    flips: tuple[Literal["horizontal", "vertical"], ...] = ()
    balance: Literal["none", "terrain"] = "none"
    leave_out: tuple[str, ...] = ()
    cache: Literal["none", "memory", "disk"] = "memory"
    shuffle: Positive = 1000

    def __post_init__(self) -> None:
        if (self.manifest is None) == (self.shards is None):
            raise ValueError("give either manifest or shards")


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    """Overrides of a part's LoRA in ``sar_gen.strategies``; what is left out is the strategy's."""

    rank: Positive | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: tuple[str, ...] | None = None
    dropout: Share = 0.0


@dataclass(frozen=True, config=STRICT)
class OptimiserConfig:
    """AdamW, and how its rate runs.

    Attributes:
        learning_rate: highest rate; of the UNet, and of every part that has none of its own.
        text_encoder: rate of the text encoders.
        token: rate of the learned token.
        warmup: steps from 0 to the highest rate.
        schedule: ``constant``, ``cosine`` (to 0 at the last step), ``linear`` (to 0) or ``trapezoid``: constant, then
            linear to 0 over the last ``decay`` share of the steps.
        decay: share of the steps that a ``trapezoid`` falls over.
        weight_decay: of matrices; norms, biases and tokens have none.
        beta2: decay of AdamW's second moment.
        clip: largest norm of the gradient; 0 is without.
        eight_bit: AdamW with 8-bit states (extra ``bitsandbytes``, CUDA only).
        ema: decay of the averaged weights, which are what is saved; 0 is without.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    text_encoder: Annotated[float, Field(gt=0)] | None = None
    token: Annotated[float, Field(gt=0)] | None = None
    warmup: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "constant"
    decay: Share = 0.4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    beta2: Rate = 0.999
    clip: Annotated[float, Field(ge=0)] = 1.0
    eight_bit: bool = False
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True, config=STRICT)
class DenoiserConfig(OptimiserConfig):
    """Training of UNet, text encoders and token (arXiv 2506.13307): the denoising loss.

    Attributes:
        steps: of the optimiser.
        accumulate: batches a step.
        prediction: ``epsilon`` or ``v_prediction``; ``None`` keeps the base's.
        zero_terminal_snr: rescale the noise schedule to zero terminal SNR (arXiv 2305.08891); ``None`` keeps the
            base's.
        min_snr_gamma: weight the loss by min(SNR, gamma) (arXiv 2303.09556); 0 is without.
        noise_offset: strength of a constant added to each channel's noise; 0 is without.
        timesteps: ``uniform``; ``cubic`` draws more of the noisy ones, where the layout of a scene is decided
            (arXiv 2302.08453, section 3.3): ``t = (1 - u^3) T``.
    """

    steps: Positive = 1000
    accumulate: Positive = 1
    prediction: Literal["epsilon", "v_prediction"] | None = None
    zero_terminal_snr: bool | None = None
    min_snr_gamma: Annotated[float, Field(ge=0)] = 0.0
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    timesteps: Literal["uniform", "cubic"] = "uniform"


@dataclass(frozen=True, config=STRICT)
class GuidesConfig:
    """What a ControlNet is trained to read; each patch of a batch has one kind of guide, or none.

    Attributes:
        kinds: of guide, made of the patch and its co-registered optical picture; one that is named twice is drawn
            twice as often.
        start: folder of a network that is trained further; ``None`` starts from the UNet's encoder.
        dropped: share of patches without a guide.
        attention: the network also reads the text, as its UNet does; without it is half as large.
        jitter: most that the optical picture's gain and gamma are changed by, as a factor of e.
        factors: pixels of the scene a pixel of coarse SAR, smallest and largest.
        looks: of the speckle that is put on coarse SAR (another pass of another sensor), smallest and largest.
        maps: folder of class maps made of the optical pictures; those that are not there yet are made. ``None``: in
            the work folder.
    """

    kinds: tuple[Literal["map", "optical", "sar"], ...] = ("map", "optical", "sar")
    start: Path | None = None
    dropped: Share = 0.05
    attention: bool = False
    jitter: Annotated[float, Field(ge=0)] = 0.2
    factors: tuple[float, float] = (4.0, 8.0)
    looks: tuple[float, float] = (10.0, 100.0)
    maps: Path | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in (("factors", self.factors), ("looks", self.looks)):
            if not 1 <= low <= high:
                raise ValueError(f"{name} should rise from 1 or more")
        if not self.kinds:
            raise ValueError("name at least one kind of guide")


@dataclass(frozen=True, config=STRICT)
class VaeConfig(OptimiserConfig):
    """Training of the VAE: reconstruction, a little KL, and a patch discriminator from some step on.

    Attributes:
        steps: of the optimiser.
        batch: crops a step; ``None``: the data's batch.
        crop: side of the crops, pixels.
        l1: weight of the absolute error.
        l2: weight of the squared error.
        kl: weight of the KL divergence (encoder trained only).
        spectrum: weight of the difference of log power spectra: speckle is texture, not an image to copy.
        gan: weight of the hinge patch discriminator, relative to the reconstruction's gradient at the last layer.
        gan_start: share of the steps after which the discriminator joins in.
        optical_share: share of optical crops in a batch, for a VAE that both share.
    """

    steps: Positive = 1000
    batch: Positive | None = None
    crop: Annotated[int, Field(ge=32)] = 128
    l1: Annotated[float, Field(ge=0)] = 1.0
    l2: Annotated[float, Field(ge=0)] = 1.0
    kl: Annotated[float, Field(ge=0)] = 2e-4
    spectrum: Annotated[float, Field(ge=0)] = 0.0
    gan: Annotated[float, Field(ge=0)] = 0.03
    gan_start: Share = 0.45
    optical_share: Share = 0.0


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """How the run itself goes.

    Attributes:
        seed: of everything.
        precision: of accelerate; ``no`` is float32.
        gradient_checkpointing: trade time for memory.
        compile: ``torch.compile`` of the denoiser or VAE.
        save_every: steps between states that an interrupted run goes on from.
        keep_last: states that are kept.
        validate_every: steps between validations; 0 is without.
        prompts: of the validation's previews; ``None`` takes captions of the validation split.
        previews: patches that a validation makes.
        preview_steps: denoising steps of a preview.
        reference: reference set, or split of the manifest, that previews are measured against.
        save_type: of the weights that are written.
        work: folder of states, journal and caches; ``None``: beside the output, with ``.work`` after its name.
        tensorboard: also write TensorBoard event files.
    """

    seed: int = 0
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    save_every: Positive = 500
    keep_last: Positive = 2
    validate_every: Annotated[int, Field(ge=0)] = 0
    prompts: tuple[str, ...] | None = None
    previews: Positive = 8
    preview_steps: Positive = 20
    reference: str = "validation"
    save_type: SaveType = "float16"
    work: Path | None = None
    tensorboard: bool = False


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """One training run.

    Attributes:
        base: catalogue id or pipeline folder that training starts from.
        strategy: what is trained; a name of ``sar_gen.strategies``.
        output: folder that is written: a strategy folder, or a whole pipeline where ``whole``.
        data: the patches.
        title: for the card; made from base and strategy when left out.
        whole: write a whole pipeline (a new base) instead of what differs.
        token: the learned token.
        token_rows: rows of the learned token.
        token_init: word whose rows the token starts from, with a little noise; random when left out.
        lora: overrides by part (``unet``, ``text_encoder``, ``text_encoder_2``, ``vae_decoder``).
        denoiser: of UNet, text encoders and token.
        vae: of the VAE.
        guides: of a ControlNet.
        run: the rest.
    """

    base: str
    strategy: str
    output: Path
    data: DataConfig
    title: str | None = None
    whole: bool = False
    token: Annotated[str, Field(min_length=1)] = "<SAR>"
    token_rows: Positive = 1
    token_init: str | None = None
    lora: dict[Literal["unet", "text_encoder", "text_encoder_2", "vae_decoder"], LoraConfig] = dataclasses.field(
        default_factory=dict
    )
    denoiser: DenoiserConfig = dataclasses.field(default_factory=DenoiserConfig)
    vae: VaeConfig = dataclasses.field(default_factory=VaeConfig)
    guides: GuidesConfig = dataclasses.field(default_factory=GuidesConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.row.trained():
            raise ValueError(f"the strategy {self.strategy!r} trains nothing")

    @property
    def row(self) -> Strategy:
        """The strategy's row of the table."""
        return strategy(self.strategy)

    @property
    def work(self) -> Path:
        """Folder of states, journal and caches."""
        return self.run.work or self.output.with_name(self.output.name + ".work")


Kind = TypeVar("Kind")


def read_config(path: Path, kind: type[Kind]) -> Kind:
    """Read and validate a TOML file; relative paths in it are relative to its folder.

    Args:
        path: of the file.
        kind: dataclass that it holds, such as ``TrainingConfig``.

    Raises:
        InputError: unreadable, not TOML, an unknown key, or a value that does not fit; the first problem is named.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); give a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error}); correct it.") from error
    return rebased(check_config(data, kind, str(path)), path.resolve().parent)


def says(path: Path, key: str) -> Any:
    """Return what a TOML file says under a key at its top; ``None`` where it says nothing or cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None


def check_config(data: dict[str, Any], kind: type[Kind], name: str) -> Kind:
    """Return the dataclass ``kind`` with the values of ``data``.

    Args:
        data: nested tables.
        kind: a pydantic dataclass.
        name: of where they come from, for the sentence.

    Raises:
        InputError: an unknown key, or a value that does not fit; the first problem is named.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(data)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        # A mistyped name is both an unknown key and a missing one; the first says more.
        first = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "unexpected_keyword_argument":
            raise InputError(f"{name} has the unknown key {place!r}; remove it or correct its name.") from error
        if first["type"] == "missing":
            raise InputError(f"{name} lacks {place!r}; add it.") from error
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{name}: {place} is not usable ({message[:1].lower()}{message[1:]}); correct it.") from error


def rebased(value: Any, folder: Path) -> Any:
    """Return a dataclass with every relative path in it made absolute, below ``folder``; lists of tables too."""
    if isinstance(value, Path):
        return value if value.is_absolute() else (folder / value.expanduser()).resolve()
    if isinstance(value, tuple):
        return tuple(rebased(item, folder) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {}
        for field in dataclasses.fields(value):
            before = getattr(value, field.name)
            after = rebased(before, folder)
            if after is not before and after != before:
                changes[field.name] = after
        return dataclasses.replace(value, **changes)
    return value
