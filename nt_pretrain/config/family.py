"""Options that do not fit the family of the network: text has no classes, pictures no vocabulary, rows no pixels."""

from __future__ import annotations

from nt_pretrain.config.model_section import Kind
from nt_pretrain.config.schema import Config
from nt_pretrain.models.network import mlp_of, vision_of

Options = dict[str, tuple[str, ...]]

READ_BY: tuple[tuple[tuple[Kind, ...], Options], ...] = (
    (
        ("text",),
        {
            "model": (
                "vocab_size", "hidden", "intermediate", "ffn", "layers", "attention_heads", "head_width", "kv_heads",
                "rope_base", "norm_eps", "init_std", "embedding_init_std", "rank", "factor_gain", "document_mask",
                "final_norm_twice",
            ),
            "data": ("tokenizer", "sequence_length", "packing"),
            "train": ("loss_chunk",),
            "eval": ("calibration_sequences", "authors_divisor"),
        },
    ),
    (("pictures", "rows"), {"model": ("classes",), "train": ("label_smoothing",)}),
    (
        ("pictures",),
        {
            "model": ("channels", "small_stem", "output_bias", "zero_last_norm"),
            "data": ("picture_size", "picture_shorter", "picture_area", "picture_jitter"),
            "parallel": ("batch_norm",),
        },
    ),
    (("rows",), {"model": ("features", "widths")}),
)  # fmt: skip
"""Options that only networks for some kinds of data read, by those kinds."""


def unread(data: Kind) -> Options:
    """Options, by section, that networks for ``data`` do not read."""
    found: Options = {}
    for kinds, options in READ_BY:
        for section, keys in options.items() if data not in kinds else []:
            found[section] = (*found.get(section, ()), *keys)
    return found


def family_problems(config: Config) -> list[str]:
    """What is set, to something else than its default, although the family does not read it; and what it cannot do."""
    found = []
    for section, keys in unread(config.model.data).items():
        values = getattr(config, section)
        for key in keys:
            value = getattr(values, key)
            if value != type(values).model_fields[key].default:
                found.append(
                    f"{section}.{key}: {value} has no effect with model.family {config.model.family}; leave it out"
                )
    return found + (_classifier(config) if config.model.classifies else [])


def _classifier(config: Config) -> list[str]:
    family, parallel = config.model.family, config.parallel
    found = []
    if parallel.activation_checkpoint == "selective":
        found.append(
            f"parallel.activation_checkpoint: selective is of feed-forward layers, and {family} has none; set full or "
            "none"
        )
    if config.model.sees_pictures and config.train.precision == "pure_bf16":
        found.append(
            f"train.precision: pure_bf16 does not go with {family}, whose batch norms need fp32; set bf16, which keeps "
            "weights, moments and norms in fp32"
        )
    try:
        (vision_of if config.model.sees_pictures else mlp_of)(config.model, config.train.label_smoothing)
    except ValueError as error:
        found += str(error).split("\n")
    return found
