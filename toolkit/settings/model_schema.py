"""What a training recipe may say about its model: types, adapters, pooling.

As in `schema`, which has all other sections.
"""

from typing import Literal

from toolkit.settings.section import Count, Fraction, Section, Text

DType = Literal["fp32", "bf16"]
Attention = Literal["packed", "sdpa", "eager"]
Kernels = Literal["auto", "torch", "liger"]
TrainedPooling = Literal["mean", "last", "weighted_mean"]
BeginToken = Literal["skip", "pool", "none"]


class Lora(Section):
    """Low-rank adapters on the named linear layers (peft)."""

    rank: Count
    alpha: Count
    dropout: Fraction
    targets: tuple[Text, ...]


class Model(Section):
    """The model to train. `base` is a hub name, a model folder, or a finished run directory.

    attention "packed" puts the texts of a batch one after another, without padding; the other
    values pad. `attention_dropout` replaces the setting of the base.

    `kernels`, on a GPU: what computes SwiGLU, the positions, and the loss of masked tokens. torch:
    torch alone. liger: liger-kernel, which must be installed. auto: liger-kernel where it is, but
    for the loss.

    `fp8`, on a GPU from Hopper on: the frozen weights below adapters are kept and multiplied in 8
    bits, with scales for rows (`model/fp8.py`). It needs dtype bf16, `lora`, and ZeRO 1 or 2.

    `pooling` says how the states of a text's tokens become its vector, in contrastive training and
    in all that uses the encoder afterwards. mean: their mean. last: the state of the last token,
    which is an end token that is put after every text. weighted_mean: the mean with the weight n
    for the n-th token (SGPT).

    `begin_token` says what becomes of the begin token that the tokenizer puts before a text. skip:
    it is not pooled, and neither is any other special token or an instruction (LLM2Vec; of the
    mean only). pool: every token is pooled, those of an instruction too. none: as pool, but a begin
    token is never put before a text. Engines that know only plain poolings of all tokens (vLLM,
    TEI) give the same vectors after pool and none, and others after skip.
    """

    base: Text
    dtype: DType
    pooling: TrainedPooling = "mean"
    begin_token: BeginToken = "skip"  # noqa: S105 (no password)
    attention: Attention = "packed"
    attention_dropout: Fraction = 0.0
    kernels: Kernels = "auto"
    fp8: bool = False
    activation_checkpointing: bool = False
    lora: Lora | None

    @property
    def pools_all(self) -> bool:
        """Whether special tokens and those of an instruction are pooled, too. The last token is a
        special one."""
        return self.pooling == "last" or self.begin_token != "skip"  # noqa: S105

    @property
    def keeps_begin(self) -> bool:
        """Whether a begin token stands before a text, if the tokenizer puts it there."""
        return self.begin_token != "none"  # noqa: S105

    @property
    def pooling_text(self) -> str:
        """Pooling and begin token, as they are written on the command line."""
        return pooling_text(self.pooling, self.begin_token)

    @property
    def pools_as(self) -> tuple[str, str]:
        """Pooling and begin token; two that give the same vectors are equal."""
        return pools_as(self.pooling, self.begin_token)


def pooling_text(pooling: str, begin_token: str) -> str:
    """Both settings, as they are written on the command line."""
    return f"model.pooling={pooling} model.begin_token={begin_token}"


def pools_as(pooling: str, begin_token: str) -> tuple[str, str]:
    """Both settings; two that give the same vectors are equal."""
    same = (pooling, begin_token) == ("last", "skip")
    return pooling, "pool" if same else begin_token
