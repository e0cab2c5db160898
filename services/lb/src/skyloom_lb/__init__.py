"""The load balancer: one request, one endpoint; it never decides how many replicas there are."""
