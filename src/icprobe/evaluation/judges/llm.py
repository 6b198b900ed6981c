"""A language model as judge, behind any OpenAI-compatible endpoint.

Two ways to ask. `weighted` is AlpacaEval 2's: one token, m or M, at temperature 0, and the preference is what their
probabilities say (Dubois et al., arXiv 2404.04475). `plain` asks for a JSON object, for endpoints without logprobs.
Every answer is kept on disk as it comes, so that nothing is paid for twice and a killed job goes on where it was.
"""

import json
import logging
import math
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import openai
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from icprobe import masking
from icprobe.artifacts import digest
from icprobe.errors import JudgeError
from icprobe.evaluation.judges import DRAW, key
from icprobe.evaluation.judges.answers import FIRST, SECOND, TIE, mass, share
from icprobe.evaluation.judges.cache import Budget, Cache, dollars, shown_dollars

logger = logging.getLogger(__name__)

ORDERS = ("base_first", "response_first")
SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": [FIRST, SECOND, TIE]}},
    "required": ["better"],
    "additionalProperties": False,
}
ASSUMED_SECONDS = 1.0  # of one answer, for the estimate, while none has been measured
CHARACTERS_PER_TOKEN = 4  # for the estimate
PAUSE = 0.5  # seconds before asking again for what was no chat completion; doubled each time
LOW_MASS = 0.5  # of the verdicts' tokens in the median, below which the log doubts the judge
# What endpoints say of a prompt that is too long, where no code or type does: vLLM, SGLang, Anthropic, Google, and
# llama.cpp before it had a type.
TOO_LONG = re.compile(
    r"maximum context length (?:is|of) \d|maximum model length of \d|context length is only \d|"
    r"exceeds the available context size|prompt is too long: \d|input token count \(\d+\) exceeds"
)
ERROR_STATUS = re.compile("[45][0-9]{2}")
# What endpoints refuse, and how to do without.
REFUSALS = {
    "temperature": "Set evaluation.llm.temperature: false to leave it out.",
    "response_format": "Set evaluation.llm.json_schema: false to leave it out.",
    "json_schema": "Set evaluation.llm.json_schema: false to leave it out.",
    "max_tokens": "Set evaluation.llm.limit_parameter: max_completion_tokens.",
    "top_logprobs": "Set evaluation.llm.top_logprobs lower, or mode: plain.",
    "logprobs": "Set evaluation.llm.mode: plain.",
}


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
    that can be read are not asked for again, and one job at a time asks for what it lacks. Raises ConfigError where the
    key is missing, before anything is asked, and JudgeError where the endpoint refuses or stays out of reach, and
    before `max_cost` is passed.
    """
    settings = settings["llm"]
    requests = [
        [(order, request(pair, order, settings)) for order in orders(pair.instruction, settings["order"])]
        if pair.base != pair.response
        else []
        for pair in pairs
    ]
    if equal := requests.count([]):
        logger.info(
            "%d of %d pairs are equal responses, which count as draws without asking the judge", equal, len(pairs)
        )
    wanted = {cache_key(body, settings): body for asked in requests for _, body in asked}
    answers = Cache(cache, lambda answer: share(answer, ORDERS[0], settings["least_mass"]) is not None)
    masses = []
    with ExitStack() as stack:
        if any(key not in answers for key in wanted):
            stack.enter_context(answers.asking())
        # Looked up again: where another job has asked in the meantime, nothing may be left to ask.
        waiting = {key: body for key, body in wanted.items() if key not in answers}
        if waiting:
            asking = _Asking(waiting, settings, answers)
            stack.callback(asking.stop)
        for asked_of_pair in requests:
            if not asked_of_pair:
                yield {"preference": DRAW, "order": None, "answers": []}
                continue
            said = []
            for order, body in asked_of_pair:
                name = cache_key(body, settings)
                answer = asking.wait(name) if name in waiting else answers[name]
                response = share(answer, order, settings["least_mass"])
                said.append({"order": order, "response": response, "answer": answer["said"]})
                read = answer["mode"] == "weighted" and answer["said"] is not None
                masses += [mass(answer["said"])] if read else []
            shares = [one["response"] for one in said]
            yield {
                "preference": None if None in shares else 1 + sum(shares) / len(shares),
                "order": said[0]["order"] if len(said) == 1 else "both",
                "answers": said,
            }
    _doubt(masses)


def _doubt(masses: list[float]) -> None:
    """A warning where the verdicts' tokens have little of the probability, though enough to be read."""
    if masses and statistics.median(masses) < LOW_MASS:
        logger.warning(
            "the judge seldom begins with a verdict: m and M have %.2g of the probability in the median. Is it a "
            "thinking model, or a very small one? evaluation.llm.mode: plain reads a verdict that comes later",
            statistics.median(masses),
        )


# --- what is asked ----------------------------------------------------------------------------------------------


def orders(instruction: str, how: str) -> list[str]:
    """Which answer stands first: both ways, or the way that a hash of the prompt says, the same for all models."""
    if how == "both":
        return list(ORDERS)
    return [ORDERS[sha256(instruction.encode()).digest()[0] % 2]]


def _templates() -> Environment:
    # The texts are values; nothing in them is taken for a template.
    return ImmutableSandboxedEnvironment(
        loader=PackageLoader("icprobe.evaluation.judges", "templates"), undefined=StrictUndefined
    )


def request(pair: Pair, order: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat completion that compares the two responses in this order."""
    first, second = (pair.base, pair.response) if order == "base_first" else (pair.response, pair.base)
    template = _templates().get_template(f"{settings['mode']}.jinja")
    prompt = template.render(instruction=pair.instruction, answer_m=first, answer_M=second)
    body = {
        "model": settings["model"],
        "messages": [{"role": "user", "content": prompt}],
        settings["limit_parameter"]: most_written(settings),
    }
    if settings["temperature"] is not None:
        # 0 and not 0.0, which JSON tells apart: a digest of the body is what paid answers are kept under.
        body["temperature"] = settings["temperature"] or 0
    if settings["mode"] == "weighted":
        body |= {"logprobs": True, "top_logprobs": settings["top_logprobs"]}
    elif settings["json_schema"]:
        schema = {"name": "verdict", "strict": True, "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def most_written(settings: dict[str, Any]) -> int:
    """Tokens of an answer, at most."""
    return 1 if settings["mode"] == "weighted" else settings["max_answer_tokens"]


def most_tokens(body: dict[str, Any], settings: dict[str, Any]) -> list[int]:
    """Tokens [read, written] of a request, at most: no token is shorter than a byte."""
    return [len(json.dumps(body, ensure_ascii=False).encode()), most_written(settings)]


def cache_key(body: dict[str, Any], settings: dict[str, Any]) -> str:
    """Digest of all that an answer depends upon: the endpoint and the request, texts and parameters included."""
    return digest([settings["base_url"], body])


def estimate(bodies: list[dict[str, Any]], settings: dict[str, Any], answers: Cache, spent: float) -> str:
    """One sentence before the first request: how many, how many tokens, dollars and seconds.

    spent: dollars that the experiment's judgements have cost so far.
    """
    characters = sum(len(message["content"]) for body in bodies for message in body["messages"])
    read = round(characters / CHARACTERS_PER_TOKEN)
    written = len(bodies) * most_written(settings)
    measured = answers.seconds()
    seconds = len(bodies) * (measured or ASSUMED_SECONDS) / settings["concurrency"]
    limit = settings["max_cost"]
    budget = f" of {shown_dollars(limit)}, of which {shown_dollars(spent)} are spent" if limit is not None else ""
    return (
        f"{len(bodies)} requests to {settings['model']} at {settings['base_url']} ({len(answers)} answers at hand): "
        f"about {read} tokens read and at most {written} written, {shown_dollars(dollars([read, written], settings))}"
        f"{budget}, about {seconds:.0f} s ({'measured' if measured else 'assumed'}: {measured or ASSUMED_SECONDS:.2g} "
        f"s for one, {settings['concurrency']} at once)"
    )


# --- how it is asked --------------------------------------------------------------------------------------------


class _Asking:
    """Requests under way, a limited number at once, each answer kept when it comes."""

    def __init__(self, bodies: dict[str, dict[str, Any]], settings: dict[str, Any], answers: Cache) -> None:
        self._settings, self._answers = settings, answers
        self._budget = Budget(answers.rows, settings)
        self._client = client(settings)
        logger.info("%s", estimate(list(bodies.values()), settings, answers, self._budget.spent))
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
        if self._budget.spent:
            logger.info("judgements of this experiment have cost %s so far", shown_dollars(self._budget.spent))

    def _one(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        most = most_tokens(body, self._settings)
        with self._budget.request(most) as paid:
            answer = ask(self._client, body, self._settings)
            # A prompt that is too long was never answered: with another context it may be.
            if "refused" not in answer:
                tokens = answer["tokens"] or most
                answer |= {"tokens": tokens, "dollars": dollars(tokens, self._settings)}
                self._answers.put(key, answer)
                paid(answer)
        return answer


def client(settings: dict[str, Any]) -> openai.OpenAI:
    """The official client; it retries 408, 409, 429, 5xx, timeouts and cut connections with growing pauses."""
    return openai.OpenAI(
        base_url=masking.reveal(settings["base_url"]),
        api_key=key(settings["key_variable"]),
        timeout=settings["timeout_seconds"],
        max_retries=settings["attempts"] - 1,
        http_client=openai.DefaultHttpxClient(
            event_hooks={"response": [_give_errors_their_status]},
            trust_env=not _is_here(settings["base_url"]),
        ),
    )


def _is_here(address: str) -> bool:
    """Whether an address is this machine's own, which no proxy of the environment leads to."""
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _give_errors_their_status(response: Any) -> None:
    """Makes an error that comes with status 200 what its code says, so that the client retries it or tells it as such.

    OpenRouter and others send {"error": {"code": 429, "message": "…"}}. One that names no HTTP status is a bad
    gateway's (502): something behind the endpoint has failed. response: of the client's HTTP library.
    """
    response.read()
    try:
        error = response.json().get("error") if response.is_success else None
    except (ValueError, AttributeError):
        return  # no chat completion either; `ask` says so
    if error:
        code = str(error.get("code") if isinstance(error, dict) else "")
        response.status_code = int(code) if ERROR_STATUS.fullmatch(code) else 502


def ask(client: openai.OpenAI, body: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One answer: mode, said (weighted: [[token, logprob], …]; plain: text), tokens [read, written] or None, seconds.

    A response that is no chat completion counts as a failure of the endpoint and is asked for again. Raises JudgeError.
    """
    where = f"The judge {settings['model']} at {settings['base_url']}"
    for attempt in range(settings["attempts"]):
        started = time.monotonic()
        try:
            completion = client.chat.completions.create(**body)
            said = _said(completion, settings["mode"])
        except openai.APIStatusError as error:
            if is_too_long(error):
                return {"mode": settings["mode"], "said": None, "refused": str(error)[:300]}
            hint = ""
            if error.status_code in (400, 422):
                hint = next((f" {mend}" for word, mend in REFUSALS.items() if word in str(error)), "")
                raise JudgeError(f"{where} refuses the request: {_short(error)}.{hint}") from None
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
        tokens = [usage.prompt_tokens, usage.completion_tokens] if usage else []
        return {
            "mode": settings["mode"],
            "said": said,
            "tokens": tokens if [type(count) for count in tokens] == [int, int] else None,
            "seconds": round(time.monotonic() - started, 3),
        }
    raise JudgeError(
        f"{where} sent something other than a chat completion {settings['attempts']} times. Is base_url right? It "
        "often ends in /v1."
    )


def is_too_long(error: openai.APIStatusError) -> bool:
    """Whether a prompt is refused because it does not fit the context: by OpenAI's code, llama.cpp's type, or words."""
    if error.code == "context_length_exceeded" or error.type == "exceed_context_size_error":
        return True
    said = error.body.get("message") if isinstance(error.body, dict) else error.body
    return error.status_code == 400 and TOO_LONG.search(str(said)) is not None


def _said(completion: Any, mode: str) -> Any:
    """What the judge said, in a form that a journal takes, for it is paid for: endpoints give odd values, too."""
    choice = completion.choices[0]
    if mode == "plain":
        return _written(choice.message.content)
    if choice.logprobs is None:
        # llama.cpp has none either for a first token that is no text: an end, or a part of a character (U+FFFD).
        if (choice.message.content or "").strip(" \N{REPLACEMENT CHARACTER}"):
            raise JudgeError("The judge's endpoint returns no logprobs. Set evaluation.llm.mode: plain.")
        return None
    tokens = choice.logprobs.content
    # A token without a finite number (null, -Infinity) cannot come.
    return [
        [_written(entry.token), entry.logprob]
        for entry in (tokens[0].top_logprobs if tokens else [])
        if entry.token is not None and entry.logprob is not None and math.isfinite(entry.logprob)
    ]


def _written(content: str | list[dict[str, Any]] | None) -> str | None:
    """A message's words; of one in parts, as some thinking models send it, those of its text."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    # Half of a surrogate pair is no character.
    return content if content is None else content.encode("utf-8", "replace").decode()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
