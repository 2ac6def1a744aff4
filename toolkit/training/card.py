"""The model card of an export: README.md with the front matter that the hub reads.

Knows what people are told. A card names no path of this machine, only the last name of a folder.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.base.layout import ENCODER_DIR
from toolkit.base.shown import as_code, as_code_block, as_python, as_yaml, in_markdown
from toolkit.model.vector_rules import PLAIN_RULES, trained_rules
from toolkit.settings.mixture_schema import Paths, sources_of
from toolkit.settings.model_schema import Model
from toolkit.settings.schema import MntpRecipe, TrainingRecipe
from toolkit.settings.training_checks import storage_of

Scores = Mapping[str, Mapping[str, float]]
MERGE = "merge"  # the kind of a stage that trains nothing


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts on a card. `base` is the model that an adapter belongs to or, for a merged encoder,
    the model that its first stage began with. `stages` are the training stages, first to last
    (`stage_of`). `is_chained`: the adapters of earlier stages must be merged into `base` first.
    `merge`: what the encoder was merged from, as origin.json keeps it (`training.merges`).
    `pooled_by`: the poolings of an encoder whose recipe is not known, if not a plain decoder's."""

    form: str
    base: str
    stages: Sequence[Mapping[str, Any]]
    width: int
    max_tokens: int
    instruction_format: str
    recipe: TrainingRecipe | None = None
    scores: Scores | None = None
    is_chained: bool = False
    merge: Mapping[str, Any] | None = None
    pooled_by: Sequence[str] = ()


def public_name(reference: str) -> str:
    """A name for the public: a hub name unchanged (it has a slash), a folder by its last part, the
    encoder in a run directory by that of the run."""
    path = Path(reference)
    if not path.exists() and not path.is_absolute():
        return reference
    whole = path.resolve()
    return whole.parent.name if whole.name == ENCODER_DIR else whole.name


def stage_of(recipe: TrainingRecipe, *, step: int, data_digest: str) -> dict[str, Any]:
    """A training stage as origin.json keeps it, for the cards of all later stages."""
    lora = recipe.model.lora
    data = f"{_mixed(_public_sources(recipe))} ({data_digest[:12]})"
    if recipe.teacher:
        data += f", teacher {public_name(recipe.teacher.embeddings)}"
    # MNTP pools nothing.
    keys = () if isinstance(recipe, MntpRecipe) else ("pooling", "begin_token")
    return {
        "kind": recipe.kind,
        "base": public_name(recipe.model.base),
        "steps": step,
        "rows": recipe.train.global_batch_rows,
        "tokens": recipe.data.max_tokens,
        "lr": recipe.train.lr,
        "seed": recipe.train.seed,
        "trained": (f"LoRA, rank {lora.rank}, alpha {lora.alpha}" if lora else "all weights")
        + _for_storage(recipe),
        "data": data,
        **{key: getattr(recipe.model, key) for key in keys},
    }


def _for_storage(recipe: TrainingRecipe) -> str:
    storage = storage_of(recipe)
    forms = [
        f"{form.vectors} of {form.dims or 'all'} numbers (weight {form.weight:g})"
        for form in storage.stored_as
    ]
    told = f"; for vectors stored as {' and '.join(forms)}" if forms else ""
    weight = storage.spread_out_weight
    return f"{told}; spread out with weight {weight:g}" if weight else told


def _public_sources(recipe: TrainingRecipe) -> Paths:
    """`data.train` by public names; those of one name get a number."""
    if isinstance(recipe.data.train, str):
        return public_name(recipe.data.train)
    named: dict[str, float] = {}
    for source, share in sources_of(recipe.data.train).items():
        name, number = public_name(source), 1
        while name in named:
            name, number = f"{public_name(source)} {number + 1}", number + 1
        named[name] = share
    return named


def _mixed(train: Paths) -> str:
    if isinstance(train, str):
        return train
    return " and ".join(f"{share:.4g} of {name}" for name, share in train.items())


def read_scores(path: Path) -> Scores:
    """Read the scores of toolkit.evaluate: a row of numbers per encoder, or a single row."""
    content = read_json(path)
    rows = content if isinstance(content, dict) else {}
    if rows and not any(isinstance(row, dict) for row in rows.values()):
        rows = {"this encoder": rows}
    cells = [v for row in rows.values() for v in (row.values() if isinstance(row, dict) else [row])]
    # In Python True is an int, but it is not a score.
    known = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in cells)
    if not cells or not known or not all(isinstance(row, dict) for row in rows.values()):
        raise BadInput(f"{path}: holds no scores; give the scores.json of toolkit.evaluate")
    return rows


def model_card(facts: CardFacts, *, name: str) -> str:
    """The Markdown of the card of the export `name`."""
    front = {
        "library_name": "peft" if facts.form == "peft" else "sentence-transformers",
        "pipeline_tag": "feature-extraction" if facts.form == "peft" else "sentence-similarity",
        "tags": ["llm2vec", "sentence-similarity", "feature-extraction"],
    }
    if facts.form != "peft":
        front["tags"] = ["sentence-transformers", *front["tags"]]
    # The hub could not find a folder. Only a hub name has a slash (`public_name`), or a path that
    # was given as the name of an adapter's base.
    if "/" in facts.base and not facts.base.startswith((".", "/")):
        front |= {"base_model": [facts.base]}
        front |= {"base_model_relation": "adapter" if facts.form == "peft" else "finetune"}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {in_markdown(name)}\n",
        _about(facts),
        f"## Training\n\n{_training(facts)}",
        *([f"## Merged from\n\n{_merged(facts.merge)}"] if facts.merge else []),
        f"## Scores\n\n{_scores(facts.scores)}",
        f"## How to load it\n\n{_loading(facts, name=name)}",
    ]
    if facts.recipe is not None:
        shown = as_yaml(_without_paths(facts.recipe))
        parts.append(f"## Recipe of the last stage\n\n{as_code_block(shown, language='yaml')}")
    return "\n".join(parts)


def _about(facts: CardFacts) -> str:
    prefix = facts.instruction_format.format(instruction="INSTRUCTION")
    what = "An adapter for" if facts.form == "peft" else "A text encoder made from"
    return (
        f"{what} {as_code(facts.base)}, whose attention is bidirectional, after the recipe of "
        "LLM2Vec (arXiv 2404.05961).\n\n"
        f"A text becomes a vector of {facts.width} numbers: {_pooled(facts)}. A text is cut at "
        f"{facts.max_tokens} tokens. With an instruction it reads {as_code(f'{prefix}TEXT')}.\n"
    )


def _pooled(facts: CardFacts) -> str:
    if facts.pooled_by:
        how = " and ".join(map(as_code, facts.pooled_by))
        return f"its last hidden states, pooled by {how} as {as_code('modules.json')} says"
    if (model := _pooling_model(facts)) is None:
        return (
            "the mean of the last hidden states of its own tokens, without the begin token, of "
            "padding and of an instruction"
        )
    every = "the last hidden states of all its tokens, those of an instruction too"
    told = {
        "mean": f"the mean of {every}",
        "weighted_mean": f"the mean of {every}, the n-th with the weight n",
        "last": "the last hidden state of the end token that stands after it",
    }[model.pooling]
    return told if model.keeps_begin else f"{told}; it has no begin token"


def _pooling_model(facts: CardFacts) -> Model | None:
    """The settings of the pooling, unless it is a plain decoder's."""
    model = facts.recipe and facts.recipe.model
    return model if model and trained_rules(model) != PLAIN_RULES else None


def _training(facts: CardFacts) -> str:
    if not facts.stages:
        return "None: the model's own weights, made bidirectional.\n"
    heads = ("stage", "upon", "steps", "rows a step", "tokens a row", "learning rate", "seed")
    keys = ("kind", "base", "steps", "rows", "tokens", "lr", "seed", "trained", "data")
    rows = [
        [str(stage.get(key, "" if stage.get("kind") == MERGE else "not known")) for key in keys]
        for stage in facts.stages
    ]
    return _table([*heads, "trained", "data (digest)"], rows)


def _merged(merge: Mapping[str, Any]) -> str:
    base, parts = merge["base"], merge["models"]
    about = f"By the method {merge['method']}, without training"
    if base:
        about += (
            f"; base {as_code(base['name'])} ({base['digest'][:12]}), density {merge['density']:g}"
        )
    rows = [[p["name"], f"{p['weight']:g}", p["digest"][:12], p["stages"]] for p in parts]
    return f"{about}.\n\n" + _table(["model", "weight", "digest", "its stages"], rows)


def _scores(scores: Scores | None) -> str:
    if scores is None:
        return "None were given to the export (`--scores scores.json` of toolkit.evaluate).\n"
    tasks = list(dict.fromkeys(task for row in scores.values() for task in row))
    rows = [
        [name, *(f"{row[task]:.4g}" if task in row else "" for task in tasks)]
        for name, row in scores.items()
    ]
    return _table(["encoder", *tasks], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[in_markdown(cell) for cell in row] for row in (heads, *rows)]
    # Markdown takes the row above this line for the header.
    cells.insert(1, ["---"] * len(heads))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _loading(facts: CardFacts, *, name: str) -> str:
    is_plain = _pooling_model(facts) is None and not facts.pooled_by
    engines = _ENGINES_OF_WORD_WEIGHTS if is_plain else _ENGINES
    text = _MERGED + engines
    if facts.form == "peft":
        text = _CHAIN if facts.is_chained else _PEFT
    if facts.form == "llm2vec":
        text += _LLM2VEC
    instruction = facts.instruction_format.format(instruction="INSTRUCTION").strip()
    values = {"NAME": name, "BASE": facts.base, "PREFIX": instruction}
    earlier = [f"ADAPTER_OF_STAGE_{number}" for number in range(1, len(facts.stages))]
    lists = {
        "<EARLIER>": ", ".join(map(as_python, earlier)),
        "<EARLIER_FOLDERS>": " ".join(earlier),
    }

    def filled(match: re.Match[str]) -> str:
        if match[0] in lists:
            return lists[match[0]]
        return as_python(values[match[1]]) if match[1] else as_code(facts.base)

    # All placeholders at once: a name may itself contain one.
    return re.sub('"<(NAME|BASE|PREFIX)>"|<(?:BASE|EARLIER|EARLIER_FOLDERS)>', filled, text)


def _without_paths(recipe: TrainingRecipe) -> dict[str, Any]:
    settings = recipe.model_dump(mode="json")
    settings["run_dir"] = public_name(settings["run_dir"])
    settings["model"]["base"] = public_name(settings["model"]["base"])
    settings["data"]["train"] = _public_sources(recipe)
    settings["deepspeed"]["config"] = Path(settings["deepspeed"]["config"]).name
    if recipe.teacher:
        teacher = settings[recipe.kind]["teacher"]
        for key in ("embeddings", "query_embeddings"):
            teacher[key] = teacher[key] and public_name(teacher[key])
    return settings


_MERGED = """\
```python
# sentence-transformers >= 6
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("<NAME>").encode(["a text"])

# transformers >= 5.2: bidirectional by config.json (`is_causal: false`); earlier ones stay causal
from transformers import AutoModel

hidden_states = AutoModel.from_pretrained("<NAME>")
```
"""

_ENGINES = """
vLLM (read in its source in 2026, not run): `vllm serve FOLDER --runner pooling`. Its Llama,
Mistral, Qwen2 and Qwen3 follow `is_causal: false`, and it pools as `1_Pooling` says, so that its
vectors are the above (of a weighted mean, which it does not know, it can only give the states:
`token_embed`). TEI reads `1_Pooling` too, but is bidirectional only for a Qwen3 whose `config.json`
says `"use_bidirectional_attention": true`. Both pool the tokens of an instruction, as here.
"""

_ENGINES_OF_WORD_WEIGHTS = """
vLLM (read in its source in 2026, not run): `vllm serve FOLDER --runner pooling`. Its Llama,
Mistral, Qwen2 and Qwen3 follow `is_causal: false`, and it pools by the mean because `modules.json`
says so; but it knows no WordWeights, so the begin token counts in that mean, and vectors differ
from the above. For the same ones ask for the states of all tokens (`token_embed`) and average them
without the first.
"""

_LLM2VEC = """
```python
# llm2vec 0.2.3 (transformers 4.44)
from llm2vec import LLM2Vec

encoder = LLM2Vec.from_pretrained("<NAME>")
vectors = encoder.encode(["a text"])
vectors = encoder.encode([["<PREFIX>", "a text"]])  # with an instruction
```

Beyond the limit of tokens llm2vec cuts texts between words, so that its vectors of long texts
differ.
"""

_CHAIN = """\
The adapter stands upon <BASE> with the adapters of the stages before it (see the table) merged into
it, in their order.

```python
from toolkit.encoding.encoder import Encoder

adapters = [<EARLIER>, "<NAME>"]
encoder = Encoder.from_pretrained("<BASE>", adapters=adapters)
```

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModel

config = AutoConfig.from_pretrained("<BASE>")
config.is_causal = False  # transformers >= 5.2
model = AutoModel.from_pretrained("<BASE>", config=config)
for adapter in (<EARLIER>, "<NAME>"):
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
```

For sentence-transformers, merge them into a folder:

```
python -m toolkit.export "<BASE>" OUT --adapters <EARLIER_FOLDERS> "<NAME>"
```
"""

_PEFT = """\
The adapter stands upon <BASE> and nothing else: where that is itself a merged encoder (of an
earlier stage), the model it was made from will not do.

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModel

config = AutoConfig.from_pretrained("<BASE>")
config.is_causal = False  # transformers >= 5.2
base = AutoModel.from_pretrained("<BASE>", config=config)
model = PeftModel.from_pretrained(base, "<NAME>")
```

In llm2vec 0.2.3, where it can load the base:

```python
LLM2Vec.from_pretrained("<BASE>", peft_model_name_or_path="<NAME>")
```
"""
