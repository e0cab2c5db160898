"""Clusters and their nodes: rows, what clients see of them, and what keeps them as they should be."""
