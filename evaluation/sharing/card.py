"""The model card: a README.md with a YAML head, as the Hugging Face hub reads it. What is not known is said to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.reports.figures import counts_text, score_text
from m2dprep.evaluation.reports.markdown import markdown_table
from m2dprep.evaluation.sharing.facts import RunFacts
from m2dprep.m2dclap.checkpoint import Checkpoint

UNKNOWN = "unknown"
SENTENCES = {
    "clap": "It turns sounds and captions into embeddings of one space: words find sounds, and sounds find words.",
    "classes": "It scores the {count:,} classes that it was fine-tuned on (`classes.txt`).",
    "encoder": "It turns sounds into embeddings; it has no head for captions and no classes.",
}


@dataclass(frozen=True)
class CardRequest:
    """What only a person knows: the ``licence`` (an identifier of the hub), names of ``datasets`` there, the name."""

    name: str
    licence: str
    datasets: tuple[str, ...] = ()


def model_card(checkpoint: Checkpoint, facts: RunFacts, request: CardRequest, classes: Sequence[str]) -> str:
    """The text of the card."""
    head = yaml.safe_dump(_head(checkpoint, facts, request, classes), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---", f"# {request.name}", _what(checkpoint, classes), _use(request, checkpoint, classes)]
    parts.append("## Data\n\n" + _data(facts, request))
    parts.append("## Training\n\n" + _table(facts.protocol, "It is not known how the model was trained."))
    parts.append("## Scores\n\n" + _scores(facts.results))
    licence = "It is not known under which licence the weights may be used; ask who gives them to you."
    parts.append("## Licence\n\n" + (licence if request.licence == UNKNOWN else f"`{request.licence}`"))
    front = checkpoint.front_end
    parts.append(
        "## Input\n\n"
        f"Mono sound of {front.sample_rate:,} Hz as log-mels: {front.n_mels} mel bins from {front.f_min:g} to "
        f"{front.f_max:g} Hz, windows of {front.win_length} samples every {front.hop_length}, natural logarithm, "
        f"normalised by mean {checkpoint.norm_stats.mean:.6f} and standard deviation {checkpoint.norm_stats.std:.6f}."
    )
    return "\n\n".join(parts) + "\n"


def _head(checkpoint: Checkpoint, facts: RunFacts, request: CardRequest, classes: Sequence[str]) -> dict[str, Any]:
    head: dict[str, Any] = {"license": request.licence, "library_name": "m2dprep"}
    head["pipeline_tag"] = "audio-classification" if classes else "feature-extraction"
    head["tags"] = ["audio", "m2d", *(["m2d-clap", "zero-shot"] if checkpoint.has_clap_head else [])]
    if request.datasets:
        head["datasets"] = list(request.datasets)
    scored = [one for one in facts.results if one.score is not None]
    if scored:
        head["model-index"] = [{"name": request.name, "results": [_indexed(one) for one in scored]}]
    return head


def _indexed(result: Result) -> dict[str, Any]:
    assert result.score is not None
    return {
        "task": {"type": "audio-classification", "name": result.protocol},
        "dataset": {"name": result.task or "clips", "type": result.task or "clips"},
        "metrics": [{"type": result.metric, "value": round(float(result.score), 6), "name": result.metric}],
    }


def _what(checkpoint: Checkpoint, classes: Sequence[str]) -> str:
    config = checkpoint.config
    words = [
        f"An encoder of sounds, [M2D-CLAP](https://arxiv.org/abs/2406.02032) ({checkpoint.layout}): a vision "
        f"transformer of {config.depth} blocks and width {config.embed_dim} over patches of "
        f"{config.patch_size[0]} × {config.patch_size[1]} of log-mels, made with m2dprep."
    ]
    if checkpoint.has_clap_head:
        words.append(SENTENCES["clap"])
    if classes:
        words.append(SENTENCES["classes"].format(count=len(classes)))
    if not checkpoint.has_clap_head and not classes:
        words.append(SENTENCES["encoder"])
    return " ".join(words)


def _use(request: CardRequest, checkpoint: Checkpoint, classes: Sequence[str]) -> str:
    lines = ["import m2dprep", "", f'model = m2dprep.load("{request.name}")  # this folder, or its name on the hub']
    if checkpoint.has_clap_head:
        lines.append('model.similarity(model.encode_audio(["a.wav"]), ["a dog barks", "rain on a roof"])')
    elif not classes:
        lines.append('model.encode_audio(["a.wav"], kind="stacked")')
    if classes:
        lines.append('model.tag(["a.wav"])')
    return "```python\n" + "\n".join(lines) + "\n```"


def _data(facts: RunFacts, request: CardRequest) -> str:
    named = f"Named by who shared the model: {', '.join(f'`{name}`' for name in request.datasets)}.\n\n"
    told = _table(facts.data, "" if request.datasets else "It is not known on which data the model was trained.")
    return (named if request.datasets else "") + told


def _table(rows: Sequence[tuple[str, str]], otherwise: str) -> str:
    return markdown_table(["what", "value"], rows) if rows else otherwise


def _scores(results: Sequence[Result]) -> str:
    if not results:
        return "No scores were given."
    rows = [
        [
            one.protocol,
            one.task or "clips",
            one.metric,
            score_text(one),
            counts_text(one),
            "; ".join(one.deviations) or "–",
        ]
        for one in results
    ]
    header = ["protocol", "task", "metric", "score", "of", "otherwise than EVAR"]
    told = "Shares are in per cent; ± is half the width of the 95 % interval over seeds."
    return f"{markdown_table(header, rows)}\n\n{told}"
