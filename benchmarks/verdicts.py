"""The verdicts of `diagnose` on real programs: healthy ones that look like leaks, and leaks that begin late.

    make bench-verdicts [VERDICTS_ARGS="--runs 20 --seconds 12"]

Each run observes a young process (of a random age up to 10 s). A healthy program that is
called `leak` is a false alarm. A late leak begins after 30 to 60% of the observation, at random each time, and must be
`growing` or `leak`. Prints a table in Markdown.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verdict_programs import KINDS

PROGRAMS = Path(__file__).with_name("verdict_programs.py")
LATE = (0.3, 0.6)  # of the observation: when a late leak begins


def run_once(kind: str, seconds: float, rng: random.Random) -> str:
    """The verdict of one observation of one process."""
    late = kind.startswith("late-")
    age = 1.0 if late else rng.uniform(1.0, 10.0)
    begin = [str(age + rng.uniform(*LATE) * seconds)] if late else []
    command = [sys.executable, "-u", str(PROGRAMS), kind, *begin]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(age)
        with tempfile.TemporaryDirectory() as folder:
            words = ["diagnose", str(process.pid), "--duration", f"{seconds:.0f}s", "--json", "--record", f"{folder}/c"]
            done = subprocess.run(
                [sys.executable, "-m", "memforensics", *words], capture_output=True, text=True, check=False
            )
        return str(json.loads(done.stdout)["verdict"]) if done.stdout else f"exit {done.returncode}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    jobs = [(kind, n) for n in range(options.runs) for kind in options.kinds]
    words: dict[str, Counter[str]] = {kind: Counter() for kind in options.kinds}

    def run(job: tuple[str, int]) -> tuple[str, str]:
        kind, n = job
        return kind, run_once(kind, options.seconds, random.Random(f"{options.seed} {kind} {n}"))

    with ThreadPoolExecutor(options.at_once) as pool:
        for kind, word in pool.map(run, jobs):
            words[kind][word] += 1
    print("| program | what it does | verdicts |\n|---|---|---|")
    for kind, count in words.items():
        told = ", ".join(f"{word} {number}" for word, number in count.most_common())
        print(f"| {kind} | {(KINDS[kind].__doc__ or '').strip().rstrip('.')} | {told} |")
    healthy = sum(count["leak"] for kind, count in words.items() if not kind.startswith("late-"))
    missed = sum(
        count.total() - count["growing"] - count["leak"] for kind, count in words.items() if kind.startswith("late-")
    )
    print(f"\n{options.runs} runs of {options.seconds:.0f} s each.", end=" ")
    print(f"Healthy programs called leak: {healthy}. Late leaks missed: {missed}.")


if __name__ == "__main__":
    main()
