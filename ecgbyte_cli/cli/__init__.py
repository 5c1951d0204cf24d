"""The command line: the command group, shared options, and output."""
