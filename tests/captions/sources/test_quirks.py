"""The quirks of real tables, one per row, and their results. Readable as documentation of `captions fill`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2dprep.artifacts.tables import read_captions
from m2dprep.captions.assembly import Coverage
from m2dprep.captions.files import add_file, fill_file
from m2dprep.captions.sources.readers import ACALT4, read_acalt4

LABELS = {
    "/m/09x0r": "Speech",
    "/m/05zppz": "Male speech, man speaking",  # commas belong to names
    "/m/068hy": "Domestic animals, pets",
    "/m/0bt9lr": "Dog",
    "/t/dd00003": "Grunt (sound)",  # so do parentheses
}
# (id, start, labels, the text in the list if it differs from these, why)
SEGMENTS = [
    ("-aaaaaaaaaa", "30.000", "/m/09x0r"),
    ("--bbbbbbbbb", "0.000", "/m/0bt9lr,/m/068hy"),
    ("YXqu1CeA2c4", "40.000", "/m/05zppz,/m/0bt9lr,/t/dd00003"),
    ("Xqu1CeA2c4_", "10.000", "/m/09x0r"),
    ("mAJAqzo-Y_Y", "10.000", "/m/09x0r"),
    ("dup_caption", "10.000", "/m/09x0r"),
    ("vggsound_10", "10.000", "/m/09x0r"),
    ("vggsound_20", "20.000", "/m/09x0r"),
    ("vgg_and_aud", "20.000", "/m/09x0r"),
    ("emptycaptio", "10.000", "/m/09x0r"),
    ("emptythenok", "10.000", "/m/09x0r"),
    ("wrapped_one", "10.000", "/m/09x0r"),
    ("wrapnoclose", "10.000", "/m/09x0r"),
    ("wrapcurly__", "10.000", "/m/09x0r"),
    ("wrapnewline", "10.000", "/m/09x0r"),
    ("wrapinquote", "10.000", "/m/09x0r"),
    ("wrapchatter", "10.000", "/m/09x0r"),
    ("wrapempty__", "10.000", "/m/09x0r"),
    ("wrapnoquote", "10.000", "/m/09x0r"),
    ("couldbetext", "10.000", "/m/09x0r"),
    ("quotedspeec", "10.000", "/m/09x0r"),
    ("whitespace_", "10.000", "/m/09x0r"),
    ("commas_____", "10.000", "/m/09x0r"),
    ("linebreak__", "10.000", "/m/09x0r"),
    ("emoji______", "10.000", "/m/09x0r"),
    ("onelabelunk", "10.000", "/m/unknown,/m/0bt9lr"),
    ("alllabelunk", "10.000", "/m/unknown"),
    ("unkbutcapti", "10.000", "/m/unknown"),
    ("bareid_____", "10.000", "/m/09x0r"),
    ("nolabels___", "10.000", ""),
]

# Auto-ACD's rows as they stand in the file.
AUTO_ACD = [
    ("Y-aaaaaaaaaa", "A woman talks."),
    ("YXqu1CeA2c4_000044", "A man speaks."),
    ("YmAJAqzo-Y_Y", "Wind blows."),
    ("Ydup_caption", "The first one."),
    ("Ydup_caption", "The second one."),
    ("vggsound_10_000099", "Another second of the video."),
    ("vggsound_10_000010", "The same second."),
    ("vggsound_20_000099", "Only another second."),
    ("vgg_and_aud_000020", "From VGGSound."),
    ("Yvgg_and_aud", "From AudioSet."),
    ("Yemptycaptio", "   "),
    ("Yemptythenok", ""),
    ("Yemptythenok", "The one with text."),
    ("Ywrapped_one", 'The audio caption for the given information could be: "A dog barks."'),
    ("Ywrapnoclose", 'The audio caption could be: "A dog barks.'),
    ("Ywrapcurly__", "The caption could be: “A dog barks.”"),
    ("Ywrapnewline", 'The audio caption could be:\n\n"A dog barks."'),
    ("Ywrapinquote", 'The caption could be: "A man shouts "stop" twice."'),
    ("Ywrapchatter", 'It could be: "A dog barks." This caption tells what is heard.'),
    ("Ywrapempty__", 'The caption could be: ""'),
    ("Ywrapnoquote", "The audio caption could be: A dog barks."),
    ("Ycouldbetext", "A noise which could be: a dog."),
    ("Yquotedspeec", '"Hello," says a man.'),
    ("Ywhitespace_", " A\u00a0dog \t barks\u200b . "),
    ("Ycommas_____", "A dog barks, a man speaks, and wind blows."),
    ("Ylinebreak__", "A dog\nbarks."),
    ("Yemoji______", "A 🐕 barks – loudly."),
    ("Yunkbutcapti", "A caption without a known label."),
    ("bareid_____", "An id without its Y."),
    ("Ynosegment__", "A clip that is not in AudioSet."),
    ("", "A caption without an id."),
]

DOG = "A dog barks."
SPEECH = "The sound of Speech."
# clip: (caption, source), in the order of the segments
EXPECTED = {
    "-aaaaaaaaaa": ("A woman talks.", "auto_acd"),
    "--bbbbbbbbb": ("The sound of Dog, and Domestic animals, pets.", "label"),  # two labels: "A, and B", CSV order
    # VGGSound's id keeps its Y; the original stripped it, lost the caption, and gave it to the next clip
    "YXqu1CeA2c4": ("A man speaks.", "auto_acd"),
    "Xqu1CeA2c4_": (SPEECH, "label"),
    "mAJAqzo-Y_Y": ("Wind blows.", "auto_acd"),  # an AudioSet id may hold "_"
    "dup_caption": ("The first one.", "auto_acd"),
    "vggsound_10": ("The same second.", "auto_acd"),
    "vggsound_20": ("Only another second.", "auto_acd"),
    "vgg_and_aud": ("From AudioSet.", "auto_acd"),
    "emptycaptio": (SPEECH, "label"),
    "emptythenok": ("The one with text.", "auto_acd"),
    "wrapped_one": (DOG, "auto_acd"),
    "wrapnoclose": (DOG, "auto_acd"),
    "wrapcurly__": (DOG, "auto_acd"),
    "wrapnewline": (DOG, "auto_acd"),
    "wrapinquote": ('A man shouts "stop" twice.', "auto_acd"),
    "wrapchatter": (DOG, "auto_acd"),
    "wrapempty__": (SPEECH, "label"),
    "wrapnoquote": (DOG, "auto_acd"),
    "couldbetext": ("A noise which could be: a dog.", "auto_acd"),  # no quote, no word of a caption: text
    "quotedspeec": ('"Hello," says a man.', "auto_acd"),
    "whitespace_": ("A dog barks .", "auto_acd"),
    "commas_____": ("A dog barks, a man speaks, and wind blows.", "auto_acd"),
    "linebreak__": (DOG, "auto_acd"),
    "emoji______": ("A 🐕 barks – loudly.", "auto_acd"),
    "onelabelunk": ("The sound of Dog.", "label"),
    "unkbutcapti": ("A caption without a known label.", "auto_acd"),
    "bareid_____": ("An id without its Y.", "auto_acd"),
}
WITHOUT_CAPTION = ("alllabelunk", "nolabels___")


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set('",\n') else text


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quirks")
    lines = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=30",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    lines += [f'{clip}, {start}, {float(start) + 10:.3f}, "{labels}"' for clip, start, labels in SEGMENTS]
    half = len(lines) // 2
    (folder / "balanced_train_segments.csv").write_text("\n".join(lines[:half]) + "\n")
    (folder / "eval_segments.csv").write_text("\n".join(lines[:3] + lines[half:] + [lines[3]]) + "\n")  # one id twice
    entries = [{"id": mid, "name": name, "child_ids": [], "restrictions": []} for mid, name in LABELS.items()]
    (folder / "ontology.json").write_text(json.dumps(entries))
    rows = [("youtube_id", "caption"), *AUTO_ACD]
    (folder / "train.csv").write_text("".join(f"{clip},{quoted(text)}\n" for clip, text in rows))
    return folder


@pytest.fixture(scope="module")
def coverage(tables: Path) -> Coverage:
    segments = [tables / "balanced_train_segments.csv", tables / "eval_segments.csv"]
    return fill_file(
        tables / "captions.parquet",
        segments,
        tables / "ontology.json",
        tables / "train.csv",
        unmatched=tables / "unmatched.csv",
    )


def test_every_quirk(tables: Path, coverage: Coverage) -> None:
    rows = read_captions(tables / "captions.parquet").to_pylist()
    assert {row["clip_id"]: (row["caption"], row["source"]) for row in rows} == EXPECTED
    assert [row["clip_id"] for row in rows] == list(EXPECTED)
    assert {row["caption_index"] for row in rows} == {0}
    splits = {row["clip_id"]: row["split"] for row in rows}
    assert splits["-aaaaaaaaaa"] == "balanced_train"
    assert splits["bareid_____"] == "eval"
    labels = {row["clip_id"]: row["labels"] for row in rows}
    assert labels["YXqu1CeA2c4"] == ["Male speech, man speaking", "Dog", "Grunt (sound)"]
    assert labels["onelabelunk"] == ["Dog"]
    assert labels["unkbutcapti"] == []


def test_everything_is_counted(tables: Path, coverage: Coverage) -> None:
    source, segments = coverage.source, coverage.segments
    assert source is not None
    assert segments is not None
    assert coverage.clips == coverage.captions == len(EXPECTED)
    assert coverage.by_source == {"auto_acd": 23, "label": 5}
    assert coverage.without_caption.examples == WITHOUT_CAPTION
    assert segments.rows == len(SEGMENTS) + 1
    assert segments.duplicates.count == 1
    assert segments.duplicates.examples[0].startswith("-aaaaaaaaaa at ")
    assert segments.duplicates.examples[0].endswith("eval_segments.csv:21")
    assert segments.unknown_labels.count == 3
    assert segments.unknown_labels.examples[0].startswith("/m/unknown at ")
    assert source.rows == len(AUTO_ACD)
    assert source.without_id == 1
    assert source.empty == 3  # blank, nothing, and a wrapper around nothing
    assert source.unmatched == 1
    assert source.duplicates == 3
    assert source.used == 23
    assert source.other_start == 2  # vggsound_20, and YXqu1CeA2c4: 44 s, not 40 s
    assert source.unwrapped == 8
    assert source.ids_unmatched == 1
    assert (tables / "unmatched.csv").read_text() == (
        '"source","id","caption"\n"auto_acd","Ynosegment__","A clip that is not in AudioSet."\n'
    )


def test_the_same_inputs_as_class_labels_gz_and_again(tables: Path, coverage: Coverage) -> None:
    import gzip

    folder = tables / "again"
    folder.mkdir()
    header = "index,mid,display_name\n"
    names = "".join(f"{index},{mid},{quoted(name)}\n" for index, (mid, name) in enumerate(LABELS.items()))
    (folder / "class_labels_indices.csv").write_text(header + names)
    segments = []
    for name in ("balanced_train_segments.csv", "eval_segments.csv"):
        content = (tables / name).read_bytes().replace(b"\n", b"\r\n")
        segments.append(folder / f"{name}.gz")
        segments[-1].write_bytes(gzip.compress(content))
    (folder / "train.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + (tables / "train.csv").read_bytes()))
    again = folder / "captions.parquet"
    fill_file(again, segments, folder / "class_labels_indices.csv", folder / "train.csv.gz")
    assert again.read_bytes() == (tables / "captions.parquet").read_bytes()


def test_acalt4_adds_up_to_four_captions(tables: Path, coverage: Coverage) -> None:
    path = tables / "with_acalt4.parquet"
    (tables / "acalt4.csv").write_text(
        "youtube_id,caption1,caption2,caption3,caption4\n"
        "YXqu1CeA2c4,one,two,three,four\n"  # a bare id that starts with Y
        "-aaaaaaaaaa,a,,a,  b \n"  # an empty caption, a repeated one, white space
        "notaclip123,w,x,y,z\n"
    )
    added = add_file(tables / "captions.parquet", read_acalt4(tables / "acalt4.csv"), ACALT4, path)
    rows = [
        (row["clip_id"], row["caption"], row["source"], row["caption_index"]) for row in read_captions(path).to_pylist()
    ]
    assert rows[:4] == [
        ("-aaaaaaaaaa", "A woman talks.", "auto_acd", 0),
        ("-aaaaaaaaaa", "a", "acalt4", 1),
        ("-aaaaaaaaaa", "b", "acalt4", 2),
        ("--bbbbbbbbb", "The sound of Dog, and Domestic animals, pets.", "label", 0),
    ]
    assert rows[4:9] == [
        ("YXqu1CeA2c4", "A man speaks.", "auto_acd", 0),
        *(("YXqu1CeA2c4", text, "acalt4", index) for index, text in enumerate(("one", "two", "three", "four"), 1)),
    ]
    assert len(rows) == len(EXPECTED) + 6
    table = read_captions(path).to_pylist()
    assert table[5]["labels"] == table[4]["labels"]
    assert table[5]["split"] == table[4]["split"] == "balanced_train"
    source = added.source
    assert source is not None
    assert (source.rows, source.used, source.empty, source.duplicates, source.unmatched) == (12, 6, 1, 1, 4)
    assert (source.ids_matched, source.ids_unmatched) == (2, 1)
