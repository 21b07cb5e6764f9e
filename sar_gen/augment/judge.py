"""The report of a finished set: each class beside its real reference, on a sample where the set is large."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from sar_gen import references
from sar_gen.augment.store import Store
from sar_gen.comparison import Comparison, compare_patches, to_json
from sar_gen.files import write_atomic
from sar_gen.html_page import html_page
from sar_gen.patches import Patch
from sar_gen.quality.wording import title_of
from sar_gen.report_html import STYLE, write_html
from sar_gen.settings import Settings
from sar_gen.training.row_pixels import read_pixels

SAMPLE = 200
"""Patches of a class that are compared, evenly spread over it: memory and time do not grow with the set."""
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
SHOWN = ("wasserstein1", "glcm_contrast", "glcm_correlation", "enl", "speckle_correlation", "spectrum")


@dataclass(frozen=True)
class Judged:
    """What was found of one class.

    Attributes:
        reference: set that it was compared with.
        compared: patches of the sample.
        made: patches of the class.
        verdict: in words.
        ratios: of ``SHOWN`` measures, value / floor of as many real patches.
        file: the class's own page.
    """

    reference: str
    compared: int
    made: int
    verdict: str
    ratios: dict[str, float | None]
    file: str


def judge(store: Store, settings: Settings, say: Callable[[str], None]) -> dict[str, Judged]:
    """Compare each class that has a reference with it, and write ``report.json``, ``report.html`` and a page a class.

    Raises:
        SarGenError: the folder cannot be written.
    """
    found: dict[str, Judged] = {}
    documents: dict[str, Any] = {}
    for one in store.recipe.classes:
        slots = store.made(one.label)
        if one.reference is None or not len(slots):
            continue
        sample = slots[np.unique(np.linspace(0, len(slots) - 1, min(SAMPLE, len(slots))).round().astype(np.int64))]
        say(f"Comparing {len(sample)} of {len(slots)} patches of {one.name} with {one.reference}.")
        comparison = compare_patches(
            [_patch(store, int(slot)) for slot in sample],
            references.load_reference(one.reference, settings),
            settings=settings,
        )
        file = f"report-{one.folder}.html"
        write_html(store.folder / file, comparison, about=f"Synthetic patches of the class {one.name}.")
        ratios = {name: comparison.report.measures[name].ratio for name in SHOWN}
        found[one.name] = Judged(
            one.reference, len(sample), len(slots), comparison.report.verdict, ratios, file
        )  # fmt: skip
        documents[one.name] = _document(comparison, len(slots))
    counts = store.counts()
    whole = {"name": store.recipe.plan.name, "synthetic": True, "classes": counts, "reports": documents}
    write_atomic(store.folder / REPORT_JSON, json.dumps(whole, indent=1).encode())
    write_atomic(store.folder / REPORT_HTML, _page(store.recipe.plan.name, counts, found).encode())
    return found


def _patch(store: Store, slot: int) -> Patch:
    line = store.journal.line(slot)
    row = store.row(line)
    return Patch(
        read_pixels(row, store.folder), row.key, encoding=line["encoding"], polarisation=row.polarisation
    )  # fmt: skip


def _document(comparison: Comparison, made: int) -> dict[str, Any]:
    data = to_json(comparison)
    return {**data, "made": made, "compared": data["generated_count"]}


def _page(name: str, counts: dict[str, dict[str, int]], found: dict[str, Judged]) -> str:
    heads = ("class", "asked", "made", "missing", "rejected attempts", "reference", "compared", *map(title_of, SHOWN))
    rows = []
    for kind, count in counts.items():
        one = found.get(kind)
        cells = [escape(kind), *(f"{count[key]:,}" for key in ("asked", "made", "missing", "rejected"))]
        if one is None:
            cells += ["none", *("-" for _ in range(1 + len(SHOWN)))]
        else:
            cells[0] = f'<a href="{escape(one.file)}">{escape(kind)}</a>'
            ratios = ("-" if ratio is None else f"{ratio:.2f}" for ratio in one.ratios.values())
            cells += [escape(one.reference), f"{one.compared:,}", *ratios]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    verdicts = "".join(f"<p><b>{escape(kind)}</b>: {escape(one.verdict)}</p>" for kind, one in found.items())
    missing = sum(count["missing"] for count in counts.values())
    warning = (
        f'<div class="warnings"><b>{missing:,} patches are missing</b>: the gate rejected every attempt at them.</div>'
        if missing
        else ""
    )
    title = f"{name}: synthetic SAR beside real SAR"
    body = (
        f"<h1>{escape(title)}</h1>{warning}"
        "<p class='muted'>Measures are multiples of their floor: what as many real patches of the same set score. "
        "About 1 cannot be told from real SAR by that measure.</p><div class='scroll'><table><thead><tr>"
        + "".join(f"<th>{escape(head)}</th>" for head in heads)
        + "</tr></thead><tbody>"
        + "".join(rows)
        + f"</tbody></table></div>{verdicts}"
    )
    return html_page(title, STYLE, body)
