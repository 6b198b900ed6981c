"""Which dtypes a prepared model can be used in; told by its manifest, without loading it."""

from typing import Any

from icprobe.errors import ModelError


def refuse_dtype(manifest: dict[str, Any], dtype: str) -> None:
    """Raises ModelError where the engines came out wrong in this dtype when the model was prepared."""
    if said := manifest.get("refused_dtypes", {}).get(dtype):
        raise ModelError(f"{said}; set attribution.dtype: float32.")
