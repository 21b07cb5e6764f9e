"""Makers on Ray: shares of units go through Ray Data to a pool of actors, and come back to the one writer here.

Each actor loads the checkpoint once. Ray does the share of an actor that is lost again; should it then come twice, the
writer passes the second over, and units that never came (an object lost with its machine) are asked for once more. Of
what is made, Ray holds a few shares for the writer, so memory does not grow with the set.

The project, its checkpoints and the guides have to lie at the same paths on every machine of a cluster (a shared disk,
or one image); a worker refuses weights that are not the set's.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sar_gen.augment.maker import Made, Maker
from sar_gen.augment.recipe import Recipe
from sar_gen.errors import InputError, SarGenError
from sar_gen.settings import Settings

SHARE_ON_CPU, SHARE_ON_GPU = 32, 512
"""Patches of a share at most: what is made again when a worker is lost."""
SHARES_A_WORKER = 4
"""Shares of a worker at least, so that all end at about the same time."""
BLOCK_BYTES = 2**16
"""What a worker collects before it sends it: less than a patch, so that each unit comes as it is made."""
STORE_BYTES = 200 * 2**20
"""Ray's object store on this machine; half of it may hold patches that wait for the writer."""
TIMES = 3
"""Passes without any new unit until what never comes is given up."""


class _Actor:
    """A worker: one maker, made once."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self._maker: Maker | None = None
        self._given = recipe, settings

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Yield the units of a share; what goes wrong comes back as data, so that the sentence reaches the user."""
        try:
            if self._maker is None:
                self._maker = Maker(*self._given)
            for unit in batch["data"]:
                yield {"made": [pickle.dumps(self._maker.make(int(unit)))]}
        except SarGenError as error:
            yield {"made": [pickle.dumps(error)]}


def on_ray(
    recipe: Recipe, settings: Settings, units: Sequence[int], stop: threading.Event, *, address: str,
    workers: int | None, gpus: float | None,
) -> tuple[str, Iterator[Made]]:  # fmt: skip
    """Start or join Ray, and return in words what works there, and what makes the units.

    Args:
        recipe: of the set.
        settings: where things are.
        units: numbers of the units to make.
        stop: set it to end after the shares at work.
        address: ``local`` starts Ray on this machine; otherwise of a cluster (``auto``, ``HOST:PORT``, ``ray://…``).
        workers: actors; ``None``: one a GPU, or as many as cores allow.
        gpus: of each actor; ``None``: one where there are GPUs, and the device is not ``cpu``.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    from sar_gen.ray_cluster import LOCAL, join  # imports Ray

    ours = not ray.is_initialized()  # whoever has started it goes on with it
    if ours:
        join(address, STORE_BYTES)
    there = ray.cluster_resources()
    each = float(bool(there.get("GPU")) and settings.device != "cpu") if gpus is None else gpus
    threads = float(recipe.plan.threads)
    fit = int(there.get("GPU", 0) / each) if each else int(there.get("CPU", 1) / threads)
    if fit < 1 or (workers is not None and workers > fit):
        if ours:
            ray.shutdown()
        needs = f"{each:g} GPU(s)" if each else f"{threads:g} core(s)"
        raise InputError(f"Ray has room for {fit} workers of {needs} each; ask for fewer, or start a larger cluster.")
    count = workers or fit
    share = max(1, (SHARE_ON_GPU if each else SHARE_ON_CPU) // recipe.plan.batch)
    resources = {"num_gpus": each} if each else {"num_cpus": threads}

    def made() -> Iterator[Made]:
        left = dict.fromkeys(int(unit) for unit in units)
        lost = 0
        try:
            while left and not stop.is_set():
                before = len(left)
                for one in _pass(ray, recipe, settings, list(left), count, share, resources):
                    if one.unit in left:
                        del left[one.unit]
                        yield one
                    if stop.is_set():
                        return
                lost = 0 if len(left) < before else lost + 1
                if lost >= TIMES:
                    raise SarGenError(f"{len(left)} units of the work never came back from Ray; look at its logs.")
        finally:
            if ours:
                ray.shutdown()

    said = f"{count} workers on Ray {ray.__version__} ({'this machine' if address == LOCAL else address})"
    return said, made()


def _pass(
    ray: Any, recipe: Recipe, settings: Settings, units: list[int], count: int, share: int,
    resources: dict[str, float],
) -> Iterator[Made]:  # fmt: skip
    """Send the units through Ray Data once and yield what comes back."""
    share = max(1, min(share, len(units) // (SHARES_A_WORKER * count)))
    blocks = [np.array(units[first : first + share], np.int64) for first in range(0, len(units), share)]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=STORE_BYTES / 2
    )
    made = ray.data.from_numpy(blocks).map_batches(
        _Actor,
        fn_constructor_args=(recipe, settings),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(count, len(blocks))),
        **resources,
    )
    try:
        for batch in made.iter_batches(batch_size=None, prefetch_batches=0):
            for data in batch["made"]:
                unit = pickle.loads(data)
                if isinstance(unit, SarGenError):
                    raise unit
                yield unit
    except ray.exceptions.RayError as error:
        raise SarGenError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "Ray is not installed; pip install -r requirements-ray.txt, or leave out --ray to work without it."
        ) from error
    return ray
