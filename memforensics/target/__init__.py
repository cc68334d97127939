"""A process or process tree, seen from outside: identity, /proc, memory, mapped files, cgroup.

Only this room takes a PID. All others take text, bytes, a stream, or one of these objects.
"""

from memforensics.target.process import Process, open_process
from memforensics.target.procfs import ProcFS

__all__ = ["ProcFS", "Process", "open_process"]
