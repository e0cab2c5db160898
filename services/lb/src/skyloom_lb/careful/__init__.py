"""The careful lane: everything that is not ordinary, on aiohttp's server and client, with the same front and services."""
