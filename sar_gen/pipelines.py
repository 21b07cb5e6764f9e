"""The pipeline on the device: loading a base, putting a strategy on it, changing strategies, freeing.

One pipeline is held at a time. Changing the strategy on one base touches only the parts that differ (``changes``):
whole parts (the base's with a quantised delta too) are copied into the modules that are there, so modules stay the
same objects; LoRAs are put on with PEFT
and taken off again; token embeddings replace the embedding table and the old one is put back. Every check that can
be made from headers is made before what is loaded is touched.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sar_gen import folders
from sar_gen.checkpoints import CheckpointSpec, base_of, check_deltas, check_hashes, hashes_of, local_folder
from sar_gen.deltas import apply_delta
from sar_gen.errors import InputError, SarGenError
from sar_gen.folders import StrategyFiles
from sar_gen.guide_networks import NetworkSpec, local_network, read_config
from sar_gen.settings import Settings
from sar_gen.strategies import DEFAULT_TOKEN
from sar_gen.weights import read_header, weight_files

logger = logging.getLogger(__name__)

Offload = Literal["none", "model", "sequential"]
Say = Callable[[str], None]

ORDER = ("unet", "text_encoder", "text_encoder_2", "vae", "scheduler", "token", "lora")
BASE = "base"  # the source of a part that is as in the base; token and LoRA: there is none
ADAPTER = "strategy"
KEPT_NETWORKS = 2
NAMES = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "vae": "VAE",
    "scheduler": "noise schedule",
    "token": "token",
    "lora": "LoRA",
}
# Estimates of what one patch of 1024x1024 needs beside the weights, at two bytes a number: the VAE decoder's widest
# maps (256 and 512 channels near full size) whole, and in tiles.
WORKING_BYTES = 5_000_000_000
TILED_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Placement:
    """Where and how a pipeline is held.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        offload: ``none``; ``model``: a part at a time on the device; ``sequential``: a layer at a time.
        vae_tiling: large pictures are decoded in overlapping tiles.
        reason: for the user.
    """

    device: str
    dtype: str
    offload: Offload
    vae_tiling: bool
    reason: str


def choose_placement(
    device: str,
    *,
    free_memory: int,
    parts: Mapping[str, int],
    bf16: bool = True,
    light: bool = False,
    working: int = WORKING_BYTES,
    tiled: int = TILED_BYTES,
) -> Placement:
    """Choose how to hold a pipeline from the memory at hand; a CPU always gets an answer.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        free_memory: bytes free on the device (for ``cpu``: in the machine).
        parts: ``{part: bytes}`` of the weights at two bytes a number.
        bf16: the device calculates in bfloat16; else float16 is used.
        light: one step lighter than the memory asks for (after an out-of-memory error).
        working: bytes beside the weights, at two bytes a number.
        tiled: the same with the VAE in tiles.
    """
    weights, largest = sum(parts.values()), max(parts.values(), default=0)
    free, size = _gigabytes(free_memory), _gigabytes(weights)
    if device == "cpu":
        fits = free_memory >= 2 * (weights + working) or free_memory >= 2 * weights + 2 * tiled
        if fits and not light:
            roomy = free_memory >= 2 * (weights + working)
            return Placement(device, "float32", "none", not roomy, f"CPU, float32, {free} of memory free")
        why = "lighter after running out of memory" if light else f"{free} free is too little for float32"
        return Placement(device, "bfloat16", "none", True, f"CPU, bfloat16, VAE in tiles ({why})")
    dtype = "bfloat16" if bf16 else "float16"
    modes: list[tuple[Offload, bool, int, str]] = [
        ("none", False, weights + working, ""),
        ("none", True, weights + tiled, ", VAE in tiles"),
        ("model", True, largest + tiled, ", a part at a time on the device, VAE in tiles"),
        ("sequential", True, 0, ", a layer at a time on the device (slow), VAE in tiles"),
    ]
    index = next(i for i, mode in enumerate(modes) if free_memory >= mode[2])
    if light:
        # Tiling alone rarely suffices after the estimate was wrong, so a light mode offloads at least.
        index = min(max(index + 1, 2), len(modes) - 1)
    offload, tiling, _, how = modes[index]
    why = "after running out of memory" if light else f"{free} free, weights {size}"
    return Placement(device, dtype, offload, tiling, f"{device}, {dtype}{how} ({why})")


def changes(current: Mapping[str, str], target: Mapping[str, str]) -> tuple[str, ...]:
    """Return the parts to change, in the order of ``ORDER``, to come from one state to another.

    A LoRA comes off before what it sits on changes and goes on again after; so does a token's row when its text
    encoder's table changes.

    Args:
        current: ``{part: source}``; parts that are left out are the base's.
        target: the same.
    """

    def differs(part: str) -> bool:
        return current.get(part, BASE) != target.get(part, BASE)

    found = {part for part in ORDER if differs(part)}
    encoders = {"text_encoder", "text_encoder_2"}
    if found & encoders and (current.get("token", BASE), target.get("token", BASE)) != (BASE, BASE):
        found.add("token")
    if found & {"unet", "token", *encoders} and (current.get("lora", BASE), target.get("lora", BASE)) != (BASE, BASE):
        found.add("lora")
    return tuple(part for part in ORDER if part in found)


def sources(files: StrategyFiles | None) -> dict[str, str]:
    """Return ``{part: source}`` of a strategy's files; a source changes when its file does."""
    if files is None:
        return {}
    found = {part: _source(paths) for part, paths in files.full.items()}
    found |= {part: _source((path,)) for part, path in files.deltas.items()}
    if files.vae_lora is not None:
        found["vae"] = _source((files.vae_lora,))
    if files.scheduler is not None:
        found["scheduler"] = _source((files.scheduler / "scheduler_config.json",))
    if files.token is not None:
        found["token"] = _source((files.token,))
    if files.lora is not None:
        found["lora"] = _source((files.lora,))
    return found


def resolve_device(name: str) -> str:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Raises:
        InputError: no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise InputError(f"The device {name!r} is unknown; choose auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        there = f"there {'is' if count == 1 else 'are'} {count} CUDA device{'' if count == 1 else 's'}"
        raise InputError(f"The device {name!r} is not there ({there}); choose auto or cpu.")
    return name


def load_pipeline(folder: Path, family: str, variant: str | None, dtype: torch.dtype) -> Any:
    """Load a pipeline folder onto the CPU: safetensors only, every part in one dtype and frozen, nothing that draws.

    Args:
        folder: in diffusers layout, checked before (``folders.check_pipeline``).
        family: ``sdxl`` or ``sd15``.
        variant: of the weight files; the plain ones where there are none of it.
        dtype: weights of 16 bits become float32 exactly.
    """
    diffusers = quiet_diffusers()
    options: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}
    if family == "sdxl":
        # A watermark, where that package is installed, would change the grey values.
        kind, options["add_watermarker"] = diffusers.StableDiffusionXLPipeline, False
    else:
        kind = diffusers.StableDiffusionPipeline
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if variant and any(f".{variant}." in path.name for path in folder.glob("*/*")):
        options["variant"] = variant
    pipe = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    for part in folders.PARTS[family]:  # type: ignore[index]
        # transformers 5 loads text encoders in the dtype that their configuration names
        getattr(pipe, part).to(dtype).requires_grad_(False).eval()
    return pipe


class PipelineHolder:
    """Holds one pipeline; not for use from several threads at once (``identity`` and ``placement`` may be read)."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self._views: weakref.WeakSet[Any] = weakref.WeakSet()  # image-to-image pipelines that share the parts
        self._base: CheckpointSpec | None = None
        self._base_folder = Path()
        self._base_key: tuple[Any, ...] = ()
        self._parts: dict[str, str] = {}
        self._untouched: dict[str, tuple[Any, Any]] = {}  # encoder: (tokenizer, embedding) before a token was added
        self._scheduler: Any = None
        self._identity: dict[str, Any] = {}
        self._placement: Placement | None = None
        self._chosen: tuple[Any, ...] = ()
        self._light = False
        self._placed = False  # hooks are on, or the parts are on the device
        self._networks: dict[str, Any] = {}  # by source, the one used last at the end

    @property
    def placement(self) -> Placement | None:
        """How the pipeline is held; ``None`` when nothing is loaded."""
        return self._placement

    def identity(self) -> dict[str, Any]:
        """Return what is loaded, for the record of a run: base, strategy, the SHA-256 of each weight file by part."""
        return copy.deepcopy(self._identity)

    def ensure(
        self,
        spec: CheckpointSpec,
        catalogue: Mapping[str, CheckpointSpec],
        settings: Settings,
        *,
        light: bool = False,
        say: Say = lambda _: None,
        placement: Placement | None = None,
    ) -> Any:
        """Make ``spec`` the loaded checkpoint and return its text-to-image pipeline.

        The caller must not keep the pipeline over the next call: freeing empties it.

        Args:
            spec: what to load.
            catalogue: where its base is.
            settings: device and folders.
            light: hold it one step lighter than the memory asks for; a pipeline that was loaded so stays so.
            say: told what is being done.
            placement: hold it just so instead of choosing.

        Raises:
            InputError: files are missing, unsafe or do not fit. When the headers show it, what was loaded before is
                still there; else the sentence says what is loaded now.
            SarGenError: loading failed for another reason; the sentence says what is loaded now.
        """
        base = spec if spec.kind == "pipeline" else base_of(catalogue, spec.base, spec.title)
        folder = local_folder(base, settings)
        folders.check_pipeline(folder, base.variant)
        files: StrategyFiles | None = None
        if spec is not base:
            files = folders.strategy_files(local_folder(spec, settings))
            folders.check_fits(files, folder, base.family, spec.title, base.variant)
            check_deltas(files, folder, spec.title, settings, base.variant)
        device = resolve_device(settings.device)
        key = (base.id, base.family, folder.resolve(), tuple(_source(p) for p in _base_weights(folder, base)))
        chosen = (device, placement)
        keep = self._pipe is not None and key == self._base_key and chosen == self._chosen
        target = sources(files)
        if not keep or changes(self._parts, target):
            say(f"Checking the files of {spec.title}.")
        for one in (base,) if spec is base else (base, spec):
            check_hashes(one, settings)
        identity = _identity(spec, base, folder, files, settings)
        if not keep or (light and not self._light):
            if self._base is not None and self._base.id != base.id:
                say(f"Freeing {self._base.title}.")
            self.free()
            self._placement = placement or self._choose(device, folder, base, light)
            self._base, self._base_folder, self._base_key, self._chosen = base, folder, key, chosen
            self._light = light
            say(f"Loading {base.title}: {self._placement.reason}.")
            self._guard(spec, self._load_base)
        todo = changes(self._parts, target)
        if todo:
            say(f"Switching to {spec.title}: {', '.join(NAMES[part] for part in todo)}.")
            if self._placement is not None and self._placement.offload == "sequential" and self._placed:
                # Layers on the meta device cannot be written to.
                self._guard(spec, self._reload)
                todo = changes(self._parts, target)
        self._guard(spec, lambda: self._change(todo, target, files, spec))
        self._identity = {**identity, "placement": _plain(self._placement)}
        return self._pipe

    def image_to_image(self) -> Any:
        """Return an image-to-image pipeline that shares every part of the loaded one.

        Raises:
            SarGenError: nothing is loaded.
        """
        if self._pipe is None or self._base is None:
            raise SarGenError("No checkpoint is loaded; load one before an image-to-image request.")
        diffusers = quiet_diffusers()
        parts = dict(self._pipe.components)
        if self._base.family == "sdxl":
            view = diffusers.StableDiffusionXLImg2ImgPipeline(
                **parts,
                force_zeros_for_empty_prompt=self._pipe.config.force_zeros_for_empty_prompt,
                add_watermarker=False,
            )
        else:
            view = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        for name in ("_all_hooks", "_offload_device", "_offload_gpu_id"):
            if hasattr(self._pipe, name):
                setattr(view, name, getattr(self._pipe, name))
        view.set_progress_bar_config(disable=True)
        self._views.add(view)
        return view

    def network(self, spec: NetworkSpec, settings: Settings, say: Say = lambda _: None) -> Any:
        """Return a network that reads guides, on the device and in the pipeline's dtype; a few are kept.

        Args:
            spec: the network; that it fits was checked before (``guide_networks.check_fits``).
            settings: where files are.
            say: told what is being done.

        Raises:
            InputError: its files are missing or changed.
            SarGenError: loading failed.
        """
        assert self._placement is not None, "nothing is loaded"
        folder = local_network(spec, settings)
        files = weight_files(folder, spec.variant)
        source = f"{_source(tuple(files))} {_plain(self._placement)}"
        if source in self._networks:
            self._networks[source] = self._networks.pop(source)
            return self._networks[source]
        while len(self._networks) >= KEPT_NETWORKS:
            del self._networks[next(iter(self._networks))]
        say(f"Loading {spec.title}.")
        for path in files:
            read_header(path)
        kind = getattr(quiet_diffusers(), read_config(folder, spec.title)["_class_name"])
        options = {"variant": spec.variant} if any(f".{spec.variant}." in path.name for path in files) else {}
        try:
            network = kind.from_pretrained(
                folder,
                torch_dtype=getattr(torch, self._placement.dtype),
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise SarGenError(f"{spec.title} could not be loaded ({_short(error)}); get its files again.") from error
        network.to(getattr(torch, self._placement.dtype)).requires_grad_(False).eval()
        if self._placement.offload == "none":
            network.to(self._placement.device)
        else:
            from accelerate import cpu_offload

            cpu_offload(network, self._placement.device)
        self._networks[source] = network
        return network

    def free(self) -> None:
        """Drop the pipeline and give its memory back, even while someone still holds the (emptied) pipeline object."""
        self._networks = {}
        pipes = [pipe for pipe in (self._pipe, *self._views) if pipe is not None]
        self._pipe, self._views, self._untouched, self._scheduler = None, weakref.WeakSet(), {}, None
        for pipe in pipes:
            if getattr(pipe, "_all_hooks", None):
                pipe.remove_all_hooks()
                pipe._all_hooks = []  # they hold the parts
            for name in list(pipe.components):
                setattr(pipe, name, None)
        self._base, self._base_key, self._parts, self._placement = None, (), {}, None
        self._chosen, self._identity, self._placed = (), {}, False
        if not pipes:
            return
        del pipes
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _choose(self, device: str, folder: Path, base: CheckpointSpec, light: bool) -> Placement:
        parts = folders.part_bytes(folder, base.variant)
        # The estimates are for 1024x1024; the VAE's maps grow with the area.
        share = (base.resolution / 1024) ** 2
        working, tiled = int(WORKING_BYTES * max(share, 0.05)), int(TILED_BYTES * min(1.0, max(share, 0.05)))
        if device == "cpu":
            import psutil

            free, bf16 = psutil.virtual_memory().available, True
        else:
            free = torch.cuda.mem_get_info(device)[0]
            bf16 = torch.cuda.get_device_capability(device)[0] >= 8
        return choose_placement(
            device, free_memory=free, parts=parts, bf16=bf16, light=light, working=working, tiled=tiled
        )

    def _load_base(self) -> None:
        """Load the base onto the CPU, all parts in one dtype."""
        assert self._base is not None and self._placement is not None
        dtype = getattr(torch, self._placement.dtype)
        pipe = load_pipeline(self._base_folder, self._base.family, self._base.variant, dtype)
        if self._placement.vae_tiling:
            pipe.vae.enable_tiling()
        self._pipe, self._scheduler, self._parts, self._placed = pipe, pipe.scheduler, {}, False

    def _reload(self) -> None:
        """Load the same base again, on the CPU and without hooks."""
        base, folder, key, chosen, placement = (
            self._base,
            self._base_folder,
            self._base_key,
            self._chosen,
            self._placement,
        )
        self.free()
        self._base, self._base_folder, self._base_key, self._chosen = base, folder, key, chosen
        self._placement = placement
        self._load_base()

    def _guard(self, spec: CheckpointSpec, work: Callable[[], None]) -> None:
        """Do a piece of loading; when it fails, put the base back, or nothing, and say which."""
        try:
            work()
            return
        except (torch.OutOfMemoryError, MemoryError):
            self.free()
            raise
        except Exception as error:
            logger.debug("Loading %s failed", spec.id, exc_info=True)
            reason = str(error) if isinstance(error, SarGenError) else _short(error)
            cause = error
        base = self._base
        state = "nothing is loaded"
        if self._pipe is not None and base is not None and base.id != spec.id:
            try:
                self._change(changes(self._parts, {}), {}, None, base)
                self._identity = {"checkpoint": base.id, "base": base.id, "strategy": base.strategy}
                state = f"{base.title} is loaded instead"
            except Exception:
                logger.debug("Restoring %s failed", base.id, exc_info=True)
                self.free()
        else:
            self.free()
        kind = InputError if isinstance(cause, InputError) else SarGenError
        raise kind(f"{spec.title} could not be loaded ({reason.rstrip('.')}); {state}.") from cause

    def _change(
        self, todo: tuple[str, ...], target: Mapping[str, str], files: StrategyFiles | None, spec: CheckpointSpec
    ) -> None:
        """Change the parts ``todo`` to ``target`` and place the pipeline; ``_parts`` says how far it came."""
        assert self._placement is not None
        pipe = self._pipe
        if todo and self._placement.offload != "none" and self._placed:
            pipe.remove_all_hooks()
            self._placed = False
        if "lora" in todo and self._parts.get("lora", BASE) != BASE:
            pipe.unload_lora_weights()
            self._parts["lora"] = BASE
        if "token" in todo:
            self._remove_token()
        for part in todo:
            if part in ("token", "lora"):
                continue
            self._parts[part] = "being written"
            if part == "scheduler":
                self._set_scheduler(files)
            else:
                self._write_part(part, files)
            self._parts[part] = target.get(part, BASE)
        if "token" in todo and files is not None and files.token is not None:
            self._parts["token"] = "being written"
            self._add_token(files.token, spec.token or DEFAULT_TOKEN)
            self._parts["token"] = target["token"]
        if "lora" in todo and files is not None and files.lora is not None:
            self._parts["lora"] = "being written"
            self._add_lora(files.lora, files.lora_parts)
            self._parts["lora"] = target["lora"]
        self._place()

    def _place(self) -> None:
        assert self._placement is not None
        if self._placed:
            return
        if self._placement.offload == "model":
            self._pipe.enable_model_cpu_offload(device=self._placement.device)
        elif self._placement.offload == "sequential":
            self._pipe.enable_sequential_cpu_offload(device=self._placement.device)
        else:
            self._pipe.to(self._placement.device)
        self._placed = True

    def _write_part(self, part: str, files: StrategyFiles | None) -> None:
        """Copy a part's weights from the strategy, or back from the base, into the module that is there."""
        assert self._base is not None
        module = getattr(self._pipe, part)
        base = weight_files(self._base_folder / part, self._base.variant)
        mine = list(files.full.get(part, ())) if files else []
        lora = files.vae_lora if files and part == "vae" else None
        if not mine or (part == "vae" and files is not None and files.vae_decoder_only):
            copy_weights(module, base)
        if mine:
            copy_weights(module, mine)
        if files and part in files.deltas:
            apply_delta(module, base, files.deltas[part])
        if lora is not None:
            add_low_rank(module, base, lora)

    def _set_scheduler(self, files: StrategyFiles | None) -> None:
        if files is None or files.scheduler is None:
            self._pipe.scheduler = self._scheduler
            return
        config = folders.read_json(files.scheduler / "scheduler_config.json")
        name = str(config.get("_class_name", ""))
        kind = getattr(quiet_diffusers(), name, None) if name.endswith("Scheduler") and name.isidentifier() else None
        if kind is None:
            raise InputError(f"The scheduler {name!r} is not one of diffusers'; correct scheduler_config.json.")
        self._pipe.scheduler = kind.from_config(config)

    def _add_token(self, path: Path, token: str) -> None:
        """Add the rows of ``token.safetensors`` to each text encoder's table, and the token to its tokenizer."""
        from safetensors.torch import load_file

        tables = load_file(path)
        for key, encoder_name in folders.TOKEN_KEYS.items():
            if key not in tables:
                continue
            tokenizer_name = encoder_name.replace("text_encoder", "tokenizer")
            encoder, tokenizer = getattr(self._pipe, encoder_name), getattr(self._pipe, tokenizer_name)
            self._untouched[encoder_name] = (tokenizer, encoder.get_input_embeddings())
            setattr(self._pipe, tokenizer_name, add_token(encoder, tokenizer, token, tables[key]))

    def _remove_token(self) -> None:
        for encoder_name, (tokenizer, embedding) in self._untouched.items():
            encoder = getattr(self._pipe, encoder_name)
            # The table may have been kept elsewhere while the pipeline moved.
            now = encoder.get_input_embeddings().weight
            encoder.set_input_embeddings(embedding.to(device=now.device))
            setattr(self._pipe, encoder_name.replace("text_encoder", "tokenizer"), tokenizer)
        self._untouched = {}
        self._parts["token"] = BASE

    def _add_lora(self, path: Path, parts: tuple[str, ...]) -> None:
        """Put a LoRA on, and check that each of its layers has found its place (diffusers only warns).

        The steps are those of the pipeline's ``load_lora_weights`` but one: diffusers' training scripts write the
        attention layers as ``.lora.down`` and all others as ``.lora_A``, and reading such a file it goes by the first
        key alone and drops what is named the other way.
        """
        pipe = self._pipe
        tensors, alphas, metadata = pipe.lora_state_dict(
            path.parent,
            weight_name=path.name,
            use_safetensors=True,
            local_files_only=True,
            unet_config=pipe.unet.config,
            return_lora_metadata=True,
        )
        if not all("lora" in key for key in tensors):
            raise InputError(f"the LoRA {path.name} holds more than a LoRA's matrices")
        options = {
            "network_alphas": alphas,
            "adapter_name": ADAPTER,
            "metadata": metadata,
            "_pipeline": pipe,
            "low_cpu_mem_usage": True,  # the matrices of a new layer are not drawn first
        }
        tensors = {_peft_name(key): tensor for key, tensor in tensors.items()}
        pipe.load_lora_into_unet(tensors, unet=pipe.unet, **options)
        for encoder in folders.TOKEN_KEYS.values():
            if getattr(pipe, encoder, None) is not None:
                pipe.load_lora_into_text_encoder(
                    tensors, text_encoder=getattr(pipe, encoder), prefix=encoder, lora_scale=pipe.lora_scale, **options
                )
        wanted = sum(any(mark in key for mark in _UP) for key in read_header(path).tensors)
        found = sum(_lora_layers(getattr(self._pipe, part)) for part in parts)
        if found != wanted:
            raise InputError(f"only {found} of the {wanted} layers of the LoRA {path.name} fit the base")


_UP = (".lora_B.", ".lora.up.", ".lora_up.", ".lora_linear_layer.up.")


def _peft_name(key: str) -> str:
    """Return a UNet's key with PEFT's names of the two matrices; text encoders' keys are converted by diffusers."""
    if not key.startswith("unet."):
        return key
    return key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def copy_weights(module: torch.nn.Module, files: list[Path]) -> None:
    """Copy the tensors of safetensors files into a module in place, cast to its dtype, one tensor at a time.

    Names may carry the ``text_model.`` prefix of CLIP text models or not (transformers 5.6 dropped it from one of the
    two classes); ``position_ids`` buffers of older versions are passed over.

    Raises:
        InputError: a name or a shape is not the module's.
    """
    from safetensors import safe_open

    mine = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    short = name.removeprefix("text_model.")
                    if short.endswith("position_ids"):
                        continue
                    tensor = file.get_tensor(name)
                    if short not in mine or mine[short].shape != tensor.shape:
                        raise InputError(f"{name} of {path.name} has no place of its shape in the base")
                    mine[short].copy_(tensor)


def add_low_rank(module: torch.nn.Module, base: list[Path], path: Path) -> None:
    """Add a LoRA's products to a module's weights: ``W = W_base + (alpha / rank) B A``, in float32, then cast.

    A is ``(rank, in)`` and B ``(out, rank)`` for linear layers; ``(rank, in, k, k)`` and ``(out, rank, 1, 1)`` in
    convolutions.
    ``alpha`` is the rank where the file gives none (arXiv 2106.09685).
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = load_file(path)
    mine = dict(module.state_dict())
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    with torch.no_grad():
        for name in names:
            down, up = tensors[f"{name}.lora_A.weight"].float(), tensors[f"{name}.lora_B.weight"].float()
            rank = down.shape[0]
            scale = float(tensors.get(f"{name}.alpha", torch.tensor(rank))) / rank
            target = mine.get(f"{name}.weight")
            delta = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
            if target is None or target.shape != delta.shape:
                raise InputError(f"{name} of the LoRA {path.name} has no place of its shape in the base")
            for file in base:
                with safe_open(file, framework="pt") as tensors_of_base:
                    if f"{name}.weight" in tensors_of_base.keys():  # noqa: SIM118 - not a dict
                        target.copy_(tensors_of_base.get_tensor(f"{name}.weight").float() + scale * delta)


def add_token(encoder: Any, tokenizer: Any, token: str, rows: torch.Tensor) -> Any:
    """Give a text encoder a new table with ``rows`` added, and return a copy of the tokenizer that knows ``token``.

    Several rows become ``token``, ``token_1``, …, which diffusers' prompt handling puts for ``token``
    (``TextualInversionLoaderMixin.maybe_convert_prompt``). The old table is not touched, so that it can be put back.

    Args:
        encoder: transformers CLIP text model.
        tokenizer: its tokenizer.
        token: for example ``<SAR>``.
        rows: ``(count, width)``.

    Raises:
        InputError: the tokenizer knows the token already, or the width is another.
    """
    from tokenizers import AddedToken

    names = [token, *(f"{token}_{i}" for i in range(1, rows.shape[0]))]
    known = tokenizer.get_vocab()
    if any(name in known for name in names):
        raise InputError(f"the base's tokenizer knows {token} already; save the token under another name")
    old = encoder.get_input_embeddings()
    if rows.shape[1] != old.embedding_dim:
        raise InputError(f"the token is {rows.shape[1]} wide, the text encoder {old.embedding_dim}")
    larger = copy.deepcopy(tokenizer)
    # Not normalised: CLIP's normaliser lowers letters, and diffusers would then not find <SAR> to put <SAR> <SAR>_1.
    larger.add_tokens([AddedToken(name, normalized=False) for name in names])
    places = larger.convert_tokens_to_ids(names)
    weight = old.weight
    table = torch.zeros(
        max(weight.shape[0], max(places) + 1), weight.shape[1], dtype=weight.dtype, device=weight.device
    )
    table[: weight.shape[0]] = weight.data
    table[places] = rows.to(device=weight.device, dtype=weight.dtype)
    encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(table, freeze=True))
    for module in encoder.modules():
        # CLIP's own configurations name an end of text (2) that is not its tokenizer's; transformers then pools at the
        # highest id, which was the end of text until the token came.
        if getattr(module, "eos_token_id", None) is not None:
            module.eos_token_id = tokenizer.eos_token_id
    return larger


def quiet_diffusers() -> Any:
    """Import diffusers, quietly: transformers announces on import that torchvision, which is not needed, is absent."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    import diffusers
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    return diffusers


def _lora_layers(module: torch.nn.Module) -> int:
    """Count the layers that carry our adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(
        isinstance(layer, BaseTunerLayer) and ADAPTER in getattr(layer, "lora_A", {}) for layer in module.modules()
    )


def _identity(
    spec: CheckpointSpec, base: CheckpointSpec, folder: Path, files: StrategyFiles | None, settings: Settings
) -> dict[str, Any]:
    """Return the record of a checkpoint: ids and, by part, its weight files with their SHA-256."""
    paths: dict[str, list[Path]] = dict(folders.pipeline_weights(folder, base.variant))
    if files is not None:
        paths |= {part: list(found) for part, found in files.full.items()}
        # A part that is the base's and what changed names the files of both.
        paths |= {part: [*paths[part], path] for part, path in files.deltas.items()}
        single = {"lora": files.lora, "token": files.token, "vae_lora": files.vae_lora}
        paths |= {part: [path] for part, path in single.items() if path is not None}
        if "vae" in files.full and files.vae_decoder_only:
            paths["vae"] = [*folders.pipeline_weights(folder, base.variant)["vae"], *files.full["vae"]]
    hashes = hashes_of([path for some in paths.values() for path in some], settings)
    return {
        "checkpoint": spec.id,
        "family": base.family,
        "base": base.id,
        "strategy": spec.strategy,
        "parts": {part: {path.name: hashes[path] for path in some} for part, some in paths.items()},
    }


def _base_weights(folder: Path, base: CheckpointSpec) -> list[tuple[Path, ...]]:
    return [tuple(paths) for paths in folders.pipeline_weights(folder, base.variant).values()]


def _source(paths: tuple[Path, ...]) -> str:
    """Name files so that the name changes when one of them does."""
    stats = [(path.resolve(), path.stat()) for path in paths]
    return json.dumps([[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats])


def _plain(placement: Placement | None) -> dict[str, Any]:
    return {} if placement is None else {k: v for k, v in vars(placement).items() if k != "reason"}


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
