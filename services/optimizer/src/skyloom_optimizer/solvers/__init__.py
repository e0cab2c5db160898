"""Exact solvers over plain numbers. They know nothing of clouds; OR-Tools is imported inside the functions that need it only."""
