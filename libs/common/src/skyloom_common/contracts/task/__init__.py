"""The task: what a user writes in YAML or Python, as contracts, with its parser and its writer."""
