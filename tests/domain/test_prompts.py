"""What the decoder reads, and what of its answer is the question."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from toolkit.domain import prompts


@pytest.fixture(scope="module")
def tokenizer(shipped_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(shipped_model)


EXAMPLES = [{"passage": "P1", "question": "Q1"}, {"passage": "P2 {passage}", "question": "Q2"}]


def test_examples_look_as_the_prompt_does_behind_them() -> None:
    prompt = "Head.\n{examples}Text: {passage}\nAsk:"
    whole = prompts.whole_prompt(prompt, EXAMPLES[:1])
    assert whole == "Head.\nText: P1\nAsk: Q1\n\nText: {passage}\nAsk:"
    assert prompts.whole_prompt("Only {passage}", EXAMPLES) == "Only {passage}"


def test_the_shipped_prompt_and_examples_can_be_read() -> None:
    whole = prompts.whole_prompt(prompts.read_prompt(None), prompts.read_examples(None))
    assert whole.count("{passage}") == 1 and "{examples}" not in whole
    assert whole.endswith("Passage: {passage}\nQuestion:")
    assert len(prompts.read_examples(None)) == whole.count("Question: ") >= 3


def test_a_placeholder_inside_an_example_or_a_passage_stays_what_it_is(tokenizer: Any) -> None:
    whole = prompts.whole_prompt("{examples}Text: {passage}\nAsk:", EXAMPLES)
    frame = prompts.frame_of(whole, tokenizer=tokenizer, chat="auto")
    (row,) = prompts.tokens_of(["about {passage}"], frame=frame, tokenizer=tokenizer)
    assert tokenizer.decode(row, skip_special_tokens=True).strip() == (
        "Text: P1\nAsk: Q1\n\nText: P2 {passage}\nAsk: Q2\n\nText: about {passage}\nAsk:"
    )


def test_tokens_are_those_of_the_whole_text(tokenizer: Any) -> None:
    frame = prompts.frame_of("A list.\n{passage}\nAsk:", tokenizer=tokenizer, chat=False)
    passage = "Beavers build dams."
    (row,) = prompts.tokens_of([passage], frame=frame, tokenizer=tokenizer)
    assert row == tokenizer(f"A list.\n{passage}\nAsk:")["input_ids"]
    shared = list(frame.shared_ids)
    assert shared and row[: len(shared)] == shared


def test_a_chat_template_is_used_where_there_is_one(tokenizer: Any, shipped_model: Path) -> None:
    chatty = AutoTokenizer.from_pretrained(shipped_model)
    chatty.chat_template = (
        "{% for one in messages %}<{{ one['role'] }}>{{ one['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
        "{% if enable_thinking %}<think>{% endif %}"
    )
    auto = prompts.frame_of("Ask: {passage} !", tokenizer=chatty, chat="auto")
    assert (auto.before, auto.after) == ("<user>Ask: ", " !<assistant>")
    assert prompts.frame_of("Ask: {passage} !", tokenizer=chatty, chat=True) == auto
    plain = prompts.frame_of("Ask: {passage} !", tokenizer=chatty, chat=False)
    assert plain == prompts.frame_of("Ask: {passage} !", tokenizer=tokenizer, chat="auto")
    assert plain.after == " !"


@pytest.mark.parametrize("max_tokens", [1, 4, 9, 1000])
def test_a_passage_is_cut_at_its_tokens(max_tokens: int, tokenizer: Any) -> None:
    text = "The beaver, a large rodent,\n\tbuilds  dams of wood; it lives in rivers and lakes."
    found = prompts.passage_of(text, tokenizer=tokenizer, max_tokens=max_tokens)
    line = " ".join(text.split())
    assert line.startswith(found) and found
    count = len(tokenizer(found, add_special_tokens=False)["input_ids"])
    assert count <= max_tokens + 1  # cut off, a word may be another token
    assert found == line if max_tokens == 1000 else len(found) < len(line)


def test_names_of_special_tokens_do_not_end_a_prompt(tokenizer: Any) -> None:
    text = f"before{tokenizer.eos_token}after"
    found = prompts.passage_of(text, tokenizer=tokenizer, max_tokens=50)
    assert found == "before after"


@pytest.mark.parametrize(
    ("written", "question"),
    [
        (" how do beavers build dams\n\nPassage: x", "how do beavers build dams"),
        ("\n\n  What is it?", "What is it?"),
        ("Question: What is it?", "What is it?"),
        ("Q: What is it?", "What is it?"),
        ("1. What is it?", "What is it?"),
        ("2) Question 2: What is it?", "What is it?"),
        ("- what is it", "what is it"),
        ('"What is it?"', "What is it?"),
        ("“What is it?”", "What is it?"),
        ('what does "it" mean', 'what does "it" mean'),
        ("3 bodies attract each other: why", "3 bodies attract each other: why"),
        ("1984: who wrote it", "1984: who wrote it"),
        ("Quantum: what is it", "Quantum: what is it"),
        ("", ""),
        (" \n \t\n", ""),
        ("Question:", ""),
    ],
)
def test_the_question_in_what_was_written(written: str, question: str) -> None:
    assert prompts.question_of(written) == question


@given(st.text())
def test_a_question_is_one_line_and_is_its_own_question(written: str) -> None:
    found = prompts.question_of(written)
    assert found == " ".join(found.split())
