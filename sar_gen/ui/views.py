"""Pieces of the page as HTML: pure functions of plain data, every text escaped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from sar_gen.checkpoints import CheckpointSpec
    from sar_gen.request import EngineState

LOGO = (
    '<svg class="sg-logo" viewBox="0 0 32 32" aria-hidden="true"><g fill="none" stroke-linecap="round" '
    'stroke-width="2.6"><path class="sg-beam" d="M6 26 26 6"/><path d="M6 17.5A8.5 8.5 0 0 1 14.5 26"/>'
    '<path d="M6 10A16 16 0 0 1 22 26"/></g></svg>'
)
BRAND = f'<div class="sg-brand">{LOGO}<span>SAR&nbsp;studio</span></div>'
ENCODINGS = {"linear": "linear amplitude", "db": "decibel amplitude", "unknown": "amplitude encoding unknown"}


def data_url(kind: str, data: bytes) -> str:
    """Return bytes as a ``data:`` address of media type ``kind``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_url(pixels: NDArray[np.uint8]) -> str:
    """Return an 8-bit picture, ``(height, width)`` grey or ``(height, width, 3)`` RGB, as a lossless address."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", compress_level=1)
    return data_url("image/png", buffer.getvalue())


def json_link(document: Mapping[str, Any], name: str, text: str) -> str:
    """Return a link that saves ``document`` as the file ``name``; nothing is written on the server."""
    address = data_url("application/json", json.dumps(document, indent=1, sort_keys=True).encode())
    return f'<a class="sg-link" download="{escape(name)}" href="{address}">{escape(text)}</a>'


def engine_state(state: EngineState) -> str:
    """Return the engine's line in the header."""
    words = {"idle": "Idle", "loading": "Loading", "ready": "Ready", "busy": "Working", "failed": "Failed"}
    where = " · ".join(part for part in (state.device, state.dtype, state.checkpoint) if part)
    text = words[state.status]
    if state.status in ("ready", "busy") and where:
        text += f" · {where}"
    elif state.message:
        text += f" · {state.message}"
    return (
        f'<div class="sg-engine {state.status}" role="status" title="{escape(state.message)}">'
        f'<i aria-hidden="true"></i><span>{escape(text)}</span></div>'
    )


def status(text: str, kind: str = "idle", share: float | None = None, aside: str = "") -> str:
    """Return the progress line.

    Args:
        text: one sentence.
        kind: ``idle``, ``busy``, ``done``, ``stopped`` or ``failed``; the colour.
        share: how much is done, 0 to 1; ``None`` draws no bar.
        aside: figures at the right end (time left).
    """
    bar = ""
    if share is not None:
        percent = round(100 * min(max(share, 0.0), 1.0))
        bar = (
            f'<div class="sg-bar" role="progressbar" aria-label="Generation" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
        )
    return (
        f'<div class="sg-status {kind}"><div role="status" aria-live="polite"><span>{escape(text)}</span>'
        f"<em>{escape(aside)}</em></div>{bar}</div>"
    )


def duration(seconds: float) -> str:
    """Return seconds for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def facts(spec: CheckpointSpec) -> str:
    """Return a checkpoint's key facts, as short as they can be."""
    rows = [
        ("Family", "SDXL" if spec.family == "sdxl" else "SD 1.5"),
        ("Size", f"{spec.resolution} × {spec.resolution} px"),
        ("Polarisation", spec.polarisation or "unknown"),
        ("Amplitude", {"linear": "linear", "db": "decibel"}.get(spec.amplitude_encoding, "unknown")),
        ("Guidance", f"{spec.guidance:g} · {spec.steps} steps"),
        ("Licence", spec.licence or "unknown"),
    ]
    return '<dl class="sg-facts">' + "".join(_pair(name, value) for name, value in rows) + "</dl>"


def chips(groups: Iterable[tuple[str, Sequence[str]]], kind: str) -> str:
    """Return words as buttons; ``page.js`` and ``js_on_load`` tell which one was chosen (``data-text``)."""
    parts = []
    for title, words in groups:
        if not words:
            continue
        buttons = "".join(
            f'<button type="button" class="sg-chip {kind}" data-text="{escape(word)}">{escape(word)}</button>'
            for word in words
        )
        label = f"<b>{escape(title)}</b>" if title else ""
        parts.append(f'<div class="sg-chips" role="group" aria-label="{escape(title or kind)}">{label}{buttons}</div>')
    return "".join(parts)


def tile(address: str, *, role: str, title: str, aside: str = "", alt: str = "", badge: str = "") -> str:
    """Return one picture with its caption; ``role`` is ``generated`` or ``real`` and sets the colour of its mark."""
    mark = f'<span class="sg-badge">{escape(badge)}</span>' if badge else ""
    return (
        f'<figure class="sg-tile {role}"><div class="sg-frame"><img src="{address}" alt="{escape(alt or title)}" '
        f'draggable="false"/>{mark}</div><figcaption><i aria-hidden="true"></i><b>{escape(title)}</b>'
        f'<span title="{escape(aside)}">{escape(aside)}</span></figcaption></figure>'
    )


def empty_tile(role: str, title: str, body: str, caption: str = "") -> str:
    """Return the place of a picture that is not there yet; ``body`` is HTML of ours."""
    return (
        f'<figure class="sg-tile {role}"><div class="sg-frame empty"><div><h3>{escape(title)}</h3>{body}</div></div>'
        f'<figcaption><i aria-hidden="true"></i><b>{escape(caption)}</b></figcaption></figure>'
    )


def invitation(presets: Sequence[Mapping[str, str]], unseen: str = "") -> str:
    """Return what the results show before the first run: scenes to start from, one click each.

    Args:
        presets: with a prompt alone.
        unseen: HTML of the scenes with a map (``guide_views.scene_cards``).
    """
    cards = "".join(
        f'<button type="button" class="sg-preset" data-preset="{escape(preset["name"])}">'
        f"<b>{escape(preset['name'])}</b><span>{escape(preset['prompt'])}</span></button>"
        for preset in presets
    )
    body = f'<p>Choose a scene, or write a prompt and press Generate.</p><div class="sg-presets">{cards}</div>'
    if unseen:
        body += f"<h4>Unseen scenes: drawn, because the training set does not hold them</h4>{unseen}"
    return empty_tile("generated", "No patch yet", body, "Generated")


def properties(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values as a list."""
    return '<dl class="sg-rows">' + "".join(_pair(name, value) for name, value in rows if value) + "</dl>"


def notes(texts: Sequence[str]) -> str:
    """Return what one should know as lines behind one click; nothing where there is nothing."""
    if not texts:
        return ""
    count = "One thing" if len(texts) == 1 else f"{len(texts)} things"
    return f'<details class="sg-note"><summary>{count} to know</summary>{"".join(map(sentence, texts))}</details>'


def sentence(text: str, kind: str = "") -> str:
    """Return one line of explanation; nothing for an empty text."""
    return f'<p class="sg-line {kind}">{escape(text)}</p>' if text else ""


def _pair(name: str, value: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
