"""The encoder of a trained model with torch alone: log-mels or waveforms in, embeddings out.

This module is the end of the file that `m2dclap.portable.bundle` writes; there, what it imports from m2dprep stands
above it. It encodes as `m2dclap.encode.AudioEncoder` does, operation by operation, so that equal log-mels in equal
batches give equal bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from m2dprep.m2dclap.audio_model import AudioModel
from m2dprep.m2dclap.fusion.channels import starts
from m2dprep.m2dclap.fusion.kinds import NONE, PAD, REPEAT
from m2dprep.m2dclap.heads import ClassifierHead

WEIGHTS_FILE = "weights.pt"
# Patch latents that are held at once for heads that need all of a clip's.
TOKENS_AT_ONCE = 300_000
FRAMES_PER_BLOCK = 4096
# Sounds of several channels are (samples, channels), which is no batch (clips, samples).
MOST_CHANNELS = 8


class Sizes(NamedTuple):
    """The sizes of a model: (mel bins, frames) of its input and of a patch, those of its transformer, and how it fuses
    clips that are longer than its input."""

    input_size: tuple[int, int]
    patch_size: tuple[int, int]
    embed_dim: int
    depth: int
    num_heads: int
    layer_norm_eps: float
    fusion: str = NONE
    fusion_fill: str = PAD
    antialias: bool = False

    @property
    def grid_size(self) -> tuple[int, int]:
        """Whole patches along frequency and time."""
        return self.input_size[0] // self.patch_size[0], self.input_size[1] // self.patch_size[1]


class Embeddings(NamedTuple):
    """Of N clips: ``stacked`` (N, F · D), the latents of a column of patches averaged over time; ``flat`` (N, D), the
    average over all patches; ``clap`` (N, E), for captions, not of unit length, None if the model has no such head."""

    stacked: torch.Tensor
    flat: torch.Tensor
    clap: torch.Tensor | None


class _Piece(NamedTuple):
    """A chunk (1, F, T) of a clip, or the channels (4, F, T) of one that is ``longer`` than a chunk and fused."""

    clip: int
    number: int
    values: torch.Tensor
    longer: bool = False


def channels_of(log_mel: torch.Tensor, width: int, *, antialias: bool) -> torch.Tensor:
    """The channels (4, F, width) of a longer log-mel (F, T): the whole, and parts of its front, middle and back."""
    places = starts(log_mel.shape[-1], width)
    parts = [log_mel[:, start : start + width] for start in places]
    return torch.stack([_resized(log_mel, width, antialias=antialias), *parts])


def _resized(log_mel: torch.Tensor, width: int, *, antialias: bool) -> torch.Tensor:
    """A log-mel (F, T) with ``width`` frames instead, interpolated linearly along time."""
    found = torch.zeros(len(log_mel), width)
    for index, weight in zip(*_taps(log_mel.shape[-1], width, antialias), strict=True):
        found += log_mel[:, index] * weight
    return found


def _taps(frames: int, width: int, antialias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames that each new frame is made of, and their weights, which sum to 1: (K, width), int64 and float32."""
    scale, number = frames / width, torch.arange(width, dtype=torch.float64)
    if not antialias or scale <= 1:
        place = ((number + 0.5) * scale - 0.5).clamp(min=0.0)
        left = place.long().clamp(max=frames - 1)
        after = (place - left).float()
        return torch.stack([left, (left + 1).clamp(max=frames - 1)]), torch.stack([1 - after, after])
    centre = (number + 0.5) * scale
    first = (centre - scale + 0.5).long().clamp(min=0)
    end = (centre + scale + 0.5).long().clamp(max=frames)
    indices = first + torch.arange(int((end - first).max()))[:, None]
    weights = (1 - (indices + 0.5 - centre).abs() / scale).clamp(min=0.0) * (indices < end)
    total = torch.zeros(width, dtype=torch.float64)
    for row in weights:  # in this order, so that the bits are those of other sums in this order
        total += row
    return indices.clamp(max=frames - 1), (weights / total).float()


class PortableEncoder:
    """Encodes log-mels, or waveforms at its own ``sample_rate``, with a trained model.

    >>> encoder = PortableEncoder.load()  # doctest: +SKIP
    >>> encoder(waveform).flat  # doctest: +SKIP
    """

    def __init__(self, state: Mapping[str, Any], device: str | torch.device = "cpu", batch_size: int = 32) -> None:
        """``state`` is what the file of weights holds."""
        sizes = {**state["sizes"], "input_size": tuple(state["sizes"]["input_size"])}
        self.sizes = Sizes(**{**sizes, "patch_size": tuple(sizes["patch_size"])})
        self.mean, self.std = (torch.tensor(value, dtype=torch.float32) for value in state["norm_stats"])
        self.front_end: dict[str, Any] = dict(state["front_end"])
        self.window, self.filters = state["window"], state["filters"]
        self.classes: list[str] = list(state["classes"])
        self.batch_size, self.device = batch_size, torch.device(device)
        model = AudioModel(self.sizes, state["weights"])  # type: ignore[arg-type]
        model.load_state_dict(state["weights"])
        self.model = model.to(self.device).eval()
        self.head: ClassifierHead | None = None
        if state["head"]:
            classes, width = state["head"]["mlp.mlp.0.weight"].shape
            head = ClassifierHead(width, classes)
            head.load_state_dict(state["head"])
            self.head = head.to(self.device).eval()

    @classmethod
    def load(
        cls, path: str | Path | None = None, device: str | torch.device = "cpu", batch_size: int = 32
    ) -> PortableEncoder:
        """The encoder with the weights in ``path``, a file or its folder, by default those beside this file."""
        place = Path(__file__).with_name(WEIGHTS_FILE) if path is None else Path(path)
        place = place / WEIGHTS_FILE if place.is_dir() else place
        return cls(torch.load(place, map_location="cpu", weights_only=True), device, batch_size)

    @property
    def sample_rate(self) -> int:
        """The rate in Hz of the waveforms that it takes."""
        return int(self.front_end["sample_rate"])

    def __call__(self, waveforms: Any) -> Embeddings:
        """Waveforms, each float (n,) from -1 to 1 at ``sample_rate``, or one batch (B, n) → their embeddings.

        Tensors or arrays, one or a list of them.
        Raises `ValueError` for what is no such waveform.
        """
        if not isinstance(waveforms, list | tuple):
            batch = torch.as_tensor(waveforms)
            if batch.ndim == 2 and batch.shape[1] <= MOST_CHANNELS < len(batch):
                raise ValueError(
                    f"{tuple(batch.shape)} are samples of several channels, not (clips, samples): mix them"
                )
            waveforms = [batch] if batch.ndim <= 1 else list(batch)
        return self.encode([self.log_mel(one) for one in waveforms])

    @torch.inference_mode()
    def log_mel(self, waveform: Any) -> torch.Tensor:
        """A waveform (n,) → its log-mel (1, n_mels, 1 + n // hop), the natural logarithm of mel power."""
        waveform = torch.as_tensor(waveform)
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"a waveform has the shape (samples,) and a sample at least, not {tuple(waveform.shape)}")
        if not waveform.is_floating_point():
            raise ValueError(f"a waveform is of floats from -1 to 1, not {waveform.dtype}: divide by the largest value")
        n_fft, hop = int(self.front_end["n_fft"]), int(self.front_end["hop_length"])
        wave = waveform.detach().cpu().float()
        before, after = n_fft // 2, n_fft - n_fft // 2
        while before or after:  # a reflection adds at most one sample less than there are
            left, right = min(before, len(wave) - 1), min(after, len(wave) - 1)
            if not left and not right:  # a single sample is repeated
                wave = wave.repeat(1 + before + after)
                break
            wave = F.pad(wave[None], (left, right), mode="reflect")[0]
            before, after = before - left, after - right
        frames = wave.unfold(0, n_fft, hop)[: 1 + len(waveform) // hop]
        blocks = []
        for start in range(0, len(frames), FRAMES_PER_BLOCK):
            spectrum = torch.fft.rfft(frames[start : start + FRAMES_PER_BLOCK] * self.window)
            power = spectrum.real.square() + spectrum.imag.square()
            blocks.append(self.filters @ power.T)
        return torch.log(torch.cat(blocks, dim=1) + self.front_end["eps"])[None]

    @torch.inference_mode()
    def encode(self, log_mels: Sequence[Any]) -> Embeddings:
        """Log-mels (1, n_mels, T) of any T, not normalised → their embeddings.

        Clips longer than the model's input are encoded in chunks, or fused if it was trained so; pieces of equal width
        go through it in one batch.
        """
        rows = self.sizes.grid_size[0]
        groups = [self._encode_group(group, rows) for group in self._groups(log_mels)]
        by_row = torch.cat(
            [torch.zeros(0, rows, self.sizes.embed_dim, device=self.device), *(one for one, _ in groups)]
        )
        clap = [one for _, one in groups if one is not None]
        return Embeddings(by_row.flatten(1), by_row.mean(dim=1), torch.cat(clap) if clap else None)

    @torch.inference_mode()
    def classify(self, log_mels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Log-mels → scores of ``classes`` before a sigmoid or softmax (N, C). Raises `ValueError` without a head."""
        if self.head is None:
            raise ValueError("the model has no classifier")
        found = self.encode(log_mels)
        width = self.head.mlp.mlp[0].weight.shape[1]  # type: ignore[index, union-attr]
        scores: torch.Tensor = self.head(found.flat if width == self.sizes.embed_dim else found.stacked)
        return scores

    def _groups(self, log_mels: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
        """Runs of clips whose patch latents fit in memory."""
        groups: list[Sequence[torch.Tensor]] = []
        start, tokens, most = 0, 0, self.sizes.grid_size[1]
        for index, log_mel in enumerate(log_mels):
            count = -(-log_mel.shape[-1] // self.sizes.patch_size[1])
            own = self.sizes.grid_size[0] * (count if self.sizes.fusion == NONE else min(count, most))
            if index > start and tokens + own > TOKENS_AT_ONCE:
                groups.append(log_mels[start:index])
                start, tokens = index, 0
            tokens += own
        return [*groups, log_mels[start:]] if len(log_mels) else []

    def _encode_group(self, log_mels: Sequence[torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        alike: dict[tuple[int, bool], list[_Piece]] = defaultdict(list)
        for clip, log_mel in enumerate(log_mels):
            for piece in self._pieces(clip, log_mel):
                alike[piece.values.shape[-1], piece.longer].append(piece)
        sums = torch.zeros(len(log_mels), rows, self.sizes.embed_dim, device=self.device)
        columns = torch.zeros(len(log_mels), device=self.device)
        pieces: list[dict[int, torch.Tensor]] = [{} for _ in log_mels]
        for (_, longer), found in alike.items():
            for start in range(0, len(found), self.batch_size):
                batch = found[start : start + self.batch_size]
                stacked = torch.stack([piece.values for piece in batch]).to(self.device)
                flags = [torch.ones(len(batch), dtype=torch.bool, device=self.device)] if longer else []
                tokens = self.model.encode(stacked, *flags)[:, 1:]  # (b, F · T, D)
                grid = tokens.unflatten(1, (rows, -1))
                clips = torch.tensor([piece.clip for piece in batch], device=self.device)
                sums.index_add_(0, clips, grid.sum(dim=2))
                columns.index_add_(0, clips, torch.full((len(batch),), float(grid.shape[2]), device=self.device))
                for piece, own in zip(batch, tokens, strict=True):
                    pieces[piece.clip][piece.number] = own
        averaged = sums / columns[:, None, None]
        return averaged, self._projected(pieces) if self.model.has_clap_head else None

    def _pieces(self, clip: int, log_mel: torch.Tensor) -> list[_Piece]:
        """What goes through the model of a log-mel, normalised."""
        sizes = self.sizes
        log_mel = torch.as_tensor(log_mel)
        if log_mel.ndim != 3 or log_mel.shape[:2] != (1, sizes.input_size[0]) or not log_mel.shape[2]:
            raise ValueError(f"a log-mel has the shape (1, {sizes.input_size[0]}, T), not {tuple(log_mel.shape)}")
        log_mel, width = log_mel.detach().cpu().float(), sizes.input_size[1]
        if not bool(log_mel.isfinite().all()):
            raise ValueError("a log-mel, or the waveform that it is of, holds values that are not finite")
        frames = log_mel.shape[-1]
        if sizes.fusion != NONE and frames > width:
            channels = channels_of(log_mel[0], width, antialias=sizes.antialias)
            return [_Piece(clip, 0, (channels - self.mean) / self.std, longer=True)]
        if sizes.fusion != NONE and sizes.fusion_fill != PAD:  # whole copies, or as many as fill the input
            copies = -(-width // frames) if sizes.fusion_fill == REPEAT else width // frames
            log_mel = log_mel.repeat(1, 1, copies)[..., :width]
        return self._chunks(clip, log_mel)

    def _chunks(self, clip: int, log_mel: torch.Tensor) -> list[_Piece]:
        """A log-mel in chunks, normalised, the last padded to whole patches but not beyond the model's width."""
        width, patch = self.sizes.input_size[1], self.sizes.patch_size[1]
        normalised = (log_mel - self.mean) / self.std
        found = []
        for number, start in enumerate(range(0, log_mel.shape[-1], width)):
            chunk = normalised[..., start : start + width]
            padded = min(-(-chunk.shape[-1] // patch) * patch, width)
            found.append(_Piece(clip, number, F.pad(chunk, (0, max(0, padded - chunk.shape[-1])))))
        return found

    def _projected(self, pieces: Sequence[dict[int, torch.Tensor]]) -> torch.Tensor:
        """(N, E) from the patch latents of each clip; clips with equally many go through the head together."""
        tokens = [torch.cat([own[number] for number in sorted(own)]) for own in pieces]
        by_count: dict[int, list[int]] = defaultdict(list)
        for clip, own in enumerate(tokens):
            by_count[len(own)].append(clip)
        found: dict[int, torch.Tensor] = {}
        for clips in by_count.values():
            for start in range(0, len(clips), self.batch_size):
                batch = clips[start : start + self.batch_size]
                projected = self.model.project_tokens(torch.stack([tokens[clip] for clip in batch]))
                found.update(zip(batch, projected, strict=True))
        return torch.stack([found[clip] for clip in range(len(tokens))])
