"""What a spawned worker does first: it leaves Ctrl-C to its parent."""

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor

from roboimi.worker_process import begin_worker_process


def test_workers_leave_ctrl_c_to_their_parent():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin_worker_process) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
