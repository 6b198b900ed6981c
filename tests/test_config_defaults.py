"""Settings that are left out: what they are then, and which of them do not go together."""

import pytest
from test_config import changed, raw

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.errors import ConfigError


@pytest.mark.parametrize(
    ("finetune", "rate"),
    [
        ({}, 2e-7),
        ({"lora": None}, 2e-7),
        ({"lora": {"rank": 8}}, 2e-4),
        ({"lora": {}, "learning_rate": None}, 2e-4),
        ({"lora": {}, "epochs": 1}, 2e-4),
        ({"lora": {}, "learning_rate": 1e-5}, 1e-5),
        ({"learning_rate": 1e-5}, 1e-5),
    ],
)
def test_adapters_learn_at_a_rate_of_their_own_unless_it_is_said(finetune, rate):
    found = load(changed("finetune", {"methods": [], **finetune}), METHODS).finetune
    assert found.learning_rate == rate
    # Halves of 60 examples are eight steps of adapters, none of them at a rate of 0.
    assert (found.accumulation, found.warmup_ratio) == ((4, 0.03) if found.lora is None else (1, 0))


def test_a_method_that_is_not_named_keeps_its_aggregator():
    found = load(changed("attribution.aggregators", {"icp_k_shot": "fraction_positive"}), METHODS).attribution
    assert found.aggregators == dict.fromkeys(("icp", "one_step", "icp_k_shot"), "fraction_positive")
    for key in ("attribution.aggregators", "attribution.aggregators.icp"):
        assert load(changed(key, None), METHODS).attribution.icp_is_share


@pytest.mark.parametrize(
    ("finetune", "refused"),
    [({}, True), ({"lora": {}}, False), ({"learning_rate": 1e-5}, False), ({"generate": False}, False)],
)
def test_responses_in_a_dtype_that_rounds_off_the_training_are_refused(finetune, refused):
    changes = {"finetune": {"methods": ["icp"], **finetune}, "evaluation": {"dtype": "bfloat16"}}
    given = {**raw(), **changes}
    if not refused:
        assert load(given, METHODS).evaluation.dtype == "bfloat16"
        return
    with pytest.raises(ConfigError, match=r"evaluation\.dtype: bfloat16 rounds off .* finetune\.learning_rate 2e-07"):
        load(given, METHODS)
    # A server that runs already computes as it does.
    running = {"engine": "endpoint", "endpoint": {"base_url": "http://localhost:1", "model": "m"}}
    given["evaluation"] |= running
    assert load(given, METHODS).evaluation.endpoint.start is None


def test_a_judge_that_is_described_and_not_asked_is_refused():
    llm = {"base_url": "http://localhost:1", "model": "m"}
    with pytest.raises(ConfigError, match=r"evaluation: llm: it describes a judge.*write judge: llm"):
        load(changed("evaluation", {"llm": llm}), METHODS)
    assert load(changed("evaluation", {"llm": llm, "judge": "none"}), METHODS).evaluation.judge == "none"


def test_a_warm_up_of_a_constant_rate_is_refused_where_it_is_asked_for():
    assert load(changed("finetune", {"methods": [], "scheduler": "constant"}), METHODS).finetune.warmup_ratio == 0.03
    with pytest.raises(ConfigError, match="finetune: warmup_ratio: scheduler: constant has no warm-up"):
        load(changed("finetune", {"methods": [], "scheduler": "constant", "warmup_ratio": 0.1}), METHODS)
