"""The end that gets the disk: it accepts one migration, and says when that is complete."""
