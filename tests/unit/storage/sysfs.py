"""A directory that looks like sysfs, as far as block devices go."""

from __future__ import annotations

import os


def number(text):
    """C{st_rdev} of C{MAJOR:MINOR}."""
    return os.makedev(*map(int, text.split(":")))


class Sysfs:
    """A sysfs in C{root}, which is made."""

    def __init__(self, root):
        self.root = str(root)
        for place in ("dev/block", "block"):
            os.makedirs(os.path.join(self.root, place))

    def disk(self, name, device, diskseq="", **files):
        """A whole disk.

        @param files: what else its directory has; "__" in a name is a slash.
        @return: its directory.
        """
        entry = self._entry(os.path.join("devices", name), device, diskseq=diskseq, **files)
        os.symlink(entry, os.path.join(self.root, "block", name))
        return entry

    def partition(self, disk, name, device, index, start, **files):
        """A partition of the disk with the directory C{disk}."""
        place = os.path.relpath(os.path.join(disk, name), self.root)
        return self._entry(place, device, partition=str(index), start=str(start), **files)

    def over(self, entry, *below):
        """The device with the directory C{entry} is made of those with the directories below."""
        os.makedirs(os.path.join(entry, "slaves"), exist_ok=True)
        for other in below:
            os.symlink(other, os.path.join(entry, "slaves", os.path.basename(other)))

    def remove(self, device):
        os.unlink(os.path.join(self.root, "dev/block", device))

    def _entry(self, place, device, **files):
        entry = os.path.join(self.root, place)
        for name, text in {"dev": device, **files}.items():
            if text:
                path = os.path.join(entry, name.replace("__", "/"))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w") as file:
                    file.write(f"{text}\n")
        os.symlink(entry, os.path.join(self.root, "dev/block", device))
        return entry
