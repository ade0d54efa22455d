"""Devices to run the same test on. Files of such tests are named test_gpu.py: `make gpu` runs them on a GPU.

They import nothing that a GPU machine need not have, as the package with a small text encoder.
"""

from __future__ import annotations

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.gpu),
    pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu]),
]
