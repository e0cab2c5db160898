"""The dashboard: web pages over the gateway; it holds no state."""
