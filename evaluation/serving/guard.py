"""Who may ask: a request must name this machine as it is known here, come from the page itself, and have the token.

A page elsewhere may make a browser on this machine send requests here. It cannot choose the Host that its own name
resolves to (DNS rebinding), nor hide that it is elsewhere (Fetch metadata), nor know the token.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TOKEN_BYTES = 24
LOCAL_NAMES = frozenset({"localhost"})
# Where a browser says that a request is from: an address that was typed, or the page itself.
FROM_HERE = ("none", "same-origin")
NAVIGATION = "navigate"


@dataclass(frozen=True)
class Guard:
    """``names`` are the host names, in lower case, by which a machine that is not bound to 127.0.0.1 is known."""

    is_local: bool
    token: str = ""
    names: frozenset[str] = field(default_factory=frozenset)

    def knows(self, host: str) -> bool:
        """Whether a Host header names this machine. Any port will do, because tunnels have their own."""
        name = host_of(host)
        if name is None:
            return False
        address = _address(name)
        if address is not None:
            return not self.is_local or address.is_loopback
        return name in LOCAL_NAMES or name in self.names

    def is_from_here(self, headers: Mapping[str, str]) -> bool:
        """Whether a request is not one that another site's page makes. Old browsers and programs do not say."""
        site = headers.get("Sec-Fetch-Site")
        is_link = headers.get("Sec-Fetch-Mode") == NAVIGATION and headers.get("Sec-Fetch-Dest") == "document"
        return site is None or site in FROM_HERE or is_link

    def has_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


def guard_for(host: str, names: Iterable[str] = (), *, token: bool = False) -> Guard:
    """The guard of a server that is bound to ``host``: a random token if others can reach it, or if it is wanted."""
    known = {name.lower() for name in names}
    if is_loopback(host):
        return Guard(True, secrets.token_urlsafe(TOKEN_BYTES) if token else "", frozenset(known))
    known |= {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return Guard(False, secrets.token_urlsafe(TOKEN_BYTES), frozenset(known))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to ``host``."""
    address = _address(host)
    return host.lower() in LOCAL_NAMES or (address is not None and address.is_loopback)


def host_of(header: str) -> str | None:
    """The name or address in a Host header, in lower case, without brackets, port and final dot; None if malformed."""
    text = header.strip().lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        port = port.removeprefix(":")
        if not bracket or (port and not port.isdecimal()):
            return None
        return name
    name, _, port = text.partition(":")
    if ":" in port or (port and not (port.isascii() and port.isdecimal())):
        return None
    return name.removesuffix(".") or None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
