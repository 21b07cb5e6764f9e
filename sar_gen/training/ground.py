"""Which patches of large rasters share ground, and which split each piece of ground belongs to.

A raster is laid out in blocks with a gap between them, and patches lie wholly in one block: patches that overlap are
of one block, so that blocks can go to different splits and no pixel is in two. Blocks of different rasters that lie on
the same ground go together: by their georeference in one reference system, or, without one, as bands of one scene
(files of one folder and size whose names differ only in the polarisation). Ground that neither shows cannot be known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from typing import Literal

from sar_gen.errors import InputError
from sar_gen.rasters import Georeference, Window
from sar_gen.training.manifest import SPLITS, Split

Grouping = Literal["block", "image", "acquisition"]

_POLARISATION = re.compile(r"(?<![A-Za-z])(VV|VH|HV|HH)(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Extent:
    """A raster, as far as its ground goes.

    Attributes:
        name: path relative to the source.
        height: in pixels.
        width: in pixels.
        acquisition: the folder that it lies in.
        georeference: where it lies, where the file says so.
    """

    name: str
    height: int
    width: int
    acquisition: str
    georeference: Georeference | None = None


@dataclass(frozen=True)
class Block:
    """A part of a raster that patches are cut from: raster number, place in the grid of blocks, and window."""

    raster: int
    place: tuple[int, int]
    window: Window

    def tiles(self, tile: int, stride: int) -> Iterator[tuple[int, int]]:
        """Yield row and column of the first pixel of every patch, row by row."""
        top, left, height, width = self.window
        for row in range(top, top + height - tile + 1, stride):
            for column in range(left, left + width - tile + 1, stride):
                yield row, column

    def count(self, tile: int, stride: int) -> int:
        """Return the number of patches, before those without data are left out."""
        _, _, height, width = self.window
        return max(0, (height - tile) // stride + 1) * max(0, (width - tile) // stride + 1)


def blocks_of(raster: int, extent: Extent, tile: int, side: int, gap: int, grouping: Grouping) -> list[Block]:
    """Return the blocks of a raster that hold at least one patch.

    Args:
        raster: its number.
        extent: its size.
        tile: side of a patch, pixels.
        side: of a block, pixels.
        gap: between blocks, pixels.
        grouping: only ``block`` divides the raster.
    """
    height, width = extent.height, extent.width
    if grouping != "block":
        return [Block(raster, (0, 0), (0, 0, height, width))] if min(height, width) >= tile else []
    return [
        Block(raster, (i, j), (top, left, min(side, height - top), min(side, width - left)))
        for i, top in enumerate(range(0, height - tile + 1, side + gap))
        for j, left in enumerate(range(0, width - tile + 1, side + gap))
    ]


def groups_of(extents: Sequence[Extent], blocks: Sequence[Block], grouping: Grouping) -> list[str]:
    """Return the name of the group of each block: blocks on the same ground share one."""
    parent = list(range(len(blocks)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parent[high] = low

    of_raster: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        of_raster.setdefault(block.raster, []).append(i)
    if grouping == "acquisition":
        first: dict[str, int] = {}
        for i, block in enumerate(blocks):
            join(first.setdefault(extents[block.raster].acquisition, i), i)
    boxes = {i: box_of(extents[block.raster].georeference, block.window) for i, block in enumerate(blocks)}
    whole = {n: box_of(extents[n].georeference, (0, 0, extents[n].height, extents[n].width)) for n in of_raster}
    for one, other in combinations(of_raster, 2):
        if _one_scene(extents[one], extents[other]):
            places = {blocks[i].place: i for i in of_raster[one]}
            for j in of_raster[other]:
                join(places[blocks[j].place], j)
        elif _same_system(extents[one], extents[other]) and meet(whole[one], whole[other]):
            near = [j for j in of_raster[other] if meet(boxes[j], whole[one])]
            for i in of_raster[one]:
                for j in near:
                    if meet(boxes[i], boxes[j]):
                        join(i, j)
    return [_name(extents, blocks[root(i)], grouping) for i in range(len(blocks))]


def box_of(georeference: Georeference | None, window: Window) -> tuple[float, float, float, float] | None:
    """Return the smallest upright box on the ground around a window: least x and y, greatest x and y."""
    if georeference is None:
        return None
    row, column, height, width = window
    a, b, c, d, e, f = georeference.transform
    corners = [(x, y) for x in (column, column + width) for y in (row, row + height)]
    across, down = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
    return min(across), min(down), max(across), max(down)


def meet(one: tuple[float, float, float, float] | None, other: tuple[float, float, float, float] | None) -> bool:
    """Return whether two boxes share ground; edges that touch do not."""
    if one is None or other is None:
        return False
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def splits_of(groups: Sequence[str], counts: Sequence[int], shares: Sequence[float], seed: int) -> dict[str, Split]:
    """Deal the groups out to the splits, so that each split gets about its share of the patches.

    The largest group goes first (equals in an order drawn by the seed), each to the split that lacks the greatest part
    of its share. So every split gets a group before any gets a second one of the same size.

    Args:
        groups: of each block.
        counts: patches of each block.
        shares: of ``SPLITS``; they add up to 1.
        seed: of the order.

    Raises:
        InputError: the shares are not usable, or there are fewer groups than splits.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"The splits {tuple(shares)} are not shares of train, validation and reference that add to 1."
        )
    sizes: dict[str, int] = {}
    for group, count in zip(groups, counts, strict=True):
        sizes[group] = sizes.get(group, 0) + count
    wanted = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    if len(sizes) < len(wanted):
        raise InputError(
            f"There {'is one piece' if len(sizes) == 1 else f'are {len(sizes)} pieces'} of ground for {len(wanted)} "
            "splits; give more rasters, smaller blocks (--block), or other shares (--split 1 0 0)."
        )
    target = {split: share * sum(sizes.values()) for split, share in zip(SPLITS, shares, strict=True)}
    given = dict.fromkeys(wanted, 0)
    found: dict[str, Split] = {}
    for name in sorted(sizes, key=lambda group: (-sizes[group], sha256(f"{seed} {group}".encode()).digest())):
        split = max(wanted, key=lambda one: 1 - given[one] / target[one])
        given[split] += sizes[name]
        found[name] = split
    return found


def polarisation_in(name: str) -> str | None:
    """Return the polarisation that a file name says, where it says exactly one."""
    found = {match.upper() for match in _POLARISATION.findall(name.replace("_", " "))}
    return found.pop() if len(found) == 1 else None


def without_polarisation(name: str) -> str:
    """Return a file name without the polarisation in it."""
    return _POLARISATION.sub("", name.replace("_", " "))


def _one_scene(one: Extent, other: Extent) -> bool:
    if one.georeference is not None or other.georeference is not None:
        return False
    if (one.acquisition, one.height, one.width) != (other.acquisition, other.height, other.width):
        return False
    return without_polarisation(one.name) == without_polarisation(other.name)


def _same_system(one: Extent, other: Extent) -> bool:
    first, second = one.georeference, other.georeference
    return first is not None and second is not None and first.crs == second.crs


def _name(extents: Sequence[Extent], block: Block, grouping: Grouping) -> str:
    extent = extents[block.raster]
    if grouping == "acquisition":
        return extent.acquisition or extent.name
    if grouping == "image":
        return extent.name
    return f"{extent.name} block {block.place[0]},{block.place[1]}"
