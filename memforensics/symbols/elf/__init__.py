"""ELF files: sections, symbols, build-ids, versions."""
