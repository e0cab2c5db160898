"""What the balancer tells: metrics, access log, load reports. Counting is array work; forming text happens elsewhere, later."""
