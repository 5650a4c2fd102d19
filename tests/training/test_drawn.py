"""What samples are shown: draws of the right frequency that hang on the place alone, masks and nulls by sample."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.features import FeatureBatch
from training.drawn import Dropped, Place, dropped, prefix_counts, with_dropouts, with_prefix
from training.showing import Showing

RECIPE = Showing(prefix_frames=(1, 5, 9, 13), prefix_weights=(1, 1, 1, 1), prefix_dropout=0.1, audio_dropout=0.1,
                 text_dropout=0.1, audio_text_dropout=0.05, reference_dropout=0.05)
MANY = 4000


def within(count: int, share: float) -> bool:
    """Whether a count of MANY draws lies within five deviations of its binomial law."""
    return abs(count - MANY * share) < 5 * (MANY * share * (1 - share)) ** 0.5


def test_lengths_are_drawn_equally_and_none_as_often_as_asked() -> None:
    found = Counter(prefix_counts(RECIPE, Place(range(MANY), 1, 1), 21))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert within(found[0], 0.1) and all(within(found[count], 0.225) for count in (1, 2, 3, 4))


def test_lengths_are_drawn_by_their_weights() -> None:
    showing = replace(RECIPE, prefix_frames=(1, 9), prefix_weights=(3, 1), prefix_dropout=0.0)
    found = Counter(prefix_counts(showing, Place(range(MANY), 1, 1), 21))
    assert sorted(found) == [1, 3] and within(found[3], 0.25)


@pytest.mark.parametrize(("latent_frames", "counts"), [(1, {0}), (2, {0, 1}), (3, {0, 1, 2}), (4, {0, 1, 2, 3})])
def test_a_prefix_leaves_something_to_learn(latent_frames: int, counts: set[int]) -> None:
    assert set(prefix_counts(RECIPE, Place(range(500), 1, 1), latent_frames)) == counts


def test_sound_and_text_are_dropped_as_events_that_exclude_each_other() -> None:
    lost = dropped(RECIPE, Place(range(MANY), 1, 1))
    both = int((lost.sound & lost.text).sum())
    assert within(both, 0.05)
    assert within(int(lost.sound.sum()) - both, 0.1) and within(int(lost.text.sum()) - both, 0.1)
    assert within(int(lost.reference.sum()), 0.05)
    with_both = lost.reference & lost.sound
    assert 0 < with_both.sum() < 2 * MANY * 0.05 * 0.15, "the reference is drawn for itself"


def test_shares_of_one_drop_from_every_sample_and_shares_of_zero_from_none() -> None:
    place = Place(range(200), 1, 1)
    lost = dropped(Showing(audio_text_dropout=1.0, reference_dropout=1.0), place)
    assert lost.sound.all() and lost.text.all() and lost.reference.all()
    assert set(prefix_counts(Showing(prefix_dropout=1.0), place, 9)) == {0}
    kept = dropped(Showing(), place)
    assert not (kept.sound.any() or kept.text.any() or kept.reference.any())
    assert prefix_counts(Showing(), place, 9) == [1] * 200


def test_draws_hang_on_seed_epoch_and_position_alone() -> None:
    def all_of(*parts: range, seed: int = 3, epoch: int = 2) -> list[Any]:
        found: list[Any] = []
        for part in parts:
            place = Place(part, seed, epoch)
            lost = dropped(RECIPE, place)
            found += zip(prefix_counts(RECIPE, place, 21), lost.sound.tolist(), lost.text.tolist(),
                         lost.reference.tolist(), strict=True)
        return found

    whole = all_of(range(64))
    torch.manual_seed(99)
    assert whole == all_of(range(32), range(32, 64)) == all_of(*(range(i, i + 1) for i in range(64)))
    assert whole != all_of(range(64), seed=4) and whole != all_of(range(64), epoch=3)


def clip(*, reference: int | None = 0) -> Any:
    return SimpleNamespace(item=SimpleNamespace(reference_frame=lambda span: reference), span=SimpleNamespace(start=0))


def features(batch: int = 4) -> FeatureBatch:
    text = [torch.full((2 + i, 3), float(i + 1)) for i in range(batch)]
    null = [torch.zeros(1, 3) for _ in range(batch)]
    return FeatureBatch({"text": {"hidden": text, "null": null}, "audio": {"states": torch.ones(batch, 9, 3, 4)},
                         "reference_latents": {"latents": torch.ones(batch, 16, 1, 4, 6)}}, frames=9, fps=25.0)


def test_masks_and_given_latents_are_each_samples_own() -> None:
    latents = torch.randn(4, 16, 3, 4, 6)
    shown = with_prefix(features(), latents, [clip()] * 4, [0, 1, 2, 1])
    assert shown.given_mask is not None and shown.given_latents is not None
    assert shown.given_mask.shape == (4, 1, 3, 4, 6)
    assert shown.given_mask.amin((1, 3, 4)).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert torch.equal(shown.given_mask.amax((1, 3, 4)), shown.given_mask.amin((1, 3, 4)))
    assert torch.equal(shown.given_latents, torch.where(shown.given_mask > 0, latents, torch.zeros(())))


def test_frame_zero_is_a_still_only_where_it_is_the_reference_alone() -> None:
    clips = [clip(reference=0), clip(reference=0), clip(reference=0), clip(reference=7), clip(reference=None)]
    shown = with_prefix(features(5), torch.randn(5, 16, 3, 4, 6), clips, [0, 1, 2, 1, 1])
    assert shown.first_is_still is not None
    assert shown.first_is_still.tolist() == [False, True, False, False, False]


def test_dropped_captions_are_replaced_by_the_null_text_of_their_sample() -> None:
    batch = features()
    lost = Dropped(*(torch.tensor(values) for values in ([False] * 4, [False, True, False, True], [False] * 4)))
    found = with_dropouts(batch, lost)
    hidden = found.features["text"]["hidden"]
    assert [len(one) for one in hidden] == [2, 1, 4, 1] and not hidden[1].any()
    assert [len(one) for one in batch.features["text"]["hidden"]] == [2, 3, 4, 5], "the batch that was given stays"
    assert found.present == {}


def test_a_clip_without_sound_stays_without() -> None:
    lost = Dropped(torch.tensor([True, False, True, False]), torch.zeros(4, dtype=torch.bool),
                   torch.tensor([False, False, False, True]))
    silent = replace(features(), present={"audio": torch.tensor([True, True, False, False])})
    found = with_dropouts(silent, lost)
    assert found.present["audio"].tolist() == [False, True, False, False]
    assert found.present["reference_latents"].tolist() == [True, True, True, False]
    assert with_dropouts(features(), lost).present["audio"].tolist() == [False, True, False, True]


def test_what_a_batch_does_not_hold_is_not_said_to_be_absent() -> None:
    plain = replace(features(), features={"text": features().features["text"]})
    everything = Dropped(*(torch.ones(4, dtype=torch.bool) for _ in range(3)))
    assert with_dropouts(plain, everything).present == {}
