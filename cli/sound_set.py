"""The command sound-set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cli.options import PATH, M2dprepCommand, json_option, overwrite_option, seed_option, workers_option


@click.command("sound-set", cls=M2dprepCommand)
@click.argument("out", type=PATH)
@click.option("--clips", type=click.IntRange(min=4), default=40, help="Training clips a class.")
@click.option("--held-out", type=click.IntRange(min=1), default=10, help="Held-out clips a class.")
@seed_option
@workers_option
@overwrite_option
@json_option
def sound_set(out: Path, clips: int, held_out: int, seed: int, workers: int, overwrite: bool, as_json: bool) -> None:
    """Synthesise a small AudioSet-like set into OUT: recordings of ten classes, segment lists, ontology, captions.

    Equal numbers and seeds give equal bytes; recordings that are there are kept. `m2dprep demo` trains on such a set.

    \b
    Examples:
      m2dprep sound-set sounds
      m2dprep sound-set sounds --clips 8 --held-out 2 --seed 1
    """
    from workflows.soundset import make_sound_set

    made = make_sound_set(
        out, train_per_class=clips, held_out_per_class=held_out, seed=seed, workers=workers, overwrite=overwrite
    )
    click.echo(json.dumps(asdict(made), indent=2) if as_json else str(out))
