"""Fakes and servers for tests. Production code does not import this."""
