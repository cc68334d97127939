"""The one place that exits: every error of the tree becomes one clear block on stderr and its exit code."""

import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point of the console script `memforensics`."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        from memforensics.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the commands were imported
        print("memforensics: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # SIGTERM ends like Ctrl-C: probes closed, case kept, exit 130


if __name__ == "__main__":
    main()
