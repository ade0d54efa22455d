"""Workers on this machine: single-threaded processes of Dask, kept at their number."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from artifacts.errors import UserError
from workflows.dask_settings import (
    DEATHS_ALLOWED,
    QUIET,
    SATURATION,
    WORKER_ENVIRONMENT,
    quiet_event_loop,
    say_dashboard,
)
from workflows.workers import GPU, Workers


@contextmanager
def local_workers(count: int, *, gpu_each: bool = False) -> Iterator[Workers]:
    """``count`` local single-threaded processes; with ``gpu_each`` the n-th sees the n-th GPU alone."""
    import dask
    from distributed import Client

    settings = {
        **QUIET,
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
        "distributed.scheduler.worker-saturation": SATURATION,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.preload": ["workflows.worker_signals"],
        "distributed.comm.timeouts.connect": "60s",
        "distributed.deploy.lost-worker-timeout": "2s",
    }
    with (
        quiet_event_loop(),
        dask.config.set(settings),
        _local_cluster(count, gpu_each) as cluster,
        Client(cluster) as client,
    ):
        # A worker that dies while its nanny still waits for it to come up takes the nanny with it; a fixed number of
        # workers is only kept by an adaptive cluster, which starts another one.
        cluster.scale(count)
        cluster.adapt(minimum=count, maximum=count, interval="1s")
        say_dashboard(client)
        yield Workers(client, gpu_each=gpu_each)


def _local_cluster(count: int, gpu_each: bool) -> Any:
    """A cluster for ``count`` single-threaded processes, none as yet."""
    from distributed import LocalCluster

    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    devices = visible or [str(number) for number in range(count)]
    if gpu_each and len(devices) < count:
        raise UserError(f"{count} workers need a GPU each; CUDA_VISIBLE_DEVICES shows {len(devices)}.")

    class OneGpuEach(LocalCluster):
        """Gives every worker a GPU that no other one has, also when it is started anew."""

        def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
            taken = {worker["options"]["env"]["CUDA_VISIBLE_DEVICES"] for worker in self.worker_spec.values()}
            device = next(device for device in devices if device not in taken)
            own = {"env": {"CUDA_VISIBLE_DEVICES": device}, "resources": GPU}
            spec = super().new_worker_spec().items()
            return {name: {**worker, "options": {**worker["options"], **own}} for name, worker in spec}

    return (OneGpuEach if gpu_each else LocalCluster)(
        n_workers=0,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
