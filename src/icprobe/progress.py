"""Progress of long jobs: done/total, rate and time left, as log lines and, on a terminal, as a bar."""

import io
import logging
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0  # between lines of a log
# The first work of a job is slow: until so much is done, or so long has passed, its rate tells nothing of the rest.
WARM, WARM_SECONDS = 0.05, 60.0
# tqdm's own, but for the time left, which is reckoned by work.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]"


class Progress(tqdm):
    """tqdm, with a log line every `log_seconds` (and at the end) beside the bar; no bar without a terminal or notebook.

    Use as `with Progress(total=96, desc="icp", unit="pair") as progress: progress.update(4)`. The time left supposes
    that all units take alike. Where they do not, as pairs of longer and longer examples, `expect`, `update` and `found`
    are told the work in them besides, in whatever time is proportional to, such as tokens. Where one step takes longer
    than `log_seconds`, a line comes all the same.
    """

    def __init__(
        self, iterable: Iterable[Any] | None = None, *, log_seconds: float | None = None, **options: Any
    ) -> None:
        self._terminal = _draws_bars()
        self._log_seconds = LOG_SECONDS if log_seconds is None else log_seconds
        self._part = 0.0  # of the next units
        self._work_done, self._work_left = 0.0, None  # where work is told: in this try, and to its end
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

    def expect(self, total: float, unit: str, work: float | None = None) -> None:
        """Says how many units there are, and the work in them, once that is known; the clock starts now."""
        if not self.disable:
            with self._telling:
                self.total, self.unit, self.start_t, self._last_line = total, unit, self._time(), 0.0
                self._work_done, self._work_left = 0.0, work
                self.bar_format = self.bar_format if work is None else BAR

    def remains(self, n: float, work: float | None = None) -> None:
        """Says how many units are left, and the work in them, where that has changed on the way."""
        if not self.disable:
            with self._telling:
                self.total, self._work_left = self.n + n, work

    def found(self, n: float, work: float = 0.0) -> None:
        """Counts what an earlier try has done; the rate is that of this one."""
        if not self.disable:
            self.initial += n
            self._count(0.0, work)
            self.update(n)

    def within(self, part: float) -> None:
        """Tells how much is done of the next units, which `update` counts when they are whole."""
        self._part = part
        if self._terminal and not self.disable and self._time() - self.last_print_t >= self.mininterval:
            self.refresh()
            self.last_print_t = self._time()
        self._tell()

    def update(self, n: float = 1, work: float = 0.0) -> bool | None:
        self._part = 0.0
        self._count(work, work)
        shown = super().update(n)
        self._tell()
        return shown

    def _count(self, done: float, less: float) -> None:
        """Counts work that this try has done, and by how much less is left."""
        with self._telling:
            if self._work_left is not None:
                self._work_done, self._work_left = self._work_done + done, self._work_left - less

    def close(self) -> None:
        self._ended.set()
        if not self.disable:
            self._tell()
        super().close()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        return super().display(msg, pos) if self._terminal else True

    @property
    def format_dict(self) -> dict[str, Any]:
        known = super().format_dict
        left = self._seconds_left(known["elapsed"])
        return {**known, "n": self._done, "left": "?" if left is None else self.format_interval(left)}

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
        seconds = self._seconds_left(elapsed)
        left = "" if seconds is None else f", {seconds:.0f} s left"
        total = f"/{self.total:,.0f}" if self.total else ""
        speed = f"{rate:,.3g} {self.unit}s/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s per {self.unit}"
        return f"{self.desc or 'progress'}: {self._done:,}{total} {self.unit}s, {speed}{left}"

    def _seconds_left(self, elapsed: float) -> float | None:
        """Seconds to the end, at the rate of this try; None where too little is done to tell, or no end is known."""
        done, left = self._work_done, self._work_left
        if left is None:
            done = self.n + self._part - self.initial
            left = self.total - self.n - self._part if self.total else None
        if left is None or done <= 0 or (elapsed < WARM_SECONDS and done < WARM * (done + left)):
            return None
        return max(left, 0.0) * elapsed / done


@contextmanager
def lines_told() -> Iterator[None]:
    """Within the block progress is told on standard error where there are neither bars nor anybody's logging."""
    if _draws_bars() or logging.getLogger().handlers or logger.handlers:
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


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
