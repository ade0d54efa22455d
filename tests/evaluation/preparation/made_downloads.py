"""Made-up data sets in the layouts in which the real ones are downloaded, each with quirks that real copies have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def write(path: Path, text: str, *, mark: bool = False, crlf: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.replace("\n", "\r\n") if crlf else text
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + content.encode())


def esc50(root: Path, lists: Path) -> None:
    """In a folder of its own, a byte order mark, a file in capitals, a missing and a surplus one."""
    root = root / "ESC-50-master"
    text = "filename,fold,target,category,esc10,src_file,take\n"
    text += "1-1-A-0.wav,1,0,dog,True,1,A\n2-2-A-9.wav,2,9,crow,False,2,A\n3-3-B-0.wav,3,0,dog,True,3,B\n"
    write(root / "meta" / "esc50.csv", text, mark=True)
    touch(root, "audio/1-1-A-0.wav", "audio/2-2-A-9.WAV", "audio/9-9-A-9.wav", "meta/esc50-human.xlsx", "LICENSE")


def us8k(root: Path, lists: Path) -> None:
    """CRLF, other columns, spaces around values, a file that two rows name."""
    text = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    text += "7-0-0.wav,7,0,4,1,10,3,dog_bark\n8-0-0.wav,8,0,4,1, 2 ,1, car_horn \n7-0-0.wav,7,0,4,1,10,3,dog_bark\n"
    write(root / "metadata" / "UrbanSound8K.csv", text, crlf=True)
    touch(root, "audio/fold10/7-0-0.wav", "audio/fold2/8-0-0.wav", "audio/fold1/.DS_Store")


def cremad(root: Path, lists: Path) -> None:
    """Names that are no clips, MP3 copies beside, a file that the list lacks, a listed file that is not there."""
    touch(root, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_IEO_SAD_HI.WAV", "AudioWAV/1003_IEO_HAP_LO.wav")
    touch(root, "AudioWAV/1076_MTI_SAD_XX.wav", "AudioMP3/1001_DFA_ANG_XX.mp3", "AudioWAV/notes.wav")
    text = "file_name,label,speaker_id,split\n1001_DFA_ANG_XX.wav,ANG,1001,test\n1002_IEO_SAD_HI.wav,SAD,1002,train\n"
    text += "1003_IEO_HAP_LO.wav,HAP,1003,valid\n1004_DFA_NEU_XX.wav,NEU,1004,test\n"
    write(lists / "cremad.csv", text)


def gtzan(root: Path, lists: Path) -> None:
    """In the folder of another copy, as .au, with a recording that no list names."""
    touch(root, "genres_original/blues/blues.00000.au", "genres_original/jazz/jazz.00054.au")
    touch(root, "genres_original/pop/pop.00001.au", "images_original/blues/blues00000.png")
    write(lists / "train_filtered.txt", "blues/blues.00000.wav\n")
    write(lists / "valid_filtered.txt", "pop/pop.00001.wav\n\n", crlf=True)
    write(lists / "test_filtered.txt", "pop/pop.00002.wav\n")


def nsynth(root: Path, lists: Path) -> None:
    """Objects by key, with lists and numbers in them."""
    for part, key, family in (("train", "bass_1", "bass"), ("valid", "vocal_2", "vocal"), ("test", "bass_3", "bass")):
        item = {"note": 1, "instrument_family_str": family, "qualities_str": ["dark"], "instrument_family": 0}
        write(root / f"nsynth-{part}" / "examples.json", json.dumps({key: item, f"{key}-gone": item}))
        touch(root, f"nsynth-{part}/audio/{key}.wav")


def fsd50k(root: Path, lists: Path) -> None:
    """Quoted lists of labels, a row without labels, val for valid."""
    text = 'fname,labels,mids,split\n64760,"Electric_guitar,Music","/m/a,/m/b",train\n16399,Bark,/m/c,val\n'
    text += "9,,/m/c,val\n"
    write(root / "FSD50K.ground_truth" / "dev.csv", text)
    write(root / "FSD50K.ground_truth" / "eval.csv", 'fname,labels,mids\n37199,"Bark,Animal","/m/c,/m/d"\n')
    touch(root, "FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/16399.wav", "FSD50K.dev_audio/9.wav")
    touch(root, "FSD50K.eval_audio/37199.wav")


def audioset(root: Path, lists: Path) -> None:
    """Comments, spaces behind commas, ids that begin with - and Y, a clip in the wrong folder, other formats."""
    head = "# Segments csv created Sun Mar  5 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds, labels\n"
    write(
        lists / "eval_segments.csv",
        head + '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"\nYabcdefghij, 30.000, 40.000, "/m/068hy"\n'
        'gone_gone_g, 30.000, 40.000, "/m/068hy"\n',
    )
    write(lists / "balanced_train_segments.csv", head + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n')
    write(
        lists / "class_labels_indices.csv",
        'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/068hy,"Domestic animals, pets"\n2,/m/07q6cd_,Squeak\n'
        "3,/t/dd00088,Gush\n",
    )
    touch(root, "eval_segments/Y--4gqARaEJE_0.000_10.000.wav", "eval_segments/Yabcdefghij.FLAC")
    touch(root, "balanced_train_segments/part00/--PJHxphWEs.m4a", "eval_segments/--PJHxphWEs.wav")


def spcv2(root: Path, lists: Path) -> None:
    """A folder of noise, capital suffixes, a listed file that is not there."""
    touch(root, "bed/0a_nohash_0.wav", "bed/0b_nohash_0.wav", "cat/0a_nohash_1.WAV", "_background_noise_/pink.wav")
    touch(root, "README.md", "LICENSE")
    write(root / "validation_list.txt", "bed/0b_nohash_0.wav\n")
    write(root / "testing_list.txt", "cat/0a_nohash_1.wav\ncat/gone.wav\n")


def vc1(root: Path, lists: Path) -> None:
    """Parts that are still in folders of their own, a line that is none."""
    write(
        lists / "iden_split.txt",
        "1 id10001/1zc/00001.wav\n3 id10001/7gW/00001.wav\n2  id10002/abc/00002.wav\nhello\n3 id10270/gone/00001.wav\n",
    )
    touch(root, "vox1_dev_wav/wav/id10001/1zc/00001.wav", "vox1_test_wav/wav/id10001/7gW/00001.wav")
    touch(root, "vox1_dev_wav/wav/id10002/abc/00002.wav")


def voxforge(root: Path, lists: Path) -> None:
    """In a folder of its own, which only the fetched table can tell."""
    text = "file_name,label,split\nAlex-1/wav/a1.wav,en,train\nBea-2/wav/b1.wav,de,valid\nCe-3/wav/c1.wav,it,test\n"
    write(lists / "voxforge.csv", text + "Di-4/wav/d1.wav,fr,test\n")
    touch(root, "voxforge/Alex-1/wav/a1.wav", "voxforge/Bea-2/wav/b1.wav", "voxforge/Ce-3/wav/c1.wav")
    touch(root, "voxforge/Alex-1/etc/README")


def surge(root: Path, lists: Path) -> None:
    """Tones with dots and spaces in their names, a file that is no pitch."""
    touch(root, "Bass 1.2/21.ogg", "Bass 1.2/22.OGG", "Lead/21.ogg", "Pad/100.ogg", "Pad/preview.ogg")
    write(lists / "dataset_surge_tone_splits.csv", "tone,split\nBass 1.2,train\nLead,valid\nPad,test\n")


def audiocaps(root: Path, lists: Path) -> None:
    """Line breaks and commas in captions, ids that begin with - and Y, clips that are gone, no training part."""
    write(root / "val.csv", "audiocap_id,youtube_id,start_time,caption\n1,-0SdAVK79lg,30,A dog barks\n")
    write(
        root / "test.csv",
        "audiocap_id,youtube_id,start_time,caption\n"
        '2,Yabcdefghij,30,"Rain, and wind"\n3,Yabcdefghij,30,"Rain\nfalls"\n4,gone_gone_g,0,Nothing\n',
        crlf=True,
    )
    touch(root, "wav/val/Y-0SdAVK79lg.wav", "wav/test/YYabcdefghij.wav", "wav/test/Yzzzzzzzzzzz.wav")


def clotho(root: Path, lists: Path) -> None:
    """Names with other characters than the table's, an empty caption, no other parts."""
    text = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    text += 'Rain: heavy?.wav,a,b,c,d,"e, f"\nDoor (1).wav,a,,c,d,e\nGone.wav,a,b,c,d,e\n'
    write(root / "clotho_captions_evaluation.csv", text)
    touch(root, "evaluation/Rain_ heavy_.wav", "evaluation/Door (1).wav", "development/Other.wav")


def tut_scenes_2017(root: Path, lists: Path) -> None:
    """Both parts side by side, scenes with a slash, a missing file, an evaluation list without recordings."""
    dev, evaluation = "TUT-acoustic-scenes-2017-development", "TUT-acoustic-scenes-2017-evaluation"
    write(root / dev / "meta.txt", "audio/b020_90_100.wav\tbeach\tb020\naudio/a1.wav\tcafe/restaurant\ta1\n")
    write(root / evaluation / "meta.txt", "audio/10.wav\tcity_center\naudio/gone.wav\tbeach\n", crlf=True)
    touch(root, f"{dev}/audio/b020_90_100.wav", f"{dev}/audio/a1.wav", f"{evaluation}/audio/10.wav")
    touch(root, f"{dev}/evaluation_setup/fold1_train.txt", f"{evaluation}/audio/11.wav")


DOWNLOADS: dict[str, Callable[[Path, Path], None]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        esc50, us8k, cremad, gtzan, nsynth, fsd50k, audioset, spcv2, vc1, voxforge, surge, audiocaps, clotho,
        tut_scenes_2017,
    )
}  # fmt: skip
