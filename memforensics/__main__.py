"""The entry point, and the only place that exits: an error becomes one block on stderr and an exit code."""

import _thread
import atexit
import os
import resource
import signal
import sys
import threading
import time
from types import FrameType

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
MIN_ADDRESS_SPACE = 1 << 30  # bytes; numpy and bcc did not load in 390 MiB
CLEANUP_S = 5.0  # while we clean up, further signals are ignored for so long; a later one ends at once


def main() -> None:
    """Entry point of the console script `memforensics`."""
    if not _has_standard_files() or not _has_address_space():
        sys.exit(3)
    interrupts = _Interrupts()
    try:
        try:
            from memforensics.cli.app import run
        except (ImportError, MemoryError, OSError) as error:
            code = _not_loaded(error)
        else:
            code = run(sys.argv[1:], interrupts.raised)
    except KeyboardInterrupt:
        print("memforensics: interrupted", file=sys.stderr)
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    interrupts.exit_code = code
    # CPython remembers that a KeyboardInterrupt left an exec() of text, as dataclass() makes, and would end by SIGINT
    # although it was handled; the next exec() clears that (run_eval_code_obj(), Python/pythonrun.c).
    exec("")
    sys.exit(code)


def _has_standard_files() -> bool:
    """Opens /dev/null in place of closed standard files, so that no file opened later becomes one of them. False, with
    a message, if standard output is closed: there is nowhere to print to."""
    is_open = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if not is_open:
        print("memforensics: standard output is closed", file=sys.stderr)
    return is_open


def _has_address_space() -> bool:
    """False, with a message, below MIN_ADDRESS_SPACE: C libraries that get no memory abort the process without a useful
    message."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY or most >= MIN_ADDRESS_SPACE:
        return True
    print(
        f"memforensics: not enough memory: the address space is limited to {most >> 20} MiB\n"
        f"  do:  ulimit -v unlimited, or at least ulimit -v {MIN_ADDRESS_SPACE >> 10}",
        file=sys.stderr,
    )
    return False


def _not_loaded(error: Exception) -> int:
    """Reports that the command line could not be loaded: a limit is too low, or a package is missing."""
    from memforensics.errors import refusal

    refused = refusal(error)
    print(f"memforensics: {refused or error}", file=sys.stderr)
    if refused is not None:
        print(f"  do:  {refused.enable}", file=sys.stderr)
    return 3


class _Interrupts:
    """SIGTERM, SIGHUP and SIGQUIT end the program like Ctrl-C: probes are closed, the case is kept, exit code 130. Only
    the first one raises KeyboardInterrupt; a second one would interrupt the cleanup with a traceback."""

    def __init__(self) -> None:
        self.exit_code: int | None = None  # set when all work is done
        self._interrupted_s: float | None = None
        self._default_hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        atexit.register(self._ignore)  # the first registered runs last
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    def raised(self) -> bool:
        return self._interrupted_s is not None

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.exit_code is not None:
            os._exit(self.exit_code)
        if self._interrupted_s is None:
            self._interrupted_s = now
            raise KeyboardInterrupt
        if now > self._interrupted_s + CLEANUP_S:
            os.write(2, b"memforensics: ended at once, without closing the probes\n")
            os._exit(130)

    def _ignore(self) -> None:
        """Python restores default actions when it ends; a signal would then change the exit code."""
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _unraisable(self, what: "sys.UnraisableHookArgs", /) -> None:
        """Raises a KeyboardInterrupt again that Python could not pass on (from a callback or a finalizer)."""
        if what.exc_type is not KeyboardInterrupt:
            self._default_hook(what)
        elif self.exit_code is None:
            self._interrupted_s = None
            threading.Timer(0.01, _thread.interrupt_main).start()


if __name__ == "__main__":
    main()
