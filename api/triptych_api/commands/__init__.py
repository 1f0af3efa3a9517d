"""What this room adds to the command line; each command is a function of its module's name."""
