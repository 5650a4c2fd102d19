"""Noise-level rules against musubi-tuner's stored values and against closed forms."""

import json

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from training.timesteps import (
    RULES,
    TimestepSettings,
    grid_sigma,
    logit_normal,
    sigmas,
    stratified_uniforms,
    unread_settings,
)

SIZE = (60, 104)
MUSUBI_NAMES = ["sigma", "uniform", "sigmoid", "shift", "flux_shift", "flux2_shift", "ideogram4_shift", "qwen_shift",
                "krea2_shift", "logsnr", "qinglong_flux", "qinglong_qwen"]
TRAP_CASES = {"36": "musubi ignores discrete_flow_shift in its `sigma` rule; here the grid is shifted"}


@pytest.fixture(scope="module")
def uniforms():
    return (torch.arange(200_000) + 0.5) / 200_000


def test_every_name_of_the_flag_has_a_rule():
    assert sorted(RULES) == sorted(MUSUBI_NAMES)


def test_sigmas_match_musubi_but_for_its_trap(golden):
    tensors = load_file(golden / "train_objective_io.safetensors")
    cases = json.loads((golden / "train_objective.json").read_text())
    for case, arguments in cases.items():
        source, size = arguments.pop("source"), tuple(arguments.pop("latent_hw", SIZE))
        settings = TimestepSettings(**arguments)
        if source.startswith("z_sigma"):
            ours = grid_sigma(logit_normal(tensors["z_sigma"], settings.logit_mean, settings.logit_std), settings)
        else:
            ours = sigmas(tensors[source], settings, size)
        same = torch.allclose(ours, tensors[f"{case}.sigma"], rtol=0, atol=2e-6)
        assert same == (case not in TRAP_CASES), f"case {case} {arguments}"


def test_model_time_has_no_offset_of_one(golden):
    """musubi hands 1000*sigma + 1 to the model in training, and 1000*sigma when sampling; here both are 1000*sigma."""
    tensors = load_file(golden / "train_objective_io.safetensors")
    ours = 1000 * sigmas(tensors["u"], TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0), SIZE)
    assert torch.allclose(ours, tensors["10.timesteps"] - 1, rtol=0, atol=2e-3)


def test_sigma_rule_obeys_the_shift(uniforms):
    plain = sigmas(uniforms, TimestepSettings(), SIZE)
    shifted = sigmas(uniforms, TimestepSettings(discrete_flow_shift=3.0), SIZE)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain), atol=1e-6)
    assert shifted.unique().numel() == 1000


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize(("low", "high"), [(0, 875), (875, 1000), (0, 417), (200, 800), (499, 500)])
def test_sigma_rule_keeps_the_range_the_right_way_round(uniforms, low, high, shift):
    settings = TimestepSettings(discrete_flow_shift=shift, min_timestep=low, max_timestep=high)
    times = 1000 * sigmas(uniforms, settings, SIZE)
    assert times.min() >= low - 1e-3
    assert times.max() <= high + 1e-3
    assert shift > 1 or times.unique().numel() == high - low


@pytest.mark.parametrize("name", MUSUBI_NAMES)
def test_every_rule_stays_in_the_range_in_both_ways(uniforms, name):
    for preserve in (False, True):
        settings = TimestepSettings(timestep_sampling=name, min_timestep=100, max_timestep=700,
                                    preserve_distribution_shape=preserve)
        times = 1000 * sigmas(uniforms, settings, SIZE)
        assert 100 - 1e-3 <= times.min() <= times.max() <= 700 + 1e-3
        assert times.max() - times.min() > 300


@pytest.mark.parametrize("name", ["shift", "sigma", "logsnr", "qinglong_flux"])
def test_preserving_the_shape_is_the_law_of_rejection(uniforms, name):
    settings = TimestepSettings(timestep_sampling=name, discrete_flow_shift=3.0, logit_mean=1.0, min_timestep=200,
                                max_timestep=875, preserve_distribution_shape=True)
    ours = sigmas(uniforms, settings, SIZE).sort().values
    whole = TimestepSettings(timestep_sampling=name, discrete_flow_shift=3.0, logit_mean=1.0)
    free = sigmas(uniforms, whole, SIZE)
    kept = free[(free >= 0.2) & (free <= 0.875)].sort().values
    shares = torch.linspace(0.01, 0.99, 50)
    assert torch.allclose(torch.quantile(ours, shares), torch.quantile(kept, shares), atol=2e-3)


def test_a_range_that_the_law_never_meets_is_an_error():
    settings = TimestepSettings(timestep_sampling="logsnr", logit_mean=-6.0, logit_std=0.1, max_timestep=100,
                                preserve_distribution_shape=True)
    with pytest.raises(ConfigError, match="practically no timestep in 0…100"):
        sigmas(torch.rand(4), settings, SIZE)


def test_mixtures_have_their_shares(uniforms):
    settings = TimestepSettings(timestep_sampling="qinglong_qwen")
    pure = sigmas(uniforms, TimestepSettings(timestep_sampling="qwen_shift"), SIZE)
    mixed = sigmas(uniforms, settings, SIZE)
    assert torch.allclose(mixed[:190_000:19], pure[::20], atol=1e-3)  # the first 95 % are a stretched qwen_shift
    assert (mixed[190_000:] < 0.4).float().mean() > 0.97  # logsnr(5.36, 1) is the clean end: median 0.064
    assert mixed[190_000:].median() == pytest.approx(0.0642, abs=1e-3)
    flux = sigmas(uniforms, TimestepSettings(timestep_sampling="qinglong_flux"), SIZE)
    assert flux[158_000:180_000].median() == pytest.approx(0.5, abs=1e-3)  # 11 % logsnr(0, 1)


def test_stratified_uniforms_fill_every_slice_equally():
    values = stratified_uniforms(103, 10, seed=3, epoch=1)
    assert len(values) == 103
    counts = torch.histc(values, bins=10, min=0, max=1)
    assert counts.max() <= 11
    assert counts.min() >= 3
    assert torch.equal(values, stratified_uniforms(103, 10, seed=3, epoch=1))
    assert not torch.equal(values, stratified_uniforms(103, 10, seed=3, epoch=2))
    full = stratified_uniforms(100, 10, seed=3, epoch=1)
    assert torch.histc(full, bins=10, min=0, max=1).tolist() == [10] * 10
    with pytest.raises(ConfigError, match="needs 2 or more"):
        stratified_uniforms(100, 1, seed=3, epoch=1)


def test_stratified_draws_stay_stratified_when_the_shape_is_preserved():
    settings = TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0, min_timestep=875,
                                preserve_distribution_shape=True)
    values = sigmas(stratified_uniforms(64, 64, seed=1, epoch=0), settings, SIZE).sort().values
    exact = sigmas((torch.arange(64) + 0.5) / 64, settings, SIZE)
    assert torch.allclose(values, exact, atol=0.01)


@pytest.mark.parametrize(("changes", "message"), [
    ({"timestep_sampling": "sigmiod"}, "nearest: 'sigmoid'"),
    ({"min_timestep": 500, "max_timestep": 400}, "0 <= min < max <= 1000"),
    ({"max_timestep": 1001}, "0 <= min < max <= 1000"),
    ({"discrete_flow_shift": 0}, "above 0"),
])
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        sigmas(torch.rand(2), TimestepSettings(**changes), SIZE)


def test_settings_that_the_rule_does_not_read_are_named():
    settings = TimestepSettings(timestep_sampling="uniform", discrete_flow_shift=3.0, sigmoid_scale=1.0)
    assert unread_settings(settings) == ["discrete_flow_shift"]
    assert unread_settings(TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0)) == []
