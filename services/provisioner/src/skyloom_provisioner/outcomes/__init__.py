"""What became of launches and nodes, on its way to the optimizer."""
