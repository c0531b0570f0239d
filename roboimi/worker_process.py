"""What every spawned worker process does first: leave Ctrl-C to its parent, and never outlive it."""

import multiprocessing
import os
import signal
import threading

RENDERS_ONLY = "ROBOIMI_RENDERS_ONLY"
"""Environment variable: this process never imports a deep-learning library, so it need not be protected from one."""


def begin_worker_process() -> None:
    """Prepare this spawned process; call it before anything that makes an OpenGL context."""
    # Ctrl-C goes to the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's own threads would compete with the other workers. Read when the context is made.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    os.environ[RENDERS_ONLY] = "1"
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
