"""The careful lane: everything that is not ordinary, as exchanges of the fast lane whose bodies are streamed, and as tunnels."""
