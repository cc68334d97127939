"""watch: the loop, the search for a cause, the alarm, the metrics server."""
