"""The portable encoder: one Python file that needs only torch, and gives our encoder's bits on equal log-mels."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m2dprep.artifacts.errors import UserError
from m2dprep.audioprep.config import PRESETS
from m2dprep.audioprep.logmel import LogMel
from m2dprep.m2dclap.checkpoint import Checkpoint
from m2dprep.m2dclap.encode import AudioEncoder
from m2dprep.m2dclap.heads import ClassifierHead
from m2dprep.m2dclap.model import M2DCLAP
from m2dprep.m2dclap.portable.bundle import MODULE, portable_source, portable_state, write_portable
from m2dprep.m2dclap.portable.runtime import PortableEncoder
from m2dprep.m2dclap.reuse.saving import save_tensors
from tests.tiny import TINY

pytestmark = pytest.mark.slow
# Frames of clips: less than a patch, a part of a chunk, one chunk, and several with a rest.
FRAMES = (1, 17, 48, 49, 130, 48, 17)
MODELS = {
    "2024": TINY, "2025": replace(TINY, sem_mode=1), "two blocks": replace(TINY, sem_mode=3), "own text": TINY,
    "daf": replace(TINY, fusion="daf"), "aff": replace(TINY, fusion="aff", fusion_fill="repeat", sem_mode=1),
    "iaff": replace(TINY, fusion="iaff", fusion_fill="repeatpad", antialias=True),
}  # fmt: skip


def a_checkpoint(kind: str = "2024", classes: int = 0, stacked: bool = False) -> Checkpoint:
    torch.manual_seed(1)
    config = MODELS[kind]
    weights = {key: value.clone() for key, value in M2DCLAP(config).state_dict().items()}
    if "patch_embed.gate" in weights:
        torch.nn.init.normal_(weights["patch_embed.gate"])
    weights["norm_stats"] = torch.tensor([-7.25, 4.5])
    head = {}
    if classes:
        head = ClassifierHead(config.embed_dim * (config.grid_size[0] if stacked else 1), classes).state_dict()
        head["norm.running_mean"] += torch.rand_like(head["norm.running_mean"])
    return Checkpoint(Path("checkpoint-1.pth"), config, weights, {}, head_weights=head)


def log_mels(frames: tuple[int, ...] = FRAMES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((1, 80, count)) * 4 - 7).astype(np.float32) for count in frames]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_equal_log_mels_give_equal_bits(kind: str, batch_size: int) -> None:
    checkpoint, clips = a_checkpoint(kind), log_mels()
    model = checkpoint.load_audio_model(torch.device("cpu"))
    ours = AudioEncoder(model, checkpoint.norm_stats, batch_size).encode(clips)
    theirs = PortableEncoder(portable_state(checkpoint), batch_size=batch_size).encode(
        [torch.from_numpy(one) for one in clips]
    )
    assert torch.equal(ours.stacked, theirs.stacked)
    assert torch.equal(ours.flat, theirs.flat)
    assert ours.clap is not None
    assert theirs.clap is not None
    assert torch.equal(ours.clap, theirs.clap)


@pytest.mark.parametrize("kind", ["2024", "iaff"])
def test_half_precision_log_mels_too(kind: str) -> None:
    checkpoint, clips = a_checkpoint(kind), [one.astype(np.float16) for one in log_mels()]
    ours = AudioEncoder(checkpoint.load_audio_model(torch.device("cpu")), checkpoint.norm_stats).encode(clips)
    theirs = PortableEncoder(portable_state(checkpoint)).encode([torch.from_numpy(one) for one in clips])
    assert torch.equal(ours.stacked, theirs.stacked)


@pytest.mark.parametrize("samples", [1, 2, 100, 199, 201, 16000, 16001, 97_613])
@pytest.mark.parametrize("preset", PRESETS)
def test_its_log_mels_are_nearly_ours(samples: int, preset: str) -> None:
    """Not bit for bit: the transforms of SciPy and torch, and the order of sums, differ."""
    rng = np.random.default_rng(samples)
    waveform = (0.1 * rng.standard_normal(samples)).astype(np.float32)
    checkpoint = replace(a_checkpoint(), args={"front_end": vars(PRESETS[preset])})
    ours = LogMel(PRESETS[preset])(waveform)
    theirs = PortableEncoder(portable_state(checkpoint)).log_mel(torch.from_numpy(waveform)).numpy()
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() < 2e-4


@pytest.mark.parametrize("stacked", [False, True])
def test_a_classifier_scores_as_ours(stacked: bool) -> None:
    checkpoint = a_checkpoint(classes=7, stacked=stacked)
    encoder = PortableEncoder(portable_state(checkpoint, [f"class {n}" for n in range(7)]))
    clips = log_mels()
    ours = AudioEncoder(checkpoint.load_audio_model(torch.device("cpu")), checkpoint.norm_stats).encode(clips)
    head = ClassifierHead(ours.stacked.shape[1] if stacked else ours.flat.shape[1], 7).eval()
    head.load_state_dict(checkpoint.head_weights)
    with torch.inference_mode():
        expected = head(ours.stacked if stacked else ours.flat)
    assert torch.equal(encoder.classify([torch.from_numpy(one) for one in clips]), expected)
    assert len(encoder.classes) == 7


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda one: one.log_mel(torch.zeros(2, 3)), "shape"),
        (lambda one: one.log_mel(torch.zeros(0)), "sample"),
        (lambda one: one.encode([torch.zeros(80, 10)]), "shape"),
        (lambda one: one.encode([torch.zeros(1, 64, 10)]), "shape"),
        (lambda one: one(torch.zeros(100, 2)), "several channels"),
        (lambda one: one(np.zeros((100, 1))), "several channels"),
        (lambda one: one(torch.zeros(100, dtype=torch.int16)), "floats from -1 to 1"),
        (lambda one: one([np.ones(100, np.int32)]), "floats from -1 to 1"),
        (lambda one: one(torch.full((1000,), torch.nan)), "not finite"),
        (lambda one: one.encode([torch.full((1, 80, 10), torch.inf)]), "not finite"),
        (lambda one: one(torch.tensor(0.5)), "shape"),
        (lambda one: one.classify(list(torch.zeros(1, 1, 80, 48))), "no classifier"),
    ],
)
def test_wrong_input_is_refused(call, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        call(PortableEncoder(portable_state(a_checkpoint())))


def test_arrays_are_taken_as_tensors_and_a_folder_for_its_file(tmp_path: Path) -> None:
    write_portable(a_checkpoint(), tmp_path / "encoder")
    encoder = PortableEncoder.load(tmp_path / "encoder")
    sound = np.random.default_rng(0).normal(size=2000) / 10  # float64, as soundfile reads
    expected = encoder(torch.from_numpy(sound)).flat
    for given in (sound, [sound], sound[None], list(torch.from_numpy(sound)[None])):
        assert torch.equal(encoder(given).flat, expected)
    log_mel = encoder.log_mel(sound)
    assert torch.equal(encoder.encode([log_mel.numpy()]).flat, expected)


def test_no_clips_are_no_error() -> None:
    found = PortableEncoder(portable_state(a_checkpoint())).encode([])
    assert (found.stacked.shape[0], found.flat.shape[0], found.clap) == (0, 0, None)


def test_the_source_imports_torch_and_the_standard_library_alone() -> None:
    lines = [line for line in portable_source().splitlines() if line.startswith(("import ", "from "))]
    roots = {line.split()[1].split(".")[0] for line in lines if not line.startswith("from m2d_portable")}
    assert roots - set(sys.stdlib_module_names) == {"torch"}
    assert "m2dprep." not in portable_source().replace("`m2dclap.", "")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        write_portable(a_checkpoint(), tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("numbers", [1, 1_000_000])
def test_a_full_disk_is_told_as_the_system_tells_it(numbers: int) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as raised:  # noqa: PTH123
        save_tensors({"weights": torch.zeros(numbers)}, full)
    assert raised.value.errno == errno.ENOSPC


PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("m2dprep", "numpy", "scipy", "soundfile"):
            raise ModuleNotFoundError(f"{name} must not be needed")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import torch
from m2d_portable import PortableEncoder

given = torch.load(sys.argv[2], weights_only=True)
encoder = PortableEncoder.load()
found = encoder.encode(given["log_mels"])
heard = encoder(given["waveform"])
torch.save({"stacked": found.stacked, "flat": found.flat, "clap": found.clap, "heard": heard.flat}, sys.argv[3])
"""


def test_it_runs_where_m2dprep_cannot_be_imported(tmp_path: Path) -> None:
    checkpoint, clips = a_checkpoint("aff"), log_mels()
    written = write_portable(checkpoint, tmp_path / "encoder")
    assert written.module.name == MODULE
    given = {"log_mels": [torch.from_numpy(one) for one in clips], "waveform": torch.randn(16000) * 0.1}
    torch.save(given, tmp_path / "given.pt")
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "encoder")]
    done = subprocess.run(
        [*words, str(tmp_path / "given.pt"), str(tmp_path / "found.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    ours = AudioEncoder(checkpoint.load_audio_model(torch.device("cpu")), checkpoint.norm_stats).encode(clips)
    assert torch.equal(found["stacked"], ours.stacked)
    assert torch.equal(found["flat"], ours.flat)
    assert ours.clap is not None
    assert torch.equal(found["clap"], ours.clap)
    assert found["heard"].shape == (1, checkpoint.config.embed_dim)
