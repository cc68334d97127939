"""Case files: their contents, their diagnosis, and symbol names added later."""
