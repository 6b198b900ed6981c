"""vLLM within the job: prompts and responses are token ids, so nothing of its tokenizer plays a part."""

from collections.abc import Generator
from typing import Any

from icprobe.evaluation.engines import Question, require_vllm
from icprobe.evaluation.engines.model import Model, trusts
from icprobe.evaluation.engines.weights import served_folder


def vllm(questions: list[Question], model: Model, settings: dict[str, Any]) -> Generator[tuple[str, list[int]]]:
    """Greedy answers; settings: `dtype` and `batch_size`, the prompts that are generated and kept together."""
    require_vllm()
    from vllm import LLM, SamplingParams, TokensPrompt

    with served_folder(model.base, model.checkpoint, settings["dtype"]) as folder:
        llm = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            trust_remote_code=trusts(model.base),
            dtype=settings["dtype"],
            max_model_len=max(len(question.ids) + question.most for question in questions),
            generation_config="vllm",  # the model's own may penalise repetitions
        )
        for start in range(0, len(questions), settings["batch_size"]):
            batch = questions[start : start + settings["batch_size"]]
            # Ends are named, not looked up: they are the same for every engine.
            greedy = [
                SamplingParams(
                    temperature=0,
                    max_tokens=question.most,
                    ignore_eos=True,
                    stop_token_ids=sorted(model.last),
                    detokenize=False,
                )
                for question in batch
            ]
            prompts = [TokensPrompt(prompt_token_ids=list(question.ids)) for question in batch]
            for question, output in zip(batch, llm.generate(prompts, greedy, use_tqdm=False), strict=True):
                yield question.id, list(output.outputs[0].token_ids)
