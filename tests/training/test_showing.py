"""What a clip is shown with: defaults by what is trained, and settings that contradict each other or the run."""

from typing import Any

import pytest

from common.errors import ConfigError
from training.config import TrainConfig
from training.showing import PREFIX_FRAMES, Showing, ShowingSection, resolve
from wan.conditions.registry import CONDITIONS

OMNIAVATAR, PAIR = ("omniavatar_add",), ("gated_lite", "reference_channels")


def resolved(names: tuple[str, ...] = (), **flags: Any) -> Showing:
    return resolve(ShowingSection(**flags), {name: CONDITIONS[name] for name in names})


@pytest.mark.parametrize("names", [(), ("reference_channels",)])
def test_without_a_condition_that_hears_nothing_is_dropped(names: tuple[str, ...]) -> None:
    assert resolved(names) == Showing()


def test_a_condition_that_hears_brings_the_recipe() -> None:
    shown = resolved(PAIR)
    assert shown.prefix_frames == PREFIX_FRAMES and len(set(shown.prefix_weights)) == 1
    assert (shown.prefix_dropout, shown.audio_dropout, shown.text_dropout) == (0.1, 0.1, 0.1)
    assert (shown.audio_text_dropout, shown.reference_dropout) == (0.05, 0.05)
    assert (shown.max_tokens, shown.min_frames) == (None, None)


def test_omniavatars_design_keeps_its_reference() -> None:
    assert resolved(OMNIAVATAR).reference_dropout == 0
    assert resolved(OMNIAVATAR, reference_dropout=0.0).reference_dropout == 0
    with pytest.raises(ConfigError, match="omniavatar_add never lacks its reference, by design"):
        resolved(OMNIAVATAR, reference_dropout=0.1)


def test_beside_an_image_to_video_model_no_frame_is_given() -> None:
    shown = resolved(("frame_xattn",))
    assert (shown.prefix_frames, shown.prefix_dropout, shown.reference_dropout) == ((1,), 0, 0)
    assert shown.audio_dropout == 0.1


def test_a_length_without_weight_is_never_drawn() -> None:
    shown = resolved(OMNIAVATAR, prefix_frames=[1, 5, 9], prefix_weights=[2, 0, 1])
    assert (shown.prefix_frames, shown.prefix_weights) == ((1, 9), (2, 1))


def test_random_length_begins_above_the_longest_prefix() -> None:
    shown = resolved(OMNIAVATAR, random_length=True)
    assert shown.min_frames is not None and shown.min_frames > max(shown.prefix_frames)
    assert resolved(OMNIAVATAR, random_length=True, min_frames=5).min_frames == 5


@pytest.mark.parametrize(("flags", "words"), [
    ({"prefix_frames": [4]}, "--prefix_frames 4: lengths are 4n.1 .* nearest below is 1"),
    ({"prefix_frames": [0]}, "--prefix_frames 0: lengths are"),
    ({"prefix_frames": [-3]}, "--prefix_frames -3: lengths are"),
    ({"prefix_frames": []}, "needs at least one length"),
    ({"prefix_frames": [5, 5]}, "names a length twice"),
    ({"prefix_frames": [1, 5], "prefix_weights": [1]}, "1 values for 2 --prefix_frames"),
    ({"prefix_weights": [1]}, "--prefix_weights needs --prefix_frames"),
    ({"prefix_frames": [1, 5], "prefix_weights": [0, 0]}, "one of them above 0"),
    ({"prefix_frames": [1, 5], "prefix_weights": [-1, 2]}, "must be 0 or more"),
    ({"prefix_dropout": 1.5}, "less than or equal to 1"),
    ({"audio_dropout": -0.1}, "greater than or equal to 0"),
    ({"max_tokens": 0}, "greater than or equal to 1"),
    ({"min_frames": 9}, "--random_length, which is not asked for"),
    ({"random_length": True, "min_frames": 10}, "--min_frames 10: lengths are"),
])
def test_settings_that_contradict_each_other_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig.from_flags(dataset_config="d", dit="w", output_dir="o", **flags)


@pytest.mark.parametrize(("names", "flags", "words"), [
    ((), {"prefix_frames": [1]}, "needs a condition that starts from a picture .* trains no condition"),
    (("gated_lite",), {"prefix_dropout": 0.1}, "this run trains gated_lite"),
    (("reference_channels",), {"audio_dropout": 0.1}, "needs a condition that hears"),
    ((), {"audio_text_dropout": 0.1}, "needs a condition that hears"),
    (("gated_lite",), {"reference_dropout": 0.1}, "can do without its reference"),
    (OMNIAVATAR, {"audio_dropout": 0.9}, "--audio_dropout 0.9, --text_dropout 0.1, --audio_text_dropout 0.05 .* 1.05"),
])
def test_settings_that_the_run_has_no_use_for_are_refused(names: tuple[str, ...], flags: dict[str, Any], words: str
                                                         ) -> None:
    with pytest.raises(ConfigError, match=words):
        resolved(names, **flags)


def test_every_contradiction_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved((), prefix_frames=[5], audio_dropout=0.6, text_dropout=0.6, reference_dropout=0.1)
    for words in ("--prefix_frames needs", "--audio_dropout needs", "--reference_dropout needs",
                  "together they are 1.2"):
        assert words in str(caught.value)


def test_shares_of_one_together_and_zeros_are_accepted() -> None:
    assert resolved(OMNIAVATAR, audio_dropout=0.7, text_dropout=0.2, audio_text_dropout=0.1).needs_null_text
    quiet = resolved((), audio_dropout=0.0, text_dropout=0.0, prefix_dropout=0.0, reference_dropout=0.0)
    assert not quiet.needs_null_text and not quiet.needs_null_sound
    assert resolved((), text_dropout=0.3).needs_null_text, "a plain LoRA may drop its captions"
