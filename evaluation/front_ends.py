"""Whether log-mels on disk are of the front end that a model hears with, by what their conversion has noted.

Those of 16 and of 32 kHz have equally many bins, so that nothing in the numbers themselves tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from m2dprep.artifacts.digests import differing_keys
from m2dprep.artifacts.errors import UserError
from m2dprep.artifacts.layout import LmsLayout, conversion_folder
from m2dprep.artifacts.log_mels.records import read_config
from m2dprep.audioprep.config import ConvertConfig, LogMelConfig


def require_front_end(folders: Iterable[Path], wanted: LogMelConfig) -> None:
    """Raise `UserError` if the log-mels in one of the ``folders`` were made by another front end than ``wanted``.

    A folder may lie anywhere within one of `m2dprep melspec`. Of folders that no conversion has made, nothing is known.
    """
    converted = {conversion_folder(folder) for folder in set(folders)}
    for place in sorted(one for one in converted if one is not None):
        if (config := read_config(LmsLayout(place))) is None:
            continue
        found = ConvertConfig.from_dict(config["config"]).log_mel
        if lines := differing_keys(asdict(found), asdict(wanted)):
            raise UserError(
                f"{place} holds log-mels of another front end than the model's ({'; '.join(lines)}); convert the "
                "sounds anew, or give the sounds themselves."
            )
