"""Lines of the log sent to Weights & Biases as well, where its package is installed and a project is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from artifacts.errors import UserError
from artifacts.fingerprint import fingerprint
from m2dclap.run_folder import RunFolder
from m2dclap.run_log import Figures


@contextmanager
def open_wandb(project: str, run: RunFolder) -> Iterator[Callable[[Figures, int], None]]:
    """A function that takes a line and its step. The run's identity follows from its settings and folder, so a resumed
    run goes on there as well. Raises `UserError` where wandb is not installed."""
    try:
        import wandb  # optional, so it is looked for only here
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install 'm2dprep[wandb]'.") from error
    identity = fingerprint({"settings": run.settings, "folder": str(run.root.resolve())})
    remote = wandb.init(
        project=project, name=run.root.name, id=identity, resume="allow", config=run.settings, dir=str(run.root)
    )
    remote.define_metric("*", step_metric="step")
    try:
        yield lambda line, _: remote.log({name: value for name, value in line.items() if value is not None})
    finally:
        remote.finish()
