"""What the studio costs over a bare diffusers call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sar_gen import checkpoints
from sar_gen.bench.timing import Bench, alternate
from sar_gen.errors import SarGenError
from sar_gen.request import Failed, GenerationRequest
from sar_gen.settings import Settings


def bench_generate(settings: Settings, count: int = 2, rounds: int = 5) -> tuple[Bench, ...]:
    """Time one run of the embedded checkpoint against a bare diffusers call with the same settings.

    Ours checks the request, makes the patches, decodes them to float amplitude and writes PNG, NPY and JSON to disk
    with fsync; once without and once with live previews. The bare call makes the same pictures and keeps nothing.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline

    from sar_gen.pipelines import resolve_device
    from sar_gen.studio import Studio

    spec = checkpoints.catalogue(settings)[settings.checkpoint]
    device = resolve_device(settings.device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    bare = StableDiffusionXLPipeline.from_pretrained(
        checkpoints.local_folder(spec, settings), dtype=dtype, use_safetensors=True, add_watermarker=False
    ).to(device)
    bare.set_progress_bar_config(disable=True)
    prompt = spec.examples[0]

    def stock() -> None:
        for seed in range(count):
            bare(
                prompt,
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance,
                width=spec.resolution,
                height=spec.resolution,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
            )

    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(replace(settings, runs=Path(folder)))
        request = GenerationRequest(prompt, checkpoint=spec.id, count=count)

        def ours(previews: bool) -> None:
            for event in studio.generate(request, previews=previews):
                if isinstance(event, Failed):
                    raise SarGenError(event.message)

        ways: dict[str, Callable[[], object]] = {
            "bare diffusers": stock,
            "studio, saved to disk": lambda: ours(False),
            "studio, saved, with previews": lambda: ours(True),
        }
        title = f"{count} patches of {spec.id}, {spec.steps} steps, guidance {spec.guidance}, {device}"
        return (alternate(title, ways, rounds),)
