"""The optimizer: offers in, plan out; it computes and never buys."""
