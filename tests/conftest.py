"""Small data directories for tests of training: log-mels with their class's band of energy, and its embeddings."""

from __future__ import annotations

import gc
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")  # they would import trio
from hypothesis import settings

from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.files import write_array, write_json
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, write_captions, write_file_list
from tests import forks, warm

# A loaded machine is no failure, and a run of the tests is like any other. `--hypothesis-seed=N` tries other examples.
settings.register_profile("any machine", deadline=None, derandomize=True, database=None)
settings.load_profile("any machine")

MakeData = Callable[..., Path]


# Tests' folders are in memory if there is so much room: what is tested syncs every file that it writes.
MEMORY, ROOM_BYTES = Path("/dev/shm"), 4 << 30


# Tests that keep a process busy for minutes, by parts of their names.
LONGEST = ("/test_slurm.py", "_loses_nothing[torch]", "_loses_nothing[light]")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until everything is collected
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: the garbage collector need not walk it again and again."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the slow tests, modules of slow tests are not imported: torch and transformers take seconds."""
    if config.getoption("markexpr") != "not slow" or collection_path.suffix != ".py":
        return None
    is_slow = re.search(r"^pytestmark = \[?pytest\.mark\.slow\b", collection_path.read_text(), re.MULTILINE)
    return True if is_slow else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every process begin with some of the longest tests, so that none is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    groups = [[item for item in items if name in item.nodeid] for name in LONGEST]
    items[:] = [item for item in items if not any(item in group for group in groups)]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = (len(items) + sum(map(len, groups))) // processes  # what each process is given to begin with
    for number, group in enumerate(groups):
        at = number % processes * share
        items[at:at] = group


def pytest_runtest_setup() -> None:
    """Every test begins alike, whatever has run before it in this process.

    Random numbers are the same, and what the process has learnt of the pace of disks and servers is unknown again.
    """
    random.seed(0)
    loaded = sys.modules.get
    if numpy := loaded("numpy"):
        numpy.random.seed(0)
    if torch := loaded("torch"):
        torch.default_generator.manual_seed(0)  # of the processor, in a microsecond
    if reading := loaded("m2dprep.artifacts.log_mels.read_ahead"):
        reading.READING.seconds = 0.0
    if converting := loaded("m2dprep.audioprep.ahead"):
        converting.OPENING.seconds = converting.WRITING.seconds = 0.0
    if remote := loaded("m2dprep.audioprep.remote.requests"):
        remote.PORTIONS.size = remote.FIRST_BYTES


@pytest.fixture(scope="session")
def start_warm_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """What starts the server of `warm_python`, once for all processes of a test run."""
    own, one_of_several = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    shared, run = (own.parent, os.getppid()) if one_of_several else (own, os.getpid())
    return lambda: warm.warm_python(shared, run)


@pytest.fixture(scope="session")
def warm_python(start_warm_python: Callable[[], str]) -> str:
    """A Python that starts with torch imported (`tests/warm.py`)."""
    python = start_warm_python()
    subprocess.run([python, "-c", ""], check=True)  # its server has come up, which takes long on a loaded machine
    return python


@pytest.fixture(scope="session", autouse=True)
def warm_forks(start_warm_python: Callable[[], str]) -> None:
    """What `tests/forks.py` starts, it starts from the warm Python."""
    forks.python[:] = [start_warm_python]


TEXT_MODEL = {"model": "made-up", "weights": "sha256:0", "pooling": "mean", "normalized": False, "prefix": ""}


def class_log_mel(kind: int, classes: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Noise around −10 with a louder band whose place and throbbing are the class's (1, 80, frames), float32."""
    log_mel = rng.normal(-10, 1.5, (1, 80, frames))
    low = 4 + kind * 72 // classes
    throb = 1 + np.sin(2 * np.pi * np.arange(frames) / (8 + 5 * kind) + rng.uniform(0, 6.28))
    log_mel[0, low : low + 6] += 4 * throb * rng.uniform(0.7, 1.3)
    return log_mel.astype(np.float32)


def class_embeddings(classes: int, dim: int) -> np.ndarray:
    """One direction a class (classes, dim)."""
    return np.random.default_rng(99).normal(size=(classes, dim))


def write_store(folder: Path, captions: pa.Table, embeddings: np.ndarray) -> None:
    """A finished store of ``embeddings`` (N, D), float16, for the rows of ``captions``."""
    index = index_of(captions)
    writer = EmbeddingStoreWriter(folder, index, embeddings.shape[1], "float16", TEXT_MODEL)
    rows = np.arange(len(embeddings))
    writer.write_shard(rows, embeddings.astype(np.float16), rows)
    writer.finish({})


def make_data_directory(
    root: Path, *, clips: int = 24, classes: int = 4, dim: int = 16, frames: int = 240, captions_per_clip: int = 2
) -> Path:
    """``clips`` log-mels of ``classes`` kinds in turn, named clip_<n>_<kind>, each with some captions in one store."""
    rng = np.random.default_rng(7)
    directions = class_embeddings(classes, dim)
    names, rows, vectors = [], [], []
    (root / "made_lms").mkdir(parents=True)
    for clip in range(clips):
        kind = clip % classes
        stem = f"clip{clip:04d}-{kind}"
        write_array(root / "made_lms" / f"{stem}.npy", class_log_mel(kind, classes, frames, rng), durable=False)
        names.append(f"made_lms/{stem}.npy")
        for number in range(captions_per_clip):
            rows.append((stem, f"kind {kind}, said in way {number}", "made", number, None, [f"kind_{kind}"]))
            vectors.append(directions[kind] + rng.normal(scale=0.3, size=dim))
    table = pa.Table.from_pylist(
        [dict(zip(CAPTIONS_SCHEMA.names, row, strict=True)) for row in rows], schema=CAPTIONS_SCHEMA
    )
    write_file_list(root / "files_made.csv", names)
    write_captions(root / "captions.parquet", table)
    write_store(root / "capemb_made", table, np.array(vectors))
    write_json(root / "norm_stats.json", {"mean": -9.5, "std": 2.5})
    return root


@pytest.fixture(scope="session")
def make_data() -> MakeData:
    return make_data_directory


@pytest.fixture(scope="session")
def make_log_mel() -> Callable[..., np.ndarray]:
    return class_log_mel


@pytest.fixture(scope="session")
def class_directions() -> np.ndarray:
    """What the captions of the four classes of `make_data` point to (4, 16)."""
    return class_embeddings(4, 16)
