"""The command search: words or a sound → the nearest rows of stores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.options import (
    LOCATION,
    OUTPUT,
    PATH,
    TableCommand,
    device_option,
    json_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)


@click.command(cls=TableCommand)
@click.argument("words", nargs=-1, required=True, metavar="STORE… [TEXT]")
@titled(
    "What to look for",
    click.option("--by-audio", type=PATH, default=None, help="Look for what sounds like this file, in place of words."),
    click.option("--top", type=click.IntRange(min=1), default=10, help="Show this many rows."),
    click.option("--one-per-file", is_flag=True, help="Show only the best window of every sound."),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="NAME",
        help="Look only among clips with this label; this needs --captions or --labels. The option can be repeated, "
        "and then one of the labels is enough.",
    ),
    click.option(
        "--captions",
        type=PATH,
        default=None,
        help="Show the captions and labels of this captions.parquet, or of this data directory.",
    ),
    click.option(
        "--labels",
        "labels_of",
        type=PATH,
        default=None,
        help="Show the labels of this CSV with columns file_name and label; ESC-50's own table works too.",
    ),
    click.option(
        "--index",
        is_flag=True,
        help="Search with a FAISS index beside each store, which is made if there is none: quick among tens of "
        "millions of rows, but it may miss some (extra 'faiss').",
    ),
)
@titled(
    "The model",
    click.option(
        "--checkpoint",
        type=PATH,
        default=None,
        show_default="the store's own",
        help="Encode with the model of this checkpoint, which must be the one that made the store.",
    ),
    text_model_option(
        default=None,
        show_default="the one of its training",
        help="Encode words with this text encoder: a folder, or a name on the Hugging Face hub.",
    ),
    trust_remote_code_option,
)
@titled(LOCATION, device_option)
@titled(OUTPUT, json_option)
def search(words: tuple[str, ...], by_audio: Path | None, as_json: bool, **options: Any) -> None:
    """Find the sounds in STORE that are nearest to TEXT, or to a sound, by the cosine of their embeddings.

    Stores are made by `m2dprep embed-audio`; several are searched as one if one model made them. All rows are compared.
    Of equal scores the earlier store comes first, then the lower row.

    \b
    Examples:
      m2dprep search recordings_emb "a dog barks"
      m2dprep search day1_emb day2_emb "rain on a roof" --top 20 --one-per-file
      m2dprep search recordings_emb --by-audio siren.wav --captions data --label Siren --json
    """
    stores, text = (words, None) if by_audio is not None else (words[:-1], words[-1])
    if not stores:
        raise click.UsageError(f"Give a store, and then what to look for or --by-audio; {words[0]!r} is alone.")
    if text is not None and os.path.isdir(text):  # noqa: PTH112 (a text may be no path at all, which Path refuses)
        raise click.UsageError(f"{text!r} is a folder: the last argument is what to look for (or give --by-audio).")
    from m2dprep.evaluation.search.command import SearchRequest
    from m2dprep.evaluation.search.command import search as run

    places = [PATH.convert(store, None, click.get_current_context()) for store in stores]
    result = run(SearchRequest(places, text, by_audio, **options))
    if result.advice:
        click.echo(f"note: {result.advice}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    for hit in result.hits:
        click.echo(hit.line(named=len(stores) > 1))
    if not result.hits:
        click.echo(
            "nothing was found: " + ("no clip with these labels is in the store." if result.rows else "it is empty.")
        )
