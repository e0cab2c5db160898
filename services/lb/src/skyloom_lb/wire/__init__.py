"""HTTP/1.1 as bytes: heads, header rules, body framing. Pure: no sockets, no tasks; what is doubtful is refused, never guessed."""
