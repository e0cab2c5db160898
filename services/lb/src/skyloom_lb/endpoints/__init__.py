"""Which endpoints there are: parsed from the command line, a watched file or Redis; what was known last stays good."""
