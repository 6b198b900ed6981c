"""What judges say, and what is read of it; answers come from an HTTP server."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import openai._base_client
import pytest
from endpoint import PAIRS, Endpoint, completion, prefers_two, settings
from pydantic import ValidationError

from icprobe.errors import JudgeError
from icprobe.evaluation.judges import judge, llm


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)


def first_shown(row):
    """A preference, turned so that 1 is the response shown first and 2 the second."""
    preference = row["preference"]
    return preference if preference is None or row["order"] == "base_first" else 3 - preference


# --- plain ------------------------------------------------------------------------------------------------------

ANSWERS = {
    '```json\n{"better": "m"}\n```': 1,
    '```\n{\n  \'x\'\n}\n```\n{"better": "M"}': 2,
    '<think>\nIs {"better": "m"} right? No.\n</think>\n\n{"better": "M"}': 2,
    'It thinks.</think>{"better": "m"}': 1,
    '[THINK]{"better": "m"}?[/THINK]{"better": "M"}': 2,
    'My verdict is: {"better": "M"}. The other one {wastes} words.': 2,
    '{"better": "Draw"}': 1.5,
    '{"better": " DRAW "}': 1.5,
    '{"reasons": {"length": 3}, "better": "m"}': 1,
    '{"verdict": {"better": "m"}}': 1,
    '{"better": "M"} So: {"better": "M"}': 2,
    # --- what says nothing, or two things
    '<think>\nI would say {"better": "M"}': None,
    '<thinking>I would say {"better": "M"}': None,
    '{"better": "m"} or rather {"better": "M"}': None,
    '{"better": "m", "better": "M"}': None,
    '{"better": "m"} or {"better": "both"}': None,
    '{"better": "neither"}': None,
    '{"better": null}': None,
    'Neither "m" nor "M".': None,
    '{"bett': None,
    "{" * 5000: None,
    '{"a":' * 5000: None,
}


@pytest.mark.parametrize("text", ANSWERS, ids=lambda text: text[:30])
def test_a_verdict_is_read_wherever_it_stands_and_never_from_two(text):
    with Endpoint(lambda body: completion(text)) as endpoint:
        row = judge("llm", PAIRS[:1], settings(endpoint.url, mode="plain"))[0]
    assert first_shown(row) == ANSWERS[text]


# --- weighted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "preference"),
    [
        ({"<think>": 0.9999, "m": 6e-6, "M": 17e-6}, None),
        ({"The": 0.97, "M": 0.006, "m": 0.003}, None),
        ({"The": 0.9, "M": 0.06, "m": 0.02}, 1.75),
        ({"m": 0.99, "Sure": 0.01}, 1),
    ],
)
def test_a_preference_needs_a_least_mass_on_the_verdicts(tokens, preference):
    says = {token: math.log(p) for token, p in tokens.items()}
    with Endpoint(lambda body: completion(tokens=says)) as endpoint:
        row = judge("llm", PAIRS[:1], settings(endpoint.url))[0]
        assert first_shown(row) == (preference if preference is None else pytest.approx(preference))
        demanding = judge("llm", PAIRS[:1], settings(endpoint.url, least_mass=0.5))[0]
        assert (demanding["preference"] is None) == (max(tokens, key=tokens.get) != "m")


def test_a_judge_that_seldom_begins_with_a_verdict_is_doubted(caplog):
    says = {"The": math.log(0.9), "M": math.log(0.06), "m": math.log(0.02)}
    with Endpoint(lambda body: completion(tokens=says)) as endpoint:
        judge("llm", PAIRS, settings(endpoint.url))
    assert "m and M have 0.08 of the probability in the median" in caplog.text


# --- odd forms --------------------------------------------------------------------------------------------------


def odd(logprobs=None, content="", usage=None):
    """A completion as some endpoint gives it: its first token's [(token, logprob), …], message and count of tokens."""
    whole = completion(content, {"m": -0.1} if logprobs else None)
    if logprobs:
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in logprobs]
        whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = top
    return whole | ({"usage": usage} if usage else {})


PARTS = [{"type": "thinking", "thinking": []}, {"type": "text", "text": '{"better": "M"}'}]


@pytest.mark.parametrize(
    ("mode", "said", "preference"),
    [
        ("weighted", odd([("M", -0.1), ("m", None)]), 2),
        ("weighted", odd([("M", -0.1), ("m", -math.inf), (None, -0.1)]), 2),
        ("weighted", odd([("M", math.nan), ("m", math.nan)]), None),
        ("weighted", odd([("M", -0.1)], usage={"prompt_tokens": "12", "completion_tokens": 1}), 2),
        ("plain", odd(content=PARTS), 2),
        ("plain", odd(content='{"better": "M"} \ud83d'), 2),
    ],
)
def test_an_odd_answer_is_read_or_not_and_kept_for_it_is_paid_for(mode, said, preference, tmp_path):
    with Endpoint(lambda body: said) as endpoint:
        options = settings(endpoint.url, mode=mode, price_input=1.0, price_output=1.0)
        assert first_shown(judge("llm", PAIRS[:1], options, tmp_path)[0]) == preference
        judge("llm", PAIRS[:1], options, tmp_path)
        assert len(endpoint.bodies) == (2 if preference is None else 1)


# --- what cannot be read is asked for again ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["weighted", "plain"])
def test_an_unreadable_answer_is_asked_for_again_and_a_readable_one_is_not(mode, tmp_path):
    hazy = [True]

    def answer(body):
        if hazy[0] and "Count to 3." in body["messages"][0]["content"]:
            return completion("Hm.", {"Hm": -0.01})
        return prefers_two(body) if mode == "weighted" else completion('{"better": "m"}')

    with Endpoint(answer) as endpoint:
        options = settings(endpoint.url, mode=mode)
        rows = judge("llm", PAIRS, options, tmp_path)
        assert [row["id"] for row in rows if row["preference"] is None] == ["3"]
        hazy[0] = False
        endpoint.bodies.clear()
        rows = judge("llm", PAIRS, options, tmp_path)
        assert None not in [row["preference"] for row in rows]
        assert ["Count to 3." in body["messages"][0]["content"] for body in endpoint.bodies] == [True]
        assert judge("llm", PAIRS, options, tmp_path) == rows
        assert len(endpoint.bodies) == 1


def test_answers_that_a_higher_least_mass_makes_unreadable_are_asked_for_again(tmp_path):
    with Endpoint(prefers_two) as endpoint:
        judge("llm", PAIRS, settings(endpoint.url), tmp_path)
        rows = judge("llm", PAIRS, settings(endpoint.url, least_mass=0.95), tmp_path)
        assert [row["preference"] for row in rows] == [None] * 8
        assert len(endpoint.bodies) == 16
        judge("llm", PAIRS, settings(endpoint.url), tmp_path)
        assert len(endpoint.bodies) == 16, "what was readable before still is"


# --- a prompt that is too long, and other refusals --------------------------------------------------------------

MESSAGE = "This model's maximum context length is 512 tokens. However, you requested 700 tokens."
TOO_LONG = {
    "OpenAI": {"message": "Too long.", "type": "invalid_request_error", "code": "context_length_exceeded"},
    "llama.cpp": {"message": "request (700 tokens)", "type": "exceed_context_size_error", "code": 400, "n_ctx": 512},
    "SGLang": {"message": "The token count exceeds the model's maximum context length of 512 tokens.", "code": 400},
    "Anthropic": {"message": "prompt is too long: 700 tokens > 512 maximum", "type": "invalid_request_error"},
    "Google": {
        "message": "The input token count (700) exceeds the maximum number of tokens allowed (512).",
        "code": 400,
    },
    "vLLM": {"object": "error", "message": MESSAGE, "type": "BadRequestError", "param": None, "code": 400},
}


@pytest.mark.parametrize("whose", TOO_LONG)
@pytest.mark.parametrize("nested", [True, False])
def test_an_error_of_the_contexts_length_is_one_unreadable_answer(whose, nested):
    error = TOO_LONG[whose]
    with Endpoint(prefers_two, [(400, {"error": error} if nested else error)]) as endpoint:
        rows = judge("llm", PAIRS, settings(endpoint.url, concurrency=1))
    assert [row["preference"] is None for row in rows] == [True] + [False] * 7


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("unknown field in context: user", "unknown field"),
        ("The context of this key allows no such model.", "allows no such model"),
        ("Unsupported value: 'temperature' does not support 0 with this model.", "evaluation.llm.temperature: false"),
        ("Invalid 'top_logprobs': must be at most 5.", "evaluation.llm.top_logprobs lower"),
        ("response_format is not supported", "evaluation.llm.json_schema: false"),
        ("Unsupported parameter: 'max_tokens'. Use another.", "limit_parameter: max_completion_tokens"),
    ],
)
def test_another_refusal_is_an_error_that_says_what_to_do(message, hint):
    refusal = 400, {"error": {"message": message, "code": "invalid_value"}}
    with Endpoint(prefers_two, [refusal] * 99) as endpoint, pytest.raises(JudgeError, match=hint):
        judge("llm", PAIRS, settings(endpoint.url))


WORDS = "Provider returned error: the model sk-much-too-secret is overloaded"


def in_a_200(**error):
    """An error as OpenRouter sends it."""
    return 200, {"error": error, "user_id": "one"}


@pytest.mark.parametrize("code", [429, "503", None])
def test_an_error_in_a_successful_reply_is_retried_and_told_in_the_endpoints_words(code, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-much-too-secret")
    fault = in_a_200(code=code, message=WORDS)
    with Endpoint(prefers_two, [fault, fault]) as endpoint:
        options = settings(endpoint.url, concurrency=1, attempts=3, key_variable="JUDGE_KEY")
        assert None not in [row["preference"] for row in judge("llm", PAIRS[:2], options, tmp_path)]
        assert len(endpoint.bodies) == 4, "two failed"
        for tries in (1, 2):
            endpoint.faults += [fault] * 3
            with pytest.raises(JudgeError, match=rf"{code or 502}.*Provider returned error: the model \*\*\* is over"):
                judge("llm", PAIRS[:3], options, tmp_path)
            assert len(endpoint.bodies) == 4 + 3 * tries, "an error is no answer: it is asked for again"


def test_an_error_in_a_successful_reply_that_no_retry_mends_is_told_at_once():
    for code, hint in ((401, "Is the key in"), (400, "evaluation.llm.temperature: false")):
        with Endpoint(prefers_two, [in_a_200(code=code, message="No temperature, no cookies.")] * 99) as endpoint:
            with pytest.raises(JudgeError, match=f"No temperature, no cookies.*{hint}"):
                judge("llm", PAIRS, settings(endpoint.url, concurrency=1))
            assert len(endpoint.bodies) <= 2
    with Endpoint(prefers_two, [in_a_200(**TOO_LONG["SGLang"])]) as endpoint:
        rows = judge("llm", PAIRS[:2], settings(endpoint.url, concurrency=1))
    assert [row["preference"] is None for row in rows] == [True, False]


def test_temperature_and_schema_are_left_out_where_the_configuration_says_so():
    for nothing in (None, False):
        with Endpoint(lambda body: completion('{"better": "m"}')) as endpoint:
            judge("llm", PAIRS[:1], settings(endpoint.url, mode="plain", temperature=nothing, json_schema=nothing))
        assert not {"temperature", "response_format"} & set(endpoint.bodies[0])
    with Endpoint(prefers_two) as endpoint:
        judge("llm", PAIRS[:1], settings(endpoint.url, temperature=0.5))
        assert endpoint.bodies[0]["temperature"] == 0.5
        judge("llm", PAIRS[:1], settings(endpoint.url))
        assert json.dumps(endpoint.bodies[1]["temperature"]) == "0", "0.0 would ask again for all that was paid for"


# --- what it costs ----------------------------------------------------------------------------------------------

PRICES = {"price_input": 1000.0, "price_output": 0.0}  # an answer of the stand-in's 100 tokens costs 10 cents


def test_unknown_prices_are_called_unknown(caplog):
    caplog.set_level("INFO")
    with Endpoint(prefers_two) as endpoint:
        judge("llm", PAIRS, settings(endpoint.url))
        assert "cost unknown" in caplog.text
        assert "$" not in caplog.text
        caplog.clear()
        judge("llm", PAIRS, settings(endpoint.url, price_input=0.0, price_output=0.0))
        assert "$0.00" in caplog.text


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_budget_is_never_passed_and_counts_what_was_spent_before(concurrency, tmp_path):
    asked = settings("http://x/v1")["llm"]
    bodies = [llm.request(pair, order, asked) for pair in PAIRS for order in llm.ORDERS]
    most = max(llm.most_tokens(body, asked)[0] for body in bodies)
    allowed = 3 * 0.1 + most * 1e-3  # a fourth request is sent, a fifth might pass it

    def slowly(body):
        time.sleep(0.02)
        return prefers_two(body)

    with Endpoint(slowly) as endpoint:
        options = settings(endpoint.url, concurrency=concurrency, max_cost=allowed, **PRICES)
        with pytest.raises(JudgeError, match=r"evaluation\.llm\.max_cost: \$0\.\d+ of \$[\d.]+ are spent"):
            judge("llm", PAIRS, options, tmp_path)
        sent = len(endpoint.bodies)
        assert 4 <= sent < 8
        assert sent * 0.1 <= allowed
        with pytest.raises(JudgeError, match="raise max_cost and run again"):
            judge("llm", PAIRS, options, tmp_path)
        assert len(endpoint.bodies) == sent, "another job finds the budget as the first one left it"
        rows = judge("llm", PAIRS, options | {"llm": options["llm"] | {"max_cost": 10.0}}, tmp_path)
        assert len(endpoint.bodies) == 8
        assert None not in [row["preference"] for row in rows]


def test_a_budget_without_prices_is_refused_at_once():
    for known in ({}, {"price_input": 1.0}, {"price_output": 1.0}):
        with pytest.raises(ValidationError, match="max_cost: set price_input and price_output too"):
            settings("http://x/v1", max_cost=1.0, **known)


def test_unreadable_answers_and_other_judges_count_in_the_budget(tmp_path):
    with Endpoint(lambda body: completion("Hm.", {"Hm": -0.01})) as endpoint:
        judge("llm", PAIRS[:3], settings(endpoint.url, **PRICES), tmp_path)
        cheap = {"price_input": 0.001, "price_output": 0.0, "model": "cheap"}
        with pytest.raises(JudgeError, match=r"\$0\.30 of \$0\.30 are spent"):
            judge("llm", PAIRS, settings(endpoint.url, max_cost=0.3, **cheap), tmp_path)
        assert len(endpoint.bodies) == 3


def test_jobs_that_ask_at_once_pay_once_for_one_request(tmp_path):
    def slowly(body):
        time.sleep(0.02)
        return prefers_two(body)

    with Endpoint(slowly) as endpoint, ThreadPoolExecutor(3) as pool:
        options = settings(endpoint.url, concurrency=2)
        rows = list(pool.map(lambda _: judge("llm", PAIRS, options, tmp_path), range(3)))
        assert len(endpoint.bodies) == 8
        assert endpoint.most_at_once <= 2, "what the configuration allows is for all together"
    assert rows[0] == rows[1] == rows[2]
