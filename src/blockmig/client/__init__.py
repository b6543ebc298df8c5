"""Our side of a connection to somebody's NBD server."""
