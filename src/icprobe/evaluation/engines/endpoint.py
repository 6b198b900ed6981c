"""Responses from an OpenAI-compatible server, by /v1/completions: one that is started for the model, or one that runs.

The prompt's tokens are the model's own, and so, where the server tells them (vLLM, llama.cpp), are the response's; what
cannot be held against them is refused, for it would be the response to another prompt, or of another model.
"""

import logging
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import Any

import openai

from icprobe import masking
from icprobe.errors import EndpointError, reason, several, some
from icprobe.evaluation.engines import Question, guard, require_key
from icprobe.evaluation.engines.model import Model
from icprobe.evaluation.engines.server import Server, serving
from icprobe.evaluation.engines.weights import served_folder
from icprobe.evaluation.judges.llm import client, is_too_long

logger = logging.getLogger(__name__)

PAUSE = 0.5  # seconds before asking again for what was no completion; doubled each time
LONGEST_PAUSE = 8.0
ENDS_WITHIN_SECONDS = guard.GRACE_SECONDS + 5  # of a server that is not reached any more: what it started ends first
# Greedy decoding without what a model's own settings might add to it: vLLM's and llama.cpp's name for the same.
PLAIN = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
# What makes vLLM and llama.cpp tell a response's token ids; others pass over it.
TELL_IDS = {"return_token_ids": True, "return_tokens": True, "verbose": True}
SENT_AS_TEXT = "A server that takes no token ids as a prompt needs evaluation.endpoint.prompts: text."


def endpoint(questions: list[Question], model: Model, settings: dict[str, Any]) -> Generator[tuple[str, Any]]:
    """Answers as they come; settings: `dtype` of the weights that a started server gets, and `endpoint`.

    Raises ConfigError where the key is missing, before anything is started, and EndpointError.
    """
    options = settings["endpoint"]
    require_key(options["key_variable"])
    with ExitStack() as stack:
        server = None
        if options["start"]:
            folder = stack.enter_context(served_folder(model.base, model.checkpoint, settings["dtype"]))
            server = stack.enter_context(serving(options, folder))
            options = options | {"base_url": server.address}
        asking = stack.enter_context(_Asking(model, options, server))
        pool = ThreadPoolExecutor(options["concurrency"], thread_name_prefix="endpoint")
        # What is under way ends with the client and the server.
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        futures = {pool.submit(asking.answer, question): question.id for question in questions}
        for future in as_completed(futures):
            yield futures[future], future.result()


class _Asking:
    """A model at an endpoint, by the name that it has there, which the endpoint has to know."""

    def __init__(self, model: Model, options: dict[str, Any], server: Server | None) -> None:
        self._model, self._options, self._server = model, options, server
        self._client = client(options)
        self._where = f"The endpoint {masking.mask(options['base_url'])}"
        self._name, self._answers_as = self._known_name(), None
        self._where = f"{self._name} at {masking.mask(options['base_url'])}"
        logger.info("%s writes the responses, %d at once", self._where, options["concurrency"])

    def __enter__(self) -> "_Asking":
        return self

    def __exit__(self, *error: Any) -> None:
        self._client.close()

    def _known_name(self) -> str:
        """The model's name. Raises EndpointError where the endpoint does not know it: it may answer with another."""
        try:
            known = [one.id for one in self._client.models.list().data]
        except openai.APIError as error:
            raise self._failure(error) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise EndpointError(
                f"{self._where} gives no list of its models ({reason(error)}). Is base_url right? It often ends in /v1."
            ) from None
        wanted = self._options["model"]
        if wanted is None and len(known) == 1:
            return known[0]
        if wanted not in known:
            what = "Set evaluation.endpoint.model to one of them." if wanted is None else "Serve it under this name."
            raise EndpointError(
                f"{self._where} serves {several(len(known), 'model')} ({some(known)})"
                f"{'' if wanted is None else f', none of which is {wanted}'}. {what}"
            )
        return wanted

    def answer(self, question: Question) -> list[int] | str:
        """The token ids that follow a prompt, to an end of the model's or as many as were asked for; or the text.

        Where the server ends at a token that is no end of this model (llama.cpp has some for all models), it goes on.
        """
        ids: list[int] = []
        while True:
            most = question.most - len(ids)
            completion = self._complete(question, ids, most)
            choice, tokens = completion.choices[0], _ids(completion)
            self._check(question, len(question.ids) + len(ids), most, completion)
            cut_short = choice.finish_reason == "length" and completion.usage.completion_tokens < most
            if cut_short:
                raise EndpointError(
                    f"{self._where} has no room for the response to eval prompt {question.id}: it stopped after "
                    f"{several(completion.usage.completion_tokens, 'token')} of {most}. Give it a context of "
                    f"{len(question.ids) + question.most} tokens or more."
                )
            if tokens is None and not ids:
                self._check_text()
                return choice.text
            tokens = tokens or []
            self._check_told(question, tokens, completion.usage.completion_tokens)
            self._check_tokenizer(question, tokens, choice.text)
            ids += tokens
            ended = choice.finish_reason == "length" or not tokens or not self._model.last.isdisjoint(tokens)
            if ended or len(ids) >= question.most:
                return ids
            if self._options["prompts"] == "text":
                token = self._model.tokenizer.convert_ids_to_tokens(ids[-1])
                raise EndpointError(
                    f"{self._where} ends the response to eval prompt {question.id} at {token!r}, which is no end of "
                    "this model. Set evaluation.endpoint.prompts: tokens, with which it is asked to go on."
                )

    def _complete(self, question: Question, ids: list[int], most: int) -> Any:
        """The completion of a prompt and the first tokens of its response."""
        prompt = question.text if self._options["prompts"] == "text" else [*question.ids, *ids]
        body = {
            "model": self._name,
            "prompt": prompt,
            "max_tokens": most,
            "temperature": 0,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "extra_body": {**PLAIN, **TELL_IDS, "stop_token_ids": sorted(self._model.last)},
        }
        attempts, said = self._options["attempts"], ""
        for attempt in range(attempts):
            try:
                completion = self._client.completions.create(**body)
                if isinstance(completion.choices[0].text, str):
                    return completion
                said = "a completion without text"
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                raise self._failure(error, question) from None
            except (openai.APIError, ValueError, TypeError, AttributeError, LookupError) as error:
                said = reason(error)
            logger.warning("%s sends no completion (%s), attempt %d", self._where, said, attempt + 1)
            if attempt + 1 < attempts:
                time.sleep(min(PAUSE * 2**attempt, LONGEST_PAUSE))
        raise EndpointError(
            f"{self._where} sent no completion {several(attempts, 'time')} ({said}). Is base_url right? It often ends "
            "in /v1."
        )

    def _failure(self, error: openai.APIError, question: Question | None = None) -> EndpointError:
        """What to say of an error that stays; the client has tried again where that may help."""
        cut = isinstance(error, openai.APIConnectionError)
        if self._server and (how := self._server.ended(ENDS_WITHIN_SECONDS if cut else 0)):
            return EndpointError(f"The server of evaluation.endpoint.start {how}. Responses so far are kept.")
        if cut:
            cause = error.__cause__ or error
            return EndpointError(
                f"{self._where} cannot be reached ({type(cause).__name__}: {reason(cause).rstrip('.')}), "
                f"{several(self._options['attempts'], 'time')}. Responses so far are kept; run again when it is back."
            )
        status = getattr(error, "status_code", None)
        if question and status and is_too_long(error):
            return EndpointError(
                f"{self._where}: eval prompt {question.id} and its response do not fit the server's context. Give it "
                f"one of {len(question.ids) + question.most} tokens or more."
            )
        hint = ""
        if status in (401, 403):
            hint = f" Is the key in {self._options['key_variable'] or 'evaluation.endpoint.key_variable'} right?"
        elif status == 404:
            hint = " Is base_url right? It often ends in /v1."
        elif question and status in (400, 422) and self._options["prompts"] == "tokens":
            hint = f" {SENT_AS_TEXT}"
        return EndpointError(f"{self._where} answers: {reason(error).rstrip('.')}.{hint} Responses so far are kept.")

    def _check(self, question: Question, length: int, most: int, completion: Any) -> None:
        """Raises EndpointError where the prompt that was read is not ours, or the response ended in an odd way."""
        usage, choice = completion.usage, completion.choices[0]
        if [type(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens")] != [int, int]:
            raise EndpointError(
                f"{self._where} does not say how many tokens it has read and written (usage), so nobody can tell "
                "whether the prompt's were the model's own. Use another server."
            )
        read = (choice.model_extra or {}).get("prompt_token_ids")
        sent = length == len(question.ids)  # else the prompt has tokens of the response, too
        if usage.prompt_tokens != length or (read is not None and sent and tuple(read) != question.ids):
            others = f"{length} others" if usage.prompt_tokens == length else f"{length}"
            raise EndpointError(
                f"{self._where} has read {usage.prompt_tokens} tokens where eval prompt {question.id} has {others}: it "
                "adds tokens of its own, such as a BOS, cuts the prompt, or has another tokenizer. "
                + (
                    "Set evaluation.endpoint.prompts: tokens, or serve the model's own tokenizer."
                    if self._options["prompts"] == "text"
                    else "Serve the model as it is, with its own tokenizer."
                )
            )
        if len(completion.choices) != 1 or usage.completion_tokens > most:
            raise EndpointError(
                f"{self._where} has written {several(len(completion.choices), 'response')} of "
                f"{several(usage.completion_tokens, 'token')} to eval prompt {question.id}, where one of at most "
                f"{most} was asked for. Use another server."
            )
        if self._answers_as not in (None, completion.model):
            raise EndpointError(
                f"{self._where} answered as {self._answers_as!r} and now as {completion.model!r}: another model stands "
                "behind it. Serve one for as long as the job runs; responses so far are kept."
            )
        self._answers_as = completion.model
        if choice.finish_reason not in ("stop", "length"):
            raise EndpointError(
                f"{self._where} ended the response to eval prompt {question.id} for the reason "
                f"{choice.finish_reason!r}, so it is not whole. A response ends with stop or length; look into the "
                "server's log."
            )

    def _check_text(self) -> None:
        """Raises EndpointError where a text cannot show a control token that would end the response."""
        unseen = self._model.stops.tokens - self._model.ends
        if unseen:
            token = self._model.tokenizer.convert_ids_to_tokens(min(unseen))
            raise EndpointError(
                f"{self._where} tells no token ids of its responses, so nobody can tell where {token!r}, a control "
                "token of templates.query, ends one. Use vLLM or llama.cpp, or the engine transformers."
            )

    def _check_told(self, question: Question, ids: list[int], written: int) -> None:
        """Raises EndpointError where the token ids told are not the response's; the one that ended it may lack."""
        vocabulary = len(self._model.tokenizer)
        if not written - 1 <= len(ids) <= written or not all(0 <= token < vocabulary for token in ids):
            raise EndpointError(
                f"{self._where} tells {several(len(ids), 'token id')} of a response of {written} tokens to eval prompt "
                f"{question.id}, or some that the model does not have. Use another server."
            )

    def _check_tokenizer(self, question: Question, ids: list[int], text: str) -> None:
        """Raises EndpointError where the server makes other letters of token ids than the model's tokenizer does."""
        ours = "".join(filter(str.isalnum, self._model.tokenizer.decode(ids, skip_special_tokens=True)))
        # The server's may lack the last ones, of a character that is not whole or of what ended it.
        theirs = "".join(filter(str.isalnum, text))
        if not ours.startswith(theirs) or (ours and not theirs and len(ids) > 1):
            raise EndpointError(
                f"{self._where} has another tokenizer than {self._model.base.name}: of the token ids of its response "
                f"to eval prompt {question.id} it makes other words. Serve the model with its own tokenizer."
            )


def _ids(completion: Any) -> list[int] | None:
    """The token ids of a response, as vLLM (`return_token_ids`) or llama.cpp (`return_tokens`) tells them, or None."""
    verbose = (completion.model_extra or {}).get("__verbose")
    found = (completion.choices[0].model_extra or {}).get("token_ids")
    if found is None and isinstance(verbose, dict):
        found = verbose.get("tokens")
    told = isinstance(found, list) and all(type(one) is int for one in found)
    # llama.cpp of another build gives an empty list, whatever it wrote.
    return found if told and (found or not completion.choices[0].text) else None
