"""The commands: parse, call one job, render. One module a command."""
