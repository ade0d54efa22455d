"""Damage a data directory at random, one file at a time, and count how often `m2dprep check` reports it.

    python benchmarks/damage.py --damages 1000 --seed 0 --output benchmarks/results/damage.md

The directory is made here: two conversions (one packed in float16, one in float32 whose files came out of the pack),
statistics, captions, two embedding stores and what is exported of them, two runs of training. A damage is a flipped
bit, another byte, 128 or 4,096 bytes of zeros, a cut, appended bytes, or a file of the same kind in the place of
another. A damage that changes no byte is drawn again. "Told" means exit code 4, or 2 with the file's name.
Every damaged file is restored before the next damage.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from m2dprep.artifacts.embeddings.store import index_of
from m2dprep.artifacts.embeddings.writer import EmbeddingStoreWriter
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions
from m2dprep.audioprep.config import PRESETS, ConvertConfig
from m2dprep.audioprep.pack import pack, unpack
from m2dprep.audioprep.stats import norm_stats, write_norm_stats
from m2dprep.captions.embedding.export import export_dictionary, export_parquet
from m2dprep.cli.main import m2dprep
from m2dprep.m2dclap.config import ModelConfig
from m2dprep.training.config import DataChoice, RunOptions, TrainConfig
from m2dprep.training.train import train
from m2dprep.workflows.melspec.job import MelspecOptions, run_melspec

# Kinds of files, each with the patterns of its names.
KINDS = {
    "arrays, float32": "first_lms/*.npy",
    "arrays, from a pack in float16": "second_lms/*.npy",
    "pack shards, float16": "*_lms/_packed/*shard-*.npy",
    "pack index.parquet": "*_lms/_packed/*index.parquet",
    "pack meta.json": "*_lms/_packed/meta.json",
    "records-*.parquet": "*_lms/_melspec/records-*.parquet",
    "unpacked.parquet": "*_lms/_melspec/unpacked.parquet",
    "_melspec/config.json": "*_lms/_melspec/config.json",
    "_melspec/lists.json": "*_lms/_melspec/lists.json",
    "files_*.csv": "files_*.csv",
    "files_*.csv.xxh3": "files_*.csv.xxh3",
    "norm_stats.json": "norm_stats.json",
    "captions.parquet": "captions.parquet",
    "embeddings.npy": "capemb_*/embeddings.npy",
    "embedding index.parquet": "capemb_*/index.parquet",
    "embedding meta.json": "capemb_*/meta.json",
    "exported dictionaries": "exported_*.npy",
    "exported *.npy.xxh3": "exported_*.npy.xxh3",
    "exported tables": "exported_*.parquet",
    "checkpoints": "runs/*/m2d_clap_vit_*/checkpoint-*.pth",
    "config.json of runs": "runs/*/config.json",
    "train.yaml of runs": "runs/*/train.yaml",
    "train.yaml.xxh3": "runs/*/train.yaml.xxh3",
    "log.jsonl of runs": "runs/*/log.jsonl",
    "skipped.csv of runs": "runs/*/skipped.csv",
    "skipped.csv.xxh3": "runs/*/skipped.csv.xxh3",
}
CLIPS = 12
DIM = 32


def make_directory(root: Path, seed: int = 0) -> Path:
    """Make a complete data directory of small files in ``root / "data"``."""
    rng = np.random.default_rng(seed)
    data = root / "data"
    for number, name in enumerate(("first", "second")):
        (root / f"{name}_wavs").mkdir(parents=True)
        for clip in range(CLIPS):
            samples = 0.1 * rng.standard_normal(8000 + 160 * clip)
            soundfile.write(root / f"{name}_wavs" / f"{name}{clip:02}.wav", samples, 16000)
        config = ConvertConfig(PRESETS["16k"], min_seconds=0.5 + number / 8)
        run_melspec(root / f"{name}_wavs", data / f"{name}_lms", config, MelspecOptions(workers=0))
        pack(data / f"{name}_lms", clips_per_shard=5)
    for file in (data / "second_lms").glob("*.npy"):
        file.unlink()
    unpack(data / "second_lms")
    write_norm_stats(data / "norm_stats.json", norm_stats(data / "first_lms"))
    rows = [
        {
            "clip_id": f"{name}{clip:02}",
            "caption": f"the sound number {index} of {name} {clip}",
            "source": "made",
            "caption_index": index,
            "split": None,
            "labels": ["a", "b"],
        }
        for name in ("first", "second")
        for clip in range(CLIPS)
        for index in range(2)
    ]
    write_captions(data / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    index = index_of(read_captions(data / "captions.parquet"))
    for name in ("one", "two"):
        with EmbeddingStoreWriter(data / f"capemb_{name}", index, DIM, "float16", {"model": name}) as writer:
            places = np.arange(index.num_rows)
            writer.write_shard(places, rng.standard_normal((len(places), DIM)), places)
            writer.finish({})
        export_dictionary(data / f"capemb_{name}", data / f"exported_{name}.npy")
        export_parquet(data / f"capemb_{name}", data / f"exported_{name}.parquet")
    _make_siblings(root / "siblings", data)
    for seed, size in enumerate((32, 48)):
        _train(data, data / "runs" / f"of_{size}", size, seed)
    return data


def _train(data: Path, run: Path, size: int, seed: int) -> None:
    """A finished run with two checkpoints of a very small model."""
    model = ModelConfig(
        input_size=(80, 48),
        embed_dim=size,
        depth=1,
        num_heads=2,
        decoder_embed_dim=size // 2,
        decoder_depth=1,
        decoder_num_heads=2,
        off_emb_dim=DIM,
    )
    config = TrainConfig(epochs=2, batch_size=6, warmup_epochs=1, seed=seed)
    choice = DataChoice(data, file_lists=(data / "files_first.csv",), stores=(data / "capemb_one",))
    train(choice, run, model, config, RunOptions("tiny", log_every=1))


def _make_siblings(folder: Path, data: Path) -> None:
    """Files from another directory, of the kinds that the directory has only once."""
    folder.mkdir()
    rows = read_captions(data / "captions.parquet").to_pylist()
    for row in rows:
        row["caption"] += ", once more"
    write_captions(folder / "captions.parquet", pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA))
    config = ConvertConfig(PRESETS["16k"], min_seconds=0.5)
    run_melspec(data.parent / "second_wavs", folder / "first_lms", config, MelspecOptions(workers=0))
    write_norm_stats(folder / "norm_stats.json", norm_stats(folder / "first_lms"))


@dataclass(frozen=True)
class Damage:
    """A way to damage the bytes of a file."""

    name: str
    apply: Callable[[bytes, np.random.Generator], bytes]


def _at(content: bytes, rng: np.random.Generator, change: Callable[[int], int]) -> bytes:
    place = int(rng.integers(len(content)))
    return content[:place] + bytes([change(content[place])]) + content[place + 1 :]


def _zeros(size: int) -> Callable[[bytes, np.random.Generator], bytes]:
    def zero(content: bytes, rng: np.random.Generator) -> bytes:
        start = int(rng.integers(max(1, len(content) - size + 1)))
        return content[:start] + bytes(min(size, len(content) - start)) + content[start + size :]

    return zero


DAMAGES = (
    Damage("bit", lambda content, rng: _at(content, rng, lambda byte: byte ^ (1 << int(rng.integers(8))))),
    Damage("byte", lambda content, rng: _at(content, rng, lambda byte: int(rng.integers(256)))),
    Damage("128 zeros", _zeros(128)),
    Damage("4,096 zeros", _zeros(4096)),
    Damage("cut", lambda content, rng: content[: int(rng.integers(len(content)))]),
    Damage("appended", lambda content, rng: content + rng.bytes(int(rng.integers(1, 64)))),
)
SWAPPED = "swapped"


@dataclass(frozen=True)
class Outcome:
    """The result of `check` for one damage: ``told``, ``unseen``, or ``traceback``."""

    kind: str
    damage: str
    file: str
    verdict: str
    output: str = ""


def run_damages(root: Path, damages: int, seed: int) -> Iterator[Outcome]:
    """Damage the directory that `make_directory` made in ``root``, ``damages`` times, through all kinds and ways."""
    data = root / "data"
    rng = np.random.default_rng(seed)
    files = {kind: sorted(data.glob(pattern)) for kind, pattern in KINDS.items()}
    assert all(files.values()), [kind for kind in files if not files[kind]]
    ways = [*(damage.name for damage in DAMAGES), SWAPPED]
    for number in range(damages):
        kind = list(KINDS)[number % len(KINDS)]
        way = ways[(number // len(KINDS)) % len(ways)]
        file = files[kind][int(rng.integers(len(files[kind])))]
        before = file.read_bytes()
        after = _damaged(before, way, file, files[kind], root / "siblings", rng)
        try:
            file.write_bytes(after)
            yield Outcome(kind, way, file.relative_to(data).as_posix(), *verdict(data, file))
        finally:
            file.write_bytes(before)


def _damaged(before: bytes, way: str, file: Path, alike: list[Path], siblings: Path, rng: np.random.Generator) -> bytes:
    after = before
    for _ in range(100):
        if way == SWAPPED:
            others = [path for path in (*alike, siblings / file.name) if path != file and path.exists()]
            after = others[int(rng.integers(len(others)))].read_bytes() if others else before
        else:
            after = next(damage for damage in DAMAGES if damage.name == way).apply(before, rng)
        if after != before:
            return after
        if way == SWAPPED:  # no other file differs
            way = "bit"
    raise RuntimeError(f"{file} could not be damaged by {way}")


def verdict(data: Path, file: Path) -> tuple[str, str]:
    """The result of `m2dprep check` on the directory."""
    result = CliRunner().invoke(m2dprep, ["check", str(data), "--workers", "0"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", repr(result.exception)
    told = result.exit_code == 4 or (result.exit_code == 2 and file.name in result.output)
    return ("told" if told else "unseen"), result.output


def table(outcomes: list[Outcome]) -> str:
    """The counts for every kind of file, then every damage that was not told."""
    lines = ["| file | damages | told | unseen | tracebacks |", "|---|---|---|---|---|"]
    for kind in (*KINDS, None):
        counts = Counter(outcome.verdict for outcome in outcomes if kind in (None, outcome.kind))
        row = (counts.total(), counts["told"], counts["unseen"], counts["traceback"])
        lines.append(f"| {kind or '**all**'} | {' | '.join(f'{count:,}' for count in row)} |")
    lines += [
        f"\n{outcome.verdict}: {outcome.damage} in {outcome.file}: {outcome.output.strip()[:500]}"
        for outcome in outcomes
        if outcome.verdict != "told"
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", "-o", type=Path, help="write the table there as well")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="m2dprep-damage-"))
    try:
        make_directory(root)
        clean = verdict(root / "data", root)
        if clean[0] != "unseen":
            raise SystemExit(f"the whole directory is said to be damaged: {clean[1]}")
        outcomes = list(run_damages(root, options.damages, options.seed))
        if verdict(root / "data", root)[0] != "unseen":
            raise SystemExit("the directory was not put back as it was")
    finally:
        shutil.rmtree(root)
    text = table(outcomes)
    print(text)
    if options.output is not None:
        command = f"python benchmarks/damage.py --damages {options.damages} --seed {options.seed}"
        options.output.write_text(f"# What `m2dprep check` tells of random damage\n\n`{command}`\n\n{text}\n")
    raise SystemExit(any(outcome.verdict != "told" for outcome in outcomes))


if __name__ == "__main__":
    main()
