"""Who uses which object."""

from __future__ import annotations

import gc
import weakref

from twisted.trial.unittest import SynchronousTestCase

from blockmig import claims
from blockmig.claims import Claim, Claims, check_unclaimed, forget_all
from blockmig.errors import ExitStatus, InUse, Refused


class Subject:
    __slots__ = ()  # neither weakly referenced nor marked: somebody else's objects may be so


class Same(Subject):
    """Equal to any other, and not to be hashed."""

    __slots__ = ()
    __hash__ = None

    def __eq__(self, other):
        return True


class User:
    pass


class Other(User):
    pass


class ClaimsTests(SynchronousTestCase):
    def setUp(self):
        forget_all()
        self.subject, self.user = Subject(), User()

    def test_a_second_claim_is_refused_in_one_line(self):
        Claim(self.subject, self.user, "web.img")
        error = self.assertRaises(InUse, Claim, self.subject, Other(), "web.img")
        self.assertEqual("web.img: is used by a User; stop that, and wait for its end", str(error))
        self.assertRaises(InUse, check_unclaimed, self.subject, "web.img")

    def test_nor_is_the_first_user_given_another(self):
        Claim(self.subject, self.user, "it")
        self.assertRaises(InUse, Claim, self.subject, self.user, "it")

    def test_it_is_a_refusal_with_the_status_of_one(self):
        self.assertTrue(issubclass(InUse, Refused))
        self.assertEqual(ExitStatus.REFUSED, InUse.status)

    def test_what_was_given_back_can_be_claimed(self):
        claim = Claim(self.subject, self.user, "it")
        claim.release()
        check_unclaimed(self.subject, "it")
        other = Other()
        Claim(self.subject, other, "it")
        claim.release()  # once more, by who has it no longer
        self.assertRaises(InUse, check_unclaimed, self.subject, "it")

    def test_equal_objects_are_not_the_same(self):
        one, other = Same(), Same()
        Claim(one, self.user, "one")
        Claim(other, self.user, "other")

    def test_who_is_no_more_uses_nothing(self):
        Claim(self.subject, self.user, "it")
        del self.user
        check_unclaimed(self.subject, "it")

    def test_not_even_where_it_refers_to_itself(self):
        Claim(self.subject, self.user, "it")
        self.user.itself = self.user
        gc.disable()
        self.addCleanup(gc.enable)
        del self.user
        check_unclaimed(self.subject, "it")

    def test_a_text_is_claimed_whichever_object_it_is(self):
        Claim("/disks/a", self.user, "it")
        self.assertRaises(InUse, check_unclaimed, "".join(["/disks", "/a"]), "it")
        check_unclaimed("/disks/b", "it")

    def test_several_claims_are_made_together_or_not_at_all(self):
        Claim("/disks/a", self.user, "it")
        other = Other()
        self.assertRaises(InUse, Claims, other, "it", self.subject, "/disks/a")
        check_unclaimed(self.subject, "it")
        both = Claims(other, "it", self.subject, "/disks/b")
        self.assertRaises(InUse, check_unclaimed, "/disks/b", "it")
        both.release()
        for subject in (self.subject, "/disks/b"):
            check_unclaimed(subject, "it")

    def test_a_subject_that_knows_its_user_goes_with_it(self):
        subject = User()
        Claim(subject, self.user, "it")
        subject.user = self.user
        gone = weakref.ref(subject), weakref.ref(self.user)
        del subject, self.user
        gc.collect()
        self.assertEqual([None, None], [dead() for dead in gone])
        self.assertEqual({}, claims._claims)

    def test_a_subject_that_cannot_be_referred_to_weakly_is_kept_with_its_id(self):
        subject = Subject()
        number = id(subject)
        Claim(subject, self.user, "it")
        del subject
        self.assertEqual([], [o for o in (Subject() for _ in range(100)) if id(o) == number])
