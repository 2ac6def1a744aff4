"""The training program: composes text, model, ranks and an objective into a run.

A run directory that holds a checkpoint is continued from it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.base.console import say
from toolkit.base.errors import RunFailed
from toolkit.base.files import remove_committed, remove_temporaries
from toolkit.base.layout import (
    CHECKPOINT_DIR,
    CONFIG_FILE,
    ENCODER_DIR,
    HEARTBEATS_FILE,
    METRICS_FILE,
    SKIPPED_FILE,
    STARTING_FILE,
    STARTS_FILE,
)
from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import detect
from toolkit.cluster.watchdog import Watchdog
from toolkit.model.attention_kernels import attention_in_use
from toolkit.model.backbone import (
    DTYPES,
    add_lora,
    checkpoint_activations,
    load_backbone,
    load_config,
)
from toolkit.model.bidirectional import prove_attention
from toolkit.model.fp8 import quantize
from toolkit.model.fused import fuse
from toolkit.model.onednn import train_by_onednn
from toolkit.model.weights import saved_name
from toolkit.parallel import comm, zero
from toolkit.settings.schema import TrainingRecipe
from toolkit.training import checkpoint
from toolkit.training.admission import Admission, check_exportable, claim, look, meet, restore
from toolkit.training.checkpoint import Origin
from toolkit.training.data import (
    is_packed,
    make_tokens,
    open_stream,
    open_tokenizer,
    tell_epochs,
)
from toolkit.training.export import encoder_step, write_encoder
from toolkit.training.loop import Step, Trainer
from toolkit.training.objectives import build_objective
from toolkit.training.preflight import NONCE, preflight
from toolkit.training.recorder import Recorder
from toolkit.training.saver import Saver
from toolkit.training.starts import Place, loading, record_start, watched_job

STALL_MARGIN_S = 60.0  # the watchdog knows which rank stalls; the collectives know that one does


def run(recipe: TrainingRecipe, *, environ: Mapping[str, str], stop: StopSignal) -> None:
    """Train `recipe` on the ranks that `environ` describes, from its newest checkpoint if there is
    one. A `stop` that arrives while it loads lets it do one step and save.

    Raises `BadInput` before anything is written when the recipe cannot run here.
    """
    topology = detect(environ)
    result = look(recipe, topology=topology, environ=environ)
    job = watched_job(recipe, topology=topology, environ=environ)
    watchdog = Watchdog(job, rank=topology.rank, host=topology.node_name)
    with watchdog:
        watchdog.enter("load", step=0)
        timeout_s = recipe.train.stall_s + STALL_MARGIN_S
        admission, device = meet(result, topology=topology, timeout_s=timeout_s)
        place = Place(topology=topology, environ=environ, device=device, watchdog=watchdog)
        try:
            done = _run_on_ranks(recipe, admission=admission, place=place, stop=stop)
        except BaseException:
            # Leaving the group would wait for ranks that are in a collective. Ending this process
            # ends theirs too.
            if topology.world_size > 1:
                raise
            _stop()
            raise
        _stop()
    if done < recipe.train.steps:
        stop.leave(environ, leads=topology.rank == 0)


def _stop() -> None:
    zero.stop()
    comm.stop()


def _run_on_ranks(
    recipe: TrainingRecipe, *, admission: Admission, place: Place, stop: StopSignal
) -> int:
    """Load, train, save and export; returns the number of whole steps."""
    run_dir, leads, origin = Path(recipe.run_dir), comm.rank() == 0, admission.origin
    if leads:
        ranks = f"{place.topology.world_size} ranks by {place.topology.launcher}"
        say(f"{recipe.kind}: {ranks}, {run_dir}")
    figures = preflight(
        run_dir, topology=place.topology, data_digest=origin.data_digest, device=place.device
    )
    stop.avoid = figures["slow_nodes"]
    with loading(recipe, place=place):
        restored = restore(run_dir, device=place.device)
        first_step = restored.step if restored else 0
        first_skipped = restored.skipped_steps if restored else 0
        trainer = build_trainer(
            recipe,
            admission=admission,
            restored=restored,
            device=place.device,
            watchdog=place.watchdog,
        )
        del restored
        engine, vocab_size = trainer.engine, trainer.objective.tokenizer.vocab_size
        trained = [saved_name(name) for name in zero.trainable_parameters(engine)]
        check_exportable(admission.base, trained=trained)
        place.watchdog.enter("load", step=0)
        prove(recipe, engine=engine, vocab_size=vocab_size, device=place.device)
        claim(recipe)  # only now, so that what is refused above leaves nothing behind
        if leads:
            _tidy(run_dir, recipe=recipe)
            facts = {"attention": _attention(recipe, trainer), "preflight": figures}
            record_start(run_dir, step=first_step, place=place, facts=facts)
    done = train_and_save(
        recipe,
        trainer=trainer,
        origin=origin,
        first_step=first_step,
        first_skipped=first_skipped,
        should_stop=lambda: stop.received,
    )
    if done < recipe.train.steps:
        if leads:
            say(f"{recipe.kind}: told to stop; step {done} is saved")
    elif leads:
        place.watchdog.enter("export", step=done)
        _export(run_dir, kind=recipe.kind, step=done)
    comm.barrier()
    return done


def _tidy(run_dir: Path, *, recipe: TrainingRecipe) -> None:
    """Remove what a killed run left behind: temporary files, and checkpoints it had to prune."""
    names = (CONFIG_FILE, METRICS_FILE, SKIPPED_FILE, STARTS_FILE, HEARTBEATS_FILE, STARTING_FILE)
    remove_temporaries(run_dir, *names, ENCODER_DIR, NONCE)
    remove_temporaries(run_dir / CHECKPOINT_DIR)
    checkpoint.prune(run_dir, train=recipe.train)


def _attention(recipe: TrainingRecipe, trainer: Trainer) -> str:
    return attention_in_use(
        trainer.engine.module.config,
        attention=recipe.model.attention,
        dtype=DTYPES[recipe.model.dtype],
        on_gpu=trainer.device.type == "cuda",
    )


def build_trainer(
    recipe: TrainingRecipe,
    *,
    admission: Admission,
    restored: checkpoint.Checkpoint | None,
    device: torch.device,
    watchdog: Watchdog,
) -> Trainer:
    """Build tokens, samples, objective and engine, in the state of the checkpoint if there is one.
    Collective: the ranks share the work of tokenising."""
    tokenizer = open_tokenizer(recipe, base=admission.base)
    objective = build_objective(recipe, tokenizer=tokenizer)
    make_tokens(recipe, tokenizer=tokenizer)
    stream = open_stream(recipe, tokenizer=tokenizer)
    if comm.rank() == 0:
        tell_epochs(recipe, stream=stream)
    watchdog.enter("load", step=0)  # restarts its clock, as after each long part of loading
    engine = build_engine(
        recipe,
        admission=admission,
        needs_head=objective.needs_head,
        restored=restored,
        device=device,
    )
    return Trainer(
        engine=engine,
        objective=objective,
        stream=stream,
        train=recipe.train,
        micro_batch_rows=admission.settings.micro_batch_rows,
        device=device,
        watchdog=watchdog,
    )


def _export(run_dir: Path, *, kind: str, step: int) -> None:
    out = run_dir / ENCODER_DIR
    if encoder_step(out) != step:
        remove_committed(out)  # from the same run when it had fewer steps
        try:
            write_encoder(run_dir, out=out)
        except OSError as error:
            again = "the checkpoint is whole: the same command writes it again"
            raise RunFailed(f"{out}: could not be written ({error}); {again}") from error
    say(f"{kind}: done; the merged encoder is {out}")


def build_engine(
    recipe: TrainingRecipe,
    *,
    admission: Admission,
    needs_head: bool,
    restored: checkpoint.Checkpoint | None,
    device: torch.device | None = None,
) -> zero.Engine:
    """Build model, adapters, restored weights, engine and optimizer, in the only order that works.

    Adapters are drawn from the recipe's seed, so that all ranks, however many, start alike.
    """
    settings, base = admission.settings, admission.base
    torch.manual_seed(recipe.train.seed)
    config = load_config(base, attention_dropout=recipe.model.attention_dropout)
    with zero.partitioned_loading(settings):
        model = load_backbone(
            base,
            config=config,
            head=needs_head,
            dtype=recipe.model.dtype,
            attention=recipe.model.attention,
            # Where ranks share the weights, the partitioned loading decides where these go.
            device=None if settings.layout.shares_weights else device,
        )
    if recipe.model.activation_checkpointing:
        checkpoint_activations(model)
    if recipe.model.lora:
        # Seeded again: it must not matter how many random numbers loading has drawn.
        torch.manual_seed(recipe.train.seed)
        model = add_lora(model, lora=recipe.model.lora)
    if recipe.model.fp8:
        quantize(model)
    train_by_onednn(model)
    if device:
        fuse(model, device=device, kernels=recipe.model.kernels)
    if restored:
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        masters = checkpoint.by_parameter(restored.weights, names=names)
        zero.write_weights(model, values=masters)
    engine = zero.start_engine(
        model,
        settings=settings,
        lr=recipe.train.lr,
        weight_decay=recipe.train.weight_decay,
    )
    if restored:
        moments = {
            moment: checkpoint.by_parameter(values, names=names)
            for moment, values in restored.moments.items()
        }
        # Skipped steps have not moved the optimizer, which corrects its moments by this count.
        taken = restored.step - restored.skipped_steps
        zero.write_optimizer(engine, masters=masters, moments=moments, step=taken)
    return engine


def prove(recipe: TrainingRecipe, *, engine: zero.Engine, vocab_size: int, device: Any) -> None:
    """Prove on the engine itself, with its partitions, that attention runs in both directions, and
    that packed rows do not attend to each other."""

    def run(**arguments: Any) -> Any:
        output = engine(**arguments)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state

    engine.eval()
    prove_attention(run, packed=is_packed(recipe), vocab_size=vocab_size, device=device)
    engine.train()


def train_and_save(
    recipe: TrainingRecipe,
    *,
    trainer: Trainer,
    origin: Origin,
    first_step: int,
    first_skipped: int,
    should_stop: Callable[[], bool],
) -> int:
    """Run the loop, record its steps and save checkpoints; returns the number of whole steps.

    Raises `RunFailed` on all ranks when more steps than `train.max_skipped_steps` were skipped, or
    the last state could not be saved.
    """
    recorder = Recorder(recipe, trainer=trainer, first_step=first_step, first_skipped=first_skipped)
    saver = Saver(recipe, engine=trainer.engine, origin=origin)

    def on_step(done: Step) -> None:
        saver.settle(wait=False)
        recorder.on_step(done)

    def save(step: int, last: bool) -> None:
        trainer.watchdog.enter("save", step=step)
        facts = {"skipped_steps": recorder.skipped_steps, **recorder.judged}
        saver.save(step=step, facts=facts, last=last)

    done = trainer.run(first_step=first_step, on_step=on_step, save=save, should_stop=should_stop)
    recorder.close()
    return done
