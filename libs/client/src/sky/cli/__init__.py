"""The `sky` command. `main` answers help at once; everything else is loaded per command."""
