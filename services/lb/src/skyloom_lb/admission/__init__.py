"""Who may, how much, and in which order: keys, rate limits, concurrency, fair queues, and waiting for a replica."""
