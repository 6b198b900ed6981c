"""What a judge has answered, kept on disk, and what that has cost: nothing is paid for twice, nor more than allowed."""

import logging
import os
import socket
import statistics
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from icprobe import jsonl
from icprobe.errors import JudgeError

logger = logging.getLogger(__name__)


class Cache:
    """Answers by key, in memory and in a folder that jobs share; `rows` are all that came, and were paid for.

    An answer that cannot be read (`readable`) is in `rows` alone: whoever wants it asks again. Each process writes a
    journal of its own, for appending to a common file is not safe on every cluster's file system. Without a folder
    answers last as long as the object.
    """

    def __init__(self, folder: Path | None, readable: Callable[[dict[str, Any]], bool]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._folder, self._readable = folder, readable
        self._answers: dict[str, dict[str, Any]] = {}
        self._journal: Path | None = None
        self._writing = threading.Lock()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._read()

    def _read(self) -> None:
        paths = sorted(self._folder.glob("*.jsonl")) if self._folder else []
        self.rows = [row for path in paths for row in jsonl.whole_lines(path)]
        self._answers = {row["key"]: row for row in self.rows if self._readable(row)}

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        row = {"key": key, **answer}
        with self._writing:
            self.rows.append(row)
            if self._readable(row):
                self._answers[key] = row
            if self._journal:
                jsonl.append(self._journal, [row])

    def seconds(self) -> float | None:
        """Median time of an answer so far."""
        return statistics.median(row["seconds"] for row in self.rows) if self.rows else None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The one place of an experiment in which a judge is asked; others wait, and then know what was answered.

        The lock is the operating system's: it ends with the process that holds it, however that ends.
        """
        if not self._folder:
            yield
            return
        lock = FileLock(self._folder / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("another job is using the judge; this one waits for it")
            lock.acquire()
        try:
            self._read()
            yield
        finally:
            lock.release()


def dollars(tokens: list[int] | None, settings: dict[str, Any]) -> float | None:
    """Price of tokens [read, written]; None where a price or the tokens are not known."""
    prices = [settings["price_input"], settings["price_output"]]
    if tokens is None or None in prices:
        return None
    return sum(count * price for count, price in zip(tokens, prices, strict=True)) / 1e6


def shown_dollars(amount: float | None) -> str:
    """An amount as people write it; small ones with two digits that say something."""
    if amount is None:
        return "cost unknown (price_input and price_output are not set)"
    return f"${amount:.2f}" if amount >= 0.1 or not amount else f"${amount:.2g}"


class Budget:
    """Keeps what all jobs of an experiment spend, by its cache, within `max_cost` dollars.

    Before a request is sent, the most that it can cost is set aside; what it did cost takes the place of that.
    """

    def __init__(self, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        self._settings = settings
        self._set_aside: list[float] = []  # of the requests under way
        self._changed = threading.Condition()
        self.spent = sum(self._cost(row) or 0.0 for row in rows)

    def _cost(self, row: dict[str, Any]) -> float | None:
        # What was paid at the time; before prices were known, what it would be today.
        paid = row.get("dollars")
        return dollars(row.get("tokens"), self._settings) if paid is None else paid

    @contextmanager
    def request(self, most: list[int]) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Yields what to call with the answer; waits where requests under way may still leave enough.

        most: tokens [read, written] of the request, at most. Raises JudgeError where it might pass the budget.
        """
        limit, cost = self._settings["max_cost"], dollars(most, self._settings) or 0.0
        with self._changed:
            while limit is not None and self.spent + sum(self._set_aside) + cost > limit:
                if not self._set_aside:
                    raise JudgeError(
                        f"evaluation.llm.max_cost: {shown_dollars(self.spent)} of {shown_dollars(limit)} are spent on "
                        f"this experiment's judgements, and the next request may cost {shown_dollars(cost)}. Answers "
                        "so far are kept; raise max_cost and run again to continue."
                    )
                self._changed.wait()
            self._set_aside.append(cost)
        answers: list[dict[str, Any]] = []
        try:
            yield answers.append
        finally:
            with self._changed:
                self._set_aside.remove(cost)
                self.spent += sum(self._cost(answer) or 0.0 for answer in answers)
                self._changed.notify_all()
