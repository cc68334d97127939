"""Rust's v0 symbol names (RFC 2603; rustc book, "v0 Symbol Format"), written out as Rust paths."""

import re

_BASIC_TYPES = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize", "j": "usize",
    "l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_", "s": "i16", "t": "u16", "u": "()", "v": "...",
    "x": "i64", "y": "u64", "z": "!",
}  # fmt: skip
_POINTERS = {"R": "&", "Q": "&mut ", "P": "*const ", "O": "*mut "}
_MAX_DEPTH = 64
_MAX_CHARACTERS = 8192


def demangle_v0(name: str) -> str | None:
    """The path, without crate hashes, lifetimes and the instantiating crate. None: not such a name, or too deep."""
    if not re.match(r"_R[A-Z]", name) or not name.isascii():
        return None
    reader = _Reader(name[2:].partition(".")[0])
    try:
        return reader.path()
    except (ValueError, IndexError):
        return None


class _Reader:
    """Recursive descent; ValueError and IndexError where the text is not of the grammar."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth, self._written = text, 0, 0, 0
        self._readers = {
            "path": self._path,
            "type path": lambda: self._path(in_type=True),
            "type": self._type,
            "const": self._const,
        }

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _eat(self, letter: str) -> bool:
        found = self._text.startswith(letter, self._at)
        self._at += found
        return found

    def _number(self) -> int:
        """Base 62, ended by an underscore: `_` is 0, `0_` is 1."""
        end = self._text.index("_", self._at)
        digits, self._at = self._text[self._at : end], end + 1
        value = 0
        for digit in digits:
            place = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".index(digit)
            value = value * 62 + place
        return value + 1 if digits else 0

    def _identifier(self) -> tuple[str, int]:
        """The name, and the number that distinguishes equal names."""
        number = self._number() + 1 if self._eat("s") else 0
        return self._plain_identifier(), number

    def _plain_identifier(self) -> str:
        self._eat("u")  # punycode, shown as it is
        found = re.compile(r"0|[1-9]\d{0,4}").match(self._text, self._at)
        if found is None:
            raise ValueError("no length")
        start = found.end() + self._text.startswith("_", found.end())
        self._at = start + int(found[0])
        if self._at > len(self._text):
            raise ValueError("cut short")
        self._written += self._at - start
        if self._written > _MAX_CHARACTERS:
            raise ValueError("too long")
        return self._text[start : self._at]

    def _deeper(self, what: str) -> str:
        self._depth += 1
        self._written += 1
        if self._depth > _MAX_DEPTH or self._written > _MAX_CHARACTERS:
            raise ValueError("too deep")
        out = self._readers[what]()
        self._depth -= 1
        return out

    def _back(self, what: str) -> str:
        """`B<number>_`: what stands at an earlier place."""
        here = self._at - 1
        target = self._number()
        if target >= here:
            raise ValueError("a reference forward")
        after, self._at = self._at, target
        out = self._deeper(what)
        self._at = after
        return out

    def path(self, in_type: bool = False) -> str:
        return self._deeper("type path" if in_type else "path")

    def type(self) -> str:
        return self._deeper("type")

    def _path(self, in_type: bool = False) -> str:
        """In a type arguments follow as Vec<u8>, in a value as Vec::<u8>."""
        match self._next():
            case "C":
                return self._identifier()[0]
            case "M":
                self._impl_path()
                return f"<{self.type()}>"
            case "X":
                self._impl_path()
                return f"<{self.type()} as {self.path(in_type=True)}>"
            case "Y":
                return f"<{self.type()} as {self.path(in_type=True)}>"
            case "N":
                space, parent = self._next(), self.path(in_type)
                name, number = self._identifier()
                if space.isupper():
                    kind = {"C": "closure", "S": "shim"}.get(space, space)
                    return f"{parent}::{{{kind}{':' + name if name else ''}#{number}}}"
                return f"{parent}::{name}" if name else parent
            case "I":
                return f"{self.path(in_type)}{'' if in_type else '::'}<{', '.join(self._arguments())}>"
            case "B":
                return self._back("type path" if in_type else "path")
        raise ValueError("not a path")

    def _impl_path(self) -> None:
        """Where the impl stands: not shown."""
        if self._eat("s"):
            self._number()
        self.path()

    def _arguments(self) -> list[str]:
        out: list[str] = []
        while not self._eat("E"):
            if self._eat("L"):
                self._number()
                out.append("'_")
            else:
                out.append(self._deeper("const") if self._eat("K") else self.type())
        return out

    def _type(self) -> str:
        letter = self._next()
        if letter in _BASIC_TYPES:
            return _BASIC_TYPES[letter]
        if letter in _POINTERS:
            if self._eat("L"):
                self._number()
            return _POINTERS[letter] + self.type()
        match letter:
            case "A":
                return f"[{self.type()}; {self._deeper('const')}]"
            case "S":
                return f"[{self.type()}]"
            case "T":
                parts = self._arguments()
                return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
            case "F":
                return self._function()
            case "D":
                return self._dyn()
            case "B":
                return self._back("type")
        self._at -= 1
        return self.path(in_type=True)

    def _function(self) -> str:
        self._binder()
        prefix = "unsafe " if self._eat("U") else ""
        if self._eat("K"):
            abi = "C" if self._eat("C") else self._plain_identifier().replace("_", "-")
            prefix += f'extern "{abi}" '
        parameters = ", ".join(self._arguments())
        result = self.type()
        return f"{prefix}fn({parameters})" + (f" -> {result}" if result != "()" else "")

    def _dyn(self) -> str:
        self._binder()
        traits: list[str] = []
        while not self._eat("E"):
            trait = self.path(in_type=True)
            while self._eat("p"):
                name = self._plain_identifier()
                binding = f"{name} = {self.type()}>"
                trait = f"{trait[:-1]}, {binding}" if trait.endswith(">") else f"{trait}<{binding}"
            traits.append(trait)
        if not self._eat("L"):
            raise ValueError("no lifetime")
        self._number()
        return "dyn " + " + ".join(traits)

    def _binder(self) -> None:
        if self._eat("G"):
            self._number()

    def _const(self) -> str:
        kind = self._next()
        if kind == "p":
            return "_"
        if kind == "B":
            return self._back("const")
        sign = "-" if self._eat("n") else ""
        end = self._text.index("_", self._at)
        value, self._at = int(self._text[self._at : end] or "0", 16), end + 1
        if kind == "b":
            return "true" if value else "false"
        return sign + (repr(chr(value)) if kind == "c" and value < 0x110000 else str(value))
