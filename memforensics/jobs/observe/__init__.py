"""Observing a process tree over time, for watch, diagnose, prove and ci."""
