"""The functions of sky.jobs."""
