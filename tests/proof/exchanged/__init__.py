"""A third party at the files: deleted, renamed, exchanged, cut or written to at any step.

Owns the acts, the cases, and what must be so after each; the rooms and scenarios are
L{tests.proof.matrix}'s. A case holds one side still at a point (the other one too); then somebody
else does something to a disk's file, and both go on, or the held one dies. Where they did not both
end with 0, some are started again as their operators would. The truth is read from the bytes,
wherever they are by then. These must hold:

* C{zero}: a receiver ends with 0 only where its disk's name leads to all bytes of the disk, as it
  last was before its source was retired;
* C{verdict}: `inspect` says canonical of no other file;
* C{lost}: some file has all bytes of the disk;
* C{deleted}: what somebody else has moved away is not taken for what we have deleted, and where it
  was deleted its whole copy is not taken back;
* C{foreign}: what the third party put there is still there;
* C{status}, C{rescue}, C{log}, C{end}: what is said at the end is so, what was saved is recognised
  as such, nothing crashes, and there is an end;
* C{touched}: what was only touched (another ctime) ends with 0 on both sides.

Between a last look and the act that relies on it a program is blind. L{acts.BLIND} lists those
points, all of them, and what may be wrong after something was done to a file there. What else may
be lost is what the third party has itself destroyed: L{third_party.ThirdParty.destroyed_it}.

From the bottom up: C{acts}, what is done, and where a program is blind to it; C{third_party}, who
does it; C{findings}, what must hold; C{playing}; C{cases}; C{running}.

C{python -m tests.proof.exchanged [--full] [FILTER ...]} plays it outside of pytest.
"""
