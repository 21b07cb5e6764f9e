"""What the guide card says and sends: pure functions from the form's values to guides, sentences and back.

A guide comes from a drawing, a file, a run of before or the real patch on show. Several go into one request where
networks read them: those that were added are kept in a ``Listed``, the one in the form comes last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sar_gen import guide_networks, guides, palettes
from sar_gen.amplitude import grey_picture
from sar_gen.errors import InputError
from sar_gen.guide_networks import NetworkSpec
from sar_gen.request import IMAGE_TO_IMAGE, SIZE_STEP, GenerationRequest, Guide, size_of
from sar_gen.runs import RunRecord
from sar_gen.settings import Settings
from sar_gen.studio import Studio
from sar_gen.ui import judging
from sar_gen.ui.choices import Ways
from sar_gen.ui.sketch import drawing
from sar_gen.windows import mean_count

SOURCES = [("None", "none"), ("Sketch", "sketch"), ("Image", "image"), ("Past run", "run"), ("Real", "real")]
KINDS = {"sketch": "Sketch", "map": "Class map", "optical": "Optical image", "sar": "SAR image"}
UPLOAD_KINDS = [(KINDS[kind], kind) for kind in ("map", "sketch", "optical", "sar")]
PALETTES = [
    ("Found by its colours", palettes.AUTO),
    ("Studio colours", "studio"),
    ("SEN12MS, DFC2020 (10 classes)", "sen12ms"),
    ("IGBP (MODIS, SEN12MS)", "igbp"),
    ("ESA WorldCover", "worldcover"),
    ("Dynamic World", "dynamicworld"),
    ("Water, ship, land", "water-ship-land"),
]
PICTURE = "picture"
"""What is taken of a past run: its picture; else the number of one of its guides."""
RECENT = 12  # patches offered of past runs
A_RUN = 4  # of them at most of one run


@dataclass(frozen=True)
class Picked:
    """What is taken of a past run.

    Attributes:
        run: its id.
        index: of the patch.
        take: ``PICTURE``, or the number of one of the run's guides.
        kinds: of the run's guides.
    """

    run: str
    index: int = 0
    take: str = PICTURE
    kinds: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Kind of the guide that is taken."""
        return "sar" if self.take == PICTURE else self.kinds[int(self.take)]


@dataclass(frozen=True)
class Source:
    """Where the guide of the form comes from: the values of the card's components."""

    guide: str
    guide_kind: str = "map"
    palette: str = palettes.AUTO
    path: str | None = None
    sketch: Any = None
    picked: Picked | None = None
    reference: str | None = None
    real_index: int = 0

    @property
    def kind(self) -> str:
        """Kind of the guide."""
        if self.guide == "image":
            return self.guide_kind
        if self.guide == "run" and self.picked is not None:
            return self.picked.kind
        return "sketch" if self.guide in ("sketch", "none") else "sar"


@dataclass(frozen=True, eq=False)  # compared by identity: a changed list is a new one
class Listed:
    """The guides that were added beside the one in the form."""

    guides: tuple[Guide, ...] = ()


# ---- reading


def read_source(source: Source, studio: Studio) -> Guide | None:
    """Return the guide that the form describes, ``None`` where none is used or none is there yet.

    Raises:
        InputError: the file, run or reference set cannot be used.
    """
    if source.guide == "sketch":
        pixels = drawing(source.sketch)
        return None if pixels is None else Guide("sketch", pixels)
    if source.guide == "image" and source.path:
        palette = source.palette if source.guide_kind == "map" else "studio"
        kind: Any = source.guide_kind
        return guides.read_guide(Path(source.path), kind, studio.settings.max_pixels, palette=palette)
    if source.guide == "run" and source.picked is not None:
        return _of_run(source.picked, studio)
    if source.guide == "real" and source.reference:
        return _of_real(source.reference, source.real_index, studio.settings)
    return None


def nothing_yet(source: Source) -> str:
    """Return what to do where ``read_source`` has nothing."""
    return {
        "sketch": "draw in the Sketch tab",
        "image": "drop an image",
        "run": "choose a patch of a past run",
        "real": "choose a reference set with patches",
    }.get(source.guide, "choose one")


def _of_run(picked: Picked, studio: Studio) -> Guide:
    record = opened(picked.run, studio)
    if picked.take != PICTURE:
        guide = record.request.guides[int(picked.take)]
        note = f"Taken: guide {int(picked.take) + 1} of run {record.id}."
        return dataclasses.replace(guide, notes=(note,))
    if picked.index >= len(record.images):
        raise InputError(f"The files of run {record.id} are gone; choose another one.")
    image = record.images[picked.index]
    note = f"Taken: patch {picked.index + 1} (seed {image.seed}) of run {record.id}, as SAR."
    name = f"{record.id}, seed {image.seed}"
    return Guide("sar", grey_picture(judging.amplitude_of(image.amplitude_file)), name, notes=(note,))


def _of_real(reference: str, index: int, settings: Settings) -> Guide:
    real = judging.real_patch(reference, index, settings)
    if real is None:
        raise InputError("This reference set ships as statistics, without patches; choose another one.")
    note = (
        f"Taken: the real patch on show ({real.index + 1} of {real.count}, {real.set_title}), as SAR. Its optical "
        "twin does not ship."
    )
    return Guide("sar", grey_picture(real.patch.amplitude), f"{real.patch.name} of {real.set_title}", notes=(note,))


def opened(run: str, studio: Studio) -> RunRecord:
    """Return a run of the studio's by its id.

    Raises:
        InputError: there is none.
    """
    if not run or Path(run).name != run:
        raise InputError("There is no such run; choose another one.")
    return studio.store.open(studio.store.folder / run)


def recent(studio: Studio, shown: str | None = None) -> list[tuple[RunRecord, int]]:
    """Return the patches that are offered as guides, newest first; those of the run ``shown`` (a folder) lead."""
    records = [record for record in studio.store.list(limit=4 * RECENT) if record.images]
    if shown:
        first = [record for record in records if str(record.folder) == shown]
        if not first:
            try:
                first = [opened(Path(shown).name, studio)]
            except InputError:
                first = []
        records = first + [record for record in records if str(record.folder) != shown]
    offered = [(record, index) for record in records for index in range(min(A_RUN, len(record.images)))]
    return offered[:RECENT]


def pick(run: str, index: int, studio: Studio) -> Picked:
    """Choose a patch of a past run.

    Raises:
        InputError: there is no such run.
    """
    return Picked(run, index, PICTURE, tuple(guide.kind for guide in opened(run, studio).request.guides))


# ---- ways


def steered(guide: Guide, offered: Ways, way: str | None, weight: float, start: float, end: float) -> Guide:
    """Return a guide with the way that the form says; image-to-image has no weight, start and end."""
    chosen = offered.chosen(way)
    if chosen == IMAGE_TO_IMAGE:
        return dataclasses.replace(guide, way=chosen, weight=1.0, start=0.0, end=1.0)
    return dataclasses.replace(guide, way=chosen, weight=float(weight), start=float(start), end=float(end))


def way_line(offered: Ways, way: str | None, kind: str) -> str:
    """Return which way is used and what it means, in one sentence."""
    network = offered.network(way)
    if network is not None:
        return f"{network.title} reads the guide and adds to every step; weight 1 is as it was trained."
    if len(offered.names) == 1:
        thing = {"map": "class map", "sketch": "sketch", "optical": "optical image", "sar": "SAR image"}[kind]
        return (
            f"This checkpoint has no ControlNet for a {thing}: the guide becomes the starting image (image-to-image)."
        )
    return "Image-to-image: generation starts from the guide itself; no network reads it."


def missing_line(network: NetworkSpec | None) -> str:
    """Return how to get a network whose files are not here; empty where there is nothing to get."""
    if network is None or not is_missing(network):
        return ""
    if network.repo_id:
        return (
            f"{network.title} is not on this machine yet: download it here, or run 'python -m sar_gen guides pull "
            f"{network.id}'."
        )
    return f"The files of {network.title} are gone from {network.path}; bring the folder again."


def is_missing(network: NetworkSpec | None) -> bool:
    """Return whether a network's files are not here."""
    try:
        return network is not None and bool(guide_networks.missing_files(network))
    except InputError:  # they are here, and refused; the request says why
        return False


def together(guides_: Sequence[Guide], offered: Ways, settings: Settings) -> str:
    """Return the core's sentence on guides that cannot go together, empty where they can."""
    try:
        guide_networks.with_ways(guides_, offered.spec, offered.known, settings)
    except InputError as error:
        return str(error)
    return ""


# ---- size


def guide_size(guide: Guide, resolution: int, largest: int) -> tuple[int, int] | None:
    """Return width and height of the scene that a guide is the map of, ``None`` where it is no larger than a patch.

    Args:
        guide: of any kind.
        resolution: the checkpoint's size.
        largest: side of a scene.
    """
    size = size_of(guide, largest)
    return size if max(size) > resolution else None


def size_line(width: int, height: int, resolution: int) -> str:
    """Return what a size above the checkpoint's own means; empty for others."""
    if max(width, height) <= resolution:
        return ""
    count = mean_count(height // SIZE_STEP, width // SIZE_STEP, resolution // SIZE_STEP)
    return (
        f"{width} × {height} px make one large scene of some {count} overlapping windows a step, so it takes about "
        f"{count} times as long as a patch."
    )


# ---- a run of before


def in_form(request: GenerationRequest) -> int | None:
    """Return which of a request's guides comes back into the form: the last sketch, else the last one."""
    sketches = [place for place, guide in enumerate(request.guides) if guide.kind == "sketch"]
    if sketches:
        return sketches[-1]
    return len(request.guides) - 1 if request.guides else None


def form_of_guide(request: GenerationRequest) -> dict[str, Any]:
    """Return the values of the form's guide fields that a request has; pixels are not among them."""
    place = in_form(request)
    values: dict[str, Any] = {
        "guide": "none", "guide_kind": "map", "palette": palettes.AUTO, "way": IMAGE_TO_IMAGE, "weight": 1.0,
        "start": 0.0, "end": 1.0, "strength": request.strength,
    }  # fmt: skip
    if place is None:
        return values
    guide = request.guides[place]
    values |= {"way": guide.way, "weight": guide.weight, "start": guide.start, "end": guide.end}
    return {**values, "guide": "sketch" if guide.kind == "sketch" else "run"}
