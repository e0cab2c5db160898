"""Decisions as functions of what they are given: no clock, no network, no store."""
