"""The edits that must each break a rule, and those that something else makes up for."""

from __future__ import annotations

from tests.proof.model.identity.scenarios import Scenario
from tests.proof.model.programs import move, without
from tests.proof.model.variants import Variant

SEND = "sender:attempt"
NO_ID = Scenario("no id")
ID = Scenario("id")
KNOWN = Scenario("id that strangers know")
SECRET = Scenario("id that strangers know, secret")
PLAIN = Scenario("id, --plain")
ALONE = Scenario("id", strangers=False)

MUTATIONS = [
    # The fallback to plain NBD.
    Variant(
        "plain, although its record says that it was claimed",
        "R10",
        without("plain: not what was claimed, by its record"),
        PLAIN,
    ),
    Variant(
        "plain, although this process has claimed, and that only after the data is recorded",
        "R10",
        without(
            "plain: not what was claimed, in this process",
            "plain: not what was claimed, by its record",
        ),
        NO_ID,
    ),
    Variant(
        "a stopped sender forgets that it was acknowledged, and goes on as plain",
        "R10",
        without("stop: what was acknowledged is kept"),
        NO_ID,
    ),
    Variant(
        "plain with a chosen id, untold",
        "R10",
        without("plain: not with a chosen id, unless told"),
        ID,
    ),
    # The place.
    Variant(
        "it goes on at any place",
        "R1",
        without("place: only its own, by its record", "place: only its own, in this process"),
        ALONE,
    ),
    Variant(
        "it is bound to a place by its claim, which costs that no record",
        "R10",
        without("place: it is bound only when it may be whole"),
        ID,
    ),
    Variant(
        "it is bound to a place only after FLUSH",
        "R1",
        move(SEND, "MIGRATING(place)", "MIGRATING(copied)"),
        ALONE,
    ),
    # Who is let in.
    Variant("foreign changes beside an id", "R10", without("id: no foreign changes"), ID),
    Variant("any claim beside an id", "R10", without("id: no other claims"), ID),
    Variant("no proof beside a secret", "R10", without("secret: no claim without a proof"), SECRET),
    Variant("a claim costs a record", "R10", without("claim: it costs no record"), NO_ID),
    Variant("a claim ends the others", "R10", without("claim: others stay"), NO_ID),
    Variant(
        "another's claimed `copied` is let go",
        "R5",
        without(
            "claim: another's identified `copied` is kept",
            "change: an identified `copied` is kept",
        ),
        KNOWN,
    ),
    Variant(
        "a claim from before is not looked at again when its first change comes",
        "R5",
        without("change: an identified `copied` is kept"),
        KNOWN,
    ),
    Variant(
        "an unidentified `copied` yields to nobody",
        "R10",
        without("claim: an unidentified `copied` yields"),
        NO_ID,
    ),
    Variant(
        "an unclaimed attempt is not replaced",
        "R10",
        without("attempt: a claimed one replaces an unclaimed one"),
        NO_ID,
    ),
    Variant(
        "a claimed attempt is replaced by another's",
        "R10",
        without("attempt: a claimed one is replaced by its own only"),
        KNOWN,
    ),
    Variant(
        "an attempt without progress stays",
        "R10",
        without("attempt: without progress it ends"),
        KNOWN,
    ),
    Variant(
        "another's change is let in during an attempt",
        "R10",
        without("change: another's is refused while an attempt goes on"),
        NO_ID,
    ),
    Variant(
        "a change is let in after `retired`", "R5", without("change: refused once retired"), KNOWN
    ),
    Variant("anybody announces `retired`", "R5", without("retired: only with the id"), KNOWN),
    Variant("anybody's DISC completes", "R10", without("disc: only with the id"), NO_ID),
]
