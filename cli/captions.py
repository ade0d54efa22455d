"""The group captions: tables in, one captions.parquet out."""

from __future__ import annotations

import click

from cli.caption_checks import check, show
from cli.caption_sets import add, fill, keywords, merge, training_list
from cli.options import CONTEXT_SETTINGS


@click.group(context_settings=CONTEXT_SETTINGS)
def captions() -> None:
    """Caption tables → one captions.parquet, one row a (clip, caption); its row order is that of the embeddings.

    \b
    Examples:
      m2dprep captions fill --segments balanced_train_segments.csv --ontology ontology.json -o data/captions.parquet
      m2dprep captions show data/captions.parquet YXqu1CeA2c4
    """


for command in (fill, add, merge, keywords, check, show, training_list):
    captions.add_command(command)
