"""Attacks on memforensics, each repeated many times: `make attack` runs all and prints a table.

To add one, write a function in a module of this folder and decorate it:

    @attack("what is done, and what must hold after it", runs=50)
    def name(number: int) -> str | None:
        ...

The function makes one attempt, with `number` as the seed. It returns None if memforensics withstood it, else what went
wrong. An exception is a failed attempt too. List a new module in run.py. A test may call the function a few times.
"""

from collections.abc import Callable
from dataclasses import dataclass

Attempt = Callable[[int], str | None]


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    text: str
    runs: int
    attempt: Attempt


ATTACKS: list[Attack] = []


def attack(text: str, *, runs: int) -> Callable[[Attempt], Attempt]:
    """Registers an attack."""

    def add(attempt: Attempt) -> Attempt:
        ATTACKS.append(Attack(attempt.__name__, text, runs, attempt))
        return attempt

    return add
