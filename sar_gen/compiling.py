"""Compiling the UNet's repeated blocks in the background, and using them once they are ready.

Blocks of one structure share one compiled function a set of input shapes (regional compilation): SDXL's 70
transformer blocks are two functions. Weights are inputs of it, so that another strategy on the same base needs no
other one. While a block's function is not ready (being compiled, of shapes that never came before, or not compilable)
the block runs eagerly: nobody waits. torch keeps what it compiled on disk (``cache``), so that the next start takes
seconds.

A picture is made whole with what was ready when it began: eager and compiled kernels round differently, and the two
are never mixed in one picture.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sar_gen.forwards import Forward, replaced
from sar_gen.nests import mapped, signature

logger = logging.getLogger(__name__)

REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")
LIMIT = 64  # sets of shapes a function is compiled for; torch's own limit is 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Region:
    """Blocks that share a compiled function: class, structure and the shapes of what goes in."""

    kind: type
    structure: str
    shapes: tuple[Any, ...]


class Compiler:
    """Compiles regions on one background thread; see the module's docstring."""

    def __init__(self, cache: Path | None = None, say: Say = lambda _: None, backend: str = "inductor") -> None:
        """Make a compiler.

        Args:
            cache: folder that torch keeps compiled code in; ``None``: where the environment says.
            say: told how it goes.
            backend: of torch.compile.
        """
        self._say, self._backend = say, backend
        if cache is not None:
            # diffusers sets it too when it is imported, to a folder that a new start of the machine empties
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        self._functions: dict[type, Forward] = {}
        self._ready: set[Region] = set()
        self._wanted: dict[Region, Any] = {}
        self._structures: dict[int, tuple[Any, str]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.failure: str | None = None

    @property
    def ready(self) -> int:
        """How many regions are compiled."""
        return len(self._ready)

    @property
    def waiting(self) -> int:
        """How many are not yet."""
        return len(self._wanted)

    @contextmanager
    def blocks(self, whole: Any) -> Iterator[int]:
        """Run a UNet's or VAE's blocks by their compiled functions, where ready; compile the others afterwards.

        Gives how many regions were compiled when it began; what becomes ready later is used from the next time on.
        """
        usable = frozenset(self._ready) if self.failure is None else frozenset()
        if usable:
            _raise_limit()
        seen: dict[Region, Any] = {}
        with ExitStack() as stack:
            for module in whole.modules():
                if type(module).__name__ in REPEATED:
                    stack.enter_context(replaced(module, self._dispatch(module, usable, seen)))
            yield len(usable)
        with self._lock:
            if self.failure is not None or self._closed:
                return
            new = {region: example for region, example in seen.items() if region not in self._ready}
            self._wanted = {**new, **self._wanted}
            if self._wanted and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sar-gen-compile", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing is being compiled."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def close(self) -> None:
        """Begin no further region; returns when the one at hand is done, after a minute at most."""
        self._closed = True
        self.wait(60)

    def _dispatch(
        self, module: Any, usable: frozenset[Region], seen: dict[Region, Any]
    ) -> Callable[[Forward], Forward]:
        structure = self._structure(module)
        kind = type(module)

        def make(plain: Forward) -> Forward:
            def forward(*args: Any, **options: Any) -> Any:
                region = Region(kind, structure, signature((args, options)))
                if region in usable:
                    return self._functions[kind](module, *args, **options)
                if region not in seen:
                    seen[region] = (module, _described((args, options)))
                return plain(*args, **options)

            return forward

        return make

    def forget(self) -> None:
        """Look at the structure of blocks anew: a strategy may have put LoRA layers into them, or taken them out."""
        self._structures = {}

    def _structure(self, module: Any) -> str:
        """Return a module's structure in words; kept, since they are long to make."""
        kept = self._structures.get(id(module))
        if kept is None or kept[0] is not module:
            kept = self._structures[id(module)] = (module, _words(module))
        return kept[1]

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    if self._closed or self.failure is not None or not self._wanted:
                        self._thread = None
                        return
                    region, (module, example) = next(iter(self._wanted.items()))
                done = len(self._ready)
                self._say(f"Compiling the denoiser in the background: part {done + 1} of {done + len(self._wanted)}.")
                self._compile(region, module, example)
                with self._lock:
                    self._ready.add(region)
                    del self._wanted[region]
                    if not self._wanted:
                        self._say(
                            f"The denoiser is compiled ({len(self._ready)} parts); pictures are made faster now."
                        )
        except Exception as error:
            logger.debug("Compiling failed", exc_info=True)
            with self._lock:
                self.failure = " ".join(str(error).split())[:200] or type(error).__name__
                self._wanted, self._thread = {}, None

    def _compile(self, region: Region, module: Any, example: Any) -> None:
        """Compile one region by calling its function once, with inputs of its shapes."""
        _raise_limit()
        function = self._functions.get(region.kind)
        if function is None:
            # The class's own forward, not the block's: the one in its place now is ours.
            forward: Any = region.kind.forward  # type: ignore[attr-defined]
            function = self._functions[region.kind] = torch.compile(forward, dynamic=False, backend=self._backend)
        args, options = _drawn(example, next(module.parameters()).device)
        with torch.no_grad():
            function(module, *args, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _words(module: Any) -> str:
    """Return what a compiled function takes for granted of a module: its layers, and the plain values that they hold.

    Not all of these are in ``repr``: some of diffusers' blocks hold 1 where others hold 1.0.
    """
    plain = [
        (name, key, repr(value))
        for name, layer in module.named_modules()
        for key, value in sorted(vars(layer).items())
        if isinstance(value, bool | int | float | str | tuple | None)
    ]
    return f"{module!r} {plain}"


def _raise_limit() -> None:
    """Let torch keep as many compiled versions of a function as there are regions; for the thread that calls."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)


def _described(value: Any) -> Any:
    """Return a nest with tensors of the same form without values in the place of its own, so that none is kept."""
    return mapped(
        value, lambda tensor: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    )


def _drawn(value: Any, device: torch.device) -> Any:
    """Return a nest of described tensors as zeros on a device."""

    def make(tensor: torch.Tensor) -> torch.Tensor:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return made.zero_()

    return mapped(value, make)
