"""`captions.lint` on a file: findings are listed, counted, and dropped where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import UserError
from artifacts.json_text import read_json_object
from artifacts.layout import require_file
from artifacts.progress import DELAY_SECONDS, Progress
from artifacts.tables import read_captions
from artifacts.write_lock import writing_to
from captions.assembly import Assembly
from captions.files import write_captions, write_csv
from captions.lint import RULES, TokenLimit, drop, find
from captions.model_code import unloadable

UNLIMITED = 1_000_000  # tokenizers say "no limit" with a number beyond any text


@dataclass(frozen=True)
class Checked:
    """What `check_file` found: findings of every rule, captions that have one, and captions dropped.

    ``left`` counts the findings in captions that were not dropped.
    """

    captions: int
    by_rule: dict[str, int]
    with_findings: int
    dropped: int
    left: int

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


def check_file(
    captions: Path,
    rules: Sequence[str] = (),
    *,
    findings: Path | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    dropped: Sequence[str] = (),
    output: Path | None = None,
) -> Checked:
    """Find what is wrong in ``captions`` (`captions.lint`), list it in the CSV file ``findings``, drop what is asked.

    ``rules`` empty means all; ``dropped`` ones are looked for too. Without ``model`` no tokens are counted. Raises
    `UserError` where a rule is unknown, the model has no tokenizer, or nothing would be left.
    """
    require_file(captions, "the table of captions")
    with writing_to(output or captions) if dropped else nullcontext():
        return _check_file(captions, rules, findings, model, max_tokens, dropped, output)


def _check_file(
    captions: Path,
    rules: Sequence[str],
    findings: Path | None,
    model: str | None,
    max_tokens: int | None,
    dropped: Sequence[str],
    output: Path | None,
) -> Checked:
    table = read_captions(captions)
    limit = None if model is None else token_limit(model, max_tokens)
    chosen = [*rules, *dropped] if rules else RULES
    with Progress(len({*chosen, *dropped}), "check", "rules", delay=DELAY_SECONDS) as progress:
        found = find(table, [*chosen, *dropped], limit, progress.advance)
    if findings is not None:
        write_csv(findings, found)
    kept, left = table, found
    if dropped:
        kept = drop(table, found, dropped)
        if not kept.num_rows:
            raise UserError(f"{captions}: every caption would be dropped.")
        bad = pc.unique(found["row"].filter(pc.is_in(found["rule"], value_set=pa.array(list(dropped), pa.string()))))
        left = found.filter(pc.invert(pc.is_in(found["row"], value_set=bad)))
        write_captions(output or captions, Assembly(kept.num_rows, lambda start, stop: kept.slice(start, stop - start)))
    counts = {item["values"]: item["counts"] for item in pc.value_counts(found["rule"]).to_pylist()}
    return Checked(
        captions=table.num_rows,
        by_rule={rule: counts.get(rule, 0) for rule in RULES if rule in chosen and (limit or rule != "too_long")},
        with_findings=len(pc.unique(found["row"])),
        dropped=table.num_rows - kept.num_rows,
        left=left.num_rows,
    )


def token_limit(model: str, max_tokens: int | None) -> TokenLimit:
    """How a model counts tokens, special ones included, and how many it takes.

    Raises `UserError` where it has no tokenizer, or no limit is known.
    """
    from transformers import AutoTokenizer  # seconds to import, and only this rule needs it

    from captions.encoder_reading import surely

    try:
        tokenizer = surely(lambda: AutoTokenizer.from_pretrained(model, trust_remote_code=False), model)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{model!r} has no tokenizer that can be loaded: {unloadable(error)}") from error
    limit = max_tokens or min(tokenizer.model_max_length, _sentence_length(model))
    if limit > UNLIMITED:
        raise UserError(f"{model!r} does not say how many tokens it takes; --max-tokens says it.")
    return lambda texts: [
        len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    ], limit


def _sentence_length(model: str) -> int:
    """The limit of a sentence encoder, which may be below its tokenizer's."""
    from transformers.utils import cached_file

    path = cached_file(model, "sentence_bert_config.json", _raise_exceptions_for_missing_entries=False)
    settings = read_json_object(Path(path), "the settings of a text encoder", any_number=True) if path else {}
    length = settings.get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else UNLIMITED + 1
