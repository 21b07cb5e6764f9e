"""Several engines behind one address, by Ray Serve: the app of ``server`` in each replica.

Ray Serve's proxy hands each request to the replica with fewer requests at work. Within a replica requests wait in the
engine's own queue, where those for the loaded checkpoint go first and, on a GPU, share batches (``batching``): so a
page sees its place in the queue, and Stop reaches whoever waits. What is beyond that is refused with 503, first by the
replica and, when even its answers wait, by the proxy.
"""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.applications import Starlette

from sar_gen.errors import InputError, SarGenError
from sar_gen.ray_cluster import LOCAL, environment, join
from sar_gen.serving import MAX_WAITING
from sar_gen.serving.addresses import url_of
from sar_gen.settings import Settings

NAME = "sar-studio"
OBJECT_STORE = 256 << 20  # bytes, of a Ray that is started here: patches pass through it, none stays
STATE_REQUESTS = 16  # that a replica answers beside the requests that it refuses


def deployment(
    settings: Settings, *, replicas: int = 1, gpus: float = 0.0, cpus: float = 1.0, max_waiting: int = MAX_WAITING
) -> serve.Application:
    """Return the application for ``ray.serve.run``.

    Args:
        settings: of each engine; its folders are the same on every machine of the cluster.
        replicas: engines.
        gpus: of each; 0 is the CPU.
        cpus: cores of each, which is also how many threads torch takes there.
        max_waiting: requests that may wait in each beside the one that is made.
    """

    def build() -> Starlette:
        from sar_gen.engine import Engine
        from sar_gen.serving.server import application

        engine = Engine(settings)
        engine.warm_up(settings.checkpoint)
        app = application(engine, settings, max_waiting)
        app.state.engine = engine
        return app

    @serve.deployment(
        name="engine",
        num_replicas=replicas,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": environment(),
        },
        # The engine's own queue holds what waits: Ray's only what a replica has not taken yet.
        max_ongoing_requests=2 * (max_waiting + 1) + STATE_REQUESTS,
        max_queued_requests=max_waiting + STATE_REQUESTS,
        health_check_period_s=10,
        health_check_timeout_s=60,  # loading a large checkpoint can hold a process for long
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=20,
        logging_config={"enable_access_log": False},
    )
    @serve.ingress(build)
    class Replica:
        def check_health(self) -> None:
            """Have Ray start another replica where this one's engine takes no more work."""
            if not self.app.state.engine.alive:  # type: ignore[attr-defined]
                raise RuntimeError("the engine's device thread has ended")

    return Replica.bind()  # type: ignore[attr-defined]


def serve_on_ray(
    settings: Settings,
    host: str,
    port: int,
    *,
    address: str = LOCAL,
    replicas: int = 1,
    gpus: float = 0.0,
    max_waiting: int = MAX_WAITING,
    while_served: Callable[[str], None],
) -> None:
    """Serve as long as ``while_served`` lasts.

    Args:
        settings: of each engine.
        host: address that the proxy listens on.
        port: of the proxy.
        address: of a Ray cluster, ``auto`` for the one of this machine, ``local`` to start one on it.
        replicas: engines.
        gpus: of each.
        max_waiting: requests that may wait in each.
        while_served: called with the address once it answers.

    Raises:
        InputError: there is no cluster at the address, or it has not what is asked for.
        SarGenError: the replicas cannot start.
    """
    own = not ray.is_initialized()
    if own:
        join(address, OBJECT_STORE)
    try:
        app = deployment(
            settings, replicas=replicas, gpus=gpus, cpus=_cpus_each(replicas, gpus), max_waiting=max_waiting
        )
        serve.start(http_options=HTTPOptions(host=host, port=port))
        try:
            serve.run(app, name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise SarGenError(f"The replicas could not start: {error}") from error
        while_served(url_of(host, port))
    finally:
        if own and address == LOCAL:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(NAME)


def _cpus_each(replicas: int, gpus: float) -> float:
    """Return the cores of each replica: one where a GPU works, else an equal share of all.

    Raises:
        InputError: there are too few GPUs or cores.
    """
    there = ray.cluster_resources()
    if gpus * replicas > there.get("GPU", 0):
        raise InputError(
            f"{replicas} replicas of {gpus:g} GPUs need {gpus * replicas:g}, and the cluster has "
            f"{there.get('GPU', 0):g}; ask for fewer (--replicas, --gpus-per-replica)."
        )
    cpus = 1.0 if gpus else float(there.get("CPU", 1) // replicas)
    if cpus < 1:
        raise InputError(
            f"{replicas} replicas need a core each, and the cluster has {there.get('CPU', 0):g}; ask for fewer."
        )
    return cpus
