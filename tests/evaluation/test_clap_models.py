"""CLAP models of transformers are judged as ours are; an embedding does not depend on its batch or on chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m2dprep.artifacts.errors import UserError
from m2dprep.evaluation.clap_models import ClapEncoder
from m2dprep.evaluation.prepared import read_evaluation_set
from m2dprep.evaluation.protocols.linear import LinearSettings
from m2dprep.evaluation.protocols.linear_head import HeadSettings
from m2dprep.evaluation.reading import Clip, Crop
from m2dprep.evaluation.run import RunOptions, run_linear, run_zero_shot
from tests.evaluation.made_clips import tone, write_tones

pytestmark = pytest.mark.slow


def make_model(folder: Path, *, fusion: bool) -> Path:
    """A random CLAP model of the smallest size that its architecture allows."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizerFast

    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 40, "projection_dim": 16,
        },
        audio_config={
            "spec_size": 256, "num_mel_bins": 64, "patch_size": 4, "patch_stride": [4, 4], "window_size": 4,
            "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16,
            "projection_dim": 16, "enable_fusion": fusion, "num_classes": 2,
        },
        projection_dim=16,
    )  # fmt: skip
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=64, sampling_rate=16000, hop_length=160, max_length_s=1, fft_window_size=512,
        frequency_max=8000, truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)  # fmt: skip
    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    words |= {chr(code): len(words) + number for number, code in enumerate([*range(33, 127), 288])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClapEncoder:
    return ClapEncoder(str(make_model(tmp_path_factory.mktemp("clap"), fusion=request.param)), device="cpu")


def test_a_clip_is_the_same_alone_and_among_others_and_every_time(encoder: ClapEncoder) -> None:
    clips = [tone(kind, seconds, seed=kind) for kind, seconds in ((0, 0.4), (1, 2.3), (2, 1.0), (0, 3.1))]
    together = encoder.encode(clips)
    assert together.shape == (4, 16)
    assert np.isfinite(together).all()
    assert encoder.encode(clips) == pytest.approx(together, abs=1e-6)
    for row, clip in enumerate(clips):
        assert encoder.encode([clip])[0] == pytest.approx(together[row], abs=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_chance_elsewhere_is_left_alone(encoder: ClapEncoder) -> None:
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    encoder.encode([tone(0, 2.0)])
    assert np.random.random(3).tolist() == expected.tolist()  # noqa: NPY002


def test_captions_of_any_length(encoder: ClapEncoder) -> None:
    texts = encoder.encode_texts(["a", "dog", "x" * 500])
    assert texts.shape == (3, 16)
    assert np.isfinite(texts).all()
    assert encoder.encode_texts(["dog"])[0] == pytest.approx(texts[1], abs=1e-5)
    assert encoder.parts == {"clap": 16}
    assert encoder.text_digest() == encoder.digest


def test_sounds_are_read_at_the_models_rate(encoder: ClapEncoder, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", tone(0, 0.5, rate=8000), 8000)
    clip = encoder.loader(Crop(0.25))(tmp_path / "a.wav", "a.wav")
    assert isinstance(clip, Clip)
    assert clip.values.shape == (4000,)


def test_they_are_judged_by_the_same_protocols(encoder: ClapEncoder, tmp_path: Path) -> None:
    names = write_tones(tmp_path, 12)
    rows = [f"{name},kind_{number % 3},{number % 2 + 1}" for number, name in enumerate(names)]
    (tmp_path / "clips.csv").write_text("file_name,label,fold\n" + "\n".join(rows) + "\n")
    clips = read_evaluation_set(tmp_path / "clips.csv")
    found = run_zero_shot(encoder, clips, RunOptions(quiet=True))
    assert (found.n["clips"], found.digests["checkpoint"]) == (12, encoder.digest)
    settings = LinearSettings(HeadSettings(lr=0.1, epochs=3), (1,))
    found = run_linear(encoder, clips, settings, RunOptions(quiet=True))
    assert found.settings["features"] == "clap"
    assert found.n["dimensions"] == 16


@pytest.mark.parametrize("name", ["microsoft/msclap", "CLAP/msclap_2023", "microsoft/clap-2023"])
def test_ms_clap_is_refused_and_not_pretended(name: str) -> None:
    with pytest.raises(UserError, match="transformers does not have"):
        ClapEncoder(name)


def test_other_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="type 'bert', not a CLAP"):
        ClapEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(UserError, match="cannot be loaded as a CLAP model"):
        ClapEncoder(str(tmp_path))
    with pytest.raises(UserError, match="no folder"):
        ClapEncoder("./nowhere")
