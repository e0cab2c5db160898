"""The agent: lives on one node, runs its jobs and reports; it holds no cloud credentials."""
