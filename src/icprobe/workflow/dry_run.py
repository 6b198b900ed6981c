"""What `snakemake -n` says: which jobs would run and what they take, instead of several lines for each job."""

from collections.abc import Callable, Iterable
from logging import LogRecord
from typing import Any

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.common import LogEvent

from icprobe import cores
from icprobe.errors import several
from icprobe.formatting import rough_duration
from icprobe.workflow import gpus
from icprobe.workflow.plan import Plan
from icprobe.workflow.resources import estimate_seconds

# Of the estimates; twice as many take 2^-SHARED of the time.
CORES, SHARED = 8, 0.8
# Rules that multiply in the dtype of a section of the configuration.
IN_DTYPE = {
    "attribution": {
        *("attribute", "attribute_influence", "attribute_ekfac"),
        *("embed_examples", "sum_covariances", "sum_eigenvalues"),
    },
    "finetune": {"fine_tune", "retrain", "train_trajectory"},
    "evaluation": {"generate", "generate_base"},
}


def unknown_sizes(models: Iterable[str]) -> str:
    """A sentence on models whose sizes nothing tells."""
    names = ", ".join(models)
    return (
        f"The size of {names} is not known yet; it counts as a billion parameters in these estimates." if names else ""
    )


def emulated(plan: Plan, rules: Iterable[str]) -> str:
    """A sentence for a processor that emulates bfloat16, where jobs would compute in it; rules: those of the jobs."""
    if not cores.emulate_bfloat16():
        return ""
    rules = {*rules}
    slow = [name for name, of in IN_DTYPE.items() if of & rules and _in_bfloat16(plan, name)]
    if not slow:
        return ""
    asked = " ".join(f"{name}='{{dtype: float32}}'" for name in slow)
    return (
        f"This processor has no instructions for bfloat16: with dtype: float32 below {' and '.join(slow)} in your "
        f"file, or --config {asked} on the command line, these take about a third of the time."
    )


def _in_bfloat16(plan: Plan, section: str) -> bool:
    """Whether jobs of a section compute in bfloat16 on a CPU of this machine."""
    settings = getattr(plan.config, section)
    if settings.dtype != "bfloat16" or settings.device == "cuda" or (settings.device == "auto" and gpus.listed()):
        return False
    if section == "attribution":  # one_step computes in float32 whatever is asked
        return any(plan.methods[m].needs_model and plan.methods[m].dtype is None for m in plan.computed)
    return section != "evaluation" or settings.engine == "transformers"


def work(jobs: Iterable[tuple[str, int, int, bool]], of_cores: int = CORES) -> str:
    """A sentence on the work of jobs, each as (rule, time limit in minutes, memory in MB, whether it is heavy).

    of_cores: those that compute it, where that is known and no GPU does.
    """
    jobs = list(jobs)
    if not jobs:
        return ""
    seconds: dict[str, float] = {}
    for rule, minutes, _, heavy in jobs:
        seconds[rule] = seconds.get(rule, 0.0) + estimate_seconds(minutes, heavy)
    total = sum(seconds.values())
    longest = max(seconds, key=lambda rule: seconds[rule])
    hungriest, _, megabytes, _ = max(jobs, key=lambda job: job[2])
    return (
        f"About {rough_duration(total)} of work, {rough_duration(seconds[longest])} of it in "
        f"{longest}; at most {megabytes / 1000:.1f} GB of memory a "
        f"job ({hungriest}). These are estimates from the sizes of files and models, for {CORES} cores or an A100; "
        f"{_longer(total, of_cores)}`snakemake estimate` measures yours."
    )


def _longer(seconds: float, here: int) -> str:
    """What fewer cores may take: not all of a job is shared by cores, and the slowest kinds of them are laptops'."""
    if here >= CORES:
        return ""
    most = rough_duration(seconds * (CORES / here) ** SHARED)
    return f"on the {several(here, 'core')} here it may be up to {most}. "


class Brief:
    """A filter of Snakemake's log: in a dry run the table of jobs is shown once, with their work, and no job by itself.

    What runs a script has no shell command, and the record that says so is shown nowhere.

    dry: whether this is a dry run, asked when a record comes; outlook: what is said of its jobs, and where results are,
    also where there is nothing to do.
    """

    def __init__(self, dry: Callable[[], bool], outlook: Callable[[], str]) -> None:
        self._dry, self._outlook, self._told = dry, outlook, False

    def __call__(self, record: LogRecord) -> bool:
        """Whether the record is shown; the table of jobs gets the outlook."""
        event: Any = getattr(record, "event", None)
        if record.msg == NOTHING_TO_BE_DONE_MSG:
            record.msg = f"{record.msg}\n{self._outlook()}"
        if event == LogEvent.SHELLCMD:
            return getattr(record, "shellcmd", "") is not None
        if event not in (LogEvent.JOB_INFO, LogEvent.RUN_INFO) or not self._dry():
            return True
        if event == LogEvent.JOB_INFO or self._told:
            return False
        self._told = True
        record.msg = f"{record.msg}\n{self._outlook()}\n"
        return True
