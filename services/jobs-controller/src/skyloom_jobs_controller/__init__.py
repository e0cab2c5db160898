"""The jobs controller: keeps a managed job alive to its end; it never creates instances itself."""
