"""A deployment's own prices and private offers, laid over the catalog."""
