"""The scan of a disk: its pieces adjoin, cover it exactly, and distinguish zeroes from data."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.interfaces import Extent, IReadAheadDisk
from blockmig.storage import PROBE_SIZE, Scan, scan
from blockmig.testing import Call, MemoryDisk

KIB, MIB = 1024, 1 << 20


def walk(disk, request=1 << 20, block=1, find_zeroes=True):
    scanner = Scan(disk, request, block, find_zeroes)
    pieces = []
    while step := scanner.advance():
        pieces += step
    pieces += scanner.advance()  # which is nothing, after the end
    return pieces


def disk_of(*runs, made=MemoryDisk):
    """A disk of (length, "hole" or "zero" or "data") runs."""
    content = b"".join(bytes([kind == "data"]) * length for length, kind in runs)
    starts = itertools.accumulate((length for length, _ in runs), initial=0)
    places = zip(starts, runs, strict=False)
    return made(content, holes=[(at, length) for at, (length, kind) in places if kind == "hole"])


class ScanTests(SynchronousTestCase):
    def check(self, disk, request, block, find_zeroes=True):
        pieces = walk(disk, request, block, find_zeroes)
        position = 0
        for piece in pieces:
            self.assertEqual(position, piece.offset)
            self.assertGreater(piece.length, 0)
            self.assertEqual(0, piece.offset % block)
            position = piece.end
            if piece.zero:
                self.assertTrue(find_zeroes)
                self.assertFalse(any(disk.content[piece.offset : piece.end]))
                self.assertLessEqual(piece.length, scan.LONGEST_ZEROES)
            else:
                self.assertLessEqual(piece.length, request)
                # Cut where the request's multiples lie: no piece crosses one.
                self.assertEqual(piece.offset // request, (piece.end - 1) // request)
        self.assertEqual(disk.size, position)
        return pieces

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.one_of(
                    st.integers(1, 300_000),
                    st.sampled_from([1, 511, 512, 4096, 65535, 65536, 65537, 131072]),
                ),
                st.sampled_from(["hole", "zero", "data"]),
            ),
            min_size=1,
            max_size=8,
        ),
        st.integers(0, 16),
        st.integers(0, 6),
        st.booleans(),
    )
    def test_the_pieces_of_any_disk_cover_it_exactly(self, runs, power, factor, find_zeroes):
        block = 1 << power
        request = max(65536, block) << factor
        self.check(disk_of(*runs), request, block, find_zeroes)

    def test_the_pieces_fit_every_block_size(self):
        disk = disk_of(
            (5000, "data"), (70_000, "hole"), (3, "data"), (200_001, "hole"), (99, "zero")
        )
        for power in range(17):
            self.check(disk, 65536 * 2, 1 << power)

    def test_requests_may_be_smaller_than_a_probe(self):
        self.check(disk_of((200_000, "data"), (5000, "hole")), 4096, 512)

    def test_a_hole_is_not_probed(self):
        disk = disk_of((1 << 20, "hole"), (65536, "data"), (1 << 20, "hole"))
        pieces = self.check(disk, 2 << 20, 4096)
        self.assertEqual([True, False, True], [piece.zero for piece in pieces])
        self.assertEqual(
            [Call("probe", 1 << 20, 65536)], [c for c in disk.calls if c.method == "probe"]
        )

    def test_zeroes_that_are_no_hole_are_found(self):
        disk = disk_of((PROBE_SIZE, "data"), (PROBE_SIZE * 3, "zero"), (PROBE_SIZE, "data"))
        pieces = self.check(disk, 2 << 20, 1)
        self.assertEqual(
            [
                (0, PROBE_SIZE, False),
                (PROBE_SIZE, PROBE_SIZE * 3, True),
                (PROBE_SIZE * 4, PROBE_SIZE, False),
            ],
            [piece[:3] for piece in pieces],
        )

    def test_zeroes_are_found_by_the_page_where_holes_are_unknown(self):
        disk = disk_of((4096, "data"), (8192, "zero"), (PROBE_SIZE, "data"), (5000, "zero"))
        disk.shortest_zeroes = 4096
        self.assertEqual(
            [
                (0, 4096, False),
                (4096, 8192, True),
                (12288, PROBE_SIZE, False),
                (12288 + PROBE_SIZE, 5000, True),
            ],
            [piece[:3] for piece in self.check(disk, 2 << 20, 512)],
        )
        (piece,) = self.check(disk_of((4096, "zero"), (4096, "data")), 2 << 20, 8192)
        self.assertFalse(piece.zero)

    def test_a_single_byte_is_never_lost(self):
        for at in (0, 1, PROBE_SIZE - 1, PROBE_SIZE, 2 * PROBE_SIZE - 1, 4 * PROBE_SIZE - 1):
            content = bytearray(4 * PROBE_SIZE)
            content[at] = 1
            pieces = walk(MemoryDisk(content))
            (data,) = [piece for piece in pieces if not piece.zero]
            self.assertLessEqual(data.offset, at)
            self.assertLess(at, data.end)

    def test_data_reaches_into_a_hole_that_is_not_aligned(self):
        disk = disk_of((1000, "data"), (65536, "hole"), (1000, "data"))
        pieces = self.check(disk, 65536, 4096)
        self.assertEqual(
            [(0, 4096, False), (4096, 61440, True), (65536, 2000, False)],
            [piece[:3] for piece in pieces],
        )

    def test_a_scan_without_zero_detection_asks_for_no_extents(self):
        disk = disk_of((1 << 20, "hole"), (1 << 20, "zero"))
        pieces = self.check(disk, 1 << 20, 1, find_zeroes=False)
        self.assertEqual([False, False], [piece.zero for piece in pieces])
        self.assertNotIn("extents", disk.names())

    def test_a_long_run_of_zeroes_is_cut_into_pieces(self):
        size = (512 << 20) + 5

        class Huge(MemoryDisk):
            def __init__(self):
                super().__init__(1)
                self.size = size

            def extents(self, offset):
                return iter([Extent(0, size, True)])

        pieces = walk(Huge())
        self.assertEqual([256 << 20, 256 << 20, 5], [piece.length for piece in pieces])

    def test_data_that_is_probed_only_at_its_end_is_cold_where_that_was(self):
        """Each data but the first one, of a disk with many holes."""
        disk = disk_of(*[(8 * KIB, "data"), (8 * KIB, "hole")] * 200)
        probe = disk.probe
        disk.probe = lambda offset, length: probe(offset, length)._replace(cold=offset > MIB)
        pieces = [piece for piece in walk(disk) if not piece.zero]
        self.assertEqual([piece.offset > MIB for piece in pieces], [p.cold for p in pieces])
        self.assertEqual(200, len(pieces))

    def test_a_piece_is_cold_where_its_probe_was_cold(self):
        disk = disk_of((PROBE_SIZE * 2, "data"))
        probe = disk.probe
        disk.probe = lambda offset, length: probe(offset, length)._replace(cold=offset > 0)
        (piece,) = walk(disk)
        self.assertTrue(piece.cold)
        disk.probe = probe
        (piece,) = walk(disk)
        self.assertFalse(piece.cold)

    def test_data_is_probed_sparingly_until_there_are_zeroes_again(self):
        data, zeroes = 8 << 20, (1 << 20) + PROBE_SIZE
        disk = disk_of((data, "data"), (zeroes, "zero"), (2 << 20, "data"))
        found = [piece[:3] for piece in self.check(disk, 32 << 20, 4096)]
        self.assertEqual(
            [(0, data, False), (data, zeroes, True), (data + zeroes, 2 << 20, False)], found
        )
        offsets = [call.offset for call in disk.calls if call.method == "probe"]
        self.assertEqual(sorted(set(offsets)), sorted(offsets), "probed twice")
        self.assertEqual(4 + 7, sum(offset < data for offset in offsets))

    def test_zeroes_before_the_end_of_a_piece_are_found_once_its_end_is_zero(self):
        disk = disk_of((2 << 20, "data"), (PROBE_SIZE, "data"), (3 * PROBE_SIZE, "zero"))
        (_, zeroes) = self.check(disk, 32 << 20, 4096)
        self.assertEqual(((2 << 20) + PROBE_SIZE, 3 * PROBE_SIZE), zeroes[:2])

    def test_after_zeroes_the_next_piece_is_probed_everywhere(self):
        size = 3 * PROBE_SIZE
        disk = disk_of((2 << 20, "data"), (size, "data"), (2 * PROBE_SIZE, "zero"), (size, "data"))
        (_, zeroes, _) = self.check(disk, 32 << 20, 4096)
        self.assertEqual(((2 << 20) + size, 2 * PROBE_SIZE), zeroes[:2])

    def test_what_is_missing_is_read_ahead(self):
        """From the first piece that had to be waited for."""

        @implementer(IReadAheadDisk)
        class Cold(MemoryDisk):
            def probe(self, offset, length):
                return super().probe(offset, length)._replace(cold=True)

            def read_ahead(self, offset, length):
                self.calls.append(Call("read_ahead", offset, length))
                return True

        disk = disk_of((20 << 20, "data"), (20 << 20, "hole"), (20 << 20, "data"), made=Cold)
        pieces = self.check(disk, 1 << 20, 1)
        self.assertTrue(all(piece.cold for piece in pieces if not piece.zero))
        asked = [call.offset >> 20 for call in disk.calls if call.method == "read_ahead"]
        self.assertEqual([*range(1, 20), *range(40, 60)], asked)
        calls = [call for call in disk.calls if call.method in ("probe", "read_ahead")]
        probe = next(call for call in calls if call.method == "probe" and call.offset > 15 << 20)
        self.assertIn(Call("read_ahead", 40 << 20, 1 << 20), calls[: calls.index(probe)])

    def test_a_scan_can_be_stopped_in_the_middle_of_a_step(self):
        disk = MemoryDisk(b"x" * (40 << 20))
        scanner = Scan(disk, 1 << 20)
        probe = disk.probe

        def stops(offset, length):
            if offset >= 5 << 20:
                scanner.stop()
            return probe(offset, length)

        disk.probe = stops
        self.assertLess(sum(piece.length for piece in scanner.advance()), 7 << 20)

    def test_a_step_probes_a_bounded_amount(self):
        disk = MemoryDisk(b"x" * (40 << 20))
        scanner = Scan(disk, 1 << 20)
        before = 0
        while scanner.advance():
            probes = disk.names().count("probe")
            self.assertLessEqual((probes - before) * PROBE_SIZE, 18 << 20)
            before = probes

    def test_a_slow_disk_is_not_waited_for_until_a_segment_is_complete(self):
        """Who waits for the next segment would be taken for dead."""
        for kind, longest in (("zero", scan.LONGEST_ZEROES), ("data", 32 << 20)):
            disk = disk_of((30 << 20, kind))
            now, probe = [0.0], disk.probe

            def slow(offset, length, now=now, probe=probe):
                now[0] += 0.25
                return probe(offset, length)

            disk.probe = slow
            scanner = Scan(disk, longest, seconds=lambda now=now: now[0])
            position, before = 0, 0.0
            while step := scanner.advance():
                self.assertLessEqual(now[0] - before, 2)
                before = now[0]
                for piece in step:
                    self.assertEqual((position, kind == "zero"), (piece.offset, piece.zero))
                    position = piece.end
            self.assertEqual(disk.size, position)

    def test_errors_of_the_disk_are_raised(self):
        for method in ("probe", "extents"):
            disk = MemoryDisk(b"x" * 100_000)
            disk.fail(method, OSError(5, "broken"), times=None)
            scanner = Scan(disk, 65536)
            self.assertRaises(OSError, scanner.advance)


class RangedDisk(MemoryDisk):
    """A disk whose extents may be asked for from anywhere; `looked` lists where."""

    def __init__(self, content, **keywords):
        super().__init__(content, **keywords)
        self.looked = []

    def extents(self, offset):
        for extent in super().extents(offset):
            self.looked.append(extent.offset)
            yield extent


def ranged(*runs):
    return disk_of(*runs, made=RangedDisk)


BLOCK = 65536


class RangeTests(SynchronousTestCase):
    def walk(self, disk, ranges, request=1 << 20, block=1, find_zeroes=True):
        """The pieces of each range, which must make it up exactly."""
        scanner = Scan(disk, request, block, find_zeroes, ranges=ranges)
        pieces = []
        while step := scanner.advance():
            pieces += step
        found = []
        left = list(pieces)
        for start, end in ranges:
            position = start
            found.append([])
            while position < end:
                piece = left.pop(0)
                self.assertEqual(position, piece.offset)
                self.assertGreater(piece.length, 0)
                self.assertEqual(0, piece.offset % block)
                position = piece.end
                if piece.zero:
                    self.assertFalse(any(disk.content[piece.offset : piece.end]))
                else:
                    self.assertEqual(piece.offset // request, (piece.end - 1) // request)
                found[-1].append(piece[:3])
            self.assertEqual(end, position, "joined across the end of a range")
        self.assertEqual([], left)
        return found

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.one_of(st.integers(1, 700_000), st.sampled_from([4096, 65536, 65537, 1 << 20])),
                st.sampled_from(["hole", "zero", "data"]),
            ),
            min_size=1,
            max_size=8,
        ),
        st.sampled_from([1, 512, 4096, 65536]),
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 24)), max_size=6),
        st.booleans(),
        st.booleans(),
    )
    def test_any_ranges_of_any_disk_are_covered_exactly(
        self, runs, block, steps, find_zeroes, to_the_end
    ):
        disk = ranged(*runs)
        ranges, position = [], 0
        for gap, length in steps:
            start = position + gap * BLOCK
            if start >= disk.size:
                break
            position = min(start + length * BLOCK, disk.size)
            ranges.append((start, position))
        if to_the_end and ranges:
            ranges[-1] = (ranges[-1][0], disk.size)
        self.walk(disk, ranges, 1 << 20, block, find_zeroes)

    def test_a_scan_of_no_ranges_does_nothing(self):
        disk = ranged((BLOCK, "data"))
        self.assertEqual([], self.walk(disk, []))
        self.assertEqual([], disk.calls)

    def test_only_the_given_ranges_are_probed(self):
        disk = ranged((8 * BLOCK, "data"))
        self.walk(disk, [(BLOCK, 2 * BLOCK), (6 * BLOCK, 8 * BLOCK)])
        self.assertEqual(
            [Call("probe", BLOCK, BLOCK), Call("probe", 6 * BLOCK, 2 * BLOCK)],
            [call for call in disk.calls if call.method == "probe"],
        )

    def test_no_piece_spans_two_ranges(self):
        for kind in ("data", "zero", "hole"):
            disk = ranged((16 * BLOCK, kind))
            found = self.walk(disk, [(0, 2 * BLOCK), (3 * BLOCK, 5 * BLOCK), (15 * BLOCK, 1 << 20)])
            self.assertEqual([1, 1, 1], [len(pieces) for pieces in found], kind)

    def test_short_ranges_ask_for_no_extents(self):
        """The next hole may be far away, and short ranges are soon probed."""
        disk = ranged((8 << 20, "hole"))
        self.walk(disk, [(BLOCK, 2 * BLOCK), (1 << 20, (2 << 20) - BLOCK)])
        self.assertEqual((0, 5), (disk.names().count("extents"), disk.names().count("probe")))
        self.walk(disk, [(1 << 20, 2 << 20)])
        self.assertEqual(1, disk.names().count("extents"))

    def test_the_whole_of_a_small_disk_asks_for_extents(self):
        disk = ranged((BLOCK, "hole"))
        self.walk(disk, [(0, BLOCK)])
        self.assertEqual(["extents"], disk.names())

    def test_extents_past_the_end_of_a_range_are_not_asked_for(self):
        """Only one extent past the range is asked for, which shows its end."""
        disk = ranged(*[(1 << 20, "data"), (1 << 20, "hole")] * 20)
        self.walk(disk, [(4 << 20, 6 << 20)])
        self.assertEqual([4 << 20, 5 << 20, 6 << 20], disk.looked)
        self.assertEqual(
            [Call("extents", 4 << 20)], [c for c in disk.calls if c.method == "extents"]
        )

    def test_a_hole_beyond_both_ends_is_cut_to_the_range(self):
        disk = ranged((20 << 20, "hole"))
        (found,) = self.walk(disk, [(3 << 20, 5 << 20)])
        self.assertEqual([(3 << 20, 2 << 20, True)], found)

    def test_the_last_piece_ends_at_the_unaligned_end_of_the_disk(self):
        size = 3 * BLOCK + 777
        for kind in ("data", "zero"):
            disk = ranged((5000, "data"), (size - 5000, kind))
            found = self.walk(disk, [(0, BLOCK), (3 * BLOCK, size)], block=4096)
            self.assertEqual([(3 * BLOCK, 777, kind == "zero")], found[1])

    def test_holes_are_shrunk_to_the_blocks_of_the_peer(self):
        """The adjacent data are extended into them."""
        start, end = 2 << 20, (4 << 20) + BLOCK
        for block, expected in (
            (4096, [(start, 8192, False), (start + 8192, (1 << 20) - 8192, True)]),
            (65536, [(start, BLOCK, False), (start + BLOCK, (1 << 20) - BLOCK, True)]),
        ):
            disk = ranged(
                ((2 << 20) + 5000, "data"), ((1 << 20) - 5000 + 300, "hole"), (4 << 20, "data")
            )
            (found,) = self.walk(disk, [(start, end)], block=block)
            self.assertEqual(expected, found[:2])

    def test_ranges_without_zero_detection_ask_for_no_extents(self):
        disk = ranged((4 << 20, "hole"))
        found = self.walk(disk, [(0, BLOCK), (1 << 20, 3 << 20)], find_zeroes=False)
        self.assertFalse(any(zero for pieces in found for _, _, zero in pieces))
        self.assertNotIn("extents", disk.names())
