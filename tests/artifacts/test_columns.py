"""Operations on columns equal what one row at a time would give, at every length where they choose another way."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.columns import index_in, repeats, runs, take

TEXTS = st.one_of(
    *(st.lists(st.text("ab", min_size=width, max_size=width), max_size=12) for width in (7, 8, 11, 16, 17)),
    st.lists(st.text("aé", max_size=12), max_size=12),
)


def strings(texts: list[str]) -> pa.Array:
    """An array that begins and ends within larger buffers."""
    return pa.array(["before", *texts, "after"], pa.string())[1:-1]


@pytest.mark.slow
@given(TEXTS, TEXTS)
def test_names_are_found_be_they_few_or_many(values: list[str], others: list[str]) -> None:
    unique = list(dict.fromkeys(others))
    expected = [unique.index(value) if value in unique else None for value in values]
    assert index_in(strings(values), strings(unique)).to_pylist() == expected
    for value in values:
        assert index_in(strings([value]), strings(unique)).to_pylist() == [expected[values.index(value)]]


def test_null_names_are_none_of_the_texts() -> None:
    assert index_in(pa.array(["a", None, "b"], pa.string()), strings(["b", "c"])).to_pylist() == [None, None, 0]


@given(TEXTS)
def test_repeats_and_runs(texts: list[str]) -> None:
    unique = list(dict.fromkeys(texts))
    assert repeats(strings(texts)).tolist() == [row for row, text in enumerate(texts) if text in texts[:row]]
    values, numbers = runs(strings(texts))
    assert values.to_pylist() == unique
    assert numbers.tolist() == [unique.index(text) for text in texts]


@given(st.lists(st.lists(st.text("ab", max_size=2), max_size=4), max_size=4), st.randoms())
def test_take(chunks: list[list[str]], random: object) -> None:
    column = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string())
    texts = [text for chunk in chunks for text in chunk]
    rows = [random.randrange(len(texts)) for _ in range(5)] if texts else []  # type: ignore[attr-defined]
    assert take(column, np.array(rows, np.int64)).to_pylist() == [texts[row] for row in rows]
