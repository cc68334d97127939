"""Unwinding: from registers and stack memory to return addresses."""
