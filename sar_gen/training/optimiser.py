"""AdamW, as every training of the studio uses it."""

from __future__ import annotations

from typing import Any

import torch

from sar_gen.errors import InputError


def adamw(groups: list[dict[str, Any]], eight_bit: bool, beta2: float) -> torch.optim.Optimizer:
    """Return AdamW (arXiv 1711.05101), fused on CUDA, with states of 8 bits where asked for.

    Args:
        groups: of parameters, with their rates and weight decays.
        eight_bit: states of 8 bits (package bitsandbytes, CUDA only).
        beta2: decay of the second moment; that of the first is 0.9.

    Raises:
        InputError: states of 8 bits were asked for without bitsandbytes or CUDA.
    """
    groups = [group for group in groups if group["params"]]
    if not eight_bit:
        # Fused: one pass over weights and states, and no copy of a whole group.
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=on_gpu)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError("eight_bit needs the package bitsandbytes; install it or leave the option out.") from error
    if not torch.cuda.is_available():
        raise InputError("eight_bit needs a CUDA device; leave the option out.")
    return AdamW8bit(groups, betas=(0.9, beta2))
