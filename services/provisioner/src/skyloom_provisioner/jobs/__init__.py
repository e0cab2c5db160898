"""From tasks to jobs of one cluster."""
