"""Importing large libraries without looking for garbage meanwhile, or among them afterwards."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 100
"""New modules from which on what is there is set aside."""


@contextmanager
def without_collection() -> Iterator[None]:
    """Import modules without the garbage collector while this lasts.

    An import makes hundreds of thousands of objects that all stay. The collector looks through them again and again:
    a fifth of the time that torch, diffusers and gradio take to import, and 0.3 s at a time later, in the middle of a
    switch. So they are set aside for good (``gc.freeze``) where many modules came; what is no longer referred to is
    freed all the same, but for cycles that were there at this time.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before >= MANY:
            gc.freeze()
        if enabled:
            gc.enable()
