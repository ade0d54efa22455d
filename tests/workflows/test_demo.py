"""The demo from end to end on four clips a class, through the real commands and the real text encoder."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from artifacts.embedding_store import EmbeddingStore
from artifacts.tables import read_captions, read_file_list
from cli.main import m2dprep
from workflows.report import artifact_tree, curve, human_size
from workflows.synthesis import CLASSES


@pytest.mark.timeout(400)
def test_every_stage_runs_and_leaves_what_it_promises(tmp_path: Path) -> None:
    arguments = ["demo", "--dir", str(tmp_path), "--clips", "4", "--held-out", "1", "--epochs", "1", "--workers", "0"]
    result = CliRunner().invoke(m2dprep, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["clips"] == len(CLASSES)
    assert 0 <= value["accuracy"] <= 1
    data = tmp_path / "data"
    assert len(read_file_list(data / "files_audioset.csv")) == 4 * len(CLASSES)
    captions = read_captions(data / "captions.parquet")
    assert set(captions["source"].to_pylist()) == {"auto_acd", "label", "acalt4"}
    EmbeddingStore.open(data / "capemb_minilm").verify(captions)
    assert list((tmp_path / "run").rglob("checkpoint-1.pth"))
    assert "norm_stats.json" in artifact_tree(tmp_path)


def test_curves_and_sizes_for_people() -> None:
    assert curve([3, 2, 1], width=3) == "█▅▁"
    assert curve([1.0] * 10, width=5) == "▁▁▁▁▁"
    assert curve([]) == ""
    assert [human_size(size) for size in (0, 1023, 2048, 5 * 2**30)] == ["0 B", "1023 B", "2.0 KiB", "5.0 GiB"]
