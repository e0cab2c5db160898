"""Keyed work: reconcilers are called per key, one at a time for a key, many keys at once within a bound."""

from skyloom_common.reconcile.backoff import Backoff
from skyloom_common.reconcile.runner import DONE, Result, Runner

__all__ = ["DONE", "Backoff", "Result", "Runner"]
