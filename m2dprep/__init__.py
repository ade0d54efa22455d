"""From audio files and caption tables to a trained M2D-CLAP audio-language model.

The public names are imported when they are first used, so that ``import m2dprep`` costs nothing:

- `LogMel`, `LogMelConfig`, `PRESETS`: the front end, a waveform → a log-mel, and its named configurations.
- `norm_stats`: exact normalisation statistics of a folder of log-mels.
- `TextEncoder`, `load_encoder`: captions → sentence embeddings.
- `EmbeddingStore`: the embeddings on disk, aligned with the captions that they belong to.
- `load`, `Model`: a trained model, which embeds, compares and tags sounds and words.
- `AudioStore`: the embeddings of many sounds on disk, as `m2dprep embed-audio` makes them.
- `open_embeddings`, `open_log_mels`: a store of embeddings, or a folder of log-mels, as a PyTorch data set with captions.
- `Checkpoint`, `AudioEncoder`: a trained model, ours or the original's, and log-mels → embeddings.
- `read_captions`, `read_records`, `read_index`, `find_faults`: the tables on disk as pandas DataFrames.
- `UserError`: what all of them raise where a file or a value is not what it should be.

Everything else lives in the rooms beside this file (``m2dprep.audioprep``, …) and may move.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2dprep.artifacts.embeddings.audio_store import AudioStore
    from m2dprep.artifacts.embeddings.store import EmbeddingStore
    from m2dprep.artifacts.errors import UserError
    from m2dprep.audioprep.config import PRESETS, LogMelConfig
    from m2dprep.audioprep.logmel import LogMel
    from m2dprep.audioprep.stats import norm_stats
    from m2dprep.captions.embedding.encoder import TextEncoder, load_encoder
    from m2dprep.evaluation.embedding.data_sets import open_embeddings, open_log_mels
    from m2dprep.evaluation.embedding.model import Model, load
    from m2dprep.frames import find_faults, read_captions, read_index, read_records
    from m2dprep.m2dclap.checkpoint import Checkpoint
    from m2dprep.m2dclap.encode import AudioEncoder

__all__ = [
    "PRESETS",
    "AudioEncoder",
    "AudioStore",
    "Checkpoint",
    "EmbeddingStore",
    "LogMel",
    "LogMelConfig",
    "Model",
    "TextEncoder",
    "UserError",
    "find_faults",
    "load",
    "load_encoder",
    "norm_stats",
    "open_embeddings",
    "open_log_mels",
    "read_captions",
    "read_index",
    "read_records",
]
_HOMES = {
    "PRESETS": "audioprep.config",
    "AudioEncoder": "m2dclap.encode",
    "AudioStore": "artifacts.embeddings.audio_store",
    "Checkpoint": "m2dclap.checkpoint",
    "EmbeddingStore": "artifacts.embeddings.store",
    "LogMel": "audioprep.logmel",
    "LogMelConfig": "audioprep.config",
    "Model": "evaluation.embedding.model",
    "TextEncoder": "captions.embedding.encoder",
    "UserError": "artifacts.errors",
    "find_faults": "frames",
    "load": "evaluation.embedding.model",
    "load_encoder": "captions.embedding.encoder",
    "norm_stats": "audioprep.stats",
    "open_embeddings": "evaluation.embedding.data_sets",
    "open_log_mels": "evaluation.embedding.data_sets",
    "read_captions": "frames",
    "read_index": "frames",
    "read_records": "frames",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
