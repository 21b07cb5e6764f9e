"""SAR studio: text-to-SAR generation with fine-tuned latent diffusion, judged beside real SAR.

The public API, in plain functions::

    from sar_gen import compare, generate

    run = generate("a SAR image of a mountain gorge", count=4, seed=7)
    report = compare([image.amplitude_file for image in run.images], "s1-gorge")
    print(report.verdict)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sar_gen.quality.report import QualityReport
    from sar_gen.runs import RunRecord
    from sar_gen.studio import Studio

__all__ = ["compare", "generate", "load_checkpoint"]


@cache
def _studio() -> Studio:
    from sar_gen.studio import Studio

    return Studio()


def generate(prompt: str, **settings: Any) -> RunRecord:
    """Generate patches and return the finished run; every patch is on disk.

    Args:
        prompt: what to generate.
        **settings: the other fields of ``request.GenerationRequest`` (count, seed, checkpoint, strategy, steps, …).

    Raises:
        InputError: the request is wrong; raised before any work.
        SarGenError: the work failed.
    """
    from sar_gen.errors import InputError, SarGenError
    from sar_gen.request import Failed, GenerationRequest, Saved

    studio = _studio()
    folder: Path | None = None
    for event in studio.generate(GenerationRequest(prompt, **settings), previews=False):
        if isinstance(event, Saved):
            folder = event.view.parent
        elif isinstance(event, Failed):
            raise InputError(event.message) if event.user_error else SarGenError(event.message)
    if folder is None:
        raise SarGenError("No patch was made; try again.")
    return studio.store.open(folder)


def compare(patches: Sequence[Path | NDArray[np.float32]], reference: str) -> QualityReport:
    """Compare patches with a set of real SAR.

    Args:
        patches: float32 ``(height, width)`` amplitude in [0, 1] each, or files that the studio wrote.
        reference: name of a reference set, for example ``s1-forest``.

    Raises:
        InputError: a patch or the reference cannot be used.
    """
    from sar_gen.patches import read_patch
    from sar_gen.references import load_reference

    studio = _studio()
    amplitudes = [read_patch(Path(p)).amplitude if isinstance(p, str | Path) else p for p in patches]
    return studio.judge(amplitudes, load_reference(reference, studio.settings))


def load_checkpoint(checkpoint: str = "sar-mini", strategy: str | None = None, device: str = "auto") -> Any:
    """Return a checkpoint as an ordinary diffusers pipeline.

    Args:
        checkpoint: catalogue id.
        strategy: fine-tuning strategy on the same base; ``None`` is the checkpoint's own.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: the checkpoint is unknown or its weights are not on disk.
    """
    import dataclasses

    from sar_gen import checkpoints
    from sar_gen.pipelines import PipelineHolder

    settings = dataclasses.replace(_studio().settings.here(), device=device)
    catalogue = checkpoints.catalogue(settings)
    return PipelineHolder().ensure(checkpoints.resolve(catalogue, checkpoint, strategy), catalogue, settings)
