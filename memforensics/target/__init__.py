"""One process or a tree of them, seen from outside: identity, /proc, memory, mapped files, cgroup.

The only room that takes a pid. Everything else takes text, bytes, a stream, or one of these objects.
"""

from memforensics.target.process import Process, open_process
from memforensics.target.procfs import ProcFS

__all__ = ["ProcFS", "Process", "open_process"]
