"""Lines of keys, and faults, in TOML files."""

from pathlib import Path

import pytest

from common.config import read_toml
from common.errors import ConfigError

TEXT = """# comment
top = 1
text = \"\"\"
fake = 2
\"\"\"
[general]
resolution = [960,
  544]
"quoted key" = 3

[[datasets]]
video_directory = "a"  # one
[[datasets]]
video_directory = 'b'
[datasets.deep]
a.b = 1
"""


def test_the_line_of_each_key_is_known(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(TEXT, encoding="utf-8")
    document = read_toml(file)
    assert document.data["datasets"][1]["deep"]["a"]["b"] == 1
    assert document.line("top") == 2
    assert document.line("fake") is None
    assert document.line("general", "resolution") == 7
    assert document.line("general", "quoted key") == 9
    assert document.line("datasets", 0, "video_directory") == 12
    assert document.line("datasets", 1) == 13
    assert document.line("datasets", 1, "video_directory") == 14
    assert document.line("datasets", 1, "deep", "a", "b") == 16
    assert document.where("top") == f"{file} line 2"
    assert document.where("absent") == str(file)


def test_a_broken_file_names_the_line_and_windows_paths(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('dit = "C:\\Users\\me"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 1.*Windows path"):
        read_toml(file)
    file.write_bytes("caption = 'é'".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_toml(file)
