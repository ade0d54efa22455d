"""The names of the ways to deal with the length of clips, to fuse channels, and to fill up short clips."""

from __future__ import annotations

AFF, DAF, IAFF, NONE = FUSIONS = ("aff", "daf", "iaff", "none")
PAD, REPEAT_PAD, REPEAT = FILLS = ("pad", "repeatpad", "repeat")
# The whole clip, and parts of its front, its middle and its back.
CHANNELS, PARTS = 4, 3
# A clip is encoded in chunks of the input's width, as one sequence of patches, or in fused channels.
CHUNKS, WHOLE, FUSED = LENGTHS = ("chunks", "whole", "fused")
# The positions of patches in a clip that is encoded whole (`m2dclap.whole`).
INTERPOLATED, CHUNKED = POSITIONS = ("interpolated", "chunked")
