"""Fuzzes every reader of tests/fuzz/readers.py and prints a Markdown table. Input N of a reader is the same each time.

    python tests/fuzz/run.py [INPUTS] [--reader NAME]... [--first N] [--keep FOLDER] [--markdown FILE]

Exit code 0 if the readers raised only errors of memforensics and none took too long, else 1.
"""

import argparse
import hashlib
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if str(TESTS) not in sys.path:
    sys.path[:0] = [str(TESTS), str(TESTS / "unit")]

from fuzz.mutate import mutated  # noqa: E402
from fuzz.readers import READERS, Reader  # noqa: E402

FOUND = TESTS / "fixtures" / "fuzz"  # one folder per reader, one file per input that once broke it
TOO_LONG_S = 10.0  # of CPU time, for one input
MEMORY_BYTES = 6 << 30


class TooLong(BaseException):
    """Not an Exception, so that no reader handles it as an error of its input."""


@dataclass(slots=True)
class Outcome:
    inputs: int = 0
    errors: int = 0  # of memforensics/errors.py
    foreign: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    seconds: float = 0.0


def damaged(reader: Reader, number: int) -> bytes:
    """Input `number` of this reader."""
    pick = random.Random(f"{reader.name}:{number}")
    seeds = reader.seeds()
    return reader.damage(seeds, pick) if reader.damage is not None else mutated(seeds, pick, reader.tokens)


def attempt(reader: Reader, data: bytes, outcome: Outcome) -> str | None:
    """Reads one input and counts it. The error, if it is not allowed."""
    began, wrong = time.process_time(), None
    try:
        with _limited():
            reader.read(data)
    except reader.allowed:
        outcome.errors += 1
    except (Exception, TooLong) as error:  # noqa: BLE001 - any other is what is looked for
        last = traceback.extract_tb(error.__traceback__)
        place = next(
            (f for f in reversed(last) if "/memforensics/" in f.filename and "/tests/" not in f.filename), last[-1]
        )
        wrong = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:80]}"
        outcome.foreign[wrong] += 1
    outcome.inputs += 1
    outcome.slowest_s = max(outcome.slowest_s, time.process_time() - began)
    return wrong


@contextmanager
def _limited() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, TOO_LONG_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fuzz(reader: Reader, first: int, count: int, keep: Path | None = None, seconds: float = 1e9) -> Outcome:
    outcome, began = Outcome(), time.process_time()
    for number in range(first, first + count):
        data = damaged(reader, number)
        known = len(outcome.foreign)
        wrong = attempt(reader, data, outcome)
        if wrong is not None and len(outcome.foreign) > known:
            print(f"  {reader.name} {number}: {wrong}", file=sys.stderr, flush=True)
            if keep is not None:
                (keep / reader.name).mkdir(parents=True, exist_ok=True)
                (keep / reader.name / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        if time.process_time() - began > seconds:
            break
    outcome.seconds = time.process_time() - began
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers.")
    parser.add_argument("inputs", nargs="?", type=int, default=20_000, help="in all, shared out over the readers")
    parser.add_argument("--reader", action="append", choices=[reader.name for reader in READERS], metavar="NAME")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each")
    parser.add_argument("--seconds", type=float, default=1e9, help="of CPU time, at most, a reader")
    parser.add_argument("--keep", type=Path, help="write inputs that break a reader there")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    chosen = [reader for reader in READERS if not options.reader or reader.name in options.reader]
    shares = sum(reader.share for reader in chosen)
    lines = ["| reader | inputs | our errors | foreign exceptions | slowest input | CPU |", "|---|--:|--:|--:|--:|--:|"]
    print("\n".join(lines), flush=True)
    total = foreign = 0
    for reader in chosen:
        count = max(options.inputs * reader.share // max(shares, 1), 1)
        done = fuzz(reader, options.first, count, options.keep, options.seconds)
        wrong = sum(done.foreign.values())
        total, foreign = total + done.inputs, foreign + wrong
        cells = (
            reader.name,
            f"{done.inputs:,}",
            f"{done.errors:,}",
            wrong,
            f"{done.slowest_s * 1000:,.0f} ms",
            f"{done.seconds:,.0f} s",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], flush=True)
    lines.append(f"| all | {total:,} | | {foreign} | | |")
    print(lines[-1])
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")
    return int(foreign > 0)


if __name__ == "__main__":
    sys.exit(main())
