"""Nodes on this machine: each a directory with its own home, its own loopback address and its own agent."""
