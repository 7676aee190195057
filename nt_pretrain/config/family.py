"""Options that do not fit the family of the network: text has no classes, pictures no vocabulary."""

from __future__ import annotations

from nt_pretrain.config.schema import Config
from nt_pretrain.models.network import vision_of

OF_TEXT = {
    "model": (
        "vocab_size", "hidden", "intermediate", "layers", "attention_heads", "kv_heads", "rope_base", "norm_eps",
        "init_std", "embedding_init_std", "rank", "factor_gain", "document_mask", "final_norm_twice",
    ),
    "data": ("tokenizer", "sequence_length", "packing"),
    "train": ("loss_chunk",),
    "eval": ("calibration_sequences", "authors_divisor"),
}  # fmt: skip
"""Options that networks for pictures do not read."""
OF_PICTURES = {
    "model": ("classes", "small_stem", "output_bias", "zero_last_norm"),
    "data": ("picture_size", "picture_shorter", "picture_area", "picture_jitter"),
    "train": ("label_smoothing",),
    "parallel": ("batch_norm",),
}
"""Options that a LLaMA does not read."""


def family_problems(config: Config) -> list[str]:
    """What is set, to something else than its default, although the family does not read it; and what it cannot do."""
    family, pictures = config.model.family, config.model.sees_pictures
    found = []
    for section, keys in (OF_TEXT if pictures else OF_PICTURES).items():
        values = getattr(config, section)
        for key in keys:
            value = getattr(values, key)
            if value != type(values).model_fields[key].default:
                found.append(f"{section}.{key}: {value} has no effect with model.family {family}; leave it out")
    return found + (_pictures(config) if pictures else [])


def _pictures(config: Config) -> list[str]:
    family, parallel = config.model.family, config.parallel
    found = []
    if parallel.activation_checkpoint == "selective":
        found.append(
            f"parallel.activation_checkpoint: selective is of feed-forward layers, and {family} has none; set full or "
            "none"
        )
    if config.train.precision == "pure_bf16":
        found.append(
            f"train.precision: pure_bf16 does not go with {family}, whose batch norms need fp32; set bf16, which keeps "
            "weights, moments and norms in fp32"
        )
    try:
        vision_of(config.model, config.train.label_smoothing)
    except ValueError as error:
        found += str(error).split("\n")
    return found
