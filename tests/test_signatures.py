"""Functions of rules carry their signature, which Snakemake asks for several times a job."""

import functools
import inspect
import json

import dag

from icprobe.workflow import signatures

# Counts how often each function of a rule's file, or of what jobs ask of a machine, is looked into for its signature.
COUNTED = """
import atexit, collections, inspect, json, os

looked, before = collections.Counter(), inspect._signature_from_function


def counted(cls, function, *arguments, **options):
    code = getattr(function, "__code__", None)
    if code is not None and code.co_filename.endswith((".smk", "workflow/resources.py")):
        looked[f"{code.co_filename}:{code.co_firstlineno}:{code.co_name}:{id(function)}"] += 1
    return before(cls, function, *arguments, **options)


inspect._signature_from_function = counted
atexit.register(lambda: open(os.environ["LOOKED"], "w").write(json.dumps(looked)))
"""


def test_snakemake_finds_out_the_signature_of_no_function_twice(tmp_path):
    project = dag.new(tmp_path / "project")
    (tmp_path / "sitecustomize.py").write_text(COUNTED, encoding="utf-8")
    told = tmp_path / "looked.json"
    ended = project.snakemake("-n", "all", environment={"LOOKED": str(told)}, path=[tmp_path])
    assert ended.returncode == 0, ended.output
    looked = json.loads(told.read_text())
    assert len(looked) > 50  # inputs, params, memory and run times of the rules
    assert {name: n for name, n in looked.items() if n > 1} == {}


def test_what_takes_no_attribute_or_has_no_signature_is_left():
    def function(wildcards, input): ...

    partial = functools.partial(function, input=[])
    bound = json.JSONEncoder().encode
    signatures.remember([function, partial, bound, dict.get, type])
    assert function.__signature__ == inspect.signature(function)
    assert list(inspect.signature(partial).parameters) == ["wildcards", "input"]
    assert not hasattr(bound, "__signature__")
