"""The numbers of NBD, compared with a second list that was written by hand."""

from __future__ import annotations

import errno

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    REQUEST_SIZE,
    Command,
    CommandFlag,
    Errno,
    HandshakeFlag,
    HandshakeRefused,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
    constants,
    describe_errno,
    errno_to_wire,
)


def numbers(enum):
    return {member.name: int(member) for member in enum}


class ConstantsTests(SynchronousTestCase):
    def test_the_magic_numbers_are_those_of_the_protocol(self):
        self.assertEqual(b"NBDMAGIC", constants.NBD_MAGIC.to_bytes(8, "big"))
        self.assertEqual(b"IHAVEOPT", constants.OPTION_MAGIC.to_bytes(8, "big"))
        self.assertEqual(0x00420281861253, constants.OLDSTYLE_MAGIC)
        self.assertEqual(0x3E889045565A9, constants.OPTION_REPLY_MAGIC)
        self.assertEqual(0x25609513, constants.REQUEST_MAGIC)
        self.assertEqual(0x67446698, constants.SIMPLE_REPLY_MAGIC)
        self.assertEqual(10809, constants.DEFAULT_PORT)

    def test_the_flags_have_the_numbers_of_the_protocol(self):
        self.assertEqual({"FIXED_NEWSTYLE": 1, "NO_ZEROES": 2}, numbers(HandshakeFlag))
        names = [
            "HAS_FLAGS",
            "READ_ONLY",
            "SEND_FLUSH",
            "SEND_FUA",
            "ROTATIONAL",
            "SEND_TRIM",
            "SEND_WRITE_ZEROES",
            "SEND_DF",
            "CAN_MULTI_CONN",
            "SEND_RESIZE",
            "SEND_CACHE",
            "SEND_FAST_ZERO",
        ]
        self.assertEqual({n: 1 << bit for bit, n in enumerate(names)}, numbers(TransmissionFlag))
        names = ["FUA", "NO_HOLE", "DF", "REQ_ONE", "FAST_ZERO", "PAYLOAD_LEN"]
        self.assertEqual({n: 1 << bit for bit, n in enumerate(names)}, numbers(CommandFlag))

    def test_options_and_replies_have_the_numbers_of_the_protocol(self):
        expected = {
            "EXPORT_NAME": 1,
            "ABORT": 2,
            "LIST": 3,
            "STARTTLS": 5,
            "INFO": 6,
            "GO": 7,
            "STRUCTURED_REPLY": 8,
            "LIST_META_CONTEXT": 9,
            "SET_META_CONTEXT": 10,
        }
        self.assertEqual(expected, numbers(Option))
        names = "UNSUP POLICY INVALID PLATFORM TLS_REQD UNKNOWN SHUTDOWN BLOCK_SIZE_REQD TOO_BIG"
        errors = {f"ERR_{name}": 2**31 + 1 + i for i, name in enumerate(names.split())}
        replies = {"ACK": 1, "SERVER": 2, "INFO": 3, "META_CONTEXT": 4}
        self.assertEqual({**replies, **errors}, numbers(OptionReply))
        self.assertEqual(
            {"EXPORT": 0, "NAME": 1, "DESCRIPTION": 2, "BLOCK_SIZE": 3}, numbers(InfoType)
        )

    def test_commands_and_errors_have_the_numbers_of_the_protocol(self):
        names = ["READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"]
        self.assertEqual({n: i for i, n in enumerate(names)}, numbers(Command))
        expected = {
            "OK": 0,
            "EPERM": 1,
            "EIO": 5,
            "ENOMEM": 12,
            "EINVAL": 22,
            "ENOSPC": 28,
            "EOVERFLOW": 75,
            "ENOTSUP": 95,
            "ESHUTDOWN": 108,
        }
        self.assertEqual(expected, numbers(Errno))

    def test_headers_and_limits_have_the_sizes_of_the_protocol(self):
        self.assertEqual(28, REQUEST_SIZE)
        self.assertEqual(4096, constants.MAXIMUM_NAME)
        self.assertEqual(2**32 - 1, constants.MAXIMUM_LENGTH)


class ErrorTests(SynchronousTestCase):
    def test_local_errors_map_to_NBD_errors(self):
        for local, wire in {
            errno.EPERM: 1,
            errno.EACCES: 1,
            errno.EROFS: 1,
            errno.EIO: 5,
            errno.ENOMEM: 12,
            errno.EINVAL: 22,
            errno.ENOSPC: 28,
            errno.EDQUOT: 28,
            errno.EFBIG: 28,
            errno.EOPNOTSUPP: 95,
            errno.ESTALE: 5,
            errno.ENXIO: 5,
            None: 5,
            0: 5,
        }.items():
            self.assertEqual(wire, errno_to_wire(local), local)

    def test_errors_are_described_by_their_names(self):
        self.assertEqual("ENOSPC", describe_errno(28))
        self.assertEqual("error 77", describe_errno(77))

    def test_refused_options_are_described_by_their_names(self):
        self.assertEqual("ERR_POLICY", str(HandshakeRefused(2**31 + 2)))
        self.assertEqual("ERR_POLICY: not you", str(HandshakeRefused(2**31 + 2, "not you")))
        self.assertEqual("error 0x800000ff", str(HandshakeRefused(0x800000FF)))
