"""A model's weights as servers read them: a folder of safetensors with configuration and tokenizer."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from icprobe import artifacts
from icprobe.engine.checkpoints import load_fine_tuned
from icprobe.engine.experts import stack
from icprobe.engine.models import DTYPES, load_model
from icprobe.engine.quantization import cast_rest, quantised

NAMES = {"float32": "F32", "bfloat16": "BF16"}  # safetensors' own


@contextmanager
def served_folder(base: str | Path, checkpoint: str | Path | None, dtype: str) -> Iterator[Path]:
    """A folder with a model's weights in this dtype, for as long as the block runs: its own, where it is such a one.

    Otherwise one in TMPDIR, with adapters merged into the base in float32, or with weights of another dtype cast. So
    base and fine-tuned models are computed alike by a server that takes the dtype from the weights. Raises
    ArtifactError where a file is damaged.
    """
    source = Path(checkpoint or base)
    manifest = artifacts.verify(source)
    adapters, whole = manifest.get("kind") == "lora", not quantised(manifest.get("source", {}).get("load"))
    if not adapters and whole and _dtypes(source) == {NAMES[dtype]}:
        yield source.absolute()
        return
    with artifacts.temporary_directory() as folder:
        for path in Path(base if adapters else source).iterdir():
            if path.is_file() and ".safetensors" not in path.name and path.name != artifacts.MANIFEST:
                shutil.copyfile(path, Path(folder, path.name))
        if adapters:
            model = load_fine_tuned(source, base, device="cpu")
            stack(model)  # experts stand apart for their adapters, and are saved together
        else:
            # What is served is what its bits say, as with adapters.
            how = {"dtype": dtype} if whole else {"dequantised": True}
            model = load_model(source, device="cpu", experts_apart=False, **how)
        cast_rest(model, DTYPES[dtype])
        model.save_pretrained(folder)
        del model  # the server is about to need the memory
        yield Path(folder)


def _dtypes(folder: Path) -> set[str]:
    """The dtypes of the weights in a folder, as safetensors name them."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return found
