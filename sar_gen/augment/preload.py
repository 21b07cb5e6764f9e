"""What the server of worker processes imports before it forks them: most of a worker's start on a CPU."""

from sar_gen.augment import workers
from sar_gen.imports import without_collection

with without_collection():
    from sar_gen import engine
    from sar_gen.pipelines import quiet_diffusers

    pipeline = quiet_diffusers().StableDiffusionXLPipeline

__all__ = ["engine", "pipeline", "workers"]
