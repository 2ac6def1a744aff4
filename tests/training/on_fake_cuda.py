"""Run by test_fake_cuda: every forward pass of the toolkit on a GPU that is not there.

usage: on_fake_cuda.py MODEL GUARD.so FAULT

Two ways, neither of which computes a number. On fake CUDA tensors (`FakeTensorMode`) only forward
passes can run, and each mixing of devices, and each value that the host reads from the device
(`.item()`, `.tolist()`, `bool()`), is an error. On meta tensors backward passes run, too. FAULT is
a fault to plant, or "none". Prints, as JSON, of each case: its error, or an empty text; what waits
for the device and cannot be done otherwise; and the kernels of its attention.

Shapes: B rows, T tokens, D width.
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM

from toolkit.batching.batch import embed_rows, lay_out, to_device, token_states
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.encoding.batches import Batching
from toolkit.encoding.late_chunks import late_chunks_of
from toolkit.encoding.units import ChunkRules
from toolkit.model import attention
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import add_lora, load_config
from toolkit.model.fused import fuse
from toolkit.model.head import Head
from toolkit.model.vector_rules import ASKED_MODES, Normalize, VectorRules
from toolkit.settings.model_source import resolve_model
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import GradedRecipe, MntpRecipe, SupervisedRecipe, TrainingRecipe
from toolkit.text.pair_stream import TaskPair
from toolkit.text.pairs import Pair, PairTask
from toolkit.text.stream import Sample
from toolkit.training.graded import GradedPair
from toolkit.training.objectives import build_objective

TEXTS = ("A bridge carries the railway.", "Why?", "The chemist poured the acid.", "A lock.")
ATEN = torch.ops.aten
CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)
EXTRA = {
    "mntp": [],
    "simcse": ["model.attention_dropout=0"],
    "simcse last": [
        *("model.attention_dropout=0", "model.pooling=last"),
        *("simcse.stored_as=[{vectors: binary}]", "simcse.spread_out_weight=0.1"),
    ],
    "supervised": [
        *("model.attention_dropout=0", "supervised.matryoshka_dims=[32, 64]"),
        "supervised.false_negative_margin=0.1",
        *("supervised.stored_as=[{vectors: int8, dims: 32}]", "supervised.spread_out_weight=0.1"),
    ],
    "graded": [],
}
groups_of = attention._grouped  # before it is replaced


class Watch(TorchDispatchMode):
    """Names each selection by a mask, for which the host must wait to know how much it selects, and
    makes it select `size` tokens. A copy back to the host is an error."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.waits = size, list[str]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].device != CPU:
            if func is ATEN._to_copy.default:
                assert given.get("device") in (None, args[0].device), "copied back to the host"
            if func in (ATEN.index.Tensor, ATEN.index_put.default):
                args = (args[0], self._sized(args[1], func=func), *args[2:])
        return func(*args, **given)

    def _sized(self, indices: Sequence[Tensor | None], *, func: Any) -> Sequence[Tensor | None]:
        masks = [one for one in indices if one is not None and one.dtype == torch.bool]
        if not masks:
            return indices
        assert len(masks) == len(indices) == 1
        self.waits.append(str(func).partition(".")[2])
        return [masks[0].new_zeros(self.size, dtype=torch.long)] * masks[0].dim()


def grouped(bounds: tuple[int, ...], device: torch.device) -> Any:
    """`attention._grouped`, which needs numbers: computed on the host, as it is, and then moved."""
    with unset_fake_temporarily():
        groups, order_T = groups_of(bounds, CPU)

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.empty_like(tensor, device=device)

    made = [
        dataclasses.replace(
            group, place_N=moved(group.place_N), inside_n11t=moved(group.inside_n11t)
        )
        for group in groups
    ]
    return made, moved(order_T)


def model_of(path: str, *, head: bool, dtype: torch.dtype, recipe: TrainingRecipe | None) -> Any:
    """The model on the meta device, with the adapters of a recipe."""
    factory = AutoModelForCausalLM if head else AutoModel
    config = load_config(resolve_model(path))
    with META:
        model = factory.from_config(config, dtype=dtype, attn_implementation=PACKED)
        if recipe is not None:
            assert recipe.model.lora is not None
            model = add_lora(model, lora=recipe.model.lora)
    # Without liger-kernel, whose kernels need a device.
    counts = fuse(model, device=CUDA, kernels="torch")
    layers = config.num_hidden_layers
    assert counts == {"norms": 2 * layers + 1, "lora": 7 * layers if recipe else 0}
    return model.eval() if recipe is None else model.train()


def move(model: nn.Module, *, device: torch.device) -> None:
    """Put the weights on `device`. `Module.to` cannot, since fake tensors refuse its exchange."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                there = torch.empty_like(weight, device=device)
                module._parameters[name] = nn.Parameter(there, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What an encoder computes: vectors by each of the rules, those of late chunks, and the states
    of tokens."""

    path: str
    dtype: torch.dtype

    def prepare(self) -> tuple[Any, Any]:
        tokenizer = text_tokenizer(resolve_model(self.path), max_tokens=32)
        rows = lay_out(tokenizer.encode(TEXTS), tokenizer=tokenizer, packed=True)
        chunks = ChunkRules(8, 2, "document")
        _, windows = late_chunks_of(TEXTS, tokenizer=tokenizer, rules=chunks)
        (late,) = Batching(tokenizer, packed=True, batch_tokens=512).of_windows(windows).batches
        return model_of(self.path, head=False, dtype=self.dtype, recipe=None), (rows, late)

    def run(self, model: Any, prepared: Any, *, device: torch.device) -> list[str]:
        (rows, late), width = prepared, model.config.hidden_size
        with Watch(0) as watch, torch.no_grad():
            there = to_device(rows, device=device)
            vectors_BD = embed_rows(model, there)
            assert (vectors_BD.shape, vectors_BD.device) == ((len(TEXTS), width), device)
            assert token_states(model, there).device == device
            for mode in ASKED_MODES.values():
                rules = VectorRules(modes=(mode,), after=(Normalize(),))
                head = Head(rules, hidden_size=width, device=device)
                assert embed_rows(model, there, head=head).device == device
            head = Head(VectorRules(), hidden_size=width, device=device)
            whole, slices = (to_device(one, device=device) for one in (late.rows, late.slices))
            vectors_BD = embed_rows(model, whole, head=head, slices=slices)
            assert (vectors_BD.shape, vectors_BD.device) == ((len(late.numbers), width), device)
        return watch.waits


@dataclasses.dataclass(frozen=True)
class Training:
    """An objective with LoRA. On meta tensors two micro-batches with their backward passes, which
    the contrastive ones do by GradCache; otherwise one micro-batch forward."""

    path: str
    kind: str

    def prepare(self) -> tuple[Any, Any]:
        overrides = [f"model.base={self.path}", "model.dtype=bf16", "model.attention=packed"]
        recipe = load_recipe(
            f"tiny_{self.kind.split()[0]}", overrides=[*overrides, *EXTRA[self.kind]]
        )
        assert isinstance(recipe, TrainingRecipe)
        tokenizer = text_tokenizer(resolve_model(self.path), max_tokens=32)
        objective = build_objective(recipe, tokenizer=tokenizer)
        contents: Sequence[Any] = TEXTS
        if isinstance(recipe, SupervisedRecipe):
            task = PairTask("one", query_instruction="Find it", max_negatives=1)
            contents = [TaskPair(Pair(text, text[:9], ("no",)), task) for text in TEXTS]
        elif isinstance(recipe, GradedRecipe):
            contents = [GradedPair(text, text[:9], n % 3) for n, text in enumerate(TEXTS)]
        elif isinstance(recipe, MntpRecipe):
            contents = [[row] for row in tokenizer.encode([text * 3 for text in TEXTS])]
        encoded = objective.encode([Sample(0, n, content) for n, content in enumerate(contents)])
        batches = [objective.collate(encoded[:2]), objective.collate(encoded[2:])]
        head = isinstance(recipe, MntpRecipe)
        model = model_of(self.path, head=head, dtype=torch.bfloat16, recipe=recipe)
        return model, (objective, batches)

    def run(self, model: Any, prepared: Any, *, device: torch.device) -> list[str]:
        objective, batches = prepared
        there = [to_device(batch, device=device) for batch in batches]
        alone = device == CUDA or self.kind == "mntp"
        waits = []
        for some in [[batch] for batch in there] if alone else [there]:
            with Watch(len(some[0].target_M) if self.kind == "mntp" else 0) as watch:
                for loss, figures in objective.terms(model, some):
                    assert {one.device for one in (loss, *figures.values())} == {device}
                    if device == META:
                        loss.backward()
            waits += watch.waits
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        assert trained and all(one.grad is not None for one in trained if device == META)
        return waits


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """A fault in every layer, of a kind that must be found."""
    honest = attention.packed_attention

    def reads_bounds(module: Any, *parts: Any, **settings: Any) -> Any:
        settings["cu_seq_lens_q"].tolist()
        return honest(module, *parts, **settings)

    def mixes(module: Any, query: Any, *parts: Any, **settings: Any) -> Any:
        return honest(module, query * torch.ones(query.shape[-1]), *parts, **settings)

    made = {"none": honest, "tolist": reads_bounds, "mixing": mixes}
    with mock.patch.object(attention, "packed_attention", made[fault]):
        yield


def result_of(case: Encoding | Training, *, device: torch.device) -> dict[str, Any]:
    """What is printed of a case."""
    kernels: set[str] = set()
    kernel_for = attention.kernel_for

    def chosen(*, on_gpu: bool, **named: Any) -> str:
        assert on_gpu == (device == CUDA)
        kernels.add(kernel_for(on_gpu=True, **named))
        return kernel_for(on_gpu=True, **named)

    try:
        model, prepared = case.prepare()
        with contextlib.ExitStack() as entered:
            if device == CUDA:
                entered.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
                move(model, device=CUDA)
            entered.enter_context(mock.patch.object(attention, "kernel_for", chosen))
            waits = case.run(model, prepared, device=device)
    except Exception as problem:  # each case has its own
        return {"error": f"{type(problem).__name__}: {problem}"[:2000]}
    return {"error": "", "waits": waits, "kernels": sorted(kernels)}


def main(path: str, guard: str, fault: str) -> None:
    """Run all cases."""
    if torch.version.cuda is None:
        ctypes.CDLL(guard)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    every: dict[str, Callable[[], Encoding | Training]] = {
        "encoder bf16": functools.partial(Encoding, path, torch.bfloat16),
        "encoder fp32": functools.partial(Encoding, path, torch.float32),
        **{kind: functools.partial(Training, path, kind) for kind in EXTRA},
    }
    with planted(fault), mock.patch.object(attention, "_grouped", grouped):
        attention.register()  # keeps what the name stands for now
        found = {
            f"{name}, {where}": result_of(case(), device=device)
            for name, case in every.items()
            for where, device in (("fake cuda", CUDA), ("meta", META))
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
