"""Orders quantizations from coarse to fine, by the bits that each keeps of a weight. It knows names, not what is in a file."""

from __future__ import annotations

from storyfi_lite.errors import BadInput
from storyfi_lite.models.registry import GGUFFile

# bits a weight, of the layers (llama-quantize's own table)
QUANT_BITS = {"IQ1_S": 1.6, "TQ1_0": 1.7, "IQ1_M": 1.8, "IQ2_XXS": 2.1, "TQ2_0": 2.1, "IQ2_XS": 2.3, "IQ2_S": 2.5, "Q2_K": 2.6,
              "IQ2_M": 2.7, "IQ3_XXS": 3.1, "IQ3_XS": 3.3, "IQ3_S": 3.4, "Q3_K_S": 3.5, "IQ3_M": 3.7, "Q3_K": 3.9, "Q3_K_M": 3.9,
              "Q3_K_L": 4.2, "MXFP4": 4.3, "IQ4_XS": 4.3, "IQ4_NL": 4.5, "NVFP4": 4.5, "Q4_0": 4.5, "Q4_K_S": 4.6, "Q4_K": 4.8,
              "Q4_K_M": 4.8, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_K_S": 5.5, "Q5_K": 5.7, "Q5_K_M": 5.7, "Q5_1": 6.0, "Q6_K": 6.6, "Q8_0": 8.5,
              "Q8_K": 8.6, "F16": 16.0, "BF16": 16.0, "F32": 32.0}  # fmt: skip


def finer_than(minimum: str, file: GGUFFile) -> bool:
    """Return whether the file is at least as fine as the quantization `minimum`. Raises BadInput if that is not known."""
    if minimum.upper() not in QUANT_BITS:
        raise BadInput(f"no quantization is named {minimum!r}; there are {', '.join(QUANT_BITS)}")
    return bits(file.quant, 99.0) >= QUANT_BITS[minimum.upper()]


def bits(quant: str, unknown: float) -> float:
    """Return a quantization's bits a weight; of a variant, such as UD-Q4_K_XL, those of what it varies."""
    plain = quant.upper().removeprefix("UD-")
    known = [name for name in QUANT_BITS if plain.startswith(name)]
    return QUANT_BITS[max(known, key=len)] if known else unknown
