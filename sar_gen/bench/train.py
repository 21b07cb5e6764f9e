"""What a step of training costs, strategy by strategy, at the true size of SDXL, beside the plain diffusers recipe.

No weights are downloaded: they are random, and cost what real ones do (``training.sdxl_random``). On the GPU at hand,
as often as it takes until no row is left::

    python -m sar_gen bench train --out bench-train.json --minutes 4

Rows are named:

- ``hybrid``, ``unet-lora``, ...: a strategy, trained by the studio's own core on patches that it reads from disk.
  ``hybrid:compiled`` is the same with ``torch.compile``.
- ``plain:unet-full``, ``plain:unet-lora``: what diffusers' ``train_text_to_image_sdxl.py`` and
  ``train_text_to_image_lora_sdxl.py`` do in a step (accelerate's mixed precision, AdamW, clipping to norm 1), given
  latents and text that were computed before, with neither VAE nor text encoders on the device. The LoRA script
  computes both in each step; that is ``plain:unet-lora:encoding``.
- ``check:hybrid``, ...: trains two steps from a folder, saves the strategy, loads it into the studio, and compares
  every tensor and one denoising step bit by bit.

All have the same batch, precision and gradient checkpointing. A row begins with an empty device (``held_before`` says
how empty), and its peak is that of its own steps, the first ones included, where ours encodes patches and captions.
On a CPU memory is only how much the process has grown: after a few rows what the allocator kept hides it.

Memory at ``full``, in GB (1e9 bytes), **computed, not measured**, for bfloat16 and gradient checkpointing. What is
trained takes 16 bytes a parameter (float32, its gradient, two moments), what is frozen 2 (the VAE 4). "One step" is
the most that is alive in a step once patches are encoded, found by tracing the step with shapes and without numbers
on a CPU (fused AdamW; flash attention and norms in float32, as on CUDA); a GPU adds the workspaces of its libraries
and what its allocator rounds up. Encoding two patches at once takes 5.4 beside the frozen parts and the UNet, before
the first step: 12.7 for a LoRA.

==========================  ==========  =======  ======  ========  ========
row                         trained, M  trained  frozen  one step  of batch
==========================  ==========  =======  ======  ========  ========
``token``                          0.0      0.0     7.1       7.9         1
``unet-lora``                     46.4      0.7     7.1       8.4         1
``unet-lora``                     46.4      0.7     7.1      10.6         4
``unet-lora+te-lora+token``       52.9      0.8     7.1       8.5         1
``hybrid``                      2573.9     41.2     2.0      43.4         1
``hybrid``                      2573.9     41.2     2.0      44.6         4
``unet-full+te-full``           3385.2     54.2     0.3      64.7         1
==========================  ==========  =======  ======  ========  ========

The last one was traced with AdamW that is not fused, as the plain recipe has it: that holds one more copy of its
largest group, the UNet's 10.3.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sar_gen.errors import InputError, SarGenError
from sar_gen.files import write_atomic
from sar_gen.settings import Settings
from sar_gen.strategies import strategy

Kind = Literal["studio", "plain", "check"]
Size = Literal["full", "tiny"]
Say = Callable[[str], None]

ROWS = (
    "hybrid",
    "unet-lora",
    "plain:unet-full",
    "unet-full",
    "plain:unet-lora",
    "check:unet-lora+te-lora+token",
    "check:hybrid",
    "unet-lora+te-lora+token",
    "token",
    "unet-full+te-lora",
    "unet-full+te-full",
    "plain:unet-lora:encoding",
)
"""What is measured where nothing else is asked for, most telling first."""
CAPTIONS = ("a SAR image of a river", "a SAR image of a residential area")
PLAIN = ("unet-full", "unet-lora")
RATE = 1e-4
COUNTED = "SDXL with random weights"


@dataclass(frozen=True)
class Row:
    """One row: what is trained, by whom, and how.

    Attributes:
        name: see the module.
        kind: the studio's core, the plain recipe, or the check.
        strategy: a name of ``sar_gen.strategies``.
        compiled: with ``torch.compile``.
        encoding: latents and text are computed in each step (plain).
    """

    name: str
    kind: Kind
    strategy: str
    compiled: bool = False
    encoding: bool = False


@dataclass(frozen=True)
class Plan:
    """What all rows share.

    Attributes:
        size: of the model, ``full`` or ``tiny``.
        batch: patches a step.
        precision: of accelerate.
        checkpointing: gradient checkpointing.
        warmup: steps that are not timed; at least 3, so that each patch was encoded and the optimiser has its states.
        rounds: times that are taken.
        steps: of a round; the device is waited for at its end only, as in training.
    """

    size: Size = "full"
    batch: int = 1
    precision: Literal["no", "bf16"] = "bf16"
    checkpointing: bool = True
    warmup: int = 3
    rounds: int = 5
    steps: int = 3


@dataclass(frozen=True)
class Training:
    """Rows that are measured (as JSON data, by name), those that are not, and on what.

    Attributes:
        facts: of machine, versions and plan: results of other facts are not mixed with these.
        rows: see ``measure`` and ``check``.
        not_run: names of rows for which there was no time.
    """

    facts: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    not_run: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return {"facts": self.facts, "rows": self.rows, "not_run": list(self.not_run)}

    @property
    def title(self) -> str:
        """What was measured, in one line."""
        facts = self.facts
        checkpointing = "with" if facts["checkpointing"] else "without"
        side = facts["resolution"]
        return (
            f"{facts['model']}, {side} x {side}, batch of {facts['batch']}, precision {facts['precision']}, "
            f"{checkpointing} gradient checkpointing, {facts['device']}, torch {facts['torch']}"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return the measured rows as text, a header first; memory in GB of 1e9 bytes."""
        memory = "peak GB" if self.facts["device"] != "cpu" else "process grew by GB"
        lines: list[tuple[str, ...]] = [
            ("row", "trained", "s/step", "steps/s", memory, "once cached", "reserved", "steps/s to plain")
        ]
        for name, found in self.rows.items():
            if "seconds" not in found:
                continue
            plain = self.rows.get(f"plain:{name.partition(':')[0]}", {}).get("steps_per_second")
            ratio = f"{found['steps_per_second'] / plain:.2f}" if plain else "-"
            sizes = [found[key] for key in ("peak_bytes", "cached_bytes", "reserved_bytes")]
            lines.append(
                (
                    name,
                    f"{sum(found['trained'].values()) / 1e6:.2f} M",
                    f"{found['seconds']:.3f}",
                    f"{found['steps_per_second']:.3f}",
                    *("-" if size is None else f"{size / 1e9:.2f}" for size in sizes),
                    ratio if not name.startswith("plain:") else "-",
                )
            )
        return lines

    @property
    def failed(self) -> list[str]:
        """Names of the checks that found a difference."""
        return [
            name
            for name, row in self.rows.items()
            if "tensors" in row and not (row["equal"] == row["tensors"] and row["output_equal"])
        ]

    def sentences(self) -> list[str]:
        """Return what the table does not hold: checks, failures, rows that are not run."""
        found = []
        for name, row in self.rows.items():
            if "error" in row:
                found.append(f"{name}: {row['error']}")
            elif "tensors" in row:
                step = "the same" if row["output_equal"] else f"off by up to {row['output_difference']:.2g}"
                found.append(
                    f"{name}: {row['equal']} of {row['tensors']} tensors are bit-equal after loading, "
                    f"{row['changed']} differ from the base; one denoising step is {step}."
                )
        if self.not_run:
            found.append(f"Not run: {', '.join(self.not_run)}.")
        return found


def row_of(name: str) -> Row:
    """Return the row called ``name``.

    Raises:
        InputError: there is no such row.
    """
    first, _, rest = name.partition(":")
    kinds: dict[str, Kind] = {"plain": "plain", "check": "check"}
    kind = kinds.get(first, "studio")
    found, _, option = (rest if kind != "studio" else name).partition(":")
    allowed = {"studio": "compiled", "plain": "encoding", "check": ""}[kind]
    if option and option != allowed:
        raise InputError(f"The row {name!r} ends in an unknown option; choose among {', '.join(ROWS)}.")
    modes = strategy(found).trained()
    if not modes or any(part.startswith("vae") for part in modes):
        raise InputError(f"The row {name!r} trains no UNet, text encoder or token; choose among {', '.join(ROWS)}.")
    if kind == "plain" and (found not in PLAIN or (option and found != "unet-lora")):
        raise InputError(f"There is no plain recipe {name!r}; choose among {', '.join(ROWS)}.")
    return Row(name, kind, found, option == "compiled", option == "encoding")


def bench_train(
    settings: Settings,
    plan: Plan | None = None,
    *,
    rows: Sequence[str] = ROWS,
    out: Path | None = None,
    work: Path | None = None,
    minutes: float | None = None,
    say: Say = lambda _: None,
) -> Training:
    """Measure rows one after the other; a row that ``out`` holds already is not measured again.

    Args:
        settings: the device.
        plan: what all rows share.
        rows: their names.
        out: JSON file that each row is added to as soon as it is there.
        work: folder of the random base and what is saved (13 GB of ``full``), kept; a temporary one when left out.
        minutes: no row is begun after so long.
        say: told how it goes.

    Raises:
        InputError: a row is unknown, or ``out`` is of another machine or plan.
        SarGenError: a file cannot be written.
    """
    from sar_gen.pipelines import resolve_device

    started = time.monotonic()
    plan = plan or Plan()
    wanted = [row_of(name) for name in dict.fromkeys(rows)]
    device = resolve_device(settings.device)
    facts = _facts(device, plan)
    done = _known(out, facts)
    not_run: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        for row in wanted:
            if row.name in done:
                continue
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                not_run.append(row.name)
                continue
            say(f"{row.name}, after {time.monotonic() - started:.0f} s")
            done[row.name] = _run(row, plan, device, folder)
            if out is not None:
                write_atomic(out, json.dumps({"facts": facts, "rows": done}, indent=1).encode())
    return Training(facts, done, tuple(not_run))


def _run(row: Row, plan: Plan, device: str, folder: Path) -> dict[str, Any]:
    """Measure one row, with a device that is as empty before as after."""
    import torch

    started = time.monotonic()
    with _clean(device, row.compiled):
        try:
            found = check(row, plan, device, folder) if row.kind == "check" else measure(row, plan, device, folder)
        except torch.OutOfMemoryError as error:
            found = {"error": f"out of memory ({' '.join(str(error).split())[:160]})"}
    return {**found, "wall_seconds": round(time.monotonic() - started, 1)}


def measure(row: Row, plan: Plan, device: str, folder: Path) -> dict[str, Any]:
    """Time the steps of a row and take its memory.

    Returns:
        ``seconds`` of a step (median of the rounds), ``low`` and ``high``, ``steps_per_second``,
        ``patches_per_second``; ``peak_bytes`` of all steps, ``cached_bytes`` of the timed ones, ``reserved_bytes`` of
        the allocator, ``held_before`` the row (on a CPU the first two are how much the process has grown, looked at
        after each round, and the others ``None``); ``trained`` parameters by part; ``first_loss`` and ``last_loss``.
    """
    held = _allocated(device)
    memory = _Memory(device)
    step, trained = (_plain if row.kind == "plain" else _studio)(row, plan, device, folder)
    memory.begin()
    first = float(step())
    for _ in range(max(plan.warmup, 3) - 1):
        step()
    _wait(device)
    memory.look()
    whole, reserved = memory.peak()
    memory.begin()
    seconds = []
    loss = None
    for _ in range(plan.rounds):
        begun = time.perf_counter()
        for _ in range(plan.steps):
            loss = step()
        _wait(device)
        seconds.append((time.perf_counter() - begun) / plan.steps)
        memory.look()
    cached, reserved_later = memory.peak()
    last = float(loss)  # type: ignore[arg-type] # at least one round
    if not (math.isfinite(first) and math.isfinite(last)):
        raise SarGenError(f"The loss of {row.name} is not finite ({first}, {last}); its time means nothing.")
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "low": min(seconds),
        "high": max(seconds),
        "steps_per_second": 1 / median,
        "patches_per_second": plan.batch / median,
        "peak_bytes": max(whole, cached),
        "cached_bytes": cached,
        "reserved_bytes": None if reserved is None else max(reserved, reserved_later or 0),
        "held_before": held,
        "trained": trained,
        "first_loss": first,
        "last_loss": last,
    }


# The studio's way ------------------------------------------------------------------------------------------------


def _studio(row: Row, plan: Plan, device: str, folder: Path) -> tuple[Callable[[], Any], dict[str, int]]:
    """Return a step of the studio's core and what it trains; the base is drawn on the device, not read."""
    from sar_gen.checkpoints import CheckpointSpec
    from sar_gen.training.parts import Base
    from sar_gen.training.sdxl_random import SHAPES, random_pipeline

    config = _config(row, plan, folder, base="random")
    resolution = SHAPES[plan.size].resolution
    spec = CheckpointSpec("random", COUNTED, "sdxl", "random", "base", resolution=resolution)
    run = _core(config, Base(spec, folder), random_pipeline(plan.size, device), resolution, device, folder)
    batches = run._batches()
    return lambda: run._step(batches), run.parts.counts


def _core(config: Any, base: Any, pipe: Any, resolution: int, device: str, folder: Path) -> Any:
    """Return the training core ready for its first step, as ``training.loop.train`` makes it."""
    from sar_gen.training import loop
    from sar_gen.training.dataset import open_dataset
    from sar_gen.training.losses import noise_schedule

    data = open_dataset(config.data, resolution, config.run.seed)
    schedule = noise_schedule(pipe.scheduler.config)
    settings = Settings(home=folder / "home", runs=folder / "runs", checkpoints=folder, device=device)
    return loop._Run(config, base, pipe, data, schedule, settings, device, {"base_files": []}, "")


def _config(row: Row, plan: Plan, folder: Path, base: str) -> Any:
    from sar_gen.training.config import TrainingConfig, check_config
    from sar_gen.training.sdxl_random import SHAPES

    manifest = _patches(folder / "data", SHAPES[plan.size].resolution, 2 * plan.batch)
    table = {
        "base": base,
        "strategy": row.strategy,
        "output": folder / row.strategy.replace("+", "-"),
        "data": {"manifest": manifest, "batch": plan.batch},
        "denoiser": {"steps": 10**6, "learning_rate": RATE},
        "run": {
            "precision": plan.precision,
            "gradient_checkpointing": plan.checkpointing,
            "compile": row.compiled,
        },
    }
    return check_config(table, TrainingConfig, row.name)


def _patches(folder: Path, side: int, count: int) -> Path:
    """Write a data set of ``count`` patches of four-look speckle and return its manifest."""
    import numpy as np

    from sar_gen.training.manifest import MANIFEST, PatchRow, write_manifest

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        name = f"patch-{i}.npy"
        amplitude = np.clip(0.2 * np.sqrt(rng.gamma(4, 1 / 4, (side, side))), 0, 1)
        np.save(folder / name, amplitude.astype(np.float32))
        rows.append(PatchRow(f"patch-{i}", name, side, side, "train", f"ground-{i}", (CAPTIONS[i % len(CAPTIONS)],)))
    write_manifest(folder / MANIFEST, rows)
    return folder / MANIFEST


# The plain way -----------------------------------------------------------------------------------------------------


def _plain(row: Row, plan: Plan, device: str, folder: Path) -> tuple[Callable[[], Any], dict[str, int]]:
    """Return a step of the plain recipe and what it trains.

    Written after what diffusers' ``examples/text_to_image/train_text_to_image_sdxl.py`` and
    ``train_text_to_image_lora_sdxl.py`` do. The LoRA has the studio's rank and layers and is float32, like ours.
    """
    import torch
    from accelerate import Accelerator

    from sar_gen.strategies import LORA
    from sar_gen.training.parts import add_lora
    from sar_gen.training.sdxl_random import SHAPES, build_part

    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=plan.precision)
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    unet = build_part("unet", plan.size, device)
    if row.strategy == "unet-full":
        unet.requires_grad_(True)
    else:
        unet.to(dtype)
        add_lora(unet, LORA["unet"])
    if plan.checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    unet, optimiser, rates = accelerator.prepare(unet, optimiser, rates)
    schedule = _ddpm()
    source = _encoded(plan, device, dtype) if row.encoding else _computed_before(plan, device, dtype)
    side = SHAPES[plan.size].resolution

    def step() -> float:
        with accelerator.accumulate(unet):
            latents, context, pooled = source()
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, schedule.config.num_train_timesteps, (plan.batch,), device=device).long()
            noisy = schedule.add_noise(latents.float(), noise.float(), timesteps).to(dtype)
            ids = [torch.tensor([[side, side, 0, 0, side, side]]).to(device, dtype) for _ in range(plan.batch)]
            added = {"text_embeds": pooled, "time_ids": torch.cat(ids)}
            found = unet(noisy, timesteps, context, added_cond_kwargs=added, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(found.float(), noise.float(), reduction="mean")
            mean = accelerator.gather(loss.repeat(plan.batch)).mean().item()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            rates.step()
            optimiser.zero_grad()
        return mean

    return step, {"unet": sum(parameter.numel() for parameter in parameters)}


def _computed_before(plan: Plan, device: str, dtype: Any) -> Callable[[], tuple[Any, Any, Any]]:
    """Return latents and text of the right shapes, as a loader gives them: on the CPU, moved in each step."""
    import torch

    from sar_gen.training.sdxl_random import LENGTH, SHAPES

    shape = SHAPES[plan.size]
    side = shape.resolution // 8
    pooled = shape.text_encoder_2["projection_dim"]
    random = torch.Generator().manual_seed(0)
    latents = torch.randn((plan.batch, 4, side, side), generator=random)
    context = torch.randn((plan.batch, LENGTH, shape.unet["cross_attention_dim"]), generator=random)
    text = torch.randn((plan.batch, pooled), generator=random)
    return lambda: (latents.to(device), context.to(device, dtype), text.to(device, dtype))


def _encoded(plan: Plan, device: str, dtype: Any) -> Callable[[], tuple[Any, Any, Any]]:
    """Return latents and text that frozen parts on the device compute in each step, the VAE in float32."""
    import torch

    from sar_gen.training.denoiser import encode_text
    from sar_gen.training.sdxl_random import SHAPES, build_part, make_tokenizer

    vae = build_part("vae", plan.size, device)
    first, second = (build_part(part, plan.size, device).to(dtype) for part in ("text_encoder", "text_encoder_2"))
    words = make_tokenizer(), make_tokenizer(padding="!")
    side = SHAPES[plan.size].resolution
    pixels = torch.rand((plan.batch, 3, side, side), generator=torch.Generator().manual_seed(0))
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(plan.batch)]

    @torch.no_grad()
    def encode() -> tuple[Any, Any, Any]:
        latents = vae.encode(pixels.to(device) * 2 - 1).latent_dist.sample() * vae.config.scaling_factor
        ids = [
            tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
            for tokenizer in words
        ]
        kept = torch.ones(plan.batch, device=device)
        text = encode_text(first, second, {"ids": ids[0], "ids_2": ids[1], "kept": kept})
        return latents, text["context"], text["pooled"]

    return encode


def _ddpm() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


# What is saved and loaded again ------------------------------------------------------------------------------------


def check(row: Row, plan: Plan, device: str, folder: Path) -> dict[str, Any]:
    """Train two steps on a folder, save the strategy, load it as the studio does, and compare bit by bit.

    Whole parts are written in float16 and LoRAs and tokens in float32; so the trained parts are rounded to float16
    first where they are whole. The random base is exact in float16 and bfloat16, so frozen parts have lost nothing.
    Both pipelines then calculate in float32 on the device.

    Returns:
        ``tensors`` compared, of which ``equal`` are, and ``changed`` are not the base's; ``output_equal`` and
        ``output_difference`` (largest) of the latents after one denoising step; ``bytes`` of the strategy's files;
        ``load_seconds``, ``save_seconds`` and ``studio_seconds``.
    """
    import torch

    from sar_gen import checkpoints
    from sar_gen.pipelines import PipelineHolder, Placement
    from sar_gen.training.parts import find_base, load_pipeline, save_strategy
    from sar_gen.training.sdxl_random import SHAPES, make_sdxl

    name = f"sdxl-random-{plan.size}"
    settings = Settings(home=folder / "home", runs=folder / "runs", checkpoints=folder, device=device)
    if not (folder / name / "model_index.json").is_file():
        make_sdxl(folder / name, plan.size, device=device)
    config = _config(row, plan, folder, name)
    base = find_base(name, settings)
    times = [time.monotonic()]
    pipe = load_pipeline(base)
    times.append(time.monotonic())
    run = _core(config, base, pipe, base.spec.resolution, device, folder)
    batches = run._batches()
    for _ in range(2):
        run._step(batches)
    parts = run.parts
    card = {"base": name, "strategy": row.strategy, "token": config.token if parts.tokens else None}
    times.append(time.monotonic())
    save_strategy(config.output, parts, card, dtype=torch.float16)
    times.append(time.monotonic())
    del run, batches
    for parameter in parts.parameters():
        parameter.grad = None
    _empty(device)
    _round_as_saved(parts)
    prompt = f"{config.token} image of a river" if parts.tokens else "a SAR image of a river"
    ours = _one_step(pipe, prompt, SHAPES[plan.size].resolution)
    catalogue = checkpoints.catalogue(settings)
    holder = PipelineHolder()
    before = time.monotonic()
    loaded = holder.ensure(
        catalogue[config.output.name],
        catalogue,
        settings,
        placement=Placement(device, "float32", "none", False, "to compare"),
    )
    studio = time.monotonic() - before
    counts = _compared(parts, loaded, base.folder)
    again = _one_step(loaded, prompt, SHAPES[plan.size].resolution)
    size = sum(path.stat().st_size for path in config.output.rglob("*.safetensors"))
    holder.free()
    return {
        **counts,
        "output_equal": bool(torch.equal(ours, again)),
        "output_difference": float((ours - again).abs().max()),
        "bytes": size,
        "load_seconds": round(times[1] - times[0], 2),
        "save_seconds": round(times[3] - times[2], 2),
        "studio_seconds": round(studio, 2),
        "trained": parts.counts,
    }


def _round_as_saved(parts: Any) -> None:
    """Give a trained pipeline the numbers that its files hold, in float32, and make it ready to generate."""
    import torch

    modes = parts.row.modes(parts.family)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(parts.pipe, name)
        if modes.get(name) == "full":
            rows = {token.rows for token in parts.tokens.values()}
            for parameter in module.parameters():
                if parameter not in rows:
                    parameter.data = parameter.data.half()
        # The core may keep a UNet channels last, for which there are other kernels with other last bits.
        module.float().to(memory_format=torch.contiguous_format).eval()


def _compared(parts: Any, loaded: Any, base: Path) -> dict[str, int]:
    """Count the tensors of UNet, text encoders and VAE that are bit-equal in two pipelines, and not the base's."""
    import torch
    from safetensors import safe_open

    from sar_gen.weights import weight_files

    total = equal = changed = 0
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine = dict(getattr(parts.pipe, part).state_dict())
        theirs = dict(getattr(loaded, part).state_dict())
        token = parts.tokens.get(part)
        if token is not None:
            name = next(name for name, layer in getattr(parts.pipe, part).named_modules() if layer is token)
            table = token.weight.detach().clone()
            table[token.first : token.first + len(token.rows)] = token.rows.detach()
            del mine[f"{name}.rows"]
            mine[f"{name}.weight"] = table
        total += len(mine.keys() | theirs.keys())
        equal += sum(name in theirs and torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
        known = set()
        for path in weight_files(base / part, None):
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    short = key.removeprefix("text_model.")
                    own = {n.removeprefix("text_model.").replace(".base_layer.", "."): n for n in theirs}
                    known.add(own[short])
                    before = file.get_tensor(key).to(theirs[own[short]])
                    changed += not torch.equal(before, theirs[own[short]])
        changed += len(theirs.keys() - known)  # LoRAs
    return {"tensors": total, "equal": equal, "changed": changed}


def _one_step(pipe: Any, prompt: str, side: int) -> Any:
    import torch

    return pipe(
        prompt,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=1,
        guidance_scale=1.5,
        height=side,
        width=side,
        output_type="latent",
    ).images


# Memory and facts --------------------------------------------------------------------------------------------------


class _Memory:
    """The most memory since ``begin``: of torch's allocator on CUDA, by which the process has grown on a CPU."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._start = _resident()
        self._most = 0

    def begin(self) -> None:
        """Forget what was before."""
        if self._device == "cpu":
            self._most = 0
        else:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

    def look(self) -> None:
        """Look at the process (CPU); CUDA's allocator keeps its own account."""
        if self._device == "cpu":
            self._most = max(self._most, _resident() - self._start)

    def peak(self) -> tuple[int, int | None]:
        """Return bytes allocated, and reserved by the allocator."""
        if self._device == "cpu":
            return self._most, None
        import torch

        return torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _allocated(device: str) -> int | None:
    if device == "cpu":
        return None
    import torch

    return torch.cuda.memory_allocated(device)


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def _empty(device: str) -> None:
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


@contextmanager
def _clean(device: str, compiled: bool) -> Iterator[None]:
    """Leave nothing of a row: accelerate keeps one state a process, the core may let the device use TF32."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def reset() -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if compiled:
            torch.compiler.reset()
        _empty(device)

    reset()
    try:
        yield
    finally:
        reset()


def _facts(device: str, plan: Plan) -> dict[str, Any]:
    import accelerate
    import diffusers
    import torch

    from sar_gen.training.sdxl_random import SHAPES

    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
    return {
        "model": f"{COUNTED}, {plan.size}",
        "resolution": SHAPES[plan.size].resolution,
        "device": name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "accelerate": accelerate.__version__,
        **dataclasses.asdict(plan),
    }


def _known(out: Path | None, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows that a file holds already.

    Raises:
        InputError: they are of other facts, or the file is something else.
    """
    if out is None or not out.is_file():
        return {}
    try:
        data = json.loads(out.read_text(encoding="utf-8"))
        before, rows = dict(data["facts"]), dict(data["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out} is not a result of this bench; give another --out.") from error
    changed = sorted(name for name in before.keys() | facts.keys() if before.get(name) != facts.get(name))
    if changed:
        raise InputError(f"{out} holds results with other {', '.join(changed[:4])}; give another --out.")
    return rows
