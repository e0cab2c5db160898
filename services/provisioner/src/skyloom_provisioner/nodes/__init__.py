"""One node at a time: rent it, start its agent, hear from it, give it back."""
