"""Progress of long jobs: done/total, rate and time left, as log lines and, on a terminal, as a bar."""

import io
import logging
import sys
import threading
import weakref
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0  # between lines of a log


class Progress(tqdm):
    """tqdm, with a log line every `log_seconds` (and at the end) beside the bar; no bar without a terminal or notebook.

    Use as `with Progress(total=96, desc="icp", unit="pair") as progress: progress.update(4)`. Units are what the work
    is made of, so that the time left is right: pairs or tokens rather than examples, which differ in length. Where one
    step takes longer than `log_seconds`, a line comes all the same.
    """

    def __init__(
        self, iterable: Iterable[Any] | None = None, *, log_seconds: float | None = None, **options: Any
    ) -> None:
        self._terminal = _draws_bars()
        self._log_seconds = LOG_SECONDS if log_seconds is None else log_seconds
        self._part = 0.0  # of the next units
        self._last_line = 0.0  # seconds from the start; infinite after the last line
        self._telling, self._ended = threading.Lock(), threading.Event()
        options.setdefault("mininterval", 1.0 if self._terminal else self._log_seconds)
        options.setdefault("dynamic_ncols", True)
        if not self._terminal:
            options["file"] = io.StringIO()  # tqdm ends every bar with a line break, bar or no bar
        super().__init__(iterable, **options)
        if not self.disable:
            beat = (weakref.ref(self), self._ended, self._log_seconds)
            threading.Thread(target=_beat, args=beat, name="progress", daemon=True).start()

    def expect(self, total: float, unit: str) -> None:
        """Says how much work there is, and in which unit, once that is known; the clock starts now."""
        if not self.disable:
            with self._telling:
                self.total, self.unit, self.start_t, self._last_line = total, unit, self._time(), 0.0

    def found(self, n: float) -> None:
        """Counts what an earlier try has done; the rate is that of this one."""
        if not self.disable:
            self.initial += n
            self.update(n)

    def within(self, part: float) -> None:
        """Tells how much is done of the next units, which `update` counts when they are whole."""
        self._part = part
        if self._terminal and not self.disable and self._time() - self.last_print_t >= self.mininterval:
            self.refresh()
            self.last_print_t = self._time()
        self._tell()

    def update(self, n: float = 1) -> bool | None:
        self._part = 0.0
        shown = super().update(n)
        self._tell()
        return shown

    def close(self) -> None:
        self._ended.set()
        if not self.disable:
            self._tell()
        super().close()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        return super().display(msg, pos) if self._terminal else True

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "n": self._done}

    @property
    def _done(self) -> float:
        return round(self.n + self._part, 1) if self._part else round(self.n)

    def _tell(self) -> None:
        """A line where one is due. Outside of tqdm's lock, which a handler of the terminal takes."""
        if self.disable or (self.total is None and not self._done):
            return
        with self._telling:
            elapsed = self._time() - self.start_t
            # Parts of units may add up to a hair less than their sum.
            finished = self.total is not None and self.n > self.initial and self.total - self.n < 1e-6 * self.total
            if self._last_line == float("inf") or not (finished or elapsed - self._last_line >= self._log_seconds):
                return
            self._last_line = float("inf") if finished else elapsed
            line = self._line(elapsed)
        # On a terminal the bar says it.
        logger.info(line, extra={"file_only": self._terminal})

    def _line(self, elapsed: float) -> str:
        done = self.n + self._part - self.initial
        rate = done / elapsed if elapsed > 0 else 0.0
        left = f", {max(self.total - self.n - self._part, 0) / rate:.0f} s left" if self.total and rate else ""
        total = f"/{self.total:,.0f}" if self.total else ""
        speed = f"{rate:,.3g} {self.unit}s/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s per {self.unit}"
        return f"{self.desc or 'progress'}: {self._done:,}{total} {self.unit}s, {speed}{left}"


def _draws_bars() -> bool:
    """Whether standard error shows a bar: a terminal does, and a notebook, which is none and redraws a line, too."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _beat(watched: weakref.ref, ended: threading.Event, seconds: float) -> None:
    """Lines while a step takes long, until the end or until nobody holds the progress any more."""
    while not ended.wait(seconds):
        progress = watched()
        if progress is None:
            return
        progress._tell()
        del progress
