"""Instances in memory with knobs; for tests, and for trying things out without paying."""
