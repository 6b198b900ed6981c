"""Who writes the responses, as the configuration says it: what jobs depend upon, and what is refused at once."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from icprobe import fingerprints
from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.errors import ConfigError
from icprobe.workflow import responding
from icprobe.workflow.plan import Plan

ROOT = Path(__file__).parents[1]
START = ["llama-server", "-m", "{model}", "--port", "{port}"]
RUNNING = {"base_url": "http://127.0.0.1:8000/v1", "model": "{model}-{method}-{bin}-{seed}", "base_model": "{model}"}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def configuration(**evaluation):
    raw = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    raw["evaluation"] |= evaluation
    return load(raw, METHODS)


def by_endpoint(options, **evaluation):
    return configuration(engine="endpoint", endpoint=options, **evaluation)


def checked(config):
    responding.check(Plan(config, methods_of(config)))


def refused(*arguments, **evaluation):
    with pytest.raises(ConfigError) as caught:
        checked(by_endpoint(*arguments, **evaluation))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_transformers_writes_depends_on_what_it_always_has_and_on_no_code_of_other_engines():
    config = configuration()
    plain = {"max_new_tokens": 32, "batch_size": 24, "dtype": "float32", "device": "auto"}
    assert responding.settings(config, "m") == responding.settings(config, "m", "icp", "gt-0.80", "0") == plain
    script = fingerprints._source(ROOT / "workflow/scripts/evaluation/generate.py")
    assert not [name for name in fingerprints.closure(script.imports) if "engines" in name]


def test_what_an_endpoint_writes_depends_on_what_is_asked_of_whom_and_not_on_how():
    config = by_endpoint({"start": START, "concurrency": 3}, dtype="bfloat16", batch_size=5, device="cpu")
    how = {"base_url": None, "prompts": "tokens", "model": None}
    assert responding.settings(config, "m") == {
        "engine": "endpoint", "max_new_tokens": 32, "dtype": "bfloat16", "endpoint": {"start": START, **how}
    }  # fmt: skip
    assert config.execution()["evaluation"]["endpoint"]["concurrency"] == 3
    config = by_endpoint({**RUNNING, "key_variable": "KEY"}, dtype="bfloat16")
    told = {"start": None, "base_url": RUNNING["base_url"], "prompts": "tokens"}
    base, tuned = responding.settings(config, "m"), responding.settings(config, "m", "icp", "gt-0.80", "1")
    assert base == {"engine": "endpoint", "max_new_tokens": 32, "endpoint": {**told, "model": "m"}}
    assert tuned["endpoint"]["model"] == "m-icp-gt-0.80-1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (None, "evaluation: the engine endpoint needs a mapping endpoint, with start"),
        ({}, "evaluation.endpoint: write start, a command that serves {model} at {port}, or base_url and model"),
        ({"base_url": "http://x/v1"}, "or base_url and model"),
        ({"start": []}, "evaluation.endpoint.start: List should have at least 1 item"),
        ({"start": "llama-server"}, "evaluation.endpoint.start: a list is needed"),
        ({"start": ["serve", "{port}"]}, "start: nothing says {model}"),
        ({"start": ["serve", "{model}"]}, "start: nothing says {port}"),
        ({"start": START, "base_url": "http://127.0.0.1:8000/v1"}, "base_url: with start it has to say {port}"),
        ({**RUNNING, "model": "{model}-{step}"}, "model: {step} stands for nothing; it may contain {model}, {method}"),
        ({**RUNNING, "model": "{model}-{"}, "model: { stands for nothing"),
        ({**RUNNING, "base_model": "{seed}"}, "base_model: {seed} stands for nothing; it may contain {model}"),
        ({**RUNNING, "key_variable": "sk-123"}, "evaluation.endpoint.key_variable"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_no_configuration(options, said):
    message = refused(options)
    assert said in message
    assert "sk-123" not in message


def test_models_that_a_running_server_cannot_tell_apart_are_refused():
    message = refused(RUNNING | {"model": "{model}", "base_model": "base"})
    assert "evaluation.endpoint.model: 'smollm2-135m-instruct' would be both smollm2-135m-instruct/icp/" in message
    assert "evaluation.endpoint.model: 'm' would be both smollm2-135m-instruct and" in refused(
        {"base_url": "http://x/v1", "model": "m"}
    )
    message = refused({key: RUNNING[key] for key in ("base_url", "model")})
    assert "base_model: smollm2-135m-instruct has no name, for model is" in message
    checked(by_endpoint(RUNNING))
    checked(by_endpoint({key: RUNNING[key] for key in ("base_url", "model")}, base_responses="given", judge="llm", llm={
        "base_url": "http://x/v1", "model": "judge"}))  # fmt: skip
    checked(by_endpoint({"start": START}))
    checked(by_endpoint({"base_url": "http://x/v1", "model": "m"}, judge="none"))


def test_vllm_that_is_not_installed_is_refused_where_it_would_write():
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(ConfigError, match=r"evaluation\.engine: vllm is not installed; pip install vllm"):
        checked(configuration(engine="vllm"))
    checked(configuration(engine="vllm", judge="none"))


def test_what_an_engine_needs_from_outside_is_asked_for_before_any_work(monkeypatch):
    monkeypatch.delenv("KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable KEY is not set"):
        responding.require(by_endpoint({"start": START, "key_variable": "KEY"}), here=True)
    monkeypatch.setenv("KEY", "sk-1")
    with pytest.raises(ConfigError, match="there is no command 'no-such-server'"):
        responding.require(
            by_endpoint({"start": ["no-such-server", "{model}{port}"], "key_variable": "KEY"}), here=True
        )
    responding.require(by_endpoint({"start": ["no-such-server", "{model}{port}"]}), here=False)
    responding.require(by_endpoint({"start": ["sh", "{model}{port}"], "key_variable": "KEY"}), here=True)
    responding.require(configuration(), here=True)
