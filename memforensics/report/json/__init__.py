"""JSON output, and the schema that documents it."""
