"""docs/datasets.md names every key that a dataset file or a list may have."""

from pathlib import Path

from dataset.lists import BOXES_KEY, SIDE_KEYS, SPEAKER_KEYS
from dataset.schema import FOREIGN_KEYS, GeneralKeys, ImageEntry, VideoEntry


def test_every_key_is_documented(root: Path) -> None:
    text = (root / "docs" / "datasets.md").read_text(encoding="utf-8")
    keys = {*GeneralKeys.model_fields, *ImageEntry.model_fields, *VideoEntry.model_fields, *SIDE_KEYS,
            *SPEAKER_KEYS, BOXES_KEY}
    assert not [key for key in sorted(keys - {"control_path_0"}) if f"`{key}`" not in text]


def test_every_key_has_a_description() -> None:
    for model in (GeneralKeys, ImageEntry, VideoEntry):
        assert all(field.description for field in model.model_fields.values())
    assert all(reason for _, reason in FOREIGN_KEYS.values())
