"""What the decoder reads before it writes a question, and what of its answer is the question.

Knows the prompt's placeholders, examples, chat templates, and tokens of texts. Refuses to know the
model.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.base.errors import BadInput
from toolkit.base.files import RepeatedName, without_repeats

FOLDER = Path(__file__).parent
DEFAULT_PROMPT, DEFAULT_EXAMPLES = FOLDER / "prompt.txt", FOLDER / "examples.jsonl"
PASSAGE, EXAMPLES = "{passage}", "{examples}"
EXAMPLE_HINT = '{"passage": "...", "question": "..."}'
# Characters of a passage that are tokenised per token wanted; no usual text has more.
CHARS_PER_TOKEN = 32
# What models put before a question although nobody asked for it.
_LABEL = re.compile(
    r"^(?:[-*•]\s+|\(?\d{1,2}[.):]\s*|(?:question|query|q)\s*\d{0,2}\s*[:.)]\s*)+", re.I
)
_QUOTES = "\"'“”‘’`*"


@dataclasses.dataclass(frozen=True)
class Frame:
    """The text before and after a passage; `shared_ids` are the tokens of the former."""

    before: str
    after: str
    shared_ids: tuple[int, ...]


def read_prompt(path: Path | None) -> str:
    """The prompt of a file, or the one that is shipped. Raises `BadInput` unless it has {passage}
    exactly once, and {examples} at most once and before it."""
    file = path or DEFAULT_PROMPT
    text = _read(file, what="prompt")
    if text.count(PASSAGE) != 1:
        raise BadInput(
            f"prompt={file}: has {text.count(PASSAGE)} times {PASSAGE}; write it once, where the "
            "document's text is to stand"
        )
    if text.count(EXAMPLES) > 1 or text.find(EXAMPLES) > text.find(PASSAGE):
        raise BadInput(f"prompt={file}: write {EXAMPLES} once at most, before {PASSAGE}")
    return text.rstrip("\n")


def read_examples(path: Path | None) -> list[dict[str, str]]:
    """The examples of a file of JSON lines, or those that are shipped. Raises `BadInput`, which
    names the line that is no example."""
    file = path or DEFAULT_EXAMPLES
    examples = []
    for number, line in enumerate(_read(file, what="examples").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=without_repeats)
        except RepeatedName as error:
            raise BadInput(f"examples={file}, line {number}: {error}") from None
        except (ValueError, RecursionError):
            row = None
        row = row if isinstance(row, dict) else {}
        passage, question = row.get("passage"), row.get("question")
        if not _is_text(passage) or not _is_text(question):
            raise BadInput(f"examples={file}, line {number}: is not like {EXAMPLE_HINT}")
        examples.append({"passage": one_line(passage), "question": one_line(question)})
    if not examples:
        raise BadInput(f"examples={file}: has no example; write lines like {EXAMPLE_HINT}")
    return examples


def whole_prompt(prompt: str, examples: Sequence[dict[str, str]]) -> str:
    """The prompt with its examples in it: each looks as the prompt does after {examples}, with a
    question behind it, so that a model without a chat template only has to go on."""
    head, found, item = prompt.partition(EXAMPLES)
    if not found:
        return prompt
    shown = "".join(
        f"{one['passage'].join(item.split(PASSAGE))} {one['question']}\n\n" for one in examples
    )
    return f"{head}{shown}{item}"


def frame_of(prompt: str, *, tokenizer: Any, chat: bool | str) -> Frame:
    """What stands around each passage. `chat`: "auto" asks as a user where the tokenizer has a chat
    template. Raises `BadInput` where it has none and `chat` is true."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat is True and not has_template:
        raise BadInput("generator.chat=true: the tokenizer has no chat template; chat=false")
    if has_template and chat is not False:
        message = [{"role": "user", "content": prompt}]
        # The templates of models that think aloud (Qwen 3) know this variable; others ignore it.
        rendered: str = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    else:
        rendered = (tokenizer.bos_token or "") * _begins(tokenizer) + prompt
    before, _, after = rendered.rpartition(PASSAGE)  # the last: an example may hold it, too
    return Frame(before, after, tuple(_ids(tokenizer, before.rstrip())))


def tokens_of(passages: Sequence[str], *, frame: Frame, tokenizer: Any) -> list[list[int]]:
    """The tokens of each passage in its frame."""
    return [_ids(tokenizer, f"{frame.before}{text}{frame.after}") for text in passages]


def passage_of(text: str, *, tokenizer: Any, max_tokens: int) -> str:
    """The beginning of a text, of at most so many tokens, on one line. Names of special tokens are
    taken out: in a document they mean nothing, and in a prompt they would end it."""
    text = text[: max_tokens * CHARS_PER_TOKEN]
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, " ")
    text = one_line(text)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = found["offset_mapping"]
    return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]].rstrip()


def question_of(written: str) -> str:
    """The question in what the model wrote: its first line with text, without the labels, numbers
    and quotes that models put around it; empty if there is none."""
    line = next((line for line in written.split("\n") if line.strip()), "")
    line = _LABEL.sub("", one_line(line)).strip()
    if len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line.strip(_QUOTES).strip()
    return line


def one_line(text: str) -> str:
    """The text with each run of white space as one blank."""
    return " ".join(text.split())


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its begin token before a text by itself."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _read(file: Path, *, what: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{what}={file}: cannot be read ({error})") from error
