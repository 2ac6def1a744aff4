"""What a run records at every step: metrics, progress, held-out figures, skipped steps.

Every rank has a recorder, since evaluation is collective; only rank 0's writes.
"""

from pathlib import Path

from toolkit.base.console import Progress, say
from toolkit.base.errors import RunFailed
from toolkit.base.layout import SKIPPED_FILE
from toolkit.parallel import comm
from toolkit.runs.records import EPOCHS
from toolkit.settings.schema import MntpRecipe, TrainingRecipe
from toolkit.text.mixture import Mixture
from toolkit.training.held_out import evaluate
from toolkit.training.loop import Step, Trainer
from toolkit.training.metrics import MetricsLog
from toolkit.training.probe import open_probe
from toolkit.training.utilisation import Utilisation
from toolkit.training.views import View, open_views

LISTED = f"its samples stand in {SKIPPED_FILE}"


class Recorder:
    """Records a run that goes on after `first_step`; `first_skipped` of its steps were skipped."""

    def __init__(
        self, recipe: TrainingRecipe, *, trainer: Trainer, first_step: int, first_skipped: int
    ) -> None:
        self._recipe, self._trainer, self._train = recipe, trainer, recipe.train
        self._run_dir, leads = Path(recipe.run_dir), comm.rank() == 0
        self.skipped_steps = first_skipped
        # What the best checkpoint is chosen by; None where the last step was not evaluated.
        self.judged: dict[str, float | None] = {"held_out_loss": None, "probe": None}
        self._evaluate_every = (
            recipe.mntp.evaluate_every_steps if isinstance(recipe, MntpRecipe) else None
        )
        self._probe = open_probe(recipe.train.probe)
        self._metrics = MetricsLog(self._run_dir, step=first_step) if leads else None
        self._views: list[View] = []
        if leads:
            self._views = open_views(
                recipe.train.views,
                run_dir=self._run_dir,
                step=first_step,
                settings=recipe.model_dump(mode="json"),
            )
        self._utilisation = Utilisation(recipe, world_size=comm.world_size(), device=trainer.device)
        self._progress = Progress(
            recipe.kind, total=recipe.train.steps, done=first_step, unit="steps", shown=leads
        )
        if leads and first_step:
            say(f"{recipe.kind}: goes on after step {first_step}")
        # Figures before the first step show what training adds; a restart has them already.
        if not first_step and (figures := self._looked_at(0)):
            self._write({"step": 0, **figures})

    def on_step(self, done: Step) -> None:
        """Record what a step did. Collective.

        Raises `RunFailed` on all ranks when more than `train.max_skipped_steps` were skipped.
        """
        self.skipped_steps += done.skipped
        figures = self._looked_at(done.step)
        used = self._utilisation.figures(done)
        row = {**done.row(), **used, "skipped_steps": self.skipped_steps, **figures}
        row |= self._epochs(done.step)
        last = done.step == self._train.steps
        if done.skipped:
            self._write_skipped(done, row)
        elif last or figures or done.step % self._train.log_every_steps == 0:
            self._write(row)
        self._progress.advance(1, note=f"loss {done.figures['loss']:.4f}")
        if self.skipped_steps > self._train.max_skipped_steps:
            raise RunFailed(
                f"{self._run_dir}: {self.skipped_steps} steps had a loss or gradient that is NaN "
                f"or infinite, more than train.max_skipped_steps={self._train.max_skipped_steps}; "
                f"{LISTED}. Lower train.lr or clean the data, and start anew, or go on with a "
                "larger limit"
            )

    def close(self) -> None:
        """End the progress line, and write everything that is still buffered."""
        self._progress.close()
        if self._metrics:
            self._metrics.close()
        for view in self._views:
            view.close()

    def _looked_at(self, step: int) -> dict[str, float]:
        """The held-out and the probe's figures of `step`, where they are due."""
        figures: dict[str, float] = {}
        self.judged = {"held_out_loss": None, "probe": None}
        if self._is_time(step, every=self._evaluate_every):
            self._trainer.watchdog.enter("evaluate", step=step)
            figures |= evaluate(self._trainer)
            self.judged["held_out_loss"] = figures.get("held_out_loss")
        if self._probe and self._is_time(step, every=self._probe.every_steps):
            self._trainer.watchdog.enter("evaluate", step=step)
            scores = self._probe.scores(self._trainer)
            figures |= scores
            self.judged["probe"] = next(iter(scores.values()))
        return figures

    def _epochs(self, step: int) -> dict[str, float]:
        """How often each source of a mixture has been read in so many steps."""
        stream = self._trainer.stream
        if not isinstance(stream, Mixture):
            return {}
        epochs = stream.epochs(step * self._train.global_batch_rows)
        return {f"{EPOCHS}{source}": value for source, value in epochs.items()}

    def _is_time(self, step: int, *, every: int | None) -> bool:
        return bool(every) and (step % (every or 1) == 0 or step == self._train.steps)

    def _write(self, row: dict[str, float]) -> None:
        if self._metrics:
            self._metrics.write(row)
        figures = {name: value for name, value in row.items() if name != "step"}
        for view in self._views:
            view.show(int(row["step"]), figures)

    def _write_skipped(self, done: Step, row: dict[str, float]) -> None:
        if self._metrics:
            # Steps count from 1 in records, and from 0 in the stream.
            names = self._trainer.sample_names(done.step - 1)
            self._metrics.write_skipped(row, samples=names)
            loss = done.figures["loss"]
            say(f"{self._recipe.kind}: step {done.step} skipped (loss {loss}), {LISTED}")
