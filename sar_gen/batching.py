"""Which of the waiting requests is made next, and which are made together: pure functions of plain data.

A request goes before older ones where its checkpoint is the one that is loaded, so that checkpoints are not switched
to and fro; ``MAX_PASSED`` bounds how long another one can be kept waiting. Where the device makes several patches at
once (a GPU), requests that differ in nothing but prompt, negative prompt, seed and number of patches share one batch.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence

from sar_gen.checkpoints import CheckpointSpec
from sar_gen.request import GenerationRequest

MAX_PASSED = 8
"""How often the oldest waiting request may see another one go first."""


def next_place(checkpoints: Sequence[str | None], passed: int, loaded: str | None) -> int:
    """Return which of the waiting jobs goes next.

    Args:
        checkpoints: id of each waiting job's checkpoint, the oldest first; ``None`` for work that keeps its place.
        passed: how often the oldest one was passed.
        loaded: id of the checkpoint that is loaded.
    """
    if passed >= MAX_PASSED:
        return 0
    for place, checkpoint in enumerate(checkpoints):
        if checkpoint is None:
            break
        if checkpoint == loaded:
            return place
    return 0


def batch_key(request: GenerationRequest, spec: CheckpointSpec) -> Hashable | None:
    """Return what two requests must share to be made in one batch; ``None`` where a request goes alone.

    Guides and scenes larger than the checkpoint's size go alone: both steer the denoiser as a whole, not by row.

    Args:
        request: as ``check_request`` completed it.
        spec: its checkpoint.
    """
    assert request.width and request.height
    if request.guides or max(request.width, request.height) > spec.resolution:
        return None
    switches = json.dumps(dict(request.switches), sort_keys=True)
    size = (request.width, request.height)
    return (spec.id, *size, request.steps, request.guidance, request.scheduler, switches)


def companions(keys: Sequence[Hashable | None], counts: Sequence[int], key: Hashable | None, room: int) -> list[int]:
    """Return the places of the waiting jobs that share a batch with the one at work.

    Args:
        keys: ``batch_key`` of each waiting job, the oldest first.
        counts: patches that each of them still asks for.
        key: of the job at work.
        room: patches that its batch has room for.
    """
    chosen: list[int] = []
    for place, (other, count) in enumerate(zip(keys, counts, strict=True)):
        if key is not None and other == key and count <= room:
            chosen.append(place)
            room -= count
    return chosen
