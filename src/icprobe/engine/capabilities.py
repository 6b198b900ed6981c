"""What the engines can do with a model: found out once, when it is prepared, and kept in its manifest."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from icprobe import artifacts
from icprobe.errors import ArtifactError, ModelError


@dataclass(frozen=True)
class Capabilities:
    """What the engines can do with a model, as `admission` found out by trying; they take it as given.

    attributed_share: share of the blocks' weights that θ covers, the rest being norms and the like. packs: sequences
    are packed, not padded. in_step: several batches can go back in step. refused_dtypes: those in which the engines
    come out wrong, and what was seen. shares_input: the layers of θ, by name, whose input is that of the layer before,
    as keys and values take that of queries. causal: no token changes what stands before it; linear_head: logits are the
    output embedding of the last hidden state and no more; both hold of every model that is not refused.
    """

    attributed_share: float
    packs: bool
    in_step: bool
    refused_dtypes: dict[str, str]
    shares_input: tuple[str, ...] = ()
    causal: bool = True
    linear_head: bool = True

    @classmethod
    def of(cls, directory: str | Path) -> "Capabilities":
        """Of a prepared model, by its manifest. Raises ArtifactError where another version of icprobe prepared it."""
        manifest: dict[str, Any] = artifacts.read_manifest(directory)
        names = [field.name for field in fields(cls)]
        if absent := [name for name in names if name not in manifest]:
            raise ArtifactError(
                f"{Path(directory, artifacts.MANIFEST)}: has no entry for {', '.join(absent)}: another version of "
                f"icprobe prepared this model. Remove {directory}, and it will be prepared again."
            )
        return cls(**{**{name: manifest[name] for name in names}, "shares_input": tuple(manifest["shares_input"])})

    def check_dtype(self, dtype: str) -> None:
        """Raises ModelError where the engines come out wrong in this dtype."""
        if said := self.refused_dtypes.get(dtype):
            raise ModelError(f"{said}; set attribution.dtype: float32.")
