"""Fine-tunes a model on a subset: trl's SFTTrainer with completion-only loss, all weights or adapters, resumable.

A training that is killed and started again ends in the same weights as one that is not: model, optimiser, schedule,
random states and data order are restored from the newest complete checkpoint.
"""

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, PrinterCallback, TrainerCallback, TrainerState, set_seed
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from icprobe import artifacts
from icprobe.engine.matmul import onednn_forwards, set_forwards
from icprobe.engine.models import linear_layers, load_model, max_positions, resolve_device, set_precision, trusts
from icprobe.errors import ConfigError, DataError, ModelError, reason, several
from icprobe.texts.completions import completions, longest, warn_of_cuts
from icprobe.texts.prompts import Encoded, Prompts
from icprobe.texts.tokenizing import load_tokenizer
from icprobe.training.callbacks import Checkpoints, Watch, newest_complete
from icprobe.training.loss import prepare_loss

logger = logging.getLogger(__name__)

IGNORED = -100  # label of a token without loss
CHECKPOINTING_ABOVE_PARAMETERS = 1_500_000_000  # a larger model's activations are recomputed, to save memory


def tokenize(
    tokenizer: Any, rows: list[dict[str, Any]], prompts: Prompts, max_length: int
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Makes token ids and labels of the examples; counts those that are truncated or dropped.

    ids: query + target + end of sequence, so that the model learns to stop, or what the chat template makes of the
    conversation; cut off after max_length tokens. Labels are the ids of target and end, or of the assistant's turns,
    and IGNORED elsewhere. An example of which no target is left is dropped.
    """
    encoded, counts = completions(tokenizer, rows, prompts, max_length)
    return [labelled(one) for one in encoded if one is not None], counts


def labelled(example: Encoded) -> dict[str, list[int]]:
    """An example's ids, and its labels: the ids, but IGNORED at what is no target."""
    labels = [IGNORED] * len(example.ids)
    for place in example.targets:
        labels[place] = example.ids[place]
    return {"input_ids": [*example.ids], "labels": labels}


def fine_tune(
    base: str | Path,
    rows: list[dict[str, Any]],
    prompts: Prompts,
    output: str | Path,
    settings: dict[str, Any],
    seed: int,
    partial: str | Path,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    along: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Fine-tunes the base model on the rows and writes model or adapter, and manifest.json, into `output`.

    Trained weights are always float32 (a step of 1e-7 is lost in bfloat16); dtype bfloat16 means mixed precision, with
    a bfloat16 base only under adapters.

    base: directory of a prepared model; rows: the subset, in Alpaca's fields; output: a new directory, which the caller
    renames when this returns; settings: the configuration's `finetune` as plain values; partial: where checkpoints
    live between a kill and the next start, removed by the caller at the end; log: called as log(metrics, step) at each
    optimiser step; along: what else goes along with the training. Returns the numbers of the training. Raises DataError
    where no row can be trained on, and where the weights end as NaN or infinite.
    """
    base, output, partial = Path(base), Path(output), Path(partial)
    output.mkdir(parents=True, exist_ok=True)
    partial.mkdir(parents=True, exist_ok=True)
    lora = settings.get("lora")
    tokenizer = load_tokenizer(base)
    config = AutoConfig.from_pretrained(base, trust_remote_code=trusts(base))
    length = longest(settings["max_length"], max_positions(config))
    examples, counts = tokenize(tokenizer, rows, prompts, length)
    log_cut(len(rows), counts, length)
    _check_shared(len(examples), settings)
    # Of several processes (`training.distributed`) the first one writes.
    first = settings.get("processes", 1) == 1 or os.environ.get("RANK") == "0"
    watched = [*along, Checkpoints(60 * settings["checkpoint_minutes"]), *([Watch(log)] if first else [])]
    trainer = trainer_of(base, tokenizer, examples, settings, seed, partial, watched)
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    with trainer.args.main_process_first():
        resumed = newest_complete(partial)
    if resumed:
        logger.info("Resuming from %s", resumed.name)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)

    _check_finite(trainer)
    if trainer.is_fsdp_enabled:  # each process has a part of the weights
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")  # of others nothing is saved
        trainer.save_model(str(output))
    elif first:
        _save(trainer.model, tokenizer, output, adapter=lora is not None)
    if first:
        (output / "training_args.bin").unlink(missing_ok=True)
        _describe(output, base, lora is not None, seed=seed, examples=len(examples), parameters=trainable)
    return {
        "steps": trainer.state.global_step,
        "examples": len(examples),
        **counts,
        "trainable_parameters": trainable,
        **_losses(trainer.state, len(examples), settings["epochs"]),
        "resumed_from_step": int(resumed.name.split("-")[1]) if resumed else 0,
    }


def trainer_of(
    base: str | Path,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    settings: dict[str, Any],
    seed: int,
    folder: str | Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """The trainer of a base model, freshly loaded, on tokenised examples (`tokenize`), as the settings say.

    folder: where it may write. Adapters begin as drawn with the settings' `init_seed`, or else with the training's.
    Raises ConfigError where nothing would be learned.
    """
    _check_learns(len(examples), settings)
    set_precision(tf32=False)  # before the first training of a process as before the others
    lora = settings.get("lora")
    dtype = settings["dtype"] if lora else "float32"
    # The trainer puts each of several processes' models on a device of its own.
    device = settings["device"] if settings.get("processes", 1) == 1 else "cpu"
    # Adapters are put on linear layers; a model whose weights are trained is saved.
    model = load_model(base, dtype=dtype, device=device, experts_apart=lora is not None)
    model.requires_grad_(lora is None)
    # Of several processes each puts its model elsewhere later.
    frozen = linear_layers(model).values() if lora and settings.get("processes", 1) == 1 else ()
    if lora is None:
        # Checkpoints by the names in memory: the trainer takes no others up again, and says nothing of those it lacks.
        model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
    adapters = _adapters(model, lora) if lora else None
    with _refusal_of_adapters(base, lora is not None):
        if lora and lora.get("init_seed") is not None:
            set_seed(lora["init_seed"])
            model, adapters = get_peft_model(model, adapters), None
        trainer = _trainer(model, adapters, tokenizer, examples, settings, seed, Path(folder), callbacks)
    trainer.remove_callback(PrinterCallback)  # it prints to the terminal what Watch logs
    set_forwards(onednn_forwards(frozen))
    prepare_loss(trainer.model, examples[0]["input_ids"])
    return trainer


@contextmanager
def _refusal_of_adapters(base: str | Path, wanted: bool) -> Iterator[None]:
    """Says in a sentence that peft has no adapters for a model's layers, as for some of Mamba's."""
    try:
        yield
    except ValueError as error:
        if not wanted or "PEFT" not in str(error):
            raise
        raise ModelError(
            f"{Path(base).name}: it cannot be trained with adapters ({reason(error)}); set finetune.lora: null to "
            "train all its weights, and a learning_rate for that."
        ) from None


def _trainer(
    model: Any,
    adapters: LoraConfig | None,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
    settings: dict[str, Any],
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> SFTTrainer:
    """trl's trainer of a model, with adapters that it puts there, or has already."""
    trainer = SFTTrainer(
        model=model,
        args=_options(settings, seed, folder, _recomputes(model)),
        data_collator=DataCollatorForLanguageModeling(
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=adapters,
        callbacks=list(callbacks),
    )
    # trl divides each batch's summed loss by the loss tokens of the whole step. transformers counts these only for a
    # model whose forward pass takes further arguments: without, as in some with code of their own, the step would be of
    # the mean of its batches' means.
    trainer.model_accepts_loss_kwargs = True
    return trainer


def _check_learns(n: int, settings: dict[str, Any]) -> None:
    """Raises ConfigError for a training of one step in a warm-up, which begins at a learning rate of 0."""
    batches = math.ceil(n / settings["batch_size"])
    steps = math.ceil(math.ceil(batches / settings["accumulation"]) * settings["epochs"])
    if steps <= 1 and settings["warmup_ratio"] > 0 and settings["scheduler"] != "constant":
        raise ConfigError(
            f"config: finetune.warmup_ratio: {n} examples make one step, at which a warm-up holds the learning rate at "
            "0, so that nothing would be learned; set warmup_ratio: 0, or lower batch_size or accumulation"
        )


def _check_shared(n: int, settings: dict[str, Any]) -> None:
    """Raises ConfigError where processes cannot share the last batch: accelerate would fill it with examples again."""
    share, size = settings.get("processes", 1), settings["batch_size"]
    if share > 1 and n % size:
        raise ConfigError(
            f"config: finetune.processes: {n} examples leave {several(n % size, 'example')} for the last batch of "
            f"{size}, which {share} processes cannot share without repeating some; choose a batch_size that divides "
            f"{n}, bins of such a size, or processes: 1"
        )


def log_cut(n_rows: int, counts: dict[str, int], length: int) -> None:
    """Says in the log how many rows are cut off or dropped. Raises DataError where all of them are dropped."""
    if counts["dropped"] == n_rows:
        raise DataError(
            f"No example of {n_rows} can be trained on: each query alone has {length} tokens or more. "
            "Raise finetune.max_length."
        )
    warn_of_cuts(n_rows, counts, length)


def _recomputes(model: torch.nn.Module) -> bool:
    """Whether a model's activations are computed again in the backward pass, to save memory."""
    large = sum(p.numel() for p in model.parameters()) > CHECKPOINTING_ABOVE_PARAMETERS
    if large and not model.supports_gradient_checkpointing:
        logger.warning("%s cannot recompute activations, so that training it takes more memory", type(model).__name__)
    return large and model.supports_gradient_checkpointing


def _options(settings: dict[str, Any], seed: int, partial: Path, recomputes: bool) -> SFTConfig:
    """The configuration's settings in trl's words. recomputes: as `_recomputes` says of the model."""
    device, share = resolve_device(settings["device"]), settings.get("processes", 1)
    if settings["batch_size"] % share:
        raise ConfigError(
            f"config: finetune.processes: {share} processes cannot share batches of {settings['batch_size']} examples "
            "evenly; make finetune.batch_size a multiple of them"
        )
    options = SFTConfig(
        output_dir=str(partial),
        seed=seed,
        data_seed=seed,
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"] // share,
        gradient_accumulation_steps=settings["accumulation"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["scheduler"],
        warmup_steps=settings["warmup_ratio"],  # below 1 it is a share of the steps
        weight_decay=settings["weight_decay"],
        max_length=None,  # tokenize() has cut already, and counted
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=device.type == "cpu",
        ddp_backend="gloo" if device.type == "cpu" and share > 1 else None,
        router_aux_loss_coef=0.0,  # of a mixture: what is minimised is the loss of the responses alone
        activation_checkpointing=recomputes,
        dataloader_pin_memory=device.type == "cuda",
        save_strategy="no",  # by time instead: see _Checkpoints
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    # The environment (ACCELERATE_MIXED_PRECISION) has no say in the arithmetic.
    options.mixed_precision = "bf16" if options.bf16 else "no"
    # Several visible GPUs would make the Trainer ask for nn.DataParallel, which trl refuses; a job trains on one.
    _ = options.device
    options._n_gpu = min(options.n_gpu, 1)
    return options


def _check_finite(trainer: SFTTrainer) -> None:
    """Raises DataError where a training has diverged: by its losses, and by the weights that its last step made.

    Of the weights that FSDP shares among processes each looks at its own.
    """
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = [getattr(p, "to_local", lambda p=p: p)() for p in trainer.model.parameters() if p.requires_grad]
    if not (all(map(math.isfinite, losses)) and all(bool(weights.isfinite().all()) for weights in trained)):
        raise DataError(
            "The training has diverged: its loss or its weights are NaN or infinite. Lower finetune.learning_rate."
        )


def _losses(state: TrainerState, examples: int, epochs: float) -> dict[str, float]:
    """The loss of the first step, and the mean of the last epoch's; says them in the log."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    last_epoch = losses[-max(1, round(len(losses) / max(epochs, 1))) :]
    first, final = losses[0], sum(last_epoch) / len(last_epoch)
    logger.info(
        "%d examples in %d steps; loss of the first step %.4f, of the last epoch %.4f",
        examples,
        state.global_step,
        first,
        final,
    )
    return {"first_loss": first, "final_loss": final}


def _adapters(model: torch.nn.Module, lora: dict[str, Any]) -> LoraConfig:
    return LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=sorted(linear_layers(model)),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in linear_layers(model).values()),  # its weight is transposed
        task_type="CAUSAL_LM",
    )


def save_checkpoint(model: Any, tokenizer: Any, output: Path, base: str | Path, adapter: bool, **facts: float) -> None:
    """Writes a model that is being trained as `fine_tune` writes it at the end; facts: for its manifest, more."""
    _save(model, tokenizer, output, adapter)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _describe(output, Path(base), adapter, parameters=parameters, **facts)


def _describe(output: Path, base: Path, adapter: bool, **facts: float) -> None:
    """Writes the manifest of a checkpoint. Raises ModelError where its weights were not written."""
    if not any(output.glob("*.safetensors")):
        raise ModelError(f"{base.name}: the trainer has saved no weights; look at the file of finetune.accelerate.")
    if trusts(base):
        facts["source"] = {"trust_remote_code": True}  # whoever opens it runs the base's code
    digest = artifacts.content_digest(base)
    artifacts.write_manifest(output, kind="lora" if adapter else "full", base=base.name, base_digest=digest, **facts)


def _save(model: Any, tokenizer: Any, output: Path, adapter: bool) -> None:
    type(model).save_pretrained(model, output)  # by the names that a model's files have
    # A template of a model card, with nothing filled in.
    (output / "README.md").unlink(missing_ok=True)
    if not adapter:
        tokenizer.save_pretrained(output)
        return
    # peft writes a set, in an order that changes from process to process.
    path = output / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
