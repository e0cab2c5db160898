"""The gateway: the one address for clients; it holds no business logic of the other services."""
