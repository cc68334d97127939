"""Names for people: demangled C++ and Rust."""


def demangle(name: str) -> str:
    """C++ (Itanium) and Rust (legacy, v0) names demangled, the Rust hash taken off; anything else as it is."""
    raise NotImplementedError
