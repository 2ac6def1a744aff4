"""Pairs of a document's own title and sentences: what is taken out, and what is left out."""

import pytest

from toolkit.domain.own_words import SENTENCES, TITLES, own_pairs, without_title
from toolkit.settings.questions_schema import OwnWords
from toolkit.text.pairs import Pair

BEES = {
    "id": "bees",
    "title": "How honey bees survive a long winter",
    "text": "How honey bees survive a long winter. Honey bees form a cluster around the queen. "
    "They shiver with their flight muscles to keep warm.\nIn winter they live on the honey that "
    "they stored in summer. All rights are reserved by us.",
}
LAMPS = {
    "id": "lamps",
    "title": "scan 2021 final version",
    "text": "A lighthouse turns its lens to send a beam over the sea. All rights are reserved by "
    "us. The lens of Fresnel bends light with a series of thin prisms.",
}
ALL = OwnWords(titles=True, sentences=9, left_in=0)


def test_titles_and_sentences_with_the_text_without_them() -> None:
    made = own_pairs([BEES, LAMPS], settings=ALL, seed=1)
    title, text = BEES["title"], BEES["text"]
    assert made[TITLES] == [Pair(title, text.removeprefix(f"{title}. "))]
    # Not the title, which is a sentence of the text, and not what stands in both documents.
    assert [pair.query for pair in made[SENTENCES]] == [
        "Honey bees form a cluster around the queen.",
        "They shiver with their flight muscles to keep warm.",
        "In winter they live on the honey that they stored in summer.",
        "A lighthouse turns its lens to send a beam over the sea.",
        "The lens of Fresnel bends light with a series of thin prisms.",
    ]
    for pair in made[SENTENCES]:
        whole = BEES["text"] if pair.query in BEES["text"] else LAMPS["text"]
        assert pair.query not in pair.positive
        assert pair.positive.split() == whole.replace(pair.query, " ").split()


def test_a_share_of_them_stays_in_the_text() -> None:
    texts = [{**BEES, "id": str(number)} for number in range(1000)]
    settings = OwnWords(titles=True, left_in=0.2)
    left_in = sum(
        own_pairs([text], settings=settings, seed=1)[TITLES][0].positive == BEES["text"]
        for text in texts
    )
    assert 150 < left_in < 250


def test_draws_depend_on_seed_and_document_alone() -> None:
    few = OwnWords(sentences=1)
    alone = own_pairs([LAMPS], settings=few, seed=3)[SENTENCES]
    together = own_pairs([BEES, LAMPS], settings=few, seed=3)[SENTENCES]
    assert len(alone) == 1
    assert together[-1] == alone[0]
    seeds = {own_pairs([BEES], settings=few, seed=seed)[SENTENCES][0].query for seed in range(20)}
    assert len(seeds) > 2


@pytest.mark.parametrize(
    "changed",
    [
        {"title": "Winter"},  # too short
        {"title": "unbound minutes file 17"},  # a name, of which the text knows nothing
        {"title": ""},
        {"text": BEES["title"]},  # nothing but the title
    ],
)
def test_titles_that_are_no_question_are_left_out(changed: dict[str, str]) -> None:
    assert TITLES not in own_pairs([{**BEES, **changed}], settings=ALL, seed=1)


def test_a_title_of_several_passages_is_taken_once() -> None:
    passages = [{**BEES, "id": f"bees#{number}"} for number in range(3)]
    assert len(own_pairs(passages, settings=ALL, seed=1)[TITLES]) == 1


def test_a_document_of_one_sentence_gives_none() -> None:
    one = {"id": "one", "title": "", "text": "Honey bees form a cluster around the queen."}
    assert own_pairs([one], settings=ALL, seed=1) == {}
    assert own_pairs([BEES], settings=OwnWords(), seed=1) == {}


def test_a_title_is_taken_off_whatever_its_case() -> None:
    assert without_title("SHEAR FLOW. It is shown", title="Shear flow") == "It is shown"
    assert without_title("Shear flows exist", title="Shear flow") == "Shear flows exist"
    assert without_title("It is shown", title="Shear flow") == "It is shown"
