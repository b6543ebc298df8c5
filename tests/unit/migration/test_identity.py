"""Ids, secrets and proofs."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.identity import (
    ANYBODY,
    BadIdentity,
    Identity,
    check_id,
    is_proof,
    make_id,
    make_nonce,
    prove,
)

SECRET = b"sixteen bytes at" * 2


class IdTests(SynchronousTestCase):
    def test_an_id_is_made_of_letters_digits_and_three_signs(self) -> None:
        for text in ("a", "nightly-42", "web.img_2026", "0" * 64):
            self.assertEqual(check_id(text), text)

    def test_anything_else_is_none(self) -> None:
        for text in ("", "a b", "ä", "a/b", "a\n", "0" * 65, "a\0", "٣"):
            with self.assertRaises(BadIdentity):
                check_id(text)

    def test_an_id_that_was_made_up_is_one_and_not_the_next(self) -> None:
        ids = {check_id(make_id()) for _ in range(20)}
        self.assertEqual(len(ids), 20)

    def test_an_identity_checks_both(self) -> None:
        self.assertEqual(Identity(), ANYBODY)
        for id, secret in (("a b", b""), ("a", b"short"), ("", SECRET[:15])):
            with self.assertRaises(BadIdentity):
                Identity(id, secret)
        Identity("a", SECRET[:16])

    def test_a_secret_is_not_shown(self) -> None:
        self.assertNotIn("sixteen", repr(Identity("a", SECRET)))


class ProofTests(SynchronousTestCase):
    def test_a_proof_is_of_these_facts_in_this_order_by_this_secret(self) -> None:
        proof = prove(SECRET, "copying", 7, "nonce")
        self.assertTrue(is_proof(proof, SECRET, "copying", 7, "nonce"))
        for secret, facts in (
            (SECRET + b"!", ("copying", 7, "nonce")),
            (SECRET, ("copied", 7, "nonce")),
            (SECRET, ("copying", "7", "nonce")),
            (SECRET, ("copying", 7)),
            (SECRET, (7, "copying", "nonce")),
            (SECRET, ("copying7", "nonce")),
        ):
            self.assertFalse(is_proof(proof, secret, *facts))

    def test_nothing_and_nonsense_are_no_proofs(self) -> None:
        for proof in ("", "ä", "0" * 64, prove(SECRET, "copying")[:-1]):
            self.assertFalse(is_proof(proof, SECRET, "copying"))

    def test_nonces_differ(self) -> None:
        self.assertEqual(len({make_nonce() for _ in range(20)}), 20)
