"""All services in one process with embedded Valkey and SQLite; never part of a production deployment."""
