"""The provisioner: clusters, nodes and operations; the only part that talks to clouds."""
