"""The serve controller: keeps replicas of a service at the right number; it never carries a request."""
