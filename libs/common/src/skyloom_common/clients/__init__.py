"""One typed client per service: contracts in, contracts out, errors as classes. No retries, no policy."""
