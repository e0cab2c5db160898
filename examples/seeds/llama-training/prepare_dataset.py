"""Stands for your own preparation of the data."""

import sys

print("preparing with", sys.argv[1:])
