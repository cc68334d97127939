"""The heap: who allocated what is still held."""
