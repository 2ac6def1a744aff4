"""Texts to rows of token ids, with what stands before and after each text, and what is pooled.

Knows the tokenizer and the rules of a model. Refuses to know the model itself.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.encoding.chunks import Chunk, no_prompt
from toolkit.encoding.late_chunks import Window, check_poolings, late_chunks_of, room_of
from toolkit.encoding.units import ChunkRules
from toolkit.model.vector_rules import ECHO_BEFORE, ECHO_BETWEEN, VectorRules
from toolkit.settings.schema import TEXT_FORMAT
from toolkit.text.tokens import Ids, TextTokenizer, is_unicode

Own = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of token ids. `owns` marks the tokens that are pooled; None: all but special ones."""

    rows: Sequence[Ids]
    owns: Sequence[Own] | None


class RowMaker:
    """Makes the rows of texts, for an encoder, finished or in training. `text_format` and `prompt`
    as in `EncoderSettings`."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        rules: VectorRules,
        text_format: str = TEXT_FORMAT,
        prompt: str | None = None,
    ) -> None:
        self._before, self._after = text_format.split("{text}")
        self._tokenizer, self._rules, self._prompt = tokenizer, rules, prompt

    def remarks(self, *, is_padded: bool) -> list[str]:
        """What nobody has asked for, and may not expect. `is_padded`: although it was to be
        packed."""
        lines = []
        if is_padded:
            lines.append("a model of this kind cannot be packed; texts are padded")
        if "lasttoken" in self._rules.modes and not self._tokenizer.suffix_ids:
            lines.append(
                "its folder pools the last token, and its tokenizer puts no end token after a text"
            )
        names = ", ".join(name for name, text in self._rules.prompts if text)
        if names and self._prompt is None and not self._rules.prompt:
            lines.append(
                f"declares prompts ({names}), none of them as the default: encoder.prompt puts one "
                "before each text"
            )
        return lines

    def text_of(self, text: str) -> str:
        """A text with what the format puts behind it, as it is tokenised."""
        return text.strip() + self._after if self._before or self._after else text

    def prefix_of(self, *, instruction: str = "", prompt: str | None = None) -> str:
        """What stands before each text: `prompt`, or else the instruction, or else the encoder's
        own prompt, between what the format and an echo put there."""
        chosen = (instruction or self._rules.prompt) if prompt is None else prompt
        return self._before + chosen + (ECHO_BEFORE if self._rules.echo else "")

    def leaves_room(self, prefix: str) -> bool:
        """Whether something of a text is still read behind this prefix."""
        (prefix_T,) = self._tokenizer.encode([prefix])
        return len(prefix_T) < self._tokenizer.max_tokens

    def rows(
        self, texts: Sequence[str], *, instruction: str = "", prompt: str | None = None
    ) -> Rows:
        """The rows of texts. `prompt` replaces the encoder's own one, and `instruction` does unless
        it is empty. A plain decoder never pools either. Raises `BadInput` for what leaves no room
        for a text."""
        prefix = self.prefix_of(instruction=instruction, prompt=prompt)
        whole = [self.text_of(text) for text in texts]
        if not prefix:
            return self.with_marks(self._tokenizer.encode(whole))
        if not is_unicode(prefix):
            raise BadInput(f"the instruction {prefix[:80]!r} is not valid Unicode")
        if self._rules.echo:
            return self._twice(prefix, whole)
        limit = self._tokenizer.max_tokens
        (prefix_T,) = self._tokenizer.encode([prefix])
        if len(prefix_T) >= limit:
            raise BadInput(
                f"the prompt or instruction {prefix[:80]!r} has {len(prefix_T)} tokens and fills "
                f"all of max_tokens={limit}: no room is left for a text"
            )
        rules = self._rules
        if rules.include_prompt:
            return self.with_marks(self._tokenizer.encode([prefix + text for text in whole]))
        if rules.all_tokens:
            rows = self._tokenizer.encode([prefix + text for text in whole])
            # As sentence-transformers counts the prompt's tokens: without one that ends a text.
            first = len(prefix_T) - (not self._tokenizer.is_own(prefix_T[-1:]).all())
            return Rows(rows, [_from(first, row_T) for row_T in rows])
        encoded = self._tokenizer.encode_after(prefix, whole)
        return Rows([ids_T for ids_T, _ in encoded], [own_T for _, own_T in encoded])

    def _twice(self, prefix: str, texts: Sequence[str]) -> Rows:
        """Rows in which the tokens of a text stand twice, both times as many as there is room for,
        and are pooled the second time. The prefix and special tokens around a text stand once."""
        tokenizer = self._tokenizer
        before, between = tokenizer.places([prefix, ECHO_BETWEEN])
        num_after = len(tokenizer.suffix_ids)
        least = len(before.ids_T) + len(between.ids_T) + tokenizer.num_added + 2
        if least > tokenizer.max_tokens:
            raise BadInput(
                f"max_tokens={tokenizer.max_tokens}: the prompt and the words of encoder.echo=true "
                f"leave no room to read a text twice; give at least {least}"
            )
        rows, owns = [], []
        for ids_T, own_T in tokenizer.encode_after(prefix, texts):
            end = len(ids_T) - num_after
            first = int(own_T.argmax()) if own_T.any() else end
            room = (tokenizer.max_tokens - first - len(between.ids_T) - num_after) // 2
            text = slice(first, min(end, first + room))
            again = text.stop + len(between.ids_T)
            parts = ids_T[: text.stop], between.ids_T, ids_T[text], ids_T[end:]
            rows.append(np.concatenate(parts))
            owns.append(np.zeros(len(rows[-1]), dtype=np.bool_))
            owns[-1][again : again + text.stop - first] = own_T[text]
        return Rows(rows, owns)

    def check_chunks(self, chunks: ChunkRules) -> None:
        """Raise `BadInput` where texts cannot become chunks by these rules: for the pooling or the
        prompt of the encoder."""
        if not chunks.is_late:
            if self._rules.prompt:  # perhaps a default that the model's folder declares
                raise no_prompt(self._rules.prompt)
            return
        check_poolings(self._rules.modes)
        prompt = self.prefix_of()
        if not is_unicode(prompt):
            raise BadInput(f"the prompt {prompt[:80]!r} is not valid Unicode")
        (tokens,) = self._tokenizer.places([prompt])
        room_of(len(tokens.ids_T), tokenizer=self._tokenizer, rules=chunks, prompt=prompt)

    def late_chunks(
        self, texts: Sequence[str], *, chunks: ChunkRules
    ) -> tuple[list[Chunk], list[Window]]:
        """The chunks of texts, and the windows in which they are read (see `late_chunks_of`)."""
        return late_chunks_of(
            texts,
            tokenizer=self._tokenizer,
            rules=chunks,
            prompt=self.prefix_of(),
            all_tokens=self._rules.all_tokens,
        )

    def with_marks(self, rows: Sequence[Ids]) -> Rows:
        """Rows of token ids without a prompt, with the marks of what is pooled."""
        return Rows(rows, [_from(0, row_T) for row_T in rows] if self._rules.all_tokens else None)


def _from(first: int, row_T: Ids) -> Own:
    """Marks of all tokens from `first` on; a row without tokens gets one that is not pooled."""
    return np.arange(len(row_T)) >= first if len(row_T) else np.zeros(1, dtype=np.bool_)
