"""Fingerprints change with every key and value, and a conflict names what differs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.digests import caption_digest, differing_keys, fingerprint, require_same
from m2dprep.artifacts.errors import FingerprintConflictError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
CONFIGURATIONS = st.dictionaries(st.text(max_size=5), JSON, max_size=5)


@pytest.mark.slow
@given(CONFIGURATIONS)
def test_key_order_is_irrelevant(configuration: dict) -> None:
    assert fingerprint(configuration) == fingerprint(dict(reversed(configuration.items())))
    assert differing_keys(configuration, configuration) == []


@pytest.mark.slow
@given(CONFIGURATIONS, st.text(max_size=5), st.integers())
def test_a_changed_value_is_seen_and_named(configuration: dict, key: str, value: int) -> None:
    changed = {**configuration, key: [value, "changed"]}
    if changed != configuration:
        assert fingerprint(changed) != fingerprint(configuration)
        assert any(line.startswith(f"{key}") for line in differing_keys(configuration, changed))


def test_conflict_names_nested_keys_and_values() -> None:
    with pytest.raises(FingerprintConflictError, match=r"log_mel\.hop_length: 160 → 320") as caught:
        require_same({"log_mel": {"hop_length": 160}, "a": 1}, {"log_mel": {"hop_length": 320}, "a": 1}, Path("out"))
    assert caught.value.exit_code == 5
    assert "--overwrite" in str(caught.value)
    assert "a:" not in str(caught.value)


@pytest.mark.slow
@given(st.text(), st.text())
def test_caption_digests_differ_where_the_texts_do(one: str, other: str) -> None:
    assert len(caption_digest(one)) == 16
    assert (caption_digest(one) == caption_digest(other)) == (one == other)
