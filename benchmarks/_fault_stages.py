"""The stages that are killed and disturbed, as data: the files before, the command, and the files to compare.

Everything is tiny: ten sounds of a third of a second, a text encoder of one layer, a model of one block.
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from _fault_world import CLIPS, RATE

LMS, STORE = "data/audioset_lms", "data/capemb_tiny"
FILLED, CAPTIONS, OTHER = "data/filled.parquet", "data/captions.parquet", "other.parquet"
MELSPEC = f"melspec wavs {LMS} --workers 0 --min-seconds 0.5"
FILL = f"captions fill --segments segments.csv --ontology ontology.json --auto-acd auto_acd.csv -o {FILLED}"
EMBED = f"embed-captions {CAPTIONS} {STORE} --text-model encoder --device cpu --batch-tokens 16"
EMBED_FILLED = f"embed-captions {FILLED} capemb_filled --text-model encoder --device cpu"
KEYWORDS = f"captions keywords {FILLED} --keyword-model keyword_model --batch-size 1 --device cpu -o sentences.parquet"
ADD_MINE = "captions add --csv mine.csv --source mine -o other.parquet"
SOUNDS = "sound-set sounds --clips 4 --held-out 1 --workers 0"
PACK = f"pack {LMS} --clips-per-shard 3"
JUDGE = "--root data/audioset_lms --features kept --device cpu -o result.json"
TRAIN = "train data --output run --model tiny --config model.yaml --batch-size 4 --epochs 2 --save-steps 2 --keep 2"
TRAIN += " --device cpu"
FINE_TUNE = "fine-tune run labels.csv data --output tuned --recipe small --batch-size 4 --epochs 2 --frames 48"
FINE_TUNE += " --save-steps 2 --device cpu --loader-workers 0"
TAG = f"tag tuned {LMS} --window 0.25 --device cpu -o tags.jsonl"
JUDGE_TAGS = f"evaluate tagging tuned judged_tagging.csv --root {LMS} --device cpu -o judged_tags.json"
LISTEN = "--window 0.2 --hop 0.1 --device cpu --text-model encoder"
EVENTS = f"events tuned judged.tsv -o found --development known.tsv --clap run --clap-text-model encoder {LISTEN}"
EVENTS += " --pictures 1"
SCENES = f"scenes tuned places.csv -o placed {LISTEN}"
EMBED_AUDIO = "embed-audio run wavs sounds_emb --device cpu --workers 0"
SEARCH = "search sounds_emb rain --device cpu --json"
SHARDS = "export webdataset wavs shards"
# Times, places and processes may differ; everything else must be the same.
TEXT_IMPORTS = ("torch", "sentence_transformers", "m2dprep.workflows.embed_captions")
TAG_IMPORTS = (*TEXT_IMPORTS, "m2dprep.evaluation.tagging.evaluate", "m2dprep.evaluation.tagging.command")
LISTEN_IMPORTS = (*TEXT_IMPORTS, "m2dprep.cli.evaluation.events", "m2dprep.cli.evaluation.scenes", "matplotlib.figure")
EMBED_AUDIO_IMPORTS = (*TEXT_IMPORTS, "m2dprep.evaluation.embedding.command")
EXPORTS = ("torch", "m2dprep.evaluation.exporting", "m2dprep.evaluation.sharing.hub_folder")
FINE_TUNE_IMPORTS = ("torch._dynamo", "m2dprep.training.fine_tuning.run")
TRAIN_IMPORTS = ("torch._dynamo", "m2dprep.training.train")
NEVER_COMPARED = ("**/events.out.tfevents.*", "**/*.lock", "**/.lock")
Edit = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """No edit."""


@dataclass(frozen=True)
class Stage:
    """A command of m2dprep, run in a folder that holds the results of the stage ``after``.

    The commands of ``setup`` and the manual changes of ``edit`` come before it. ``again`` says whether the command may
    be repeated after it has succeeded (other commands refuse to replace their output). ``ignored`` are files that hold
    times. The output of a ``reads_only`` stage shows that nothing is missing. ``imports`` are modules that take seconds
    to import. ``weight`` is the share of trials. ``errors`` are the only ones tried, each for a moment. If they
    concern a sound, the command must get over them.

    ``replaces`` are patterns of the files that the command replaces. After an error, all files of a pattern must be the
    earlier ones, or all the new ones; after a kill, or if the command ``moves`` them, all must still be somewhere.
    """

    name: str
    command: str
    after: str = ""
    setup: tuple[str, ...] = ()
    edit: Edit = nothing
    again: bool = True
    ignored: tuple[str, ...] = ()
    reads_only: bool = False
    imports: tuple[str, ...] = ()
    weight: int = 4
    errors: tuple[tuple[str, int], ...] = ()
    replaces: tuple[str, ...] = ()
    moves: bool = False

    @property
    def arguments(self) -> list[str]:
        return self.command.split()


def _label_the_log_mels(folder: Path) -> None:
    """Two classes in turn."""
    names = [f"audioset_lms/{path.relative_to(folder / LMS)}" for path in sorted((folder / LMS).rglob("*.npy"))]
    rows = [f"{name},kind {number % 2}" for number, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["file_name,label", *rows, ""]))


def _break_a_sound(folder: Path) -> None:
    """Truncate one sound; `_mend_the_sound` restores it."""
    path = folder / "wavs/train 1" / f"Y{CLIPS[3]}.wav"
    shutil.copy2(path, folder / "whole.wav")
    path.write_bytes(path.read_bytes()[:40])


def _mend_the_sound(folder: Path) -> None:
    (folder / "whole.wav").replace(folder / "wavs/train 1" / f"Y{CLIPS[3]}.wav")


def _leave_only_the_pack(folder: Path) -> None:
    for path in (folder / LMS).rglob("Y*.npy"):
        path.unlink()


def _new_sounds(folder: Path) -> None:
    """Leave the arrays in the pack only, and add two sounds."""
    _leave_only_the_pack(folder)
    for number in range(2):
        shutil.copyfile(folder / "wavs/train 0" / f"Y{CLIPS[0]}.wav", folder / f"wavs/train 0/Ynew{number:08d}.wav")


def _another_format(folder: Path) -> None:
    """Put a FLAC file with another sound in the place of one recording."""
    (folder / "wavs/train 1" / f"Y{CLIPS[3]}.wav").unlink()
    sound = np.random.default_rng(9).uniform(-0.5, 0.5, RATE // 3)
    soundfile.write(folder / "wavs/train 1" / f"Y{CLIPS[3]}.flac", sound, RATE)


def _broken_format(folder: Path) -> None:
    _another_format(folder)
    path = folder / "wavs/train 1" / f"Y{CLIPS[3]}.flac"
    path.write_bytes(path.read_bytes()[:40])


def _another_length(folder: Path) -> None:
    recipe = folder / "light.yaml"
    recipe.write_text(recipe.read_text().replace("min_seconds: 0.5", "min_seconds: 0.6"))


def _short_list(folder: Path) -> None:
    lines = (folder / "data/files_audioset.csv").read_text().splitlines(keepends=True)
    (folder / "data/some.csv").write_text("".join(lines[:4]))


def _two_tasks(folder: Path) -> None:
    """Two tasks on the same sounds: the second has labels with words of their own, and other splits."""
    (folder / "tasks").mkdir()
    rule = "  names: '(?P<part>[^/]+)/[^/]+'\n  label: \"{part}\"\n"
    words = "  label_names: {table: words.csv, label: label, name: name}\n"
    (folder / "wavs/words.csv").write_text("label,name\ntrain 0,a bark\ntrain 1,a horn\n")
    (folder / "tasks/first.yaml").write_text(f"name: first\nmetadata:\n{rule}{words}")
    (folder / "tasks/second.yaml").write_text(f'name: second\nmetadata:\n{rule}  group: "{{path}}"\n')


def _clips_to_judge(folder: Path) -> None:
    """Tables of the converted clips, with two classes and splits, and with captions."""
    clips = sorted(path.relative_to(folder / LMS).as_posix() for path in (folder / LMS).rglob("Y*.npy"))
    rows = [f"{clip},{'dog' if row % 2 else 'horn'},{'test' if row > 5 else 'train'}" for row, clip in enumerate(clips)]
    for protocol in ("zero-shot", "linear"):
        (folder / f"judged_{protocol}.csv").write_text("\n".join(["file_name,label,split", *rows]) + "\n")
    said = [f"{clip},a {'dog' if row % 2 else 'horn'} number {row}" for row, clip in enumerate(clips)]
    (folder / "judged_retrieval.csv").write_text("\n".join(["file_name,caption", *said]) + "\n")


def _clips_to_tag(folder: Path) -> None:
    """A table of the converted clips with the labels that the classifier has learned."""
    clips = sorted(path.relative_to(folder / LMS).as_posix() for path in (folder / LMS).rglob("Y*.npy"))
    rows = [f"{clip},kind {row % 2}" for row, clip in enumerate(clips)]
    (folder / "judged_tagging.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")


def _events_and_places(folder: Path) -> None:
    """Lists of events of the recordings, those to judge and others, and where each was made."""
    sounds = sorted(path.relative_to(folder).as_posix() for path in (folder / "wavs").rglob("*.wav"))
    for name, own in (("judged.tsv", sounds[:6]), ("known.tsv", sounds[6:])):
        lines = [f"{sound}\t0.1\t0.2\t{'bark' if row % 2 else 'horn'}" for row, sound in enumerate(own)]
        (folder / name).write_text("\n".join([*lines, ""]))
    rows = [f"{sound},{'street' if row % 2 else 'park'}" for row, sound in enumerate(sounds)]
    (folder / "places.csv").write_text("\n".join(["file_name,label", *rows, ""]))


def _run_in_data(folder: Path) -> None:
    (folder / "run").rename(folder / "data/run")


ARRAYS, PACKED = f"{LMS}/*.npy", f"{LMS}/_packed/*"
REFUSED = (("open", errno.EACCES), ("stat", errno.EACCES))
# A recipe's state and logs.
TIMED = ("data/_recipe/**",)
# What was heard lies in files of those sounds that were heard together.
HEARD = ("found/heard/**", "placed/heard/**", "*/lock", "found/heard/*/lock", "placed/heard/*/lock")
FOUND = ("found/*.tsv", "found/*.csv", "found/pictures/*", "found/report.html", "found/result.json")
PLACED = ("placed/*.csv", "placed/report.html", "placed/result.json")
OVER = " --overwrite"

STAGES = (
    Stage("melspec", MELSPEC, weight=6),
    Stage("melspec, refused permission", MELSPEC, errors=REFUSED),
    Stage("broken melspec", MELSPEC + " --max-failures 100%", edit=_break_a_sound, weight=0),
    Stage("melspec --retry-failed", MELSPEC + " --retry-failed", after="broken melspec", edit=_mend_the_sound),
    Stage("melspec, taken over", MELSPEC, after="melspec", edit=_another_format, replaces=(ARRAYS,)),
    Stage(
        "melspec, not taken over",
        MELSPEC + " --max-failures 100%",
        after="melspec",
        edit=_broken_format,
        replaces=(ARRAYS,),
    ),
    Stage(
        "melspec --overwrite",
        MELSPEC + OVER,
        setup=(MELSPEC + " --dtype float16",),
        replaces=(ARRAYS,),
        moves=True,
    ),
    Stage(
        "melspec --overwrite, rotten",
        MELSPEC + OVER + " --max-failures 100%",
        after="melspec",
        edit=_break_a_sound,
        replaces=(ARRAYS,),
        moves=True,
    ),
    Stage(
        "melspec --overwrite, set aside",
        MELSPEC + " --dtype float16 --overwrite --max-failures 100%",
        after="melspec",
        edit=_break_a_sound,
        replaces=(ARRAYS,),
        moves=True,
    ),
    Stage("pack", PACK, after="melspec", weight=6),
    Stage("melspec, packed", MELSPEC, after="pack", edit=_new_sounds),
    Stage("pack --overwrite", PACK + " --dtype float32 --overwrite", after="pack", replaces=(PACKED,)),
    Stage("unpack", f"unpack {LMS}", after="pack --overwrite", edit=_leave_only_the_pack, weight=6, replaces=(PACKED,)),
    Stage("stats", f"stats {LMS}", after="melspec"),
    Stage("stats --recompute", f"stats {LMS} --recompute", after="melspec"),
    Stage(
        "stats -o",
        f"stats {LMS} --files data/some.csv -o stats.json",
        after="melspec",
        setup=(f"stats {LMS} -o stats.json",),
        edit=_short_list,
        replaces=("stats.json",),
    ),
    Stage("captions fill", FILL, after="stats"),
    Stage(
        "captions fill --overwrite", FILL + " --template laion --overwrite", after="captions fill", replaces=(FILLED,)
    ),
    Stage("captions add", f"captions add {FILLED} --acalt4 acalt4.csv -o {CAPTIONS}", after="captions fill"),
    Stage(
        "captions add --overwrite",
        f"captions add {FILLED} --csv mine_new.csv --source mine -o {CAPTIONS} --overwrite",
        after="captions add",
        replaces=(CAPTIONS,),
    ),
    Stage(
        "captions merge",
        f"captions merge {FILLED} {OTHER} -o merged.parquet",
        after="captions fill",
        setup=(ADD_MINE,),
    ),
    Stage(
        "captions merge --overwrite",
        f"captions merge {FILLED} {OTHER} -o merged.parquet --overwrite",
        after="captions fill",
        setup=(ADD_MINE, f"captions merge {OTHER} -o merged.parquet"),
        replaces=("merged.parquet",),
    ),
    Stage(
        "captions exclude-list --overwrite",
        "captions exclude-list mine_new.csv -o excluded.csv --overwrite",
        after="captions fill",
        setup=("captions exclude-list mine.csv -o excluded.csv",),
        replaces=("excluded.csv",),
    ),
    Stage(
        "captions join-lists --overwrite",
        "captions join-lists data/files_audioset.csv --exclude mine_new.csv -o joined.csv --overwrite",
        after="captions fill",
        setup=("captions join-lists data/files_audioset.csv -o joined.csv",),
        replaces=("joined.csv*",),
    ),
    Stage(
        "captions weights --overwrite",
        f"captions weights data/files_audioset.csv {FILLED} --added 100 -o weighted.csv --overwrite",
        after="captions fill",
        setup=(f"captions weights data/files_audioset.csv {FILLED} -o weighted.csv",),
        replaces=("weighted.csv*",),
    ),
    Stage(
        "captions check", f"captions check {CAPTIONS} --drop near_duplicate -o checked.parquet", after="captions add"
    ),
    Stage(
        "captions check --overwrite",
        f"captions check {CAPTIONS} --drop near_duplicate -o checked.parquet --overwrite",
        after="captions add",
        setup=(f"captions check {FILLED} --drop near_duplicate -o checked.parquet",),
        replaces=("checked.parquet",),
    ),
    Stage(
        "captions training-list",
        f"captions training-list data/files_audioset.csv {FILLED} --exclude mine_new.csv",
        after="captions fill",
    ),
    Stage(
        "captions training-list --overwrite",
        f"captions training-list data/files_audioset.csv {FILLED} --exclude mine_new.csv --overwrite",
        after="captions fill",
        setup=(f"captions training-list data/files_audioset.csv {FILLED}",),
        replaces=("data/train_audioset.csv*",),
    ),
    Stage(
        "captions keywords --overwrite",
        KEYWORDS + OVER + " --separator and",
        after="captions fill",
        setup=(KEYWORDS,),
        imports=("m2dprep.captions.keywords",),
        replaces=("sentences.parquet", "sentences.parquet.keywords/*"),
    ),
    Stage("embed-captions", EMBED, after="captions add", imports=TEXT_IMPORTS, weight=6),
    Stage(
        "embed-captions --overwrite",
        EMBED + " --overwrite --dtype float32",
        after="embed-captions",
        imports=TEXT_IMPORTS,
        replaces=(f"{STORE}/*",),
    ),
    Stage("embeddings export m2d", f"embeddings export m2d {STORE} m2d.npy", after="embed-captions", again=False),
    Stage(
        "embeddings export m2d --overwrite",
        f"embeddings export m2d {STORE} m2d.npy --overwrite",
        after="embed-captions",
        setup=(EMBED_FILLED, "embeddings export m2d capemb_filled m2d.npy"),
        replaces=("m2d.npy*",),
    ),
    Stage(
        "embeddings export parquet",
        f"embeddings export parquet {STORE} embeddings.parquet",
        after="embed-captions",
        again=False,
    ),
    Stage(
        "embeddings export parquet --overwrite",
        f"embeddings export parquet {STORE} embeddings.parquet --overwrite",
        after="embed-captions",
        setup=(EMBED_FILLED, "embeddings export parquet capemb_filled embeddings.parquet"),
        replaces=("embeddings.parquet*",),
    ),
    Stage("embeddings import", "embeddings import m2d.npy data/capemb_m2d", after="embeddings export m2d"),
    Stage(
        "embeddings import --overwrite",
        f"embeddings import m2d.npy {STORE} --overwrite",
        after="embeddings export m2d",
        replaces=(f"{STORE}/*",),
    ),
    Stage("check", "check data --workers 0", after="embed-captions", reads_only=True),
    Stage("train", TRAIN + " --loader-workers 0", after="embed-captions", imports=TRAIN_IMPORTS, weight=5),
    Stage(
        "train --overwrite",
        TRAIN + " --loader-workers 0 --seed 1 --overwrite",
        after="train",
        imports=TRAIN_IMPORTS,
        replaces=("run/*.pth", "run/config.json", "run/earlier-run/*"),
        moves=True,
    ),
    Stage(
        "train, packed, 1 loader",
        TRAIN + " --loader-workers 1",
        after="embed-captions",
        setup=(PACK,),
        imports=TRAIN_IMPORTS,
        weight=2,
    ),
    Stage("fine-tune", FINE_TUNE, after="train", edit=_label_the_log_mels, imports=FINE_TUNE_IMPORTS, weight=2),
    Stage(
        "fine-tune --overwrite",
        FINE_TUNE + " --seed 1 --overwrite",
        after="fine-tune",
        imports=FINE_TUNE_IMPORTS,
        replaces=("tuned/*/*.pth", "tuned/config.json", "tuned/result.json"),
        moves=True,
        weight=2,
    ),
    Stage(
        "tag --overwrite",
        TAG + " --top 3 --overwrite",
        after="fine-tune",
        setup=(TAG,),
        imports=TAG_IMPORTS,
        replaces=("tags.jsonl*",),
    ),
    Stage(
        "evaluate tagging --overwrite",
        JUDGE_TAGS + " --overwrite",
        after="fine-tune",
        edit=_clips_to_tag,
        setup=(JUDGE_TAGS,),
        imports=TAG_IMPORTS,
        replaces=("judged_tags.json",),
    ),
    Stage("tag", TAG, after="fine-tune", imports=TAG_IMPORTS),
    *(
        Stage(
            name,
            command + more,
            after="fine-tune",
            edit=_events_and_places,
            setup=(command,) if more else (),
            ignored=HEARD,
            imports=LISTEN_IMPORTS,
            replaces=replaces if more else (),
            moves=True,
            weight=2,
        )
        for command, replaces, renamed in ((EVENTS, FOUND, "bark=dog"), (SCENES, PLACED, "park=wood"))
        for name, more in (
            (command.split()[0], ""),
            (f"{command.split()[0]}, another name", f" --name {renamed}"),
        )
    ),
    Stage("embed-audio", EMBED_AUDIO, after="train", imports=EMBED_AUDIO_IMPORTS),
    Stage("embed-audio, new sounds", EMBED_AUDIO, after="embed-audio", edit=_new_sounds, imports=EMBED_AUDIO_IMPORTS),
    Stage(
        "embed-audio --overwrite",
        EMBED_AUDIO + " --contents both --window 0.25 --overwrite",
        after="embed-audio",
        imports=EMBED_AUDIO_IMPORTS,
        replaces=("sounds_emb/*.npy", "sounds_emb/*.parquet", "sounds_emb/meta.json"),
        moves=True,
    ),
    Stage("search --index", f"{SEARCH} --index", after="embed-audio", imports=EMBED_AUDIO_IMPORTS, weight=2),
    *(
        Stage(
            f"export {kind}", f"export {kind} tuned {rest}", after="fine-tune", again=False, imports=EXPORTS, weight=2
        )
        for kind, rest in (
            ("hf", "shared --license mit"),
            ("portable", "portable"),
            ("checkpoint", "released --layout fine-tuned"),
        )
    ),
    Stage("export webdataset", SHARDS, after="captions fill", weight=2),
    Stage(
        "export webdataset --overwrite",
        SHARDS + f" --captions {FILLED} --clips-per-shard 4 --overwrite",
        after="export webdataset",
        replaces=("shards/*.tar", "shards/_export/state.json"),
        moves=True,
    ),
    Stage("check of a run", "check data --workers 0", after="train", edit=_run_in_data, reads_only=True),
    Stage(
        "evaluate prepare --overwrite",
        "evaluate prepare tasks/second.yaml wavs -o prepared --overwrite",
        edit=_two_tasks,
        setup=("evaluate prepare tasks/first.yaml wavs -o prepared",),
        replaces=("prepared/*.csv", "prepared/*.yaml", "prepared/*.json"),
    ),
    *(
        Stage(
            f"evaluate {protocol} --overwrite",
            f"{line} --overwrite",
            after="train",
            edit=_clips_to_judge,
            setup=(line,),
            imports=("m2dprep.evaluation.run", "m2dprep.evaluation.encoders"),
            replaces=("kept/*/*/*.npy", "kept/*/*/*.parquet", "kept/*/*/meta.json", "result.json"),
        )
        for protocol in ("zero-shot", "linear", "retrieval")
        for line in [f"evaluate {protocol} run judged_{protocol}.csv {JUDGE}"]
    ),
    Stage("sound-set --overwrite", SOUNDS + " --seed 1 --overwrite", setup=(SOUNDS,), replaces=("sounds/*",)),
    Stage("run recipe.yaml", "run recipe.yaml", ignored=TIMED, imports=TEXT_IMPORTS),
    Stage("run light.yaml", "run light.yaml", ignored=TIMED, weight=0),
    Stage(
        "run light.yaml --overwrite",
        "run light.yaml --overwrite",
        after="run light.yaml",
        edit=_another_length,
        ignored=TIMED,
        replaces=(ARRAYS, "data/norm_stats.json", FILLED),
        moves=True,
    ),
)


def in_small_parts() -> None:
    """Make ten clips fill several shards and parts of records; sounds and sentences are short."""
    from m2dprep.audioprep import convert
    from m2dprep.audioprep import pack as unpack
    from m2dprep.workflows import sound_set
    from m2dprep.workflows.melspec import job as melspec
    from m2dprep.workflows.melspec import results as record_buffer

    for module, name, value in (
        (melspec, "MAX_SHARD_SIZE", 3),
        (record_buffer, "PART_SECONDS", 0.0),
        (convert, "FILES_PER_SYNC", 2),
        (unpack, "ARRAYS_PER_SYNC", 4),
        (sound_set, "SECONDS", 0.25),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, value)
    if keywords := sys.modules.get("m2dprep.captions.keywords"):  # it imports torch
        keywords.DECODING["max_length"] = 8  # random weights hardly ever end a sentence
    if opening := sys.modules.get("m2dprep.evaluation.tagging.opening"):
        opening.SHARD_SOUNDS = 3
