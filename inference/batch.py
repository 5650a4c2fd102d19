"""Several generations on models that are loaded once; what fails is reported and does not stop the rest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.config import to_toml
from common.errors import ConfigError, UserError
from common.logs import get_logger
from inference.denoise import Watch
from inference.inputs import Prepared
from inference.outputs import check_save_path
from inference.pipeline import Pipeline, load_pipeline
from inference.plan import Plan
from inference.prompts import PromptEntry
from inference.request import GenerationRequest
from inference.result import GenerationResult

log = get_logger(__name__)


@dataclass(frozen=True)
class Failure:
    """A request of several that gave no result."""

    where: str
    error: UserError


def generate(request: GenerationRequest, *, watch: Watch | None = None) -> GenerationResult:
    """Make one clip from a request, and write it where `save_path` says (nowhere when it is None).

    Every check that needs no model comes first; each model is freed when its work is done. `watch(step, sample)` sees
    the latents after each step. Raises UserError with what is wrong and how to mend it.
    """
    if request.from_file is not None or request.latent_path:
        raise ConfigError("generate() makes one clip from a prompt. --from_file is generate_many(), --latent_path is "
                          "decode_latents().")
    if request.save_path is not None:
        check_save_path(request)
    [outcome] = generate_many([PromptEntry("prompt", request)], watch=watch)
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


def generate_many(entries: Sequence[PromptEntry], *, watch: Watch | None = None
                  ) -> Iterator[GenerationResult | Failure]:
    """Make a clip of each entry, in order, each written before the next is begun; failures come first.

    Text, pictures and sound of all are encoded before the DiT is loaded. The models are those of the first request.
    Raises UserError where the models themselves are unusable, for one and for all.
    """
    first = next((entry.request for entry in entries if entry.request is not None), None)
    pipeline = None if first is None else load_pipeline(first)
    plans: list[tuple[str, Plan]] = []
    for entry in entries:
        try:
            if entry.request is None or pipeline is None:
                raise ConfigError(entry.problem)
            plan = pipeline.plan(entry.request)
            log.info("%s", to_toml(plan.request) if len(entries) == 1 else f"{entry.where}: {plan.summary}")
            plans.append((entry.where, plan))
        except UserError as error:
            yield Failure(entry.where, error)
    if pipeline is None:
        return
    ready: list[tuple[str, Prepared]] = []
    outcomes = pipeline.prepare_each([plan for _, plan in plans], free=True)
    for (where, _), outcome in zip(plans, outcomes, strict=True):
        if isinstance(outcome, UserError):
            yield Failure(where, outcome)
        else:
            ready.append((where, outcome))
    yield from _finish_each(pipeline, ready, watch)


def _finish_each(pipeline: Pipeline, ready: Sequence[tuple[str, Prepared]], watch: Watch | None
                 ) -> Iterator[GenerationResult | Failure]:
    for number, (where, prepared) in enumerate(ready, start=1):
        if len(ready) > 1:
            log.info("%d of %d: %s", number, len(ready), prepared.plan.prompt)
        try:
            yield pipeline.make(prepared, watch=watch, free=number == len(ready))
        except UserError as error:
            yield Failure(where, error)
