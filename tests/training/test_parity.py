"""W ranks equal one rank, and one rank equals the naive computation: loss and every gradient."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import run, torchrun
from tests.text.making import shard_articles
from tests.training.gradients import case_recipe, random_start
from tests.training.storing import as_read
from tests.training.teachers import random_vectors, write_teacher
from toolkit.model.backbone import add_lora, load_backbone, load_config
from toolkit.model.weights import saved_name
from toolkit.settings.model_source import resolve_model
from toolkit.text.pairs import Pair, PairTask, open_pairs, write_pairs
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

SCRIPT = str(Path(__file__).with_name("gradients.py"))
CASES = (
    *("mntp:3", "mntp:2", "mntp-sdpa:3", "mntp-full:3"),
    *("simcse:3", "simcse:1", "simcse-sdpa:3", "simcse-full:3"),
    *("simcse-cached:1", "simcse-cached:2", "simcse-cached:3", "simcse-cached-full:3"),
    *("mntp-tokens:3", "simcse-tokens:2", "simcse-tokens:3", "simcse-cached-weighted:3"),
    *("supervised:3", "supervised-cached:2", "supervised-cached:3", "supervised-tokens:3"),
    *("supervised-full:1", "supervised-cached-full:3", "supervised-sdpa:3"),
    *("supervised-matryoshka:3", "supervised-cached-matryoshka:3"),
    *("simcse-taught:3", "simcse-cached-taught:2"),
    *("graded:3", "graded-cached:2", "graded-tokens:3", "graded-cached-full:3", "graded-full:3"),
    *("supervised-taught:3", "supervised-cached-taught-matryoshka:3", "supervised-tokens-taught:2"),
    *("simcse-stored:3", "simcse-cached-stored:2", "simcse-tokens-stored:3"),
    *("supervised-stored:3", "supervised-cached-stored-matryoshka:3"),
    *("mntp:0", "simcse-cached:0", "simcse-cached-full:0", "supervised-cached:0"),
    *("mntp-recomputed:3", "simcse-cached-recomputed:3"),
    *("mntp-fused:2", "mntp-fused-full:3", "simcse-cached-fused-recomputed:3"),
    *("mntp-mixed:3", "simcse-mixed:3", "simcse-cached-mixed:2"),
)
# A rank of four has two rows: GradCache needs micro-batches of one.
FOUR = ("mntp:3", "simcse-one:0", "simcse-one-full:2", "simcse-tokens:3", "supervised-one:3")
FOUR += ("graded-one:3", "supervised-one-stored:3")
BROKEN = "simcse:3:no-gather-gradient"
TOLERANCE = 1e-5
FIGURES = {"loss", "accuracy", "alignment", "teacher_kl", "spread_out"}
FIGURES |= {"loss_int8_24", "loss_binary"}

Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with everything that a loss must mind: the same positive twice, a hard negative that is
    another's positive, a query twice, fewer negatives than others or none, instructions on one side
    or both."""
    topics = ("rivers", "mountains", "towns", "trees")
    texts = [f"A sentence number {n} about {topics[n % 4]}." for n in range(60)]
    rows = [
        Pair(f"What is {n}?", texts[n], (texts[n + 20], texts[(n + 1) % 20])[: n % 4])
        for n in range(20)
    ]
    rows += [
        Pair("What is 3?", texts[50]),
        Pair("Another question", texts[4], (texts[51],)),
        Pair("A third question", texts[52], (texts[4], texts[52].upper())),
    ]
    both = [Pair(text, text.upper() + "!", ()) for text in texts[40:50]]
    task = PairTask("questions", query_instruction="Find the answer")
    symmetric = PairTask("same", query_instruction="Same", document_instruction="Same")
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    write_pairs([(task, rows), (symmetric, both)], output=out, sources=[], quarantine=[])
    letters = [
        Article(str(n), "", "", f"Dear {name}, {texts[n]}") for n, name in enumerate("abcdefg")
    ]
    shard_articles(letters, output=out.with_name("letters"))
    # Beside them graded pairs: several of one grade, and texts of many lengths.
    graded = [(n % 4, texts[n], f"{texts[n + 1]} {texts[n]}"[: 15 + 9 * (n % 5)]) for n in range(9)]
    (out.parent / "graded.tsv").write_text("".join("\t".join(map(str, g)) + "\n" for g in graded))
    return out


@pytest.fixture(scope="module")
def data(tiny_model: Path, shards: Path, pairs: Path) -> tuple[Path, ...]:
    """What every case needs: the base model, shards and pairs; beside these a teacher of all
    their texts."""
    opened, sentences = open_pairs(pairs), open_shards(shards)
    texts = [
        text
        for number, rows in enumerate(opened.num_rows.tolist())
        for row in range(rows)
        for pair in [opened.pair(number, row)]
        for text in (pair.query, pair.positive, *pair.negatives)
    ]
    texts += [
        sentences.sentence(row, k)
        for row in range(len(sentences))
        for k in range(int(sentences.num_sentences[row]))
    ]
    distinct = sorted(set(texts))
    out = pairs.with_name("teacher")
    write_teacher(distinct, out=out, embed=random_vectors, model="random", unit_rows=1000)
    return tiny_model, shards, pairs


def gradients(folder: Path, *, data: tuple[Path, ...], ranks: int, cases: tuple[str, ...]) -> Found:
    out = folder / f"{ranks}.safetensors"
    run([*torchrun(ranks), SCRIPT, str(out), *map(str, data), *cases])
    return load_file(out)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, ...]) -> Found:
    folder = tmp_path_factory.mktemp("one")
    return gradients(folder, data=data, ranks=1, cases=CASES)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, ...]) -> Found:
    folder = tmp_path_factory.mktemp("two")
    return gradients(folder, data=data, ranks=2, cases=(*CASES, BROKEN))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, ...]) -> Found:
    folder = tmp_path_factory.mktemp("four")
    return gradients(folder, data=data, ranks=4, cases=FOUR)


def of_case(found: Found, case: str) -> Found:
    return {n.partition("/")[2]: v for n, v in found.items() if n.startswith(f"{case}/")}


def largest_difference(left: Found, right: Found) -> float:
    """The largest relative difference over loss and all gradients."""
    assert left.keys() == right.keys()
    # 2 layers, 7 targets, A and B; or 9 weights per layer, embedding and norm.
    assert len(left.keys() - FIGURES) in (28, 20, 19)
    return max(
        float((left[n].double() - right[n].double()).norm() / right[n].double().norm().clamp(1e-9))
        for n in left
    )


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case: str, one: Found, two: Found) -> None:
    assert largest_difference(of_case(two, case), of_case(one, case)) <= TOLERANCE


@pytest.mark.parametrize("case", FOUR)
def test_four_ranks_equal_one(case: str, one: Found, four: Found) -> None:
    """And one rank with the whole batch in one pass, under ZeRO-3 whatever the stage here."""
    whole = re.sub("-one|-tokens|:.", "", case) + ":3"
    assert largest_difference(of_case(four, case), of_case(one, whole)) <= TOLERANCE


def test_zero_stages_agree(one: Found) -> None:
    for kind, stages in (("mntp", "32"), ("mntp", "30"), ("simcse", "31")):
        left, right = (of_case(one, f"{kind}:{stage}") for stage in stages)
        assert largest_difference(left, right) <= TOLERANCE


@pytest.mark.parametrize("kind", ["mntp", "simcse", "supervised"])
def test_packed_equals_padded(kind: str, one: Found) -> None:
    left, right = (of_case(one, f"{name}:3") for name in (kind, f"{kind}-sdpa"))
    assert largest_difference(left, right) <= TOLERANCE


@pytest.mark.parametrize(
    "case",
    [
        *("simcse-cached:0", "simcse-cached:1", "simcse-cached:2", "simcse-cached:3"),
        *("mntp-tokens:3", "simcse-tokens:2", "simcse-tokens:3"),
        *(
            "supervised-cached:0",
            "supervised-cached:2",
            "supervised-cached:3",
            "supervised-tokens:3",
        ),
    ],
)
def test_micro_batches_equal_the_whole(case: str, one: Found, two: Found) -> None:
    """GradCache and token budgets, on one rank and on two, against the whole batch in one pass."""
    whole = of_case(one, f"{case.partition('-')[0]}:3")
    for found in (one, two):
        assert largest_difference(of_case(found, case), whole) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "whole"),
    [
        ("mntp-recomputed:3", "mntp:3"),
        ("simcse-cached-recomputed:3", "simcse:3"),
        ("mntp-fused:2", "mntp:2"),
        ("mntp-fused-full:3", "mntp-full:3"),
        ("simcse-cached-fused-recomputed:3", "simcse:3"),
        ("simcse-cached-full:3", "simcse-full:3"),
        ("graded-cached:2", "graded:3"),
        ("graded-tokens:3", "graded:3"),
        ("graded-cached-full:3", "graded-full:3"),
        ("simcse-cached-full:0", "simcse-full:3"),
        ("supervised-cached-full:3", "supervised-full:1"),
        ("supervised-cached-matryoshka:3", "supervised-matryoshka:3"),
        ("simcse-cached-taught:2", "simcse-taught:3"),
        ("simcse-cached-mixed:2", "simcse-mixed:3"),
        ("supervised-tokens-taught:2", "supervised-taught:3"),
        ("simcse-cached-stored:2", "simcse-stored:3"),
        ("simcse-tokens-stored:3", "simcse-stored:3"),
    ],
)
def test_cached_equals_whole_otherwise_too(case: str, whole: str, one: Found, two: Found) -> None:
    """All weights; vectors cut to several widths, and candidates left out by a margin; the norms of
    a GPU under partitioned weights and recomputation."""
    for found in (one, two):
        assert largest_difference(of_case(found, case), of_case(one, whole)) <= TOLERANCE


def test_without_the_gather_gradient_two_ranks_point_elsewhere(one: Found, two: Found) -> None:
    difference = largest_difference(of_case(two, BROKEN), of_case(one, "simcse:3"))
    assert difference > 0.05


@pytest.mark.parametrize(
    "case",
    [
        *("mntp", "simcse", "supervised", "simcse-taught", "supervised-taught", "graded"),
        *("mntp-mixed", "simcse-mixed", "simcse-stored", "supervised-stored"),
    ],
)
def test_one_rank_equals_the_naive_computation(
    case: str, one: Found, shards: Path, pairs: Path, tiny_model: Path
) -> None:
    """No engine, no selected logits, no gather: the formula on the whole batch at once."""
    kind = case.partition("-")[0]
    recipe = case_recipe(case, shards=str(shards), base=str(tiny_model), pairs=str(pairs))
    assert recipe.model.lora
    head = kind == "mntp"
    config = load_config(resolve_model(str(tiny_model)))
    model = load_backbone(
        resolve_model(str(tiny_model)), config=config, head=head, dtype="fp32", attention="eager"
    )
    model = add_lora(model, lora=recipe.model.lora).eval()
    start = random_start(recipe, head=head)
    assert start
    trained = {saved_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start.weights[name])
    naive = {"mntp": naive_mntp, "simcse": naive_simcse, "supervised": naive_supervised}
    naive |= {"graded": naive_graded}
    loss = naive[kind](model, recipe)
    loss.backward()
    found = {"loss": loss.detach(), **{n: p.grad for n, p in trained.items()}}
    ours = {n: v for n, v in of_case(one, f"{case}:3").items() if n in found}
    assert largest_difference(found, ours) <= TOLERANCE


def samples_and_tokenizer(recipe):  # type: ignore[no-untyped-def]
    from toolkit.training.program import open_stream, open_tokenizer

    tokenizer = open_tokenizer(recipe, base=resolve_model(recipe.model.base))
    stream = open_stream(recipe, tokenizer=tokenizer)
    rows = recipe.train.global_batch_rows
    return stream.batch(0, global_rows=rows, start=0, stop=rows), tokenizer


def naive_mntp(model, recipe) -> Tensor:  # type: ignore[no-untyped-def]
    from toolkit.training.mntp import MntpObjective

    samples, tokenizer = samples_and_tokenizer(recipe)
    objective = MntpObjective(
        tokenizer=tokenizer,
        settings=recipe.mntp,
        seed=recipe.train.seed,
        mask_id=tokenizer.token_id("_"),
        packed=False,
    )
    total, count = torch.tensor(0.0), 0
    for sample in samples:  # document by document, without padding, all logits
        encoded = objective.encode([sample])
        batch = objective.collate(encoded)
        for row, original in enumerate(sample.content):
            ids = batch.rows.ids_BT[row, : len(original)]
            logits = model(input_ids=ids[None]).logits[0]
            hidden = batch.predict_BT[row].nonzero().flatten() + 1
            for place in hidden.tolist():
                total = total - torch.log_softmax(logits[place - 1], dim=0)[int(original[place])]
            count += len(hidden)
    return total / count


def naive_simcse(model, recipe) -> Tensor:  # type: ignore[no-untyped-def]
    samples, tokenizer = samples_and_tokenizer(recipe)
    vectors = []
    for sample in samples:  # row by row, unpadded; the begin token left out
        (ids,) = tokenizer.encode([sample.content])
        hidden = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        vectors.append(hidden[1:].mean(dim=0))
    stacked = torch.stack(vectors)
    unit = stacked / stacked.norm(dim=1, keepdim=True)
    texts = [sample.content for sample in samples]
    candidates = list(range(len(texts)))
    if teacher := recipe.simcse.teacher:
        every = [naive_teacher(text, texts) for text in texts]
        numbers = [
            len(allowed(candidates, positive=n, seen=every[n], teacher=teacher)) for n in candidates
        ]
        assert sum(numbers) < len(texts) ** 2

    def total(query: Tensor, candidate: Tensor) -> Tensor:
        losses = [
            naive_contrastive(
                candidate @ query[number],
                kept=candidates,
                positive=number,
                scale=recipe.simcse.scale,
                teacher=recipe.simcse.teacher,
                seen=naive_teacher(texts[number], texts),
                taught=[place for place in candidates if place != number],
            )
            for number in candidates
        ]
        return torch.stack(losses).sum()

    loss = naive_for_storage(total, query=stacked, candidate=stacked, settings=recipe.simcse)
    return loss / len(texts) + naive_spread([unit, unit], settings=recipe.simcse)


def naive_for_storage(total, *, query, candidate, settings) -> Tensor:  # type: ignore[no-untyped-def]
    """The weighted mean of the loss of the plain vectors and of those that our files would hold, to
    which the gradient goes straight through."""

    def unit(vectors: Tensor) -> Tensor:
        return vectors / vectors.norm(dim=1, keepdim=True)

    losses, weights = [total(unit(query), unit(candidate))], [1.0]
    for form in settings.stored_as:
        both = []
        for vectors in (query, candidate):
            cut = vectors[:, : form.dims or vectors.shape[1]]
            read = unit(as_read(cut, form=form.vectors))
            straight = unit(cut) + (read - unit(cut)).detach()
            both.append(unit(straight))
        losses.append(form.weight * total(*both))
        weights.append(form.weight)
    return sum(losses[1:], losses[0]) / sum(weights)


def naive_spread(groups, *, settings) -> Tensor:  # type: ignore[no-untyped-def]
    """Cosine by cosine, of whole vectors and of those cut to the stored forms' widths. The texts of
    a group are different."""
    terms = []
    for width in {form.dims or groups[0].shape[1] for form in settings.stored_as}:
        for vectors in groups:
            some = [vector[:width] / vector[:width].norm() for vector in vectors]
            every = [a @ b for i, a in enumerate(some) for j, b in enumerate(some) if i != j]
            cosine = torch.stack(every)
            excess = (cosine.square().mean() - 1 / width).clamp(min=0)
            terms.append(cosine.mean().square() + excess)
    return settings.spread_out_weight * sum(terms, torch.tensor(0.0)) / max(1, len(terms))


def naive_graded(model, recipe) -> Tensor:  # type: ignore[no-untyped-def]
    """Text by text, and every two pairs whose grades differ."""
    samples, tokenizer = samples_and_tokenizer(recipe)
    cosines = []
    for sample in samples:
        vectors = []
        for text in (sample.content.first, sample.content.second):
            (ids,) = tokenizer.encode([text])
            hidden = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
            vectors.append(hidden[1:].mean(dim=0))
        one, other = vectors
        cosines.append(one @ other / (one.norm() * other.norm()))
    grades = [sample.content.grade for sample in samples]
    assert len(set(grades)) < len(grades)
    total = torch.tensor(1.0, dtype=torch.float64)
    for mine, cosine in zip(grades, cosines, strict=True):
        for theirs, other in zip(grades, cosines, strict=True):
            if mine > theirs:
                total = total + (recipe.graded.scale * (other - cosine).double()).exp()
    return total.log()


def naive_teacher(query: str, candidates: list[str]) -> Tensor:
    """The cosines that the random teacher sees."""
    vectors = torch.from_numpy(random_vectors([query, *candidates])).double()
    return torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])


def allowed(kept, *, positive, seen, teacher) -> list[int]:  # type: ignore[no-untyped-def]
    """The candidates that the teacher, if there is one, does not find too near to the query."""
    if not teacher:
        return list(kept)
    most = seen[positive] + teacher.false_negative_margin
    return [place for place in kept if place == positive or seen[place] <= most]


def naive_contrastive(cosines, *, kept, positive, scale, teacher, seen, taught) -> Tensor:  # type: ignore[no-untyped-def]
    """The loss of a query over the candidates `kept`; with a teacher, over those that it does not
    find nearer than it may, and mixed with its divergence over the candidates `taught`."""
    kept = allowed(kept, positive=positive, seen=seen, teacher=teacher)
    contrastive = -torch.log_softmax(scale * cosines[kept], dim=0)[kept.index(positive)]
    if not teacher:
        return contrastive
    divergence = torch.nn.functional.kl_div(
        (teacher.scale * cosines[taught]).log_softmax(0),
        (teacher.scale * seen[taught]).float().softmax(0),
        reduction="sum",
    )
    return (1 - teacher.weight) * contrastive + teacher.weight * divergence


def naive_supervised(model, recipe) -> Tensor:  # type: ignore[no-untyped-def]
    """Text by text: what equals the positive or the query is no negative, nor is the positive of an
    equal query. Only the text's own tokens are pooled: those after the instruction."""
    samples, tokenizer = samples_and_tokenizer(recipe)
    task = samples[0].content.task
    assert task.name == "questions"

    def vector(text: str, instruction: str) -> Tensor:
        prefix = f"{instruction}; " if instruction else ""
        ids = tokenizer.encode([prefix + text])[0]
        own = len(tokenizer.encode([text])[0]) - 1  # without the begin token
        hidden = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        return hidden[len(ids) - own :].mean(dim=0)

    pairs = [sample.content.pair for sample in samples]
    assert len({pair.positive for pair in pairs}) < len(pairs) or any(
        pair.positive in other.negatives for pair in pairs for other in pairs
    )
    assert any(len(pair.negatives) < 2 for pair in pairs)
    candidates = [(pair.positive, pair.query) for pair in pairs]
    candidates += [(text, "") for pair in pairs for text in pair.negatives[:2]]
    documents = torch.stack([vector(text, task.document_instruction) for text, _ in candidates])
    queries = torch.stack([vector(pair.query, task.query_instruction) for pair in pairs])

    def total(query: Tensor, candidate: Tensor) -> Tensor:
        losses = []
        for number, pair in enumerate(pairs):
            kept = [
                place
                for place, (text, answers) in enumerate(candidates)
                if place == number
                or not (text in (pair.positive, pair.query) or answers == pair.query)
            ]
            losses.append(
                naive_contrastive(
                    candidate @ query[number],
                    kept=kept,
                    positive=number,
                    scale=20.0,
                    teacher=recipe.supervised.teacher,
                    seen=naive_teacher(pair.query, [text for text, _ in candidates]),
                    taught=list(range(len(candidates))),
                )
            )
        return torch.stack(losses).sum()

    loss = naive_for_storage(total, query=queries, candidate=documents, settings=recipe.supervised)
    positives = [pair.positive for pair in pairs]
    groups = [
        vectors[[texts.index(text) for text in sorted(set(texts))]]
        for texts, vectors in (([p.query for p in pairs], queries), (positives, documents))
    ]
    return loss / len(pairs) + naive_spread(groups, settings=recipe.supervised)
