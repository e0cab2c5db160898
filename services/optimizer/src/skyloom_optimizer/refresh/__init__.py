"""Current prices from the clouds themselves: fetched, checked, merged into a catalog of this deployment."""
