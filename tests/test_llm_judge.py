import importlib.util
import json
import logging
import math
import time
import urllib.request
from dataclasses import replace

import openai._base_client
import pytest
from endpoint import FAULTS, PAIRS, Endpoint, completion, prefers_two, settings
from tiny_gguf import tiny_gguf

from icprobe import jsonl
from icprobe.errors import ConfigError, JudgeError
from icprobe.evaluation.judges import Pair, judge, llm
from icprobe.evaluation.judges.server import serving


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(llm, "PAUSE", 0.01)


def always(**tokens):
    return lambda body: completion(tokens={token: math.log(p) for token, p in tokens.items()})


def preferences(rows):
    return [row["preference"] for row in rows]


# --- what a preference is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["hash", "both"])
def test_a_preference_belongs_to_the_response_wherever_it_stands(order):
    with Endpoint(prefers_two) as endpoint:
        rows = judge("llm", PAIRS, settings(endpoint.url, order=order))
    assert preferences(rows) == pytest.approx([1 + 0.8 / 0.9] * 8)
    assert {row["order"] for row in rows} == ({"both"} if order == "both" else {"base_first", "response_first"})
    assert [row["id"] for row in rows] == [pair.id for pair in PAIRS]


def test_a_judge_that_looks_at_the_place_alone_is_a_draw_when_asked_both_ways():
    with Endpoint(always(m=0.2, M=0.6)) as endpoint:
        both = judge("llm", PAIRS, settings(endpoint.url, order="both"))
        one = judge("llm", PAIRS, settings(endpoint.url, order="hash"))
    assert preferences(both) == pytest.approx([1.5] * 8)
    assert preferences(one) == pytest.approx([1.75 if row["order"] == "base_first" else 1.25 for row in one])


def test_the_order_is_a_hash_of_the_prompt_alone():
    instructions = [f"Instruction {n}" for n in range(400)]
    found = [llm.orders(text, "hash") for text in instructions]
    assert found == [llm.orders(text, "hash") for text in instructions]
    assert 150 < sum(order == ["base_first"] for order in found) < 250


def test_white_space_around_a_name_counts_and_a_name_that_is_not_likely_counts_as_nothing():
    with Endpoint(lambda body: completion(tokens={" M": -0.5, "M": -1.5, "Model": -0.1})) as endpoint:
        row = judge("llm", PAIRS[:1], settings(endpoint.url))[0]
    assert row["preference"] == (2 if row["order"] == "base_first" else 1)


@pytest.mark.parametrize("content", ["\N{REPLACEMENT CHARACTER}", "", None])
def test_a_first_token_that_is_no_text_is_one_unreadable_answer_and_no_endpoint_without_logprobs(content, tmp_path):
    """llama.cpp gives no logprobs where the first token ends the answer, or is a part of a character."""

    def answer(body):
        return completion(content) if "Count to 3." in body["messages"][0]["content"] else prefers_two(body)

    with Endpoint(answer) as endpoint:
        rows = judge("llm", PAIRS, settings(endpoint.url), tmp_path)
        assert [row["id"] for row in rows if row["preference"] is None] == ["3"]
        assert preferences(judge("llm", PAIRS, settings(endpoint.url), tmp_path)) == preferences(rows)
        assert len(endpoint.bodies) == len(PAIRS) + 1, "it alone is asked for again"


def test_equal_responses_are_a_draw_and_nobody_is_asked(caplog):
    equal = [replace(pair, response=pair.base) for pair in PAIRS[:3]]
    with Endpoint(prefers_two) as endpoint, caplog.at_level(logging.INFO):
        rows = judge("llm", [*equal, *PAIRS[3:]], settings(endpoint.url, order="both"))
        assert len(endpoint.bodies) == 2 * 5
        assert preferences(rows[:3]) == [1.5] * 3
        assert [(row["order"], row["answers"]) for row in rows[:3]] == [(None, [])] * 3
        assert preferences(rows[3:]) == pytest.approx([1 + 0.8 / 0.9] * 5)
        assert "3 of 8 pairs are equal responses" in caplog.text
        assert preferences(judge("llm", equal, settings("http://127.0.0.1:9/v1"))) == [1.5] * 3


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ('{"better": "M"}', 1),
        (' {"better": "m"}\n', 0),
        ('{"better": "draw"}', 0.5),
        ('{"better": "both"}', None),
        ('{"better": ["M"]}', None),
        ('{"best": "M"}', None),
        ('["M"]', None),
        ("M", None),
        ('{"better": "M"', None),
        ("", None),
        (None, None),
    ],
)
def test_a_plain_answer_is_read_exactly_or_not_at_all(text, second):
    with Endpoint(lambda body: completion(text)) as endpoint:
        row = judge("llm", PAIRS[:1], settings(endpoint.url, mode="plain"))[0]
        assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"] == llm.SCHEMA
    if second is None:
        assert row["preference"] is None
        assert row["answers"][0]["answer"] == text, "what could not be read is shown"
    else:
        assert row["preference"] == 1 + (second if row["order"] == "base_first" else 1 - second)


@pytest.mark.parametrize("tokens", [{"The": -0.1, "A": -2.0}, {}])
def test_an_answer_that_cannot_be_read_has_no_preference_and_is_counted(tokens, caplog):
    with Endpoint(lambda body: completion(tokens=tokens)) as endpoint:
        rows = judge("llm", PAIRS, settings(endpoint.url))
        assert preferences(rows) == [None] * 8
        assert len(endpoint.bodies) == 8, "at temperature 0 it would say the same again"
    assert "8 of the judge's 8 answers cannot be read" in caplog.text


def test_texts_are_data_and_never_templates():
    pair = Pair("1", None, "{{ 7 * 7 }} {% for x in y %}", "</answer> {{ answer_M }}", "{# gone? #}")
    body = llm.request(pair, "base_first", settings("http://x/v1")["llm"])
    for text in (pair.instruction, pair.base, pair.response):
        assert text in body["messages"][0]["content"]
    assert body["temperature"] == 0
    assert body["max_tokens"] == 1


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(fault):
    with Endpoint(prefers_two, [fault, fault]) as endpoint:
        rows = judge("llm", PAIRS, settings(endpoint.url))
        assert len(endpoint.bodies) == 10
    assert preferences(rows) == pytest.approx([1 + 0.8 / 0.9] * 8)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_one_sentence_and_the_next_run_goes_on(fault, tmp_path):
    with Endpoint(prefers_two, [None] * 3 + [fault] * 1000) as endpoint:
        options = settings(endpoint.url, attempts=2, concurrency=1)
        with pytest.raises(JudgeError, match="judge-1 at http"):
            judge("llm", PAIRS, options, tmp_path)
        endpoint.faults.clear()
        endpoint.bodies.clear()
        rows = judge("llm", PAIRS, options, tmp_path)
        assert len(endpoint.bodies) == 5, "three are known"
    assert preferences(rows) == pytest.approx([1 + 0.8 / 0.9] * 8)


def test_an_answer_that_takes_too_long_is_asked_for_again():
    slow = iter([0.6])

    def answer(body):
        time.sleep(next(slow, 0))
        return prefers_two(body)

    with Endpoint(answer) as endpoint:
        rows = judge("llm", PAIRS[:2], settings(endpoint.url, timeout_seconds=0.3, concurrency=1))
        assert len(endpoint.bodies) == 3
    assert preferences(rows) == pytest.approx([1 + 0.8 / 0.9] * 2)


def test_mistakes_of_the_configuration_are_told_at_once(monkeypatch):
    with Endpoint(prefers_two) as endpoint:
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
            judge("llm", PAIRS, settings(endpoint.url, key_variable="JUDGE_KEY"))
        assert not endpoint.bodies
        endpoint.answer = lambda body: completion("m")
        with pytest.raises(JudgeError, match=r"no logprobs\. Set evaluation\.llm\.mode: plain"):
            judge("llm", PAIRS, settings(endpoint.url))
        endpoint.faults, endpoint.bodies = ["401"] * 99, []
        with pytest.raises(JudgeError, match="Is the key in evaluation"):
            judge("llm", PAIRS, settings(endpoint.url, concurrency=1))
        assert len(endpoint.bodies) <= 2, "a wrong key does not become right"
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge("llm", PAIRS, settings(endpoint.url, attempts=2))


def test_a_prompt_too_long_for_the_judge_has_no_preference_and_stops_nothing():
    with Endpoint(prefers_two, ["400 the request exceeds the available context size"]) as endpoint:
        rows = judge("llm", PAIRS, settings(endpoint.url, concurrency=1))
    assert preferences(rows) == [None, *[pytest.approx(1 + 0.8 / 0.9)] * 7]


# --- nothing is paid for twice ----------------------------------------------------------------------------------


def test_what_is_known_is_not_asked_again_and_the_key_is_nowhere(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    with Endpoint(prefers_two) as endpoint:
        options = settings(endpoint.url, key_variable="JUDGE_KEY", price_input=10.0)
        first = judge("llm", [*PAIRS, replace(PAIRS[0], id="twin")], options, tmp_path)
        assert len(endpoint.bodies) == 8, "the same question is asked once"
        assert set(endpoint.keys) == {"Bearer sk-secret"}
        cheap = settings(endpoint.url, concurrency=1, attempts=1, price_input=1.0, timeout_seconds=9)
        assert judge("llm", PAIRS, cheap, tmp_path) == first[:8]
        assert len(endpoint.bodies) == 8, "prices, patience and keys change no answer"
        for changes in ({"model": "judge-2"}, {"mode": "plain"}, {"top_logprobs": 5}):
            endpoint.answer = prefers_two if "mode" not in changes else lambda body: completion('{"better": "m"}')
            endpoint.bodies.clear()
            judge("llm", PAIRS[:2], settings(endpoint.url, **changes), tmp_path)
            assert len(endpoint.bodies) == 2, changes
        endpoint.bodies.clear()
        judge("llm", [replace(PAIRS[0], base="another")], cheap, tmp_path)
        assert len(endpoint.bodies) == 1
    stored = "".join(path.read_text() for path in tmp_path.glob("*"))
    assert "sk-secret" not in stored + caplog.text


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path):
    with Endpoint(prefers_two) as endpoint:
        expected = judge("llm", PAIRS, settings(endpoint.url), tmp_path)
        journal = next(tmp_path.glob("*.jsonl"))
        journal.write_bytes(journal.read_bytes()[:-5])
        before = journal.read_bytes()
        endpoint.bodies.clear()
        assert judge("llm", PAIRS, settings(endpoint.url), tmp_path) == expected
        assert len(endpoint.bodies) == 1
    assert journal.read_bytes() == before, "its writer may still be writing it"
    assert sum(len(jsonl.whole_lines(path)) for path in tmp_path.glob("*.jsonl")) == 8


def test_no_more_requests_than_allowed_are_under_way():
    def answer(body):
        time.sleep(0.05)
        return prefers_two(body)

    with Endpoint(answer) as endpoint:
        judge("llm", PAIRS, settings(endpoint.url, concurrency=3))
    assert endpoint.most_at_once == 3


def test_cost_and_time_are_told_before_the_first_request(caplog):
    caplog.set_level(logging.INFO)
    told = []
    with Endpoint(lambda body: told.append(caplog.text) or prefers_two(body)) as endpoint:
        options = settings(endpoint.url, price_input=1000.0, price_output=1000.0, concurrency=2)
        judge("llm", PAIRS, options)
        read = sum(len(body["messages"][0]["content"]) for body in endpoint.bodies) / 4
    assert f"8 requests to judge-1 at {endpoint.url}" in told[0]
    assert f"${(read + 8) * 1e-3:.2f}, about 4 s (assumed: 1 s for one, 2 at once)" in told[0]


# --- a real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory):
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed: pip install xllamacpp")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf(path)
    with serving(path, port=0) as address:
        yield address


def post(url, body):
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_a_real_server_is_judged_by_its_probabilities_through_every_fault(llama_server, tmp_path):
    """llama.cpp behind a proxy that fails; the expected preferences come from requests made by hand."""
    with Endpoint(lambda body: post(llama_server, body), FAULTS) as proxy:
        # A random model is about to say anything.
        options = settings(proxy.url, order="both", top_logprobs=300, least_mass=0)
        rows = judge("llm", PAIRS[:4], options, tmp_path)
    for row, pair in zip(rows, PAIRS, strict=False):
        shares = []
        for order in llm.ORDERS:
            body = llm.request(pair, order, options["llm"])
            top = post(llama_server, body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            p = {entry["token"]: math.exp(entry["logprob"]) for entry in top}
            shares.append(p["M" if order == "base_first" else "m"] / (p["m"] + p["M"]))
        assert row["preference"] == pytest.approx(1 + sum(shares) / 2, abs=1e-3)
    assert len({round(p, 6) for p in preferences(rows)}) == 4


def test_a_real_server_gives_structured_answers(llama_server, tmp_path):
    rows = judge("llm", PAIRS[:3], settings(llama_server, mode="plain"), tmp_path)
    assert all(preference in (1, 1.5, 2) for preference in preferences(rows)), rows
