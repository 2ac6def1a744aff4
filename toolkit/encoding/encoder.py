"""Texts to vectors in one process. Shapes: B rows, T tokens, D width, N texts.

A vector depends on its text alone, and not on its batch, its neighbours or their padding.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from transformers import PretrainedConfig

from toolkit.base.console import Progress, say_beside, warn
from toolkit.base.errors import BadInput
from toolkit.base.layout import MANIFEST_FILE
from toolkit.batching.batch import embed_rows, to_device, token_states
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.encoding.batches import Batching, Prepared, PreparedBatch
from toolkit.encoding.chunks import Chunk
from toolkit.encoding.formats import Vectors, unit_length
from toolkit.encoding.recorded import recorded_settings
from toolkit.encoding.rows import RowMaker
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import ChunkRules
from toolkit.model.adapters import chain_of, merge_into
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import (
    attention_for,
    check_positions,
    load_backbone,
    load_config,
    num_embeddings,
)
from toolkit.model.bidirectional import prove_attention
from toolkit.model.copied_out import copied_out, made_ahead
from toolkit.model.fp8 import check_fp8, quantize_encoder
from toolkit.model.fused import check_kernels, fuse
from toolkit.model.head import Head
from toolkit.model.memory import keep_large_blocks
from toolkit.model.onednn import lay_out_linears
from toolkit.model.plain_path import PROBES, plain_vectors, prove_vectors
from toolkit.model.precision import dtype_for, remarks
from toolkit.model.side_by_side import MOST_LANES, side_by_side
from toolkit.model.tokenizer import load_tokenizer
from toolkit.model.vector_rules import prompt_text
from toolkit.parallel.comm import device_of
from toolkit.settings.model_schema import DType
from toolkit.settings.schema import TEXT_FORMAT, EncoderDType, EncoderSettings
from toolkit.text.tokens import is_unicode

GPU_BATCH_TOKENS = 16384
# 16384 are a third slower: the states between layers no longer fit the caches.
CPU_BATCH_TOKENS = 2048
PIECE_TEXTS = 8192  # while a GPU embeds so many texts, the next ones are tokenised


class Encoder:
    """A loaded model, in eval mode, on the device at hand."""

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        device: torch.device | None = None,
        dims: int | None = None,
    ) -> None:
        """`dims`: keep only so many numbers of a vector, the first (of a Matryoshka model)."""
        self.device = device or device_of(0)
        self._dtype: DType = dtype_for(settings.dtype, device=self.device)
        self.settings = settings = settings.model_copy(update={"dtype": self._dtype})
        check_kernels(settings.kernels, on_gpu=self.device.type == "cuda", key="encoder.kernels")
        if settings.fp8:
            check_fp8(dtype=self._dtype, device=self.device, key="encoder.fp8")
        if self.device.type == "cpu":
            keep_large_blocks()
        self._chain = chain_of(settings.model, adapters=settings.adapters)
        # An export records digests: compare it now, which takes 0.6 s of a core per GB.
        self._digest = self._chain.digest() if self._chain.is_recorded() else ""
        config = load_config(self._chain.base, causal=settings.causal)
        self._rules = rules = self._chain.rules(settings, dims=dims)
        if rules.as_configured:
            config = load_config(self._chain.base, causal=None)
        check_positions(config, max_tokens=settings.max_tokens)
        hidden_size = int(config.hidden_size)
        self._head = Head(rules, hidden_size=hidden_size, device=self.device)
        dims, whole = rules.dims if dims is None else dims, self._head.width
        if dims is not None and not 1 <= dims <= whole:
            raise BadInput(f"dims={dims}: the vectors of {settings.model} have {whole} numbers")
        self.width = whole if dims is None else dims
        self.token_width = min(hidden_size, self.width) if dims else hidden_size
        self.tokenizer = text_tokenizer(
            self._chain.tokenizer,
            max_tokens=settings.max_tokens,
            num_embeddings=num_embeddings(config),
            lower_case=rules.lower_case,
        )
        self._maker = RowMaker(
            self.tokenizer, rules=rules, text_format=settings.text_format, prompt=settings.prompt
        )
        self._model = self._loaded(config)
        default = GPU_BATCH_TOKENS if self.device.type == "cuda" else CPU_BATCH_TOKENS
        self._batching = Batching(
            self.tokenizer, packed=self._packed, batch_tokens=settings.batch_tokens or default
        )
        self._instruction_format = self._chain.instruction_format()
        prove_attention(
            self._hidden,
            packed=self._packed,
            causal=rules.causal,
            vocab_size=self.tokenizer.vocab_size,
            device=self.device,
        )
        if not rules.is_plain:
            self._prove_vectors()
        if settings.fp8:
            say_beside(quantize_encoder(self._model, vectors=partial(self.vectors_of, PROBES)))

    def _loaded(self, config: PretrainedConfig) -> Any:
        """The model with its adapters. Sets whether rows are packed."""
        settings, attention = self.settings, self.settings.attention
        if not self._rules.is_plain:
            attention = attention_for(config, asked=attention)
        for line in self._maker.remarks(is_padded=attention != settings.attention):
            say_beside(f"{settings.model}: {line}")
        for line in remarks(self._dtype, device=self.device, attention=attention, config=config):
            warn(f"{settings.model}: {line}")
        self._packed = attention == PACKED
        model = load_backbone(
            self._chain.base,
            config=config,
            head=False,
            dtype=self._dtype,
            attention=attention,
            device=self.device,
        )
        # Merged adapters cost nothing when texts are encoded.
        merge_into(model, adapters=self._chain.adapters())
        model.eval()
        fuse(model, device=self.device, kernels=settings.kernels)
        if self.device.type == "cpu":
            lay_out_linears(model)
        return model

    def _prove_vectors(self) -> None:
        """Raise `OtherVectors` unless a few texts get the vectors that the rules say."""
        found = self.vectors_of(PROBES)  # refuses a prompt that leaves no room for a text
        # The short ones together, with padding, and the long one alone: padding costs time, too.
        tokenizer = load_tokenizer(self._chain.tokenizer)
        plain = [
            plain_vectors(
                self._model,
                tokenizer=tokenizer,
                rules=self._rules,
                prompt=self._maker.prefix_of(),
                texts=[self._maker.text_of(text) for text in some],
                max_tokens=self.settings.max_tokens,
            )[:, : self.width]
            for some in (PROBES[:-1], PROBES[-1:])
        ]
        whole = np.concatenate(plain)
        prove_vectors(found, plain=whole, dtype=self._dtype, model=self.settings.model)

    def digest(self) -> str:
        """The digest of the model (see `model_digest`), and of what its folder declares, unless
        that is a plain decoder. The weights are read once to compute it."""
        self._digest = self._digest or self._chain.digest()
        return self._rules.digest(self._digest)

    def before_text(self, instruction: str) -> str:
        """What is put before a text with this instruction, in the model's instruction format."""
        return self._instruction_format.format(instruction=instruction) if instruction else ""

    def prompt_of(self, prompt: str, *, asked_by: str) -> str:
        """The declared prompt of that name, or the text itself (see `prompt_text`)."""
        return prompt_text(prompt, prompts=dict(self._rules.prompts), asked_by=asked_by)

    @property
    def prompt(self) -> str:
        """What is put before each text, unless something else is asked for."""
        return self._rules.prompt

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        adapters: Sequence[str | Path] = (),
        text_format: str = TEXT_FORMAT,
        max_tokens: int = 512,
        dtype: EncoderDType = "fp32",
        device: str | None = None,
        truncate_dim: int | None = None,
    ) -> Self:
        """Load an encoder from a run directory, an exported folder, a model folder or the hub. An
        adapter in PEFT's layout is merged into its base, and then `adapters`, in order.
        `text_format` and `dtype` ("auto", "fp32" or "bf16"): see `EncoderSettings`.

        `truncate_dim` as in sentence-transformers: keep only the first so many numbers of a vector.
        Raises `BadInput` when `path` holds no encoder, or the encoder cannot be used.
        """
        try:
            settings = EncoderSettings(
                model=str(path) if isinstance(path, Path) else path,
                adapters=tuple(str(one) if isinstance(one, Path) else one for one in adapters),
                text_format=text_format,
                max_tokens=max_tokens,
                dtype=dtype,
            )
        except ValidationError as error:
            (key, *_), why = error.errors()[0]["loc"], error.errors()[0]["msg"]
            raise BadInput(f"{key}: {why}") from error
        try:
            place = None if device is None else torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise BadInput(f"device={device!r}: {str(error).splitlines()[0]}") from error
        return cls(settings, device=place, dims=truncate_dim)

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        prompt: str = "",
        batch_size: int | None = None,
        normalize_embeddings: bool = False,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Vectors (N, D), fp32, in the order of `sentences`, as an array or a tensor on the CPU; a
        vector (D,) for a single text. The arguments have the names of sentence-transformers.

        `prompt` is put before each text. Unlike there, a plain decoder does not pool it (LLM2Vec's
        instructions); a folder of sentence-transformers says whether it is pooled. Batches are
        bounded by tokens, so that `batch_size` (most rows per batch) is seldom needed.
        Raises `BadInput` for anything but texts of valid Unicode.
        """
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise BadInput(f"sentences[{number}] is {text!r}: give texts")
            if not is_unicode(text):
                raise BadInput(f"sentences[{number}] is {text[:80]!r}, which is not valid Unicode")
        if batch_size is not None and batch_size < 1:
            raise BadInput(f"batch_size={batch_size}: at least 1")
        progress = Progress("encode", total=len(texts), unit="rows", shown=show_progress_bar)
        vectors = self.vectors_of(
            texts,
            instruction=prompt,
            max_rows=batch_size,
            on_rows=lambda rows, tokens: progress.advance(rows),  # noqa: ARG005
        )
        progress.close()
        result = unit_length(vectors) if normalize_embeddings else vectors
        result = result[0] if single else result
        return torch.from_numpy(result) if convert_to_tensor else result

    def vectors_of(
        self,
        texts: Sequence[str],
        *,
        instruction: str = "",
        prompt: str | None = None,
        max_rows: int | None = None,
        on_rows: Callable[[int, int], None] | None = None,
    ) -> Vectors:
        """Vectors (N, D), fp32, in the order of `texts`; calls `on_rows(rows, tokens)` per batch.

        `instruction` is put before each text as it is, with its separator. A plain decoder does not
        pool it; what a folder of sentence-transformers declares is followed, and it then replaces
        the encoder's own prompt, as `prompt` always does. Rows of similar length share a batch; a
        text without tokens gets the zero vector.
        """
        make = partial(self.prepare, instruction=instruction, prompt=prompt, max_rows=max_rows)
        if self.device.type != "cuda" or len(texts) <= PIECE_TEXTS:
            return self.embed(make(texts), on_rows=on_rows)
        parts = [texts[n : n + PIECE_TEXTS] for n in range(0, len(texts), PIECE_TEXTS)]
        return np.concatenate([self.embed(one, on_rows=on_rows) for one in made_ahead(make, parts)])

    def prepare(
        self,
        texts: Sequence[str],
        *,
        instruction: str = "",
        prompt: str | None = None,
        max_rows: int | None = None,
    ) -> Prepared:
        """Texts as batches in host memory: all work that needs no model. Any thread may call it."""
        made = self._maker.rows(texts, instruction=instruction, prompt=prompt)
        return self.prepare_rows(made.rows, owns=made.owns, max_rows=max_rows)

    def prepare_rows(
        self,
        rows: Sequence[NDArray[np.int64]],
        *,
        owns: Sequence[NDArray[np.bool_]] | None = None,
        max_rows: int | None = None,
    ) -> Prepared:
        """Rows of token ids as batches of at most `max_rows` rows. `owns` marks the tokens that are
        pooled; without it, those of a text without a prompt are (`BadInput` with an echo)."""
        if owns is None and self._rules.echo:
            raise BadInput(
                f"{self.settings.model}: encoder.echo=true reads texts, not single words"
            )
        owns = owns or self._maker.with_marks(rows).owns
        return self._batching.of_rows(rows, owns=owns, max_rows=max_rows)

    def check_chunks(self, chunks: ChunkRules) -> None:
        """Raise `BadInput` unless this encoder can embed chunks by these rules."""
        self._maker.check_chunks(chunks)

    def prepare_late(
        self, texts: Sequence[str], *, chunks: ChunkRules
    ) -> tuple[list[Chunk], Prepared]:
        """The chunks of texts, and batches of the texts' windows that give their vectors, in order
        (see `late_chunks`)."""
        made, windows = self._maker.late_chunks(texts, chunks=chunks)
        return made, self._batching.of_windows(windows)

    def embed(
        self, prepared: Prepared, *, on_rows: Callable[[int, int], None] | None = None
    ) -> Vectors:
        """The vectors of prepared texts, as `encode` gives them."""

        def tell(done: PreparedBatch) -> None:
            if on_rows:
                on_rows(len(done.numbers), done.num_tokens)

        vectors_ND: Vectors = np.empty((prepared.num_rows, self.width), dtype=np.float32)
        if self.device.type == "cuda":
            for batch, found_BD in copied_out(self._vectors, prepared.batches):
                vectors_ND[list(batch.numbers)] = found_BD.numpy()
                tell(batch)
            return vectors_ND
        lanes = MOST_LANES if self.device.type == "cpu" else 1
        pieces = side_by_side(self._vectors, prepared.batches, on_done=tell, most=lanes)
        for batch, found_BD in zip(prepared.batches, pieces, strict=True):
            vectors_ND[list(batch.numbers)] = found_BD.cpu().numpy()
        return vectors_ND

    @torch.inference_mode()
    def token_states(
        self, rows: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """For each batch the numbers of its rows of token ids and the hidden states (T, D), fp32,
        of all their tokens, row after row, with special tokens. A row must have at least one id."""
        for batch in self.prepare_rows(rows).batches:
            laid = to_device(batch.rows, device=self.device)
            yield batch.numbers, token_states(self._model, laid)[:, : self.token_width]

    @torch.inference_mode()
    def _vectors(self, batch: PreparedBatch) -> torch.Tensor:
        # A mean of whole rows has a way of its own, which is faster.
        is_mean = self._rules.is_mean and batch.slices is None
        vectors_BD = embed_rows(
            self._model,
            to_device(batch.rows, device=self.device),
            head=None if is_mean else self._head,
            slices=batch.slices and to_device(batch.slices, device=self.device),
        )
        return vectors_BD[:, : self.width]

    def _hidden(self, **arguments: Any) -> torch.Tensor:
        hidden: torch.Tensor = self._model(**arguments).last_hidden_state
        return hidden


def encoder_of(store: VectorStore, *, model: str | None = None) -> Encoder:
    """Load the encoder that made these vectors, from `model` or else from the recorded path.

    Raises `BadInput` when it is not there, or has changed since.
    """
    path = model or store.manifest["model_path"]
    try:
        adapters = tuple(store.manifest.get("adapter_paths", ()))
        settings = recorded_settings(store, model=path, adapters=adapters)
        encoder = Encoder(settings, dims=store.manifest["output"].get("dims"))
    except BadInput as error:
        raise BadInput(f"{error}; if the encoder was moved, give --model its folder") from error
    except OverflowError as error:  # an absurd limit of tokens
        raise BadInput(f"{store.directory / MANIFEST_FILE}: encoder: {error}") from error
    if encoder.digest() != store.manifest["model"]:
        raise BadInput(
            f"{store.directory}: was not made by the model in {path}; give --model its folder"
        )
    return encoder
