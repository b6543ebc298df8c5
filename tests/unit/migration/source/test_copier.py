"""What the copier keeps of a segment that was sent (migration/source/copier.py)."""

from __future__ import annotations

from unittest import mock

from blockmig.migration.source.passes import FullCopy
from blockmig.testing import UnlinkableMemoryDisk

from .case import DATA, SIZE, SenderCase


class CopierTests(SenderCase):
    def make_disk(self):
        """One without a descriptor, so that its data is read before it is requested."""
        return UnlinkableMemoryDisk(DATA)

    def test_data_that_was_sent_is_not_kept_until_it_is_acknowledged(self):
        acknowledged = []
        with mock.patch.object(FullCopy, "acknowledged", lambda _, seen: acknowledged.append(seen)):
            self.send()
        self.summary()
        self.assertEqual(SIZE, sum(segment.length for segment in acknowledged))
        self.assertEqual({None}, {segment.data for segment in acknowledged})
