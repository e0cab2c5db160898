"""Which endpoint gets a request: filter, score, pick. Pure: no I/O, no clock, no randomness of its own."""
