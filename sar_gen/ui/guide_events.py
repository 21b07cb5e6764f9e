"""What happens on the guide card: handlers that translate between its components and ``guiding``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from sar_gen import conditioning, palettes
from sar_gen.errors import InputError
from sar_gen.request import IMAGE_TO_IMAGE, MAX_GUIDES, GenerationRequest, Guide
from sar_gen.studio import Studio
from sar_gen.ui import guide_views, guiding, views
from sar_gen.ui.choices import Ways, chosen_checkpoint, on_choice, way_list, ways
from sar_gen.ui.downloads import network_lines
from sar_gen.ui.guiding import Listed, Picked, Source
from sar_gen.ui.scenes import Scene
from sar_gen.ui.told import told

if TYPE_CHECKING:
    from sar_gen.ui.generate import Generate

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def source_inputs(tab: Generate) -> list[Any]:
    """The components whose values are a ``Source``, in the order of its fields."""
    card = tab.inputs.card
    return [
        card.guide, card.guide_kind, card.palette, card.guide_file, tab.results.sketch.editor, card.picked,
        tab.judgement.reference, tab.judgement.real_index,
    ]  # fmt: skip


SOURCE = 8  # values of a Source


def guide_events(tab: Generate, studio: Studio, scenes: list[Scene]) -> None:
    """Connect the card, the sketch and the scenes."""
    _describe_events(tab, studio)
    _way_events(tab, studio)
    _run_events(tab, studio)
    _list_events(tab, studio)
    _sketch_events(tab, studio)
    _scene_events(tab, studio, scenes)


# ---- describing


def _describe_events(tab: Generate, studio: Studio) -> None:
    inputs, card, sketch = tab.inputs, tab.inputs.card, tab.results.sketch
    size = [inputs.width, inputs.height, inputs.seed]
    asked = [*source_inputs(tab), inputs.checkpoint, inputs.strategy, card.way, card.listed, *size]
    outputs = [
        card.view, sketch.view, card.way_line, card.pull, card.strength, card.steering, card.resize, card.size_line,
        card.add, card.conflict,
    ]  # fmt: skip

    def describe(*values: Any) -> dict[Any, Any]:
        return described(tab, studio, *values)

    # The editor's own "change" also answers to its uploads, without end; "input" is a stroke of the user's.
    triggers = [
        card.guide.change, card.guide_kind.change, card.palette.change, card.guide_file.change, sketch.editor.input,
        card.picked.change, card.way.change, card.listed.change, card.filled.change, inputs.width.change,
        inputs.height.change, inputs.checkpoint.change, inputs.strategy.change, tab.judgement.reference.change,
        tab.judgement.real_index.change,
    ]  # fmt: skip
    gr.on(triggers, describe, asked, outputs, trigger_mode="always_last", concurrency_limit=None, **QUIET)
    sketch.grounded.then(describe, asked, outputs, concurrency_limit=None, **QUIET)
    gr.on(
        [card.palette.change, card.guide_kind.change, card.guide_file.change],
        lambda kind, palette, path: legend_of(kind, palette, path, studio),
        [card.guide_kind, card.palette, card.guide_file],
        [card.palette, card.legend],
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )

    def take_size(*values: Any) -> tuple[Any, Any]:
        try:
            guide = guiding.read_source(Source(*values[:SOURCE]), studio)
            spec = chosen_checkpoint(studio.settings, *values[SOURCE:])
            size = guide and guiding.guide_size(guide, spec.resolution, studio.settings.max_side)
        except Exception as error:
            gr.Warning(told(error))
            return gr.skip(), gr.skip()
        return size or (gr.skip(), gr.skip())

    card.resize.click(
        take_size,
        [*source_inputs(tab), inputs.checkpoint, inputs.strategy],
        [inputs.width, inputs.height],
        concurrency_limit=None,
        **QUIET,
    )


def described(tab: Generate, studio: Studio, *values: Any) -> dict[Any, Any]:
    """Return the card's words and pictures for its values: what is used, which way it goes, what does not fit."""
    source = Source(*values[:SOURCE])
    checkpoint, strategy, way, listed, width, height, seed = values[SOURCE:]
    card = tab.inputs.card
    offered = ways(studio.settings, checkpoint, strategy, source.kind)
    network = offered.network(way)
    missing = guiding.is_missing(network)
    update: dict[Any, Any] = {
        card.view: "",
        tab.results.sketch.view: "",
        card.way_line: views.sentence(guiding.way_line(offered, way, source.kind))
        + views.sentence(guiding.missing_line(network), "warn")
        + views.notes(network.warnings if network else ()),
        card.pull: gr.Button(visible=missing and bool(network and network.repo_id)),
        card.strength: gr.Slider(visible=network is None),
        card.steering: gr.Column(visible=network is not None),
        card.resize: gr.Button(visible=False),
        card.size_line: "",
        card.add: gr.Button(visible=network is not None and not missing and len(listed.guides) < MAX_GUIDES - 1),
        card.conflict: "",
    }
    size = (int(width or offered.spec.resolution), int(height or offered.spec.resolution))
    guide = None
    if source.guide != "none":
        seen, guide = _seen(source, offered, way, size, int(seed or 0), studio)
        update[tab.results.sketch.view if source.guide == "sketch" else card.view] = seen
    if guide is not None:
        own = guiding.guide_size(guide, offered.spec.resolution, studio.settings.max_side)
        update[card.resize] = gr.Button(
            f"Use the guide's size ({own[0]} × {own[1]})" if own else "", visible=own is not None and own != size
        )
        update[card.size_line] = views.sentence(
            guiding.size_line(*(own if own and own != size else size), offered.spec.resolution)
        )
    if listed.guides:
        all_ = [*listed.guides, *([guide] if guide is not None else [])]
        update[card.conflict] = views.sentence(guiding.together(all_, offered, studio.settings), "warn")
    return update


def _seen(
    source: Source, offered: Ways, way: str | None, size: tuple[int, int], seed: int, studio: Studio
) -> tuple[str, Guide | None]:
    """Return the pictures and sentences of the form's guide, and the guide where it can be read."""
    guide = None
    try:
        guide = guiding.read_source(source, studio)
        if guide is None:
            text = guiding.nothing_yet(source)
            return views.sentence(f"No guide yet: {text}."), None
        guide = guiding.steered(guide, offered, way, 1, 0, 1)
        return _prepared(guide, offered, size, seed), guide
    except Exception as error:
        return views.sentence(told(error), "warn"), guide


_KEPT: dict[Any, str] = {}  # views of guides that were prepared before: a large scene takes seconds


def _prepared(guide: Guide, offered: Ways, size: tuple[int, int], seed: int) -> str:
    """Return the view of a guide made ready."""
    network = offered.network(guide.way)
    key = (guide.sha256, guide.kind, guide.palette, guide.notes, network and (network.id, network.title), size, seed)
    if key not in _KEPT:
        if len(_KEPT) >= 32:
            _KEPT.clear()
        _KEPT[key] = guide_views.prepared(conditioning.prepare(guide, network, *size, seed))
    return _KEPT[key]


def legend_of(kind: str, palette: str, path: str | None, studio: Studio) -> tuple[Any, str]:
    """Return the palette's field, hidden where there are no classes, and its legend (of the one that is found)."""
    if kind != "map":
        return gr.Dropdown(visible=False), ""
    found: str | None = palette
    if palette == palettes.AUTO:
        found = None
        if path:
            try:
                image = guiding.read_source(Source("image", kind, palette, path), studio)
                found = None if image is None else palettes.detect(image.image) or "studio"
            except Exception:  # the view says what is wrong
                found = None
    line = "" if found else views.sentence("The palette is told by the colours of the image; codes need it named.")
    return gr.Dropdown(visible=True), guide_views.legend(found) if found else line


# ---- ways


def _way_events(tab: Generate, studio: Studio) -> None:
    inputs, card = tab.inputs, tab.inputs.card

    def default(*values: Any) -> Any:
        source, kind, picked, checkpoint, strategy, listed = values
        offered = ways(studio.settings, checkpoint, strategy, Source(source, kind, picked=picked).kind)
        return way_list(offered, offered.default(bool(listed.guides)))

    of_source = [card.guide, card.guide_kind, card.picked, inputs.checkpoint, inputs.strategy]
    asked = [*of_source, card.listed]
    card.guide.input(default, asked, card.way, concurrency_limit=None, **QUIET)
    for listed in (card.guide_kind, inputs.checkpoint):
        on_choice(listed, lambda _, *values: default(*values), asked, card.way, concurrency_limit=None, **QUIET)

    def pull(*values: Any) -> Iterator[tuple[str, Any, float]]:
        source, kind, picked, checkpoint, strategy, way = values
        offered = ways(studio.settings, checkpoint, strategy, Source(source, kind, picked=picked).kind)
        network = offered.network(way)
        if network is None:
            return
        line = ""
        for line in network_lines(network, studio.settings):
            yield line, gr.Button(interactive=False), gr.skip()
        yield line, gr.Button(interactive=True, visible=guiding.is_missing(network)), time.time()

    card.pull.click(
        pull,
        [*of_source, card.way],
        [card.way_line, card.pull, card.filled],
        concurrency_id="download",
        concurrency_limit=1,
        **QUIET,
    )


# ---- past runs


def _run_events(tab: Generate, studio: Studio) -> None:
    inputs, card, shown = tab.inputs, tab.inputs.card, tab.results.shown

    def offer(source: str, stage: dict[str, Any] | None, picked: Picked | None) -> str:
        if source != "run":
            return ""
        return guide_views.picks(guiding.recent(studio, stage["run"] if stage else None), picked)

    gr.on(
        [card.guide.change, shown.change, card.picked.change],
        offer,
        [card.guide, shown, card.picked],
        card.picks,
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )

    def choose(
        picked: Picked | None, checkpoint: str, strategy: str | None, listed: Listed, event: gr.EventData
    ) -> dict[Any, Any]:
        try:
            chosen = taken(str(event.text), picked, studio)
            offered = ways(studio.settings, checkpoint, strategy, chosen.kind)
            default = offered.default(bool(listed.guides))
            update: dict[Any, Any] = {card.picked: chosen, card.way: way_list(offered, default)}
            if chosen.take != guiding.PICTURE:
                guide = guiding.opened(chosen.run, studio).request.guides[int(chosen.take)]
                update[card.way] = way_list(offered, guide.way)
                update |= {card.weight: guide.weight, card.start: guide.start, card.end: guide.end}
        except Exception as error:
            gr.Warning(told(error))
            return {card.picked: gr.skip()}
        return update

    card.picks.pick(
        choose,
        [card.picked, inputs.checkpoint, inputs.strategy, card.listed],
        [card.picked, card.way, card.weight, card.start, card.end],
        concurrency_limit=None,
        **QUIET,
    )


def taken(text: str, picked: Picked | None, studio: Studio) -> Picked:
    """Return what was chosen by a button of ``guide_views.picks``.

    Raises:
        InputError: there is no such run or guide.
    """
    word, _, rest = text.partition(" ")
    if word == "take" and picked is not None and rest in (guiding.PICTURE, *map(str, range(len(picked.kinds)))):
        return Picked(picked.run, picked.index, rest, picked.kinds)
    index, _, run = rest.partition(" ")
    if word != "patch" or not index.isdigit():
        raise InputError("There is no such patch; choose another one.")
    return guiding.pick(run, int(index), studio)


# ---- several guides


def _list_events(tab: Generate, studio: Studio) -> None:
    inputs, card = tab.inputs, tab.inputs.card
    of_form = [inputs.checkpoint, inputs.strategy, card.way, card.weight, card.start, card.end, card.listed]

    def add(*values: Any) -> dict[Any, Any]:
        checkpoint, strategy, way, weight, start, end, listed = values[SOURCE:]
        source = Source(*values[:SOURCE])
        try:
            offered = ways(studio.settings, checkpoint, strategy, source.kind)
            guide = form_guide(source, offered, way, weight, start, end, studio)
            if guide is None:
                raise InputError(f"There is no guide to add yet; {guiding.nothing_yet(source)}.")
            size = offered.spec.resolution
            conditioning.prepare(guide, offered.network(way), size, size, 0)
            together = guiding.together([*listed.guides, guide], offered, studio.settings)
            if together:
                raise InputError(together)
        except Exception as error:
            gr.Warning(told(error), title="Not added")
            return {card.conflict: views.sentence(told(error), "warn")}
        rest = {card.guide: "none", card.guide_file: None, card.weight: 1, card.start: 0, card.end: 1}
        return {card.listed: Listed((*listed.guides, guide)), **rest}

    card.add.click(
        add,
        [*source_inputs(tab), *of_form],
        [card.listed, card.guide, card.guide_file, card.conflict, card.weight, card.start, card.end],
        concurrency_limit=None,
        **QUIET,
    )

    def remove(listed: Listed, event: gr.EventData) -> Listed:
        return Listed(tuple(guide for place, guide in enumerate(listed.guides) if str(place) != str(event.text)))

    card.rows.pick(remove, card.listed, card.listed, concurrency_limit=None, **QUIET)

    def show(listed: Listed, checkpoint: str, strategy: str | None) -> str:
        return guide_views.rows(listed.guides, ways(studio.settings, checkpoint, strategy, "map").known)

    card.listed.change(
        show, [card.listed, inputs.checkpoint, inputs.strategy], card.rows, concurrency_limit=None, **QUIET
    )


def form_guide(
    source: Source, offered: Ways, way: str | None, weight: float, start: float, end: float, studio: Studio
) -> Guide | None:
    """Return the guide of the form with its way and sliders, ``None`` where there is none.

    Raises:
        InputError: it cannot be read.
    """
    guide = guiding.read_source(source, studio)
    return None if guide is None else guiding.steered(guide, offered, way, weight or 0.0, start or 0.0, end or 0.0)


def asked_guides(source: Source, listed: Listed, values: dict[str, Any], studio: Studio) -> tuple[Guide, ...]:
    """Return all guides of a request: those that were added, and the form's.

    Raises:
        InputError: the form's guide is empty or cannot be read.
    """
    if source.guide == "none":
        return listed.guides
    offered = ways(studio.settings, values["checkpoint"], values["strategy"], source.kind)
    sliders = (values["weight"], values["start"], values["end"])
    guide = form_guide(source, offered, values["way"], *sliders, studio)
    if guide is None:
        raise InputError(f"The guide is empty; {guiding.nothing_yet(source)}, or set Guide to None.")
    return (*listed.guides, guide)


# ---- sketch and scenes


def _sketch_events(tab: Generate, studio: Studio) -> None:
    inputs, card, results = tab.inputs, tab.inputs.card, tab.results
    card.guide.input(
        lambda kind: gr.Tabs(selected="sketch" if kind == "sketch" else "result"),
        card.guide,
        results.tabs,
        queue=False,
        **QUIET,
    )

    def drawn(kind: str, checkpoint: str, strategy: str | None, listed: Listed) -> tuple[Any, Any]:
        if kind == "sketch":
            return gr.skip(), gr.skip()
        offered = ways(studio.settings, checkpoint, strategy, "sketch")
        return "sketch", way_list(offered, offered.default(bool(listed.guides)))

    results.sketch_tab.select(
        drawn,
        [card.guide, inputs.checkpoint, inputs.strategy, card.listed],
        [card.guide, card.way],
        queue=False,
        **QUIET,
    )


def _scene_events(tab: Generate, studio: Studio, scenes: list[Scene]) -> None:
    by_name = {scene.name: scene for scene in scenes}
    inputs, card, results = tab.inputs, tab.inputs.card, tab.results
    outputs = [
        inputs.prompt, tab.judgement.reference, card.guide, card.guide_kind, card.palette, card.guide_file, card.way,
        card.filled, results.sketch.editor, results.tabs, results.status,
    ]  # fmt: skip

    def choose(checkpoint: str, strategy: str | None, listed: Listed, event: gr.EventData) -> dict[Any, Any]:
        scene = by_name.get(str(event.name))
        if scene is None:
            return {card.filled: gr.skip()}
        offered = ways(studio.settings, checkpoint, strategy, scene.kind)
        update: dict[Any, Any] = {
            inputs.prompt: scene.prompt,
            tab.judgement.reference: offered.spec.reference_of(scene.prompt) or gr.skip(),
            card.way: way_list(offered, offered.default(bool(listed.guides))),
            card.filled: time.time(),
            results.status: views.status(f"{scene.name}: {scene.why}"),
        }
        if scene.kind == "sketch":
            update |= {card.guide: "sketch", results.tabs: gr.Tabs(selected="sketch")}
            update[results.sketch.editor] = {"background": scene.pixels(), "layers": [], "composite": None}
        else:
            update |= {card.guide: "image", card.guide_kind: scene.kind, card.palette: "studio"}
            update |= {card.guide_file: str(scene.file), results.tabs: gr.Tabs(selected="result")}
        return update

    for place in (results.stage, results.sketch.scenes):
        place.scene(
            choose, [inputs.checkpoint, inputs.strategy, card.listed], outputs, concurrency_limit=None, **QUIET
        )


# ---- a run of before


def filled_outputs(tab: Generate) -> list[Any]:
    """The components beside the form that ``filled_guides`` may change."""
    card = tab.inputs.card
    return [card.listed, card.picked, card.filled, card.guide_file, tab.results.sketch.editor]


def filled_guides(tab: Generate, asked: GenerationRequest, run: str | None, studio: Studio) -> dict[Any, Any]:
    """Return the card with the guides of a request: one in the form, the others beside it.

    Args:
        tab: the page.
        asked: the request, with the guides that could be read.
        run: id of the run that holds them.
        studio: for the catalogue.
    """
    card = tab.inputs.card
    place = guiding.in_form(asked)
    guides = asked.guides
    update: dict[Any, Any] = {
        card.listed: Listed(tuple(guide for k, guide in enumerate(guides) if k != place)),
        card.filled: time.time(),
        card.guide_file: None,
    }
    kind = "sketch" if place is None else guides[place].kind
    try:
        offered = ways(studio.settings, asked.checkpoint, asked.strategy, kind)
        update[card.way] = way_list(offered, IMAGE_TO_IMAGE if place is None else guides[place].way)
    except InputError:  # the checkpoint is gone; the request says so
        update[card.way] = gr.skip()
    if place is None:
        return update
    if kind == "sketch":
        update[tab.results.sketch.editor] = {"background": guides[place].image, "layers": [], "composite": None}
    elif run is not None:
        update[card.picked] = Picked(run, 0, str(place), tuple(guide.kind for guide in guides))
    return update
