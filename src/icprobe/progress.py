"""Progress of long jobs: done/total, rate and time left, as log lines and, on a terminal, as a bar."""

import io
import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress(tqdm):
    """tqdm, with a log line every `log_seconds` (and at the end) beside the bar; no bar where no terminal is.

    Use as `with Progress(total=96, desc="icp", unit="example") as progress: progress.update(4)`.
    """

    def __init__(self, iterable: Iterable[Any] | None = None, *, log_seconds: float = 10.0, **options: Any) -> None:
        self._terminal = sys.stderr.isatty()
        self._last_line = -1.0
        self._log_seconds = log_seconds
        options.setdefault("mininterval", 1.0 if self._terminal else log_seconds)
        options.setdefault("dynamic_ncols", True)
        if not self._terminal:
            options["file"] = io.StringIO()  # tqdm ends every bar with a line break, bar or no bar
        super().__init__(iterable, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        state = self.format_dict
        finished = self.total is not None and state["n"] >= self.total
        if state["n"] > state["initial"] and (finished or state["elapsed"] - self._last_line >= self._log_seconds):
            if not (finished and self._last_line == float("inf")):
                # On a terminal the bar says it.
                logger.info(self._line(state), extra={"file_only": self._terminal})
            self._last_line = float("inf") if finished else state["elapsed"]
        return super().display(msg, pos) if self._terminal else True

    def _line(self, state: dict[str, Any]) -> str:
        done = state["n"] - state["initial"]
        rate = done / state["elapsed"] if state["elapsed"] else 0.0
        left = f", {(self.total - state['n']) / rate:.0f} s left" if self.total and rate else ""
        total = f"/{self.total:g}" if self.total else ""
        speed = f"{rate:.3g} {self.unit}s/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s per {self.unit}"
        return f"{self.desc or 'progress'}: {state['n']:g}{total} {self.unit}s, {speed}{left}"
