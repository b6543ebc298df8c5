"""A client that speaks TLS with a server, byte by byte: OpenSSL in the hands of the test."""

from __future__ import annotations

import contextlib
import struct

from OpenSSL import SSL

from blockmig.nbd import ClientTransmission, Reply
from tests.support.tls import world

from .served import FIXED, SocketDouble, go, option
from .support import ADDRESS, option_replies, request_bytes

STARTTLS = option(5)
ACK = struct.pack("!QIII", 0x3E889045565A9, 5, 1, 0)
END = b"<END>"


class TLSPeer:
    """A client on a C{SocketDouble}, which has not said anything yet.

    @param tls: its policy; None for one with a certificate that is let in.
    """

    def __init__(self, factory, clock, tls=None, room=None):
        self.clock = clock
        self.socket = SocketDouble(clock, room)
        self.connection = factory.buildProtocol(ADDRESS)
        self.tls = (tls or world().client).creator().clientConnectionForTLS(None)
        self.tls.set_connect_state()
        self.wire = ClientTransmission()
        self.socket.connect(self.connection)
        self.run()

    @property
    def open(self):
        return not (self.socket.lost or self.socket.closing or self.socket.aborted)

    def run(self):
        for _ in range(100):
            self.socket.run()
            calls = len(self.clock.getDelayedCalls())
            self.clock.advance(0)
            if not self.socket.turn() and calls == len(self.clock.getDelayedCalls()):
                return
        raise AssertionError("it never rests")

    # In plain.

    def say_plain(self, data):
        """What is answered."""
        self.socket.incoming.append(data)
        self.run()
        return self.plain()

    def plain(self):
        data = bytes(self.socket.out)
        self.socket.out.clear()
        return data

    def start_tls(self):
        """Until TLS stands, or has failed."""
        self.plain()
        answer = self.say_plain(FIXED + STARTTLS)
        assert answer == ACK
        self.shake()

    # TLS.

    def shake(self):
        for _ in range(4):
            with contextlib.suppress(SSL.WantReadError):
                self.tls.do_handshake()
            self.flush()

    def flush(self):
        """What TLS has to say arrives there, and what is answered arrives here."""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self.socket.incoming.append(self.tls.bio_read(1 << 16))
        self.run()
        if data := self.plain():
            self.tls.bio_write(data)

    def say(self, data):
        """Say it inside TLS; what is answered there."""
        while data:
            data = data[self.tls.send(data) :]
        self.flush()
        return self.hear()

    def hear(self):
        self.flush()
        data = b""
        try:
            while True:
                data += self.tls.recv(1 << 16)
        except SSL.WantReadError:
            return data
        except SSL.ZeroReturnError:
            return data + END
        except SSL.SysCallError:
            return data

    # NBD inside TLS.

    def go(self, export=b""):
        """The kinds of the replies."""
        return [kind for _, kind, _ in option_replies(self.say(go(export)))]

    def ask(self, command, offset=0, length=0, payload=b""):
        """The error of the reply, and its data."""
        _, header = self.wire.request(command, offset, length or len(payload))
        self.wire.receive_data(self.say(header + payload))
        error, data = None, b""
        while (event := self.wire.next_event()) is not None:
            if isinstance(event, Reply):
                error = event.error
            elif hasattr(event, "data"):
                data += bytes(event.data)
        return error, data

    def disconnect(self):
        """DISC, and nothing behind it."""
        self.say(request_bytes(2))

    def end_of_stream(self):
        """TCP's; TLS has said nothing."""
        self.connection.readConnectionLost()
        self.run()
