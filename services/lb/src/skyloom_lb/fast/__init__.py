"""The fast lane: ordinary requests on our own protocols, two reads and two writes each. What is unusual goes to `careful`."""
