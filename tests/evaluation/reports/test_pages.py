"""Results as Markdown and as a page: everything of the result is there, escaped, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.pages.markup import Markup, tag
from m2dprep.evaluation.protocols.result import Result
from m2dprep.evaluation.protocols.retrieval import retrieval
from m2dprep.evaluation.protocols.zero_shot import zero_shot
from m2dprep.evaluation.reports.markdown import markdown, markdown_table
from m2dprep.evaluation.reports.outcomes import (
    Outcome,
    Reported,
    outcomes_of,
    read_predictions,
    read_reported,
)
from m2dprep.evaluation.reports.page import EMBEDDED_BYTES, MAX_MATRIX, WORST_CLIPS, Players, page
from m2dprep.evaluation.task import known_tasks, read_task

HOSTILE = '<script>alert("1")</script>'
ESC50 = read_task(known_tasks()["esc50"])
VOID = {"meta", "br", "hr", "audio"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects texts, tags and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(name)
        self.links += [value or "" for key, value in attributes if key in ("src", "href")]
        assert not any(key.startswith("on") for key, _ in attributes)
        if name != "meta":
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def result(classes: int = 3, clips: int = 12, labels: list[str] | None = None) -> Result:
    rng = np.random.default_rng(0)
    names = labels or [f"class {number}" for number in range(classes)]
    cosines = rng.normal(size=(clips, classes)).astype(np.float32)
    found = zero_shot(cosines, np.arange(clips) % classes, names, task="esc50")
    return found.about(
        deviations=("The prompt is another.",),
        digests={"split": "abc"},
        versions={"torch": "2.13"},
        settings={"template": HOSTILE},
        model={"path": "runs/base"},
        failures=({"file_name": HOSTILE, "reason": "not_audio", "message": "a|b"},),
    )


def test_a_page_holds_all_and_loads_nothing() -> None:
    reported = Reported(result(labels=["dog", HOSTILE, "a|b_c"]), (Outcome(HOSTILE, "dog", "a|b_c", 0.0, -0.2),))
    text = page(reported, ESC50)
    read = Reader(text)
    assert not {"script", "link", "img", "iframe"} & set(read.seen)
    assert not [link for link in read.links if "//" in link]
    assert "alert" in read.text, "as text"
    for words in (
        "ESC-50",
        "Published",
        "M2D-CLAP 2024 75.45",
        "The prompt is another.",
        "Confusions",
        "not_audio",
        "2.13",
    ):
        assert words in read.text
    assert read.text.count("±") == 0, "no figures of the linear protocol beside zero-shot"
    assert "−0.200" in read.text or "-0.200" in read.text


def test_a_matrix_that_fits_and_one_that_does_not() -> None:
    assert 'class="matrix"' in page(Reported(result(MAX_MATRIX, 200)))
    text = page(Reported(result(MAX_MATRIX + 1, 200)))
    assert 'class="matrix"' not in text
    assert "Commonest confusions" in text


def test_the_worst_clips_come_first_and_right_ones_do_not_come() -> None:
    outcomes = [Outcome(f"{number}.wav", "a", "b", 0.0, -number / 100) for number in range(30)]
    outcomes.append(Outcome("right.wav", "a", "a", 1.0, 0.3))
    text = page(Reported(result(), tuple(outcomes)))
    found = re.findall(r"<td>(\d+\.wav|right\.wav)</td>", text)
    assert found == [f"{number}.wav" for number in range(29, 29 - WORST_CLIPS, -1)]


def test_players_link_relatively_or_hold_small_clips(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a b#1.wav").write_bytes(b"small")
    (tmp_path / "audio" / "large.wav").write_bytes(bytes(EMBEDDED_BYTES + 1))
    names = ["a b#1.wav", "large.wav", "gone.wav", "x.npy", "../out.wav", "odd.xyz"]
    reported = Reported(result(), tuple(Outcome(name, "a", "b", 0.0) for name in names))
    linked = Reader(page(reported, None, Players(tmp_path / "audio", tmp_path / "report" / "page.html")))
    assert sorted(linked.links) == ["../audio/a%20b%231.wav", "../audio/large.wav"]
    held = Reader(page(reported, None, Players(tmp_path / "audio", tmp_path / "page.html", embed=True)))
    assert sorted(held.links) == ["audio/large.wav", "data:audio/wav;base64,c21hbGw="]
    assert Reader(page(reported)).links == [], "without a folder of clips there are no players"


def test_markdown_has_the_same_and_is_escaped() -> None:
    text = markdown(Reported(result(labels=["dog", HOSTILE, "a|b_c"])), ESC50)
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "a\\|b\\_c" in text
    for line in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)
    for words in ("# ESC-50", "**accuracy", "M2D-CLAP 2024 75.45", "The prompt is another", "not\\_audio"):
        assert words in text


def test_retrieval_has_all_its_figures() -> None:
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(6, 4)).astype(np.float32)
    found = retrieval(audio, np.repeat(audio, 2, axis=0) + 0.9, np.arange(12) // 2, task="clotho")
    outcomes = tuple(Outcome(f"{n}.wav", t2a=(1 + n, 2), a2t=1 + n) for n in range(6))
    for text in (Reader(page(Reported(found, outcomes))).text, markdown(Reported(found, outcomes)).replace("\\", "")):
        for metric in ("t2a_R@1", "t2a_R@10", "a2t_R@1", "a2t_mAP@10", "t2a_medR"):
            assert metric in text
    assert re.findall(r"<td>(\d\.wav)</td>", page(Reported(found, outcomes)))[0] == "5.wav"


def test_outcomes_in_a_result_and_beside_it(tmp_path: Path) -> None:
    outcomes = (Outcome("a.wav", "dog", "cat", 0.5, -0.25), Outcome("b.wav", "cat", "cat", 1.0, 0.0))
    columns = {"files": ["a.wav", "b.wav"], "labels": [1, 0], "predicted": [0, 0]}
    more = {"classes": ["cat", "dog"], "correct_share": [0.5, 1.0], "margins": [-0.25, 0.0]}
    result().about(details=columns | more).write(tmp_path / "a.json")
    assert read_reported(tmp_path / "a.json").outcomes == outcomes
    result().write(tmp_path / "b.json")
    assert read_reported(tmp_path / "b.json").outcomes == ()
    text = "file_name,label,predicted,correct,cosine,cosine_of_label,top5\na.wav,dog,cat,false,0.5,0.25,\n"
    (tmp_path / "b.predictions.csv").write_text(text)
    assert read_reported(tmp_path / "b.json").outcomes == (Outcome("a.wav", "dog", "cat", 0.0, -0.25),)
    (tmp_path / "c.csv").write_text("file_name,label\na,b\n")
    with pytest.raises(UserError, match="no column predicted, correct"):
        read_predictions(tmp_path / "c.csv")
    for broken in (columns | {"labels": [1]}, columns | {"labels": [7, 0]}, columns | {"predicted": ["x", 0]}):
        with pytest.raises(UserError, match="do not fit together"):
            outcomes_of(result().about(details=broken))


def test_ranks_belong_to_the_clips_of_their_captions() -> None:
    details = {"files": ["a.wav", "b.wav"], "owner": [0, 1, 0], "t2a_ranks": [4, 2, 1], "a2t_best_ranks": [1, 3]}
    found = outcomes_of(Result("retrieval", "clotho", "t2a_R@1", 0.3, details=details))
    assert found == (Outcome("a.wav", t2a=(4, 1), a2t=1), Outcome("b.wav", t2a=(2,), a2t=3))


def test_markup_is_escaped_once() -> None:
    assert tag("td", "a < b", Markup("<b>x</b>"), title='"') == '<td title="&quot;">a &lt; b<b>x</b></td>'
    assert tag("meta", charset="utf-8", name=None) == '<meta charset="utf-8">'
    assert markdown_table(["a"], [["x\ny"]]) == "| a |\n| --- |\n| x y |"
