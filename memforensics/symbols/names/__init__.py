"""Names for addresses: functions, source lines, inlined calls, demangling."""
