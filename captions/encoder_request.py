"""Which encoder a worker is to load: what `captions.encoder.load_encoder` takes, as plain values that travel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captions.encoder import TextEncoder
    from captions.encoder_model import Pooling
    from captions.encoder_own import Normalized


@dataclass(frozen=True)
class EncoderRequest:
    """The arguments of `load_encoder`, which describes them. ``precision`` is ``auto``, unlike there."""

    name_or_path: str
    device: str = "auto"
    normalize: Normalized | None = None
    pooling: Pooling = "mean"
    prefix: str | None = None
    max_length: int | None = None
    revision: str | None = None
    precision: str = "auto"
    batch_tokens: int | None = None
    trust_remote_code: bool = False

    def load(self) -> TextEncoder:
        """The encoder; imports torch. Raises as `load_encoder` does."""
        from captions.encoder import load_encoder

        return load_encoder(**asdict(self))
