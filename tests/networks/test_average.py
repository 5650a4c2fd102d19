"""Averages of checkpoints: shares against closed forms, and files of other runs refused by name."""

import json
import os

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError, NetworkFileError
from common.tensorfile import read_header, save_tensors
from networks.average import decaying_shares, power_of, power_shares
from networks.files import save_network
from networks.formats import read_lora
from tools.average_checkpoints import main

KEY = "lora_unet_blocks_0_self_attn_q"


def tensors(value, *, rank=2, alpha=2.0, dtype=torch.float32):
    """A LoRA of one layer and a condition, every weight `value`, so that averages are those of numbers."""
    full = {f"{KEY}.lora_down.weight": (rank, 8), f"{KEY}.lora_up.weight": (8, rank),
            "conditions.hear.proj.weight": (3,)}
    made = {key: torch.full(shape, float(value), dtype=dtype) for key, shape in full.items()}
    return {**made, f"{KEY}.alpha": torch.tensor(alpha), "conditions.hear.count": torch.tensor(5)}


@pytest.fixture
def saved(tmp_path):
    """Write a checkpoint; returns its path as text."""
    def save(name, value, *, steps=None, session="1", extra=None, **form):
        metadata = {"ss_session_id": session, "ss_network_dim": str(form.get("rank", 2)), **(extra or {})}
        if steps is not None:
            metadata["ss_steps"] = str(steps)
        save_network(tmp_path / name, tensors(value, **form), metadata)
        return str(tmp_path / name)
    return save


def result(tmp_path):
    return load_file(tmp_path / "out.safetensors")


def test_a_decay_gives_geometric_shares():
    shares = decaying_shares(4, 0.9)
    assert shares == pytest.approx([0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1], abs=1e-15)


def test_a_second_decay_is_reached_at_the_last_file():
    """0.9, 0.8, 0.7 for the second, third and fourth file."""
    assert decaying_shares(4, 0.9, 0.7) == pytest.approx([0.9 * 0.8 * 0.7, 0.1 * 0.8 * 0.7, 0.2 * 0.7, 0.3], abs=1e-15)
    assert decaying_shares(2, 0.9, 0.7) == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.15, 0.25, 0.28])
def test_gamma_belongs_to_its_width(sigma_rel):
    """The relation that Karras et al. solve: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    gamma = power_of(sigma_rel)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(sigma_rel**2, rel=1e-9)
    assert gamma >= 0


def test_published_gammas_are_met():
    """Karras et al., section 3: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert [round(power_of(width), 2) for width in (0.05, 0.10)] == [16.97, 6.94]


def test_the_power_profile_telescopes():
    """Its decays multiply to (t/T)^(gamma+1), so the shares are differences of that; the oldest has none."""
    gamma, last = power_of(0.1), 5
    expected = [0.0] + [(t / last) ** (gamma + 1) - ((t - 1) / last) ** (gamma + 1) for t in range(1, last + 1)]
    assert power_shares(last + 1, 0.1) == pytest.approx(expected, abs=1e-12)


def test_the_widest_profile_weighs_all_but_the_oldest_alike():
    assert power_shares(5, 12**-0.5) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25], abs=1e-6)


@pytest.mark.parametrize("wrong", [0.0, 0.3, -1.0])
def test_a_width_beyond_the_flat_profile_is_refused(wrong):
    with pytest.raises(ConfigError, match="sigma_rel"):
        power_shares(3, wrong)


def test_files_are_averaged_in_the_order_of_their_steps(tmp_path, saved):
    files = [saved("c.safetensors", 3, steps=300), saved("a.safetensors", 1, steps=100),
             saved("b.safetensors", 2, steps=200)]
    assert main([*files, "--decay", "0.5", "--out", str(tmp_path / "out.safetensors")]) == 0
    found = result(tmp_path)
    for key in (f"{KEY}.lora_down.weight", f"{KEY}.lora_up.weight", "conditions.hear.proj.weight"):
        assert torch.equal(found[key], torch.full_like(found[key], 0.25 * 1 + 0.25 * 2 + 0.5 * 3)), key
    assert found[f"{KEY}.alpha"] == 2 and found["conditions.hear.count"] == 5
    assert read_lora(tmp_path / "out.safetensors").entries["blocks_0_self_attn_q"].scale == 1


def test_without_steps_the_files_times_decide_and_no_sort_keeps_the_given_order(tmp_path, saved):
    files = [saved("b.safetensors", 2), saved("a.safetensors", 1)]
    os.utime(files[1], (1000, 1000))
    os.utime(files[0], (2000, 2000))
    for words, expected in (([], 0.75 * 1 + 0.25 * 2), (["--no_sort"], 0.75 * 2 + 0.25 * 1)):
        main([*files, "--beta", "0.75", "--output_file", str(tmp_path / "out.safetensors"), *words])
        assert float(result(tmp_path)["conditions.hear.proj.weight"][0]) == expected


def test_metadata_are_the_newest_ones_and_tell_what_was_averaged(tmp_path, saved):
    files = [saved("a.safetensors", 1, steps=100), saved("b.safetensors", 2, steps=200, extra={"ss_epoch": "7"})]
    main([*files, "--sigma_rel", "0.1", "--out", str(tmp_path / "out.safetensors")])
    metadata, _ = read_header(tmp_path / "out.safetensors")
    assert (metadata["ss_steps"], metadata["ss_epoch"]) == ("200", "7")
    told = json.loads(metadata["omnituner.averaged"])
    assert told["rule"] == "sigma_rel 0.1"
    assert told["files"] == [{"file": "a.safetensors", "steps": 100, "share": 0.0},
                             {"file": "b.safetensors", "steps": 200, "share": 1.0}]


def test_equal_checkpoints_average_to_themselves_bit_for_bit(tmp_path):
    made = {key: torch.randn(value.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
            if key.endswith("weight") else value for key, value in tensors(0).items()}
    for name in "abc":
        save_network(tmp_path / f"{name}.safetensors", made, {})
    main([*(str(tmp_path / f"{name}.safetensors") for name in "abc"), "--out", str(tmp_path / "out.safetensors")])
    found = result(tmp_path)
    assert all(torch.equal(found[key], made[key]) and found[key].dtype == made[key].dtype for key in made)


def test_the_distance_from_averaged_products_is_told(tmp_path, capsys):
    """Factors 1 and 3 of rank 1, halves: the product of the averages is 4, the average of the products 5."""
    for name, value in (("a", 1), ("b", 3)):
        save_network(tmp_path / f"{name}.safetensors", tensors(value, rank=1), {"ss_steps": str(value)})
    main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--decay", "0.5",
          "--out", str(tmp_path / "out.safetensors")])
    assert "by at most 20.00% of a layer; that is much" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "told"), [
    ({"session": "2"}, r"b.safetensors: another run \(ss_session_id\) than a.safetensors: 2 instead of 1; --any_run"),
    ({"rank": 4}, r"another rank than a.safetensors: 4 instead of 2(.|\n)*of another shape"),
    ({"extra": {"omnituner.conditions": '{"hear": {"width": "4"}}'}}, "another conditions' settings"),
])
def test_a_file_of_another_run_is_refused_by_name(tmp_path, saved, other, told):
    files = [saved("a.safetensors", 1, extra={"omnituner.conditions": '{"hear": {"width": "3"}}'}),
             saved("b.safetensors", 2, **{"extra": {}, **other})]
    with pytest.raises(NetworkFileError, match=told):
        main([*files, "--out", str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


def test_a_run_that_went_on_is_averaged_on_request(tmp_path, saved):
    files = [saved("a.safetensors", 1, steps=1), saved("b.safetensors", 2, steps=2, session="2")]
    assert main([*files, "--any_run", "--out", str(tmp_path / "out.safetensors")]) == 0


def test_other_keys_are_refused_with_their_names(tmp_path, saved):
    first = saved("a.safetensors", 1)
    save_tensors(tmp_path / "b.safetensors", {**tensors(1), "conditions.see.weight": torch.ones(2)}, {})
    with pytest.raises(NetworkFileError, match="b.safetensors: has 1 tensors that .* lacks: conditions.see.weight"):
        main([first, str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "out.safetensors")])


def test_another_alpha_and_nan_are_refused(tmp_path, saved):
    first, other = saved("a.safetensors", 1), saved("b.safetensors", 2, alpha=4.0)
    with pytest.raises(NetworkFileError, match="alpha' differs"):
        main([first, other, "--out", str(tmp_path / "out.safetensors")])
    broken = saved("c.safetensors", float("nan"))
    with pytest.raises(NetworkFileError, match=r"c.safetensors: .* NaN"):
        main([first, broken, "--out", str(tmp_path / "out.safetensors")])


@pytest.mark.parametrize(("words", "told"), [
    (["a"], "two or more"), (["a", "a"], "each once"), (["a", "b", "--decay", "1.0"], "decay 1"),
    (["a", "b", "--decay", "0.5", "--sigma_rel", "0.1"], "two rules")])
def test_wrong_requests_are_refused(tmp_path, saved, words, told):
    saved("a.safetensors", 1), saved("b.safetensors", 2)
    words = [str(tmp_path / f"{word}.safetensors") if word in "ab" else word for word in words]
    with pytest.raises(ConfigError, match=told):
        main([*words, "--out", str(tmp_path / "out.safetensors")])


def test_no_checkpoint_is_overwritten(tmp_path, saved):
    files = [saved("a.safetensors", 1), saved("b.safetensors", 2)]
    with pytest.raises(ConfigError, match="none of those averaged"):
        main([*files, "--out", files[0]])
