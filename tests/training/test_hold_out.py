"""Which files are held out, and that they stay out of the batches."""

from collections import Counter
from pathlib import Path
import random

import pytest

from common.errors import ConfigError
from dataset.plan import TrainingItem
from tests.training.cached_clips import bare, talking
from training.clips import EpochBatches
from training.looking.held_out import hold_out, listed_names
from training.looking.validation import chosen
from training.processes import Processes


def contents(clips: list[TrainingItem]) -> set[str]:
    return {clip.item.content for clip in clips}


def files(count: int) -> list[TrainingItem]:
    return [clip for number in range(count) for clip in bare(f"file {number}", 0, 9, 18)]


def test_a_file_is_held_out_with_all_its_clips() -> None:
    trained, held_out = hold_out(files(10), share=0.3, count=None, seed=0)
    assert len(contents(held_out)) == 3 and len(held_out) == 9
    assert not contents(trained) & contents(held_out) and len(trained) + len(held_out) == 30


def test_order_and_other_files_do_not_reshuffle() -> None:
    clips = files(40)
    _, held_out = hold_out(clips, share=0.0, count=8, seed=3)
    mixed = list(clips)
    random.Random(1).shuffle(mixed)
    assert contents(hold_out(mixed, share=0.0, count=8, seed=3)[1]) == contents(held_out)
    more = clips + [clip for number in range(40, 60) for clip in bare(f"file {number}")]
    grown = contents(hold_out(more, share=0.0, count=8, seed=3)[1])
    old = contents(clips)
    assert grown & old <= contents(held_out), "an old file changed sides for another old one"
    assert contents(hold_out(clips, share=0.0, count=8, seed=4)[1]) != contents(held_out)


def test_a_copy_of_a_file_goes_where_the_file_goes() -> None:
    clips = [*files(4), *bare("file 2", 0, name="copy.mp4")]
    for seed in range(8):
        trained, held_out = hold_out(clips, share=0.5, count=None, seed=seed)
        assert not contents(trained) & contents(held_out) and len(contents(held_out)) == 2


def test_a_share_holds_out_one_file_at_least_and_none_is_none() -> None:
    assert len(contents(hold_out(files(5), share=0.01, count=None, seed=0)[1])) == 1
    trained, held_out = hold_out(files(5), share=0.0, count=None, seed=0)
    assert len(trained) == 15 and held_out == []


@pytest.mark.parametrize(("count", "share", "number", "words"), [
    (1, 0.1, None, "--validation_split 0.1: the dataset has 1 media item .file 0.mp4., and 1 would be held out"),
    (4, 1.0, None, "has 4 media items .*and 4 would be held out: nothing is left to train on"),
    (4, 0.0, 6, "--validation_count 6: .*Hold out fewer, or add clips"),
])
def test_a_dataset_that_is_too_small_explains_itself(count: int, share: float, number: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        hold_out(files(count), share=share, count=number, seed=0)


@pytest.mark.parametrize("names", [(), ("clip 2.mp4", "clip 5.mp4")], ids=["by share", "by name"])
def test_held_out_clips_are_in_no_batch(names: tuple[str, ...], tmp_path: Path) -> None:
    clips = [talking(tmp_path, f"clip {number}", frames=5) for number in range(7)]
    trained, held_out = hold_out(clips, share=0.3, count=None, seed=0, names=names)
    seen: Counter[str] = Counter()
    for rank in range(2):
        batches = EpochBatches(trained, seed=1, processes=Processes(rank, 2))
        for epoch in (1, 2, 3):
            seen.update(one.item.content for batch in batches(epoch, 0) if batch is not None for one in batch.items)
    assert seen == {content: 3 for content in contents(trained)}
    assert len(contents(held_out)) == 2 and not contents(held_out) & set(seen)


def test_what_is_measured_of_many_does_not_hang_on_their_order() -> None:
    clips = files(6)
    few = chosen(clips, 0, 5)
    assert len(few) == 5 and [one.name for one in chosen(clips[::-1], 0, 5)] == [one.name for one in few]
    assert len(chosen(clips, 0, 100)) == 18


def test_files_are_held_out_by_name(tmp_path: Path) -> None:
    clips = [*files(4), *bare("deep", 0, 9, name="sub/take 1.mp4")]
    (tmp_path / "names.txt").write_text("\ufefffile 1.mp4\n\n# a remark\n  take 1.mp4 \n", encoding="utf-8")
    names = listed_names(["sub/take 1.mp4", str(tmp_path / "names.txt")])
    assert names == ["sub/take 1.mp4", "file 1.mp4", "take 1.mp4"]
    trained, held_out = hold_out(clips, share=0.0, count=None, seed=0, names=names)
    assert contents(held_out) == {"file 1", "deep"} and len(held_out) == 5
    assert contents(trained) == {"file 0", "file 2", "file 3"}


def test_names_that_mean_nothing_or_several_files_are_told_together(tmp_path: Path) -> None:
    clips = [*files(2), *bare("a", name="a/x.mp4"), *bare("b", name="b/x.mp4")]
    with pytest.raises(ConfigError) as caught:
        hold_out(clips, share=0.0, count=None, seed=0, names=["file 1.mp5", "x.mp4", "b/x.mp4"])
    assert "'file 1.mp5' is no media file of the dataset (nearest: 'file 1.mp4')" in str(caught.value)
    assert "'x.mp4' is the name of 2 files (a/x.mp4, b/x.mp4)" in str(caught.value)
    with pytest.raises(ConfigError, match="--validation_items: the dataset has 1 media item .file 0.mp4., and 1 would"):
        hold_out(files(1), share=0.0, count=None, seed=0, names=["file 0.mp4"])
    with pytest.raises(ConfigError, match="cannot be read .No such file"):
        listed_names([str(tmp_path / "absent.txt")])
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no name"):
        listed_names([str(tmp_path / "empty.txt")])
