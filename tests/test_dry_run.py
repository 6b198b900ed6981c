"""What `snakemake -n` says of the work of jobs."""

from icprobe.workflow.dry_run import work
from icprobe.workflow.resources import estimate_seconds

JOBS = [("attribute", 40, 4_000, True), ("score", 5, 500, False)]


def test_fewer_cores_than_those_of_the_estimates_are_told_what_they_may_take():
    total = sum(estimate_seconds(minutes, heavy) for _, minutes, _, heavy in JOBS)
    for cores, times in ((1, 8**0.8), (2, 4**0.8), (4, 2**0.8)):
        noun = "core" if cores == 1 else "cores"
        told = f"A100; on the {cores} {noun} here it may be up to {times * total / 60:.0f} min. `snakemake"
        assert told in work(JOBS, cores)


def test_as_many_cores_as_those_of_the_estimates_and_gpus_are_told_nothing_more():
    for said in (work(JOBS), work(JOBS, 8), work(JOBS, 64)):
        assert "for 8 cores or an A100; `snakemake estimate` measures yours." in said
    assert work([], 2) == ""
