"""How a learning rate runs over a training: a pure function of the step, so that a run can go on unchanged."""

from __future__ import annotations

import math

from sar_gen.training.config import OptimiserConfig


def rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Return the learning rate of one step: ``config.learning_rate`` times ``share``.

    Args:
        config: of the optimiser.
        step: from 0 to ``steps - 1``.
        steps: of the whole training.
    """
    return config.learning_rate * share(config, step, steps)


def share(config: OptimiserConfig, step: int, steps: int) -> float:
    """Return the part of the highest rate that one step has, in (0, 1]; parts with rates of their own share it.

    Warm-up and schedule are multiplied. Warm-up is (step + 1) / (warmup + 1), at most 1: the first step already moves.
    With x = step / steps:

    - ``constant``: 1
    - ``cosine``: (1 + cos(pi x)) / 2
    - ``linear``: 1 - x
    - ``trapezoid``: min(1, (1 - x) / decay)

    A falling schedule reaches 0 just after the last step.

    Args:
        config: of the optimiser.
        step: from 0 to ``steps - 1``.
        steps: of the whole training.
    """
    done = min(step / steps, 1.0)
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "linear":
        return warm * (1 - done)
    if config.schedule == "trapezoid" and config.decay > 0:
        return warm * min(1.0, (1 - done) / config.decay)
    return warm
