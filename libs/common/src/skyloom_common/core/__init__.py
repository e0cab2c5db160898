"""The bottom layer: errors, wire codec, ids, clocks, units. Imports nothing but the standard library; runs on Python 3.9."""
