"""Spellings of module paths."""

import pytest
import torch

from networks.names import diffusers_path, kohya_name, spellings


@pytest.fixture(scope="module")
def paths():
    from wan.modules.dit import WanDiT
    from wan.variants import Variant

    with torch.device("meta"):
        dit = WanDiT(Variant(dim=256, ffn_dim=384, layers=12, heads=2, in_channels=36, out_channels=16, text_dim=64,
                             has_image_branch=True, image_dim=1280))
    return [path for path, module in dit.named_modules() if list(module.parameters(recurse=False))]


def test_diffusers_names_agree_with_the_map_for_base_weights(paths):
    """`networks` may not import `wan`, so the two tables are kept in step here."""
    from wan.weights.keys import to_diffusers

    for path in paths:
        if path.rpartition(".")[2].isdigit() and path.startswith("blocks.") and path.count(".") == 1:
            continue  # a block itself: its modulation has a name of its own
        if path == "head":
            continue
        assert diffusers_path(path) + ".weight" == to_diffusers(path + ".weight"), path


def test_no_two_modules_share_a_spelling(paths):
    owners = {}
    for path in paths:
        for name in spellings(path):
            assert owners.setdefault(name, path) == path


def test_kohya_names():
    assert kohya_name("blocks.11.cross_attn.k_img") == "lora_unet_blocks_11_cross_attn_k_img"
