"""The commands check, demo and sound-set, over a whole data directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m2dprep.cli.cluster_options import pool_options
from m2dprep.cli.options import (
    LOCATION,
    OUTPUT,
    OUTPUT_PATH,
    PATH,
    PLACE,
    TEXT_OUTPUT,
    M2dprepCommand,
    TableCommand,
    json_option,
    output_option,
    overwrite_option,
    seed_option,
    text_model_option,
    titled,
    workers_option,
)
from m2dprep.workflows.recipe.data_directory import all_of_it
from m2dprep.workflows.recipe.declare import stage

if TYPE_CHECKING:
    from m2dprep.workflows.engine.pool import WorkerPool


def _proofs_of_run(run: Path, quick: bool) -> Iterator[tuple[Path, Callable[[], bool]]]:
    from m2dprep.training.log import proofs_of_run  # imports torch, which directories without runs do not need

    return proofs_of_run(run, quick)


@stage(how=("workers",), reads=all_of_it, shows=("checked", "problems"))
@click.command(cls=TableCommand)
@click.argument("data", type=PLACE)
@titled(
    "What to check",
    click.option(
        "--quick", is_flag=True, help="Check headers, sizes and JSON files only, but neither values nor tables."
    ),
    click.option(
        "--accept",
        multiple=True,
        metavar="LIST",
        help="Take this files_*.csv in DATA, which you have edited, as it is now, with a new digest. May be repeated.",
    ),
)
@titled(
    "Leaks of evaluation sets",
    click.option(
        "--leaks",
        type=PATH,
        multiple=True,
        metavar="EVAL",
        help="Also look for clips of this evaluation set among those that training reads: its metadata, as for "
        "captions exclude-list, or a list. May be repeated.",
    ),
    click.option(
        "--trained",
        type=PATH,
        multiple=True,
        help="Know the clips of a set in DATA by its metadata, where their names alone do not tell. May be repeated.",
    ),
    click.option(
        "--leaks-csv", type=TEXT_OUTPUT, default=None, help="Write a row for every clip found to this CSV file."
    ),
)
@pool_options
@titled(OUTPUT, json_option)
def check(
    data: Path,
    quick: bool,
    accept: tuple[str, ...],
    leaks: tuple[Path, ...],
    trained: tuple[Path, ...],
    leaks_csv: Path | None,
    pool: WorkerPool,
    as_json: bool,
) -> None:
    """Prove that what lies in DATA, in a run of a training, or in a store of embeddings fits together; exit with 4 and
    the problems if not.

    Reads every byte and compares it with its digest: file lists, arrays, packs, conversion records, statistics (which
    must be those of the records), captions, embedding stores (aligned row by row with the captions), stores of
    embeddings of sounds, exports, and training runs in DATA (checkpoints, logs, settings).

    \b
    Examples:
      m2dprep check data
      m2dprep check data --quick --json > problems.json
      m2dprep check data --accept files_audioset.csv
      m2dprep check runs/base
      m2dprep check recordings_emb
      m2dprep check data --quick --leaks esc50.csv --leaks vggsound.csv --leaks-csv leaks.csv
    """
    from m2dprep.artifacts.errors import CheckFailedError
    from m2dprep.workflows.check.job import accept_lists, run_checks
    from m2dprep.workflows.check.leaks import check_leaks
    from m2dprep.workflows.check.result import problems_in_words, summary
    from m2dprep.workflows.check.sounds import check_sounds, is_sound_store

    if (trained or leaks_csv) and not leaks:
        raise click.UsageError("--trained and --leaks-csv need --leaks EVAL, the set to look for.")
    for line in accept_lists(data, accept):
        click.echo(line, err=True)
    found = [check_leaks(data, leaks, trained, leaks_csv)] if leaks else []
    sounds = check_sounds(data, quick)
    others = [] if is_sound_store(data) else run_checks(data, workers=pool, proofs_of_run=_proofs_of_run, quick=quick)
    results = [*others, *sounds, *found]
    click.echo(json.dumps([result.to_dict() for result in results], indent=2) if as_json else summary(results))
    count = sum(len(result.problems) for result in results)
    if count:
        raise CheckFailedError(f"{data}: {problems_in_words(count)}.")


@click.command(cls=M2dprepCommand)
@titled(
    "The set",
    click.option("--clips", type=click.IntRange(min=4), default=40, help="Make this many training clips per class."),
    click.option("--held-out", type=click.IntRange(min=1), default=10, help="Make this many held-out clips per class."),
    seed_option,
)
@titled(
    "The model",
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        default=None,
        show_default="the tiny model's",
        help="Train for this many epochs.",
    ),
    text_model_option(
        default=None,
        show_default="the bundled MiniLM",
        help="Encode captions with this text encoder: a name on the Hugging Face hub, or a folder.",
    ),
    click.option("--shuffle-captions", is_flag=True, help="Give every clip the captions of another one, as a control."),
    click.option(
        "--second-generation",
        is_flag=True,
        help="Train the four stages of M2D-CLAP 2025 instead, and a control; --epochs is then that of every stage.",
    ),
)
@titled(LOCATION, workers_option())
@titled(
    OUTPUT,
    output_option(default="m2dprep-demo", help="Write the set, the data and the run to this folder."),
    json_option,
)
def demo(
    output: Path,
    clips: int,
    held_out: int,
    epochs: int | None,
    text_model: str | None,
    shuffle_captions: bool,
    second_generation: bool,
    seed: int,
    workers: int,
    as_json: bool,
) -> None:
    """Make a small AudioSet-like set and run every stage on it, to a trained model and its zero-shot accuracy.

    \b
    Examples:
      m2dprep demo
      m2dprep demo -o /tmp/demo --shuffle-captions
      m2dprep demo --second-generation
    """
    from m2dprep.workflows.demo import DemoSettings, bundled_text_model, demo_summary, run_demo
    from m2dprep.workflows.second_act import run_second_act, second_act_summary

    if second_generation and shuffle_captions:
        raise click.UsageError("--second-generation trains a control with shuffled captions itself.")

    settings = DemoSettings(
        folder=output,
        train_per_class=clips,
        held_out_per_class=held_out,
        seed=seed,
        workers=workers,
        epochs=epochs,
        text_model=text_model or bundled_text_model(),
        shuffle_captions=shuffle_captions,
    )
    result = run_second_act(settings) if second_generation else run_demo(settings)
    shown = second_act_summary(result) if second_generation else demo_summary(result, output)
    click.echo(json.dumps(result, indent=2) if as_json else shown)


@stage(how=("workers",))
@click.command("sound-set", cls=M2dprepCommand)
@click.argument("out", type=OUTPUT_PATH)
@titled(
    "The set",
    click.option("--clips", type=click.IntRange(min=4), default=40, help="Make this many training clips per class."),
    click.option("--held-out", type=click.IntRange(min=1), default=10, help="Make this many held-out clips per class."),
    seed_option,
)
@titled(LOCATION, workers_option())
@titled(OUTPUT, overwrite_option, json_option)
def sound_set(out: Path, clips: int, held_out: int, seed: int, workers: int, overwrite: bool, as_json: bool) -> None:
    """Synthesise a small AudioSet-like set into OUT: recordings of ten classes, segment lists, ontology, captions.

    Equal numbers and seeds give equal bytes; recordings that are there are kept. `m2dprep demo` trains on such a set.

    \b
    Examples:
      m2dprep sound-set sounds
      m2dprep sound-set sounds --clips 8 --held-out 2 --seed 1
    """
    from m2dprep.workflows.sound_set import make_sound_set

    made = make_sound_set(
        out, train_per_class=clips, held_out_per_class=held_out, seed=seed, workers=workers, overwrite=overwrite
    )
    click.echo(json.dumps(asdict(made), indent=2) if as_json else str(out))
