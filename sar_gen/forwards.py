"""Changing what a module's ``forward`` does, for the length of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Forward = Callable[..., Any]


@contextmanager
def replaced(module: Any, make: Callable[[Forward], Forward]) -> Iterator[None]:
    """Put ``make(forward)`` in the place of a module's ``forward`` while this lasts; hooks' own ones come back too."""
    plain = module.forward
    had = "forward" in module.__dict__
    module.forward = make(plain)
    try:
        yield
    finally:
        if had:
            module.forward = plain
        else:
            del module.forward


def unet_output(sample: torch.Tensor, wanted: bool) -> Any:
    """Return a prediction as diffusers' UNet returns it: its output class where ``wanted``, else a tuple."""
    if not wanted:
        return (sample,)
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    return UNet2DConditionOutput(sample=sample)
