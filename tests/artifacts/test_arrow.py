"""pyarrow does not import pandas by itself, and still converts to it when asked."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from m2dprep.artifacts.process import keep_pandas_out
if "imported before" in sys.argv:
    import pandas
keep_pandas_out()
import pyarrow
table = pyarrow.table({"a": pyarrow.array([1, 2])})
assert ("pandas" in sys.modules) == ("imported before" in sys.argv)
assert table.to_pandas()["a"].tolist() == [1, 2]
assert pyarrow.Table.from_pandas(table.to_pandas()).equals(table)
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["imported before", "not imported"])
def test_pandas_is_imported_only_when_something_is_converted(state: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, state], check=True)
