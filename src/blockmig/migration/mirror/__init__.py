"""A source that clients go on using while it is sent."""
