"""Labels that cannot be learnt are refused with the file, the row and what to do; splits never share a clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.prepared import EvaluationSet
from m2dprep.training.fine_tuning.labels import fold_names, read_labels, split_rows
from m2dprep.training.fine_tuning.settings import RECIPES, FineTuneConfig, LabelChoice, recipe, with_changes
from tests.training.fine_tuning.made import write_labels

CONFIG = FineTuneConfig()
LABEL, SPLIT, FOLD = ("file_name", "label"), ("file_name", "label", "split"), ("file_name", "label", "fold")


def table(folder: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = LABEL) -> LabelChoice:
    for row in rows:
        if row and row[0]:
            (folder / row[0]).touch()
    return LabelChoice(write_labels(folder / "clips.csv", rows, header))


def many(count: int, classes: int = 4) -> list[tuple[str, str]]:
    return [(f"{number}.wav", f"c{number % classes}") for number in range(count)]


BAD: dict[str, tuple[list[tuple[str, ...]], tuple[str, ...], str]] = {
    "no column of labels": ([("a.wav", "x")], ("file_name", "sound"), "no column label; it has file_name, sound"),
    "an empty label": ([("a.wav", "x"), ("b.wav", "")], LABEL, "row 3: file_name or label is empty"),
    "nothing but commas": ([("a.wav", "x,y"), ("b.wav", ", ,")], LABEL, "b.wav has no label but ', ,'"),
    "one class": ([("a.wav", "x"), ("b.wav", "x")], LABEL, "1 class to learn ('x'); at least two are needed"),
    "a file with two labels": ([("a.wav", "x"), ("a.wav", "y")], LABEL, "a.wav occurs twice"),
    "a class that is never trained": (
        [("a.wav", "x", "train"), ("b.wav", "y", "train"), ("c.wav", "z", "test")], SPLIT,
        "c.wav has the label 'z', which is none of the 2 classes (those of the training clips)",
    ),
    "the same in a valid split of several labels": (
        [("a.wav", "x,y", "train"), ("b.wav", "y", "train"), ("c.wav", "x,z", "valid")], SPLIT,
        "c.wav has the label 'z'",
    ),
    "two spellings": ([("a.wav", "x y"), ("b.wav", "x  y")], LABEL, "'x  y' and 'x y' differ in white space alone"),
    "a stray space": ([("a.wav", "x"), ("b.wav", "x ")], LABEL, "differ in white space alone"),
    "an unknown split": ([("a.wav", "x", "dev?")], SPLIT, "the split 'dev?' is none of"),
    "no rows": ([], LABEL, "lists no clips"),
    "a line break": ([("a.wav", "x\ny"), ("b.wav", "z")], LABEL, "a line break"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(tmp_path: Path, name: str) -> None:
    rows, header, message = BAD[name]
    with pytest.raises(UserError) as caught:
        read_labels(table(tmp_path, rows, header), CONFIG)
    assert message in str(caught.value)
    assert "clips.csv" in str(caught.value)


def test_listed_classes(tmp_path: Path) -> None:
    choice = table(tmp_path, [("a.wav", "/m/01,/m/02"), ("b.wav", "/m/03")])
    listed = tmp_path / "class_labels_indices.csv"
    header = ("index", "mid", "display_name")
    write_labels(
        listed, [("0", "/m/03", "C"), ("1", "/m/01", "A, B"), ("2", "/m/02", "D")], ("index", "mid", "display_name")
    )
    found = read_labels(LabelChoice(choice.labels, classes=listed), CONFIG)
    assert found.classes == ["/m/01", "/m/02", "/m/03"], "sorted by mid, as in EVAR"
    assert found.targets().tolist() == [[True, True, False], [False, False, True]]
    write_labels(listed, [("0", "/m/03", "C"), ("1", "/m/01", "A")], header)
    with pytest.raises(UserError, match=r"'/m/02', which is none of the 2 classes \(those listed"):
        read_labels(LabelChoice(choice.labels, classes=listed), CONFIG)
    (tmp_path / "names.txt").write_text("/m/03\n/m/01\n/m/02\n")
    assert read_labels(LabelChoice(choice.labels, classes=tmp_path / "names.txt"), CONFIG).classes == found.classes
    write_labels(listed, [("0", "x")], ("index", "name"))
    with pytest.raises(UserError, match="no column mid"):
        read_labels(LabelChoice(choice.labels, classes=listed), CONFIG)


@pytest.mark.parametrize(("told", "several"), [("auto", True), ("one", False), ("several", True)])
def test_commas_mean_several_labels_unless_told(tmp_path: Path, told: str, several: bool) -> None:
    choice = table(tmp_path, [("a.wav", "x, y"), ("b.wav", "z"), ("c.wav", "x")])
    found = read_labels(choice, with_changes(CONFIG, {"labels_per_clip": told}))
    assert found.task.multi_label is several
    assert found.classes == (["x", "y", "z"] if several else ["x", "x, y", "z"])


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    assert read_labels(table(tmp_path, [(f"{n}.wav", str(n)) for n in (10, 9, 2)]), CONFIG).classes == ["2", "9", "10"]


def rows_of(
    found: EvaluationSet, choice: LabelChoice, fold: str | None = None, **changes: object
) -> dict[str, list[int]]:
    splits = split_rows(found, with_changes(CONFIG, changes), choice, fold)
    return {name: getattr(splits, name).tolist() for name in ("train", "valid", "test")}


def test_without_splits_a_tenth_each_is_held_out_by_class(tmp_path: Path) -> None:
    choice = table(tmp_path, many(200))
    found = read_labels(choice, CONFIG)
    rows = rows_of(found, choice)
    assert sorted(row for own in rows.values() for row in own) == list(range(200))
    assert (len(rows["test"]), len(rows["valid"])) == (20, 16)
    for name in ("valid", "test"):
        assert set(np.bincount([row % 4 for row in rows[name]])) <= {4, 5}
    assert rows_of(found, choice) == rows
    assert rows_of(found, choice, seed=44) != rows


def test_given_splits_are_kept(tmp_path: Path) -> None:
    splits = ["train"] * 80 + ["val"] * 10 + ["eval"] * 10
    choice = table(tmp_path, [(*row, split) for row, split in zip(many(100), splits, strict=True)], SPLIT)
    found = read_labels(choice, CONFIG)
    expected = {"train": list(range(80)), "valid": list(range(80, 90)), "test": list(range(90, 100))}
    assert rows_of(found, choice) == expected
    assert rows_of(found, choice, strict_evar=True) == expected
    assert rows_of(found, choice, validate_on="test") == {**expected, "valid": expected["test"]}


def test_only_by_its_name_the_test_clips_validate(tmp_path: Path) -> None:
    splits = ["train"] * 80 + ["test"] * 20
    choice = table(tmp_path, [(*row, split) for row, split in zip(many(100), splits, strict=True)], SPLIT)
    found = read_labels(choice, CONFIG)
    rows = rows_of(found, choice)
    assert rows["test"] == list(range(80, 100)) and len(rows["valid"]) == 8
    assert not set(rows["valid"]) & set(rows["test"])
    for changes in ({"strict_evar": True}, {"validate_on": "test"}):
        splits_ = split_rows(found, with_changes(CONFIG, changes), choice, None)
        assert splits_.valid.tolist() == splits_.test.tolist() == list(range(80, 100))
        assert splits_.validates_on_test and "too high" in " ".join(splits_.notes)


def test_test_clips_alone_are_not_trained_on(tmp_path: Path) -> None:
    choice = table(tmp_path, [(*row, "test") for row in many(40)], SPLIT)
    with pytest.raises(UserError, match="no training clips"):
        rows_of(read_labels(choice, CONFIG), choice)


def test_folds_are_tested_one_after_another(tmp_path: Path) -> None:
    choice = table(tmp_path, [(*row, str(number % 10 + 1)) for number, row in enumerate(many(400))], FOLD)
    found = read_labels(choice, CONFIG)
    assert fold_names(found, CONFIG) == [str(number) for number in range(1, 11)]
    assert fold_names(found, with_changes(CONFIG, {"fold": "3"})) == ["3"]
    with pytest.raises(UserError, match="no fold '11'; its folds are 1, 2"):
        fold_names(found, with_changes(CONFIG, {"fold": "11"}))
    rows = rows_of(found, choice, "3")
    assert rows["test"] == list(range(2, 400, 10))
    assert sorted(row for own in rows.values() for row in own) == list(range(400))


def test_recordings_stay_together(tmp_path: Path) -> None:
    header = ("file_name", "label", "group")
    choice = table(tmp_path, [(*row, f"g{number // 8}") for number, row in enumerate(many(320))], header)
    rows = rows_of(read_labels(choice, CONFIG), choice)
    groups = {name: {row // 8 for row in own} for name, own in rows.items()}
    assert not groups["train"] & groups["valid"] and not groups["train"] & groups["test"]


def test_a_class_without_training_clips_is_named(tmp_path: Path) -> None:
    rows = [(*row, "1" if number < 20 else "2") for number, row in enumerate(many(40))]
    choice = table(tmp_path, [*rows, ("x.wav", "rare", "2")], FOLD)
    splits = split_rows(read_labels(choice, CONFIG), CONFIG, choice, "2")
    assert "1 of 5 classes have no training clip (rare)" in " ".join(splits.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 201.0}, "warmup_epochs"),
        ({"batch_size": 9, "accumulate": 2}, "accumulate 2"),
        ({"feature": "stacked"}, "stacked needs all patches"),
        ({"draws": 5}, "they need weighted"),
        ({"lr": 1e-9}, "min_lr"),
        ({"mask_ratio": 1.0}, "leaves no patches"),
        ({"mixup": -1.0}, "mixup"),
        ({"optimizer": "lars"}, "optimizer is 'lars'"),
        ({"nothing": 1}, "unknown settings: nothing"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_changes(CONFIG, changes)


def test_recipes_are_the_papers() -> None:
    def of(name: str) -> tuple[object, ...]:
        one = RECIPES[name]
        return (
            one.optimizer, one.lr, one.mixup, one.resize, (one.mask_bins, one.mask_frames), one.mask_ratio, one.epochs,
            one.warmup_epochs, one.batch_size, one.frames, one.is_flat, one.freeze_patches, one.weighted,
        )  # fmt: skip

    assert of("as2m") == ("sgd", 2.0, 0.5, False, (30, 192), 0.5, 70, 15, 64, 1001, True, False, True)
    assert of("as20k") == ("sgd", 0.5, 0.3, True, (30, 192), 0.5, 200, 5, 64, 1001, True, False, False)
    assert of("esc50") == ("sgd", 0.5, 0.0, True, (15, 48), 0.5, 200, 5, 128, 501, True, True, False)
    assert of("spcv2") == ("sgd", 0.5, 0.3, True, (30, 48), 0.5, 200, 5, 128, None, True, False, False)
    assert of("vc1") == ("adamw", 5e-4, 0.0, False, (30, 48), 0.0, 50, 5, 64, 821, False, False, False)
    assert RECIPES["vc1"].weight_decay == 1e-4 and RECIPES["as2m"].draws == 200_000
    with pytest.raises(UserError, match="there are as2m, as20k, esc50, spcv2, vc1"):
        recipe("lars")


def test_warm_up_keeps_its_share() -> None:
    assert with_changes(recipe("as2m"), {"epochs": 14}).warmup_epochs == 3.0
    assert with_changes(recipe("as2m"), {"epochs": 14, "warmup_epochs": 1.0}).warmup_epochs == 1.0
    assert with_changes(recipe("as2m"), {"weighted": False}).draws is None
