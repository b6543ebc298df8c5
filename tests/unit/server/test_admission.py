"""Which connection is closed for a new one."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.runtime import Runtime
from blockmig.server.admission import A_FEW, KEPT_FREE, MOST_UNPROVED, Admission
from blockmig.server.origin import LOCAL, origin_of
from blockmig.syscalls import SystemCalls
from blockmig.testing import synchronous
from blockmig.transport import describe_address

ADDRESS = IPv4Address("TCP", "192.0.2.9", 4711)


def at(host):
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 4711)


class Descriptors(SystemCalls):
    """Has as many free descriptors as the test says."""

    free, limit, counted = 1000, 1024, 0

    def descriptors(self):
        self.counted += 1
        return self.free, self.limit


class Connected:
    def __init__(self, case, name, at_once=True):
        self.peer = describe_address(name)
        self._at_once = at_once
        self.advanced_at = case.clock.seconds()
        self.gave_way = self.proved = self.said_nothing = False
        self.origin = origin_of(name)
        self._system = case.system

    def give_way(self):
        self.gave_way = True
        self._system.free += self._at_once


class AdmissionTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.system = Descriptors()
        self.connections = []
        self.logged = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)
        self.make()

    def make(self, most=0, most_of_one=0):
        runtime = Runtime(self.clock, synchronous, self.system)
        self.admission = Admission(
            runtime,
            lambda: self.connections,
            lambda one: one.proved,
            most,
            most_of_one=most_of_one,
        )

    def come(self, name="somebody"):
        self.clock.advance(1)
        self.system.free -= 1
        self.assertEqual("", self.admission.admit(name))
        self.connections.append(Connected(self, name))
        return self.connections[-1]

    def come_from(self, host, count=1):
        for _ in range(count):
            one = self.come(at(host))
        return one

    def left(self):
        return [one for one in self.connections if not one.gave_way]

    def events(self, name):
        return [event for event in self.logged if event.get("event") == name]

    def test_as_many_as_there_may_be_stay(self):
        for _ in range(MOST_UNPROVED):
            self.come()
        self.assertEqual(MOST_UNPROVED, len(self.left()))

    def test_the_one_that_got_no_further_for_longest_is_closed_for_one_more(self):
        for number in range(MOST_UNPROVED):
            self.come(f"peer {number}")
        self.connections[0].advanced_at = self.clock.seconds()
        self.come("the last")
        self.assertEqual(MOST_UNPROVED, len(self.left()))
        self.assertTrue(self.connections[1].gave_way)
        (event,) = self.events("replaced")
        self.assertEqual(("peer 1", "the last"), (event["peer"], event["other"]))
        self.assertIn("asked for nothing", event["why"])

    def test_descriptors_are_counted_once_for_each(self):
        for _ in range(MOST_UNPROVED + 10):
            self.come()
        self.assertEqual(MOST_UNPROVED + 10, self.system.counted)
        for one in self.connections:
            one.proved = True
        self.come()
        self.assertEqual(MOST_UNPROVED + 11, self.system.counted)

    def test_those_that_come_in_one_turn_leave_half_of_the_reserve(self):
        """Whoever is closed for them has its descriptors until the next."""
        self.system.limit, self.system.free = 96, 60
        for _ in range(36):
            self.come()
        for turn in range(10):
            refused = 0
            for _ in range(100):
                self.system.free -= 1
                if self.admission.admit(ADDRESS):
                    self.system.free += 1  # at once
                    refused += 1
                else:
                    self.connections.append(Connected(self, f"{turn}", at_once=False))
                self.assertGreaterEqual(self.system.free, 11)
            self.assertLess(0, refused)
            gone = [one for one in self.connections if one.gave_way]
            self.connections = self.left()
            self.system.free += len(gone)
        self.assertIn("at once", self.events("full")[0]["why"])

    def test_one_that_has_its_descriptors_is_not_refused_for_the_lack_of_others(self):
        self.come().proved = True
        self.system.free = 0
        self.assertEqual("", self.admission.refusal())

    def test_a_proved_one_does_not_count(self):
        for _ in range(3 * MOST_UNPROVED):
            self.come().proved = True
        self.come()
        self.assertEqual(3 * MOST_UNPROVED + 1, len(self.left()))

    def test_a_limit_of_all_closes_one_that_is_not_proved(self):
        self.make(most=3)
        for proved in (True, False, True):
            self.come().proved = proved
        self.come()
        self.assertEqual([False, True, False, False], [one.gave_way for one in self.connections])

    def test_a_limit_of_all_refuses_where_all_are_proved(self):
        self.make(most=3)
        for _ in range(3):
            self.come().proved = True
        self.assertEqual("3 clients are connected already", self.admission.admit(ADDRESS))
        self.assertEqual(3, len(self.left()))

    def test_a_refusal_is_logged_once_a_minute_with_whose_it_was(self):
        self.make(most=1)
        self.come().proved = True
        for _ in range(20):
            self.admission.admit(ADDRESS)
        self.clock.advance(61)
        self.admission.admit(ADDRESS)
        first, second = self.events("full")
        self.assertEqual("192.0.2.9:4711", first["peer"])
        self.assertIn("19 more", second["others"])

    def test_descriptors_are_left_free_whatever_the_number_of_connections(self):
        self.system.free = KEPT_FREE + 10
        for _ in range(100):
            self.come()
        self.assertGreaterEqual(self.system.free, KEPT_FREE - 1)
        self.assertEqual(10, len(self.left()))

    def test_a_process_with_few_descriptors_keeps_a_quarter_of_them_free(self):
        self.system.free = self.system.limit = 40
        for _ in range(100):
            self.come()
        self.assertEqual(30, len(self.left()))

    def test_without_descriptors_a_proved_one_stays_and_the_new_one_is_refused(self):
        self.come().proved = True
        self.system.free = KEPT_FREE - 1
        self.assertIn("descriptors", self.admission.admit(ADDRESS))
        self.assertEqual(1, len(self.left()))

    def test_a_flood_is_logged_with_a_bounded_number_of_lines(self):
        for _ in range(MOST_UNPROVED):
            self.come()
        self.clock.advance(100)
        clock, self.clock = self.clock, Clock()  # all of it in one moment
        self.clock.rightNow = clock.seconds()
        for _ in range(1000):
            self.admission.admit("x")
            self.connections.append(Connected(self, "x"))
        self.assertEqual(100, len(self.events("replaced")))
        clock.advance(61)
        self.admission.admit("x")
        self.assertIn("900 more", self.events("replaced")[-1]["others"])

    def test_a_crowd_from_one_address_closes_only_its_own(self):
        slow = self.come_from("198.51.100.1")
        self.come_from("192.0.2.1", 3 * MOST_UNPROVED)
        self.assertFalse(slow.gave_way)
        self.assertEqual(MOST_UNPROVED, len(self.left()))

    def test_the_addresses_of_a_network_of_64_bits_are_one_crowd(self):
        slow = self.come_from("2001:db8:1::1")
        for number in range(2 * MOST_UNPROVED):
            self.come_from(f"2001:db8:2::{number:x}")
        self.assertFalse(slow.gave_way)

    def test_among_small_crowds_the_one_that_got_no_further_for_longest_is_closed(self):
        """Or many with one connection each could keep out who has two."""
        first, second = self.come_from("198.51.100.1"), self.come_from("198.51.100.1")
        for number in range(MOST_UNPROVED - 2):
            self.come_from(f"192.0.2.{number}")
        first.advanced_at = second.advanced_at = self.clock.seconds()
        self.come_from("203.0.113.1")
        self.assertFalse(first.gave_way or second.gave_way)
        self.assertTrue(self.connections[2].gave_way)

    def test_a_few_are_no_crowd(self):
        oldest = self.come_from("198.51.100.1")
        self.come_from("203.0.113.1", A_FEW)
        for number in range(MOST_UNPROVED - A_FEW):
            self.come_from(f"192.0.2.{number}")
        self.assertTrue(oldest.gave_way)

    def test_one_address_gets_no_more_than_its_number(self):
        self.make(most=10, most_of_one=3)
        for _ in range(3):
            self.come_from("192.0.2.1").proved = True
        why = self.admission.admit(at("192.0.2.1"))
        self.assertEqual("3 clients from 192.0.2.1 are connected already", why)
        self.assertEqual("", self.admission.admit(at("192.0.2.2")))

    def test_one_of_its_own_that_asked_for_nothing_is_closed_for_another(self):
        self.make(most=10, most_of_one=3)
        other = self.come_from("192.0.2.2")
        for proved in (True, False, True):
            self.come_from("192.0.2.1").proved = proved
        self.come_from("192.0.2.1")
        self.assertFalse(other.gave_way)
        self.assertEqual([2], [n for n, one in enumerate(self.connections) if one.gave_way])

    def test_this_host_has_no_number_of_its_own(self):
        self.make(most=10, most_of_one=1)
        for address in (at("127.0.0.1"), at("::1"), at("127.9.9.9"), UNIXAddress("/run/x")):
            self.come(address).proved = True
            self.come(address).proved = True
        self.assertEqual(8, len(self.left()))


class OriginTests(SynchronousTestCase):
    def test_where_connections_come_from(self):
        for host, origin in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:127.0.0.1", LOCAL),
            ("::1", LOCAL),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("127.0.0.2", LOCAL),
        ):
            self.assertEqual(origin, origin_of(at(host)), host)
        for address in (UNIXAddress("/run/x"), UNIXAddress(None), None):
            self.assertEqual(LOCAL, origin_of(address))
