"""The architecture: every idea is one switch, and every switch works alone."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from megatron_gptx.config.section import Check, Problem, Section

Residual = Literal["rezero", "pre_norm", "post_norm"]
Position = Literal["alibi", "learned", "none"]
Activation = Literal["gelu", "relu", "swiglu"]

# Options that no saved weight depends on.
WITHOUT_WEIGHTS = ("dropout", "attention.dropout", "init_std")


class AttentionConfig(Section):
    """Causal multi-head attention."""

    top_k: int | None = Field(
        None,
        gt=0,
        description="Largest number of keys that a query attends to (Explicit Sparse Transformer, "
        "arXiv:1912.11637); null means all.",
    )
    residual_scores: bool = Field(
        False,
        description="Add the previous layer's raw attention scores before the softmax "
        "(RealFormer, arXiv:2012.11747).",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability that an attention weight is dropped."
    )


class ModelConfig(Section):
    """A decoder-only transformer."""

    num_layers: int = Field(gt=0, le=10_000, description="Decoder blocks.")
    hidden_size: int = Field(gt=0, le=2**20, description="Width of the residual stream.")
    num_heads: int = Field(gt=0, description="Attention heads per block; divides hidden_size.")
    ffn_hidden_size: int | None = Field(
        None,
        gt=0,
        description="Inner width of each feed-forward. null means 4 * hidden_size; with "
        "`macaron`, 2 * hidden_size for each of the two.",
    )
    vocab_size: int = Field(gt=0, le=2**31, description="Rows of the embedding and of the head.")
    seq_length: int = Field(gt=0, le=2**24, description="Tokens per sample.")
    residual: Residual = Field(
        "rezero",
        description="How a branch joins the residual stream. `rezero`: a learned scalar that "
        "starts at 0 (arXiv:2003.04887). `pre_norm`: LayerNorm before the branch. "
        "`post_norm`: LayerNorm after the sum.",
    )
    position: Position = Field(
        "alibi",
        description="`alibi`: a linear penalty on distance, one slope per head "
        "(arXiv:2108.12409). `learned`: a table of seq_length rows. `none`: no "
        "positions.",
    )
    macaron: bool = Field(
        False,
        description="Two half-step feed-forwards, one before attention and one after it, instead "
        "of one after it (Macaron, arXiv:1906.02762).",
    )
    activation: Activation = Field("gelu", description="Non-linearity of the feed-forwards.")
    biases: bool = Field(True, description="Biases in attention and feed-forward projections.")
    tied_head: bool = Field(
        False, description="Use the embedding as the output projection, which has no bias."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that an element of the embedding or of a branch is dropped.",
    )
    init_std: float = Field(
        0.02,
        ge=1e-12,
        le=1000,
        description="Standard deviation of initial weights. With `pre_norm` and `post_norm`, "
        "projections into the residual stream get init_std / sqrt(number of "
        "branches).",
    )
    attention: AttentionConfig = Field(default_factory=AttentionConfig)

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for widths that do not divide and a top_k no row can fill."""
        return self._heads, self._top_k

    def _heads(self) -> Iterator[Problem]:
        if self.hidden_size % self.num_heads:
            below = self.hidden_size // self.num_heads * self.num_heads
            yield Problem(
                "num_heads",
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; "
                f"the nearest hidden sizes are {below or self.num_heads} and "
                f"{below + self.num_heads}",
            )

    def _top_k(self) -> Iterator[Problem]:
        if (self.attention.top_k or 0) > self.seq_length:
            yield Problem(
                "attention.top_k",
                f"top_k {self.attention.top_k} is above seq_length {self.seq_length}; use null for "
                "dense attention",
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_width(self) -> int:
        """Inner width of each feed-forward, the default filled in."""
        return self.ffn_hidden_size or (2 if self.macaron else 4) * self.hidden_size

    def differences(self, other: "ModelConfig") -> dict[str, tuple[Any, Any]]:
        """Return the options by which another model's layers are not these.

        Each comes with the other value and the own one, in words of a configuration. Defaults count
        as what they stand for; what no weight depends on does not count.
        """
        theirs, ours = _flat(other.resolved.model_dump()), _flat(self.resolved.model_dump())
        given = _flat(other.model_dump()), _flat(self.model_dump())
        return {
            option: (theirs[option], ours[option])
            for option in ours
            if theirs[option] != ours[option]
            and option not in WITHOUT_WEIGHTS
            # Where both are left to their defaults, those differ through another option.
            and (given[0][option] is not None or given[1][option] is not None)
        }

    @property
    def resolved(self) -> "ModelConfig":
        """The same model with every value written out that another option decides or makes idle.

        Two sections describe one model where their resolved forms are equal.
        """
        top_k = self.attention.top_k
        dense = top_k is None or top_k >= self.seq_length
        attention = self.attention.model_copy(update={"top_k": None if dense else top_k})
        return self.model_copy(update={"ffn_hidden_size": self.ffn_width, "attention": attention})

    @property
    def final_norm(self) -> bool:
        """Whether a LayerNorm stands before the head; a post-norm block already ends with one."""
        return self.residual != "post_norm"

    @property
    def num_pipeline_layers(self) -> int:
        """Entries of the layer list: embedding, blocks, final norm where there is one, head."""
        return 1 + self.num_layers + int(self.final_norm) + 1


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in section.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
