"""Stands for your own training script."""

import sys

print("training with", sys.argv[1:])
