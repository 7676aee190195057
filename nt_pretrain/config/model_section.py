"""The options of the network: its family, its size, and how it is cut into trunk and heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nt_pretrain.config.section import NonNegative, Positive, Section

Kind = Literal["text", "pictures", "rows"]
"""Of data: text is predicted token by token; a picture or a row of numbers has one label."""


class ModelSection(Section):
    """A network cut into one trunk and M heads. Head m owns its last blocks, final norm and output layer.

    Of the options after ``dropout`` those of the other family may not be given.
    """

    family: Literal["llama", "resnet18", "resnet34", "resnet50", "resnet20", "wide_resnet28_10", "mlp"] = Field(
        "llama", description="The network: llama reads text; mlp rows of numbers; the others pictures."
    )
    heads: Positive = Field(1, description="M, the heads of the ensemble. 1 is an ordinary single model.")
    blocks_in_head: NonNegative = Field(
        0,
        description="Blocks each head owns. 0: norm and output only; all blocks: a deep ensemble, embeddings or stems "
        "too.",
    )
    head_slim: Positive = Field(
        1,
        description="Blocks of a head are so many times narrower than those of the trunk: attention heads and hidden "
        "units of a llama, whose residual stream keeps its width; channels; hidden layers of an mlp.",
    )
    trunks: Literal[1, 2] = Field(
        1, description="2: two trunks side by side, all heads read what both put out (bridge networks of type II)."
    )
    sharing: Literal["none", "rank_one", "inputs", "low_rank"] = Field(
        "none",
        description="How members share the weights of one head: rank_one: as BatchEnsemble; inputs (pictures): one "
        "network that is given as many pictures as it has members, as MIMO; low_rank (text): frozen, as LoRA-Ensemble.",
    )
    members: Positive = Field(1, description="Members that share weights (sharing), each a voice of its own.")
    factor_init: Literal["normal", "signs"] = Field(
        "normal", description="sharing: rank_one: initial factors: N(1, 0.5), or 1 and -1 with equal chance."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Chance of every hidden unit (of feed-forward layers, attention heads, channels inside of residual "
        "blocks, hidden layers of an mlp) to be dropped for a sample, in training.",
    )
    vocab_size: Positive = Field(32000, description="Text: tokens of the tokenizer; must equal the tokenizer's size.")
    hidden: Positive = Field(768, description="Text: width of the residual stream.")
    intermediate: Positive = Field(2048, description="Text: hidden units of the feed-forward layer.")
    ffn: Literal["swiglu", "relu", "relu2"] = Field(
        "swiglu",
        description="Text: the feed-forward layer. swiglu: three matrices; relu, relu2: two, with ReLU or its square "
        "between them, whose hidden units can be exactly 0.",
    )
    layers: Positive = Field(12, description="Text: blocks on the path of one head: trunk blocks plus blocks_in_head.")
    attention_heads: Positive = Field(
        12, description="Text: attention heads of a block; must divide hidden unless head_width is given."
    )
    head_width: Positive | None = Field(
        None, description="Text: dimensions of an attention head, an even number; default hidden / attention_heads."
    )
    kv_heads: Positive | None = Field(
        None, description="Text: key/value heads (grouped-query); default attention_heads."
    )
    rope_base: Annotated[float, Field(gt=0)] = Field(
        10000.0, description="Text: base of the rotary position embedding."
    )
    norm_eps: Annotated[float, Field(gt=0)] = Field(1e-6, description="Text: epsilon of RMSNorm.")
    init_std: Annotated[float, Field(gt=0)] = Field(
        0.02, description="Text: standard deviation of initial linear weights."
    )
    embedding_init_std: Annotated[float, Field(gt=0)] = Field(
        0.02, description="Text: standard deviation of initial embeddings (the authors' code: 0.632)."
    )
    rank: Positive = Field(8, description="Text, sharing: low_rank: rank of what a member adds to a matrix.")
    factor_gain: Annotated[float, Field(gt=0)] = Field(
        10.0, description="Text, sharing: low_rank: gain of the Xavier-uniform initial A (the authors': 10); B is 0."
    )
    document_mask: bool = Field(False, description="Text: attention stays inside a packed document.")
    final_norm_twice: bool = Field(False, description="Text, parity: the authors' heads apply the final norm twice.")
    classes: Positive = Field(
        1000, description="Pictures, rows: classes of the classifier; must equal those of the data."
    )
    channels: tuple[Positive, ...] | None = Field(
        None,
        description="Pictures: channels of the stem, then those inside the blocks of each stage; default: the "
        "family's, such as [64, 64, 128, 256, 512] of resnet18, resnet34 and resnet50.",
    )
    small_stem: bool = Field(
        False, description="Pictures: a 3x3 stem at full size instead of 7x7 with pooling, for sizes of 32 or 64."
    )
    output_bias: bool = Field(False, description="Pictures: the classifier has a bias (timm's has, NeuroTrails' not).")
    zero_last_norm: bool = Field(
        False, description="Pictures: the last gain of each residual block starts at 0 (arXiv 1706.02677)."
    )

    features: Positive = Field(32, description="Rows: numbers of a row; must equal those of the data.")
    widths: tuple[Positive, ...] = Field(
        (64, 64), description="Rows: widths of the hidden layers on the path of one head, each a block."
    )

    @property
    def head_dim(self) -> int:
        """Dimensions of an attention head: ``head_width``, or what its default stands for."""
        return self.head_width or self.hidden // self.attention_heads

    @property
    def voices(self) -> int:
        """Predictions the network makes of a sample: of its M heads, or of the members that share one."""
        return self.heads if self.sharing == "none" else self.members

    @property
    def data(self) -> Kind:
        """What the family reads."""
        kinds: dict[str, Kind] = {"llama": "text", "mlp": "rows"}
        return kinds.get(self.family, "pictures")

    @property
    def classifies(self) -> bool:
        """Whether a sample has one label, of ``classes``; else each token of a sequence predicts the next."""
        return self.data != "text"

    @property
    def sees_pictures(self) -> bool:
        """Whether it is one of the families for pictures, made of convolutions and batch norms."""
        return self.data == "pictures"

    @property
    def samples(self) -> Literal["tokens", "pictures", "rows"]:
        """What it is trained on, one target each."""
        return "tokens" if self.data == "text" else self.data
