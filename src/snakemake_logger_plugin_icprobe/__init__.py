"""Snakemake's logger plugin `icprobe`: the events of an invocation go to a process of its own, which logs to W&B.

`logger: icprobe` in profiles/default/config.yaml asks for it; Snakemake finds it by the prefix of its name. Each
`snakemake` imports this module at its start, those within jobs too: nothing heavy belongs here. Events are written as
JSON lines to `python -m icprobe.tracking.workflow_run`, so that no slow server, no failure and no lack of W&B reaches
Snakemake; where that process dies, the workflow goes on without it.
"""

import json
import os
import subprocess
import sys
from logging import LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from icprobe.errors import did_you_mean
from icprobe.tracking import modes

WAIT_SECONDS = 20  # at most, for the last uploads, once the workflow has ended
TOUCH = {"--touch", "-t"}


def misplaced(arguments: list[str]) -> str | None:
    """What stands in the list of `--configfile` and is no file: mostly a target, which Snakemake takes for one."""
    files = False
    for argument in arguments:
        if argument.startswith("-"):
            files = argument in ("--configfile", "--configfiles")
        elif files and not os.path.exists(argument):
            return argument
    return None


# Snakemake itself ends in a traceback; this module is what of ours it reads first.
if (_absent := misplaced(sys.argv[1:])) and os.path.basename(sys.argv[0]) in ("snakemake", "__main__.py"):
    if _absent.endswith((".yaml", ".yml", ".json")):
        sys.exit(f"{_absent}: no such configuration file{did_you_mean(_absent, os.listdir()) or '.'}")
    sys.exit(
        f"{_absent}: no such configuration file. Put targets before --configfile: "
        f"`snakemake --cores 2 {_absent} --configfile mine.yaml`."
    )


class LogHandler(LogHandlerBase):
    """Forwards events from the moment that jobs are planned; in dry runs and where W&B is disabled, none."""

    # Before `super().__init__`, which may already log.
    _process: subprocess.Popen | None = None
    _header: dict[str, Any] | None = None
    _over = False

    def emit(self, record: LogRecord) -> None:
        """Forward a record, if it is one of the events that `described` knows."""
        if self._over or self.common_settings.dryrun:
            return
        try:
            event = described(record)
            if event is None:
                return
            if event["event"] == LogEvent.WORKFLOW_STARTED:
                self._header = event
            elif self._process or (event["event"] == LogEvent.RUN_INFO and self._begin()):
                self._send(event)
        except Exception as error:
            # Of no concern to the workflow; said once.
            self._over = True
            if not isinstance(error, BrokenPipeError):
                print(f"W&B: no run of the workflow ({type(error).__name__}: {error})", file=sys.stderr)

    def _begin(self) -> bool:
        """Start the process that logs; False where nothing is to be logged."""
        if modes.settings()["mode"] == "disabled" or self._header is None or TOUCH & set(self._header["command"]):
            self._over = True
            return False
        from icprobe.tracking import destination

        destination.settle()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "icprobe.tracking.workflow_run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # Ctrl-C ends Snakemake, and its end is what ends this one.
            start_new_session=True,
        )
        modes.own_run = f"workflow-{self._header['id']}"
        self._send(self._header)
        return True

    def _send(self, event: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(event, default=str).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End of the invocation: the run is finished, or left, within WAIT_SECONDS."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.stdin.write(b'{"event": "ended"}\n')
                process.stdin.close()
                process.wait(WAIT_SECONDS)
            except BrokenPipeError:
                pass
            except subprocess.TimeoutExpired:
                print("W&B: the workflow's run is still being finished, in the background", file=sys.stderr)
        super().close()

    # Of no use to it: its own stream or file, Snakemake's formats, and Snakemake's filters of what is printed.
    writes_to_stream = False
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False


def described(record: LogRecord) -> dict[str, Any] | None:
    """What of an event is worth keeping, as plain values; None for other records."""
    kind = getattr(record, "event", None)
    base = {"event": kind, "time": record.created}
    match kind:
        case LogEvent.WORKFLOW_STARTED:
            # Not `record.cmd`: joined by blanks, it no longer tells its words apart.
            return {
                **base,
                "id": str(record.workflow_id),
                "command": ["snakemake", *sys.argv[1:]],
                "snakemake": record.snakemake_version,
            }
        case LogEvent.RUN_INFO:
            return {**base, "jobs": dict(record.stats)}
        case LogEvent.JOB_INFO:
            return {
                **base,
                "job": record.jobid,
                "rule": record.rule_name,
                "wildcards": dict(record.wildcards or {}),
                "reason": record.reason,
                "benchmark": record.benchmark,
                "threads": record.threads,
            }
        case LogEvent.JOB_FINISHED:
            return {**base, "job": record.job_id}
        case LogEvent.JOB_ERROR:
            return {**base, "job": record.jobid}
        case LogEvent.GROUP_ERROR:
            return {**base, "jobs": [info["jobid"] for info in record.job_error_info]}
    return None
