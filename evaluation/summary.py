"""A result in a few lines for a terminal."""

from __future__ import annotations

from m2dprep.artifacts.errors import Failure
from m2dprep.artifacts.failures.shown import first_lines
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.task import Task


def summary(result: Result, task: Task | None = None) -> str:
    """The score and what it was measured on, first; then what others have published on the ``task``, the protocol's
    figures, digests, deviations and failures."""
    lines = [_headline(result), ", ".join(f"{name} {count:,}" for name, count in result.n.items() if count)]
    if published := task.published(result.protocol, result.metric) if task is not None else []:
        lines.append("published: " + "  ".join(map(str, published)))
    if result.protocol == "retrieval":
        for way, words in (("t2a", "captions → clips"), ("a2t", "clips → captions")):
            lines.append(
                f"{words}: " + "  ".join(f"{name} {_figure(name, of)}" for name, of in result.details[way].items())
            )
        lines.append(f"ties: {result.details['tie_rule']} ({sum(result.details['ties'].values())} queries)")
    elif result.protocol == "label-free":
        lines += [f"{name} {result.details[name]:.4f}" for name in ("rank_me", "cev_auc", "collapsed_share")]
    elif result.protocol == "linear":
        lines.append("seeds: " + "  ".join(f"{s} {v:.2%}" for s, v in zip(result.seeds, result.scores, strict=True)))
    elif result.metric == "accuracy" and result.details.get("top5") is not None:
        lines.append(f"top-5 {result.details['top5']:.2%}, chance {result.details['chance']:.2%}")
        if (precision := result.details.get("precision@10")) is not None:
            lines.append(f"words find clips: precision@10 {precision:.2%}, the mean over classes")
    elif result.protocol == "tagging" and result.metric == "mAP":
        lines += _tagging(result)
    elif result.metric == "mAP" and result.details.get("classes_without_positives"):
        others = result.details["mAP_of_classes_with_positives"]
        empty = len(result.details["classes_without_positives"])
        lines.append(f"{empty} classes have no positive and count as 0; mAP of the others {others:.2%}")
    lines.append("digests: " + "  ".join(f"{name} {value[:16]}" for name, value in result.digests.items()))
    if result.strict_evar:
        lines.append("as EVAR computes it, its defects included (--strict-evar)")
    lines += [f"not as in EVAR: {sentence}" for sentence in result.deviations]
    lines += first_lines((Failure(**one) for one in result.failures), len(result.failures), "--json lists all")
    return "\n".join(lines)


def _tagging(result: Result) -> list[str]:
    details, lines = result.details, []
    if details["auc"] is not None:
        lines.append(f"AUC {details['auc']:.4f}  d' {details['d_prime']:.3f}")
    if empty := len(details["classes_without_positives"]):
        others = details["mAP_of_classes_with_positives"]
        lines.append(f"{empty} classes have no positive: their AP counts as 0, and they have no AUC")
        lines += [] if others is None else [f"mAP of the others {others:.2%}"]
    return lines


def _headline(result: Result) -> str:
    if result.score is None:
        return f"{result.protocol} {result.task}: nothing could be measured"
    score = f"{result.score:.2f}" if result.protocol == "label-free" else f"{result.score:.2%}"
    interval = "" if result.interval is None else f" ± {result.interval:.2%} (95 %, {len(result.seeds)} seeds)"
    return f"{result.protocol} {result.task}: {result.metric} {score}{interval}"


def _figure(name: str, value: float) -> str:
    return f"{value:.2%}" if name.startswith(("R@", "mAP")) else f"{value:g}"
