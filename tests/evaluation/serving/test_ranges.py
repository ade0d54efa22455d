"""What is sent for which range and which condition, as RFC 9110 has it."""

from __future__ import annotations

import pytest

from m2dprep.evaluation.serving.ranges import Answer, Version, answer

SIZE = 100
VERSION = Version('"abc"', 1_700_000_000.5)
DATE, EARLIER, LATER = (
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "Tue, 14 Nov 2023 22:13:19 GMT",
    "Wed, 15 Nov 2023 00:00:00 GMT",
)
WHOLE, NONE, NOT_MODIFIED = Answer(200, 0, 100), Answer(416), Answer(304)  # type: ignore[arg-type]


def part(start: int, stop: int) -> Answer:
    return Answer(206, start, stop)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", part(0, 100)),
        ("bytes=0-0", part(0, 1)),
        ("bytes=10-19", part(10, 20)),
        ("bytes=99-", part(99, 100)),
        ("bytes=90-1000", part(90, 100)),
        ("bytes=-1", part(99, 100)),
        ("bytes=-100", part(0, 100)),
        ("bytes=-1000", part(0, 100)),
        ("Bytes = 1 - 2", part(1, 3)),
        ("bytes=100-", NONE),
        ("bytes=100-200", NONE),
        ("bytes=999999999999999999-", NONE),
        ("bytes=-0", NONE),
        # What is no range, several ranges, and other units: all bytes, as if nothing had been asked for.
        ("bytes=9-5", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=0-9,20-29", WHOLE),
        ("bytes=--5", WHOLE),
        ("bytes=+1-2", WHOLE),
        ("bytes=٠-٩", WHOLE),
        ("bytes=" + "9" * 5000 + "-", WHOLE),
        ("seconds=0-9", WHOLE),
        ("", WHOLE),
    ],
)
def test_ranges(header: str, expected: Answer) -> None:
    assert answer({"Range": header}, SIZE, VERSION) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"If-None-Match": '"abc"'}, NOT_MODIFIED),
        ({"If-None-Match": 'W/"abc"'}, NOT_MODIFIED),
        ({"If-None-Match": '"x", "abc"'}, NOT_MODIFIED),
        ({"If-None-Match": "*"}, NOT_MODIFIED),
        ({"If-None-Match": '"x"'}, WHOLE),
        ({"If-None-Match": "abc"}, WHOLE),
        ({"If-Modified-Since": DATE}, NOT_MODIFIED),
        ({"If-Modified-Since": LATER}, NOT_MODIFIED),
        ({"If-Modified-Since": EARLIER}, WHOLE),
        ({"If-Modified-Since": "yesterday"}, WHOLE),
        ({"If-None-Match": '"x"', "If-Modified-Since": LATER}, WHOLE),
        ({"If-None-Match": '"abc"', "Range": "bytes=0-9"}, NOT_MODIFIED),
        ({"If-Range": '"abc"', "Range": "bytes=0-9"}, part(0, 10)),
        ({"If-Range": DATE, "Range": "bytes=0-9"}, part(0, 10)),
        ({"If-Range": '"x"', "Range": "bytes=0-9"}, WHOLE),
        ({"If-Range": 'W/"abc"', "Range": "bytes=0-9"}, WHOLE),
        ({"If-Range": LATER, "Range": "bytes=0-9"}, WHOLE),
        ({"If-Range": '"x"', "Range": "bytes=500-"}, WHOLE),
    ],
)
def test_conditions_come_before_ranges(headers: dict[str, str], expected: Answer) -> None:
    assert answer(headers, SIZE, VERSION) == expected


def test_what_has_no_date_is_never_unmodified_by_date() -> None:
    assert answer({"If-Modified-Since": LATER}, SIZE, Version('"abc"')) == WHOLE
