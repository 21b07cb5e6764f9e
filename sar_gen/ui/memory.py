"""What the browser remembers over a reload: the form, the choices of the reference panel and a grid's axes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from sar_gen import checkpoints
from sar_gen.axes import AXES
from sar_gen.errors import SarGenError
from sar_gen.files import write_atomic
from sar_gen.profiles import PROFILES
from sar_gen.request import SCHEDULERS
from sar_gen.settings import Settings
from sar_gen.ui.grid_form import FIELDS, NONE
from sar_gen.ui.guiding import PALETTES, SOURCES, UPLOAD_KINDS

STORAGE_KEY = "sar-studio-form"
SECRET_FILE = "page-secret"
OFFERED = {
    "scheduler": SCHEDULERS,
    "profile": tuple(PROFILES),
    "guide": tuple(value for _, value in SOURCES),
    "guide_kind": tuple(value for _, value in UPLOAD_KINDS),
    "palette": tuple(value for _, value in PALETTES),
}
GRID_AXES = FIELDS[::2]
VERSION = 1  # of what is remembered; another version is forgotten


def page_secret(settings: Settings) -> str:
    """Return this installation's key for what the browser stores, made at the first start.

    Without a fixed key the form would be forgotten at every restart. Where the home folder cannot be written, the key
    lasts until the app is closed.
    """
    path = settings.home / SECRET_FILE
    try:
        text = path.read_text(encoding="ascii").strip()
        if len(text) >= 16:
            return text
    except (OSError, ValueError):
        pass
    text = secrets.token_hex(16)
    try:
        write_atomic(path, text.encode())
        path.chmod(0o600)
    except (SarGenError, OSError):
        return text
    return text


def remember(names: Sequence[str]) -> str:
    """Return the script that packs the values of the fields ``names`` for the browser, without asking the server."""
    form = f"Object.fromEntries({list(names)!r}.map((name, i) => [name, values[i]]))"
    return f"(...values) => [{{version: {VERSION}, form: {form}}}]"


def restored(saved: Any, names: Sequence[str], defaults: Mapping[str, Any], settings: Settings) -> list[Any]:
    """Return a value for each field of ``names``: the remembered one where it is still possible, else none.

    Args:
        saved: what the browser kept, of any age and shape.
        names: fields, in the order of the result.
        defaults: values of a fresh page; also tells the type of each field.
        settings: to know which checkpoints there are.
    """
    form = saved.get("form") if isinstance(saved, dict) and saved.get("version") == VERSION else None
    if not isinstance(form, dict):
        return [gr.skip() for _ in names]
    catalogue = checkpoints.catalogue(settings)
    known = form.get("checkpoint") in catalogue
    values: list[Any] = []
    for name in names:
        value = form.get(name)
        fits = _alike(value, defaults[name])
        if name in ("checkpoint", "strategy", "steps", "guidance", "width", "height"):
            fits = fits and known
        if name == "strategy" and known:
            fits = fits and value in checkpoints.strategies_for(catalogue, form["checkpoint"])
        if name in OFFERED:
            fits = value in OFFERED[name]
        if name in GRID_AXES:
            fits = str(value).partition(":")[0] in (NONE, *AXES)
        values.append(value if fits else gr.skip())
    return values


def _alike(value: Any, default: Any) -> bool:
    """Tell whether a remembered value is of the kind of its field; a field that is empty at first holds text."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    return isinstance(value, str)
