"""The patch embedding of four channels: patches of the whole clip, into which those of its three parts are fused.

A part is cut into patches three times as long, so that the columns of all three together, side by side in the order of
time, are as many as the whole has; where the width is no multiple of three patches, columns of zeros are missing ones'
place. 80 × 1008 gives 3 · 21 = 63 columns exactly, 80 × 608 gives 3 · 12 and two of zeros.

Fusion begins with a gate of zeros: x + gate · (fused − x) is the plain embedding x of the whole clip, and training
opens the gate. Names of parameters are LAION-CLAP's (``mel_conv2d``, ``fusion_model``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from m2dprep.m2dclap.fusion.kinds import PARTS
from m2dprep.m2dclap.fusion.operators import new_fusion

# Parameters below ``patch_embed.`` that a model without fusion does not have.
FUSION_PARTS = ("mel_conv2d.", "fusion_model.", "gate")


class FusedPatchEmbed(nn.Module):
    """Channels (B, 4, F, T) → patches (B, F/f · T/t, D), frequency-major. Of one channel, (B, 1, F, T), it is the plain
    patch embedding.

    ``gated`` is off for LAION-CLAP's weights (`of_laion`). Its global map is its first channel.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        embed_dim: int,
        kind: str,
        norm: str = "channel",
        *,
        gated: bool = True,
        published: bool = False,
    ) -> None:
        super().__init__()
        long_patch = (patch_size[0], PARTS * patch_size[1])
        self.proj = nn.Conv2d(1, embed_dim, kernel_size=patch_size, stride=patch_size)
        with torch.random.fork_rng(devices=[]):  # all other weights are those of a model without fusion
            self.mel_conv2d = nn.Conv2d(1, embed_dim, kernel_size=long_patch, stride=long_patch)
            self.fusion_model = new_fusion(kind, embed_dim, norm, published=published)
        self.gate = nn.Parameter(torch.zeros(embed_dim)) if gated else None

    @classmethod
    def of_laion(cls, patch_size: tuple[int, int], embed_dim: int, kind: str) -> FusedPatchEmbed:
        """The one of LAION-CLAP, for its weights, with its batch normalisation and its iAFF as it is published."""
        return cls(patch_size, embed_dim, kind, "batch", gated=False, published=True).eval()

    @torch.no_grad()
    def begin_as_plain(self) -> None:
        """Start the patches of parts as averages of three plain ones, and the gate with zeros."""
        self.mel_conv2d.weight.copy_(self.proj.weight.repeat(1, 1, 1, PARTS) / PARTS)
        assert self.mel_conv2d.bias is not None and self.proj.bias is not None
        self.mel_conv2d.bias.copy_(self.proj.bias)
        if self.gate is not None:
            self.gate.zero_()

    def forward(self, channels: torch.Tensor, longer: torch.Tensor | None = None) -> torch.Tensor:
        """Clips that are not ``longer`` (B,) keep their plain patches; without it, all do."""
        return self.maps(channels, longer).flatten(2).transpose(1, 2)

    def maps(self, channels: torch.Tensor, longer: torch.Tensor | None = None) -> torch.Tensor:
        """The same as maps (B, D, F/f, T/t)."""
        whole: torch.Tensor = self.proj(channels[:, :1])
        if longer is None:
            return whole
        fused: torch.Tensor = self.fusion_model(whole, self.parts(channels[:, 1:], whole.shape[-1]))
        if self.gate is not None:
            fused = whole + self.gate.view(1, -1, 1, 1) * (fused - whole)
        return torch.where(longer.view(-1, 1, 1, 1), fused, whole)

    def parts(self, channels: torch.Tensor, columns: int) -> torch.Tensor:
        """Parts (B, 3, F, T), one after another in time: (B, D, F/f, columns), with zeros behind what there is."""
        batch = len(channels)
        long_patches = self.mel_conv2d(channels.flatten(0, 1).unsqueeze(1)).unflatten(0, (batch, PARTS))
        in_order = torch.cat(long_patches.unbind(dim=1), dim=-1)
        return F.pad(in_order, (0, columns - in_order.shape[-1]))
