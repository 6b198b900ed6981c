"""A small decoder-only transformer that learns linear regression in context: random functions, model, training.

Garg et al. (arXiv 2208.01066): GPT-2's blocks over vectors instead of words, points as (x, y) tokens in turn, squared
error of each y predicted at its x. One model is trained for all dimensions (coordinates beyond a function's own are 0,
which serves as their curriculum) and all levels of noise (σ is the first token, so that the best predictor is a ridge
regression of known penalty).
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2Model, get_cosine_schedule_with_warmup

from icprobe import artifacts
from icprobe.errors import ModelError
from icprobe.progress import Progress

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
WARMUP = 0.05  # share of the steps
CLIP = 1.0  # norm of the gradient, at most
THREADS = 1  # of torch: sums of another number of threads differ in their last bits; the products are small
CHECKPOINT_SECONDS = 30
LOGGED_STEPS = 50


class Regressor(nn.Module):
    """GPT-2's blocks between a linear map of (x, y, σ) vectors and a linear map to one number."""

    def __init__(self, dimension: int, points: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.read_in = nn.Linear(dimension + 2, width)
        self.blocks = GPT2Model(
            GPT2Config(
                vocab_size=1,  # no words: it reads vectors
                bos_token_id=None,
                eos_token_id=None,
                n_positions=2 * (points + 1) + 1,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )
        self.read_out = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Predictions [b, k] of each y from its x and the points before it.

        x: [b, k, d] with d up to the model's dimension; y: [b, k]; noise: σ [b]. Tokens: σ, x_1, y_1, …, x_k, y_k.
        """
        tokens = x.new_zeros(x.shape[0], 2 * x.shape[1] + 1, self.dimension + 2)
        tokens[:, 0, -1] = noise
        tokens[:, 1::2, : x.shape[2]] = x
        tokens[:, 2::2, -2] = y
        hidden = self.blocks(inputs_embeds=self.read_in(tokens)).last_hidden_state
        return self.read_out(hidden[:, 1::2])[..., 0]


def regressor(settings: dict[str, Any], seed: int) -> Regressor:
    """A new model; settings: the configuration's `synthetic` as plain values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {name: settings[name] for name in ("points", "width", "layers", "heads")}
        return Regressor(max(settings["dimensions"]), **sizes)


def load(directory: str | Path, settings: dict[str, Any]) -> Regressor:
    """A trained model in evaluation mode. Raises ArtifactError where a file is damaged."""
    artifacts.verify(directory)
    model = regressor(settings, 0)
    model.load_state_dict(load_file(Path(directory, WEIGHTS)))
    return model.eval().requires_grad_(False)


# --- random functions -------------------------------------------------------------------------------------------


def draw(
    functions: int, points: int, dimensions: int | np.ndarray, noise: float | np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random functions y = w·x + σε with w ~ N(0, I_d), x ~ N(0, I_d), ε ~ N(0, 1), and points of each.

    Returns x [functions, points, d] and y [functions, points], float64. dimensions: d, or one for
    each function [functions]; d is then the largest and coordinates beyond a function's own are 0. noise: σ, or one for
    each function.
    """
    own = np.broadcast_to(dimensions, functions)
    d = int(own.max())
    w = rng.standard_normal((functions, d, 1))
    x = rng.standard_normal((functions, points, d)) * (np.arange(d) < own[:, None])[:, None]
    sigma = np.broadcast_to(noise, functions)[:, None]
    return x, (x @ w)[..., 0] + sigma * rng.standard_normal((functions, points))


# --- training ---------------------------------------------------------------------------------------------------


def batch(settings: dict[str, Any], seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The functions of a step: x [b, k, d], y [b, k], σ [b], and the variance of their y under the prior [b].

    Each function has a dimension and a noise of its own, drawn from the lists. A step depends on its number and the
    seed alone, so that a training which goes on needs no state of a generator.
    """
    rng = np.random.default_rng([seed, 0, step])
    dimensions = rng.choice(settings["dimensions"], settings["batch_size"])
    noise = rng.choice(settings["noise"], settings["batch_size"])
    # One more than the points: the last is predicted from all others.
    x, y = draw(settings["batch_size"], settings["points"] + 1, dimensions, noise, rng)
    if x.shape[2] < max(settings["dimensions"]):  # none has the largest
        x = np.pad(x, [(0, 0), (0, 0), (0, max(settings["dimensions"]) - x.shape[2])])
    return tuple(torch.from_numpy(array).float() for array in (x, y, noise, dimensions + noise**2))


def train(
    settings: dict[str, Any],
    seed: int,
    output: str | Path,
    partial: str | Path,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, float]:
    """Trains a model and writes its weights and manifest.json into `output`, a new directory.

    settings: the configuration's `synthetic` as plain values; partial: a folder from which a killed training goes on,
    to the same weights to the last bit. The loss is the squared error of every y in the prompt, relative to the
    variance of y under the prior. Returns the numbers of the training. Raises ModelError where it diverges.
    """
    torch.set_num_threads(THREADS)
    model = regressor(settings, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=0.0, fused=True)
    steps = settings["steps"]
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = Path(partial, "checkpoint.pt")
    first, losses = _resume(checkpoint, parts)
    saved = time.monotonic()
    with Progress(total=steps, initial=first, desc="training", unit="step") as progress:
        for step in range(first, steps):
            x, y, noise, variance = batch(settings, seed, step)
            loss = ((model(x, y, noise) - y) ** 2 / variance[:, None]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            losses = [*losses[1 - LOGGED_STEPS :], loss.item()]
            if not np.isfinite(losses[-1]):
                raise ModelError(
                    f"synthetic: the training diverges at step {step + 1} (loss {losses[-1]}); lower "
                    f"synthetic.learning_rate, which is {settings['learning_rate']}."
                )
            if (step + 1) % LOGGED_STEPS == 0:
                log({"train/loss": float(np.mean(losses))}, step + 1)
            if time.monotonic() - saved >= checkpoint_seconds and step + 1 < steps:
                state = {name: part.state_dict() for name, part in parts.items()}
                with artifacts.atomic_path(checkpoint) as aside:
                    torch.save({"step": step + 1, "losses": losses, **state}, aside)
                saved = time.monotonic()
            progress.update(1)
    Path(output).mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), Path(output, WEIGHTS))
    numbers = {
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final_loss": float(np.mean(losses)),
        "resumed_from_step": first,
    }
    artifacts.write_manifest(output, seed=seed, settings=settings, parameters=numbers["parameters"])
    logger.info("%d steps; loss of the last %d %.4f of the prior's variance", steps, len(losses), numbers["final_loss"])
    return numbers


def _resume(checkpoint: Path, parts: dict[str, Any]) -> tuple[int, list[float]]:
    """(steps done, their last losses) of what a killed training saved, after loading it into the parts."""
    if not checkpoint.exists():
        return 0, []
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    logger.info("Resuming from step %d", saved["step"])
    return saved["step"], saved["losses"]
