"""Parts of a fleet's plan; `skyloom_optimizer.fleetplan` puts them together."""
