"""Which questions are left out, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.domain import filters
from toolkit.domain.filters import Source, fault_of
from toolkit.domain.writing import Question
from toolkit.settings.questions_schema import QuestionFilters

TEXT = (
    "The beaver is a large rodent that builds dams of wood and mud across rivers, so that its "
    "lodge stands in deep water where no wolf can enter it in winter."
)
DEFAULTS = QuestionFilters()


def fault(text: str, *, ended: bool = True, rules: QuestionFilters = DEFAULTS) -> str:
    source = Source.of(TEXT, filters=rules)
    return fault_of(Question("1", 0, text, 5, ended), source=source, filters=rules)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("why do beavers build their lodge in deep water", ""),
        ("Why does the beaver's lodge stand in deep water?", ""),
        ("", "nothing written"),
        ("?!", "nothing written"),
        ("why dams", "too short"),
        ("what " + " ".join(f"word{n}" for n in range(40)), "too long"),
        ("what is the dam of the dam of the dam of the dam", "loops"),
        ("how do beavers build build dams", "loops"),
        ("who had had a dam before the beaver", ""),
        ("which dams of wood and which dams of mud", ""),
        ("the beaver is a large rodent that builds dams", "copied"),
        ("The BEAVER is a large rodent, that builds dams?", "copied"),
        ("what builds dams of wood and mud across rivers so that its lodge stands", "copied"),
        ("pourquoi le castor construit il des barrages sur les rivières", "other language"),
        ("warum bauen Biber ihre Burgen mitten im Wasser", "other language"),
    ],
)
def test_each_rule(text: str, reason: str) -> None:
    assert fault(text) == reason


def test_the_limits_are_those_of_the_settings() -> None:
    assert fault("why do beavers build", ended=False) == "unfinished"
    assert fault("why do beavers build", ended=False, rules=QuestionFilters(unfinished=True)) == ""
    assert fault("why dams", rules=QuestionFilters(min_words=2)) == ""
    assert fault("why do beavers build dams", rules=QuestionFilters(max_words=4)) == "too long"
    copied = "the beaver is a large rodent that builds dams"
    assert fault(copied, rules=QuestionFilters(max_copied_words=9)) == ""
    assert fault(f"why does it say {copied}") == ""  # nine of thirteen words: a quotation
    strict = QuestionFilters(max_copied_share=0.5)
    assert fault(f"why does it say {copied}", rules=strict) == "copied"
    twice = "what is the dam of the dam of the beaver"
    assert fault(twice) == ""
    assert fault(twice, rules=QuestionFilters(max_repeats=0)) == "loops"
    german = "warum bauen Biber ihre Burgen mitten im Wasser"
    assert fault(german, rules=QuestionFilters(language="any")) == ""
    assert fault(german, rules=QuestionFilters(language="de")) == ""
    english = "why do beavers build their lodge in deep water"
    assert fault(english, rules=QuestionFilters(language="de")) == "other language"


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=8)


@given(WORDS, WORDS)
def test_the_longest_run_is_that_of_every_run_tried(words: list[str], text: list[str]) -> None:
    runs = {tuple(text[a:b]) for a in range(len(text) + 1) for b in range(a, len(text) + 1)}
    lengths = [
        b - a
        for a in range(len(words) + 1)
        for b in range(a, len(words) + 1)
        if tuple(words[a:b]) in runs
    ]
    found = filters.longest_run(words, within=f" {' '.join(text)} ")
    assert found == max(lengths)


def test_of_equal_questions_the_first_stays() -> None:
    some = ["What is it?", "what  is it", "What is that?", "WHAT IS IT!", "what is that"]
    assert filters.repeated(some) == [False, True, False, True, True]


def test_a_question_must_bring_back_its_document() -> None:
    texts = [
        "beavers build dams of wood",
        "wolves hunt in packs",
        "dams of concrete hold rivers",
        "wood floats on rivers",
    ]
    some = ["why do wolves hunt", "dams of concrete", "dams of concrete", "unknown words"]
    found = filters.not_found_again(some, rows=[1, 2, 0, 0], texts=texts, top=1)
    assert found == [False, False, True, True]
    assert filters.not_found_again(some, rows=[1, 2, 0, 0], texts=texts, top=2) == [
        *(False, False, False),
        True,
    ]
    assert filters.not_found_again([], rows=[], texts=texts, top=3) == []
