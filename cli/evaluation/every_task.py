"""``m2dprep evaluate all``: every task below a folder, one table beside the papers' figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.evaluation.options import (
    MODEL_KEYS,
    clap_option,
    length_options,
    lr_option,
    make_encoder,
    model_and_clips,
    place_options,
    seeds_option,
    strict_evar_option,
    text_options,
)
from m2dprep.cli.options import (
    OUTPUT,
    PATH,
    REPEATED,
    ModelCommand,
    json_option,
    max_failures_option,
    output_option,
    titled,
)
from m2dprep.workflows.recipe.declare import stage

PROTOCOLS = ("zero-shot", "linear", "retrieval", "tagging")


@stage(how=("device", "batch_size", "max_failures"), reads=lambda given: given.made_below("root"))
@click.command("all", cls=ModelCommand)
@click.argument("checkpoint", type=PATH, metavar="[CHECKPOINT]")
@click.argument("root", type=PATH, metavar="ROOT", required=False)
@titled(
    "The tasks",
    click.option(
        "--protocol",
        "protocols",
        multiple=True,
        type=click.Choice(PROTOCOLS),
        show_default="all that a task has",
        help=f"Run this protocol. {REPEATED}",
    ),
    click.option(
        "--task", "tasks", multiple=True, show_default="all below ROOT", help=f"Run the task of this name. {REPEATED}"
    ),
    click.option(
        "--lists",
        type=PATH,
        default=None,
        show_default="each data set's own folder",
        help="Look here for the lists that are no part of a download (`evaluate prepare --lists`).",
    ),
    max_failures_option,
)
@titled(
    "The linear protocol",
    seeds_option,
    lr_option,
    strict_evar_option,
)
@clap_option
@length_options
@text_options
@place_options
@titled(OUTPUT, output_option(required=True, help="Write the report and all results to this folder."), json_option)
def evaluate_all(
    checkpoint: Path,
    root: Path | None,
    protocols: tuple[str, ...],
    tasks: tuple[str, ...],
    lists: Path | None,
    seeds: str,
    lr: float,
    strict_evar: bool,
    max_failures: str,
    output: Path,
    as_json: bool,
    **model: Any,
) -> None:
    """Run every task whose data are below ROOT, and put the scores beside those of the papers.

    A task is a folder that `evaluate prepare` made, or a data set as downloaded, if its tables or lists tell which it
    is. Finished tasks are skipped when the same command is given again; one that fails is a row of the table and does
    not stop the others. The folder then holds report.html, report.md and report.json, and a page per task.

    \b
    Examples:
      m2dprep evaluate all runs/base tasks -o reports/base
      m2dprep evaluate all runs/base downloads --lists downloads/evar -o reports/base --protocol zero-shot
    """
    from m2dprep.artifacts.errors import FailureLimit, TooManyFailuresError
    from m2dprep.artifacts.layout import require_folder
    from m2dprep.evaluation.protocols.linear import LinearSettings, parse_seeds
    from m2dprep.evaluation.protocols.linear_head import HeadSettings
    from m2dprep.evaluation.reports.campaign import Campaign, render, run_campaign
    from m2dprep.evaluation.run import RunOptions, run_any
    from m2dprep.evaluation.tagging.evaluate import run_tagging, tagging_of

    weights, place = model_and_clips(checkpoint, root, model["clap_model"])
    require_folder(place, "the folder of tasks")
    limit = FailureLimit.parse(max_failures)
    linear = LinearSettings(HeadSettings(lr=lr), parse_seeds(seeds), strict_evar, model["device"])
    encoder = make_encoder(weights, **{key: model[key] for key in MODEL_KEYS})
    about = {
        "model": encoder.name, "weights": encoder.digest, "text_model": model["text_model"],
        "seeds": list(linear.seeds), "lr": lr, "strict_evar": strict_evar, **encoder.length_settings,
    }  # fmt: skip

    def run(clips: Any, protocol: str, folder: Path) -> Any:
        if protocol == "tagging":
            return run_tagging(encoder, clips, RunOptions(folder / "features"))
        return run_any(protocol, encoder, clips, folder / "features", linear)

    campaign = Campaign(
        place, output, about, run, protocols or PROTOCOLS, lists, tasks, limit, partial(tagging_of, encoder)
    )
    lines = run_campaign(campaign, lambda text: click.echo(text, err=True))
    click.echo((output / "report.json").read_text() if as_json else render(lines), nl=not as_json)
    problems = sum(bool(line.problem) for line in lines)
    if problems:
        raise TooManyFailuresError(f"{problems:,} of {len(lines):,} have a problem; see {output / 'report.md'}.")
