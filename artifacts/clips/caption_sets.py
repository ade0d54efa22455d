"""The sets of captions that `captions add` reads, one entry each: files, columns, ids, and how to know them.

The options of the command with their help, the errors for a wrong file and the readers of plain tables follow from
this table. It needs no library, so that help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO_ACD, ACALT4, LABEL = "auto_acd", "acalt4", "label"

# Forms of ids that hold a YouTube id of eleven characters (`captions.sources.id_forms`), in the order of trying.
SECONDS, HUNDREDTHS, DURATION, MILLISECONDS, LETTER_Y, BARE = (
    "id_seconds",
    "id_hundredths",
    "id_duration",
    "id_milliseconds",
    "Yid",
    "id",
)
ID_FORMS = (SECONDS, HUNDREDTHS, DURATION, MILLISECONDS, LETTER_Y, BARE)

# Containers, as they are recognised by content.
CSV, TSV, ROWS, JSON_LIST, JSON_OBJECT, JSON_LINES = (
    "a CSV table with a header",
    "a table with tabs",
    "a CSV table without a header",
    "a list in JSON",
    "an object in JSON",
    "JSON lines",
)
PARQUET, ARCHIVE, FOLDER, TEXT = "a Parquet file", "an archive", "a folder", "text"


@dataclass(frozen=True)
class Kind:
    """A kind of source. ``name`` is the option without dashes, and the default name of the source.

    ``title`` is the set's name, ``files`` what is published, ``ids`` and ``row`` what a row's id and texts are, and
    ``address`` where the set is found. ``needs`` are the columns or keys by which its files are known. For tables that
    need no reader of their own, ``id_column`` and ``caption_columns`` are read. ``forms`` are the forms of its ids; an
    id in none of them is taken as it is, and the number of these is reported.
    """

    name: str
    title: str
    files: str
    ids: str
    row: str
    address: str = ""
    container: str = CSV
    needs: tuple[str, ...] = ()
    id_column: str = ""
    caption_columns: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    for_audioset: bool = False
    needs_name: bool = False
    takes_id_column: bool = False
    takes_caption_columns: bool = False
    makes_captions_of_labels: bool = False
    needs_label_names: bool = False

    @property
    def option(self) -> str:
        """The option of the command."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The help of the option."""
        return f"Read {self.title}: {self.files}."

    @property
    def is_plain(self) -> bool:
        """Whether it is a table that is read by the names of its columns alone."""
        return bool(self.id_column)


ENTRIES = (
    Kind(
        ACALT4,
        "ACalt4",
        "a table youtube_id,caption1,…,caption4",
        "YouTube ids",
        "four captions",
        "https://github.com/nttcslab/m2d",
        needs=("youtube_id", "caption1", "caption2", "caption3", "caption4"),
        id_column="youtube_id",
        caption_columns=("caption1", "caption2", "caption3", "caption4"),
        for_audioset=True,
    ),
    Kind(
        "acavcaps",
        "ACAVCaps",
        "JSON lines with texts long, short, speech, music, sound, environment",
        "`<id>_<s>_<cc>_<s>_<cc>`, start and end in seconds and hundredths; kept, since they tell clips apart",
        "the texts long and short; `--caption-column` names others",
        "https://arxiv.org/abs/2603.24038",
        container=JSON_LINES,
        needs=("long|short",),
        forms=(HUNDREDTHS,),
        takes_caption_columns=True,
    ),
    Kind(
        "af_audioset",
        "AF-AudioSet or AudioSkills",
        "a JSON list of entries with an id and a caption, or a conversation",
        "`Y<id>`, from ytid, youtube_id, audio_id, sound or id, the first that is there",
        "caption, captions or output, else the first answer of the conversation; up to three rows per clip",
        "https://github.com/NVIDIA/audio-flamingo",
        container=JSON_LIST,
        needs=("caption|captions|output|conversations", "ytid|youtube_id|audio_id|sound|id"),
        forms=(SECONDS, LETTER_Y, BARE),
    ),
    Kind(
        "audiocaps",
        "AudioCaps 1 or 2.0",
        "train.csv, val.csv or test.csv: audiocap_id,youtube_id,start_time,caption",
        "YouTube ids, never audiocap_id",
        "a caption; one row per clip in train, five in val and test",
        "https://github.com/cdjkim/audiocaps",
        needs=("audiocap_id", "youtube_id", "start_time", "caption"),
        id_column="youtube_id",
        caption_columns=("caption",),
        forms=(LETTER_Y, BARE),
    ),
    Kind(
        "audioset_strong",
        "AudioSet's strong labels",
        "audioset_train_strong.tsv or audioset_eval_strong.tsv: segment_id, start, end, label; needs --ontology",
        "`<id>_<start in milliseconds>`, which are the clips of AudioSet",
        "a sentence of the different labels, in the order in which they begin",
        "https://research.google.com/audioset/download_strong.html",
        container=TSV,
        needs=("segment_id", "label"),
        forms=(MILLISECONDS,),
        makes_captions_of_labels=True,
        needs_label_names=True,
    ),
    Kind(
        "audiosetcaps",
        "AudioSetCaps",
        "AudioSetCaps_caption.csv, VGGSound_… or YouTube-8M_…: id,caption",
        "`Y<id>` (AudioSet), `<id>_<6 digits>` (VGGSound), `<id>_<start>_<duration>` (YouTube-8M)",
        "a caption",
        "https://huggingface.co/datasets/baijs/AudioSetCaps",
        needs=("id", "caption"),
        id_column="id",
        caption_columns=("caption",),
        forms=(SECONDS, DURATION, LETTER_Y),
    ),
    Kind(
        AUTO_ACD,
        "Auto-ACD",
        "train.csv: youtube_id,caption",
        "`Y<id>` (AudioSet), `<id>_<6 digits>` (VGGSound)",
        "a caption",
        "https://huggingface.co/datasets/Loie/Auto-ACD",
        needs=("youtube_id", "caption"),
        id_column="youtube_id",
        caption_columns=("caption",),
        for_audioset=True,
    ),
    Kind(
        "clotho",
        "Clotho",
        "clotho_captions_….csv: file_name,caption_1,…,caption_5, UTF-8 or ISO-8859-1 (Windows-1252)",
        "names of the files; `:` and `?` are `_` as there",
        "five captions",
        "https://zenodo.org/records/4783391",
        needs=("file_name", "caption_1", "caption_2", "caption_3", "caption_4", "caption_5"),
    ),
    Kind(
        "fusionaudio",
        "FusionAudio-1.2M",
        "a JSON list of audio_id, instruction, input, dataset, task, output",
        "`<id>_<6 digits>` (VGGSound; if the file means milliseconds by them: `--id-form id_milliseconds`), `Y<id>`, "
        "`<id>`",
        "output, where task says caption or nothing; rows of other tasks are left out and counted",
        container=JSON_LIST,
        needs=("audio_id", "instruction", "output"),
        forms=(SECONDS, MILLISECONDS, LETTER_Y, BARE),
    ),
    Kind(
        "laion",
        "LAION's form",
        "a folder with a JSON file per clip",
        "paths of the files in the folder",
        "the key text; `--caption-column` names others, such as text_augment_all",
        "https://github.com/LAION-AI/audio-dataset",
        container=FOLDER,
        needs=("*.json",),
        takes_caption_columns=True,
    ),
    Kind(
        "musiccaps",
        "MusicCaps",
        "musiccaps-public.csv: ytid,start_s,end_s,…,caption",
        "YouTube ids, of clips of AudioSet",
        "a caption",
        "https://huggingface.co/datasets/google/MusicCaps",
        needs=("ytid", "start_s", "end_s", "caption"),
        id_column="ytid",
        caption_columns=("caption",),
        forms=(LETTER_Y, BARE),
    ),
    Kind(
        "sound_vecaps",
        "Sound-VECaps",
        "Sound-VECaps_full.csv or Sound-VECaps_audio.csv: id,caption",
        "`Y<id>`",
        "a caption",
        "https://zenodo.org/records/12606207",
        needs=("id", "caption"),
        id_column="id",
        caption_columns=("caption",),
        forms=(LETTER_Y,),
    ),
    Kind(
        "vggsound",
        "VGGSound",
        "vggsound.csv, which has no header: YouTube id, start second, label, split",
        "`<id>_<6 digits>`, made of both: the start is a part of the clip's identity",
        "a sentence of the label",
        "https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
        container=ROWS,
        needs=("youtube id", "start", "label", "split"),
        makes_captions_of_labels=True,
    ),
    Kind(
        "wavcaps",
        "WavCaps",
        "the JSON file of a part (FreeSound, BBC, SoundBible, AudioSet_SL)",
        "`FreeSound/<id>`, `BBC_Sound_Effects/<id>`, `SoundBible/<id>`; YouTube ids for AudioSet_SL",
        "a caption",
        "https://huggingface.co/datasets/cvssp/WavCaps",
        container=JSON_OBJECT,
        needs=("data",),
    ),
    Kind(
        "txt",
        "a folder of sounds",
        "with a .txt file beside each",
        "paths of the sounds in the folder",
        "the text of the file, one caption",
        container=FOLDER,
        needs=("*.txt",),
    ),
    Kind(
        "webdataset",
        "shards of a WebDataset",
        ".tar (also compressed by gzip, bzip2 or xz) or .zip files, folders or patterns of them, with .txt or .json "
        "beside each sound",
        "the path of the sound in its shard, as `melspec` names its array; `--layout-from archive` puts the shard's "
        "path before it",
        "the .txt, and of the .json the key text, else caption; `--caption-column` names keys, or txt",
        container=ARCHIVE,
        takes_caption_columns=True,
    ),
    Kind(
        "csv",
        "any CSV table",
        "an id and one or more captions",
        "paths without an audio suffix, from the first column or `--id-column`",
        "the columns caption, captions, caption1, caption_1, …, or `--caption-column`",
        needs_name=True,
        takes_id_column=True,
        takes_caption_columns=True,
    ),
    Kind(
        "jsonl",
        "JSON lines",
        "an id and captions in every line",
        "paths without an audio suffix, from `--id-column`",
        "`--caption-column`: texts or lists of texts",
        container=JSON_LINES,
        needs_name=True,
        takes_id_column=True,
        takes_caption_columns=True,
    ),
    Kind(
        "parquet",
        "Parquet files",
        "an id and captions, also beside audio; files, folders or patterns of them",
        "paths without an audio suffix, from video_id, ytid, youtube_id, id, path, file_name, file, the path of the "
        "audio, or `--id-column`",
        "`--caption-column`, else caption, captions, caption1, … or text: texts or lists of texts",
        container=PARQUET,
        needs_name=True,
        takes_id_column=True,
        takes_caption_columns=True,
    ),
)
KINDS = {kind.name: kind for kind in ENTRIES}
