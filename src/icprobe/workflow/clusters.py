"""Whether a batch system answers: asked once, before the first job is handed to it.

Snakemake's plugins ask nothing: jobs that nobody takes are tried again and again, for minutes, without a word.
"""

import subprocess

from icprobe.errors import ClusterError, reason

# By Snakemake's executors: a command that looks whether the controller answers, and what it says where it does.
LOOKS = {"slurm": (["scontrol", "ping"], " is UP")}
LOOK_SECONDS = 10


def require_controller(executor: str) -> None:
    """Raises ClusterError where the batch system of an executor does not answer; others are not asked."""
    if executor not in LOOKS:
        return
    command, up = LOOKS[executor]
    asked = " ".join(command)
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LOOK_SECONDS, check=False
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{executor}: there is no command {command[0]} here, so no job can be submitted. Start Snakemake on a "
            "login node of the cluster, or without the profile."
        ) from None
    except subprocess.TimeoutExpired:
        said = f"no answer within {LOOK_SECONDS} s"
    else:
        if up in answer.stdout:
            return
        said = reason(Exception(answer.stderr or answer.stdout or f"nothing, and exit code {answer.returncode}"))
    raise ClusterError(
        f"{executor}: the controller does not answer (`{asked}`: {said}). Nothing was submitted; ask the cluster's "
        "administrators, and start again when it does. Finished work is kept."
    )
