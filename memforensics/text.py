"""Makes text from the target safe to show. Processes, files and functions can have any names."""


def utf8(text: str) -> str:
    """Text that encodes as UTF-8: bytes that are not UTF-8 (lone surrogates of os.fsdecode) become \\udcXX."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def utf8_all(value: object) -> object:
    """The same lists, dicts and texts, each text with `utf8`."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {utf8_all(key): utf8_all(each) for key, each in value.items()}
    return [utf8_all(each) for each in value] if isinstance(value, list | tuple) else value


def visible(text: str) -> str:
    """One line for a terminal: escape sequences, line breaks, bidirectional overrides and all other characters that do
    not print are replaced by their escapes (\\x1b, \\n, \\u202e)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def safe_lines(text: str) -> str:
    """Lines for a terminal: like `visible`, but line breaks stay."""
    return utf8("\n".join(visible(line) for line in text.split("\n")))


def basename(path: str | None) -> str:
    """The file name of a mapped path, without the kernel's " (deleted)"; "" for None."""
    return (path or "").removesuffix(" (deleted)").rpartition("/")[2]
