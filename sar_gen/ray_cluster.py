"""Ray started on this machine, or a cluster that is joined; for ``augment`` and ``serving``."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from sar_gen.errors import InputError
from sar_gen.settings import ROOT

LOCAL = "local"


def environment() -> dict[str, Any]:
    """Return the runtime environment of workers, in which the project is imported from where it lies here."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"env_vars": {"PYTHONPATH": path}}


def join(address: str, store_bytes: int) -> None:
    """Start Ray on this machine, or join a cluster.

    Args:
        address: ``local`` starts Ray on this machine; otherwise of a cluster (``auto``, ``HOST:PORT``, ``ray://…``).
        store_bytes: of the object store, where it is started here.

    Raises:
        InputError: there is none at the address.
    """
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    alone: dict[str, Any] = {"include_dashboard": False, "object_store_memory": store_bytes}
    try:
        ray.init(
            address=address,
            runtime_env=environment(),
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(alone if address == LOCAL else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"There is no Ray cluster to join at {address!r} ({reason}); use --ray local.") from error
