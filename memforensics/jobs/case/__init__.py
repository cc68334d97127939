"""Case files: their contents, reports made of them, names added later."""
