"""The command line: a module for each command, which declares its flags and calls one verb."""
