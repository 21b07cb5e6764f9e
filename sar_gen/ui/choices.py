"""What the drop-down lists of the page offer, read from the catalogue at each use: folders may have come since."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sar_gen import checkpoints, guide_networks
from sar_gen.request import IMAGE_TO_IMAGE
from sar_gen.settings import Settings
from sar_gen.strategies import STRATEGIES
from sar_gen.ui.quick import without_type_stubs

with without_type_stubs():
    import gradio as gr

    class Choice(gr.Dropdown):
        """A drop-down list that hands on a value which is no longer offered, instead of an error.

        A handler that was called just before the list changed still sends the value of before; it is passed over
        where it is read (``Ways.chosen``).
        """

        is_template = True  # shown by the same code in the browser

        def preprocess(self, payload: Any) -> Any:
            """Return what the browser sent."""
            return payload


# What each listener of ``on_choice`` knows of its list, by the listener's number; it stays in the browser.
ENTERED = "value => {{ (window.sgChosen ??= {{}})[{number}] = value; }}"
CHOSEN = """(value, ...rest) => {{
  const chosen = (window.sgChosen ??= {{}}), another = chosen[{number}] !== value;
  chosen[{number}] = value;
  return [another ? value : null, ...rest];
}}"""
LISTENERS = itertools.count()


def on_choice(listed: Any, act: Callable[..., Any], inputs: Sequence[Any], outputs: Any, **options: Any) -> Any:
    """Call ``act`` when the user chooses another option of a drop-down list, once, and at no other time.

    A list tells of an "input" whenever it is left, chosen or not, and twice where one was (gradio 6.31): what ``act``
    sets would take away what the user wrote since. A "change" would also tell of values that come from the server.

    Args:
        listed: the list.
        act: gets the option, then the values of ``inputs``.
        inputs: further components.
        outputs: of ``act``.
        **options: of gradio's listener.
    """
    first, number = outputs[0] if isinstance(outputs, list | tuple) else outputs, next(LISTENERS)

    def acted(option: Any, *values: Any) -> Any:
        return {first: gr.skip()} if option is None else act(option, *values)

    listed.focus(None, listed, None, js=ENTERED.format(number=number), api_visibility="private")
    return listed.input(acted, [listed, *inputs], outputs, js=CHOSEN.format(number=number), **options)


@dataclass(frozen=True)
class Ways:
    """The ways that a kind of guide can go with a checkpoint.

    Attributes:
        spec: the checkpoint.
        known: every network by id.
        names: of the ways, the checkpoint's default first.
    """

    spec: checkpoints.CheckpointSpec
    known: Mapping[str, guide_networks.NetworkSpec]
    names: Sequence[str]

    def chosen(self, way: str | None) -> str:
        """Return ``way`` where it is offered, else the default."""
        return way if way is not None and way in self.names else self.names[0]

    def default(self, several: bool) -> str:
        """Return the default; of several guides a network reads each, where there is one."""
        return guide_networks.default_way(self.names, several)

    def network(self, way: str | None) -> guide_networks.NetworkSpec | None:
        """Return the network of a way that is offered, ``None`` for image-to-image."""
        return self.known.get(self.chosen(way))

    def choices(self) -> list[tuple[str, str]]:
        """Return ``(title, name)`` of every way."""
        return [(_title(self.known, name), name) for name in self.names]


def checkpoint_choices(catalogue: Mapping[str, checkpoints.CheckpointSpec]) -> list[tuple[str, str]]:
    """Return ``(title, id)`` of every checkpoint."""
    return [(spec.title, name) for name, spec in catalogue.items()]


def strategy_choices(catalogue: dict[str, checkpoints.CheckpointSpec], name: str) -> list[tuple[str, str]]:
    """Return ``(title, name)`` of the strategies that a checkpoint offers."""
    names = checkpoints.strategies_for(catalogue, name)
    return [(STRATEGIES[s].title if s in STRATEGIES else s, s) for s in names]


def chosen_checkpoint(settings: Settings, name: str, strategy: str | None) -> checkpoints.CheckpointSpec:
    """Return the checkpoint; a strategy that is still shown from the checkpoint before is passed over."""
    catalogue = checkpoints.catalogue(settings)
    offered = strategy in checkpoints.strategies_for(catalogue, name)
    return checkpoints.resolve(catalogue, name, strategy if offered else None)


def ways(settings: Settings, name: str, strategy: str | None, kind: str) -> Ways:
    """Return how a guide of a kind can go with a checkpoint."""
    spec = chosen_checkpoint(settings, name, strategy)
    known = guide_networks.networks(settings, checkpoints.catalogue(settings))
    return Ways(spec, known, guide_networks.ways(known, spec, kind))


def way_list(offered: Ways, way: str | None = None) -> Any:
    """Return the list of ways with one chosen, the default where ``way`` is not offered; hidden where it is the only.

    What the only way is stands below (``guiding.way_line``).
    """
    return Choice(choices=offered.choices(), value=offered.chosen(way), visible=len(offered.names) > 1)


def _title(known: Mapping[str, guide_networks.NetworkSpec], way: str) -> str:
    title = guide_networks.way_title(known, way)
    return title.partition(":")[0] if way == IMAGE_TO_IMAGE else title  # the rest stands below the list


ONLY_WAY = [(_title({}, IMAGE_TO_IMAGE), IMAGE_TO_IMAGE)]
"""What the list offers before a guide is chosen."""
