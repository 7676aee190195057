"""The network of a configuration, whichever family it is of: what is built, its initial values."""

from __future__ import annotations

from torch import Tensor

from nt_pretrain.config.schema import ModelSection
from nt_pretrain.models import multihead
from nt_pretrain.models.groups import group_of
from nt_pretrain.models.init import initial_factors, initial_values
from nt_pretrain.models.llama import Context, make_context
from nt_pretrain.models.mlp import MlpModel, build_mlp
from nt_pretrain.models.mlp_init import initial_mlp_values
from nt_pretrain.models.multihead import MultiHead
from nt_pretrain.models.sharing import sharing_of
from nt_pretrain.models.vision import STAGES, VisionModel, build_vision
from nt_pretrain.models.vision_init import initial_vision_values


def vision_of(model: ModelSection, label_smoothing: float = 0.0) -> VisionModel:
    """The network for pictures that ``model`` describes.

    Raises:
        ValueError: there is none; a line for each reason.
    """
    assert model.family != "llama" and model.family != "mlp"
    return VisionModel(
        family=model.family,
        classes=model.classes,
        heads=model.heads,
        blocks_in_head=model.blocks_in_head,
        head_slim=model.head_slim,
        trunks=model.trunks,
        small_stem=model.small_stem,
        output_bias=model.output_bias,
        zero_last_norm=model.zero_last_norm,
        label_smoothing=label_smoothing,
        channels=model.channels,
        sharing=sharing_of(model),
    )


def mlp_of(model: ModelSection, label_smoothing: float = 0.0) -> MlpModel:
    """The network for rows that ``model`` describes.

    Raises:
        ValueError: there is none.
    """
    return MlpModel(
        features=model.features,
        widths=model.widths,
        classes=model.classes,
        heads=model.heads,
        blocks_in_head=model.blocks_in_head,
        head_slim=model.head_slim,
        trunks=model.trunks,
        label_smoothing=label_smoothing,
        sharing=sharing_of(model),
    )


def build(model: ModelSection, heads: range | None = None, *, label_smoothing: float = 0.0) -> MultiHead:
    """The network with all heads, or only those numbered ``heads``. Values are torch's defaults.

    Args:
        label_smoothing: of the loss of networks for pictures and rows.
    """
    if model.data == "pictures":
        return build_vision(vision_of(model, label_smoothing), heads)
    if model.data == "rows":
        return build_mlp(mlp_of(model, label_smoothing), heads)
    return multihead.build(model, heads)


def values_of(name: str, shape: tuple[int, ...], index: Tensor, *, seed: int, model: ModelSection) -> Tensor:
    """Initial values (fp32) of parameter ``name`` of ``shape`` at flat global element numbers ``index`` (int64)."""
    if group_of(name) == "factor":
        return initial_factors(name, shape, index, seed=seed, model=model)
    if model.data == "pictures":
        return initial_vision_values(name, shape, index, seed=seed, model=vision_of(model))
    if model.data == "rows":
        return initial_mlp_values(name, shape, index, seed=seed)
    return initial_values(name, index, seed=seed, model=model)


def context_of(model: ModelSection, documents: Tensor | None) -> Context | None:
    """What trunk and heads need beside their inputs: of text [S, T] its documents; of others nothing."""
    if documents is None:
        return None
    # Rows of every member, of the same documents.
    return make_context(model, documents.repeat(sharing_of(model).copies, 1) if model.document_mask else documents)


def block_count(model: ModelSection) -> int:
    """Blocks on the path of one head: trunk blocks plus ``blocks_in_head``."""
    if model.family == "llama":
        return model.layers
    return len(model.widths) if model.family == "mlp" else sum(STAGES[model.family])
