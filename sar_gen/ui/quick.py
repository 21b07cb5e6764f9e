"""Makes importing gradio quicker, so that the page answers sooner."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_type_stubs() -> Iterator[None]:
    """Import gradio, or derive from one of its components, without letting it write type stubs.

    gradio 6 parses the source of each of its 80 components at every import to refresh ``.pyi`` files for editors: half
    of its import time, and writes into the installed package. It leaves out components whose file is not to be had
    (``inspect.getfile`` raises ``OSError``), so that is what it is told here. If a later gradio asks differently, this
    does nothing.
    """
    original = inspect.getfile

    def getfile(obj: Any) -> str:
        if isinstance(obj, type) and hasattr(obj, "EVENTS"):
            raise OSError("type stubs are not refreshed")
        return original(obj)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = original
