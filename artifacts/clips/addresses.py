"""Addresses of sounds on servers (``s3://bucket/wavs``): how they are recognised, and shown without what is secret."""

from __future__ import annotations

import re
from urllib.parse import unquote

# ``https://host/x``, and what fsspec chains: ``zip://a::https://host/x.zip``, ``simplecache::s3://bucket/x``.
ADDRESS = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")
# The name and the password before a host, and what follows the path of an address: signatures and tokens.
USER = re.compile(r"(?<=://)[^/\s?#'\"<>]*@")
QUERY = re.compile(r"(://[^\s?#'\"<>]*)[?#][^\s'\"<>]*?(?=::|[\s'\"<>]|$)")
# Shorter values in a query, such as version=2, are no secrets, and occur elsewhere.
SECRET_LENGTH = 6


def is_address(text: str) -> bool:
    """Whether a text is an address, not a path."""
    return ADDRESS.match(text) is not None


def without_secrets(text: str, address: str = "") -> str:
    """``text`` without the passwords and signatures of the addresses in it, nor those of ``address`` anywhere."""
    is_all = text == address
    for secret in _secrets(address):
        text = text.replace(secret, "…")
    if is_all:  # it may have spaces in it
        text = "::".join(re.split(r"[?#]", part, maxsplit=1)[0] for part in text.split("::"))
    return QUERY.sub(r"\1", USER.sub("", text))


def _secrets(address: str) -> list[str]:
    """The password and the values of a query in an address, as they are written and as they are meant."""
    users = [user.rstrip("@").partition(":")[2] for user in USER.findall(address)]
    queries = re.findall(r"[?&][^=&#\s:]+=([^&#\s]+?)(?=::|[&#\s]|$)", address)
    found = {form for secret in (*users, *queries) for form in (secret, unquote(secret))}
    return sorted((secret for secret in found if len(secret) >= SECRET_LENGTH), key=lambda secret: -len(secret))
