"""Keys and reference frames of items."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dataset.items import item_key


def test_equal_stems_in_folders_and_with_endings_do_not_collide() -> None:
    names = ["a/x.mp4", "b/x.mp4", "x.mp4", "x.mov", "a_x.mp4", "x_wan.mp4"]
    assert len({item_key(name) for name in names}) == len(names)


def test_key_is_stem_and_eight_digits_of_the_relative_path() -> None:
    # xxh3-64 of the text, first eight hex digits.
    assert item_key("sub/clip one.v2.mp4").startswith("clip one.v2-")
    assert len(item_key("clip.mp4").removeprefix("clip-")) == 8
    assert item_key("clip.mp4") == item_key("clip.mp4")
    assert item_key("walk.v2").startswith("walk.v2-")


@given(st.text(alphabet=st.characters(blacklist_characters="/\\\0", blacklist_categories=["Cs"]), min_size=1,
               max_size=250))
def test_any_name_gives_a_short_name_that_every_system_takes(name: str) -> None:
    key = item_key(f"{name}.mp4")
    assert len(f"{key}_00000-081_1280x720.reference_latents.safetensors".encode()) < 200
    assert not set(key) & set('<>:"/\\|?*\n\t')


@pytest.mark.parametrize("rule", ["random", "random_outside"])
def test_reference_frame_is_drawn_from_content_and_clip_alone(rule: str) -> None:
    from pathlib import Path

    from dataset.items import Item
    from dataset.rows import FileRef
    from dataset.sources import Clock
    from dataset.spans import Span

    def item(content: str) -> Item:
        return Item(key="k", name="n", where="w", section="s", section_index=0, kind="video",
                    media=FileRef(Path("x"), "x"), content=content, caption="", clock=Clock(25.0), n_frames=100,
                    picture_start_s=0.0, spans=(), repeats=1, batch_size=1, cache=Path("c"),
                    reference_rule=rule)  # type: ignore[arg-type]

    span = Span(20, 41, 32, 32)
    drawn = [item(str(number)).reference_frame(span) for number in range(300)]
    assert drawn == [item(str(number)).reference_frame(span) for number in range(300)]
    assert all(frame is not None and 0 <= frame < 100 for frame in drawn)
    inside = [frame for frame in drawn if frame is not None and 20 <= frame < 61]
    assert bool(inside) == (rule == "random")
    assert len(set(drawn)) > 40
