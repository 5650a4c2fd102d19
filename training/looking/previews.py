"""Previews: videos of the network as it stands, made in training by the code of generate_video.py."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
import time
from typing import Any

from torch import nn

from common.devices import free_memory
from common.logs import get_logger
from inference.inputs import Prepared
from training.callbacks import Callback, Outcome, Run, StepReport, ValidationReport
from training.looking.modal_copy import ModalCopy
from training.looking.preview_files import stem_of, write_preview
from training.looking.preview_page import PAGE, write_page
from training.looking.preview_plan import Piece, PreparedPreviews
from training.looking.validation import measuring
from training.processes import MeetingPoint
from training.signals import Interrupted
from wan.modules.dit import WanDiT

log = get_logger(__name__)


class Previews(Callback):
    """Makes every preview when a round of them is due, each process its share; put it behind the checkpoints.

    The trainer's own DiT and conditions make them, in eval mode with the weights that a checkpoint would hold; nothing
    of the training is different afterwards. What fails is told and counted, and training goes on.
    """

    state_name = "previews"

    def __init__(self, previews: PreparedPreviews, *, dit: WanDiT, network: nn.Module,
                 as_saved: Callable[[], AbstractContextManager[Any]], passing: Path | None = None) -> None:
        """`as_saved` gives the context in which the network has the weights that a checkpoint would hold.

        `passing` is a file that a later network takes the place of (the best one), which no record may name.
        """
        self.previews = previews
        self.failures = 0
        """Previews that could not be made, over all processes and rounds of this start."""
        self._network, self._as_saved, self._passing = network, as_saved, passing
        self._copy = ModalCopy.from_environment()
        self._meeting: MeetingPoint | None = None
        self._checkpoint: tuple[int, Path] | None = None
        self._losses: dict[str, float] = {}
        self._held_out = (-1, 0.0)
        """Step of the last validation, and its loss."""
        self._step, self._done = -1, set[int]()
        previews.pipeline.models.lend(dit=dit)

    def remembered(self) -> dict[str, Any]:
        """The step of the last round, and the numbers of the previews that were tried in it."""
        return {"step": self._step, "done": sorted(self._done)}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Go on with the round that was not finished."""
        self._step, self._done = int(values["step"]), {int(number) for number in values["done"]}

    def on_start(self, run: Run) -> None:
        """Say what will be made; make what is due before the first step, or was due when the run stopped."""
        self._meeting = MeetingPoint(run.processes)
        plural = "" if len(self.previews.pieces) == 1 else "s"
        log.info("previews: %d video%s %s; %s", len(self.previews.pieces), plural, self.previews.schedule.words,
                 self.previews.folder / PAGE)
        for piece in self.previews.pieces:
            log.info("preview %02d (%s): %s", piece.number, piece.where, piece.plan.summary)
        if not run.is_ending and self.previews.schedule.is_due(run.state.step):
            self._round(run)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Every so many steps; after the last one `on_end` does it, when the final file is there."""
        self._losses |= {"loss": report.loss, "average_loss": report.average_loss}
        if not run.is_ending and self.previews.schedule.is_due(report.step):
            self._round(run)

    def on_epoch(self, run: Run) -> None:
        """Every so many epochs."""
        distance = self.previews.schedule.every_epochs
        if distance and run.state.epoch % distance == 0 and not run.is_ending:
            self._round(run)

    def on_save(self, run: Run, path: Path) -> None:
        """Note the file that holds what the network is now."""
        if path != self._passing:
            self._checkpoint = (run.state.step, path)

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Note the loss for the page."""
        self._held_out = (report.step, report.loss)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """The last round, of what the final file holds."""
        if outcome is Outcome.FINISHED:
            self._round(run)
        if self.failures:
            log.warning("%d previews could not be made; the reasons stand above", self.failures)

    def _round(self, run: Run) -> None:
        """Make every preview of this step that has not been tried yet."""
        step, processes = run.state.step, run.processes
        if self._step != step:
            self._step, self._done = step, set()
        if self._done >= {piece.number for piece in self.previews.pieces}:
            return
        started = time.monotonic()
        processes.wait()  # until the first process has written the step's checkpoint
        failures, stopped = self._make_own(run)
        assert self._meeting is not None
        self._meeting.wait()
        parts = processes.gather((sorted(self._done), failures, stopped))
        for done, failed, _ in parts:
            self._done.update(done)
            self.failures += failed
        run.stop_together(number for _, _, number in parts)
        if processes.is_main:
            self._write_page(step, time.monotonic() - started)

    def _write_page(self, step: int, seconds: float) -> None:
        try:
            path = write_page(self.previews.folder)
        except Exception as error:  # noqa: BLE001 - a full disk, a record that somebody edited: no reason to stop
            self.failures += 1
            log.error("step %d: %s could not be written, training goes on: %s", step, PAGE, error, exc_info=True)
        else:
            log.info("step %d: previews made in %.0f s: %s", step, seconds, path)

    def _make_own(self, run: Run) -> tuple[int, int | None]:
        """Make this process's previews: how many failed, and the signal that ended it. Nothing inside waits for another
        process."""
        failures = 0
        with measuring(self._network, run.processes.device), self._as_saved(), self._vae_at_hand(run):
            for piece in self.previews.pieces:
                if piece.number not in self.previews.prepared or piece.number in self._done:
                    continue
                try:
                    # Innermost, so that a signal never falls into the putting back of weights and modes.
                    with run.interruptible():
                        self._make(run, piece)
                except Interrupted as stop:
                    return failures, stop.number
                except Exception as error:  # noqa: BLE001 - whatever it is, a look must not end a training
                    failures += 1
                    log.error("step %d: preview %02d (%s) failed, training goes on: %s", run.state.step, piece.number,
                              piece.where, error, exc_info=True)
                free_memory()
                self._done.add(piece.number)
        return failures, None

    def _make(self, run: Run, piece: Piece) -> None:
        prepared = self._with_network(run, self.previews.prepared[piece.number])
        checkpoint = prepared.plan.request.lora_weight[:1]
        result = self.previews.pipeline.make(prepared)
        held_out = [loss for step, loss in [self._held_out] if step == run.state.step]
        facts = {"name": self.previews.name, "step": run.state.step, "epoch": run.state.epoch, "number": piece.number,
                 "from": piece.where, "seed_from": piece.seed_from, **self._losses,
                 **({"held_out_loss": held_out[0]} if held_out else {}),
                 "checkpoint": str(checkpoint[0].absolute()) if checkpoint else None}
        stem = stem_of(self.previews.name, run.state.step, piece.number)
        files = write_preview(self.previews.folder / f"{stem}.mp4", result, piece.plan.scene, facts)
        if self._copy is not None:
            self._copy.copy(files)

    def _with_network(self, run: Run, prepared: Prepared) -> Prepared:
        """The plan as a generation would need it: with this step's checkpoint, where there is one, beside the base."""
        if self._checkpoint is None or self._checkpoint[0] != run.state.step or not self._checkpoint[1].exists():
            return prepared
        files = [(self._checkpoint[1], 1.0), *self.previews.base_weights]
        request = prepared.plan.request.model_copy(update={
            "lora_weight": [path for path, _ in files], "lora_multiplier": [strength for _, strength in files],
            "lora_attach": True})
        return replace(prepared, plan=replace(prepared.plan, request=request))

    @contextmanager
    def _vae_at_hand(self, run: Run) -> Iterator[None]:
        """The VAE on the device inside, in the CPU's memory outside: half a GiB that a training step may need."""
        device, models = run.processes.device, self.previews.pipeline.models
        if device.type == "cpu" or not self.previews.prepared:
            yield
            return
        vae = models.get("vae").to(device)
        try:
            yield
        finally:
            vae.to("cpu")
            free_memory()
