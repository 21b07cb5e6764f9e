"""The patches that are to be made, each with its class, prompt, guides and seed, computed where it is asked for.

Slot ``i`` of ``total`` has the number ``i``; attempt ``a`` of it has the seed ``plan.seed + i + a * total``, which no
other slot or attempt of the set has. Slots that share prompt and guides and have consecutive numbers are a *unit* of
``plan.batch`` patches at most (fewer at the end of a class). A unit is what a worker makes: its bytes depend on the
recipe and its number alone, so it can be made anywhere, and again.

The classes of one checkpoint are mixed (a permutation drawn from the seed), so that a shard holds all of them and a
set that is cut short is balanced; checkpoints come one after the other, so that a worker switches least. The order
takes some 20 bytes a unit; nothing else is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sar_gen.augment.plan import filled
from sar_gen.augment.recipe import ClassRecipe, Recipe
from sar_gen.training.batches import generator

_ORDER, _PROMPT, _GUIDE = 11, 12, 13  # streams of random numbers that must not meet


@dataclass(frozen=True)
class Unit:
    """Patches that are made in one request.

    Attributes:
        number: of the unit.
        first: number of its first slot.
        size: slots.
        kind: the class.
        prompt: of all of them.
        guides: name of the picture drawn from each of the class's folders.
    """

    number: int
    first: int
    size: int
    kind: ClassRecipe
    prompt: str
    guides: tuple[str, ...]


class Slots:
    """All slots of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        plan = recipe.plan
        self.recipe, self.total = recipe, recipe.total
        self._seed, self._digits = plan.seed, max(6, len(str(self.total - 1)))
        kinds: list[NDArray[np.int32]] = []
        for group, checkpoint in enumerate(dict.fromkeys(one.checkpoint for one in recipe.classes)):
            own = [one for one in recipe.classes if one.checkpoint == checkpoint]
            units = np.concatenate([np.full(-(-one.count // plan.batch), one.label, np.int32) for one in own])
            kinds.append(generator(plan.seed, _ORDER, group).permutation(units))
        self._kinds = np.concatenate(kinds)
        self._places = np.zeros(len(self._kinds), np.int32)  # of each unit within its class
        sizes = np.full(len(self._kinds), plan.batch, np.int64)
        for one in recipe.classes:
            members = np.flatnonzero(self._kinds == one.label)
            self._places[members] = np.arange(len(members))
            if one.count % plan.batch:
                sizes[members[-1]] = one.count % plan.batch
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self._kinds)

    def unit(self, number: int) -> Unit:
        """Return a unit."""
        kind = self.recipe.classes[self._kinds[number]]
        place, first = int(self._places[number]), int(self._starts[number])
        draws = generator(self._seed, _PROMPT, kind.label, place).random(1 + len(kind.words))
        template = kind.templates[int(draws[0] * len(kind.templates))]
        words = {
            name: choices[int(draw * len(choices))]
            for draw, (name, choices) in zip(draws[1:], sorted(kind.words.items()), strict=True)
        }
        guides = tuple(
            files.names[int(generator(self._seed, _GUIDE, kind.label, index, place).random() * len(files.names))]
            for index, files in enumerate(kind.guides)
        )
        return Unit(
            number, first, int(self._starts[number + 1]) - first, kind, filled(template, words), guides
        )  # fmt: skip

    def unit_of(self, slot: int) -> int:
        """Return the number of the unit that a slot is in."""
        return int(np.searchsorted(self._starts, slot, side="right")) - 1

    def kinds(self) -> NDArray[np.int32]:
        """Return the label of each slot's class, ``(total,)``."""
        return np.repeat(self._kinds, np.diff(self._starts))

    def undone(self, decided: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the numbers of the units with a slot that is not decided yet, in order.

        Args:
            decided: ``(total,)``.
        """
        left = np.add.reduceat((~decided).astype(np.int64), self._starts[:-1])
        return np.flatnonzero(left)

    def key(self, slot: int) -> str:
        """Return the name of a slot's patch; in the order of slots, keys are sorted."""
        return f"{self.recipe.plan.name}-{slot:0{self._digits}d}"

    def seed(self, slot: int, attempt: int) -> int:
        """Return the seed of an attempt at a slot."""
        return self._seed + slot + attempt * self.total
