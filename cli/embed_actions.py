"""What the command embed-captions does, each as a function of its options."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from artifacts.embedding_store import EmbeddingStore
    from workflows.cluster import WorkerPool

Options = dict[str, Any]


def encode(captions: Path, out: Path, pool: WorkerPool | None, options: Options) -> None:
    """Encode ``captions`` into ``out``; ``pool`` None is a worker a GPU where there are several, else this process."""
    from artifacts.memory import keep_freed_memory
    from captions.embed import require_captions

    require_captions(captions)  # before the seconds that torch takes
    keep_freed_memory()
    from captions.encoder_request import EncoderRequest
    from workflows.embed_captions import choose_pool, embed_with_workers

    request = EncoderRequest(
        options["model"],
        options["device"],
        options["normalize"],
        options["pooling"],
        options["prefix"],
        options["max_length"],
        options["revision"],
        options["precision"],
        options["batch_tokens"],
        options["trust_remote_code"],
    )
    result, encoder = embed_with_workers(
        captions,
        out,
        request,
        choose_pool(pool, options["device"]),
        dtype=options["dtype"],
        overwrite=options["overwrite"],
        reuse=options["reuse"],
    )
    if options["pooling"] not in ("model", encoder.own_pooling):
        click.echo(f"note: the model itself pools by {encoder.own_pooling}; --pooling model does as it does.", err=True)
    if options["pooling"] != "model" and encoder.own.prompt and not options["prefix"]:
        click.echo(f"note: the model itself puts {encoder.own.prompt!r} before every text; --prefix does so.", err=True)
    rows = result.done + result.reused + result.skipped
    reused = f" + {result.reused:,} reused" if options["reuse"] else ""
    click.echo(f"{rows:,} captions = {result.done:,} done{reused} + {result.skipped:,} skipped + 0 failed", err=True)
    report(result.store, options["as_json"])


def import_dictionary(file: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Make ``out`` of the original's dictionary in ``file``."""
    from captions.exchange import import_dictionary as load

    report(load(file, out, overwrite=overwrite), as_json)


def inspect(folder: Path, captions: Path | None, options: Options) -> None:
    """Print what is in the store ``folder``, and the captions nearest to ``--text``."""
    from artifacts.embedding_store import EmbeddingStore
    from artifacts.utf8 import require_text
    from captions.embed_inspect import captions_of, encoder_request, inspect_store, nearest, require_maker

    require_text(options["text"] or "", "--text")
    store = EmbeddingStore.open(folder)
    table = captions_of(store, captions)
    found = inspect_store(store)
    neighbours = []
    if options["text"] is not None:
        model = _given("model", options)
        request = encoder_request(store, options["device"], options["trust_remote_code"], model)
        encoder = request.load()
        require_maker(store, encoder)
        neighbours = nearest(store, encoder.encode([options["text"]])[0], options["nearest"], table)
    if options["as_json"]:
        click.echo(json.dumps({**found.to_dict(), "nearest": [asdict(one) for one in neighbours]}, indent=2))
        return
    click.echo("\n".join(found.lines()))
    for one in neighbours:
        text = one.caption if one.caption is not None else f"caption {one.caption_index}"
        click.echo(f"{one.cosine:.4f}  row {one.row}  {one.clip_id}  {text}")


def check(captions: Path, folder: Path, options: Options) -> None:
    """Encode some rows of the store ``folder`` again, and compare."""
    from artifacts.embedding_store import EmbeddingStore
    from captions.embed import require_captions
    from captions.embed_inspect import check_store, encoder_request

    store = EmbeddingStore.open(folder)
    table = require_captions(captions)
    request = encoder_request(store, options["device"], options["trust_remote_code"], _given("model", options))
    rows = min(options["check"], table.num_rows)
    cosine = check_store(store, table, request, rows, options["seed"])
    result = {"store": str(folder), "rows": rows, "seed": options["seed"], "smallest_cosine": cosine}
    summary = f"{folder}: {rows:,} rows encoded again, smallest cosine {cosine:.7f}"
    click.echo(json.dumps(result, indent=2) if options["as_json"] else summary)


def report(store: EmbeddingStore, as_json: bool) -> None:
    """Print which store there is now."""
    meta = store.meta
    if store.has_captions:
        counts, sample = meta["counts"], meta["check"]
        click.echo(
            f"{counts['texts']:,} different texts, {counts['truncated']:,} cut to {meta['max_length']} tokens; "
            f"{sample['rows']} rows against float32, alone: smallest cosine {sample['smallest_cosine']:.7f} "
            f"(before storing {sample['smallest_cosine_before_storing']:.7f})",
            err=True,
        )
    summary = f"{store.folder}: {meta['rows']} x {meta['dim']} {meta['dtype']}"
    click.echo(json.dumps({"store": str(store.folder), **meta}, indent=2) if as_json else summary)


def _given(name: str, options: Options) -> Any:
    """An option that was given; None where it is only its default."""
    source = click.get_current_context().get_parameter_source(name)
    return options[name] if source is not None and source.name == "COMMANDLINE" else None
