"""A server that holds its clients and passes them on when it is told to; run as a process.

    relaying.py DISK SOCKET TARGET_URI [OPTION=VALUE ...]

It listens on TCP and on the UNIX socket. SIGUSR1: hold. SIGUSR2: relay. SIGTERM: stop. What it does
is told as blockmig's JSON log lines are.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.logger import formatEvent, globalLogPublisher

from blockmig.client import Destination
from blockmig.nbd import parse_uri
from blockmig.runtime import Runtime
from blockmig.server import Relay, Server
from blockmig.storage import FileDisk
from blockmig.transport import (
    client_endpoint,
    listen,
    listening_uris,
    server_endpoint,
)


def say(event: str, **more: Any) -> None:
    sys.stderr.write(json.dumps({"event": event, **more}) + "\n")
    sys.stderr.flush()


def log(event: Any) -> None:
    if event.get("isError") or str(event.get("log_namespace", "")).startswith("blockmig"):
        say(str(event.get("event", "log")), message=formatEvent(event))


async def main(path: str, socket: str, target: str, *options: str) -> None:
    named = dict(option.split("=", 1) for option in options)
    globalLogPublisher.addObserver(log)
    await deferLater(reactor, 0)  # behind which the reactor sets no signal's handler any more
    disk = FileDisk(path)
    server = Server(disk, max_connections=int(named.get("max_connections", "0")))
    for where in ("tcp:0:interface=127.0.0.1", f"unix:{socket}"):
        port = await listen(reactor, server_endpoint(reactor, where), server.factory(), where)
        say("listening", uri=listening_uris(port, "")[0][0])
    uri = parse_uri(target)

    def hold() -> None:
        server.hold().addCallback(lambda _: say("held"))

    def relay() -> None:
        way = client_endpoint(reactor, uri)
        server.relay(
            Relay(
                Destination(way, uri.export),
                receiver_export=named.get("receiver"),
                linger=float(named.get("linger", "0")),
                runtime=Runtime.of(reactor),
            )
        )
        say(server.state)

    for number, act in (
        (signal.SIGUSR1, hold),
        (signal.SIGUSR2, relay),
        (signal.SIGTERM, server.stop),
    ):
        signal.signal(number, lambda *_, act=act: reactor.callFromThread(act))  # type: ignore[misc]
    await server.complete()
    disk.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say("complete", peak=peak, clients=len(server.status()["clients"]))


if __name__ == "__main__":
    react(lambda _: Deferred.fromCoroutine(main(*sys.argv[1:])))
