"""Prices that this deployment has seen itself, as time series."""
