"""Processes that parse files of unknown origin for this one: one a core, each for many episodes, replaced when it dies.

The parent never opens an episode. It believes nothing that comes back: answers are JSON of limited size, and a process
that dies, is silent for too long or answers nonsense is a finding about the file it was given.
"""

import collections
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import roboimi
from roboimi.errors import RoboimiError
from roboimi.vla.data.hdf5 import first_line
from roboimi.vla.data.validate.sandbox import clean_environment

COMMAND = (sys.executable, "-s", "-P", "-m", "roboimi.vla.data.validate.worker")

SILENCE_S = 30.0
"""Longest time without a sign of life."""

START_S = 120.0
MOST_S = 3600.0
"""Longest time for one job, signs of life or not."""

MOST_ANSWER_BYTES = 64 * 2**20
ATTEMPTS = 2
"""How often an episode is tried when its process dies: the one before may have left the process damaged."""


class ParserError(RoboimiError):
    """The process that parses episodes cannot be started."""

    failure_class = "parser"


class Death(Exception):
    """A process ended, or was ended, before it answered; the message says how."""

    hopeless = False


class Silence(Death):
    """A process took too long: trying again would take as long."""

    hopeless = True


class Parser:
    """One parsing process and what it was told."""

    def __init__(self, setup: dict[str, Any]):
        self._silence_s = SILENCE_S
        self._buffer = bytearray()
        root = Path(roboimi.__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(root),
            cwd="/",
            bufsize=0,
        )
        self._setup_due = 2  # it says that it is ready, then that it knows the dataset
        self._deadline = self._latest = time.monotonic() + START_S
        self.job: Any = None
        self._write(json.dumps(setup))

    @property
    def fileno(self) -> int:
        """Where its answers come from."""
        return self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def seconds_left(self) -> float:
        """Until it counts as hanging."""
        return min(self._deadline, self._latest) - time.monotonic()

    def ask(self, job: dict[str, Any], tag: Any, silence_s: float) -> None:
        """Give it a job, with a tag for the one who asks."""
        self.job, self._silence_s = tag, silence_s
        self._latest = time.monotonic() + START_S + MOST_S
        self._alive(START_S if self._setup_due else 0.0)
        self._write(json.dumps(job))

    def read(self) -> list[dict[str, Any]]:
        """The answers that have arrived, signs of life left out.

        Raises:
            Death: it is gone, or answers nonsense.
        """
        block = os.read(self.fileno, 1 << 20)
        if not block:
            raise Death(self._how_it_ended())
        self._buffer += block
        if len(self._buffer) > MOST_ANSWER_BYTES:
            raise Death("the process that read it answered without end")
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        answers = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError as error:
                raise Death("the process that read it answered nonsense") from error
            self._alive()
            if not isinstance(message, dict):
                raise Death("the process that read it answered nonsense")
            if "beat" not in message:
                answers.append(message)
        return [message for message in answers if not self._is_about_setup(message)]

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            pipe.close()

    def _is_about_setup(self, message: dict[str, Any]) -> bool:
        if not self._setup_due:
            return False
        self._setup_due -= 1
        if "error" in message:
            raise ParserError(f"A parsing process cannot work ({message['error']}): check the installation.")
        return True

    def _write(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # its death is seen where it is read from
            self._process.stdin.write(text.encode() + b"\n")

    def _alive(self, more_s: float = 0.0) -> None:
        self._deadline = time.monotonic() + self._silence_s + more_s

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if self._setup_due == 2:
            reason = first_line(Exception(self._process.stderr.read().decode(errors="replace").strip()[-300:]))
            raise ParserError(f"A parsing process cannot be started ({reason}): check the installation.")
        if code == -signal.SIGXCPU:
            raise Silence("reading it took more computing time than any episode needs")
        if code < 0:
            return f"the process that read it crashed ({signal.Signals(-code).name})"
        return f"the process that read it ended with exit code {code}"


class Pool:
    """Parsing processes for one dataset; use as a context manager.

    Args:
        setup: `root`, `manifest`, `digest` and `limits` of the dataset, as documents.
        workers: most processes at a time.
        silence_s: longest time without a sign of life.
    """

    def __init__(self, setup: dict[str, Any], workers: int, silence_s: float = SILENCE_S):
        self._setup = {"dataset": setup}
        self._workers = max(1, workers)
        self._silence_s = silence_s
        self._parsers: list[Parser] = []

    def run(self, jobs: Iterable[tuple[Any, dict[str, Any]]]) -> Iterator[tuple[Any, Any]]:
        """Do jobs in parallel.

        Args:
            jobs: a tag and a job each.

        Yields:
            The tag and what came back, in the order of completion: the result, or the `Death` it caused.
        """
        waiting = collections.deque((tag, job, ATTEMPTS) for tag, job in jobs)
        with selectors.DefaultSelector() as selector:
            busy = 0
            for _ in range(min(self._workers, len(waiting))):
                parser = self._parsers.pop() if self._parsers else Parser(self._setup)
                self._give(selector, parser, waiting.popleft())
                busy += 1
            try:
                while busy:
                    for parser, outcome in self._next(selector):
                        tag, job, attempts = parser.job
                        selector.unregister(parser.fileno)
                        if isinstance(outcome, Death):
                            parser.end()
                            parser = None
                            if attempts > 1 and not outcome.hopeless:
                                waiting.appendleft((tag, job, attempts - 1))
                                outcome = None
                        if waiting:
                            parser = parser or Parser(self._setup)
                            self._give(selector, parser, waiting.popleft())
                        else:
                            busy -= 1
                            if parser is not None:
                                self._parsers.append(parser)
                        if outcome is not None:
                            yield tag, outcome if isinstance(outcome, Death) else outcome[0]
            finally:
                for key in list(selector.get_map().values()):
                    key.data.end()

    def ask(self, job: dict[str, Any]) -> Any:
        """One job, its result.

        Raises:
            Death: the process died of it.
        """
        ((_, outcome),) = self.run([(None, job)])
        if isinstance(outcome, Death):
            raise outcome
        return outcome

    def close(self) -> None:
        """End all processes."""
        while self._parsers:
            self._parsers.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _give(self, selector: selectors.BaseSelector, parser: Parser, task: tuple[Any, dict[str, Any], int]) -> None:
        selector.register(parser.fileno, selectors.EVENT_READ, parser)
        extra_s = 0.1 * len(self._setup["dataset"]["manifest"]["episodes"]) if "statistics" in task[1] else 0.0
        parser.ask(task[1], task, self._silence_s + extra_s)

    def _next(self, selector: selectors.BaseSelector) -> Iterator[tuple[Parser, Any]]:
        """Parsers that have answered (their result in a tuple of one), and those that died."""
        parsers = [key.data for key in selector.get_map().values()]
        ready = selector.select(max(0.0, min(parser.seconds_left for parser in parsers)))
        for key, _ in ready:
            parser = key.data
            try:
                answers = parser.read()
            except Death as death:
                yield parser, death
                continue
            if answers and "result" in answers[-1]:
                yield parser, (answers[-1]["result"],)
            elif answers:
                yield parser, Death(f"the process that read it failed ({str(answers[-1].get('error'))[:200]})")
        answered = {id(key.data) for key, _ in ready}
        for parser in parsers:
            if id(parser) not in answered and parser.seconds_left <= 0:
                yield parser, Silence(f"reading it gave no sign of life for {self._silence_s:.0f} s")
