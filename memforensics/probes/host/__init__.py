"""Checks of the host and of one process: what can be observed, and what enables the rest."""
