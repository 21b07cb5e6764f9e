"""Arguments of a module: tensors in tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return a nest with ``change`` applied to each tensor in it; everything else stays."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: mapped(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(one, change) for one in value)
    return value


def signature(value: Any) -> Any:
    """Return what kernels depend on (shapes, strides, dtypes, devices, plain values), to be looked up by."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, dict):
        return tuple((name, signature(one)) for name, one in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(signature(one) for one in value)
    return value


def write(into: Any, value: Any) -> None:
    """Write the tensors of a nest into those of another one of the same form, in place."""
    if isinstance(value, torch.Tensor):
        into.copy_(value)
    elif isinstance(value, dict):
        for name, one in value.items():
            write(into[name], one)
    elif isinstance(value, list | tuple):
        for mine, one in zip(into, value, strict=True):
            write(mine, one)
