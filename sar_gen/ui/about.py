"""The About tab: the checkpoints' cards, the reference sets, licences and credits."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from sar_gen import checkpoints, references
from sar_gen.runs import library_versions
from sar_gen.studio import Studio
from sar_gen.ui import views
from sar_gen.ui.generate import QUIET
from sar_gen.ui.inputs import checkpoint_choices
from sar_gen.ui.theme import markup

INTRODUCTION = """
<p>SAR studio generates synthetic aperture radar patches from text with fine-tuned latent diffusion, and judges them
beside real Sentinel-1 data: every measure stands next to what two sets of real patches differ by. Pictures made here
are <b>synthetic</b>; each file says so in its metadata.</p>
<p>Amplitude is linear amplitude divided by mean&nbsp;+&nbsp;3&nbsp;standard deviations of a whole set and clipped to
[0, 1] (arXiv&nbsp;2506.13307). Measures are computed on this float amplitude, never on a displayed picture.</p>
"""


def build_about(studio: Studio) -> None:
    """Build the tab."""
    catalogue = checkpoints.catalogue(studio.settings)
    name = studio.settings.checkpoint if studio.settings.checkpoint in catalogue else next(iter(catalogue))
    with gr.Row(elem_id="about"):
        with gr.Column(elem_classes=["sg-pane", "sg-text"]):
            markup("<h2>Checkpoint card</h2>")
            choice = gr.Dropdown(
                checkpoint_choices(catalogue), value=name, label="Checkpoint", show_label=False, container=False
            )
            card_view = markup(card(catalogue[name]))
        with gr.Column(elem_classes=["sg-pane", "sg-text"]):
            markup(f"<h2>What this is</h2>{INTRODUCTION}{versions(studio)}<h2>Real SAR</h2>{sets(studio)}")
    choice.change(lambda key: card(catalogue[key]), choice, card_view, queue=False, **QUIET)


def card(spec: checkpoints.CheckpointSpec) -> str:
    """Return everything that a card says."""
    rows = [
        ("Name", spec.title),
        ("Identifier", spec.id),
        ("Family", "SDXL" if spec.family == "sdxl" else "Stable Diffusion 1.5"),
        ("Base", spec.base),
        ("Strategy", spec.strategy),
        ("Source", source(spec)),
        ("Resolution", f"{spec.resolution} × {spec.resolution} px"),
        ("Sensor", spec.sensor or "unknown"),
        ("Polarisation", spec.polarisation or "unknown"),
        ("Amplitude", views.ENCODINGS[spec.amplitude_encoding]),
        ("Defaults", f"{spec.steps} steps, guidance {spec.guidance:g}, scheduler {spec.scheduler}"),
        ("Training data", spec.training_data),
        ("Licence", spec.licence or "unknown"),
        ("Credit", " ".join(spec.credit)),
        ("How to prompt", " ".join(spec.prompt_hints)),
    ]
    warnings = "".join(views.sentence(text, "warn") for text in spec.warnings)
    hashes = "".join(
        f"<li><code>{escape(file)}</code> <code>{escape(hex)}</code></li>" for file, hex in spec.sha256.items()
    )
    quality = "".join(_quality(name, value) for name, value in spec.quality.items())
    measured = f"<h3>Measured quality</h3><dl class='sg-rows'>{quality}</dl>" if quality else ""
    weights = (
        f"<details><summary>Weight files (sha256)</summary><ul class='sg-hashes'>{hashes}</ul></details>"
        if hashes
        else ""
    )
    return views.properties(rows) + warnings + measured + weights


def source(spec: checkpoints.CheckpointSpec) -> str:
    """Return where a checkpoint's files are."""
    if spec.origin == "backend":
        return "on the backend"
    return spec.repo_id or ("embedded" if spec.origin != "user" else str(spec.path))


def _quality(name: str, value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{key} {item}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(str(item) for item in value)
    else:
        text = str(value)
    return f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd></div>"


def sets(studio: Studio) -> str:
    """Return the reference sets with their credits."""
    rows = []
    for info in references.list_references(studio.settings):
        kind = "pictures" if info.has_patches else "statistics"
        rows.append(
            f"<tr><td>{escape(info.title)}</td><td>{escape(info.polarisation or '?')}</td><td>{info.count}</td>"
            f"<td>{kind}</td><td>{escape(info.credit)}</td></tr>"
        )
    head = "<tr><th>Set</th><th>Pol.</th><th>Patches</th><th>Ships as</th><th>Credit</th></tr>"
    return f'<table class="sg-table"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def versions(studio: Studio) -> str:
    """Return where things are, and the versions that can change a picture."""
    libraries = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return views.properties(
        [
            *([("Generates at", studio.settings.backend)] if studio.settings.backend else []),
            ("Runs", str(studio.settings.runs)),
            ("Your additions", str(studio.settings.home)),
            ("Libraries", libraries),
            ("Licence", "Apache-2.0 (program)"),
        ]
    )
