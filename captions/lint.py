"""Finds captions that a model should not learn from: each rule lists its findings, one row per finding.

| rule | finds |
|---|---|
| ``empty`` | no letter and no digit |
| ``wrapper`` | a wrapper that `captions.clean` would remove, or the beginning of one |
| ``quoted_label`` | label names of the clip in quotes: two, or the only one |
| ``probability`` | numbers such as 0.93 or 93% beside words of confidence, or after a label's name |
| ``refusal`` | refusals, apologies and remarks of a language model |
| ``url`` | addresses of web pages and mail |
| ``non_english`` | mostly letters of other scripts, or another language by three or more words (py3langid) |
| ``duplicate`` | the exact text of an earlier caption of the clip |
| ``near_duplicate`` | the words of an earlier caption of the clip, apart from case, punctuation, order and articles |
| ``too_long`` | more tokens than the encoder takes (only with a tokenizer) |

On a file, the findings are listed and counted, and captions are dropped if that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2dprep.artifacts.columns import codes, first_occurrences, one_array, position_in_group, rows_at, text_bytes
from m2dprep.artifacts.console import DELAY_SECONDS, Progress
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.artifacts.layout import require_file
from m2dprep.artifacts.tables import read_captions
from m2dprep.captions.assembly import Assembly
from m2dprep.captions.clean import unwrap
from m2dprep.captions.embedding.model_files import UNLIMITED_TOKENS, unloadable
from m2dprep.captions.files import require_new_file, write_csv, write_result

RULES = (
    "empty",
    "wrapper",
    "quoted_label",
    "probability",
    "refusal",
    "url",
    "non_english",
    "duplicate",
    "near_duplicate",
    "too_long",
)
FINDINGS = pa.schema(
    [
        ("row", pa.int64()),
        ("clip_id", pa.string()),
        ("caption_index", pa.int32()),
        ("source", pa.string()),
        ("rule", pa.string()),
        ("caption", pa.string()),
    ]
)
SHARE = r"(?:0?\.\d+|\d+(?:\.\d+)?\s?%)"
PATTERNS = {
    "probability": rf"(?i)\b(?:probabilit|confidence|likelihood|score)\w*\W+(?:\w+\W+){{0,3}}?{SHARE}"
    rf"|\(\s*{SHARE}\s*\)|\w:\s*0?\.\d+",
    "refusal": r"(?i)\bas an ai\b|language model|\b(?:i'm|i am) (?:sorry|unable|afraid)|\bi apologi[sz]e|"
    r"\bmy apologies|\bi (?:cannot|can't|can not) (?:provide|generate|create|determine|hear|help|describe)|"
    r"\bsorry, (?:but )?i\b|\b(?:given|provided) information\b|not enough information|insufficient information|"
    r"please provide",
    "url": r"(?i)\bhttps?://|\bwww\.[a-z0-9-]+\.|\b[a-z0-9-]+\.(?:com|org|net)\b|\b[\w.+-]+@[\w-]+\.\w+",
}
OPEN_WRAPPER = (
    r"(?i)^[^.!?]*\b(?:caption|description)\b[^.!?]*\b(?:could|can|may|might|would) be\s*[:\"“]|\bcould be\s*:\s*[\"“]"
)
# Words that hardly any other language has: a caption with one of them is English.
ENGLISH = re.compile(r"(?i)\b(?:the|and|with|while|are|from|sounds?)\b")
# Fewer words, such as "Ho ho ho" or "Pizzicato strings", say too little about their language.
MIN_DIFFERENT_WORDS, MIN_PROBABILITY, OTHER_SCRIPT_SHARE = 3, 0.5, 0.3
ARTICLES = frozenset({"a", "an", "the"})
WORD = re.compile(r"[^\W_]+(?:'\w+)?")
TokenLimit = tuple[Callable[[Sequence[str]], list[int]], int]


def find(
    captions: pa.Table,
    rules: Sequence[str] = RULES,
    token_limit: TokenLimit | None = None,
    advance: Callable[[], object] | None = None,
) -> pa.Table:
    """All findings of ``rules`` in a table of `CAPTIONS_SCHEMA`, as `FINDINGS`, sorted by row and then by rule.

    ``token_limit`` is a function that counts the tokens of texts, and the encoder's maximum; without it ``too_long``
    finds nothing. ``advance`` is called after every rule. Raises `UserError` if a rule is unknown.
    """
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise UserError(f"no rule {', '.join(unknown)}; there are {', '.join(RULES)}.")
    rows, which = [], []
    for number, rule in enumerate(RULES):
        if rule in rules:
            found = np.flatnonzero(_too_long(captions, token_limit) if rule == "too_long" else CHECKS[rule](captions))
            rows.append(found)
            which.append(np.full(len(found), number))
            if advance is not None:
                advance()
    row, rule_of = np.concatenate(rows), np.concatenate(which)
    order = np.lexsort((rule_of, row))
    taken = captions.take(pa.array(row[order]))
    names = pa.array(RULES).take(pa.array(rule_of[order]))
    columns = [pa.array(row[order]), taken["clip_id"], taken["caption_index"], taken["source"], names, taken["caption"]]
    return pa.Table.from_arrays(columns, schema=FINDINGS)


def drop(captions: pa.Table, findings: pa.Table, rules: Sequence[str]) -> pa.Table:
    """Remove the rows of ``captions`` that one of ``rules`` found, and count ``caption_index`` anew."""
    bad = findings["row"].filter(pc.is_in(findings["rule"], value_set=pa.array(list(rules), pa.string()))).to_numpy()
    keep = np.ones(captions.num_rows, bool)
    keep[bad] = False
    kept = captions.filter(pa.array(keep))
    at = captions.schema.get_field_index("caption_index")
    clip = codes(kept["clip_id"])
    order = np.argsort(clip, kind="stable")
    index = np.empty(len(clip), np.int32)
    index[order] = position_in_group(clip[order])
    return kept.set_column(at, captions.schema.field(at), pa.array(index))


def _matches(captions: pa.Table, pattern: str) -> np.ndarray:
    found: np.ndarray = pc.match_substring_regex(captions["caption"], pattern).to_numpy()
    return found


def _among(captions: pa.Table, suspects: np.ndarray, is_bad: Callable[[str], bool]) -> np.ndarray:
    """bool (N,): the suspects that are bad; only suspects are looked at one by one."""
    rows = np.flatnonzero(suspects)
    texts = captions["caption"].take(pa.array(rows)).to_pylist()
    found = np.zeros(captions.num_rows, bool)
    found[rows] = [is_bad(text) for text in texts]
    return found


def _empty(captions: pa.Table) -> np.ndarray:
    return ~_matches(captions, r"[\p{L}\p{N}]")


def _wrapper(captions: pa.Table) -> np.ndarray:
    with_colon = pc.match_substring(captions["caption"], ":").to_numpy()
    return _matches(captions, OPEN_WRAPPER) | _among(captions, with_colon, lambda text: unwrap(text) != text)


def _quoted_label(captions: pa.Table) -> np.ndarray:
    quoted = re.compile(r"[\"“'‘]([^\"”'’]+)[\"”'’]")
    rows = np.flatnonzero(_matches(captions, "[\"“'‘][^\"”'’]+[\"”'’]"))
    some = captions.select(["caption", "labels"]).take(pa.array(rows))
    found = np.zeros(captions.num_rows, bool)
    for row, caption, labels in zip(rows, some["caption"].to_pylist(), some["labels"].to_pylist(), strict=True):
        names = {name.casefold() for name in labels or []}
        found[row] = sum(text.strip(" ,.").casefold() in names for text in quoted.findall(caption)) >= min(
            2, len(names) or 1
        )
    return found


def _non_english(captions: pa.Table) -> np.ndarray:
    texts = one_array(captions["caption"])
    content, offsets = text_bytes(texts)
    suspects = rows_at(offsets, np.flatnonzero(content >= 0x80)) if len(content) else np.zeros(len(texts), bool)
    suspects |= ~_matches(captions, ENGLISH.pattern)
    return _among(captions, suspects, is_other_language)


def is_other_language(text: str) -> bool:
    """Whether a text is mostly in another script, or three or more words of it are more likely not English."""
    letters = [character for character in text if character.isalpha()]
    other = sum(ord(character) > 0x24F for character in letters)
    if letters and other / len(letters) > OTHER_SCRIPT_SHARE:
        return True
    if ENGLISH.search(text) or len({word.casefold() for word in WORD.findall(text)}) < MIN_DIFFERENT_WORDS:
        return False
    language, probability = _identifier().classify(text)
    return bool(language != "en" and probability >= MIN_PROBABILITY)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes a second, and only this rule needs it

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _duplicate(captions: pa.Table) -> np.ndarray:
    return _repeats(captions, codes(captions["caption"]))


def _near_duplicate(captions: pa.Table) -> np.ndarray:
    """Only clips with several captions can have near duplicates, so only their captions are split into words."""
    clip = codes(captions["clip_id"])
    several = np.bincount(clip)[clip] > 1 if len(clip) else np.zeros(0, bool)
    rows = np.flatnonzero(several)
    texts = captions["caption"].take(pa.array(rows)).to_pylist()
    words = [" ".join(sorted(word for word in WORD.findall(text.casefold()) if word not in ARTICLES)) for text in texts]
    found = np.zeros(captions.num_rows, bool)
    found[rows] = _repeats(captions.take(pa.array(rows)), codes(pa.array(words, pa.string())))
    return found & ~_duplicate(captions)


def _repeats(captions: pa.Table, text: np.ndarray) -> np.ndarray:
    """bool (N,): whether an earlier caption of the same clip has the same text code."""
    return ~first_occurrences(codes(captions["clip_id"]) * (len(text) + 1) + text)


def _too_long(captions: pa.Table, token_limit: TokenLimit | None) -> np.ndarray:
    """A token has at least one byte, so only texts with more bytes than allowed tokens are tokenized."""
    found = np.zeros(captions.num_rows, bool)
    if token_limit is None:
        return found
    count, limit = token_limit
    specials = count([""])[0]
    rows = np.flatnonzero(pc.binary_length(captions["caption"]).to_numpy() > (limit - specials) // EXPANSION)
    texts = captions["caption"].take(pa.array(rows)).to_pylist()
    found[rows] = np.array(count(texts) if texts else [], np.int64) > limit
    return found


# Normalisation of compatibility characters can turn a few bytes into several letters.
EXPANSION = 2
CHECKS: Mapping[str, Callable[[pa.Table], np.ndarray]] = {
    "empty": _empty,
    "wrapper": _wrapper,
    "quoted_label": _quoted_label,
    **{rule: partial(_matches, pattern=pattern) for rule, pattern in PATTERNS.items()},
    "non_english": _non_english,
    "duplicate": _duplicate,
    "near_duplicate": _near_duplicate,
}


@dataclass(frozen=True)
class Checked:
    """The findings of every rule in `check_file`, the captions that have one, and the captions dropped.

    ``left`` counts the findings in captions that were not dropped. ``changed`` says whether a table was written.
    """

    captions: int
    by_rule: dict[str, int]
    with_findings: int
    dropped: int
    left: int
    changed: bool = True

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
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
    overwrite: bool = False,
) -> Checked:
    """Check ``captions``, list the findings in the CSV file ``findings``; write ``output`` without ``dropped`` ones.

    Empty ``rules`` means all of them; ``dropped`` rules are checked too. Without ``model`` no tokens are counted.
    Raises `UserError` if a rule is unknown, the model has no tokenizer, or no caption would be left.
    """
    require_file(captions, "the table of captions")
    if output is not None:
        require_new_file(output, [captions])
    table = read_captions(captions)
    limit = None if model is None else token_limit(model, max_tokens)
    chosen = [*rules, *dropped] if rules else RULES
    with Progress(len({*chosen, *dropped}), "check", "rules", delay=DELAY_SECONDS) as progress:
        found = find(table, [*chosen, *dropped], limit, progress.advance)
    if findings is not None:
        write_csv(findings, found)
    kept, left, changed = table, found, False
    if dropped:
        kept = drop(table, found, dropped)
        if not kept.num_rows:
            raise UserError(f"{captions}: every caption would be dropped.")
        bad = pc.unique(found["row"].filter(pc.is_in(found["rule"], value_set=pa.array(list(dropped), pa.string()))))
        left = found.filter(pc.invert(pc.is_in(found["row"], value_set=bad)))
    if output is not None:
        whole = Assembly(kept.num_rows, lambda start, stop: kept.slice(start, stop - start))
        changed = write_result(output, whole, overwrite=overwrite)
    counts = {item["values"]: item["counts"] for item in pc.value_counts(found["rule"]).to_pylist()}
    return Checked(
        captions=table.num_rows,
        by_rule={rule: counts.get(rule, 0) for rule in RULES if rule in chosen and (limit or rule != "too_long")},
        with_findings=len(pc.unique(found["row"])),
        dropped=table.num_rows - kept.num_rows,
        left=left.num_rows,
        changed=changed,
    )


def token_limit(model: str, max_tokens: int | None) -> TokenLimit:
    """A model's way of counting tokens, special ones included, and its maximum.

    Raises `UserError` if it has no tokenizer, or no limit is known.
    """
    from transformers import AutoTokenizer  # takes seconds to import, and only this rule needs it

    from m2dprep.captions.embedding.loading import surely

    try:
        tokenizer = surely(lambda: AutoTokenizer.from_pretrained(model, trust_remote_code=False), model)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{model!r} has no tokenizer that can be loaded: {unloadable(error)}") from error
    limit = max_tokens or min(tokenizer.model_max_length, _sentence_length(model))
    if limit > UNLIMITED_TOKENS:
        raise UserError(f"{model!r} does not say how many tokens it takes; --max-tokens says it.")
    return lambda texts: [
        len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    ], limit


def _sentence_length(model: str) -> int:
    """The limit of a sentence encoder, which may be lower than its tokenizer's."""
    from transformers.utils import cached_file

    path = cached_file(model, "sentence_bert_config.json", _raise_exceptions_for_missing_entries=False)
    settings = read_json_object(Path(path), "the settings of a text encoder", any_number=True) if path else {}
    length = settings.get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else UNLIMITED_TOKENS + 1
