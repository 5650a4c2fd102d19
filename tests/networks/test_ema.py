"""The moving average of trained weights."""

import pytest
import torch

from common.errors import NetworkFileError
from networks.ema import Ema, decay_at
from networks.lora_wan import create_network
from tests.networks.toy import toy


def one_weight(value=0.0):
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def run(ema, layer, values):
    for value in values:
        torch.nn.init.constant_(layer.weight, value)
        ema.update()


def average(ema):
    return ema.state()["average.weight"].item()


def test_decay_warms_up_as_tensorflow_states_it():
    assert [decay_at(t, 0.999) for t in (1, 2, 10)] == [2 / 11, 3 / 12, 11 / 20]
    assert decay_at(10_000, 0.999) == 0.999
    assert decay_at(1, 0.1) == 0.1


def test_average_of_constant_weights_has_the_closed_form():
    """From 0 towards 1 the distance left is the product of the decays."""
    layer = one_weight()
    ema = Ema(layer, 0.999)
    run(ema, layer, [1.0] * 5)
    left = 2 / 11 * 3 / 12 * 4 / 13 * 5 / 14 * 6 / 15
    assert average(ema) == pytest.approx(1 - left, rel=1e-6)


def test_past_the_warm_up_it_is_the_geometric_sum():
    layer = one_weight()
    ema = Ema(layer, 0.05)  # below 2/11, so that it holds from the first update
    run(ema, layer, [3.0, -1.0, 2.0])
    assert average(ema) == pytest.approx(0.95 * (2 - 1 * 0.05 + 3 * 0.05**2), rel=1e-6)


def trained_network():
    network = create_network(toy(), dim=4, alpha=4)
    ema = Ema(network, 0.9)
    source = torch.Generator().manual_seed(1)
    for _ in range(3):
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn(weight.shape, generator=source))
        ema.update()
    return network, ema


def test_swapping_shows_the_averages_and_gives_the_weights_back_bit_for_bit():
    network, ema = trained_network()
    before = {name: tensor.clone() for name, tensor in network.state().items()}
    with ema.swapped():
        shown = {name: tensor.clone() for name, tensor in network.state().items()}
        with ema.swapped():
            assert all(torch.equal(shown[name], tensor) for name, tensor in network.state().items())
        assert all(torch.equal(shown[name], tensor) for name, tensor in network.state().items())
    averages = ema.state()
    weights = [name for name in before if not name.endswith(".alpha")]
    assert all(torch.equal(shown[name], averages[f"average.{name}"]) for name in weights)
    assert not any(torch.equal(shown[name], before[name]) for name in weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state().items())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_gives_the_weights_back_too(error):
    network, ema = trained_network()
    before = {name: tensor.clone() for name, tensor in network.state().items()}
    with pytest.raises(error), ema.swapped():
        raise error
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state().items())
    ema.update()


def test_gradients_stay_with_the_trained_weights():
    network, ema = trained_network()
    weights = [*network.parameters()]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    places = [(weight.data_ptr(), weight.grad.data_ptr()) for weight in weights]
    with ema.swapped():
        pass
    assert [(weight.data_ptr(), weight.grad.data_ptr()) for weight in weights] == places
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in weights)


def test_going_on_from_the_state_equals_going_on():
    network, ema = trained_network()
    other = create_network(toy(), dim=4, alpha=4, seed=8)
    resumed = Ema(other, 0.9)
    resumed.load_state({key: value.clone() if isinstance(value, torch.Tensor) else value
                        for key, value in ema.state().items()})
    other.load_state_dict(network.state_dict())
    for _ in range(2):
        ema.update()
        resumed.update()
    first, second = ema.state(), resumed.state()
    assert first["updates"] == second["updates"] == 5
    assert all(torch.equal(value, second[key]) for key, value in first.items() if isinstance(value, torch.Tensor))


def test_the_state_of_another_network_is_refused():
    _, ema = trained_network()
    for other in (create_network(toy(), dim=8), create_network(toy(), dim=4, args={"exclude_patterns": ".*ffn.*"})):
        with pytest.raises(NetworkFileError, match="parameters differ"):
            Ema(other, 0.9).load_state(ema.state())


def test_frozen_parameters_are_left_alone():
    network = create_network(toy(), dim=4)
    frozen = next(iter(network.layers.values())).lora_down.weight.requires_grad_(False)
    ema = Ema(network, 0.9)
    assert len(ema.state()) == 31 + 2
    with torch.no_grad():
        frozen.fill_(5)
    with ema.swapped():
        assert (frozen == 5).all()
