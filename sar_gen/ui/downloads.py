"""Brings a checkpoint's weights from the hub, telling bytes and time left."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from sar_gen import checkpoints, guide_networks, hub
from sar_gen.settings import Settings
from sar_gen.ui import views
from sar_gen.ui.told import told

Report = Callable[[hub.Progress], None]


def download_lines(name: str, strategy: str | None, settings: Settings) -> Iterator[str]:
    """Download what a checkpoint lacks; yield its progress as HTML, last the outcome.

    What was brought stays when the page is closed in between; the next try goes on from there.
    """

    def pull(progress: Report) -> None:
        spec = checkpoints.resolve(checkpoints.catalogue(settings), name, strategy)
        checkpoints.pull(spec, settings, progress)

    return _lines(pull)


def network_lines(network: guide_networks.NetworkSpec, settings: Settings) -> Iterator[str]:
    """Download a network that reads guides, as ``download_lines`` does a checkpoint."""

    def pull(progress: Report) -> None:
        guide_networks.pull(network, settings, progress)

    return _lines(pull)


def _lines(pull: Callable[[Report], None]) -> Iterator[str]:
    lines: queue.SimpleQueue[hub.Progress | Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            pull(lines.put)
            lines.put(None)
        except Exception as error:
            lines.put(error)

    yield views.status("Asking the hub for its list of files…", "busy", 0.0)
    threading.Thread(target=work, name="sar-gen-download", daemon=True).start()
    while True:
        item = lines.get()
        while isinstance(item, hub.Progress) and not lines.empty():
            item = lines.get()  # only the newest is worth showing
        if isinstance(item, hub.Progress):
            yield progress_line(item)
            continue
        yield views.status("Downloaded.", "done") if item is None else views.sentence(told(item), "warn")
        return


def progress_line(progress: hub.Progress) -> str:
    """Return bytes, rate and time left, with a bar."""
    share = progress.done / progress.total if progress.total else 0.0
    text = f"{size(progress.done)} of {size(progress.total)}"
    if progress.rate:
        text += f" · {size(progress.rate)}/s"
    left = "" if progress.eta is None else f"{views.duration(progress.eta)} left"
    return views.status(text, "busy", share, left)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
