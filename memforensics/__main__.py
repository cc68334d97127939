"""The one place that exits: every error of the tree becomes one clear block on stderr and its exit code."""

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
LEAST_SPACE = 1 << 30  # of addresses. numpy and bcc did not load in 390 MiB
PATIENCE_S = 5.0  # so long a further signal is ignored while we end; one that comes later ends at once


def main() -> None:
    """Entry point of the console script `memforensics`."""
    if not _has_standard_files() or not _has_room():
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
    # CPython remembers a KeyboardInterrupt that left an exec() of text, such as dataclass() makes, and would end by
    # SIGINT though it was handled; the next exec() clears that (run_eval_code_obj(), Python/pythonrun.c).
    exec("")
    sys.exit(code)


def _has_standard_files() -> bool:
    """Files that are opened later must not become standard input, output or error where those are closed. False, and
    said, where standard output is: there is nowhere to print to."""
    is_open = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if not is_open:
        print("memforensics: standard output is closed", file=sys.stderr)
    return is_open


def _has_room() -> bool:
    """Libraries in C end the process by themselves, without a word of ours, where they get no memory. False, and said,
    below LEAST_SPACE."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY or most >= LEAST_SPACE:
        return True
    print(
        f"memforensics: not enough memory: the address space is limited to {most >> 20} MiB\n"
        f"  do:  ulimit -v unlimited, or at least ulimit -v {LEAST_SPACE >> 10}",
        file=sys.stderr,
    )
    return False


def _not_loaded(error: Exception) -> int:
    """The command line could not be loaded: a limit of memory or open files is too low, or a package is missing."""
    from memforensics.errors import refusal

    refused = refusal(error)
    print(f"memforensics: {refused or error}", file=sys.stderr)
    if refused is not None:
        print(f"  do:  {refused.enable}", file=sys.stderr)
    return 3


class _Interrupts:
    """SIGTERM, SIGHUP and SIGQUIT end like Ctrl-C: probes closed, case kept, exit code 130. Only the first raises
    KeyboardInterrupt, or cleaning up would be interrupted, with a traceback."""

    def __init__(self) -> None:
        self.exit_code: int | None = None  # once all is done
        self._raised_s: float | None = None
        self._usual_hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        atexit.register(self._ignore)  # the first to be registered runs last
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    def raised(self) -> bool:
        return self._raised_s is not None

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.exit_code is not None:
            os._exit(self.exit_code)
        if self._raised_s is None:
            self._raised_s = now
            raise KeyboardInterrupt
        if now > self._raised_s + PATIENCE_S:
            os.write(2, b"memforensics: ended at once, without waiting for what was to be closed\n")
            os._exit(130)

    def _ignore(self) -> None:
        """Python gives signals their default action when it ends, and the exit code would be another."""
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _unraisable(self, what: "sys.UnraisableHookArgs", /) -> None:
        """Where Python cannot pass a KeyboardInterrupt on (a callback, a finalizer), it is raised again soon."""
        if what.exc_type is not KeyboardInterrupt:
            self._usual_hook(what)
        elif self.exit_code is None:
            self._raised_s = None
            threading.Timer(0.01, _thread.interrupt_main).start()


if __name__ == "__main__":
    main()
