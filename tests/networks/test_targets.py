"""Which layers a LoRA attaches to."""

import pytest

from common.errors import ConfigError
from networks.sizes import ALWAYS_EXCLUDED, BLOCK_CLASSES
from networks.targets import Patterns, find_targets
from tests.networks.toy import toy


def targets(**patterns):
    return list(find_targets(toy(), BLOCK_CLASSES, Patterns(always_excluded=ALWAYS_EXCLUDED, **patterns)))


def test_all_linears_inside_blocks_and_none_outside():
    found = targets()
    assert len(found) == 16
    assert all(path.startswith("blocks.") for path in found)
    assert "blocks.1.ffn.2" in found
    assert "blocks.0.cross_attn.k_img" in found


def test_real_models_have_the_known_numbers():
    import torch

    from wan.modules.dit import WanDiT
    from wan.variants import Variant

    sizes = {"dim": 1536, "ffn_dim": 8960, "layers": 30, "heads": 12, "out_channels": 16, "text_dim": 4096}
    with torch.device("meta"):
        t2v = WanDiT(Variant(in_channels=16, **sizes))
        i2v = WanDiT(Variant(in_channels=36, has_image_branch=True, image_dim=1280, **sizes))
    patterns = Patterns(always_excluded=ALWAYS_EXCLUDED)
    assert len(find_targets(t2v, BLOCK_CLASSES, patterns)) == 300
    assert len(find_targets(i2v, BLOCK_CLASSES, patterns)) == 360


def test_exclude_takes_away():
    assert not any("ffn" in path for path in targets(exclude=(r".*ffn.*",)))


def test_include_alone_changes_nothing():
    """musubi-tuner's rule, which its documents tell otherwise."""
    assert targets(include=(r".*self_attn\.q",)) == targets()


def test_include_brings_back_what_exclude_took():
    found = targets(exclude=(".*",), include=(r".*self_attn\.(q|v)",))
    assert found == [f"blocks.{i}.self_attn.{name}" for i in range(2) for name in "qv"]


def test_a_pattern_must_match_the_whole_path():
    with pytest.raises(ConfigError, match=r"exclude_patterns 'ffn' matches nothing.*begin and end it with"):
        targets(exclude=("ffn",))


@pytest.mark.parametrize(("patterns", "message"), [
    ({"exclude": ("(ffn",)}, "no regular expression"),
    ({"include": (r".*sefl_attn.*",), "exclude": (".*",)}, "include_patterns '.*sefl_attn.*' matches nothing"),
    ({"include": (r"head\.head",), "exclude": (".*",)}, "include_patterns .* matches nothing"),
    ({"exclude": (".*",)}, "leave none of the 16"),
])
def test_wrong_patterns_are_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        targets(**patterns)


def test_a_model_without_such_blocks_is_refused():
    with pytest.raises(ConfigError, match="no linear layer inside WanAttentionBlock"):
        find_targets(toy().text_embedding, BLOCK_CLASSES, Patterns())
