"""A UNet's kernels as one CUDA graph: launched at once, without a word from Python in between.

A graph is captured for each set of input shapes, at the second call with it, and keeps its own copies of the inputs:
each call writes them, replays the graph and copies what came out. Weights that are written in place (``pipelines``)
are seen by a graph; modules that are put in or taken out (LoRAs) are not, so that whoever changes a strategy calls
``clear``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sar_gen.forwards import Forward, replaced
from sar_gen.nests import mapped, signature, write

Replay = Callable[[], Any]
Capture = Callable[[Callable[[], Any]], Replay]
WARM_UP = 3  # calls before a capture, so that libraries choose their kernels and allocate outside of it
KEPT = 8  # graphs; each holds the activations of a whole UNet


def capture_cuda(work: Callable[[], Any]) -> Replay:
    """Capture what ``work`` launches; the function that is returned launches it again and gives its output.

    As PyTorch's notes on CUDA graphs say: warm up on a side stream, then capture.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()

    def replay() -> Any:
        graph.replay()
        return found

    return replay


class Graphs:
    """The graphs of one device; for the thread that owns it."""

    def __init__(self, capture: Capture | None = None) -> None:
        """Take what captures; ``None``: CUDA where it is there, else nothing is captured."""
        self._capture = capture or (capture_cuda if torch.cuda.is_available() else None)
        self._kept: dict[Any, tuple[Any, Replay] | None] = {}

    def clear(self) -> None:
        """Drop all graphs, with the memory that they hold."""
        self._kept = {}

    @contextmanager
    def unet(self, unet: Any, state: Any = None) -> Iterator[None]:
        """Run a UNet's ``forward`` by graphs while this lasts.

        Args:
            unet: on a CUDA device.
            state: whatever else decides which kernels are launched; it can be looked up (hashable).
        """
        capture = self._capture
        if capture is None:
            yield
            return

        def make(plain: Forward) -> Forward:
            def forward(*args: Any, **options: Any) -> Any:
                key = (id(unet), state, signature((args, options)))
                if key not in self._kept:  # the first call also warms up what is compiled or chosen by trial
                    self._kept[key] = None
                    return plain(*args, **options)
                entry = self._kept[key]
                if entry is None:
                    while sum(one is not None for one in self._kept.values()) >= KEPT:
                        del self._kept[next(name for name, one in self._kept.items() if one is not None)]
                    inputs = mapped((args, options), torch.clone)
                    entry = inputs, capture(lambda: plain(*inputs[0], **inputs[1]))
                    self._kept[key] = entry
                inputs, replay = entry
                write(inputs, (args, options))
                return mapped(replay(), torch.clone)

            return forward

        with replaced(unet, make):
            yield
