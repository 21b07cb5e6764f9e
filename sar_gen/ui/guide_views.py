"""The guide card's pieces as HTML: pure functions of plain data, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sar_gen import palettes
from sar_gen.amplitude import view
from sar_gen.guide_networks import NetworkSpec, way_title
from sar_gen.request import IMAGE_TO_IMAGE, Guide
from sar_gen.runs import RunRecord
from sar_gen.ui import views
from sar_gen.ui.guiding import KINDS, PICTURE, Picked

if TYPE_CHECKING:
    from sar_gen.conditioning import Prepared
    from sar_gen.ui.scenes import Scene

LARGEST = 384  # side of a picture of a guide, in pixels
SMALL = 96


def prepared(ready: Prepared) -> str:
    """Return what is really used of a guide, with what was done to it."""
    got = "as used" if ready.network is None else "what the network gets"
    pictures = _figure(ready.shown, got, "What is used of the guide")
    if ready.start is not None:
        pictures += _figure(view(ready.start, "linear", None), "starting image", "Starting image made from the guide")
    return f'<div class="sg-guide">{pictures}<div>{views.sentence(ready.note)}</div></div>'


def _figure(pixels: NDArray[np.uint8], caption: str, alt: str) -> str:
    address = views.png_url(thinned(pixels, LARGEST))
    return f'<figure><img src="{address}" alt="{alt}"/><figcaption>{caption}</figcaption></figure>'


def thinned(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture of ``side`` pixels at most, made of some of its own pixels, so that classes stay classes."""
    step = -(-max(pixels.shape[:2]) // side)
    return np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step]) if step > 1 else pixels


def legend(palette: str) -> str:
    """Return what each class of a palette becomes, behind one click."""
    rows = "".join(
        f'<tr title="{escape(row.choice)}"><td><i style="background:#{row.colour[0]:02x}{row.colour[1]:02x}'
        f'{row.colour[2]:02x}"></i></td><td>{row.code}</td><th scope="row">{escape(row.label)}</th>'
        f"<td>{escape(row.studio_label)}{'*' if row.choice else ''}</td></tr>"
        for row in palettes.legend(palette)
    )
    head = (
        '<thead><tr><th scope="col" colspan="2">Code</th><th scope="col">Class</th><th scope="col">In the studio</th>'
        "</tr></thead>"
    )
    title = palettes.TITLES[palette]
    return (
        f'<details class="sg-legend"><summary>Legend: {escape(title[0].upper() + title[1:])}</summary><table>{head}'
        f"<tbody>{rows}</tbody></table></details>"
    )


def picks(offered: Sequence[tuple[RunRecord, int]], picked: Picked | None) -> str:
    """Return the patches of past runs to choose from, and what of the chosen run is taken."""
    if not offered:
        return views.sentence("There is no run yet; generate a patch first.")
    buttons = "".join(_pick(record, index, picked) for record, index in offered)
    html = f'<div class="sg-picks" role="group" aria-label="Patches of past runs">{buttons}</div>'
    if picked is not None and picked.kinds:
        many = len(picked.kinds) > 1
        choices = [(PICTURE, "Its picture")]
        choices += [
            (str(place), f"Its guide {place + 1}" if many else "Its guide") for place in range(len(picked.kinds))
        ]
        html += '<div class="sg-takes" role="group" aria-label="What is taken of the run">'
        html += "".join(
            f'<button type="button" class="sg-chip" data-text="take {value}" '
            f'aria-pressed="{_is(picked.take == value)}">{escape(title)}</button>'
            for value, title in choices
        )
        html += "</div>"
    return html + views.sentence("Older ones come first here once they are opened from the Library.")


def _pick(record: RunRecord, index: int, picked: Picked | None) -> str:
    image = record.images[index]
    chosen = picked is not None and (picked.run, picked.index) == (record.id, index)
    title = f"{record.request.prompt} · seed {image.seed} · {record.created[:16].replace('T', ' ')}"
    return (
        f'<button type="button" data-text="patch {index} {escape(record.id)}" aria-pressed="{_is(chosen)}" '
        f'title="{escape(title)}"><img src="{_thumbnail(image.view)}" alt="{escape(title)}"/></button>'
    )


def rows(guides: Sequence[Guide], known: Mapping[str, NetworkSpec]) -> str:
    """Return the guides that were added, each with a button that takes it out again."""
    if not guides:
        return ""
    items = "".join(_row(place, guide, known) for place, guide in enumerate(guides))
    return f'<div class="sg-added" role="list" aria-label="Guides that were added"><b>Also used</b>{items}</div>'


def _row(place: int, guide: Guide, known: Mapping[str, NetworkSpec]) -> str:
    way = guide.way or ""
    title = way_title(known, way) if way == IMAGE_TO_IMAGE or way in known else way
    pixels = guide.image if guide.image.ndim == 3 else np.repeat(guide.image[..., None], 3, axis=2)
    span = "" if (guide.start, guide.end) == (0, 1) else f" · {guide.start:g} to {guide.end:g}"
    return (
        f'<div class="sg-item" role="listitem"><img src="{views.png_url(thinned(pixels, SMALL))}" alt=""/>'
        f'<div><b>{escape(KINDS[guide.kind])}</b><span title="{escape(title)}">{escape(title)}</span>'
        f"<span>weight {guide.weight:g}{span}</span></div>"
        f'<button type="button" data-text="{place}" aria-label="Remove the {escape(KINDS[guide.kind].lower())}" '
        'title="Remove">×</button></div>'
    )


def scene_cards(scenes: Sequence[Scene]) -> str:
    """Return the unseen scenes as pictures, one click each."""
    cards = "".join(_scene(scene) for scene in scenes)
    return f'<div class="sg-scenes" role="group" aria-label="Unseen scenes">{cards}</div>' if cards else ""


def _scene(scene: Scene) -> str:
    shape = "" if scene.kind == "sketch" else " wide"
    return (
        f'<button type="button" class="sg-scene{shape}" data-scene="{escape(scene.name)}" '
        f'title="{escape(scene.name)}: {escape(scene.why)}"><img src="{_thumbnail(scene.file)}" alt=""/>'
        f"<span>{escape(scene.name)}</span></button>"
    )


@lru_cache(maxsize=256)
def _thumbnail(path: Path) -> str:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB" if image.mode != "L" else "L"))
    return views.png_url(thinned(pixels, SMALL))


def _is(condition: bool) -> str:
    return "true" if condition else "false"
