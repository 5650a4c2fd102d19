"""What every step cache must do, the decisions of each rule, and generations with them."""

import json
from types import SimpleNamespace

import pytest
import torch

from common.errors import ConfigError
from inference import generate, load_pipeline
from inference.first_block import FirstBlock, relative_l1
from inference.guidance import Step
from inference.magcache import Calibration, MagCache, MagnitudeRatios, published_ratios, read_ratios, write_ratios
from inference.magnitude_ratios import PUBLISHED
from inference.step_cache import Look, Rule, StepCache, run_with_cache
from inference.teacache import TeaCache
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.prepare import prepare_conditions
from wan.conditions.registry import build_condition

SIGMAS = (0.9, 0.7, 0.5, 0.3, 0.1)


class Always(Rule):
    def skips(self, look):
        return True


class AlwaysAfterOne(Always):
    leading = 1


class Caller:
    """A DiT with an audio condition, called step by step with and without a cache."""

    def __init__(self, make_rule):
        self.dit = tiny_dit()
        self.latents, _, self.text = tiny_inputs(1)
        condition = build_condition("omniavatar_add", {"audio_states": "3", "audio_width": "4"}, self.dit.variant)
        torch.manual_seed(1)
        for parameter in condition.parameters():
            parameter.data.normal_(std=0.3)
        self.states = prepare_conditions({"omniavatar_add": condition.requires_grad_(False)}, tiny_features(1),
                                         tuple(self.latents.shape[2:]))
        self.cache = StepCache("test", make_rule, SIGMAS)

    def inputs(self, step):
        return self.latents * SIGMAS[step], torch.tensor([1000 * SIGMAS[step]]), self.text

    def cached(self, step, name="conditional"):
        return run_with_cache(self.dit, self.cache, name, SIGMAS[step], *self.inputs(step), conditions=self.states)

    def plain(self, step):
        return self.dit(*self.inputs(step), conditions=self.states)


@pytest.mark.parametrize("kind", [Always, AlwaysAfterOne])
def test_first_and_last_step_and_a_late_pass_are_computed_bit_for_bit(kind):
    caller = Caller(lambda name: kind())
    assert torch.equal(caller.cached(0), caller.plain(0))
    assert not torch.equal(caller.cached(1), caller.plain(1))
    assert torch.equal(caller.cached(2, "unconditional"), caller.plain(2)), "its first call has no effect to use"
    caller.cached(2), caller.cached(3)
    assert torch.equal(caller.cached(4), caller.plain(4))
    assert (caller.cache.computed, caller.cache.skipped) == (3, 3)


@pytest.mark.parametrize(("kind", "leading"), [(Always, 0), (AlwaysAfterOne, 1)])
def test_a_skipped_step_adds_the_effect_of_the_last_computed_one(kind, leading):
    caller = Caller(lambda name: kind())
    caller.cached(0)

    def through(step, first, end, tokens=None):
        embedded, shared = caller.dit.embed(*caller.inputs(step), conditions=caller.states)
        tokens = embedded if tokens is None else tokens
        for i in range(first, end):
            tokens = caller.dit.run_block(i, tokens, shared)
        return tokens, shared

    led, _ = through(0, 0, leading)
    effect = through(0, leading, 4, led)[0] - led
    led, shared = through(1, 0, leading)
    assert torch.equal(caller.cached(1), caller.dit.head(led + effect, shared)), "with the condition's hooks"


def test_a_rule_that_never_skips_changes_nothing():
    for rule in (FirstBlock(1e-9), TeaCache(1e-9, (0.0, 0.0, 0.0, 0.0, 1.0)), MagCache(1e-9, (0.5,) * 5),
                 Calibration()):
        caller = Caller(lambda name, rule=rule: rule)
        for step in range(5):
            assert torch.equal(caller.cached(step), caller.plain(step)), type(rule)
        assert caller.cache.skipped == 0


def look(index, count, change=None):
    return Look(Step(index, count, 1 - index / count), torch.zeros(1, 1, 6, 2), change)


def run_rule(rule, changes):
    """Which steps a rule skips, told of the computed ones as the cache does."""
    skipped = []
    for index, change in enumerate(changes):
        seen = look(index, len(changes), change)
        skips = rule.skips(seen) and not seen.is_kept
        skipped.append(skips)
        if not skips:
            rule.computed(seen, torch.zeros(1))
    return skipped


def test_first_block_compares_with_the_last_computed_step():
    """Steps of 4 % each: two of them are within 10 %, the third is not, although it is as near to its neighbour."""
    values = [torch.full((2, 3), 1.04**i) for i in range(6)]
    assert relative_l1(values[1], values[0]) == pytest.approx(0.04)
    assert run_rule(FirstBlock(0.1), values) == [False, True, True, False, True, False]
    assert run_rule(FirstBlock(0.039), values) == [False] * 6


def original_magcache(ratios, threshold, longest, retained):
    """The accumulators of MagCache4Wan2.1 for one pass."""
    ratio, error, steps, found = 1.0, 0.0, 0, []
    for index, now in enumerate(ratios):
        skips = False
        if index >= retained:
            ratio, steps = ratio * now, steps + 1
            error += abs(1 - ratio)
            skips = error < threshold and steps <= longest
            if not skips:
                ratio, error, steps = 1.0, 0.0, 0
        found.append(skips)
    return found


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize(("threshold", "longest"), [(0.12, 2), (0.12, 4), (0.03, 2), (0.24, 6)])
def test_magcache_decides_as_the_original_but_for_the_last_step(model, threshold, longest):
    for name, ratios in PUBLISHED[model].items():
        found = run_rule(MagCache(threshold, ratios, longest, 0.2), [None] * len(ratios))
        original = original_magcache(ratios, threshold, longest, len(ratios) // 5)
        assert found == [*original[:-1], False], name
        assert 0 < sum(found) < 0.8 * len(ratios)


def test_a_pass_that_was_left_out_for_steps_counts_them():
    rule = MagCache(10.0, (1.0,) * 10, longest=3, retention=0.0)
    rule.computed(look(2, 10), torch.zeros(1))
    assert rule.skips(look(5, 10)) and not rule.skips(look(6, 10)), "three steps on, not four"


def test_published_ratios_are_those_of_the_model_that_runs():
    assert {name: {len(ratios) for ratios in passes.values()} for name, passes in PUBLISHED.items()} == {
        "Wan2.1-T2V-14B": {50}, "Wan2.1-T2V-1.3B": {50}, "Wan2.1-I2V-14B-480P": {40}, "Wan2.1-I2V-14B-720P": {40}}
    large = published_ratios(tiny_variant(dim=5120), (832, 480))
    assert large is not None and "T2V-14B" in large.source and large.passes["unconditional"][1] == 1.03017
    picture = {"in_channels": 36, "has_image_branch": True, "image_dim": 8}
    found = [published_ratios(tiny_variant(**changes), size) for changes, size in (
        ({"dim": 1536}, (832, 480)), ({"dim": 5120, **picture}, (832, 480)), ({"dim": 5120, **picture}, (1280, 720)),
        ({"dim": 1536, **picture}, (832, 480)), ({}, (832, 480)))]
    assert [one and one.source.split()[-1] for one in found] == [
        "Wan2.1-T2V-1.3B", "Wan2.1-I2V-14B-480P", "Wan2.1-I2V-14B-720P", None, None]


def test_ratios_are_taken_from_the_nearest_step():
    ratios = MagnitudeRatios({"conditional": (1.0, 0.9, 0.8, 0.7, 0.6), "text": (2.0,)}, "test")
    assert ratios.of("conditional", 3) == (1.0, 0.8, 0.6)
    assert ratios.of("conditional", 9)[::2] == (1.0, 0.9, 0.8, 0.7, 0.6)
    assert ratios.of("unconditional", 5) == ratios.of("conditional", 5), "not measured"
    assert ratios.of("text", 2) == (2.0, 2.0) and ratios.of("conditional", 1) == (0.6,)


def test_calibration_measures_the_mean_ratio_of_token_lengths():
    rule = Calibration()
    for effect in (torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[[6.0, 8.0], [0.0, 1.0]]])):
        rule.computed(look(0, 2), effect)
    assert rule.ratios() == [1.0, (2 + 0.5) / 2]


def test_a_calibrated_model_runs_and_the_files_of_others_are_refused(ask, tmp_path):
    settings = {"video_length": 5, "infer_steps": 8, "guidance_scale": 3.0}
    path = tmp_path / "ratios.json"
    plain = generate(ask(**settings)).latents
    assert torch.equal(generate(ask(**settings, step_cache_calibrate=path)).latents, plain), "measuring changes nothing"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {name: len(ratios) for name, ratios in written["ratios"].items()} == {"conditional": 8, "unconditional": 8}
    assert written["ratios"]["conditional"][0] == 1.0 and written["run"]["steps"] == 8
    cached = generate(ask(**settings, step_cache="magcache", step_cache_ratios=path, step_cache_threshold=5.0)).latents
    assert not torch.equal(cached, plain) and cached.isfinite().all()

    other = tiny_variant()
    with pytest.raises(ConfigError, match=r"measured on family t2v, dim \d+, layers"):
        read_ratios(path, other)
    write_ratios(path, {"conditional": [1.0, float("nan")]}, other, {})
    with pytest.raises(ConfigError, match="no numbers"):
        read_ratios(path, other)
    for text in ("[1, 2]", "{", '{"model": 1}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="not a file of --step_cache_calibrate"):
            read_ratios(path, other)
    with pytest.raises(ConfigError, match="no such file"):
        read_ratios(tmp_path / "none.json", other)


def test_magcache_without_ratios_is_refused_before_a_model_loads(ask):
    request = ask(step_cache="magcache")
    pipeline = load_pipeline(request, dit=SimpleNamespace())
    with pytest.raises(ConfigError, match="--step_cache_calibrate ratios.json"):
        pipeline.plan(request)


@pytest.mark.parametrize("settings", [{"guidance_interval": (0.0, 0.5)},
                                      {"cfg_skip_mode": "late", "cfg_apply_ratio": 0.5}])
def test_calibration_with_steps_left_out_is_refused(ask, tmp_path, settings):
    request = ask(step_cache_calibrate=tmp_path / "r.json", **settings)
    with pytest.raises(ConfigError, match="every pass must run in every step"):
        load_pipeline(request).plan(request)


def test_a_first_block_cache_skips_in_a_generation_with_sound(ask_talking, caplog):
    settings = {"infer_steps": 8, "sample_solver": "euler", "guidance_scale": 3.0, "audio_scale": 2.0}
    plain = generate(ask_talking(**settings)).latents
    with caplog.at_level("INFO"):
        cached = generate(ask_talking(**settings, step_cache="first_block", step_cache_threshold=0.5)).latents
    [line] = [message for message in caplog.messages if "model calls skipped" in message]
    assert 0 < int(line.split()[2]) <= 18, line
    assert torch.equal(cached[:, 0], plain[:, 0]) and not torch.equal(cached, plain) and cached.isfinite().all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"teacache_threshold": 0.1, "step_cache": "magcache"}, "asks for TeaCache"),
    ({"teacache_threshold": 0.1, "step_cache_threshold": 0.1}, "say the same"),
    ({"step_cache_threshold": 0.1}, "no cache is asked for"),
    ({"step_cache_ratios": "a.json"}, "belongs to --step_cache magcache"),
    ({"step_cache": "teacache", "step_cache_calibrate": "a.json"}, "without a cache"),
    ({"step_cache": "first_block", "step_cache_threshold": 0.0}, "greater than 0"),
])
def test_flags_that_contradict_each_other_are_refused(ask, settings, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        ask(**settings)


def test_each_kind_has_its_own_default_threshold(ask):
    thresholds = [ask(step_cache=kind).cache_threshold for kind in ("none", "teacache", "magcache", "first_block")]
    assert thresholds == [0.0, 0.1, 0.12, 0.05]
    old = ask(teacache_threshold=0.07)
    assert (old.cache_kind, old.cache_threshold) == ("teacache", 0.07)

def test_a_generation_embeds_each_text_once(ask):
    request = ask(video_length=5, infer_steps=3, guidance_scale=3.0)
    pipeline = load_pipeline(request)
    calls = []
    pipeline.models.get("dit").text_embedding.register_forward_hook(lambda *inputs: calls.append(1))
    pipeline.generate(request)
    assert len(calls) == 2, "positive and negative text, not once a step"
