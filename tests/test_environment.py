"""The report's environment is that of the jobs its results come from, whoever computed them."""

import json

from icprobe.tracking import environment


def made(logs, rule, inputs, outputs, **facts):
    """The log of a job, with its record beside it."""
    log = logs / rule / f"{len(list(logs.rglob('*.json')))}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    facts = {"torch": "2.13.0", "commit": "abc", **facts}
    record = {"rule": rule, "inputs": inputs, "outputs": outputs, "environment": facts}
    log.with_suffix(".environment.json").write_text(json.dumps(record))
    return log


def test_what_all_jobs_agree_on_is_one_value_and_the_rest_names_its_rules(tmp_path):
    train, settings = ["results/a/train.parquet"], {"dtype": "float32", "threads": 2}
    logs = [
        made(tmp_path, "attribute", train, ["results/a/1"], device="cpu", **settings),
        made(tmp_path, "attribute", train, ["results/a/2"], device="H100", **settings),
        made(tmp_path, "gather", ["results/a/1", "results/a/2"], ["results/a/m"], commit="abc+", threads=1),
    ]
    facts = environment.of_results(["results/a/m"], logs)
    assert facts == {
        "jobs": 3,
        "results without a record": 1,
        "torch": "2.13.0",
        "commit": "abc (attribute); abc+ (gather)",
        "device": {"attribute": "cpu, H100"},
        "dtype": {"attribute": "float32"},
        "threads": {"attribute": "2", "gather": "1"},
    }


def test_jobs_that_the_results_do_not_rest_on_do_not_count(tmp_path):
    logs = [
        made(tmp_path, "attribute", [], ["results/a/1-of-1"]),
        made(tmp_path, "plot", [], ["results/a/figure"], torch="1.0"),
        made(tmp_path, "gather", ["results/a/1-of-1"], ["results/a/m"]),
        tmp_path / "report.log",  # still being written: no record yet
    ]
    facts = environment.of_results(["results/a/m"], logs)
    assert (facts["jobs"], facts["torch"]) == (2, "2.13.0")


def test_a_files_maker_is_the_job_that_makes_it_now_whatever_records_lie_around(tmp_path):
    now = made(tmp_path, "generate_base", [], ["results/a/base.jsonl"], device="cpu")
    made(tmp_path, "take_base_responses", [], ["results/a/base.jsonl"], device="H100")  # of an earlier configuration
    facts = environment.of_results(["results/a/base.jsonl"], [now])
    assert (facts["jobs"], facts["device"]) == (1, {"generate_base": "cpu"})


def test_a_jobs_peak_of_memory_is_its_own_word(tmp_path):
    """Snakemake looks every half a minute; a job that began small and ended large was never seen large."""
    log = tmp_path / "a.log"
    log.with_suffix(".benchmark.tsv").write_text("s\th:m:s\tmax_rss\n40\t0:00:40\t854\n")
    assert environment.measured(log) == (40, 854)
    environment.record(log.with_suffix(".environment.json"), "attribute", [], [], 1, None, peak_mb=1290.5)
    assert environment.measured(log) == (40, 1290.5)
