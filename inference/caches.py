"""The step cache that a plan asks for."""

from collections.abc import Callable

from common.errors import ConfigError, UserError
from common.logs import get_logger
from inference.first_block import FirstBlock
from inference.magcache import Calibration, MagCache, MagnitudeRatios, published_ratios, read_ratios, write_ratios
from inference.plan import Plan
from inference.step_cache import Rule, StepCache
from inference.teacache import COEFFICIENTS, TeaCache, coefficients_for

log = get_logger(__name__)

FEW_STEPS = 10


def check_step_cache(plan: Plan) -> None:
    """ConfigError for a cache that this plan cannot have, before a model is loaded."""
    request = plan.request
    if request.cache_kind == "magcache":
        _ratios(plan)
    if request.step_cache_calibrate is not None and plan.is_long:
        raise ConfigError(f"--step_cache_calibrate: the sound needs {len(plan.segments)} chunks, and ratios are those "
                          "of one. Cut the sound, or give --video_length.")
    if request.step_cache_calibrate is not None and not plan.guides_every_step:
        raise ConfigError("--step_cache_calibrate: every pass must run in every step. Leave out --guidance_interval, "
                          "--audio_interval and --cfg_skip_mode for this run.")


def make_cache(plan: Plan) -> StepCache | None:
    """A cache for one chunk of a plan; None where none is asked for."""
    request = plan.request
    if request.step_cache_calibrate is not None:
        return StepCache("calibration", lambda name: Calibration(), plan.sampling.schedule.sigmas[:-1])
    if request.cache_kind == "none":
        return None
    name, make_rule = _rules(plan)[request.cache_kind]()
    steps = plan.sampling.steps
    log.info("%s at %g", name, request.cache_threshold)
    if steps < FEW_STEPS:
        log.info("note: a step cache gains little in %d steps, of which the first and the last are computed", steps)
    return StepCache(name.split(",")[0], make_rule, plan.sampling.schedule.sigmas[:-1])


def finish_cache(plan: Plan, cache: StepCache) -> None:
    """Tell what was skipped, or write what was measured."""
    path = plan.request.step_cache_calibrate
    if path is None:
        cache.tell()
        return
    measured = {name: one.rule.ratios() for name, one in cache.passes.items() if isinstance(one.rule, Calibration)}
    steps = plan.sampling.steps
    if any(len(ratios) != steps for ratios in measured.values()):
        raise UserError(f"--step_cache_calibrate: a pass was left out in some of the {steps} steps ("
                        f"{', '.join(f'{name} ran in {len(one)}' for name, one in measured.items())}), because its "
                        "strength came to nothing there. Calibrate with --guidance_annealing none and without "
                        "--audio_scale.")
    run = {"solver": plan.sampling.solver, "steps": steps, "flow_shift": plan.sampling.shift,
           "size": list(plan.size), "frames": plan.length.frames}
    write_ratios(path, measured, plan.variant, run)
    log.info("wrote the magnitude ratios of %d passes over %d steps to %s", len(measured), steps, path)


def _rules(plan: Plan) -> dict[str, Callable[[], tuple[str, Callable[[str], Rule]]]]:
    """Kind of cache → what makes its name and the rule of each pass."""
    request, threshold = plan.request, plan.request.cache_threshold

    def teacache() -> tuple[str, Callable[[str], Rule]]:
        model = coefficients_for(plan.variant, plan.size)
        return f"TeaCache, coefficients of {model}", lambda name: TeaCache(threshold, COEFFICIENTS[model])

    def magcache() -> tuple[str, Callable[[str], Rule]]:
        ratios = _ratios(plan)
        return f"MagCache, {ratios.source}", lambda name: MagCache(
            threshold, ratios.of(name, plan.sampling.steps), request.step_cache_skips, request.step_cache_retention)

    def first_block() -> tuple[str, Callable[[str], Rule]]:
        return "first-block cache", lambda name: FirstBlock(threshold)

    return {"teacache": teacache, "magcache": magcache, "first_block": first_block}


def _ratios(plan: Plan) -> MagnitudeRatios:
    """The ratios of `--step_cache_ratios`, else the published ones; ConfigError where there are none."""
    path = plan.request.step_cache_ratios
    ratios = published_ratios(plan.variant, plan.size) if path is None else read_ratios(path, plan.variant)
    if ratios is None:
        raise ConfigError(f"--step_cache magcache: no magnitude ratios are published for this model ("
                          f"{plan.variant.family}, {plan.variant.dim} wide). Measure them by --step_cache_calibrate "
                          "ratios.json in a run without a cache, then give --step_cache_ratios ratios.json.")
    return ratios
