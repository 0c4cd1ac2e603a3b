"""An engine process must not outlive the process that started it: it would hold the memory.

Two ropes: on Linux the kernel kills the child when its parent dies, whatever it is doing; and
everywhere the loop asks now and then whether its parent is still the same.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tie_to_parent() -> None:
    """Have the kernel kill this process when its parent dies. Does nothing outside Linux.

    The kernel means the thread that started us, so a process has to be started from a thread
    that lives as long as it should: the event loop's.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def is_orphan(parent_pid: int) -> bool:
    """Whether the process that started us, `parent_pid`, is gone."""
    return os.getppid() != parent_pid
