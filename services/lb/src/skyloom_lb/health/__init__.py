"""Whether an endpoint should get requests now. Decisions are pure functions of signals; one sweep every 250 ms applies them."""
