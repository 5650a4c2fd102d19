"""What generate_video.py does with its settings."""

from common.config import to_toml
from common.devices import Meter, pick_device
from common.errors import ConfigError
from common.launch import refuse_several
from common.logs import get_logger
from inference.batch import Failure, generate_many
from inference.latents import decode_latents
from inference.outputs import check_save_path
from inference.prompts import PromptEntry, read_prompts
from inference.request import GenerationRequest

log = get_logger(__name__)


def run_request(request: GenerationRequest) -> int:
    """Generate or decode everything that is asked for, telling each file. Exit code 1 when something failed.

    A single request that fails raises its error; of several, failures are listed at the end.
    """
    refuse_several("generate_video.py", "for several GPUs start it once for each, with CUDA_VISIBLE_DEVICES and a "
                                        "share of the prompts in a --from_file of its own.")
    if request.latent_path:
        check_save_path(request, len(request.latent_path))
        decode_latents(request)
        return 0
    entries = [PromptEntry("prompt", request)]
    if request.from_file is not None:
        entries = read_prompts(request.from_file, request)
        log.info("%s", to_toml(request))
    check_save_path(request, len(entries))
    failures = []
    meter = Meter(pick_device(request.device))
    for outcome in generate_many(entries):
        if not isinstance(outcome, Failure):
            log.info("wrote %s", outcome.path)
        elif request.from_file is None:
            raise outcome.error
        else:
            failures.append(outcome)
    log.info("%s", meter.line())
    for failure in failures:
        log.error("failed: %s: %s", failure.where, failure.error)
    if failures:
        raise ConfigError(f"{len(failures)} of {len(entries)} prompts of {request.from_file} gave no video; the "
                          "reasons stand above. What was finished is kept.")
    return 0
