"""What the engines can do with a model: found out once, when it is prepared, and kept in its manifest."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from icprobe import artifacts
from icprobe.errors import ArtifactError, ModelError


@dataclass(frozen=True)
class Capabilities:
    """What the engines can do with a model, as `admission` found out by trying; they take it as given.

    attributed_share, expert_share, unreached, left_out: of θ, as `theta.Theta` says. packs: sequences are packed, not
    padded. pads_left: a prompt is answered the same beside longer ones. in_step: several batches can go back in step.
    refused_dtypes: those in which the engines come out wrong, and what was seen. shares_input: the layers of θ, by
    name, whose input is that of the layer before, as keys and values take that of queries. logit_scale, logit_cap: what
    is done to the products of hidden states and output embedding (`head.Shape`). causal: no token changes what stands
    before it, as with every model that is not refused. still_biases: the layers of θ, by name, whose bias has a
    gradient of 0, whatever the loss, as that of keys without rotary positions: softmax sees only their differences.
    """

    attributed_share: float
    packs: bool = False
    pads_left: bool = False
    in_step: bool = False
    refused_dtypes: dict[str, str] = field(default_factory=dict)
    shares_input: tuple[str, ...] = ()
    expert_share: float = 1.0
    unreached: tuple[str, ...] = ()
    left_out: dict[str, float] = field(default_factory=dict)
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    causal: bool = True
    still_biases: tuple[str, ...] = ()

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
        known = {name: manifest[name] for name in names}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})

    def check_dtype(self, dtype: str, section: str = "attribution") -> None:
        """Raises ModelError where the engines come out wrong in this dtype, which the configuration's section says."""
        if said := self.refused_dtypes.get(dtype):
            raise ModelError(f"{said}; set {section}.dtype: float32.")
