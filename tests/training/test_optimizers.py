"""The table of optimisers, each on a small fit on the CPU."""

import pytest
import torch

from common.errors import ConfigError
from training.optimizers import (
    build_optimizer,
    current_rates,
    is_schedule_free,
    optimizer_class,
)

FITS = [
    ("", 1e-2, []),
    ("AdamW", 1e-2, ["betas=(0.9, 0.99)", "weight_decay=0"]),
    ("adamw8bit", 1e-2, ["weight_decay=0.0"]),
    ("AdamW8bit", 1e-2, []),
    ("PagedAdamW8bit", 1e-2, []),
    ("Lion", 1e-3, []),
    ("lion8bit", 1e-3, []),
    ("AdEMAMix8bit", 1e-2, []),
    ("Adafactor", 1e-2, ["relative_step=False", "scale_parameter=False"]),
    ("adafactor", 1e-2, []),
    ("Prodigy", 1.0, ["weight_decay=0.01", "d_coef=2.0"]),
    ("sgd", 1e-1, ["momentum=0.9"]),
    ("radam", 1e-2, []),
    ("torch.optim.NAdam", 1e-2, []),
    ("bitsandbytes.optim.AdamW8bit", 1e-2, []),
]


def fit(name, learning_rate, arguments, steps=40):
    torch.manual_seed(0)
    model = torch.nn.Linear(96, 96)  # above bitsandbytes' 4096 elements, so that 8-bit states are used
    inputs, target = torch.randn(64, 96), torch.randn(64, 96)
    groups = [{"params": [model.weight], "lr": learning_rate, "name": "weight"},
              {"params": [model.bias], "lr": learning_rate, "name": "bias"}]
    optimizer = build_optimizer(name, groups, learning_rate=learning_rate, arguments=arguments)
    losses = []
    for _ in range(steps):
        loss = ((model(inputs) - target) ** 2).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer, losses


@pytest.mark.parametrize(("name", "learning_rate", "arguments"), FITS)
def test_optimizer_fits_on_cpu(name, learning_rate, arguments):
    optimizer, losses = fit(name, learning_rate, arguments)
    assert losses[-1] < 0.97 * losses[0], (losses[0], losses[-1])
    assert set(current_rates(optimizer)) == {"weight", "bias"}


def test_empty_name_is_adamw():
    assert optimizer_class("") is torch.optim.AdamW
    assert optimizer_class("ADAMW") is torch.optim.AdamW


def test_eight_bit_states_are_bytes():
    optimizer, _ = fit("adamw8bit", 1e-2, [], steps=2)
    dtypes = {tensor.dtype for state in optimizer.state.values() for tensor in state.values()
              if isinstance(tensor, torch.Tensor) and tensor.numel() >= 4096}
    assert dtypes == {torch.uint8}


@pytest.mark.parametrize(("name", "message"), [
    ("adamw8bits", "nearest: 'adamw8bit'"),
    ("Adm", "nearest: 'adam'"),
    ("nowhere.Nothing", "cannot import 'nowhere'"),
    ("torch.optim.Adamm", "nearest: 'Adam'"),
    ("LBFGS", "several times a step"),
    ("torch.optim.SparseAdam", "sparse"),
])
def test_wrong_names_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_class(name)


@pytest.mark.parametrize(("arguments", "message"), [
    (["beta=(0.9, 0.99)"], r"no argument 'beta' \(nearest: 'betas'\)"),
    (["lr=1"], "learning_rate"),
    (["weight_decay"], "name=value"),
    (["betas=(0.9, 1.5)"], "refuses its settings"),
    (["weight_decay=much"], "refuses its settings"),
])
def test_wrong_arguments_are_refused(arguments, message):
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match=message):
        build_optimizer("AdamW", [{"params": [parameter]}], learning_rate=1e-3, arguments=arguments)


def test_values_are_python_literals():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer("adamw", [{"params": [parameter]}], learning_rate=1e-3,
                                arguments=["betas=(0.8,0.9)", "amsgrad=true", "eps=1e-6"])
    group = optimizer.param_groups[0]
    assert (group["betas"], group["amsgrad"], group["eps"], group["lr"]) == ((0.8, 0.9), True, 1e-6, 1e-3)


def test_group_rates_survive():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate, "name": str(rate)} for rate in (1e-3, 4e-3)]
    optimizer = build_optimizer("adamw8bit", groups, learning_rate=1e-3)
    assert current_rates(optimizer) == {"0.001": 1e-3, "0.004": 4e-3}


def test_prodigy_refuses_two_rates_before_the_first_step():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate} for rate in (1.0, 4.0)]
    with pytest.raises(ConfigError, match="loraplus_lr_ratio"):
        build_optimizer("prodigy", groups, learning_rate=1.0)


def test_prodigy_tells_the_rate_in_effect():
    optimizer, _ = fit("prodigy", 1.0, [], steps=3)
    group = optimizer.param_groups[0]
    assert current_rates(optimizer)["weight"] == pytest.approx(group["d"] * group["lr"])


def test_adafactor_is_not_schedule_free():
    plain, _ = fit("adafactor", 1e-2, ["relative_step=False"], steps=1)
    assert not is_schedule_free(plain)
