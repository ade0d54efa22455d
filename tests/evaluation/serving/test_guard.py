"""Who may ask: names of this machine and no others, the page and no other site, and who has the token."""

from __future__ import annotations

import socket

import pytest

from m2dprep.evaluation.serving.guard import guard_for, host_of, is_loopback

LOCAL = guard_for("127.0.0.1")
OPEN = guard_for("0.0.0.0", ["sounds.example"])


@pytest.mark.parametrize(
    ("host", "local", "everywhere"),
    [
        ("127.0.0.1:8484", True, True),
        ("127.0.0.1", True, True),
        ("localhost:9000", True, True),  # through a tunnel, from another port
        ("LOCALHOST", True, True),
        ("localhost.:8484", True, True),
        ("[::1]:8484", True, True),
        ("127.3.2.1", True, True),
        ("10.0.0.7:8484", False, True),
        ("[fe80::1]", False, True),
        (socket.gethostname(), False, True),
        ("sounds.example:8484", False, True),
        ("SOUNDS.example", False, True),
        # Names that a page elsewhere may have made resolve to 127.0.0.1.
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("127.0.0.1.nip.io:8484", False, False),
        ("evil.example:127.0.0.1", False, False),
        ("user@127.0.0.1", False, False),
        ("127.0.0.1:8484:1", False, False),
        ("127.0.0.1,evil.example", False, False),
        ("[::1", False, False),
        ("[::1]x", False, False),
        ("2130706433", False, False),
        ("0x7f000001", False, False),
        ("", False, False),
        (" ", False, False),
    ],
)
def test_the_host_must_be_a_name_of_this_machine(host: str, local: bool, everywhere: bool) -> None:
    assert LOCAL.knows(host) is local
    assert OPEN.knows(host) is everywhere


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "audio"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, False),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, False),
    ],
)
def test_other_sites_may_link_here_and_nothing_else(headers: dict[str, str], expected: bool) -> None:
    assert LOCAL.is_from_here(headers) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.7", False), ("", False), ("example.org", False)],
)  # fmt: skip
def test_there_is_a_token_exactly_where_others_can_reach_the_server(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    guard = guard_for(host)
    assert (not guard.token) is expected
    if guard.token:
        assert len(guard.token) >= 32
        assert guard.token != guard_for(host).token
        assert guard.has_token(guard.token)
        assert not any(guard.has_token(other) for other in ("", guard.token[:-1], guard.token + "x", "é"))


def test_a_token_can_be_wanted_on_this_machine_too() -> None:
    assert guard_for("127.0.0.1", token=True).token


@pytest.mark.parametrize("header", ["a:b", "a:1:2", "[::1]:x", "[", ":", "a:٣"])
def test_malformed_hosts_are_none(header: str) -> None:
    assert host_of(header) is None
