"""The pipeline on the device: loading a base, putting a strategy on it, changing strategies, freeing.

One pipeline is in use at a time. Changing the strategy on one base touches only the parts that differ (``changes``):
whole parts (the base's with a quantised delta too) are copied into the modules that are there, so modules stay the
same objects; LoRAs are put on with PEFT and taken off again; token embeddings replace the embedding table and the old
one is put back. Every check that can be made from headers is made before what is loaded is touched.

What was in use is kept, within ``Settings.keep_gb`` and ``keep_gpu_gb``, so that going back to it is quick: copies of
parts that were replaced and of those that replaced them, the values of LoRAs, and other bases as they are. The least
recently used goes first; all of it goes when memory runs out.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sar_gen import folders
from sar_gen.checkpoints import CheckpointSpec, base_of, check_deltas, check_hashes, hashes_of, local_folder
from sar_gen.deltas import apply_delta
from sar_gen.errors import InputError, SarGenError
from sar_gen.folders import StrategyFiles
from sar_gen.guide_networks import NetworkSpec, local_network, read_config
from sar_gen.imports import without_collection
from sar_gen.kept import Kept, give_back
from sar_gen.lora_layers import Layers, layers_on, load_lora, values_of
from sar_gen.settings import Settings
from sar_gen.strategies import DEFAULT_TOKEN
from sar_gen.switching import copied, few_threads, size_of, write
from sar_gen.weights import read_header, weight_files

logger = logging.getLogger(__name__)

Offload = Literal["none", "model", "sequential"]
Say = Callable[[str], None]

ORDER = ("unet", "text_encoder", "text_encoder_2", "vae", "scheduler", "token", "lora")
BASE = "base"  # the source of a part that is as in the base; token and LoRA: there is none
WRITING = "being written"  # the source of a part that is as nothing until it is written whole
KEPT_NETWORKS = 2  # of a base
KEPT_LAYERS = 2  # sets of LoRA layers, each of another shape, of a base
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
        unet: dtype of the UNet, where it is another one; for a processor that calculates faster in it.
    """

    device: str
    dtype: str
    offload: Offload
    vae_tiling: bool
    reason: str
    unet: str | None = None


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
    with without_collection():
        diffusers = quiet_diffusers()
        kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    options: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}
    if family == "sdxl":
        # A watermark, where that package is installed, would change the grey values.
        options["add_watermarker"] = False
    else:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if variant and any(f".{variant}." in path.name for path in folder.glob("*/*")):
        options["variant"] = variant
    with few_threads(sum(folders.part_bytes(folder, variant).values())):
        pipe = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **options)
        pipe.set_progress_bar_config(disable=True)
        for part in folders.PARTS[family]:  # type: ignore[index]
            # transformers 5 loads text encoders in the dtype that their configuration names
            getattr(pipe, part).to(dtype).requires_grad_(False).eval()
    return pipe


@dataclass(eq=False)
class _Held:
    """A base in memory, with what is on it.

    Attributes:
        base: what it is.
        folder: its files.
        key: changes when a file does.
        chosen: device, placement and the UNet's dtype that were asked for.
        placement: how it is held.
        light: one step lighter than the memory asked for.
        pipe: ``None`` before it is loaded and once it is freed.
        views: image-to-image pipelines that share the parts.
        parts: ``{part: source}`` of what is on it.
        names: of the tensors of each part as loaded; others that come later (fused projections) are made of these.
        untouched: by encoder, tokenizer and embedding before a token was added.
        scheduler: the base's own.
        identity: for the record of a run.
        placed: hooks are on, or the parts are on the device.
        networks: that read guides, by source, the one used last at the end.
        lora: the layers that are on.
        layers: those that were, by shape.
    """

    base: CheckpointSpec
    folder: Path
    key: tuple[Any, ...]
    chosen: tuple[Any, ...]
    placement: Placement
    light: bool
    pipe: Any = None
    views: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    parts: dict[str, str] = field(default_factory=dict)
    names: dict[str, frozenset[str]] = field(default_factory=dict)
    untouched: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    scheduler: Any = None
    identity: dict[str, Any] = field(default_factory=dict)
    placed: bool = False
    networks: dict[str, Any] = field(default_factory=dict)
    lora: Layers | None = None
    layers: dict[tuple[Any, ...], Layers] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of its weights and of all that is held with them."""
        modules = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        modules += [*self.networks.values(), *(embedding for _, embedding in self.untouched.values())]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        tensors += [tensor for layers in self.layers.values() for tensor in layers.tensors().values()]
        return size_of({tensor.data_ptr(): tensor for tensor in tensors}.values())

    def free(self) -> None:
        """Let all of it go, even while someone still holds the (emptied) pipeline object; ``give_back`` after."""
        pipes = [pipe for pipe in (self.pipe, *self.views) if pipe is not None]
        self.pipe, self.views, self.scheduler, self.placed = None, weakref.WeakSet(), None, False
        self.parts, self.untouched, self.networks, self.layers, self.lora = {}, {}, {}, {}, None
        for pipe in pipes:
            if getattr(pipe, "_all_hooks", None):
                pipe.remove_all_hooks()
                pipe._all_hooks = []  # they hold the parts
            for name in list(pipe.components):
                setattr(pipe, name, None)


class PipelineHolder:
    """Holds the pipeline in use, and keeps what was, within a budget.

    Not for use from several threads at once (``identity``, ``placement`` and ``kept`` may be read).
    """

    def __init__(self) -> None:
        self._now: _Held | None = None
        # Copies of parts, values of LoRAs, and bases whose weights are in the machine's memory; bases on a GPU.
        self._in_memory, self._on_gpu = Kept(), Kept()
        self._budget = 0  # of the first of the two, bytes

    @property
    def placement(self) -> Placement | None:
        """How the pipeline is held; ``None`` when nothing is loaded."""
        return None if self._now is None else self._now.placement

    @property
    def kept(self) -> dict[str, int]:
        """Bytes that are kept beside the pipeline in use, in the machine's ``memory`` and on the ``gpu``."""
        return {"memory": self._in_memory.size, "gpu": self._on_gpu.size}

    @property
    def _pipe(self) -> Any:
        return None if self._now is None else self._now.pipe

    def identity(self) -> dict[str, Any]:
        """Return what is loaded, for the record of a run: base, strategy, the SHA-256 of each weight file by part."""
        return {} if self._now is None else copy.deepcopy(self._now.identity)

    def ensure(
        self,
        spec: CheckpointSpec,
        catalogue: Mapping[str, CheckpointSpec],
        settings: Settings,
        *,
        light: bool = False,
        say: Say = lambda _: None,
        placement: Placement | None = None,
        unet: str | None = None,
    ) -> Any:
        """Make ``spec`` the loaded checkpoint and return its text-to-image pipeline.

        The caller must not keep the pipeline over the next call: freeing empties it, and another call may change what
        is on it. When memory runs out, what is kept beside it is freed, and it is tried once more.

        Args:
            spec: what to load.
            catalogue: where its base is.
            settings: device, folders, and how much is kept.
            light: hold it one step lighter than the memory asks for; a pipeline that was loaded so stays so.
            say: told what is being done.
            placement: hold it just so instead of choosing.
            unet: dtype of the UNet in a pipeline that is held in float32.

        Raises:
            InputError: files are missing, unsafe or do not fit. When the headers show it, what was loaded before is
                still there; else the sentence says what is loaded now.
            SarGenError: loading failed for another reason; the sentence says what is loaded now.
        """
        try:
            return self._ensure(spec, catalogue, settings, light, say, placement, unet)
        except (torch.OutOfMemoryError, MemoryError):
            if not self.kept["memory"] and not self.kept["gpu"]:
                raise
        # Outside the except clause: the traceback there keeps the tensors alive.
        say("Memory ran out; freeing what was kept.")
        self.free_kept()
        return self._ensure(spec, catalogue, settings, light, say, placement, unet)

    def _ensure(
        self,
        spec: CheckpointSpec,
        catalogue: Mapping[str, CheckpointSpec],
        settings: Settings,
        light: bool,
        say: Say,
        placement: Placement | None,
        unet: str | None,
    ) -> Any:
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
        chosen = (device, placement, unet)
        now = self._now
        keep = now is not None and now.pipe is not None and (key, chosen) == (now.key, now.chosen)
        target = sources(files)
        if now is None or not keep or changes(now.parts, target):
            say(f"Checking the files of {spec.title}.")
        for one in (base,) if spec is base else (base, spec):
            check_hashes(one, settings)
        identity = _identity(spec, base, folder, files, settings)
        self._budget = _budget(settings.keep_gb, self._in_memory, _free_memory("cpu"))
        self._in_memory.make_room(0, self._budget)
        if now is None or not keep or (light and not now.light):
            self._bring(spec, _Held(base, folder, key, chosen, placement or _UNPLACED, light), settings, say)
        now = self._held
        todo = changes(now.parts, target)
        if todo:
            say(f"Switching to {spec.title}: {', '.join(NAMES[part] for part in todo)}.")
            if now.placement.offload == "sequential" and now.placed:
                # Layers on the meta device cannot be written to.
                self._guard(spec, self._reload)
                todo = changes(self._held.parts, target)
        self._guard(spec, lambda: self._change(todo, target, files, spec))
        now = self._held
        now.identity = {**identity, "placement": _plain(now.placement)}
        return now.pipe

    def image_to_image(self) -> Any:
        """Return an image-to-image pipeline that shares every part of the loaded one.

        Raises:
            SarGenError: nothing is loaded.
        """
        if self._now is None or self._now.pipe is None:
            raise SarGenError("No checkpoint is loaded; load one before an image-to-image request.")
        diffusers = quiet_diffusers()
        pipe = self._now.pipe
        parts = dict(pipe.components)
        if self._now.base.family == "sdxl":
            view = diffusers.StableDiffusionXLImg2ImgPipeline(
                **parts,
                force_zeros_for_empty_prompt=pipe.config.force_zeros_for_empty_prompt,
                add_watermarker=False,
            )
        else:
            view = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        for name in ("_all_hooks", "_offload_device", "_offload_gpu_id"):
            if hasattr(pipe, name):
                setattr(view, name, getattr(pipe, name))
        view.set_progress_bar_config(disable=True)
        self._now.views.add(view)
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
        now = self._held
        folder = local_network(spec, settings)
        files = weight_files(folder, spec.variant)
        source = f"{_source(tuple(files))} {_plain(now.placement)}"
        if source in now.networks:
            now.networks[source] = now.networks.pop(source)
            return now.networks[source]
        while len(now.networks) >= KEPT_NETWORKS:
            del now.networks[next(iter(now.networks))]
        say(f"Loading {spec.title}.")
        for path in files:
            read_header(path)
        kind = getattr(quiet_diffusers(), read_config(folder, spec.title)["_class_name"])
        options = {"variant": spec.variant} if any(f".{spec.variant}." in path.name for path in files) else {}
        try:
            network = kind.from_pretrained(
                folder,
                torch_dtype=getattr(torch, now.placement.dtype),
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise SarGenError(f"{spec.title} could not be loaded ({_short(error)}); get its files again.") from error
        network.to(getattr(torch, now.placement.dtype)).requires_grad_(False).eval()
        if now.placement.offload == "none":
            network.to(now.placement.device)
        else:
            from accelerate import cpu_offload

            cpu_offload(network, now.placement.device)
        now.networks[source] = network
        return network

    def free(self) -> None:
        """Drop the pipeline and all that is kept, and give the memory back."""
        there = self._now is not None or len(self._in_memory) or len(self._on_gpu)
        self._free_now()
        self.free_kept()
        if there:
            give_back()

    def free_kept(self) -> bool:
        """Give the memory back of what is kept beside the pipeline in use; tells whether there was anything."""
        there = bool(len(self._in_memory) or len(self._on_gpu))
        self._in_memory.clear()
        self._on_gpu.clear()
        if there:
            give_back()
        return there

    @property
    def _held(self) -> _Held:
        assert self._now is not None, "nothing is loaded"
        return self._now

    def _free_now(self) -> None:
        now, self._now = self._now, None
        if now is not None:
            now.free()

    def _bring(self, spec: CheckpointSpec, new: _Held, settings: Settings, say: Say) -> None:
        """Make a base the one in use: one that is kept, or a newly loaded one; keep the one that was."""
        device = new.chosen[0]
        before = self._now
        if new.light:
            self.free_kept()
        kept = self._take(new)
        if before is not None:
            other = before.base.id != new.base.id
            self._now = None
            if not (other and not new.light and self._put_away(before, settings)):
                if other:
                    say(f"Freeing {before.base.title}.")
                before.free()
        if kept is not None:
            self._now = kept
            return
        give_back()
        demand = _demand(new.folder, new.base)
        beside = self._in_memory if device == "cpu" else self._on_gpu
        if new.placement is _UNPLACED:
            new.placement = _choose(device, demand, _free_memory(device) + beside.size, new.light)
        if new.chosen[2] is not None and new.placement.dtype == "float32":
            reason = f"{new.placement.reason}, UNet in {new.chosen[2]}"
            new.placement = dataclasses.replace(new.placement, unet=new.chosen[2], reason=reason)
        while _free_memory(device) < demand.of(new.placement) and beside.drop_oldest():
            give_back()
        say(f"Loading {new.base.title}: {new.placement.reason}.")
        self._now = new
        self._guard(spec, self._load_base)

    def _take(self, new: _Held) -> _Held | None:
        """Return the kept base that is the same as a new one; another version of it is freed."""
        for kept in (self._in_memory, self._on_gpu):
            found: _Held | None = kept.take(("base", new.base.id))
            if found is None:
                continue
            if (found.key, found.chosen) == (new.key, new.chosen):
                return found
            found.free()
        return None

    def _put_away(self, old: _Held, settings: Settings) -> bool:
        """Keep a base that is in use no longer; tells whether there is room. A light one would come back as light."""
        if old.pipe is None or old.light or old.placement.offload == "sequential":
            return False
        on_gpu = old.placement.device != "cpu" and old.placement.offload == "none"
        size, kept, budget = old.size, self._in_memory, self._budget
        if on_gpu:
            kept = self._on_gpu
            budget = _budget(settings.keep_gpu_gb, kept, _free_memory(old.placement.device))
        if not kept.make_room(size, budget):
            return False
        kept.put(("base", old.base.id), old, size, old.free)
        return True

    def _load_base(self) -> None:
        """Load the base onto the CPU, all parts in one dtype, but for a UNet that is to have another one."""
        now = self._held
        dtype = getattr(torch, now.placement.dtype)
        pipe = load_pipeline(now.folder, now.base.family, now.base.variant, dtype)
        if now.placement.unet is not None:
            pipe.unet.to(getattr(torch, now.placement.unet))
        if now.placement.vae_tiling:
            pipe.vae.enable_tiling()
        now.names = {part: frozenset(getattr(pipe, part).state_dict()) for part in folders.PARTS[now.base.family]}
        now.pipe, now.scheduler, now.parts, now.placed = pipe, pipe.scheduler, {}, False

    def _reload(self) -> None:
        """Load the same base again, on the CPU and without hooks."""
        now = self._held
        now.free()
        give_back()
        self._load_base()

    def _guard(self, spec: CheckpointSpec, work: Callable[[], None]) -> None:
        """Do a piece of loading; when it fails, put the base back, or nothing, and say which."""
        try:
            work()
            return
        except (torch.OutOfMemoryError, MemoryError):
            self._free_now()
            give_back()
            raise
        except Exception as error:
            logger.debug("Loading %s failed", spec.id, exc_info=True)
            reason = str(error) if isinstance(error, SarGenError) else _short(error)
            cause = error
        now = self._now
        state = "nothing is loaded"
        if now is not None and now.pipe is not None and now.base.id != spec.id:
            try:
                self._change(changes(now.parts, {}), {}, None, now.base)
                now.identity = {"checkpoint": now.base.id, "base": now.base.id, "strategy": now.base.strategy}
                state = f"{now.base.title} is loaded instead"
            except Exception:
                logger.debug("Restoring %s failed", now.base.id, exc_info=True)
                self._free_now()
        else:
            self._free_now()
        kind = InputError if isinstance(cause, InputError) else SarGenError
        raise kind(f"{spec.title} could not be loaded ({reason.rstrip('.')}); {state}.") from cause

    def _change(
        self, todo: tuple[str, ...], target: Mapping[str, str], files: StrategyFiles | None, spec: CheckpointSpec
    ) -> None:
        """Change the parts ``todo`` to ``target`` and place the pipeline; ``parts`` says how far it came."""
        now = self._held
        if todo and now.placement.offload != "none" and now.placed:
            now.pipe.remove_all_hooks()
            now.placed = False
        if "lora" in todo and not self._swap_lora(todo, target.get("lora", BASE)):
            self._take_lora_off()
        if "token" in todo:
            self._remove_token()
        for part in todo:
            if part in ("token", "lora"):
                continue
            before, now.parts[part] = now.parts.get(part, BASE), WRITING
            if part == "scheduler":
                self._set_scheduler(files)
            else:
                self._write_part(part, before, target.get(part, BASE), files)
            now.parts[part] = target.get(part, BASE)
        if "token" in todo and files is not None and files.token is not None:
            now.parts["token"] = WRITING
            self._add_token(files.token, spec.token or DEFAULT_TOKEN)
            now.parts["token"] = target["token"]
        if "lora" in todo and files is not None and files.lora is not None and now.parts["lora"] != target["lora"]:
            now.parts["lora"] = WRITING
            self._add_lora(files.lora, files.lora_parts, target["lora"])
            now.parts["lora"] = target["lora"]
        self._place()

    def _place(self) -> None:
        now = self._held
        if now.placed:
            return
        if now.placement.offload == "model":
            now.pipe.enable_model_cpu_offload(device=now.placement.device)
        elif now.placement.offload == "sequential":
            now.pipe.enable_sequential_cpu_offload(device=now.placement.device)
        else:
            now.pipe.to(now.placement.device)
        now.placed = True

    def _write_part(self, part: str, before: str, source: str, files: StrategyFiles | None) -> None:
        """Copy a part's weights from the strategy, or back from the base, into the module that is there.

        Args:
            part: for example ``unet``.
            before: the source of what it holds.
            source: of what it is to hold.
            files: of the strategy.
        """
        now = self._held
        module = getattr(now.pipe, part)
        if before == BASE and self._pinned:
            # On a CPU the base's file, which the system has in its cache, is nearly as quick the first time.
            self._keep_part(part, BASE)
        known = self._in_memory.get(self._key_of(part, source))
        if known is not None:
            write(known, module.state_dict())
            return
        base = weight_files(now.folder / part, now.base.variant)
        mine = list(files.full.get(part, ())) if files else []
        delta = files.deltas.get(part) if files else None
        lora = files.vae_lora if files and part == "vae" else None
        # A delta leaves what it does not name as it is: as in the base, where the part is the base's.
        if not (mine or (delta and before == BASE)) or (part == "vae" and files and mine and files.vae_decoder_only):
            copy_weights(module, base)
        if mine:
            copy_weights(module, mine)
        if delta is not None:
            apply_delta(module, base, delta)
        if lora is not None:
            add_low_rank(module, base, lora)
        self._keep_part(part, source)

    def _key_of(self, part: str, source: str) -> tuple[Any, ...]:
        """Return what a copy is kept by: the base's files, the source, and the dtype, in which values are rounded."""
        module = self._held.pipe.unet if part == "lora" else getattr(self._held.pipe, part)
        return (part, self._held.key, str(module.dtype), source)

    def _keep_part(self, part: str, source: str) -> None:
        """Keep a copy of what a part holds, where there is room."""
        key = self._key_of(part, source)
        if key in self._in_memory:
            return
        names = self._held.names[part]
        tensors = {name: t for name, t in getattr(self._held.pipe, part).state_dict().items() if name in names}
        size = size_of(tensors.values())
        self._keep(key, size, lambda: copied(tensors, self._pinned))

    @property
    def _pinned(self) -> bool:
        return self._held.placement.device != "cpu"

    def _keep(self, key: tuple[Any, ...], size: int, make: Callable[[], Any]) -> Any:
        """Keep what ``make`` returns, where there is room; ``None`` where there is none."""
        if not self._budget or not self._in_memory.make_room(size, self._budget):
            return None
        try:
            made = make()
        except (MemoryError, RuntimeError):  # torch's error when the machine's memory runs out
            logger.debug("No memory for a copy of %s bytes", size, exc_info=True)
            return None
        self._in_memory.put(key, made, size)
        return made

    def _set_scheduler(self, files: StrategyFiles | None) -> None:
        if files is None or files.scheduler is None:
            self._pipe.scheduler = self._held.scheduler
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
            self._held.untouched[encoder_name] = (tokenizer, encoder.get_input_embeddings())
            setattr(self._pipe, tokenizer_name, add_token(encoder, tokenizer, token, tables[key]))

    def _remove_token(self) -> None:
        for encoder_name, (tokenizer, embedding) in self._held.untouched.items():
            encoder = getattr(self._pipe, encoder_name)
            # The table may have been kept elsewhere while the pipeline moved.
            now = encoder.get_input_embeddings().weight
            encoder.set_input_embeddings(embedding.to(device=now.device))
            setattr(self._pipe, encoder_name.replace("text_encoder", "tokenizer"), tokenizer)
        self._held.untouched = {}
        self._held.parts["token"] = BASE

    def _swap_lora(self, todo: tuple[str, ...], source: str) -> bool:
        """Write a kept LoRA's values into the layers that are on, if they fit; tells whether they do."""
        now = self._held
        if now.lora is None or not set(todo) <= {"lora", "vae", "scheduler"}:
            return False
        values = self._in_memory.get(self._key_of("lora", source))
        if values is None or values.shape != now.lora.shape:
            return False
        now.parts["lora"] = WRITING
        now.lora.put_on(now.pipe, values)
        now.parts["lora"] = source
        return True

    def _take_lora_off(self) -> None:
        now = self._held
        if now.lora is not None:
            now.lora.take_off(now.pipe)
            if self._budget:
                now.layers.pop(now.lora.shape, None)
                now.layers[now.lora.shape] = now.lora
            while len(now.layers) > KEPT_LAYERS:
                del now.layers[next(iter(now.layers))]
            now.lora = None
        elif now.parts.get("lora", BASE) != BASE:
            now.pipe.unload_lora_weights()  # loading it was cut short
        now.parts["lora"] = BASE

    def _add_lora(self, path: Path, parts: tuple[str, ...], source: str) -> None:
        """Put a LoRA on: kept layers and values, or from the file."""
        now = self._held
        values = self._in_memory.get(self._key_of("lora", source))
        layers = None if values is None else now.layers.get(values.shape)
        if layers is not None and layers.fits():
            layers.put_on(now.pipe, values)
            now.lora = layers
            return
        load_lora(now.pipe, path, parts)
        now.lora = new = layers_on(now.pipe, parts, source)
        size = size_of(new.tensors().values())
        values = self._keep(self._key_of("lora", source), size, lambda: values_of(new, self._pinned))
        layers = now.layers.get(new.shape)
        if layers is None or values is None:
            return
        # Those that were there before may have been compiled.
        new.take_off(now.pipe)
        if layers.fits():
            now.lora = layers
        now.lora.put_on(now.pipe, values)


def copy_weights(module: torch.nn.Module, files: list[Path]) -> None:
    """Copy the tensors of safetensors files into a module in place, cast to its dtype, one tensor at a time.

    Names may carry the ``text_model.`` prefix of CLIP text models or not (transformers 5.6 dropped it from one of the
    two classes); ``position_ids`` buffers of older versions are passed over.

    Raises:
        InputError: a name or a shape is not the module's.
    """
    from safetensors import safe_open

    mine = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
    with few_threads(size_of(mine.values())), torch.no_grad():
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


@dataclass(frozen=True)
class _Demand:
    """Bytes that a base asks for, at two bytes a number: ``parts`` of weights; ``working`` and ``tiled`` beside."""

    parts: dict[str, int]
    working: int
    tiled: int

    def of(self, placement: Placement) -> float:
        """Return the bytes that a placement takes on its device; all there is where it does not fit whole."""
        if placement.offload != "none":
            return math.inf
        beside = self.tiled if placement.vae_tiling else self.working
        return (2 if placement.dtype == "float32" else 1) * (sum(self.parts.values()) + beside)


_UNPLACED = Placement("", "", "none", False, "not chosen yet")


def _demand(folder: Path, base: CheckpointSpec) -> _Demand:
    # The estimates are for 1024x1024; the VAE's maps grow with the area.
    share = (base.resolution / 1024) ** 2
    return _Demand(
        folders.part_bytes(folder, base.variant),
        int(WORKING_BYTES * max(share, 0.05)),
        int(TILED_BYTES * min(1.0, max(share, 0.05))),
    )


def _choose(device: str, demand: _Demand, free: int, light: bool) -> Placement:
    bf16 = device == "cpu" or torch.cuda.get_device_capability(device)[0] >= 8
    return choose_placement(
        device,
        free_memory=free,
        parts=demand.parts,
        bf16=bf16,
        light=light,
        working=demand.working,
        tiled=demand.tiled,
    )


def _free_memory(device: str) -> int:
    """Return the bytes free on a device, those that torch holds without need included; for ``cpu`` in the machine."""
    if device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + spare


def _budget(limit: float | None, kept: Kept, free: int) -> int:
    """Return the bytes that may be kept: the limit (GB), or half of what would be free without what is kept."""
    return (free + kept.size) // 2 if limit is None else int(limit * 1e9)


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
