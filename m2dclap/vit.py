"""The vision transformer over log-mel patches: patch embedding, fixed positions, pre-norm blocks.

Parameter names and layout are those of timm's ViT, on which the original builds, so its state dicts load. The position
tables of a checkpoint can be fitted to an input of another size: trimmed if it is shorter, resampled if it is longer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.fusion.kinds import NONE
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed

MLP_RATIO = 4


class PatchEmbed(nn.Module):
    """Projects each patch: (B, 1, F, T) → (B, F/f · T/t, D), frequency-major (all times of the lowest row first)."""

    def __init__(self, patch_size: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        patches = self.proj(log_mel)  # (B, D, F/f, T/t)
        return patches.flatten(2).transpose(1, 2)


def patch_embedding(config: ModelConfig) -> PatchEmbed | FusedPatchEmbed:
    """The patch embedding of a model, which may fuse channels."""
    if config.fusion == NONE:
        return PatchEmbed(config.patch_size, config.embed_dim)
    return FusedPatchEmbed(config.patch_size, config.embed_dim, config.fusion)


class Attention(nn.Module):
    """Multi-head self-attention with one fused kernel; only tokens to ``keep`` (B, 1, 1, N), if given, are attended
    to."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D/heads)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, dim: int, ratio: int = MLP_RATIO) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, layer_norm_eps: float, mlp_ratio: int = MLP_RATIO) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), keep)
        return x + self.mlp(self.norm2(x))


def blocks(depth: int, dim: int, num_heads: int, layer_norm_eps: float) -> nn.ModuleList:
    """A stack of ``depth`` equal blocks."""
    return nn.ModuleList(Block(dim, num_heads, layer_norm_eps) for _ in range(depth))


def sincos_positions(dim: int, grid_size: tuple[int, int]) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions (1, 1 + F·T, dim) for a grid of (F, T) patches; zeros for the class token.

    The first half of the dimensions encodes time, the second half frequency; each half holds sines, then cosines
    (Vaswani et al. 2017, section 3.5, along each axis). A shorter grid has the first columns of a longer one.
    """
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    frequency, time = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid_size), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in (time, frequency)]
    table = torch.cat([half for angle in angles for half in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, dim), table.float()]).unsqueeze(0)


class Encoder(nn.Module):
    """The part of M2D that remains after training: log-mel patches in, one embedding per patch out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.register_buffer("pos_embed", sincos_positions(config.embed_dim, config.grid_size))
        self.patch_embed = patch_embedding(config)
        self.blocks = blocks(config.depth, config.embed_dim, config.num_heads, config.layer_norm_eps)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    pos_embed: torch.Tensor

    def embed_patches(self, log_mel: torch.Tensor, longer: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised log-mel (B, 1, F, T) → patch tokens with their positions, without a class token (B, L, D).

        T may be smaller than the model's, in whole patches: each frequency row then uses the first columns of
        positions. A model that fuses takes channels (B, 4, F, T), and which clips are ``longer`` (B,) than its input.
        """
        rows, columns = self.config.grid_size
        used = log_mel.shape[-1] // self.config.patch_size[1]
        positions = self.pos_embed[:, 1:].view(1, rows, columns, -1)[:, :, :used].flatten(1, 2)
        embedded = self.patch_embed(log_mel) if longer is None else self.patch_embed(log_mel, longer)
        return embedded + positions

    def encode_tokens(self, tokens: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Patch tokens (B, N, D) → latents after the class token's (B, 1 + N, D).

        Of batches that are filled up to equal lengths, ``keep`` (B, N) says which tokens are a clip's own.
        """
        if keep is not None:
            keep = F.pad(keep, (1, 0), value=True)[:, None, None]
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([cls_token, tokens], dim=1)
        for block in self.blocks:
            x = block(x, keep)
        return self.norm(x)

    def encode(self, log_mel: torch.Tensor, longer: torch.Tensor | None = None) -> torch.Tensor:
        """All patches of a normalised log-mel (B, 1, F, T), unmasked → latents (B, 1 + L, D), class token first.

        A model that fuses takes channels, as `embed_patches`.
        """
        return self.encode_tokens(self.embed_patches(log_mel, longer))


Grid = tuple[int, int]
SAME_TABLE = 1e-4


def interpolate_pos_embed(table: torch.Tensor, old: Grid, new: Grid, *, always: bool = False) -> torch.Tensor:
    """Fit a position table (1, 1 + F·T, D) for the grid ``old`` of (F, T) patches to the grid ``new``.

    The fixed sine-cosine table of one grid becomes exactly that of the other, unless it is to be interpolated
    ``always``, as EVAR and the original of 2025 do. Any other table keeps its first columns if the new grid has fewer
    columns along time, and is interpolated bicubically if it has more; along frequency, where a row of another grid
    means something else, it is always interpolated. The class token's position stays.
    """
    dim = table.shape[-1]
    if old == new:
        return table
    if not always and dim % 4 == 0 and torch.allclose(table, sincos_positions(dim, old), rtol=0, atol=SAME_TABLE):
        return sincos_positions(dim, new)
    rows, columns = new
    patches = table[:, 1:].view(1, *old, dim).permute(0, 3, 1, 2)  # (1, D, F, T)
    patches = patches[..., : min(columns, old[1])]
    if patches.shape[-2:] != (rows, columns):
        patches = F.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, rows * columns, dim)], dim=1)
