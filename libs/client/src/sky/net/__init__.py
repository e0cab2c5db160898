"""How the client reaches a server: a small HTTP/1.1, a pooled transport, resumable streams. Knows no command and prints nothing."""
