"""The end that has the disk: it sends, retires and disconnects."""
