"""Which requests are allowed, and which error answers the others (design, section 3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    Command,
    CommandFlag,
    Errno,
    Export,
    Request,
    TransmissionFlag,
    changes_the_disk,
    check_request,
    describe_refusal,
)

ALL = TransmissionFlag((1 << 12) - 1) & ~TransmissionFlag.READ_ONLY
EXPORT = Export("", 100_000, ALL)
READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES
CACHE, STATUS = Command.CACHE, Command.BLOCK_STATUS


class RulesTests(SynchronousTestCase):
    def check(self, expected, command, offset=0, length=0, flags=0, export=EXPORT, allocation=True):
        found = check_request(Request(flags, command, 7, offset, length), export, allocation)
        self.assertEqual((expected, command, flags), (found, command, flags))

    def test_requests_up_to_the_end_of_the_disk_are_allowed(self):
        for command in (READ, WRITE, TRIM, ZEROES):
            self.check(Errno.OK, command, 0, 100_000)
            self.check(Errno.OK, command, 99_999, 1)
        self.check(Errno.OK, FLUSH)

    def test_requests_past_the_end_are_refused(self):
        for command, error in {
            WRITE: Errno.ENOSPC,
            ZEROES: Errno.ENOSPC,
            READ: Errno.EINVAL,
            TRIM: Errno.EINVAL,
        }.items():
            self.check(error, command, 0, 100_001)
            self.check(error, command, 99_999, 2)
            self.check(error, command, 100_000, 1)

    def test_offset_and_length_cannot_wrap_around(self):
        for offset in (2**64 - 1, 2**64 - 4096, 2**63, 2**64 - 2**32 + 1):
            for length in (1, 4096, 2**32 - 1):
                self.check(Errno.ENOSPC, WRITE, offset, length)
                self.check(Errno.ENOSPC, ZEROES, offset, length)
                self.check(Errno.EINVAL, READ, offset, length)
                self.check(Errno.EINVAL, TRIM, offset, length)

    def test_changes_to_a_read_only_export_are_refused(self):
        export = EXPORT._replace(flags=ALL | TransmissionFlag.READ_ONLY)
        for command in (WRITE, TRIM, ZEROES):
            self.check(Errno.EPERM, command, 0, 1, export=export)
            self.check(Errno.EPERM, command, 10**9, 1, export=export)
        self.check(Errno.OK, READ, 0, 1, export=export)
        self.check(Errno.OK, FLUSH, export=export)

    def test_unknown_commands_are_invalid(self):
        for command in (8, 99, 65535):
            self.check(Errno.EINVAL, command, 0, 1)

    def test_command_flags_that_are_not_offered_are_invalid(self):
        for command, flag, offer in (
            (READ, CommandFlag.DF, TransmissionFlag.SEND_DF),
            (ZEROES, CommandFlag.FAST_ZERO, TransmissionFlag.SEND_FAST_ZERO),
        ):
            without = EXPORT._replace(flags=ALL & ~offer)
            self.check(Errno.EINVAL, command, 0, 1, flag, without)
            self.check(Errno.OK, command, 0, 1, 0, without)

    def test_BLOCK_STATUS_without_a_context_is_invalid(self):
        self.check(Errno.EINVAL, STATUS, 0, 1, allocation=False)
        self.check(Errno.OK, STATUS, 0, 1)

    def test_commands_that_are_not_offered_are_invalid(self):
        for command, flag in {
            TRIM: TransmissionFlag.SEND_TRIM,
            ZEROES: TransmissionFlag.SEND_WRITE_ZEROES,
            FLUSH: TransmissionFlag.SEND_FLUSH,
            CACHE: TransmissionFlag.SEND_CACHE,
        }.items():
            length = 0 if command == FLUSH else 1
            self.check(Errno.OK, command, 0, length)
            self.check(Errno.EINVAL, command, 0, length, export=EXPORT._replace(flags=ALL & ~flag))

    def test_each_command_allows_only_its_own_flags(self):
        further = {
            READ: CommandFlag.DF,
            ZEROES: CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
            STATUS: CommandFlag.REQ_ONE,
        }
        for command in (READ, WRITE, TRIM, ZEROES, FLUSH, CACHE, STATUS):
            length = 0 if command == FLUSH else 1
            self.check(Errno.OK, command, 0, length, CommandFlag.FUA)
            for bit in range(1, 16):
                allowed = 1 << bit & further.get(command, 0)
                expected = Errno.OK if allowed else Errno.EINVAL
                self.check(expected, command, 0, length, 1 << bit)
                self.check(expected, command, 0, length, 1 << bit | CommandFlag.FUA)

    def test_requests_of_length_zero_are_invalid(self):
        for command in (READ, WRITE, TRIM, ZEROES):
            self.check(Errno.EINVAL, command, 0, 0)

    def test_FLUSH_with_a_range_is_invalid(self):
        self.check(Errno.EINVAL, FLUSH, 1, 0)
        self.check(Errno.EINVAL, FLUSH, 0, 1)

    def test_requests_that_do_not_fit_the_blocks_are_invalid(self):
        export = Export("", 8192, ALL, minimum_block=512)
        for command in (READ, WRITE, TRIM, ZEROES):
            self.check(Errno.OK, command, 512, 1024, export=export)
            self.check(Errno.EINVAL, command, 1, 512, export=export)
            self.check(Errno.EINVAL, command, 512, 511, export=export)

    def test_payloads_longer_than_the_limit_are_invalid(self):
        export = Export("", 10**6, ALL, maximum_payload=65536)
        for command in (READ, WRITE):
            for tolerated in (65536, 65537, 2 * 65536):
                self.check(Errno.OK, command, 0, tolerated, export=export)
            self.check(Errno.EINVAL, command, 0, 2 * 65536 + 1, export=export)
        for command in (TRIM, ZEROES):
            self.check(Errno.OK, command, 0, 10**6, export=export)

    def test_each_refusal_has_its_words(self):
        export = Export("", 10**6, ALL, maximum_payload=65536)
        blocks = Export("", 8192, ALL, minimum_block=512)
        read_only = Export("", 8192, ALL | TransmissionFlag.READ_ONLY)
        few = Export("", 8192, TransmissionFlag.HAS_FLAGS)
        for export_, command, flags, offset, length, kind, words in (
            (export, READ, 0, 0, 131073, "long", "at most 131072 bytes are served at a time"),
            (export, WRITE, 0, 0, 131073, "long", "at most 131072 bytes are served at a time"),
            (export, READ, 0, 10**6, 1, "range", "the disk has 1000000 bytes"),
            (export, TRIM, 0, 2**64 - 1, 2, "range", "the disk has 1000000 bytes"),
            (export, 77, 0, 0, 1, "unknown", "it is not known"),
            (export, READ, 0, 0, 0, "empty", "it has no length"),
            (blocks, READ, 0, 1, 512, "block", "only multiples of 512 bytes are served"),
            (read_only, WRITE, 0, 0, 1, "read-only", "the export is read-only"),
            (few, TRIM, 0, 0, 1, "not offered", "it was not offered (flags 0x0)"),
            (few, FLUSH, 0, 0, 0, "not offered", "it was not offered (flags 0x0)"),
        ):
            request = Request(flags, command, 0, offset, length)
            self.assertNotEqual(Errno.OK, check_request(request, export_))
            refusal = describe_refusal(request, export_)
            name = Command(command).name if command != 77 else "command 77"
            self.assertEqual((name, kind, words), refusal)

    def test_WRITE_TRIM_and_WRITE_ZEROES_change_the_disk(self):
        changing = {c for c in range(70) if changes_the_disk(Request(0, c, 0, 0, 1))}
        self.assertEqual({WRITE, TRIM, ZEROES}, changing)

    @given(
        st.integers(0, 65535),
        st.integers(0, 10),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
    )
    def test_every_allowed_request_is_inside_the_disk(self, flags, command, offset, length):
        if check_request(Request(flags, command, 0, offset, length), EXPORT) == Errno.OK:
            self.assertIn(command, (READ, WRITE, FLUSH, TRIM, ZEROES, CACHE))
            self.assertLessEqual(offset + length, EXPORT.size)
