"""Channels become one: whatever the way the sum is made, it is the sum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m2dprep.audioprep.decoding.sound import mix

INT16 = st.integers(-32768, 32767)


@given(arrays(np.int16, st.tuples(st.integers(1, 50), st.integers(1, 8)), elements=INT16))
def test_sums_of_16_bit_samples_are_exact(block: np.ndarray) -> None:
    mono = mix(block)
    assert mono.dtype == np.float32
    np.testing.assert_array_equal(mono, block.astype(np.int64).sum(axis=1))


@pytest.mark.parametrize("pair", [(-32768, -32768), (32767, 32767), (-32768, 32767), (32767, -32768), (-1, 0), (0, -1)])
def test_the_extremes_of_a_pair(pair: tuple[int, int]) -> None:
    assert mix(np.array([pair], np.int16)).tolist() == [sum(pair)]


def test_a_block_that_is_a_part_of_a_wider_one() -> None:
    wide = np.arange(24, dtype=np.int16).reshape(6, 4)
    np.testing.assert_array_equal(mix(wide[:, 1:3]), wide[:, 1] + wide[:, 2])
