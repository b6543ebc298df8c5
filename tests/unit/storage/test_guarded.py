"""A disk that is somebody else's: whatever it does, above it there are results and OSErrors."""

from __future__ import annotations

import contextlib
import errno
import pathlib
from typing import ClassVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from blockmig.interfaces import (
    Extent,
    IDisk,
    IReadAheadDisk,
    IRecordedDisk,
    IUnlinkableDisk,
    IWatchedDisk,
    Probe,
)
from blockmig.storage import (
    DiskChanged,
    DiskRefused,
    DiskVersion,
    FileDisk,
    NotDurable,
    guard,
    path_of,
)
from blockmig.testing import MemoryDisk, RecordedMemoryDisk, UnlinkableMemoryDisk

SIZE = 300_000
CALLS = {
    "read": (0, 10),
    "write": (0, b"ten bytes."),
    "zero": (0, 10, True),
    "trim": (0, 10),
    "flush": (),
    "probe": (0, 10),
    "forget": (0, 10),
    "write_back": (0, 10, True),
    "read_ahead": (0, 10),
}


@implementer(IReadAheadDisk, IUnlinkableDisk, IRecordedDisk, IWatchedDisk)
class Scripted(MemoryDisk):
    """A disk whose method C{broken} raises C{error}, or returns C{value}."""

    path = record_path = "/somewhere"
    writable = True
    blank = False

    def __init__(self, broken="", error=None, value=None):
        super().__init__(bytes(SIZE), name="theirs")
        self.broken = (broken, error, value)

    def __getattribute__(self, name):
        get = super().__getattribute__
        broken, error, value = get("__dict__").get("broken", ("", None, None))
        if name != broken:
            return get(name)

        def call(*arguments):
            if error is not None:
                raise error
            return value

        return call

    def version(self, sync=True):
        return DiskVersion((1,), ())

    def check_path(self): ...

    def is_gone(self):
        return False

    def rescue(self, announce=None):
        return self.path

    def check_unlink(self): ...

    def unlink(self): ...

    def read_ahead(self, offset, length):
        return False

    def identity(self):
        return "theirs"

    def prepare(self): ...


class Case(SynchronousTestCase):
    def call(self, method, *arguments, error=None, value=None):
        disk = guard(Scripted(method, error, value))
        return getattr(disk, method)(*arguments)

    def error(self, method, *arguments, error=None, value=None):
        return self.assertRaises(OSError, self.call, method, *arguments, error=error, value=value)

    def says(self, words, method, *arguments, error=None, value=None):
        found = self.error(method, *arguments, error=error, value=value)
        self.assertEqual((errno.EIO, f"{method}: {words}"), (found.errno, found.strerror))


class ErrorTests(Case):
    def test_any_exception_of_any_method_is_an_EIO_that_names_both(self):
        for method, arguments in CALLS.items():
            self.says(
                "KeyError: 'session expired'", method, *arguments, error=KeyError("session expired")
            )

    def test_an_OSError_keeps_its_errno_and_names_the_method(self):
        for method, arguments in CALLS.items():
            found = self.error(method, *arguments, error=OSError(errno.ENOSPC, "No space left"))
            self.assertEqual(
                (errno.ENOSPC, f"{method}: No space left"), (found.errno, found.strerror)
            )

    def test_an_OSError_without_an_errno_is_an_EIO(self):
        self.says("OSError: timed out", "read", 0, 10, error=OSError("timed out"))
        for number in ("ten", -5, 0):
            self.assertEqual(
                errno.EIO, self.error("read", 0, 10, error=OSError(number, "odd")).errno
            )

    def test_an_EAGAIN_is_an_EIO_since_a_socket_would_be_taken_to_be_full(self):
        found = self.error("read", 0, 10, error=BlockingIOError(errno.EAGAIN, "again"))
        self.assertNotIsInstance(found, BlockingIOError)
        self.assertEqual(errno.EIO, found.errno)

    def test_what_was_raised_is_the_cause(self):
        bug = KeyError("session expired")
        self.assertIs(bug, self.error("write", 0, b"x", error=bug).__cause__)

    def test_the_words_are_one_line(self):
        self.says("ValueError: a b c", "flush", error=ValueError("a\nb\n  c"))
        self.says("ValueError", "flush", error=ValueError())

    def test_a_KeyboardInterrupt_is_no_error_of_the_disk(self):
        self.assertRaises(KeyboardInterrupt, self.call, "flush", error=KeyboardInterrupt())

    def test_EOPNOTSUPP_of_a_fast_zero_stays_one(self):
        found = self.error("zero", 0, 10, False, True, error=OSError(errno.EOPNOTSUPP, "slow"))
        self.assertEqual(errno.EOPNOTSUPP, found.errno)

    def test_errors_that_the_interface_lists_pass_as_they_are(self):
        for method, kinds in (
            ("check_unlink", (DiskRefused,)),
            ("unlink", (DiskRefused, NotDurable)),
            ("check_path", (DiskChanged,)),
            ("rescue", (DiskChanged,)),
        ):
            for kind in kinds:
                error = self.assertRaises(kind, self.call, method, error=kind("told so"))
                self.assertEqual("told so", str(error))

    def test_errors_that_it_lists_of_another_method_are_an_EIO(self):
        self.says("DiskChanged: moved", "read", 0, 10, error=DiskChanged("moved"))
        self.says("NotDurable: perhaps", "check_unlink", error=NotDurable("perhaps"))
        self.says("DiskRefused: no", "check_path", error=DiskRefused("no"))

    def test_a_property_that_raises_is_an_EIO(self):
        class Broken(MemoryDisk):
            @property
            def writable(self):
                raise KeyError("no session")

        error = self.assertRaises(OSError, getattr, guard(Broken(5)), "writable", None)
        self.assertEqual("writable: KeyError: 'no session'", error.strerror)


class ReadTests(Case):
    def test_a_read_of_another_length_is_an_error(self):
        self.says("returned 9 bytes instead of 10", "read", 0, 10, value=bytes(9))
        self.says("returned 11 bytes instead of 10", "read", 0, 10, value=bytes(11))
        self.says("returned 0 bytes instead of 10", "read", 0, 10, value=b"")

    def test_a_read_of_another_type_is_an_error(self):
        self.says("returned None, not bytes", "read", 0, 10, value=None)
        self.says("returned an object of type str, not bytes", "read", 0, 2, value="ab")
        self.says(
            "returned an object of type bytearray, not bytes", "read", 0, 2, value=bytearray(2)
        )

    def test_a_right_read_is_what_the_disk_has(self):
        disk = guard(MemoryDisk(b"0123456789"))
        self.assertEqual(b"345", disk.read(3, 3))


class ExtentTests(Case):
    def runs(self, *extents, offset=0):
        return list(self.call("extents", offset, value=iter(extents)))

    def wrong(self, words, *extents, offset=0):
        error = self.assertRaises(OSError, self.runs, *extents, offset=offset)
        self.assertEqual((errno.EIO, f"extents: {words}"), (error.errno, error.strerror))

    def test_right_extents_pass(self):
        right = [Extent(100, 900, True), Extent(1000, SIZE - 1000, False)]
        self.assertEqual(right, self.runs(*right, offset=100))

    def test_plain_tuples_become_extents(self):
        (extent,) = self.runs((0, SIZE, 1))
        self.assertIsInstance(extent, Extent)
        self.assertIs(True, extent.hole)

    def test_extents_that_begin_elsewhere_are_an_error(self):
        self.wrong("one begins at 5, not at 0", Extent(5, SIZE - 5, False))
        self.wrong("one begins at 0, not at 9", Extent(0, SIZE, False), offset=9)

    def test_a_gap_is_an_error(self):
        self.wrong(
            "one begins at 11, not at 10", Extent(0, 10, False), Extent(11, SIZE - 11, False)
        )

    def test_an_overlap_is_an_error(self):
        self.wrong("one begins at 9, not at 10", Extent(0, 10, False), Extent(9, SIZE - 9, False))

    def test_an_empty_one_is_an_error(self):
        self.wrong(f"one at 0 has 0 bytes, and the disk {SIZE}", Extent(0, 0, False))
        self.wrong(f"one at 0 has -1 bytes, and the disk {SIZE}", Extent(0, -1, False))

    def test_one_beyond_the_end_is_an_error(self):
        self.wrong(f"one at 0 has {SIZE + 1} bytes, and the disk {SIZE}", Extent(0, SIZE + 1, True))

    def test_none_at_all_are_an_error(self):
        self.wrong(f"they end at 0, and the disk at {SIZE}")

    def test_an_end_before_the_disks_is_an_error(self):
        self.wrong(f"they end at 10, and the disk at {SIZE}", Extent(0, 10, False))
        self.wrong(f"they end at 10, and the disk at {SIZE}", Extent(0, 10, False), None)

    def test_what_is_no_extent_is_an_error(self):
        self.wrong("TypeError: 'str' object cannot be interpreted as an integer", ("0", 1, True))
        self.wrong("ValueError: not enough values to unpack (expected 3, got 2)", (0, 1))

    def test_no_iterator_is_an_error(self):
        found = self.assertRaises(OSError, list, self.call("extents", 0, value=5))
        self.assertEqual("extents: TypeError: 'int' object is not iterable", found.strerror)

    def test_an_exception_of_a_generator_is_an_error(self):
        def extents(offset):
            yield Extent(0, 10, False)
            raise KeyError("session expired")

        disk = Scripted()
        disk.extents = extents
        extents = guard(disk).extents(0)
        self.assertEqual(Extent(0, 10, False), next(extents))
        found = self.assertRaises(OSError, next, extents)
        self.assertEqual("extents: KeyError: 'session expired'", found.strerror)

    def test_an_exception_of_the_call_is_an_error(self):
        disk = guard(Scripted("extents", error=KeyError("x")))
        self.assertEqual(
            "extents: KeyError: 'x'", self.assertRaises(OSError, list, disk.extents(0)).strerror
        )


class NothingTests(Case):
    """Methods that return nothing have done their work when they return."""

    METHODS: ClassVar = {
        **{name: CALLS[name] for name in ("zero", "trim", "flush", "forget", "write_back")},
        **dict.fromkeys(("prepare", "check_unlink", "check_path", "close"), ()),
    }

    def test_a_Deferred_or_anything_else_is_no_sign_that_the_work_is_done(self):
        for method, arguments in self.METHODS.items():
            for value in (Deferred(), True, 0, ""):
                kind = type(value).__name__
                words = f"returned an object of type {kind}, not None"
                self.says(words, method, *arguments, value=value)

    def test_a_coroutine_is_an_error_and_closed(self):
        """Python would complain, somewhere, that it was never awaited."""

        async def work(): ...

        others = {"read": (0, 10), "write": (0, b"x"), "probe": (0, 10), "identity": ()}
        for method, arguments in (self.METHODS | others | {"is_gone": (), "version": ()}).items():
            coroutine = work()
            self.error(method, *arguments, value=coroutine)
            self.assertIsNone(coroutine.cr_frame, method)
        for method, arguments in (("extents", (0,)), ("fileno", ())):
            coroutine = work()
            with contextlib.suppress(OSError):
                list(self.call(method, *arguments, value=coroutine) or ())
            self.assertIsNone(coroutine.cr_frame, method)

    def test_an_unlink_that_returns_anything_may_have_deleted_the_disk(self):
        async def work(): ...

        for value in (Deferred(), work(), True):
            error = self.assertRaises(NotDurable, self.call, "unlink", value=value)
            self.assertIn("not None; it may be deleted, or not", str(error))


class OtherResultTests(Case):
    def test_whether_it_is_gone_is_yes_or_no(self):
        for value in (None, 0, 1, "no", Deferred()):
            self.assertIn("not a bool", self.error("is_gone", value=value).strerror)
        self.assertIs(True, self.call("is_gone", value=True))

    def test_a_version_of_another_type_is_an_error(self):
        self.says("returned an object of type tuple, not a DiskVersion", "version", value=(1,))

    def test_only_True_says_that_it_is_blank(self):
        """Whatever is written on a blank disk may be overwritten."""
        for value, blank in ((True, True), (False, False), (Deferred(), False), (None, False)):
            disk = Scripted()
            disk.blank = value
            self.assertIs(blank, guard(disk).blank)

    def test_a_probe_that_is_none_is_an_error(self):
        self.says("returned an object of type bool, not a Probe", "probe", 0, 10, value=True)
        self.says("returned an object of type tuple, not a Probe", "probe", 0, 10, value=(1, 0))
        self.assertEqual(Probe(True, True), self.call("probe", 0, 10, value=Probe(True, True)))

    def test_an_identity_or_a_new_path_that_is_no_text_is_an_error(self):
        self.says("returned None, not a str", "identity", value=None)
        self.says("returned an object of type bytes, not a str", "rescue", value=b"/x")

    def test_a_descriptor_that_cannot_be_had_is_none(self):
        self.assertIsNone(self.call("fileno", error=KeyError("x")))
        self.assertIsNone(self.call("fileno", value="seven"))
        self.assertEqual(7, self.call("fileno", value=7))


class PathTests(SynchronousTestCase):
    def of(self, path):
        disk = MemoryDisk(5, name="theirs")
        disk.path = path
        return path_of(guard(disk))

    def test_a_path_is_text_whatever_the_disk_has(self):
        for path in ("/disks/a", pathlib.Path("/disks/a")):
            self.assertEqual("/disks/a", self.of(path))

    def test_anything_else_is_as_good_as_no_path(self):
        for path in (None, 5, b"/disks/a", lambda: "/disks/a"):
            self.assertEqual("theirs", self.of(path))
        self.assertEqual("theirs", path_of(guard(MemoryDisk(5, name="theirs"))))

    def test_it_is_looked_at_once(self):
        disk = MemoryDisk(5)
        disk.path = "/disks/a"
        guarded = guard(disk)
        disk.path = "/disks/b"
        self.assertEqual("/disks/a", path_of(guarded))

    def test_the_path_of_the_records_may_be_a_pathlib_path(self):
        disk = RecordedMemoryDisk(5, "/disks/a")
        disk.record_path = pathlib.Path("/records/a")
        self.assertEqual("/records/a", guard(disk).record_path)

    def test_a_path_of_the_records_that_is_none_is_refused(self):
        for path in (None, 5, b"/records/a"):
            disk = RecordedMemoryDisk(5, "/disks/a")
            disk.record_path = path
            error = self.assertRaises(DiskRefused, guard, disk)
            self.assertIn("must be a str or an os.PathLike", str(error))


class WrappingTests(SynchronousTestCase):
    def test_our_own_disks_stay_as_they_are(self):
        with FileDisk(self.mktemp(), size=5) as disk:
            self.assertIs(disk, guard(disk))

    def test_a_guarded_disk_is_not_wrapped_again(self):
        guarded = guard(MemoryDisk(5))
        self.assertIs(guarded, guard(guarded))

    def test_it_provides_what_the_disk_provides_and_no_more(self):
        plain = guard(MemoryDisk(5))
        self.assertTrue(verifyObject(IDisk, plain))
        self.assertFalse(IUnlinkableDisk.providedBy(plain))
        self.assertFalse(IRecordedDisk.providedBy(plain))
        self.assertFalse(IWatchedDisk.providedBy(plain))
        self.assertTrue(verifyObject(IUnlinkableDisk, guard(UnlinkableMemoryDisk(5))))
        self.assertTrue(verifyObject(IRecordedDisk, guard(RecordedMemoryDisk(5, "/x"))))
        self.assertTrue(verifyObject(IWatchedDisk, guard(Scripted())))

    def test_other_attributes_are_the_disks(self):
        disk = RecordedMemoryDisk(5, "/some/where", blank=True)
        guarded = guard(disk)
        self.assertEqual(("/some/where", True), (guarded.path, guarded.blank))
        self.assertEqual("/some/where", guarded.record_path)
        guarded.prepare()
        self.assertFalse(guarded.blank)
        self.assertEqual("default", getattr(guarded, "writable", "default"))
        self.assertIn("MemoryDisk", repr(guarded))

    def test_every_call_reaches_the_disk(self):
        disk = MemoryDisk(b"x" * 100)
        guarded = guard(disk)
        guarded.write(0, b"abc")
        guarded.zero(10, 5, True, fast=True)
        guarded.trim(20, 5)
        guarded.flush()
        guarded.write_back(0, 3, False)
        guarded.forget(0, 3)
        guarded.probe(0, 3)
        guarded.close()
        self.assertEqual(
            ["write", "zero", "trim", "flush", "write_back", "forget", "probe", "close"],
            disk.names(),
        )
        self.assertEqual((True, True), (disk.calls[1].allocate, disk.calls[1].fast))


class AttributeTests(SynchronousTestCase):
    def refused(self, **attributes):
        disk = MemoryDisk(100, name="theirs")
        for name, value in attributes.items():
            setattr(disk, name, value)
        return str(self.assertRaises(DiskRefused, guard, disk))

    def test_a_bad_size_is_refused(self):
        for size in (0, -1, None, "100", 1.5, 1 << 63):
            self.assertEqual(
                f"theirs: its size is {size!r}, and must be a number of bytes above 0",
                self.refused(size=size),
            )

    def test_a_bad_name_is_refused(self):
        for name in ("", None, 5, "two\nlines"):
            self.assertEqual(
                f"MemoryDisk: its name is {name!r}, and must be one line of text",
                self.refused(name=name),
            )

    def test_a_bad_shortest_run_of_zeroes_is_refused(self):
        for step in (0, 2048, 524288, 5000, None, "4096"):
            self.assertEqual(
                f"theirs: its shortest_zeroes is {step!r}, and must be a power of two from 4096 "
                "to 262144",
                self.refused(shortest_zeroes=step),
            )

    def test_what_lacks_an_attribute_is_refused(self):
        class Nothing:
            name = "nothing"

        error = self.assertRaises(DiskRefused, guard, Nothing())
        self.assertEqual(
            "nothing: size: AttributeError: 'Nothing' object has no attribute 'size'", str(error)
        )
        self.assertIsInstance(error.__cause__, AttributeError)

    def test_they_are_looked_at_once(self):
        disk = MemoryDisk(100, name="theirs")
        guarded = guard(disk)
        disk.name, disk.size, disk.shortest_zeroes = "other", 5, 0
        self.assertEqual(
            ("theirs", 100, 65536), (guarded.name, guarded.size, guarded.shortest_zeroes)
        )
