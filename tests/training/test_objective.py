"""The flow-matching objective."""

from safetensors.torch import load_file
import torch

from training.objective import noisy_input, velocity_target
from training.timesteps import TimestepSettings, sigmas


def test_noisy_input_and_target_match_musubi(golden):
    tensors = load_file(golden / "train_objective_io.safetensors")
    latents, noise = tensors["objective.latents"], tensors["objective.noise"]
    sigma = sigmas(tensors["objective.u"], TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0), (4, 6))
    assert torch.allclose(1000 * sigma, tensors["objective.timesteps"] - 1, atol=2e-3)
    assert torch.allclose(noisy_input(latents, noise, sigma), tensors["objective.noisy"], atol=1e-6)
    assert torch.equal(velocity_target(latents, noise), tensors["objective.target"])


def test_sigma_zero_is_the_data_and_one_is_the_noise():
    data, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    noisy = noisy_input(data, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(noisy[0], data[0])
    assert torch.equal(noisy[1], noise[1])


def test_a_step_along_the_target_leads_from_noise_to_data():
    data, noise, sigma = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0.3, 0.8])
    noisy = noisy_input(data, noise, sigma)
    assert torch.allclose(noisy - sigma[:, None] * velocity_target(data, noise), data, atol=1e-6)


def test_half_precision_latents_are_mixed_in_float32():
    data, noise = torch.randn(2, 3).bfloat16(), torch.randn(2, 3)
    assert noisy_input(data, noise, torch.tensor([0.5, 0.5])).dtype == torch.float32
    assert velocity_target(data, noise).dtype == torch.float32
