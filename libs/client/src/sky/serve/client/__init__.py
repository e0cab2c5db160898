"""The functions of sky.serve."""
