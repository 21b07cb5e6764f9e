"""What the Compare tab needs behind its components: reading what was dropped, following a comparison, pictures of it.

Nothing here knows gradio. A page holds only the key of its comparison; the comparisons themselves lie on a shelf of a
few, so that pages never see each other's and memory stays bounded.
"""

from __future__ import annotations

import dataclasses
import math
import os
import queue
import shutil
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sar_gen import references
from sar_gen.amplitude import Scale, view
from sar_gen.errors import InputError
from sar_gen.patches import SUFFIXES, FileEncoding, Patch, PixelMeaning, read_folder, read_values
from sar_gen.quality.statistics import PatchStatistics
from sar_gen.references import ReferenceSet
from sar_gen.settings import Settings
from sar_gen.ui import judging

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sar_gen.comparison import Comparison
    from sar_gen.quality.laws import LawFit
    from sar_gen.quality.report import QualityReport
    from sar_gen.quality.speckle import RatioStatistics

TOLD = "told"
"""The meaning of files that carry the studio's own settings."""
SHOWN_SIDE = 1536
"""Longest side, in pixels, of a picture that is sent to the page; larger patches are shown as means of squares."""
MOST_KEPT, MOST_BYTES = 6, 1 << 30
AT_ONCE = 2
"""Comparisons that are computed at the same time; others wait, and say so."""
DRAWINGS = 64
FIGURE_DPI = 200

Mode = Literal["sides", "wipe"]
ScaleChoice = Literal["pool", "reference", "given"]
_DRAWING = threading.Lock()  # figures share matplotlib's font caches, which are not made for threads


# What was dropped -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropped:
    """Files and what the form says of them; numbers are as they were typed.

    Attributes:
        files: paths of the uploads.
        meaning: ``told``, an encoding of ``patches.PixelMeaning``, or ``None`` where nothing was chosen.
        low: decibels at grey 0, for integer files in decibels.
        high: decibels at full scale.
        scale: where mean and standard deviation come from: these files, the reference set, or the form.
        mean: mean linear amplitude, for ``given``.
        std: standard deviation of linear amplitude, for ``given``.
    """

    files: tuple[Path, ...]
    meaning: str | None = None
    low: str = ""
    high: str = ""
    scale: ScaleChoice = "pool"
    mean: str = ""
    std: str = ""


def pixel_meaning(dropped: Dropped, whose: str, reference_scale: Scale | None = None) -> PixelMeaning | None:
    """Return what the form says of the values; ``None`` where the files say it themselves.

    Args:
        dropped: the form.
        whose: names the files in a sentence, as in "the judged files".
        reference_scale: the pair of the reference set, where it has one.

    Raises:
        InputError: nothing is chosen, or a number is missing or impossible.
    """
    if dropped.meaning == TOLD:
        return None
    if dropped.meaning is None or dropped.meaning not in get_args(FileEncoding):
        raise InputError(f"It is not said what the values of {whose} mean; choose it below the files.")
    decibels = None
    if dropped.meaning == "db" and (dropped.low.strip() or dropped.high.strip()):
        low = _number(dropped.low, "decibels at grey 0", whose)
        decibels = (low, _number(dropped.high, "decibels at full scale", whose))
    scale: Scale | Literal["pool"] | None = "pool"
    if dropped.meaning == "studio":
        scale = None
    elif dropped.scale == "reference":
        if reference_scale is None:
            raise InputError("The reference set states no scale; take one of these files, or type mean and deviation.")
        scale = reference_scale
    elif dropped.scale == "given":
        mean, std = _number(dropped.mean, "mean", whose), _number(dropped.std, "deviation", whose)
        if mean <= 0 or std <= 0:
            raise InputError(f"Mean and deviation of {whose} are {mean:g} and {std:g}; both must be above 0.")
        scale = Scale(mean, std, "typed by the user")
    return PixelMeaning(dropped.meaning, scale, decibels)  # type: ignore[arg-type]


def _number(text: str, what: str, whose: str) -> float:
    try:
        value = float(text.strip().replace("−", "-"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"The {what} of {whose} {'is empty' if not text.strip() else 'is no number'}; type a number.")
    return value


def pools_own_scale(dropped: Dropped) -> bool:
    """Tell whether the files are brought to [0, 1] by their own mean and deviation."""
    return dropped.meaning not in (None, TOLD, "studio") and dropped.scale == "pool"


def read_dropped(
    dropped: Dropped, whose: str, settings: Settings, reference_scale: Scale | None = None
) -> list[Patch]:
    """Read uploaded files as patches, in the order of their names.

    They are brought together in one folder first: a PNG of the studio finds the float amplitude beside it there, and
    one scale is taken for all.

    Raises:
        InputError: there is no file, or one cannot be used.
    """
    if not dropped.files:
        raise InputError(f"There are no files to take as {whose}; drop PNG, TIFF, JPEG or NPY files.")
    meaning = pixel_meaning(dropped, whose, reference_scale)
    with tempfile.TemporaryDirectory(prefix="sar-studio-") as scratch:
        folder = Path(scratch) / "the dropped files"
        folder.mkdir()
        for path in dropped.files:
            _bring(path, folder)
        return read_folder(folder, meaning, settings.max_pixels)


def _bring(path: Path, folder: Path) -> None:
    """Link or copy an upload into the folder; a second file of the same name gets a number."""
    target, number = folder / path.name, 2
    while target.exists():
        target = folder / f"{path.stem} ({number}){path.suffix}"
        number += 1
    try:
        os.link(path, target)
    except OSError:
        try:
            shutil.copyfile(path, target)
        except FileNotFoundError:
            raise InputError(f"The upload {path.name} is gone; drop it again.") from None


def usable(paths: Sequence[str | Path]) -> list[Path]:
    """Return the paths that may hold patches: a chosen folder has other files too."""
    found = [Path(path) for path in paths]
    return sorted((path for path in found if path.suffix.lower() in SUFFIXES), key=lambda path: path.name)


def says_itself(paths: Sequence[Path], settings: Settings) -> bool:
    """Tell whether every file carries the studio's settings, so that nothing has to be said of its values."""
    pictures = {path.stem for path in paths if path.suffix.lower() == ".png"}
    for path in paths:
        if path.suffix.lower() == ".npy":
            if path.stem not in pictures:
                return False
            continue
        try:
            studio = read_values(path, settings.max_pixels)[1].get("studio")
        except InputError:
            return False
        if not isinstance(studio, dict) or not isinstance(studio.get("amplitude"), dict):
            return False
    return bool(paths)


def dropped_reference(dropped: Dropped, settings: Settings) -> ReferenceSet:
    """Return uploaded real patches as a reference set of their own, kept for this comparison only."""
    patches = read_dropped(dropped, "the reference", settings)
    count = len(patches)
    title = f"Dropped patches ({count})"
    return references.from_patches(patches, "your patches", title=title)


# Following a comparison ------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """Raised inside a comparison that nobody wants any more."""


_ROOM = threading.BoundedSemaphore(AT_ONCE)


def follow(work: Callable[[Callable[[str], None]], Any], stop: threading.Event) -> Iterator[str | tuple[Any]]:
    """Run ``work(say)`` beside the caller; yield what it says, and last ``(result,)``.

    Stopping is felt at once here; the work itself ends at the next thing it says.

    Args:
        work: says what it is doing by calling its argument.
        stop: set it to end the work; it is also set when the caller leaves.

    Raises:
        Stopped: ``stop`` was set.
        Exception: what the work raised.
    """
    told: queue.SimpleQueue[str | tuple[Any] | Exception] = queue.SimpleQueue()

    def say(text: str) -> None:
        if stop.is_set():
            raise Stopped
        told.put(text)

    def run() -> None:
        try:
            if not _ROOM.acquire(blocking=False):
                say("Waiting for another comparison to end")
                while not _ROOM.acquire(timeout=0.2):
                    if stop.is_set():
                        raise Stopped
            try:
                told.put((work(say),))
            finally:
                _ROOM.release()
        except Exception as error:
            told.put(error)

    threading.Thread(target=run, name="sar-gen-compare", daemon=True).start()
    try:
        while True:
            if stop.is_set():
                raise Stopped
            try:
                item = told.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, tuple):
                return
    finally:
        stop.set()


# Comparisons at hand ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Kept:
    """A comparison with the drawings that were made of it."""

    comparison: Comparison
    made: float = field(default_factory=time.time)
    drawings: OrderedDict[tuple[Any, ...], Any] = field(default_factory=OrderedDict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return ``make()`` of the first time that ``key`` was asked for."""
        with self.lock:
            if key not in self.drawings:
                self.drawings[key] = make()
                while len(self.drawings) > DRAWINGS:
                    self.drawings.popitem(last=False)
            self.drawings.move_to_end(key)
            return self.drawings[key]


class Shelf:
    """The last few comparisons of all pages, by key; the one used longest ago goes first."""

    def __init__(self, most: int = MOST_KEPT, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, comparison: Comparison) -> str:
        """Keep a comparison and return its key."""
        key = uuid.uuid4().hex
        with self._lock:
            self._kept[key] = Kept(comparison)
            while len(self._kept) > 1 and (len(self._kept) > self._most or self._bytes() > self._most_bytes):
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Kept:
        """Return a comparison.

        Raises:
            InputError: it is no longer kept.
        """
        with self._lock:
            if key not in self._kept:
                raise InputError("This comparison is no longer at hand; press Compare again.")
            self._kept.move_to_end(key)
            return self._kept[key]

    def _bytes(self) -> int:
        return sum(patch.amplitude.nbytes for kept in self._kept.values() for patch in kept.comparison.patches)


@dataclass(frozen=True)
class Part:
    """What the charts show: all judged patches, or one of them."""

    statistics: PatchStatistics
    report: QualityReport
    fits: tuple[LawFit, ...]


def part(kept: Kept, index: int | None) -> Part:
    """Return the whole comparison, or patch ``index`` alone, judged by what single real patches do."""
    from sar_gen.quality import laws
    from sar_gen.quality.report import compare

    comparison = kept.comparison
    if index is None or len(comparison.patches) == 1:
        return Part(comparison.statistics, comparison.report, comparison.fits)

    def make() -> Part:
        statistics = comparison.statistics.subset([index])
        reference = comparison.reference
        report = compare(statistics, reference.statistics, reference_name=reference.name)
        try:
            fits = laws.fit_histogram(statistics.histograms)
        except InputError:  # constant or clipped throughout
            fits = ()
        return Part(statistics, report, fits)

    result: Part = kept.once(("part", index), make)
    return result


def real_beside(reference: ReferenceSet, index: int, settings: Settings) -> judging.RealPatch | None:
    """Return real patch ``index`` (it wraps) of the set, or a labelled stand-in where only its statistics ship."""
    if reference.patches:
        index %= len(reference.patches)
        return judging.RealPatch(reference.patches[index], index, len(reference.patches), reference.title, False)
    return judging.real_patch(reference.name, index, settings)


# Pictures --------------------------------------------------------------------------------------------------------


def reduced_by(shape: tuple[int, ...]) -> int:
    """Return the side of the squares that are averaged for the page, 1 for none."""
    return -(-max(shape) // SHOWN_SIDE)


def reduced(amplitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return amplitude for the page: means of power over squares where the patch is too large to send."""
    step = reduced_by(amplitude.shape)
    if step == 1:
        return amplitude
    height, width = (side // step for side in amplitude.shape)
    power = np.square(amplitude[: height * step, : width * step], dtype=np.float32)
    means = power.reshape(height, step, width, step).mean(axis=(1, 3))
    return np.sqrt(means)


def pictures(
    kept: Kept, index: int, real: judging.RealPatch | None, remap: judging.Remap, over: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return the judged and the real picture, under one remap with one data mean, or the same map of both.

    Args:
        kept: the comparison.
        index: of the judged patch.
        real: what is beside it.
        remap: for pictures and windows; maps have colours of their own.
        over: ``picture``, ``windows`` (outlines of homogeneous ground) or one of ``plots.MAPS``.
    """
    judged = kept.comparison.patches[index].amplitude
    other = None if real is None else real.patch.amplitude
    anchor = judged if other is None else other
    mean = float(anchor.mean(dtype=np.float64))
    keys = [("judged", index), _key(real)]
    left, right = (
        None if amplitude is None else _picture(kept, key, amplitude, remap, mean, over)
        for key, amplitude in zip(keys, (judged, other), strict=True)
    )
    assert left is not None
    return left, right


def _key(real: judging.RealPatch | None) -> tuple[Any, ...]:
    return ("real", "" if real is None else f"{real.set_title} {real.index}")


def ratio_statistics(kept: Kept, key: tuple[Any, ...], amplitude: NDArray[np.float32]) -> RatioStatistics:
    """Return the statistics of the ratio image of a patch that is shown, computed once; its images are not kept."""
    from sar_gen.quality import speckle

    def make() -> RatioStatistics:
        none = np.empty((0, 0))
        return dataclasses.replace(speckle.ratio_statistics(amplitude), ratio=none, despeckled=none)

    found: RatioStatistics = kept.once(("ratio", *key), make)
    return found


def ratios_shown(kept: Kept, index: int, real: judging.RealPatch | None) -> list[tuple[str, RatioStatistics]]:
    """Return ``(whose, statistics)`` of the ratio images of the judged and the real patch that are shown."""
    patch = kept.comparison.patches[index]
    found = [(f"Judged: {patch.name}", ratio_statistics(kept, ("judged", index), patch.amplitude))]
    if real is not None:
        found.append((f"Real: {real.patch.name}", ratio_statistics(kept, _key(real), real.patch.amplitude)))
    return found


def _picture(
    kept: Kept, key: tuple[Any, ...], amplitude: NDArray[np.float32], remap: judging.Remap, mean: float, over: str
) -> NDArray[np.uint8]:
    from sar_gen import plots
    from sar_gen.quality import speckle

    small, step = reduced(amplitude), reduced_by(amplitude.shape)
    if over == "picture":
        return view(small, remap, mean)
    if over == "windows":
        # Windows and maps are those of the patch itself; only their picture is reduced.
        found = kept.once(("windows", *key), lambda: speckle.equivalent_looks(amplitude))
        fitted = dataclasses.replace(found, windows=found.windows // step, size=max(found.size // step, 1))
        enlarge = 2 if max(small.shape) <= SHOWN_SIDE // 2 else 1
        return plots.windows_view(small, fitted, remap, mean, enlarge)

    def draw() -> NDArray[np.uint8]:
        if over == "looks":
            picture = plots.looks_view(amplitude)
        elif over == "ratio":
            picture = plots.ratio_view(speckle.ratio_statistics(amplitude).ratio)
        else:
            picture = plots.texture_maps_view(amplitude, over)
        return np.ascontiguousarray(picture[::step, ::step])

    drawn: NDArray[np.uint8] = kept.once(("map", over, *key), draw)
    return drawn


def chart(kept: Kept, index: int | None, name: str, axis: judging.Axis, dark: bool) -> bytes:
    """Return a chart of all judged patches, or of patch ``index`` alone, beside the reference, as PNG.

    Args:
        kept: the comparison.
        index: of a patch, or ``None``.
        name: ``histogram``, ``texture``, ``direction``, ``spectrum`` or ``speckle``.
        axis: of the histogram.
        dark: for a dark page.

    Raises:
        InputError: there is nothing to draw, as of constant patches.
    """
    from sar_gen import plots

    shown = part(kept, index)
    made, real = shown.statistics, kept.comparison.reference.statistics
    labels = ("judged", "real")

    def figure() -> Figure:
        if name == "histogram":
            return plots.histogram_figure(made, real, axis=axis, labels=labels, fits=shown.fits, dark=dark)
        if name == "texture":
            return plots.texture_figure(made, real, report=shown.report, labels=labels, dark=dark)
        draws = {"direction": plots.direction_figure, "spectrum": plots.spectrum_figure}
        return draws.get(name, plots.speckle_figure)(made, real, labels=labels, dark=dark)

    def draw() -> bytes:
        with _DRAWING:
            return plots.figure_png(figure(), FIGURE_DPI)

    key = ("chart", name, index, dark, axis if name == "histogram" else "")
    picture: bytes = kept.once(key, draw)
    return picture


def legend(over: str, dark: bool) -> bytes | None:
    """Return the colour scale of a map as PNG; ``None`` for pictures."""
    from sar_gen import plots

    with _DRAWING:
        return plots.map_legend(over, dark=dark) if over in plots.MAPS else None
