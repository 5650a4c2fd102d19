"""What the audio conditions share: strength by block, encoders that a released file does not name, mixtures refused."""

from dataclasses import replace
import re

import pytest
import torch

from common.errors import ConditionError
from tests.tiny_dit import tiny_features, tiny_variant
from wan.conditions.registry import build_condition, refuse_mixture
from wan.conditions.sound import parse_gain

BLOCKS = (2, 3, 4, 5, 6)


@pytest.mark.parametrize(("text", "gains"), [
    ("", {}), ("1", {}), ("0.5", dict.fromkeys(BLOCKS, 0.5)), ("3:2", {3: 2.0}), ("4-9:0", {4: 0.0, 5: 0.0, 6: 0.0}),
    ("0.5, 3:1, 6:-1.5", {2: 0.5, 4: 0.5, 5: 0.5, 6: -1.5})])
def test_gain_is_a_number_for_all_blocks_or_for_some(text: str, gains: dict[int, float]) -> None:
    assert parse_gain(text, BLOCKS, "x") == gains


@pytest.mark.parametrize(("text", "message"), [
    ("loud", "audio_gain 'loud' is not understood"), ("2:", "audio_gain '2:' is not understood"),
    ("0.5,,", "audio_gain '' is not understood"), ("7-9:1", "names no block that hears. They are 2, 3, 4, 5, 6")])
def test_other_gains_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConditionError, match=re.escape(message)):
        parse_gain(text, BLOCKS, "x")


def test_a_wrong_gain_is_refused_when_the_condition_is_built() -> None:
    with pytest.raises(ConditionError, match="condition 'gated_lite': audio_gain '99:1' names no block"):
        build_condition("gated_lite", {"audio_gain": "99:1"}, tiny_variant())


@pytest.mark.parametrize(("name", "read"), [("omniavatar_add", 16), ("frame_xattn", 8)])
def test_an_encoder_that_a_file_does_not_name_is_known_by_what_is_read_of_a_frame(name: str, read: int) -> None:
    small = {"audio_hidden": "8", "audio_tokens": "3", "token_width": "8"} if name == "frame_xattn" else {}
    torch.manual_seed(1)
    unnamed = build_condition(name, {"audio_states": "0", "audio_width": str(read), **small}, tiny_variant())
    named = build_condition(name, {"audio_states": "3", "audio_width": "4", **small}, tiny_variant())
    named.load_state_dict(unnamed.state_dict())
    batch = replace(tiny_features(), first_is_still=torch.tensor([True, False]))
    absent = replace(batch, features={key: value for key, value in batch.features.items() if key != "audio"},
                     present={"audio": torch.tensor([False, False])})
    for one in (batch, absent):
        states = [condition.prepare(one, (3, 2, 3)) for condition in (unnamed, named)]
        found = [state.residuals if name == "omniavatar_add" else state.sound[0] for state in states]
        assert torch.equal(*found)
    wider = {"audio": {"states": torch.zeros(2, 9, 4, 4)}, "reference_latents": batch.features["reference_latents"]}
    with pytest.raises(ConditionError, match=f"expected 9 frames of which {read} numbers are read"):
        unnamed.prepare(replace(batch, features=wider), (3, 2, 3))


def test_rows_beside_the_clip_of_another_length_are_refused() -> None:
    batch = tiny_features()
    audio = {**batch.features["audio"], "after": torch.zeros(2, 3, 3, 4)}
    condition = build_condition("gated_lite", {"audio_states": "3", "audio_width": "4"}, tiny_variant())
    with pytest.raises(ConditionError, match=re.escape("the sound after the clip is [3, 3, 4]; expected [2, 3, 4]")):
        condition.prepare(replace(batch, features={"audio": audio}), (3, 2, 3))


@pytest.mark.parametrize(("names", "message"), [
    (("omniavatar_add", "gated_lite"), "omniavatar_add and gated_lite both hear the sound"),
    (("frame_xattn", "gated_lite", "reference_channels"), "frame_xattn and gated_lite both hear the sound"),
    (("omniavatar_add", "reference_channels"), "omniavatar_add and reference_channels both begin from the picture")])
def test_conditions_that_do_not_go_together_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        refuse_mixture(names)


@pytest.mark.parametrize("names", [("frame_xattn", "reference_channels"), ("gated_lite", "reference_channels"),
                                   ("omniavatar_add",), ()])
def test_a_picture_may_stand_beside_a_sound(names: tuple[str, ...]) -> None:
    refuse_mixture(names)
