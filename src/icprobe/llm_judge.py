"""A language model as judge, behind any OpenAI-compatible endpoint.

Two ways to ask. `weighted` is AlpacaEval 2's: one token, m or M, at temperature 0, and the preference is what their
probabilities say (Dubois et al., arXiv 2404.04475). `plain` asks for a JSON object, for endpoints without logprobs.
Every answer is kept on disk as it comes, so that nothing is paid for twice and a killed job goes on where it was.
"""

import json
import logging
import math
import os
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import openai
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from icprobe import jsonl, masking
from icprobe.artifacts import digest
from icprobe.errors import ConfigError, JudgeError
from icprobe.judging import DRAW

logger = logging.getLogger(__name__)

FIRST, SECOND = "m", "M"  # names under which the judge sees the two answers, in the order in which they stand
ORDERS = ("base_first", "response_first")
SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": [FIRST, SECOND, "draw"]}},
    "required": ["better"],
    "additionalProperties": False,
}
ASSUMED_SECONDS = 1.0  # of one answer, for the estimate, while none has been measured
CHARACTERS_PER_TOKEN = 4  # for the estimate
PAUSE = 0.5  # seconds before asking again for what was no chat completion; doubled each time


class Pair(Protocol):
    """What is judged: two responses to one instruction."""

    instruction: str
    base: str
    response: str


def llm(pairs: list[Pair], settings: dict[str, Any], cache: Path | None = None) -> Iterator[dict[str, Any]]:
    """Verdicts of the language model that `settings["llm"]` describes, in the order of the pairs.

    A verdict: `preference` in [1, 2], or None where an answer cannot be read; `order` (base_first, response_first or
    both); `answers`, for each request its order, what it says of the response, and the answer as it came. Equal
    responses are a draw and nothing is asked, as with AlpacaEval; their `order` is None. cache: a folder; answers in it
    are not asked for again. Raises ConfigError where the key is missing, before anything is asked, and JudgeError where
    the endpoint refuses or stays out of reach.
    """
    settings = settings["llm"]
    requests = [
        [(order, request(pair, order, settings)) for order in orders(pair.instruction, settings["order"])]
        if pair.base != pair.response
        else []
        for pair in pairs
    ]
    if equal := requests.count([]):
        logger.info("%d of %d pairs are equal responses, draws that nobody is asked about", equal, len(pairs))
    answers = Cache(cache)
    waiting = {}
    for _, body in (asked for asked_of_pair in requests for asked in asked_of_pair):
        key = cache_key(body, settings)
        if key not in answers:
            waiting[key] = body
    if waiting:
        logger.info("%s", estimate(list(waiting.values()), settings, answers))
    asking = _Asking(waiting, settings, answers) if waiting else None
    try:
        for asked_of_pair in requests:
            if not asked_of_pair:
                yield {"preference": DRAW, "order": None, "answers": []}
                continue
            said = []
            for order, body in asked_of_pair:
                key = cache_key(body, settings)
                answer = asking.wait(key) if key in waiting else answers[key]
                said.append({"order": order, "response": share(answer, order), "answer": answer["said"]})
            shares = [one["response"] for one in said]
            yield {
                "preference": None if None in shares else 1 + sum(shares) / len(shares),
                "order": said[0]["order"] if len(said) == 1 else "both",
                "answers": said,
            }
    finally:
        if asking:
            asking.stop()


# --- what is asked ----------------------------------------------------------------------------------------------


def orders(instruction: str, how: str) -> list[str]:
    """Which answer stands first: both ways, or the way that a hash of the prompt says, the same for all models."""
    if how == "both":
        return list(ORDERS)
    return [ORDERS[sha256(instruction.encode()).digest()[0] % 2]]


def _templates() -> Environment:
    # The texts are values; nothing in them is taken for a template.
    return ImmutableSandboxedEnvironment(loader=PackageLoader("icprobe", "templates"), undefined=StrictUndefined)


def request(pair: Pair, order: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat completion that compares the two responses in this order."""
    first, second = (pair.base, pair.response) if order == "base_first" else (pair.response, pair.base)
    template = _templates().get_template(f"judge_{settings['mode']}.jinja")
    prompt = template.render(instruction=pair.instruction, answer_m=first, answer_M=second)
    body = {
        "model": settings["model"],
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
    }
    if settings["mode"] == "weighted":
        return body | {"logprobs": True, "top_logprobs": settings["top_logprobs"], settings["limit_parameter"]: 1}
    schema = {"name": "verdict", "strict": True, "schema": SCHEMA}
    return body | {
        "response_format": {"type": "json_schema", "json_schema": schema},
        settings["limit_parameter"]: settings["max_answer_tokens"],
    }


def cache_key(body: dict[str, Any], settings: dict[str, Any]) -> str:
    """Digest of all that an answer depends upon: the endpoint and the request, texts and parameters included."""
    return digest([settings["base_url"], body])


def estimate(bodies: list[dict[str, Any]], settings: dict[str, Any], answers: "Cache") -> str:
    """One sentence before the first request: how many, how many tokens, dollars and seconds."""
    characters = sum(len(message["content"]) for body in bodies for message in body["messages"])
    read = characters / CHARACTERS_PER_TOKEN
    written = len(bodies) * (1 if settings["mode"] == "weighted" else settings["max_answer_tokens"])
    dollars = (read * settings["price_input"] + written * settings["price_output"]) / 1e6
    measured = answers.seconds()
    seconds = len(bodies) * (measured or ASSUMED_SECONDS) / settings["concurrency"]
    return (
        f"{len(bodies)} requests to {settings['model']} at {settings['base_url']} ({len(answers)} answers at hand): "
        f"about {read:.0f} tokens read and at most {written} written, ${dollars:.2f}, about {seconds:.0f} s "
        f"({'measured' if measured else 'assumed'}: {measured or ASSUMED_SECONDS:.2g} s for one, "
        f"{settings['concurrency']} at once)"
    )


# --- what is answered -------------------------------------------------------------------------------------------


def share(answer: dict[str, Any], order: str) -> float | None:
    """How far the answer prefers the fine-tuned model's response, from 0 to 1; None where it cannot be read."""
    second = _weighted(answer["said"]) if answer["mode"] == "weighted" else _plain(answer["said"])
    if second is None:
        return None
    return second if order == "base_first" else 1 - second


def _weighted(tokens: list[list[Any]] | None) -> float | None:
    """p(M) / (p(m) + p(M)) of the likeliest tokens [[token, logprob], …]; one that is not among them counts as 0."""
    mass = {
        name: sum(math.exp(logprob) for token, logprob in tokens or [] if token.strip() == name)
        for name in (FIRST, SECOND)
    }
    total = sum(mass.values())
    return mass[SECOND] / total if total else None


def _plain(text: str | None) -> float | None:
    try:
        better = json.loads(text or "")["better"]
    except (ValueError, TypeError, KeyError):
        return None
    return {FIRST: 0.0, SECOND: 1.0, "draw": 0.5}.get(better) if isinstance(better, str) else None


class Cache:
    """Answers by key, in memory and in a folder that jobs share.

    Each process writes a journal of its own, for appending to a common file is not safe on every cluster's file system,
    and reads those of all others when it starts. Without a folder answers last as long as the object.
    """

    def __init__(self, folder: Path | None) -> None:
        self._answers: dict[str, dict[str, Any]] = {}
        self._journal: Path | None = None
        self._lock = threading.Lock()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.jsonl")):
                self._answers |= {row["key"]: row for row in jsonl.whole_lines(path)}
            self._journal = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        row = {"key": key, **answer}
        with self._lock:
            self._answers[key] = row
            if self._journal:
                jsonl.append(self._journal, [row])

    def seconds(self) -> float | None:
        """Median time of an answer so far."""
        return statistics.median(row["seconds"] for row in self._answers.values()) if self._answers else None


class _Asking:
    """Requests under way, a limited number at once, each answer kept when it comes."""

    def __init__(self, bodies: dict[str, dict[str, Any]], settings: dict[str, Any], answers: Cache) -> None:
        self._settings, self._answers = settings, answers
        self._client = client(settings)
        self._pool = ThreadPoolExecutor(settings["concurrency"], thread_name_prefix="judge")
        self._futures: dict[str, Future] = {
            key: self._pool.submit(self._one, key, body) for key, body in bodies.items()
        }

    def wait(self, key: str) -> dict[str, Any]:
        return self._futures[key].result()

    def stop(self) -> None:
        """Lets what is under way end (it is paid for, and kept), and begins nothing new."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _one(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = ask(self._client, body, self._settings)
        # A prompt that is too long was never answered: with another context it may be.
        if "refused" not in answer:
            self._answers.put(key, answer)
        return answer


def client(settings: dict[str, Any]) -> openai.OpenAI:
    """The official client; it retries 408, 409, 429, 5xx, timeouts and cut connections with growing pauses."""
    variable = settings["key_variable"]
    if variable and not os.environ.get(variable):
        raise ConfigError(
            f"config: evaluation.llm.key_variable: the environment variable {variable} is not set. Put the judge's key "
            "into it, or leave key_variable out for an endpoint without keys."
        )
    return openai.OpenAI(
        base_url=masking.reveal(settings["base_url"]),
        api_key=os.environ[variable] if variable else "none",
        timeout=settings["timeout_seconds"],
        max_retries=settings["attempts"] - 1,
    )


def ask(client: openai.OpenAI, body: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One answer: mode, said (weighted: [[token, logprob], …]; plain: text), tokens used, seconds.

    A response that is no chat completion counts as a failure of the endpoint and is asked for again. Raises JudgeError.
    """
    where = f"The judge {settings['model']} at {settings['base_url']}"
    for attempt in range(settings["attempts"]):
        started = time.monotonic()
        try:
            completion = client.chat.completions.create(**body)
            said = _said(completion, settings["mode"])
        except openai.BadRequestError as error:
            if "context" in str(error).lower():
                return {"mode": settings["mode"], "said": None, "refused": str(error)[:300]}
            raise JudgeError(f"{where} refuses the request: {_short(error)}") from None
        except openai.APIStatusError as error:
            hint = ""
            if error.status_code in (401, 403):
                hint = f" Is the key in {settings['key_variable'] or 'evaluation.llm.key_variable'} right?"
            raise JudgeError(f"{where} answers: {_short(error)}.{hint} What it has judged so far is kept.") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise JudgeError(
                f"{where} cannot be reached ({type(cause).__name__}: {_short(cause)}), {settings['attempts']} times. "
                "Answers so far are kept; run again when it is back."
            ) from None
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError) as error:
            logger.warning("%s sends no chat completion (%s), attempt %d", where, _short(error), attempt + 1)
            if attempt + 1 < settings["attempts"]:
                time.sleep(min(PAUSE * 2**attempt, 8.0))
            continue
        usage = completion.usage
        return {
            "mode": settings["mode"],
            "said": said,
            "tokens": [usage.prompt_tokens, usage.completion_tokens] if usage else None,
            "seconds": round(time.monotonic() - started, 3),
        }
    raise JudgeError(
        f"{where} sent something else than a chat completion {settings['attempts']} times. Is base_url right? It often "
        "ends in /v1."
    )


def _said(completion: Any, mode: str) -> Any:
    choice = completion.choices[0]
    if mode == "plain":
        return choice.message.content
    if choice.logprobs is None:
        # llama.cpp has none either for a first token that is no text: an end, or a part of a character (U+FFFD).
        if (choice.message.content or "").strip(" \N{REPLACEMENT CHARACTER}"):
            raise JudgeError("The judge's endpoint gives no logprobs. Set evaluation.llm.mode: plain.")
        return None
    tokens = choice.logprobs.content
    return [[entry.token, entry.logprob] for entry in tokens[0].top_logprobs] if tokens else None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
