"""--max-failures: numbers and percentages."""

import pytest

from m2dprep.artifacts.errors import FailureLimit, TooManyFailuresError, UserError, top_reasons


@pytest.mark.parametrize(
    ("text", "failed", "inputs", "exceeded"),
    [
        ("1%", 1, 100, False),
        ("1%", 2, 100, True),
        ("1%", 1, 10, True),
        ("0%", 0, 10, False),
        ("0", 1, 10, True),
        ("25", 25, 26, False),
        ("25", 26, 1000, True),
        (" 0.5 % ", 5, 1000, False),
        ("100%", 7, 7, False),
    ],
)
def test_limits(text: str, failed: int, inputs: int, exceeded: bool) -> None:
    limit = FailureLimit.parse(text)
    assert limit.exceeded(failed, inputs) is exceeded
    if exceeded:
        with pytest.raises(TooManyFailuresError, match="see the rows") as caught:
            limit.require(failed, inputs, "the rows")
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", ["", "-1", "101%", "1.5", "many", "%", "1e3", "nan"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UserError, match="--max-failures"):
        FailureLimit.parse(text)


def test_reasons_commonest_first() -> None:
    reasons = {"b": 2, "a": 2, "c": 7, "d": 1, "e": 1, "f": 1}
    assert top_reasons(reasons) == "c 7, a 2, b 2, d 1, e 1, 1 more"
    assert top_reasons({}) == ""
