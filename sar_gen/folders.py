"""Checkpoint folders, looked at without loading them: pipelines in diffusers layout and strategy folders on a base.

A strategy folder holds what differs from its base, every file optional but at least one of them there::

    card.toml                             id, title, base, strategy, and what differs from the base's card
    unet/diffusion_pytorch_model.safetensors          the whole UNet
    text_encoder/model.safetensors                    the whole first text encoder
    text_encoder_2/model.safetensors                  the whole second one (SDXL)
    vae/diffusion_pytorch_model.safetensors           the whole VAE, or decoder.* and post_quant_conv.* only
    unet/delta.safetensors                            in place of a whole part: what changed, quantised to 8 or 4 bits
    text_encoder/delta.safetensors                    (the format is in ``sar_gen.deltas``); one made from a VAE that
    text_encoder_2/delta.safetensors                  changes decoder.* and post_quant_conv.* only leaves the encoder
    vae/delta.safetensors
    vae/pytorch_lora_weights.safetensors              LoRA on the VAE decoder (keys decoder.….lora_A.weight, lora_B,
                                                      and .alpha; post_quant_conv too)
    pytorch_lora_weights.safetensors                  LoRA, keys unet.…, text_encoder.…, text_encoder_2.…
    token.safetensors                                 clip_l (rows, width 1) and, for SDXL, clip_g (rows, width 2)
    scheduler/scheduler_config.json                   when another noise schedule was trained
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sar_gen.deltas import DELTA_FILE, check_shapes, delta_facts
from sar_gen.errors import InputError
from sar_gen.strategies import PartMode
from sar_gen.weights import PICKLE_SUFFIXES, Family, Header, lora_facts, read_header, weight_files

PIPELINES: dict[str, Family] = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl"}
PARTS: dict[Family, tuple[str, ...]] = {
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "sd15": ("unet", "vae", "text_encoder"),
}
COMPONENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
}
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
TOKEN_KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
LORA_FILE, TOKEN_FILE = "pytorch_lora_weights.safetensors", "token.safetensors"
VAE_DECODER = ("decoder.", "post_quant_conv.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: it is missing, unreadable or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); copy the folder again.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON; copy or download it again.") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} does not hold a JSON object; copy or download it again.")
    return data


def pipeline_family(index: dict[str, Any], name: str) -> Family:
    """Return the family that a ``model_index.json`` names, after checking that it needs no foreign code.

    Args:
        index: the parsed ``model_index.json``.
        name: of the checkpoint, for the sentence.

    Raises:
        InputError: another pipeline, a component of another class or library, or a component missing.
    """
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise InputError(
            f"{name} is a {pipeline if isinstance(pipeline, str) else 'custom'} pipeline, which is not loaded (it may "
            f"bring code of its own); supported are {' and '.join(PIPELINES)}."
        )
    family = PIPELINES[pipeline]
    for component, value in index.items():
        if (
            component.startswith("_")
            or component in NOT_LOADED
            or not isinstance(value, list)
            or value == [None, None]
        ):
            continue
        if component == "scheduler":
            allowed = value[0] == "diffusers" and str(value[1]).endswith("Scheduler") and str(value[1]).isidentifier()
        else:
            library, classes = COMPONENTS.get(component, ("", ()))
            allowed = value[0] == library and value[1] in classes
        if not allowed:
            raise InputError(
                f"{name} wants {component} as {'.'.join(map(str, value))}, which is not among the classes that are "
                "loaded (no foreign code is run)."
            )
    wanted = (*PARTS[family], "tokenizer", "scheduler", *(("tokenizer_2",) if family == "sdxl" else ()))
    for component in wanted:
        if not isinstance(index.get(component), list) or index[component][0] is None:
            raise InputError(f"{name} has no {component}; bring a complete {pipeline}.")
    return family


def missing_in_pipeline(folder: Path, variant: str | None = None) -> list[str]:
    """Return the files that a pipeline folder lacks (``[]``: it can be loaded), ``model_index.json`` first."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    family = pipeline_family(read_json(folder / "model_index.json"), folder.name)
    missing = []
    for part in PARTS[family]:
        if not (folder / part / "config.json").is_file():
            missing.append(f"{part}/config.json")
        weights = weight_files(folder / part, variant)
        shards = [path.name for path in weights if "-of-" in path.name]
        if not weights or (shards and len(shards) != int(shards[0].split("-of-")[1][:5])):
            stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
            missing.append(f"{part}/{stem}{'.' + variant if variant else ''}.safetensors")
    for tokenizer in ("tokenizer", "tokenizer_2")[: 2 if family == "sdxl" else 1]:
        names = ("tokenizer.json", "vocab.json", "merges.txt")
        has = [(folder / tokenizer / name).is_file() for name in names]
        if not (has[0] or (has[1] and has[2])):
            missing.append(f"{tokenizer}/vocab.json")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        missing.append("scheduler/scheduler_config.json")
    return missing


def check_pipeline(folder: Path, variant: str | None = None) -> Family:
    """Check a diffusers pipeline folder from its JSON files and weight headers, and return its family.

    Raises:
        InputError: it needs foreign code, has only pickle weights, lacks files, or a weight file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds model_index.json.")
    missing = missing_in_pipeline(folder, variant)
    if missing:
        pickles = _pickles(folder / missing[0].split("/")[0])
        if pickles and missing[0].endswith(".safetensors"):
            read_header(pickles[0])  # raises the sentence about pickles
        raise InputError(f"{folder} lacks {_listed(missing)}; bring the complete folder.")
    family = pipeline_family(read_json(folder / "model_index.json"), folder.name)
    for part in PARTS[family]:
        for path in weight_files(folder / part, variant):
            read_header(path)
    return family


def pipeline_weights(folder: Path, variant: str | None = None) -> dict[str, list[Path]]:
    """Return ``{part: weight files}`` of a complete pipeline folder."""
    family = pipeline_family(read_json(folder / "model_index.json"), folder.name)
    return {part: weight_files(folder / part, variant) for part in PARTS[family]}


def part_bytes(folder: Path, variant: str | None = None, bytes_per_parameter: int = 2) -> dict[str, int]:
    """Return ``{part: bytes}`` that a complete pipeline folder takes in memory, from its headers."""
    return {
        part: sum(read_header(path).parameters for path in paths) * bytes_per_parameter
        for part, paths in pipeline_weights(folder, variant).items()
    }


@dataclass(frozen=True)
class StrategyFiles:
    """What a strategy folder or a single LoRA file brings.

    Attributes:
        full: ``{part: weight files}`` of the parts that were trained whole.
        deltas: ``{part: file}`` of the parts that come as a quantised delta (``sar_gen.deltas``).
        vae_decoder_only: the VAE file or delta leaves the encoder as it is in the base.
        lora: LoRA file for the UNet and the text encoders.
        lora_parts: the parts that it holds.
        lora_family: its family, where the file tells.
        lora_cross_attention: width of the text context of its UNet part, where the file tells.
        token: token embeddings.
        token_shapes: ``{"clip_l": (rows, width), …}``.
        vae_lora: LoRA on the VAE decoder.
        scheduler: scheduler configuration folder.
    """

    full: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    deltas: dict[str, Path] = field(default_factory=dict)
    vae_decoder_only: bool = False
    lora: Path | None = None
    lora_parts: tuple[str, ...] = ()
    lora_family: Family | None = None
    lora_cross_attention: int | None = None
    token: Path | None = None
    token_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    vae_lora: Path | None = None
    scheduler: Path | None = None

    def paths(self) -> Iterator[Path]:
        """Yield every weight file."""
        for files in self.full.values():
            yield from files
        yield from self.deltas.values()
        yield from (path for path in (self.lora, self.token, self.vae_lora) if path is not None)

    def modes(self) -> dict[str, PartMode]:
        """Return ``{part: mode}`` of the parts that differ from the base, in the words of ``strategies``.

        A part that comes both whole (also as a delta) and as LoRA counts as whole.
        """
        whole = {*self.full, *self.deltas}
        modes: dict[str, PartMode] = dict.fromkeys(self.lora_parts, "lora")
        modes |= {part: "full" for part in PARTS["sdxl"] if part in whole and part != "vae"}
        if self.token:
            modes["token"] = "learned"
        if "vae" in whole:
            modes["vae_decoder"] = "full"
            if not self.vae_decoder_only:
                modes["vae_encoder"] = "full"
        elif self.vae_lora:
            modes["vae_decoder"] = "lora"
        return modes


def strategy_files(source: Path) -> StrategyFiles:
    """Find and check what a strategy folder, or a single LoRA file, brings; only headers are read.

    Raises:
        InputError: nothing usable in it, a pickle, a damaged file, a LoRA of another kind of model.
    """
    if source.is_file():
        facts = lora_facts(read_header(source), source.name)
        return StrategyFiles(
            lora=source, lora_parts=facts.parts, lora_family=facts.family, lora_cross_attention=facts.cross_attention
        )
    if not source.is_dir():
        raise InputError(f"{source} does not exist; give a folder or a .safetensors file.")
    full: dict[str, tuple[Path, ...]] = {}
    deltas: dict[str, Path] = {}
    decoder_only = False
    for part in PARTS["sdxl"]:
        files = weight_files(source / part)
        delta = source / part / DELTA_FILE
        if delta.is_file():
            if files:
                raise InputError(f"{part} of {source} comes whole and as {DELTA_FILE}; keep one of the two.")
            names = delta_facts(delta).names
            if part == "vae":
                decoder_only = all(name.startswith(VAE_DECODER) for name in names)
            deltas[part] = delta
            continue
        if not files:
            refuse_pickles(source / part)
            continue
        headers = [read_header(path) for path in files]
        if part == "vae":
            decoder_only = all(key.startswith(VAE_DECODER) for header in headers for key in header.tensors)
        full[part] = tuple(files)
    found = _lora_in(source)
    vae_lora = source / "vae" / LORA_FILE
    token = source / TOKEN_FILE
    scheduler = source / "scheduler"
    files_found = StrategyFiles(
        full=full,
        deltas=deltas,
        vae_decoder_only=decoder_only,
        lora=found.lora,
        lora_parts=found.lora_parts,
        lora_family=found.lora_family,
        lora_cross_attention=found.lora_cross_attention,
        token=token if token.is_file() else None,
        token_shapes=_token_shapes(token) if token.is_file() else {},
        vae_lora=vae_lora if vae_lora.is_file() and "vae" not in {*full, *deltas} else None,
        scheduler=scheduler if (scheduler / "scheduler_config.json").is_file() else None,
    )
    if files_found.vae_lora:
        _check_vae_lora(files_found.vae_lora)
    if not any(files_found.paths()):
        refuse_pickles(source)
        raise InputError(
            f"{source} holds neither a diffusers pipeline (model_index.json) nor a strategy's files (unet/, "
            f"text_encoder/, vae/, {LORA_FILE} or {TOKEN_FILE}); give another folder."
        )
    return files_found


def check_fits(files: StrategyFiles, base: Path, family: Family, name: str, variant: str | None = None) -> None:
    """Check that a strategy's files fit a base, by family, names and shapes.

    Args:
        files: of the strategy.
        base: complete pipeline folder of the base.
        family: of the base.
        name: of the strategy's checkpoint, for the sentence.
        variant: of the base's weight files.

    Raises:
        InputError: one sentence on the first thing that does not fit.
    """
    check_family(files, family, name)
    for part, paths in files.full.items():
        if part not in PARTS[family]:
            raise InputError(f"{name} brings {part}, which its base ({family}) does not have; choose another base.")
        mine = _shapes(paths)
        theirs = _shapes(weight_files(base / part, variant))
        if part == "vae" and files.vae_decoder_only:
            theirs = {key: shape for key, shape in theirs.items() if key.startswith(VAE_DECODER)}
        for key in (*theirs, *mine):
            if mine.get(key) != theirs.get(key):
                raise InputError(
                    f"The {part} of {name} does not fit its base ({key}: {_shape(mine.get(key))} here, "
                    f"{_shape(theirs.get(key))} in the base); choose the base that it was trained from."
                )
    for part, path in files.deltas.items():
        if part not in PARTS[family]:
            raise InputError(f"{name} brings {part}, which its base ({family}) does not have; choose another base.")
        check_shapes(path, _shapes(weight_files(base / part, variant)), name)
    width = read_json(base / "unet" / "config.json").get("cross_attention_dim")
    if files.lora_cross_attention is not None and width is not None and files.lora_cross_attention != width:
        raise InputError(
            f"The LoRA of {name} was made for a text context {files.lora_cross_attention} wide, its base has {width}; "
            "choose the base that it was trained on."
        )
    for key, shape in files.token_shapes.items():
        hidden = read_json(base / TOKEN_KEYS[key] / "config.json").get("hidden_size")
        if shape[-1] != hidden:
            raise InputError(
                f"The token of {name} is {shape[-1]} wide for {TOKEN_KEYS[key]}, its base has {hidden}; "
                "choose the base that it was trained on."
            )


def check_family(files: StrategyFiles, family: Family, name: str) -> None:
    """Check that nothing in ``files`` is of another family than ``family``.

    Raises:
        InputError: a LoRA, a text encoder or a token of the other family.
    """
    words = {"sdxl": "SDXL", "sd15": "SD 1.5"}
    if files.lora_family is not None and files.lora_family != family:
        raise InputError(
            f"The LoRA of {name} was made for {words[files.lora_family]} and its base is {words[family]}; families "
            f"are never mixed: choose a base of family {files.lora_family}."
        )
    if family == "sd15" and ("text_encoder_2" in {*files.full, *files.deltas} or "clip_g" in files.token_shapes):
        raise InputError(f"{name} has a second text encoder's weights, its base is SD 1.5, which has one; use SDXL.")
    if family == "sdxl" and files.token and "clip_g" not in files.token_shapes:
        raise InputError(f"The token of {name} lacks clip_g, which SDXL's second text encoder needs; save both.")


def _lora_in(folder: Path) -> StrategyFiles:
    path = folder / LORA_FILE
    if not path.is_file():
        others = [p for p in sorted(folder.glob("*.safetensors")) if p.name != TOKEN_FILE]
        if len(others) != 1:
            return StrategyFiles()
        path = others[0]
    return strategy_files(path)


def _token_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    tensors = read_header(path).tensors
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    if "clip_l" not in shapes or not set(shapes) <= set(TOKEN_KEYS) or len({s[0] for s in shapes.values()}) != 1:
        raise InputError(
            f"{path.name} should hold clip_l (and clip_g for SDXL) with one row a token; "
            f"it holds {_listed([*shapes])}."
        )
    if any(len(shape) != 2 for shape in shapes.values()):
        raise InputError(f"{path.name} should hold tables of shape (tokens, width); save it again.")
    return shapes


def _check_vae_lora(path: Path) -> None:
    keys = set(read_header(path).tensors)
    names = {key.removesuffix(".lora_A.weight") for key in keys if key.endswith(".lora_A.weight")}
    rest = keys - {f"{n}.lora_{x}.weight" for n in names for x in "AB"} - {f"{n}.alpha" for n in names}
    lacking = [name for name in names if f"{name}.lora_B.weight" not in keys]
    if not names or rest or lacking or not all(f"{name}.".startswith(VAE_DECODER) for name in names):
        raise InputError(
            f"vae/{path.name} should hold pairs decoder.….lora_A.weight and lora_B.weight (and .alpha); "
            f"{_listed(sorted(rest) or lacking or ['its keys'])} do not fit."
        )


def _shapes(paths: tuple[Path, ...] | list[Path]) -> dict[str, tuple[int, ...]]:
    headers: list[Header] = [read_header(path) for path in paths]
    shapes = {key: tensor.shape for header in headers for key, tensor in header.tensors.items()}
    # transformers < 5.6 saved position_ids buffers and nested CLIPTextModel in text_model; neither changes a weight
    return {key.removeprefix("text_model."): s for key, s in shapes.items() if not key.endswith("position_ids")}


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder that holds a pickle.

    Raises:
        InputError: the sentence about pickles.
    """
    for path in _pickles(folder)[:1]:
        read_header(path)


def _pickles(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICKLE_SUFFIXES]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
