"""A server in a thread, and requests byte by byte."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from m2dprep.evaluation.serving.guard import Guard, guard_for
from m2dprep.evaluation.serving.opening import Shown, open_site
from m2dprep.evaluation.serving.serve import LOCAL, address, answer_until_told, listening
from m2dprep.evaluation.serving.site import Site
from m2dprep.evaluation.serving.words import Words
from tests.evaluation.serving.made_store import Kinds


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(frozen=True)
class Client:
    """Asks a server at ``port``; ``before`` comes before every path."""

    port: int
    before: str = ""

    def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            given = dict(headers or {})
            connection.putrequest(method, self.before + path, skip_host="Host" in given, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()


@contextmanager
def served(shown: Shown, *, words: bool = True, guard: Guard | None = None) -> Iterator[tuple[Site, str, Client]]:
    """What is shown, the address of its page, and a client, while a server in a thread answers."""
    site = open_site(shown)
    if words:
        site.words.wait(60)
        site = replace(site, words=Words(Kinds))
        site.words.wait(60)
    guard = guard or guard_for(LOCAL)
    sockets = listening("127.0.0.1", 0)
    started, stops = threading.Event(), []

    def ready(stop: Any) -> None:
        stops.append(stop)
        started.set()

    run = threading.Thread(
        target=lambda: asyncio.run(answer_until_told(site, guard, sockets, ready, signals=())), daemon=True
    )
    run.start()
    try:
        assert started.wait(60)
        before = f"/{guard.token}" if guard.token else ""
        yield site, address("127.0.0.1", sockets, guard), Client(sockets[0].getsockname()[1], before)
    finally:
        stops[0]()
        run.join(60)
        assert not run.is_alive()
