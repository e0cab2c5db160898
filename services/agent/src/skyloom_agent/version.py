"""The agent's version, as NodeInfo tells it."""

VERSION = "0.1.0"
