"""The command that this room adds to the command line."""
