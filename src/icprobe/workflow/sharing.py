"""How many heavy jobs run at a time on one machine, whose cores, memory and GPUs they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from icprobe.config import Config
from icprobe.cores import usable
from icprobe.workflow import gpus, work
from icprobe.workflow.plan import Plan
from icprobe.workflow.resources import Sizes

# Parameters. The steps of smaller models are too short to keep several cores busy: two jobs with half of the cores each
# end before the same two, one after the other, with all of them (docs/performance.md).
SMALL = 5e8


def heavy_at_once(given: Mapping[str, Any], plan: Plan, sizes: Sizes) -> int:
    """Settles how many heavy jobs run at a time: by `--resources heavy=N`, or else gpu=N; or else one, or two.

    Two where all models are small, no GPU is there to be shared, and the machine has memory for both. given: the
    resources of Snakemake by name.
    """
    said = [given[name] for name in ("heavy", "gpu") if name in given]
    if said:
        return max(1, int(getattr(said[0], "value", said[0])))
    known = [work.known_parameters(plan.config, model) for model in plan.config.models]
    small = bool(known) and all(size is not None and size <= SMALL for size in known)
    if not small or usable() < 2 or takes_gpu(plan.config) or 2 * largest_mb(plan, sizes) > memory_mb():
        return 1
    return 2


def takes_gpu(config: Config) -> bool:
    """Whether something of an experiment computes on a GPU: where one is asked for, or is there and may be taken."""
    devices = {config.attribution.device, config.finetune.device, config.evaluation.device}
    return "cuda" in devices or (devices != {"cpu"} and bool(gpus.listed()))


def largest_mb(plan: Plan, sizes: Sizes) -> float:
    """Estimates the memory of the largest heavy job."""
    needs = []
    for model in plan.config.models:
        methods = [name for name in plan.computed if plan.methods[name].needs_model]
        needs += [sizes.attribute(model, method, "1-of-1") for method in methods]
        needs += [sizes.sum_fisher(model, "1-of-1"), sizes.fisher_bases(model)] if plan.fits_fisher else []
        if plan.along_training and not plan.checkpoint_files:
            needs.append(sizes.fine_tune(model, sizes.examples))
        if plan.fine_tuned:
            needs.append(sizes.fine_tune(model, sizes.examples, plan.config.finetune.processes))
        needs += [sizes.retrain(model, part, plan.truth_sets(part, sizes.tasks)) for part in plan.truth_parts]
        needs += [sizes.generate(model)] if plan.judged else []
        needs += [sizes.measure_outcomes(model, 1)] if plan.held_out else []
    return max((need.memory(1) for need in needs), default=0)


def memory_mb(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The memory of this machine, or of the container or allocation that this process is in, in MB.

    groups: where Linux mounts control groups, of either version; own: the file that names this process's. A group has
    no more than those above it.
    """
    limits = [psutil.virtual_memory().total]
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return limits[0] / 1e6
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            place, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            group = Path(path.strip("/"))
            for part in (group, *group.parents):
                try:
                    limit = (groups / place / part / name).read_text(encoding="utf-8").strip()
                except OSError:  # within a container the path may be the host's
                    continue
                limits += [int(limit)] if limit.isdigit() else []
    return min(limits) / 1e6
