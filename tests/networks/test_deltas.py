"""What files of LoHa, LoKr and DoRA do to a weight: closed forms, and LyCORIS's own numbers."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
import torch

from common.errors import NetworkFileError
from networks.attach import attach_lora
from networks.entry import Entry
from networks.formats import read_lora
from networks.merge import LoraMerge, delta_of, merge_transform

NAME = "lora_unet_blocks_0_ffn_0"
CASES = ("locon", "dora rows", "dora columns", "loha", "loha with dora", "lokr", "lokr both", "lokr factor",
         "lokr whole", "lokr with dora")
MERGED_ONLY = {"dora columns": "DoRA by inputs", "loha with dora": "DoRA over LoHa", "lokr with dora": "DoRA over LoKr"}


@pytest.fixture(scope="module")
def lycoris():
    return load_file(Path(__file__).parents[1] / "data" / "lycoris.safetensors")


def of_case(lycoris, case):
    return {key.removeprefix(f"{case}/"): tensor for key, tensor in lycoris.items() if key.startswith(f"{case}/{NAME}")}


def written(folder, tensors):
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def model_of(weight):
    """A module whose `blocks.0.ffn.0` has the weight."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
    block = torch.nn.ModuleDict({"ffn": torch.nn.ModuleList([layer])})
    return torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])}), layer


@pytest.mark.parametrize("case", CASES)
def test_merging_equals_lycoris(tmp_path, lycoris, case):
    merge = merge_transform([(written(tmp_path, of_case(lycoris, case)), 1.0)])
    merged = merge("blocks.0.ffn.0.weight", lycoris["weight"])
    assert (merged - lycoris["weight"] - lycoris[f"{case}/delta"]).abs().max() <= 2e-6
    assert merge.reports()[0].unused == []
    theirs = lycoris[f"{case}/merged"]
    if case == "loha" or case.startswith("lokr"):
        # The library merges these two with (alpha / rank)^2, and trains with alpha / rank. Cases with DoRA have 1.
        [scale] = {one.scale for one in read_lora(tmp_path / "a.safetensors").entries.values()}
        theirs = lycoris["weight"] + (theirs - lycoris["weight"]) / scale
    assert (merged - theirs).abs().max() <= 2e-6


@pytest.mark.parametrize("case", CASES)
def test_strength_moves_along_the_line_from_the_base(tmp_path, lycoris, case):
    """As ComfyUI does. LyCORIS puts a DoRA's strength on the lengths alone, so that 0 is not the base."""
    file = written(tmp_path, of_case(lycoris, case))
    for strength in (0.0, 0.5, -1.5):
        merged = merge_transform([(file, strength)])("blocks.0.ffn.0.weight", lycoris["weight"])
        assert torch.allclose(merged, lycoris["weight"] + strength * lycoris[f"{case}/delta"], atol=3e-6)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("case", [case for case in CASES if case not in MERGED_ONLY])
def test_attaching_equals_lycoris(tmp_path, lycoris, case, strength):
    model, layer = model_of(lycoris["weight"])
    x = torch.randn(3, 5, layer.in_features)
    plain = layer(x)
    network, _ = attach_lora(model, written(tmp_path, of_case(lycoris, case)), strength)
    assert torch.allclose(layer(x) - plain, strength * x @ lycoris[f"{case}/delta"].T, atol=1e-5)
    network.detach()
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("case", MERGED_ONLY)
def test_what_can_only_be_merged_is_refused_beside_the_base(tmp_path, lycoris, case):
    with pytest.raises(NetworkFileError, match=f"is {MERGED_ONLY[case]}, .* merged only"):
        attach_lora(model_of(lycoris["weight"])[0], written(tmp_path, of_case(lycoris, case)))


@pytest.mark.parametrize("case", CASES)
def test_fitting_is_checked_without_weights(tmp_path, lycoris, case):
    merge = merge_transform([(written(tmp_path, of_case(lycoris, case)), 1.0)])
    merged = merge("blocks.0.ffn.0.weight", torch.empty(40, 24, device="meta"))
    assert (merged.device.type, merged.shape) == ("meta", (40, 24))
    with pytest.raises(NetworkFileError, match="another base model"):
        merge("blocks.0.ffn.0.weight", torch.empty(24, 40, device="meta"))


def test_dora_refuses_to_be_put_over_another_network(tmp_path, lycoris):
    model, _ = model_of(lycoris["weight"])
    attach_lora(model, written(tmp_path, of_case(lycoris, "locon")))
    with pytest.raises(NetworkFileError, match="first network beside a base"):
        attach_lora(model, written(tmp_path, of_case(lycoris, "dora rows")))


def test_files_add_up_in_any_order(tmp_path, lycoris):
    files = [read_lora(written(tmp_path, of_case(lycoris, case))) for case in ("dora rows", "loha", "lokr with dora")]
    merged = [LoraMerge([(file, 0.7) for file in order])("blocks.0.ffn.0.weight", lycoris["weight"])
              for order in (files, files[::-1])]
    assert torch.allclose(*merged, atol=1e-6)


def entry(**parts):
    return Entry("layer", ["layer.key"], {name: torch.as_tensor(value) for name, value in parts.items()})


def test_loha_is_an_elementwise_product():
    """(1 2)ᵀ(1 1) ∘ (1 1)ᵀ(3 5) at alpha 1, rank 1."""
    one = entry(hada_w1_a=[[1.0], [2.0]], hada_w1_b=[[1.0, 1.0]], hada_w2_a=[[1.0], [1.0]], hada_w2_b=[[3.0, 5.0]],
                alpha=1.0)
    assert delta_of(one, "weight", torch.zeros(2, 2)).tolist() == [[3, 5], [6, 10]]


def test_lokr_is_a_kronecker_product_and_whole_factors_have_no_strength():
    one = entry(lokr_w1=[[1.0, 2.0]], lokr_w2=[[1.0, 0.0], [3.0, 4.0]], alpha=9999999999.0)
    assert delta_of(one, "weight", torch.zeros(2, 4)).tolist() == [[1, 0, 2, 0], [3, 4, 6, 8]]
    pair = entry(lokr_w1=[[1.0, 2.0]], lokr_w2_a=[[1.0, 0], [0, 1.0]], lokr_w2_b=[[1.0, 0.0], [3.0, 4.0]], alpha=1.0)
    assert delta_of(pair, "weight", torch.zeros(2, 4)).tolist() == [[0.5, 0, 1, 0], [1.5, 2, 3, 4]]


def test_dora_sets_the_lengths_of_rows_or_columns():
    """W + D = [[3, 4], [0, 2]]: rows of length 5 and 2, columns of 3 and √20."""
    parts = {"down": [[1.0, 1.0]], "up": [[1.0], [0.0]], "alpha": 1.0}
    base = torch.tensor([[2.0, 3.0], [0.0, 2.0]])
    by_rows = base + delta_of(entry(**parts, dora_scale=[[10.0], [1.0]]), "weight", base)
    assert torch.allclose(by_rows, torch.tensor([[6.0, 8.0], [0.0, 1.0]]))
    by_columns = base + delta_of(entry(**parts, dora_scale=[[6.0, 20**0.5]]), "weight", base)
    assert torch.allclose(by_columns, torch.tensor([[6.0, 4.0], [0.0, 2.0]]))


def test_the_lengths_of_the_base_itself_change_nothing():
    base = torch.randn(6, 5)
    lengths = torch.linalg.vector_norm(base, dim=1, keepdim=True)
    one = entry(down=torch.randn(2, 5), up=torch.zeros(6, 2), alpha=1.0, dora_scale=lengths)
    assert torch.equal(delta_of(one, "weight", base), torch.zeros(6, 5))


def test_pefts_magnitude_is_that_of_rows(tmp_path, lycoris):
    own = of_case(lycoris, "dora rows")
    prefix = "base_model.model.blocks.0.ffn.0"
    save_file({f"{prefix}.lora_A.weight": own[f"{NAME}.lora_down.weight"],
               f"{prefix}.lora_B.weight": own[f"{NAME}.lora_up.weight"] / 2,  # PEFT's file has no alpha: strength 1
               f"{prefix}.lora_magnitude_vector": own[f"{NAME}.dora_scale"][:, 0].clone()}, tmp_path / "a.safetensors")
    merged = merge_transform([(tmp_path / "a.safetensors", 1.0)])("blocks.0.ffn.0.weight", lycoris["weight"])
    assert torch.allclose(merged, lycoris["dora rows/merged"], atol=2e-6)


def test_names_of_diffusers_and_bfloat16_are_read(tmp_path, lycoris):
    """SimpleTuner's LyCORIS files: `lycoris_` and the names of diffusers."""
    own = {key.replace(NAME, "lycoris_blocks_0_ffn_net_0_proj"): tensor.bfloat16()
           for key, tensor in of_case(lycoris, "lokr").items()}
    merge = merge_transform([(written(tmp_path, own), 1.0)])
    merged = merge("blocks.0.ffn.0.weight", lycoris["weight"])
    assert torch.allclose(merged - lycoris["weight"], lycoris["lokr/delta"], atol=5e-3)
    assert (merge.reports()[0].layout, merge.reports()[0].applied) == ("LyCORIS", 1)


@pytest.mark.parametrize(("case", "spoil", "message"), [
    ("loha", {"hada_w2_b": None}, r"missing \(hada_w2_b\)"),
    ("lokr", {"lokr_w2_a": None}, r"missing \(lokr_w2_a\)"),
    ("lokr", {"lokr_w1": None}, r"missing \(lokr_w1\)"),
    ("dora rows", {"lora_up.weight": None, "lora_down.weight": None}, r"missing \(down, up\)"),
    ("loha", {"hada_w1_b": torch.zeros(3, 24)}, "of different rank"),
    ("lokr", {"alpha": torch.tensor(9999999999.0)}, "contradicts itself"),
    ("loha", {"lokr_w1": torch.zeros(5, 4), "lokr_w2": torch.zeros(8, 6)}, "LoHa and LoKr at once"),
    ("loha", {"hada_t1": torch.zeros(4, 4, 1, 1)}, "Tucker"),
])
def test_damaged_files_are_refused(tmp_path, lycoris, case, spoil, message):
    tensors = of_case(lycoris, case) | {f"{NAME}.{part}": tensor for part, tensor in spoil.items()}
    with pytest.raises(NetworkFileError, match=message):
        read_lora(written(tmp_path, {key: tensor for key, tensor in tensors.items() if tensor is not None}))


@pytest.mark.parametrize("case", ["loha", "lokr", "dora rows"])
def test_another_width_is_refused(tmp_path, lycoris, case):
    file = written(tmp_path, of_case(lycoris, case))
    with pytest.raises(NetworkFileError, match=r"weight of \[40, 24\]; this model's is \[16, 16\]"):
        merge_transform([(file, 1.0)])("blocks.0.ffn.0.weight", torch.zeros(16, 16))
    with pytest.raises(NetworkFileError, match="24 -> 40 at 'blocks.0.ffn.0'; this model's is 16 -> 16"):
        attach_lora(model_of(torch.zeros(16, 16))[0], file)
