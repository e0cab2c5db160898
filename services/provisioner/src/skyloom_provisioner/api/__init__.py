"""The HTTP routes: thin; they check, write intent and answer."""
