"""How many heavy jobs run at a time on one machine: what is said, or else what its cores, memory and GPUs allow."""

import psutil
import pytest
from test_plan import plan, with_models

from icprobe.workflow import gpus, sharing
from icprobe.workflow.resources import Sizes


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine another one."""

    def of(cores=8, gigabytes=32, found=()):
        monkeypatch.setattr(sharing, "usable", lambda: cores)
        monkeypatch.setattr(sharing, "memory_mb", lambda: 1000 * gigabytes)
        monkeypatch.setattr(gpus, "listed", lambda: dict.fromkeys(found, ""))

    of()
    return of


def at_once(planned, **given):
    return sharing.heavy_at_once(given, planned, Sizes.of(planned.config))


@pytest.mark.parametrize(
    ("given", "expected"), [({"gpu": 4}, 4), ({"gpu": 4, "heavy": 2}, 2), ({"gpu": 0}, 1), ({"heavy": 3}, 3)]
)
def test_as_many_as_there_are_gpus_unless_it_is_said(given, expected, machine):
    assert at_once(plan(), **given) == expected


def test_two_of_a_small_model_where_cores_and_memory_are_for_both_and_no_gpu_is_shared(machine):
    demo = plan()
    assert at_once(demo) == 2
    machine(cores=1)
    assert at_once(demo) == 1
    largest = sharing.largest_mb(demo, Sizes.of(demo.config))
    machine(gigabytes=2.01 * largest / 1000)
    assert at_once(demo) == 2
    machine(gigabytes=1.99 * largest / 1000)
    assert at_once(demo) == 1
    machine(found=["0"])
    assert at_once(demo) == 1
    # Nothing of it would compute on the GPU.
    cpu = {name: {"device": "cpu"} for name in ("attribution", "finetune", "evaluation")}
    assert at_once(plan(**cpu)) == 2


def test_one_of_a_large_model_or_of_one_whose_size_nobody_knows(machine):
    small, large, unknown = ({"source": "hub", "id": f"x/{name}"} for name in ("a-135m", "a-7b", "a"))
    for source in large, unknown:
        assert at_once(with_models(small, source)) == 1
    assert at_once(with_models(small, small)) == 2
    assert at_once(plan(finetune={"device": "cuda"})) == 1


def test_no_more_memory_is_counted_on_than_the_machine_has():
    assert 100 < sharing.memory_mb() <= psutil.virtual_memory().total / 1e6


@pytest.mark.parametrize(
    ("said", "limits"),
    [
        ("0::/slurm/job_7/step_0", {"slurm/job_7/memory.max": "500000000", "slurm/memory.max": "max"}),
        ("0::/", {"memory.max": "500000000"}),
        ("0::/of/the/host", {"memory.max": "500000000"}),
        ("4:cpu:/x\n9:memory:/x", {"memory/x/memory.limit_in_bytes": "500000000", "x/memory.max": "7"}),
    ],
)
def test_a_container_or_an_allocation_has_no_more_than_its_limit(said, limits, tmp_path):
    (tmp_path / "own").write_text(said)
    for name, limit in limits.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    assert sharing.memory_mb(tmp_path / "groups", tmp_path / "own") == 500
    assert sharing.memory_mb(tmp_path / "groups", tmp_path / "absent") == psutil.virtual_memory().total / 1e6


def test_the_largest_heavy_job_is_none_that_the_experiment_has_and_the_count_forgot():
    large = {"source": "hub", "id": "x/a-360m"}
    along = with_models(large, attribution={"methods": ["tracin"], "device": "cpu"}, bins=None)
    sizes = Sizes.of(along.config)
    assert sharing.largest_mb(along, sizes) >= sizes.fine_tune("a", sizes.examples).memory(1)
    parallel = with_models(large, finetune={"processes": 4, "all_data": True})
    sizes = Sizes.of(parallel.config)
    assert sharing.largest_mb(parallel, sizes) >= sizes.fine_tune("a", sizes.examples, 4).memory(1)
    again = with_models(large, truth={"subsets": 64})
    sizes = Sizes.of(again.config)
    assert sharing.largest_mb(again, sizes) >= sizes.retrain("a", "subsets", 64).memory(1)
    fisher = with_models(large, attribution={"methods": ["influence_ekfac"], "memory_budget_gb": 20}, bins=None)
    sizes = Sizes.of(fisher.config)
    assert sharing.largest_mb(fisher, sizes) >= sizes.sum_fisher("a", "1-of-1").memory(1)
