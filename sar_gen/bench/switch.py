"""What changing the checkpoint costs: the studio, which keeps what was on, beside a fresh load by stock diffusers.

The checkpoints are made for it, in a temporary folder: a copy of the base whose UNet moved a little (for diffusers a
pipeline of its own; for the studio both a quantised delta on the base and another base), and two random LoRAs of one
shape. Without a size the base is the chosen checkpoint; with one it is an SDXL of random weights, for a GPU::

    python -m sar_gen bench switch --size full --device cuda --out bench-switch.json

Each timed switch is to something that was on before; what the first time took, from the files, is among the facts.
On a GPU a time ends when the device has done all its work.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sar_gen import checkpoints
from sar_gen.bench.models import Size, measured
from sar_gen.bench.timing import Bench, alternate, growth
from sar_gen.settings import Settings

MOVED = 0.01
"""Standard deviation of what is added to the UNet's weights, by that of each tensor."""
TUNED, DELTA, LORAS = "bench-tuned", "bench-delta", ("bench-lora-1", "bench-lora-2")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def bench_switch(
    settings: Settings,
    size: Size | None = None,
    work: Path | None = None,
    rounds: int | None = None,
) -> tuple[Bench, ...]:
    """Time the studio's switches beside fresh loads of the same weights by diffusers.

    Args:
        settings: device, checkpoint and how much is kept.
        size: of an SDXL of random weights; the chosen checkpoint when left out.
        work: folder for what is made, kept and used again; a temporary one when left out.
        rounds: that are timed; 3 at full size, else 5, when left out.

    Raises:
        InputError: the checkpoint or the device is not there.
        SarGenError: what is needed cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) if work is None else work
        base, found = _prepare(settings, size, place)
        return _measure(base, found, rounds or (3 if size == "full" else 5))


def _measure(base: str, settings: Settings, rounds: int) -> tuple[Bench, ...]:
    import torch

    from sar_gen.pipelines import PipelineHolder, Placement, quiet_diffusers, resolve_device

    device = resolve_device(settings.device)
    dtype = "float32" if device == "cpu" else "bfloat16"
    placement = Placement(device, dtype, "none", False, "to compare")
    catalogue = checkpoints.catalogue(settings)
    folders = {name: checkpoints.local_folder(catalogue[name], settings) for name in (base, TUNED, *LORAS)}
    kind = quiet_diffusers().StableDiffusionXLPipeline
    holder = PipelineHolder()
    first: dict[str, float] = {}

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    def load(name: str) -> Any:
        pipe = kind.from_pretrained(
            folders[name], dtype=getattr(torch, dtype), use_safetensors=True, add_watermarker=False
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def timed(work: Callable[[], object]) -> tuple[float, int]:
        with growth(device) as grown:
            started = time.perf_counter()
            made = work()
            wait()
            seconds = time.perf_counter() - started
            del made
        return seconds, grown()

    def fresh(name: str, lora: str | None = None) -> Callable[[], object]:
        def work() -> Any:
            pipe = load(name)
            if lora is not None:
                pipe.load_lora_weights(folders[lora])
            return pipe

        return lambda: timed(work)

    def switch(before: str, after: str) -> Callable[[], object]:
        def work() -> tuple[float, int]:
            ensure(before)
            wait()
            taken = timed(lambda: ensure(after) and None)
            first.setdefault(f"{before} to {after}", round(taken[0], 3))
            return taken

        return work

    def ensure(name: str) -> Any:
        return holder.ensure(catalogue[name], catalogue, settings, placement=placement)

    def again(pipe: Any, lora: str) -> Callable[[], object]:
        def work() -> None:
            pipe.unload_lora_weights()
            pipe.load_lora_weights(folders[lora])

        return lambda: timed(work)

    title = f"{catalogue[base].id}, {device}, {dtype}"
    stock = "fresh diffusers pipeline"
    try:
        ensure(base)
        benches = [
            alternate(
                f"Base to another whole UNet (8-bit delta); {title}",
                {stock: fresh(TUNED), "studio": switch(base, DELTA), "studio, and back": switch(DELTA, base)},
                rounds,
            ),
            alternate(
                f"Base to a LoRA; {title}",
                {
                    f"{stock}, load_lora_weights": fresh(base, LORAS[0]),
                    "studio": switch(base, LORAS[0]),
                    "studio, and back": switch(LORAS[0], base),
                },
                rounds,
            ),
        ]
        # Its own two LoRAs in turn, as the studio's.
        pipe = load(base)
        benches.append(
            alternate(
                f"A LoRA to another of its shape; {title}",
                {
                    f"{stock}, load_lora_weights": fresh(base, LORAS[1]),
                    "the same pipeline, unload and load_lora_weights": again(pipe, LORAS[1]),
                    "studio": switch(*LORAS),
                },
                rounds,
            )
        )
        del pipe
        benches.append(
            alternate(
                f"Base to another base that is kept; {title}",
                {stock: fresh(TUNED), "studio": switch(base, TUNED), "studio, and back": switch(TUNED, base)},
                rounds,
            )
        )
        facts = {"first_seconds": first, "kept_bytes": holder.kept}
    finally:
        holder.free()
    return tuple(dataclasses.replace(bench, facts=facts) for bench in benches)


# What is switched between ------------------------------------------------------------------------------------------


def _prepare(settings: Settings, size: Size | None, place: Path) -> tuple[str, Settings]:
    """Make what is lacking in ``place``; return the base's id and the settings that find everything."""
    made, found = place / "checkpoints", measured(settings, size, place)
    spec = checkpoints.resolve(checkpoints.catalogue(found), found.checkpoint)
    source, name, variant = checkpoints.local_folder(spec, found), spec.id, spec.variant
    for lora, seed in zip(LORAS, (1, 2), strict=True):
        if not (made / lora / "card.toml").is_file():
            _write_lora(made / lora, source, name, variant, seed)
    if not (made / DELTA / "card.toml").is_file():
        _write_tuned(made, source, name, variant)
    return name, found


def _write_tuned(made: Path, source: Path, base: str, variant: str | None) -> None:
    """Write a copy of the base whose UNet moved, and the same as a quantised delta."""
    import tomlkit
    import torch
    from safetensors.torch import load_file, save_file

    from sar_gen.deltas import DELTA_FILE, quantise, write_delta
    from sar_gen.files import sha256_of
    from sar_gen.weights import weight_files

    files = weight_files(source / "unet", variant)
    old = {name: tensor for path in files for name, tensor in load_file(path).items()}
    random = torch.Generator().manual_seed(0)
    new = {}
    for name, tensor in old.items():
        spread = MOVED * float(tensor.float().std(correction=0))
        noise = torch.randn(tensor.shape, generator=random)
        new[name] = (tensor.float() + spread * noise).to(tensor.dtype)
    shutil.rmtree(made / TUNED, ignore_errors=True)
    shutil.copytree(source, made / TUNED, copy_function=_link)
    for path in weight_files(made / TUNED / "unet"):
        path.unlink()
    save_file(new, made / TUNED / "unet" / WEIGHTS, {"format": "pt"})
    path = made / TUNED / "card.toml"
    card = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    path.unlink()  # it may be a link to the base's own
    card = {key: value for key, value in card.items() if key not in ("sha256", "variant")}
    _write_card(made / TUNED, {**card, "id": TUNED, "title": TUNED, "base": TUNED})
    delta = quantise(old, new, 8)
    write_delta(made / DELTA / "unet" / DELTA_FILE, delta, 8, [sha256_of(path) for path in files])
    _write_card(made / DELTA, {"id": DELTA, "base": base, "strategy": "unet-full"})


def _write_lora(folder: Path, source: Path, base: str, variant: str | None, seed: int) -> None:
    """Write a random LoRA on the UNet's attention, of the rank of ``strategies``, by diffusers' own function."""
    import torch

    from sar_gen.pipelines import quiet_diffusers
    from sar_gen.strategies import LORA
    from sar_gen.weights import read_header, weight_files

    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for path in weight_files(source / "unet", variant):
        for key, tensor in read_header(path).tensors.items():
            name = key.removesuffix(".weight")
            if name != key and name.endswith(LORA["unet"].targets):
                rows, columns, rank = *tensor.shape, LORA["unet"].rank
                tensors[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=random) / columns**0.5
                tensors[f"{name}.lora_B.weight"] = 0.01 * torch.randn(rows, rank, generator=random)
    quiet_diffusers().StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=tensors)
    _write_card(folder, {"id": folder.name, "base": base, "strategy": "unet-lora"})


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    import tomlkit

    (folder / "card.toml").write_text(tomlkit.dumps(card), encoding="utf-8")


def _link(source: str, target: str) -> None:
    """Link a file, which takes no space; copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
