"""The command serve: stores of sounds as a page in the browser."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path
from typing import Any

import click

from m2dprep.cli.options import (
    LOCATION,
    PATH,
    TableCommand,
    device_option,
    id_column_option,
    json_option,
    seed_option,
    text_model_option,
    titled,
    trust_remote_code_option,
)


@click.command(cls=TableCommand)
@click.argument("stores", type=PATH, nargs=-1, required=True, metavar="STORE…")
@titled(
    "What is shown",
    click.option(
        "--audio",
        type=PATH,
        multiple=True,
        show_default="no sound",
        metavar="ROOT",
        help="Play the sounds below this folder, the one that the store was made from. Of several stores, give it once "
        "for all, or once for each in their order (- for none); the same holds for the next three.",
    ),
    click.option(
        "--log-mels",
        type=PATH,
        multiple=True,
        show_default="computed from the sounds",
        help="Show the log-mels of this folder (or pack) of `melspec`.",
    ),
    click.option(
        "--captions",
        type=PATH,
        multiple=True,
        help="Show the captions and labels of this captions.parquet, or of this data directory.",
    ),
    click.option(
        "--labels",
        type=PATH,
        multiple=True,
        help="Show the labels of this CSV with columns file_name and label; ESC-50's own table works too.",
    ),
    id_column_option,
    click.option(
        "--map-points",
        type=click.IntRange(min=1, max=200_000),
        default=10_000,
        help="Put at most this many rows on the map, drawn at random if there are more.",
    ),
    seed_option,
)
@titled(
    "Words",
    click.option(
        "--checkpoint",
        type=PATH,
        default=None,
        show_default="the store's own",
        help="Encode words with the model of this checkpoint, which must be the one that made the store.",
    ),
    text_model_option(
        default=None,
        show_default="the one of its training",
        help="Encode words with this text encoder: a folder, or a name on the Hugging Face hub.",
    ),
    trust_remote_code_option,
    device_option,
)
@titled(
    LOCATION,
    click.option(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="Listen at this address. Others than 127.0.0.1 can be reached from elsewhere, so the page's address then "
        "has a random token in it.",
    ),
    click.option(
        "--port",
        type=click.IntRange(min=0, max=65535),
        default=None,
        show_default="8484, or any that is free",
        help="Listen at this port. 0 takes any that is free.",
    ),
    click.option(
        "--name",
        "names",
        multiple=True,
        metavar="HOST",
        help="Answer to this name of the machine too, behind a proxy for instance. The option can be repeated.",
    ),
    click.option(
        "--token", is_flag=True, help="Put a token in the address also on 127.0.0.1, where others use the machine too."
    ),
    click.option("--open", "opens", is_flag=True, help="Open the page in the browser."),
    json_option,
)
def serve(
    stores: tuple[Path, ...],
    host: str,
    port: int | None,
    names: tuple[str, ...],
    token: bool,
    opens: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve each STORE, made by `m2dprep embed-audio`, on a page in the browser: search by words, listen, see the map.

    The page shows the clips with their log-mels, captions and labels, plays them, finds others that sound alike, and
    draws all of them on a map (t-SNE, made once and kept in the store). It ends with Ctrl-C. Nothing but the sounds
    that a store lists is served, and by default only to this machine. Several stores are shown as one if one model made
    them, and can be told apart.

    \b
    Examples:
      m2dprep serve sounds_emb --audio recordings
      m2dprep serve day1_emb day2_emb --audio day1 --audio day2
      m2dprep serve sounds_emb --audio ESC-50/audio --labels ESC-50/meta/esc50.csv --open
      m2dprep serve sounds_emb --audio shards --captions data/captions.parquet --host 0.0.0.0 --port 9000
    """
    from m2dprep.evaluation.serving.opening import Shown
    from m2dprep.evaluation.serving.serve import Listening
    from m2dprep.evaluation.serving.serve import serve as run

    def ready(address: str) -> None:
        click.echo(json.dumps({"url": address}) if as_json else address)
        sys.stdout.flush()
        click.echo("Ctrl-C ends it.", err=True)
        if opens:
            webbrowser.open(address)

    def note(words: str) -> None:
        click.echo(words, err=True)

    run(Shown(stores, **options), Listening(host, port, names, token), ready, note)
    click.echo("Stopped.", err=True)
