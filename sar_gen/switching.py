"""Copies of weights in the host's memory, from which a part is written again without its files.

They are written into the module that is there, tensor by tensor, in place: modules and addresses stay the same, so
that compiled code and CUDA graphs stay good, and the values are those that came from the files. For CUDA the copies
are pinned, and written without waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

CHUNK = 1 << 28
"""Most bytes of a block that tensors are packed into: torch rounds pinned memory up to a power of two, which would
waste up to half of it were each tensor a block of its own."""
ALIGNMENT = 64
SMALL = 1 << 30
"""Bytes of weights up to which one thread writes them."""


@dataclass(frozen=True)
class Copy:
    """Tensors by name in the host's memory.

    Attributes:
        tensors: in the shape and dtype that they had; views of a few blocks.
        size: bytes of these blocks.
    """

    tensors: dict[str, torch.Tensor]
    size: int


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes that a copy of these tensors takes."""
    return sum(_padded(tensor) for tensor in tensors)


def copied(tensors: Mapping[str, torch.Tensor], pinned: bool = False) -> Copy:
    """Copy tensors into the host's memory.

    Args:
        tensors: by name, on any device but ``meta``.
        pinned: into page-locked memory, from which CUDA copies at full speed.
    """
    found: dict[str, torch.Tensor] = {}
    size = 0
    with few_threads(size_of(tensors.values())), torch.no_grad():
        for names in _packed(tensors):
            length = sum(_padded(tensors[name]) for name in names)
            block = torch.empty(length, dtype=torch.uint8, pin_memory=pinned)
            size, start = size + length, 0
            for name in names:
                old = tensors[name]
                view = block[start : start + old.numel() * old.element_size()].view(old.dtype).view(old.shape)
                found[name] = view.copy_(old)
                start += _padded(old)
    return Copy(found, size)


def write(copy: Copy, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a copy into tensors of the same names and shapes, in place."""
    with few_threads(copy.size), torch.no_grad():
        for name, tensor in copy.tensors.items():
            tensors[name].copy_(tensor, non_blocking=True)


@contextmanager
def few_threads(size: int) -> Iterator[None]:
    """Let torch work in one thread while this lasts, where ``size`` bytes of weights are read or written: a few.

    Beside another busy process a second thread is waited for at each of thousands of small tensors: the embedded
    checkpoint took 2.2 s to load on two cores with both threads, 0.35 s with one.
    """
    threads = torch.get_num_threads()
    if size > SMALL or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _packed(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Yield names whose tensors fill a block."""
    names: list[str] = []
    filled = 0
    for name, tensor in tensors.items():
        if names and filled + _padded(tensor) > CHUNK:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += _padded(tensor)
    if names:
        yield names


def _padded(tensor: torch.Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return -(-size // ALIGNMENT) * ALIGNMENT
