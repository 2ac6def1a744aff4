"""Training in bf16 beside a plain loop: bf16 weights, fp32 masters, AdamW written out, losses by
their formulas. Of the toolkit it has the data alone: order, masks, tokens.

The masters' changes over four steps differ by 2 % (MNTP, SimCSE) and 6 % (supervised) in norm, the
losses by at most 0.32 %. Two plain loops that add up in different orders (a padded batch, row by
row) differ more, the changes by 3, 3 and 10 %: by rounding, which AdamW enlarges at first, since
its steps take the sign of a gradient. That is the tolerance; without masters it would be 50 %.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from toolkit import train
from toolkit.settings.model_source import resolve_model
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe
from toolkit.text.pairs import Pair, PairTask, write_pairs
from toolkit.training.checkpoint import load_newest
from toolkit.training.data import open_stream, open_tokenizer
from toolkit.training.objectives import build_objective

STEPS, LR, DECAY = 4, 2e-4, 2.0
SETTINGS = (
    *("model.dtype=bf16", "model.lora=null", "model.attention_dropout=0", "deepspeed.config=zero1"),
    *(f"train.steps={STEPS}", "train.horizon_steps=10", "train.warmup_steps=2", f"train.lr={LR}"),
    *("train.global_batch_rows=8", "train.micro_batch_rows=4", "train.clip_norm=0.5"),
    *(f"train.weight_decay={DECAY}", "train.save_every_steps=9", "data.max_tokens=24"),
)
TOLERANCE = {"mntp": 0.035, "simcse": 0.035, "supervised": 0.1}  # of the masters' changes, in norm
LOSS_TOLERANCE = 5e-3  # relative
Run = tuple[list[float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def data(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shards of each kind. No text of the pairs comes twice: no negative is a false one."""
    rows = [
        Pair(f"What is number {n}?", f"It is river {n}, long.", (f"A hill of {n} metres.",))
        for n in range(40)
    ]
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    task = PairTask("questions", query_instruction="Find the answer")
    write_pairs([(task, rows)], output=out, sources=[], quarantine=[])
    return {"mntp": shards, "simcse": shards, "supervised": out}


def overrides(kind: str, *, data: dict[str, Path], base: Path, run_dir: Path) -> list[str]:
    return [f"tiny_{kind}", f"data.train={data[kind]}", f"model.base={base}", *SETTINGS] + [
        f"run_dir={run_dir}"
    ]


def of_toolkit(run_dir: Path) -> Run:
    """Losses of the steps, and the masters at the end."""
    losses = [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").open()]
    newest = load_newest(run_dir)
    assert newest and len(losses) == STEPS
    return losses, dict(newest.weights)


class Plain:
    """A model in bf16, given padded batches."""

    def __init__(self, base: Path, *, head: bool) -> None:
        config = AutoConfig.from_pretrained(base)
        config.is_causal = False
        factory = AutoModelForCausalLM if head else AutoModel
        self.model = factory.from_pretrained(
            base, config=config, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    def outputs(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Logits or hidden states of each row, in fp32."""
        length = max(map(len, rows))
        ids = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
        mask = torch.stack([(torch.arange(length) < len(row)).long() for row in rows])
        found = self.model(input_ids=ids, attention_mask=mask)
        output_BTX = (found.logits if "logits" in found else found.last_hidden_state).float()
        return [output[: len(row)] for output, row in zip(output_BTX, rows, strict=True)]


def plain_run(recipe: TrainingRecipe, *, with_masters: bool = True, decay: float = DECAY) -> Run:
    """The whole training in a plain loop. Without masters the weights themselves are updated."""
    plain = Plain(Path(recipe.model.base), head=recipe.kind == "mntp")
    parameters = dict(plain.model.named_parameters())
    masters = {name: p.detach().float() for name, p in parameters.items()}
    first = {name: torch.zeros_like(value) for name, value in masters.items()}
    second = {name: torch.zeros_like(value) for name, value in masters.items()}
    losses = []
    for step, loss in enumerate(losses_of(recipe, plain), 1):
        losses.append(float(loss))
        plain.model.zero_grad()
        loss.backward()
        gradients = {name: p.grad.float() for name, p in parameters.items()}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        lr = LR * min(step / 2, (11 - step) / 8)  # two steps up, then down to zero at the tenth
        for name, gradient in gradients.items():
            gradient *= min(1.0, 0.5 / norm)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient.square()
            root = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            masters[name] -= lr * decay * masters[name]
            masters[name] -= lr * first[name] / (1 - 0.9**step) / root
            if not with_masters:
                masters[name] = masters[name].bfloat16().float()
            parameters[name].data = masters[name].bfloat16()
    return losses, masters


def losses_of(recipe: TrainingRecipe, plain: Plain) -> Iterator[Tensor]:
    """The mean loss of each step's batch, to go backward from before the next is asked for."""
    tokenizer = open_tokenizer(recipe, base=resolve_model(recipe.model.base))
    stream = open_stream(recipe, tokenizer=tokenizer)
    objective = build_objective(recipe, tokenizer=tokenizer)
    for step in range(STEPS):
        samples = stream.batch(step, global_rows=8, start=0, stop=8)
        if recipe.kind == "mntp":
            yield of_mntp(plain, objective.encode(samples))
        elif recipe.kind == "simcse":
            ids = tokenizer.encode([sample.content for sample in samples])
            vectors = means(plain, [(row, len(row) - 1) for row in ids])
            yield nce(vectors, vectors, scale=5.0)
        else:
            pairs = [sample.content.pair for sample in samples]
            queries = [pair.query for pair in pairs]
            asked = tokenizer.encode([f"Find the answer; {query}" for query in queries])
            own = [len(row) - 1 for row in tokenizer.encode(queries)]
            texts = [pair.positive for pair in pairs] + [pair.negatives[0] for pair in pairs]
            told = [(row, len(row) - 1) for row in tokenizer.encode(texts)]
            vectors = means(plain, [*zip(asked, own, strict=True), *told])
            yield nce(vectors[: len(pairs)], vectors[len(pairs) :], scale=20.0)


def of_mntp(plain: Plain, blocks: Any) -> Tensor:
    """Hidden token i from the logits at i - 1: the mean over all hidden tokens."""
    rows = [(block, number) for block in blocks for number in range(len(block.rows))]
    outputs = plain.outputs([torch.from_numpy(block.rows[number]) for block, number in rows])
    total, count = torch.tensor(0.0), 0
    for (block, number), logits in zip(rows, outputs, strict=True):
        places = block.predict[number].nonzero()[0].tolist()
        for place, target in zip(places, block.targets[number].tolist(), strict=True):
            total = total - torch.log_softmax(logits[place], dim=0)[target]
        count += len(places)
    return total / count


def means(plain: Plain, rows: Sequence[tuple[Any, int]]) -> Tensor:
    """The mean of the last so many states of each row."""
    outputs = plain.outputs([torch.from_numpy(ids) for ids, _ in rows])
    return torch.stack([o[-own:].mean(dim=0) for o, (_, own) in zip(outputs, rows, strict=True)])


def nce(queries: Tensor, candidates: Tensor, *, scale: float) -> Tensor:
    unit = [part / part.norm(dim=1, keepdim=True) for part in (queries, candidates)]
    scores = torch.log_softmax(scale * unit[0] @ unit[1].T, dim=1)
    return -scores.diagonal().mean()


def loss_distance(left: Run, right: Run) -> float:
    """The largest relative difference of a loss."""
    return max(abs(a - b) / b for a, b in zip(left[0], right[0], strict=True))


def weight_distance(left: Run, right: Run, start: dict[str, Tensor]) -> float:
    """How much the changes of all weights differ, over how large they are."""
    assert left[1].keys() == right[1].keys()
    differ = sum(float((left[1][n] - right[1][n]).double().square().sum()) for n in start)
    size = sum(float((right[1][n] - start[n]).double().square().sum()) for n in start)
    return math.sqrt(differ / size)


def plain_and_start(kind: str, recipe: TrainingRecipe) -> tuple[Run, dict[str, Tensor]]:
    plain = Plain(Path(recipe.model.base), head=kind == "mntp")
    start = {name: p.detach().float() for name, p in plain.model.named_parameters()}
    return plain_run(recipe), start


def recipe_of(arguments: Sequence[str]) -> TrainingRecipe:
    recipe = load_recipe(arguments[0], overrides=arguments[1:])
    assert isinstance(recipe, TrainingRecipe)
    return recipe


@pytest.mark.parametrize("kind", TOLERANCE)
def test_bf16_trains_as_a_plain_loop_does(
    kind: str, data: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    arguments = overrides(kind, data=data, base=tiny_model, run_dir=tmp_path)
    assert train.main(arguments) == 0
    ours = of_toolkit(tmp_path)
    plain, start = plain_and_start(kind, recipe_of(arguments))
    assert loss_distance(ours, plain) <= LOSS_TOLERANCE
    assert weight_distance(ours, plain, start) <= TOLERANCE[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCE)
def test_bf16_on_two_ranks_too(
    kind: str, door: Callable[..., str], data: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    arguments = overrides(kind, data=data, base=tiny_model, run_dir=tmp_path)
    door("train", *arguments, ranks=2)
    ours = of_toolkit(tmp_path)
    plain, start = plain_and_start(kind, recipe_of(arguments))
    assert loss_distance(ours, plain) <= LOSS_TOLERANCE
    assert weight_distance(ours, plain, start) <= TOLERANCE[kind]


def test_the_tolerance_tells_faults(
    data: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Without masters, and without weight decay, a plain loop ends elsewhere."""
    arguments = overrides("mntp", data=data, base=tiny_model, run_dir=tmp_path)
    recipe = recipe_of(arguments)
    plain, start = plain_and_start("mntp", recipe)
    for fault in (plain_run(recipe, with_masters=False), plain_run(recipe, decay=0.0)):
        assert weight_distance(fault, plain, start) > 2 * TOLERANCE["mntp"]
