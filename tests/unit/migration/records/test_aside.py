"""Records of a device whose name another one has now: they give way, and are found again."""

from __future__ import annotations

import os

from blockmig.errors import MigrationError, Refused
from blockmig.migration.destination import record as destination
from blockmig.migration.records import forget as forgetting
from blockmig.migration.records.aside import set_aside
from blockmig.migration.records.directory import recorded_disks
from blockmig.migration.records.files import (
    Kind,
    Location,
    Phase,
    Records,
    read_all,
    records_at,
)
from blockmig.migration.records.finished import read_finished
from blockmig.migration.records.forget import forget, forget_old
from blockmig.migration.records.permitted import SourceState, source_state
from blockmig.migration.records.verdict import CopyState, DiskState, verdict_of
from blockmig.migration.source.record import SourceRecord
from blockmig.storage import DiskRefused, boot_id
from blockmig.storage.record_paths import device_record_path
from blockmig.syscalls import SystemCalls
from tests.unit.migration.records.test_finished import HERE, URI
from tests.unit.migration.records.test_finished import Case as FinishedCase
from tests.unit.storage.sysfs import Sysfs
from tests.unit.storage.sysfs import number as sysfs_number
from tests.unit.support import ONE, TWO

# One disk after the other in the same place, within one boot; the last may be any.
FIRST, SECOND, THIRD = (f"device 8:16; diskseq {number}" for number in (3, 9, 12))
LASTING = "device 8:32; diskseq 20; wwid naa.5"
DEVICE = "/dev/blockmig-none"


class Case(FinishedCase):
    def setUp(self):
        super().setUp()
        self.directory = os.path.dirname(self.records.path)
        self.stem = os.path.join(self.directory, "dev-blockmig%2Dnone")
        self.records = Records(self.stem, device=DEVICE)
        here = Location(HERE, DEVICE, state_directory=self.directory)
        first = {"identity": FIRST, "boot": boot_id()}
        self.received = self.received.but(destination=here, **first)
        self.migrated = self.migrated.but(source=here, **first)

    def names(self):
        names = sorted(os.listdir(self.directory))
        return [name.removeprefix("dev-blockmig%2Dnone") for name in names]


class SetAsideTests(Case):
    def test_what_is_about_another_device_gets_a_name_of_its_own(self):
        self.stand(migrated=self.migrated)
        before = self.content()
        there = set_aside(self.records, SECOND)
        self.assertEqual([f":{ONE}.MIGRATED"], self.names())
        self.assertEqual(f"{self.stem}:{ONE}", there.path)
        self.assertEqual(list(before.values()), list(self.content().values()))
        self.assertTrue(there.set_aside)
        self.assertFalse(self.records.set_aside)

    def test_what_may_be_about_the_device_itself_stays(self):
        files = "inode 5, born 1"
        for record, now in (
            (self.migrated, FIRST),
            (self.migrated.but(boot="earlier"), SECOND),
            (self.migrated.but(identity="", boot=""), SECOND),
            (self.migrated.but(identity=files), "inode 6, born 2"),
            (self.migrated, ""),
        ):
            self.stand(migrated=record)
            self.assertIsNone(set_aside(self.records, now))
            self.assertEqual([".MIGRATED"], self.names())
        self.stand(migrated=b"torn", received=self.received)
        set_aside(self.records, SECOND)
        self.assertEqual([".MIGRATED", f":{ONE}.RECEIVED"], self.names())

    def test_what_decides_goes_last(self):
        """At each moment what is left under the name is right for the first device."""
        gone = self.migrated.but(migration=TWO, follows=ONE)
        unfinished = self.received.but(phase=Phase.COPYING, migration=TWO, confirmed="")
        for records, order in (
            ({"received": self.received, "migrated": gone}, "RECEIVED MIGRATED"),
            (
                {"migrated": gone.but(follows=""), "received": self.received.but(follows=TWO)},
                "MIGRATED RECEIVED",
            ),
            ({"migrating": self.migrated, "migrated": self.migrated}, "MIGRATING MIGRATED"),
            ({"migrating": gone, "received": self.received}, "RECEIVED MIGRATING"),
            (
                {
                    "migrating": gone.but(migration="three", follows=TWO),
                    "migrated": self.migrated,
                    "received": self.received.but(migration=TWO, follows=ONE),
                },
                "MIGRATED RECEIVED MIGRATING",
            ),
            ({"incomplete": unfinished, "migrated": self.migrated}, "MIGRATED INCOMPLETE"),
            ({"incomplete": unfinished, "received": self.received}, "RECEIVED INCOMPLETE"),
        ):
            self.stand(**records)
            calls = []

            class Calls(SystemCalls):
                def rename(self, old, new, calls=calls):
                    super().rename(old, new)
                    calls.append(old.rpartition(".")[2])

                def sync_directory(self, path, calls=calls):
                    super().sync_directory(path)
                    calls.append("sync")

            system = Calls()
            set_aside(Records(self.stem, system, DEVICE), SECOND)
            self.assertEqual(" sync ".join([*order.split(), ""]).strip(), " ".join(calls))
            stems = {name.rpartition(".")[0] for name in self.names()}
            self.assertEqual(1, len(stems), "all of one device go to one name")

    def test_what_was_interrupted_goes_on_to_the_same_name(self):
        gone = self.migrated.but(migration=TWO, follows=ONE)
        self.stand(received=self.received, migrated=gone)

        class Dying(SystemCalls):
            def sync_directory(self, path):
                raise OSError(5, "the medium failed")

        self.assertRaises(OSError, set_aside, Records(self.stem, Dying(), DEVICE), SECOND)
        self.assertEqual([".MIGRATED", f":{TWO}.RECEIVED"], self.names())
        set_aside(self.records, SECOND)
        self.assertEqual([f":{TWO}.MIGRATED", f":{TWO}.RECEIVED"], self.names())
        # What the first has met with since goes there too.
        self.records.write(Kind.MIGRATED, self.migrated.but(migration="three"))
        set_aside(self.records, SECOND)
        self.assertEqual([f":{TWO}.MIGRATED", f":{TWO}.RECEIVED"], self.names())

    def test_each_of_several_devices_has_its_own(self):
        self.stand(migrated=self.migrated)
        set_aside(self.records, SECOND)
        self.records.write(Kind.MIGRATED, self.migrated.but(migration=TWO, identity=SECOND))
        set_aside(self.records, THIRD)
        self.assertEqual([f":{ONE}.MIGRATED", f":{TWO}.MIGRATED"], self.names())

    def test_the_ids_of_the_name_stay_used(self):
        self.stand(migrated=self.migrated.but(ids=("a",)))
        set_aside(self.records, SECOND)
        finished = read_finished(self.records)
        self.assertEqual((None, ("a", "web")), (finished.latest, finished.ids))
        for used in finished.ids:
            error = self.assertRaises(
                Refused, source_state, self.records, SECOND, URI, size=5, id=used
            )
            self.assertIn("never used twice", str(error))
        new = finished.precede(self.received.but(migration=TWO, ids=()))
        self.assertEqual(("a", "web"), new.ids)


class Died(Exception):
    """The process did, or the machine."""


class CrashTests(Case):
    """After each rename, wherever the first device comes back, all that was known is known."""

    HERE_AGAIN = "/dev/blockmig-again"

    def setUp(self):
        super().setUp()
        self.sys = Sysfs(os.path.join(self.directory, "sys"))
        self.sys.disk("sdb", "8:16", "3")
        self.migrating = self.migrated.but(
            migration=TWO, phase=Phase.COPIED, retired="", told="", confirmed="", id=""
        )
        received, migrated = self.received, self.migrated
        went = migrated.but(migration=TWO, follows=ONE)
        came = received.but(migration=TWO, follows=ONE)
        half = came.but(phase=Phase.COPYING, retired="", confirmed="")
        copied = half.but(phase=Phase.COPIED)
        again = self.migrating.but(follows=ONE)
        self.cases = (
            {"migrated": migrated},
            {"migrating": self.migrating},
            {"incomplete": copied},
            {"migrated": migrated.but(confirmed=""), "migrating": migrated.but(confirmed="")},
            {"migrated": migrated, "migrating": again},
            {"received": received, "migrating": again},
            {"accepted": received, "migrating": again},
            {"received": came, "migrated": migrated},
            {"received": came, "migrated": migrated, "migrating": again.but(follows=TWO)},
            {"received": received, "migrated": went},
            {"received": received, "migrated": went, "migrating": went.but(confirmed="")},
            {"incomplete": received, "received": received},
            {"incomplete": half, "received": received},
            {"incomplete": half, "migrated": migrated},
            {"incomplete": half, "received": received, "migrated": went.but(migration="three")},
        )

    def record_names(self):
        return [name for name in self.names() if "." in name]

    def begin(self, **records):
        for other in self.records.aside():
            other.remove(*Kind)
        self.stand(**records)

    def lookup(self, path, number):
        """The records of the first device, by that name."""
        found = device_record_path(path, number, self.directory, SystemCalls(), self.sys.root)
        return Records(found, device=path)

    def said(self, records, path, there=True):
        """All that is made of them: the verdict, and what becomes of a command."""
        good, bad = read_all(records)
        self.assertEqual({}, bad)
        size, identity = (5, FIRST) if there else (None, "")
        disk = DiskState(path, size, identity, records=good, set_aside=records.set_aside)
        verdict = verdict_of(disk)
        answers = [good, verdict.state, verdict.line, verdict.why]
        for asked in ({}, {"overwrite": True, "id": "new"}):
            try:
                state = source_state(records, FIRST, "nbd://elsewhere/", size=5, **asked)
            except MigrationError as error:
                answers.append((type(error), str(error)))
            else:
                answers.append(state)
        return str(answers).replace(records.path, "RECORDS").replace(path, "DEVICE")

    def test_wherever_it_comes_back(self):
        crashes = 0
        for records in self.cases:
            for renames in range(len(records)):
                for path, number in (
                    (DEVICE, "8:16"),
                    (self.HERE_AGAIN, "8:16"),
                    (DEVICE, None),  # not at all
                ):
                    self.begin(**records)
                    there = number is not None
                    before = self.said(Records(self.stem, device=path), path, there)
                    self.crash(renames)
                    if there:
                        found = self.lookup(path, sysfs_number(number))
                    else:
                        found = records_at(path, self.directory)
                    after = self.said(found, path, there)
                    self.assertEqual(before, after, (records, renames, path, number))
                    stems = {name.rpartition(".")[0] for name in self.record_names()}
                    self.assertEqual(1, len(stems), "all are together again")
                    crashes += 1
        self.assertEqual(3 * sum(map(len, self.cases)), crashes)

    def crash(self, renames):
        class Calls(SystemCalls):
            def rename(self, old, new):
                nonlocal renames
                if renames == 0:
                    raise Died
                renames -= 1
                super().rename(old, new)

        self.assertRaises(Died, set_aside, Records(self.stem, Calls(), DEVICE), SECOND)

    def test_what_is_left_to_the_second_goes_too_once_its_records_are_looked_for(self):
        self.stand(received=self.received, migrating=self.migrating)
        self.crash(1)
        self.sys.remove("8:16")
        self.sys.disk("sdc", "8:16", "9")
        found = self.lookup(DEVICE, sysfs_number("8:16"))
        self.assertEqual(self.stem, found.path)
        self.assertEqual(({}, {}), read_all(found))
        self.assertEqual([f":{TWO}.MIGRATING", f":{TWO}.RECEIVED"], self.record_names())

    def test_who_finishes_it_at_the_same_time_does_no_harm(self):
        self.stand(received=self.received, migrating=self.migrating)
        test = self

        class Calls(SystemCalls):
            def sync_directory(self, path):
                super().sync_directory(path)
                test.lookup(DEVICE, sysfs_number("8:16"))

        set_aside(Records(self.stem, Calls(), DEVICE), SECOND)
        self.assertEqual([f":{TWO}.MIGRATING", f":{TWO}.RECEIVED"], self.record_names())

    def test_where_it_cannot_be_finished_nothing_is_concluded_from_a_part(self):
        class ReadOnly(SystemCalls):
            def rename(self, old, new):
                raise OSError(30, "Read-only file system")

        for path, number in ((DEVICE, "8:16"), (self.HERE_AGAIN, "8:16"), (DEVICE, None)):
            self.begin(received=self.received, migrating=self.migrating)
            self.crash(1)
            before = self.record_names()
            arguments = (
                (records_at, path, self.directory, ReadOnly())
                if number is None
                else (
                    device_record_path,
                    path,
                    sysfs_number(number),
                    self.directory,
                    ReadOnly(),
                    self.sys.root,
                )
            )
            error = self.assertRaises(DiskRefused, *arguments)
            self.assertIn("by several names", str(error))
            self.assertEqual(before, self.record_names())


class WritersTests(Case):
    """Those who write records: nothing of the first device is lost."""

    def check_kept(self):
        aside = Records(f"{self.stem}:{ONE}", device=DEVICE)
        self.assertEqual(self.before, aside.read(Kind.MIGRATED))

    def setUp(self):
        super().setUp()
        self.stand(migrated=self.migrated)
        self.before = self.records.read(Kind.MIGRATED)

    def test_a_sender(self):
        state = source_state(self.records, SECOND, URI, size=5, id="two")
        self.assertEqual(SourceState(finished=state.finished), state)
        source = SourceRecord(
            self.records, state, disk=DEVICE, destination=URI, size=5, identity=SECOND, id="two"
        )
        source.copying(1, Location("far", "/copy", URI), True)
        self.check_kept()
        self.assertEqual(["web"], list(self.records.read(Kind.MIGRATING).ids))
        source.copied()
        source.mark_retired()
        source.complete()
        self.check_kept()
        self.assertEqual([".MIGRATED", f":{ONE}.MIGRATED"], self.names())
        self.assertEqual(SECOND, self.records.read(Kind.MIGRATED).identity)

    def test_a_receiver(self):
        class Disk:
            """As much of a disk as is asked for a record."""

            size = 5
            may_overwrite = True
            disk = None

            def check(self):
                pass

            prepare = check

            def identity(self):
                return SECOND

            def location(self):
                return Location(HERE, DEVICE)

        half = self.received.but(phase=Phase.COPYING, confirmed="", migration=TWO)
        for others in ({}, {"incomplete": half}):
            self.stand(migrated=self.before, **others)
            self.before = self.records.read(Kind.MIGRATED)
            previous = self.records.read(Kind.INCOMPLETE)
            record = destination.DestinationRecord(Disk(), self.records, previous, None)
            self.patch(destination, "remove_mark", lambda disk: None)
            written = record._write(self.received.but(migration="three", confirmed=""))
            self.assertEqual(SECOND, written.identity)
            self.assertEqual(written, self.records.read(Kind.INCOMPLETE))
            (aside,) = self.records.aside()
            self.assertEqual(self.before, aside.read(Kind.MIGRATED))
            self.assertEqual(previous, aside.read(Kind.INCOMPLETE))
            aside.remove(*Kind)

    def test_forget_by_the_name_of_the_second(self):
        self.patch(forgetting, "_identity", lambda path, system: SECOND)
        self.patch(forgetting, "_records", lambda path, state, system: self.records)
        done = forget(DEVICE)
        self.assertEqual(((), f"{self.stem}:{ONE}"), (done.removed, done.aside))
        self.check_kept()
        self.assertRaises(Refused, forget, DEVICE)


class PeopleTests(Case):
    """What people are told of records that were set aside, and do with them."""

    def setUp(self):
        super().setUp()
        self.stand(migrated=self.migrated)
        self.aside = set_aside(self.records, SECOND).path

    def test_they_are_listed_by_their_own_name_which_leads_to_them(self):
        self.records.write(Kind.RECEIVED, self.received.but(identity=SECOND))
        self.assertIn(self.aside, recorded_disks(self.directory))
        self.assertEqual(self.aside, records_at(self.aside, self.directory).path)

    def test_a_device_that_is_gone_is_known_by_them(self):
        self.assertEqual(self.aside, records_at(DEVICE, self.directory).path)

    def test_they_are_forgotten_only_if_somebody_has_checked(self):
        for path in (self.aside, DEVICE):
            self.assertRaises(Refused, forget, path, state_directory=self.directory)
        forget(self.aside, checked_destination=True)
        self.assertEqual([], self.names())

    def test_what_is_old_is_forgotten_whatever_has_the_name(self):
        self.records.write(Kind.MIGRATED, self.migrated.but(identity=SECOND, migration=TWO))
        self.patch(forgetting, "_identity", lambda path, system: THIRD * (path == DEVICE))
        for path, error in forget_old(self.directory, -1):
            self.assertIsInstance(error, Refused, path)
        done = dict(forget_old(self.directory, -1, checked_destination=True))
        self.assertEqual({self.aside: None, DEVICE: None}, done)
        self.assertEqual([], self.names())

    def test_what_is_not_proved_to_be_the_first_device_is_unknown(self):
        """After a restart, where it has no lasting name."""
        records = {Kind.MIGRATED: self.migrated.but(boot="earlier")}
        found = DiskState("/dev/sdb", 5, SECOND, records=records, set_aside=True)
        verdict = verdict_of(found)
        self.assertEqual(CopyState.UNKNOWN, verdict.state)
        self.assertIn("nothing proves", verdict.why)
        records = {Kind.MIGRATED: self.migrated.but(identity=LASTING, boot="earlier")}
        found = DiskState("/dev/sdb", 5, LASTING, records=records, set_aside=True)
        self.assertEqual(CopyState.NOT_CANONICAL, verdict_of(found).state)
