"""Keeps blocks of exactly 1,000,003 bytes in a list, one each 20 ms, and churns others. memray is importable here."""

import time

KEPT: list[bytearray] = []


def keep_a_block() -> None:
    KEPT.append(bytearray(1_000_003))


def churn() -> int:
    return sum(len(bytearray(500_009)) for _ in range(3))


def main() -> None:
    print("ready", flush=True)
    for _ in range(1500):
        keep_a_block()
        churn()
        time.sleep(0.02)
    time.sleep(60)


main()
