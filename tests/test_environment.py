"""The report's environment is that of the jobs its results come from, whoever computed them."""

import json

from icprobe import environment


def made(logs, rule, inputs, outputs, **facts):
    path = logs / rule / f"{len(list(logs.rglob('*.json')))}.environment.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"torch": "2.13.0", "commit": "abc", **facts}
    path.write_text(json.dumps({"rule": rule, "inputs": inputs, "outputs": outputs, "environment": facts}))


def test_what_all_jobs_agree_on_is_one_value_and_the_rest_names_its_rules(tmp_path):
    made(tmp_path, "attribute", ["results/a/train.parquet"], ["results/a/1"], device="cpu", dtype="float32", threads=2)
    made(tmp_path, "attribute", ["results/a/train.parquet"], ["results/a/2"], device="H100", dtype="float32", threads=2)
    made(tmp_path, "gather", ["results/a/1", "results/a/2"], ["results/a/m"], commit="abc+", threads=1)
    facts = environment.of_results(["results/a/m"], [tmp_path])
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
    made(tmp_path, "attribute", [], ["results/a/1-of-1"])
    made(tmp_path, "attribute", [], ["results/a/1-of-2"], torch="1.0")  # of an earlier configuration
    made(tmp_path, "gather", ["results/a/1-of-1"], ["results/a/m"])
    facts = environment.of_results(["results/a/m"], [tmp_path])
    assert (facts["jobs"], facts["torch"]) == (2, "2.13.0")
