"""Other people's CLAP models on the same clips and protocols: those of LAION, through transformers.

transformers marks a random clip of a batch as longer than the model's window if none is, and begins random chunks, so
that a clip's embedding depends on its batch and on chance. Here, what is longer is what is longer, and everything
random begins with the same seed for every clip. MS-CLAP is not in transformers, and so is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.json_files import read_json_object
from m2dprep.audioprep.config import LogMelConfig
from m2dprep.captions.embedding.model_files import find_model, require_no_code
from m2dprep.evaluation.encoders import CLAP
from m2dprep.evaluation.reading import ClipLoader, Crop
from m2dprep.m2dclap.distributed import pick_device

MICROSOFT = ("msclap", "microsoft/clap", "ms-clap")
SEED = 0


class ClapEncoder:
    """A CLAP model of transformers (`ClapModel`): its one part is ``clap``."""

    length_settings: ClassVar[dict[str, str]] = {}

    def __init__(self, name_or_path: str, *, device: str = "auto", batch_size: int = 32) -> None:
        """Load a model by its name on the hub or from a folder. Raises `UserError` if it is none, or is MS-CLAP."""
        if any(word in name_or_path.lower() for word in MICROSOFT):
            raise UserError(
                f"{name_or_path} is a model of Microsoft's CLAP, which transformers does not have; its own package "
                "(msclap) is not supported. --clap-model takes LAION's, such as laion/clap-htsat-unfused."
            )
        self._files = require_no_code(find_model(name_or_path))
        kind = read_json_object(self._files.folder / "config.json", "the configuration of a model").get("model_type")
        if kind != "clap":
            raise UserError(f"{name_or_path} is a model of the type {kind!r}, not a CLAP of transformers ('clap').")
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel  # seconds to import

        try:
            model: Any = ClapModel.from_pretrained(self._files.folder, local_files_only=True)
            self._front_end: Any = ClapFeatureExtractor.from_pretrained(self._files.folder, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self._files.folder, local_files_only=True)
        except Exception as error:  # the libraries raise any kind of error for a folder that is not whole
            raise UserError(f"{self._files.folder} cannot be loaded as a CLAP model: {first_line(error)}") from error
        self._device, self._batch_size = pick_device(device), batch_size
        self._model = model.to(self._device).eval()
        self._longest = int(self._front_end.max_length_s * self._front_end.sampling_rate)

    @property
    def name(self) -> str:
        return self._files.name.replace("/", "--")

    @cached_property
    def digest(self) -> str:
        return self._files.weights_digest()

    @property
    def parts(self) -> dict[str, int]:
        return {CLAP: int(self._model.config.projection_dim)}

    def loader(self, crop: Crop) -> ClipLoader:
        rate = int(self._front_end.sampling_rate)
        only_the_rate = LogMelConfig(
            sample_rate=rate, n_fft=1024, win_length=1024, hop_length=480, n_mels=64, f_min=0.0, f_max=rate / 2
        )
        return ClipLoader(only_the_rate, crop, waveforms=True)

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        found = [np.zeros((0, self.parts[CLAP]), np.float32)]
        for start in range(0, len(clips), self._batch_size):
            batch = clips[start : start + self._batch_size]
            inputs = torch.cat([self._log_mel(clip) for clip in batch]).to(self._device)
            longer = torch.tensor([[len(clip) > self._longest] for clip in batch], device=self._device)
            made = self._model.get_audio_features(input_features=inputs, is_longer=longer)
            found.append(_tensor(made).float().cpu().numpy())
        return np.concatenate(found)

    def _log_mel(self, clip: np.ndarray) -> torch.Tensor:
        """A clip's input, made alone and from one seed."""
        with _seeded():
            made = self._front_end(clip, sampling_rate=self._front_end.sampling_rate, return_tensors="pt")
        log_mel: torch.Tensor = made["input_features"]
        return log_mel

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        positions = int(self._model.config.text_config.max_position_embeddings)
        limit = min(int(self._tokenizer.model_max_length), positions - 2)  # RoBERTa's positions begin with 2
        found = [np.zeros((0, self.parts[CLAP]), np.float32)]
        for start in range(0, len(texts), self._batch_size):
            tokens = self._tokenizer(
                list(texts[start : start + self._batch_size]), padding=True, truncation=True, max_length=limit,
                return_tensors="pt",
            ).to(self._device)  # fmt: skip
            made = self._model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
            found.append(_tensor(made).float().cpu().numpy())
        return np.concatenate(found)

    def describe(self) -> dict[str, Any]:
        return {
            "clap_model": self._files.name,
            "revision": self._files.revision,
            "truncation": self._front_end.truncation,
            "window_seconds": self._front_end.max_length_s,
        }

    def text_digest(self) -> str | None:
        return self.digest


def _tensor(made: Any) -> torch.Tensor:
    """The embeddings in what a release of transformers returns: a tensor, or an output that holds it."""
    found: torch.Tensor = made if isinstance(made, torch.Tensor) else made.pooler_output
    return found


@contextmanager
def _seeded() -> Iterator[None]:
    """NumPy's global generator, which transformers draws from, from one seed; then as it was."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
