"""The LLaMA block: RMSNorm, rotary causal attention (grouped-query), SwiGLU or ReLU. Plain modules, one process.

Source: Touvron et al. 2023 (arXiv 2302.13971); rotary embedding Su et al. 2021 (arXiv 2104.09864), half-split form.
Shape letters: B sequences, T tokens, H hidden, A attention heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nt_pretrain.config.schema import ModelSection


@dataclass(frozen=True)
class Context:
    """What attention needs beside the hidden states; made once per batch and shared by trunk and heads."""

    cos: Tensor  # [T, D] fp32
    sin: Tensor  # [T, D] fp32
    mask: Tensor | None  # [B, 1, T, T] bool, True where attention is allowed; None: plain causal


def make_context(model: ModelSection, documents_BT: Tensor) -> Context:
    """Rotary tables and, with ``model.document_mask``, the mask that keeps attention inside a document.

    ``documents_BT`` holds the number of each input token's document in its sequence; only its shape and device are used
    unless the mask is on.
    """
    _, length = documents_BT.shape
    device = documents_BT.device
    mask = None
    if model.document_mask:
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        mask = (causal & (documents_BT[:, :, None] == documents_BT[:, None, :]))[:, None]
    return Context(*rotary_tables(model, length, device), mask)


def rotary_tables(model: ModelSection, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to ``length`` - 1, each [length, D] fp32."""
    head_dim = model.head_dim
    frequency = model.rope_base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, device=device, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BATD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary position embedding, half-split form, in the dtype of ``x_BATD``."""
    left, right = x_BATD.chunk(2, dim=-1)
    return torch.addcmul(x_BATD * cos_TD, torch.cat([-right, left], dim=-1), sin_TD)


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019) with statistics in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Rotary causal attention, grouped-query; ``slim`` divides the number of heads, each of which keeps its width."""

    def __init__(self, model: ModelSection, slim: int = 1) -> None:
        super().__init__()
        self.heads = model.attention_heads // slim
        self.kv_heads = (model.kv_heads or model.attention_heads) // slim
        self.head_dim = model.head_dim
        self.query = nn.Linear(model.hidden, self.heads * self.head_dim, bias=False)
        self.key = nn.Linear(model.hidden, self.kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(model.hidden, self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, model.hidden, bias=False)

    def project(self, x_BTH: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B, A, T, D], key and value [B, K, T, D]; ``cos`` and ``sin`` of the tokens' positions, [..., T, D]."""
        batch, length, _ = x_BTH.shape
        cos, sin = cos.to(x_BTH.dtype), sin.to(x_BTH.dtype)
        query = rotate(self.query(x_BTH).view(batch, length, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        key = rotate(self.key(x_BTH).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2), cos, sin)
        value = self.value(x_BTH).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        return query, key, value

    def forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        batch, length, _ = x_BTH.shape
        query, key, value = self.project(x_BTH, context.cos, context.sin)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=context.mask, is_causal=context.mask is None,
            enable_gqa=self.kv_heads != self.heads,
        )  # fmt: skip
        return self.out(out.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, model: ModelSection, slim: int = 1) -> None:
        super().__init__()
        units = model.intermediate // slim
        self.gate = nn.Linear(model.hidden, units, bias=False)
        self.up = nn.Linear(model.hidden, units, bias=False)
        self.down = nn.Linear(units, model.hidden, bias=False)

    @property
    def entering(self) -> list[nn.Linear]:
        """The matrices that the input is multiplied with; ``down`` leads out."""
        return [self.gate, self.up]

    def forward(self, x_BTH: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTH)) * self.up(x_BTH))


class ReluFeedForward(nn.Module):
    """Two matrices with ReLU between them (Vaswani et al. 2017, arXiv 1706.03762), or its square (So et al. 2021,
    arXiv 2109.08668).

    A hidden unit whose row of ``up`` gives no positive number for a token is exactly 0 for it.
    """

    def __init__(self, model: ModelSection, slim: int = 1) -> None:
        super().__init__()
        self.up = nn.Linear(model.hidden, model.intermediate // slim, bias=False)
        self.down = nn.Linear(model.intermediate // slim, model.hidden, bias=False)
        self.is_squared = model.ffn == "relu2"

    @property
    def entering(self) -> list[nn.Linear]:
        """As :attr:`FeedForward.entering`."""
        return [self.up]

    def forward(self, x_BTH: Tensor) -> Tensor:
        hidden = F.relu(self.up(x_BTH))
        return self.down(hidden.square() if self.is_squared else hidden)


class Block(nn.Module):
    """One pre-norm transformer block, [B, T, H] to [B, T, H].

    Args:
        slim: divides what lies inside, attention heads and hidden units.
    """

    def __init__(self, model: ModelSection, slim: int = 1) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.hidden, model.norm_eps)
        self.attention = Attention(model, slim)
        self.ffn_norm = RMSNorm(model.hidden, model.norm_eps)
        self.ffn: nn.Module = FeedForward(model, slim) if model.ffn == "swiglu" else ReluFeedForward(model, slim)

    def forward(self, x_BTH: Tensor, context: Context) -> Tensor:
        x_BTH = x_BTH + self.attention(self.attention_norm(x_BTH), context)
        return x_BTH + self.ffn(self.ffn_norm(x_BTH))
