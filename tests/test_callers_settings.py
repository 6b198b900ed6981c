"""What a caller has set in torch or on a tokenizer changes no score, and is afterwards as it was."""

import copy
import warnings
from contextlib import contextmanager, nullcontext

import pandas as pd
import pytest
import torch
import transformers
from test_from_python import RANDOM, TASKS, TRAIN, prepared, valued  # noqa: F401, fixtures
from tokenizers.processors import TemplateProcessing

import icprobe
from icprobe.engine.models import load_model
from icprobe.errors import ModelError
from icprobe.texts.tokenizing import reader


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def precision(*parts):
    """The newer names of torch's precision set, as in ("cuda.matmul", "tf32"); then as they were."""
    before = torch.get_float32_matmul_precision(), _precisions()
    for name, value in (*((name, "none") for name in before[1]), *parts):
        _part(name).fp32_precision = value
    try:
        yield
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision(before[0])
        for name, value in before[1].items():
            _part(name).fp32_precision = value


def _part(name):
    part = torch.backends
    for each in filter(None, name.split(".")):
        part = getattr(part, each)
    return part


def _precisions():
    names = ("", "cuda.matmul", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
    return {name: _part(name).fp32_precision for name in names}


def state():
    """What `value` is to leave as it was."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "mixed"
    on = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    grads = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return _precisions(), older, on, grads, torch.get_default_dtype(), torch.get_default_device()


SETTINGS = {
    "nothing": nullcontext,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "device meta": lambda: torch.device("meta"),
    "tf32 on CUDA": lambda: precision(("cuda.matmul", "tf32")),
    "tf32 everywhere": lambda: precision(("", "tf32")),
    "bfloat16 everywhere": lambda: precision(("", "bf16")),
    "bfloat16 by oneDNN": lambda: precision(("mkldnn.matmul", "bf16"), ("mkldnn.conv", "bf16")),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_caller_change_no_score_and_stay(name, in_memory, prepared, valued):  # noqa: F811
    model, tokenizer = prepared, None
    if in_memory:
        model, tokenizer = load_model(prepared, "float32", "cpu"), reader(prepared).tokenizer
    methods, options = ["icp", "influence"], {"dtype": "float32", "tokenizer": tokenizer}
    with SETTINGS[name](), warnings.catch_warnings(action="error", category=UserWarning):
        before = state()
        found = icprobe.value(TRAIN, TASKS, model=model, methods=methods, **options)
        assert state() == before
    both = ["score_icp", "score_influence"]
    pd.testing.assert_frame_equal(found[both], valued[0][both], check_exact=True)


def test_a_setting_that_was_made_for_everything_still_governs_its_parts_afterwards(prepared):  # noqa: F811
    with precision(("", "tf32")):
        icprobe.value(TRAIN, TASKS, model=prepared, methods=["length"])
        torch.backends.fp32_precision = "ieee"
        assert set(_precisions().values()) == {"ieee"}


def test_a_model_that_was_made_in_inference_mode_is_refused_in_a_sentence(prepared):  # noqa: F811
    config = transformers.AutoConfig.from_pretrained(prepared)
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ModelError, match=r"made within torch\.inference_mode\(\).*; make it outside"):
        icprobe.value(TRAIN, TASKS, model=model, tokenizer=reader(prepared).tokenizer, methods=["influence"])


def _add_think(tokenizer):
    tokenizer.add_tokens(["<think>"])


def _add_beginning(tokenizer):
    tokenizer.bos_token = tokenizer.eos_token
    special = [(tokenizer.eos_token, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{special[0][0]} $A", special_tokens=special)


@pytest.mark.parametrize("change", [_add_think, _add_beginning])
def test_a_tokenizer_that_was_changed_after_a_call_is_looked_at_again(change, prepared):  # noqa: F811
    model = load_model(prepared, "float32", "cpu")
    model.resize_token_embeddings(600)
    rows = [{**TRAIN[0], "output": "<think> so it is </think>"}]
    used, fresh = (copy.deepcopy(reader(prepared).tokenizer) for _ in range(2))
    options = {"model": model, "methods": ["influence"], "dtype": "float32"}
    first = icprobe.value(rows, TASKS, tokenizer=used, **options)
    change(used)
    change(fresh)
    found, expected = (icprobe.value(rows, TASKS, tokenizer=each, **options) for each in (used, fresh))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    if change is _add_think:
        assert found["n_target"].tolist() == first["n_target"].tolist(), "it is read as letters, as before"
    else:
        assert found["score_influence"].tolist() != first["score_influence"].tolist()


def test_a_cache_that_cannot_be_made_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(ModelError, match=r"/proc/none/icprobe/models: .* cannot be used .*XDG_CACHE_HOME"):
        icprobe.value(TRAIN, TASKS, model=RANDOM, methods="length")
