"""Studies of what the paper claims, each a command, a table and a figure."""
