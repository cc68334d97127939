"""The one place that exits: every error of the tree becomes one clear block on stderr and its exit code."""

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PATIENCE_S = 5.0  # so long a further signal is ignored while we end; one that comes later ends at once


def main() -> None:
    """Entry point of the console script `memforensics`."""
    interrupts = _Interrupts()
    try:
        from memforensics.cli.app import run

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
