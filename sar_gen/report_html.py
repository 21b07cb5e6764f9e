"""A report as one HTML file that needs nothing else: pictures and figures are inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sar_gen.amplitude import view
from sar_gen.files import write_atomic
from sar_gen.plots import figure_png, histogram_figure, texture_figure
from sar_gen.quality.report import QualityReport
from sar_gen.quality.statistics import patch_statistics
from sar_gen.references import ReferenceSet

MOST_PICTURES = 24  # a page of a thousand patches would not open

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: right; }
td:first-child, th:first-child, td:last-child { text-align: left; }
tr { border-bottom: 1px solid #8884; } .patches img { width: 160px; margin: 0 4px 4px 0; }
.figure { background: #fff; max-width: 100%; width: 480px; } .verdict { font-size: 1.1rem; } footer { opacity: .75; }
"""


def write_html(
    path: Path, report: QualityReport, amplitudes: Sequence[NDArray[np.float32]], reference: ReferenceSet
) -> None:
    """Write the report to ``path``, atomically.

    Args:
        path: the HTML file.
        report: what ``quality.report.compare`` returned.
        amplitudes: the judged patches, float32 ``(height, width)`` each; the first 24 are shown.
        reference: the real set that they were judged with.

    Raises:
        SarGenError: the file cannot be written.
    """
    generated = patch_statistics(amplitudes)
    figures = [
        histogram_figure(generated, reference.statistics, axis="linear"),
        histogram_figure(generated, reference.statistics, axis="db"),
        texture_figure(generated, reference.statistics, report=report),
    ]
    rows = []
    for name, measure in report.measures.items():
        cells = ["–" if c is None else f"{c:.4g}" for c in (measure.value, measure.floor, measure.ratio)]
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(name)}</td>{columns}<td>{escape(measure.unit)}</td></tr>")
    pictures = "".join(_img(_view_png(a), "generated patch") for a in amplitudes[:MOST_PICTURES])
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    plots = "".join(_img(figure_png(figure, 150), "figure", "figure") for figure in figures)
    html = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>SAR report: {escape(report.reference)}</title>
<style>{STYLE}</style><h1>Generated SAR beside {escape(report.reference)}</h1>
<p class="verdict">{escape(report.verdict)}</p>
<p>{report.generated_count} generated patches, {report.reference_count} real ones.</p>
<div class="patches">{pictures}</div>
<table><tr><th>measure</th><th>value</th><th>real-versus-real floor</th><th>ratio</th><th>unit</th></tr>
{"".join(rows)}</table>
{plots}<ul>{notes}</ul><footer>{escape(reference.credit)} {escape(reference.licence)}</footer></html>
"""
    write_atomic(path, html.encode())


def _view_png(amplitude: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(view(amplitude)).save(buffer, "png")
    return buffer.getvalue()


def _img(png: bytes, text: str, css: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{css}" alt="{text}" src="data:image/png;base64,{data}">'
