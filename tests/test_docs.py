"""Commands in the documents are taken by the scripts they name, and links lead somewhere."""

from collections.abc import Callable
from pathlib import Path
import re
import shlex
from typing import Any

import pytest

from common.config import Section, parse
import inference.foreign
from inference.request import GenerationRequest
from precompute.config import (
    LATENT_FOREIGN,
    TEXT_FOREIGN,
    AudioSettings,
    ConditionSettings,
    LatentSettings,
    TextSettings,
)
from training.config import TrainConfig
import training.foreign

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS: dict[str, tuple[type[Section], Any]] = {
    "cache_latents.py": (LatentSettings, LATENT_FOREIGN),
    "cache_text_encoder_outputs.py": (TextSettings, TEXT_FOREIGN),
    "cache_audio_features.py": (AudioSettings, ()),
    "cache_conditions.py": (ConditionSettings, ()),
    "train_network.py": (TrainConfig, training.foreign.FOREIGN),
    "generate_video.py": (GenerationRequest, inference.foreign.FOREIGN),
}
_BEGINS = re.compile(r"(?:\$ )?(?:python|accelerate launch) .*\.py\b.*")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def commands(text: str) -> list[str]:
    """Commands of the fenced blocks and of inline code, continued lines joined; one with … in it is no whole one."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()] + inline
    return [line.removeprefix("$ ") for line in lines if _BEGINS.fullmatch(line.strip()) and "…" not in line]


CASES = [pytest.param(line, id=f"{page.stem}-{number}") for page in PAGES
         for number, line in enumerate(commands(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("line", CASES)
def test_a_command_is_taken_by_its_script(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[place]).is_file(), f"no such script: {words[place]}"
    if words[place] in SCRIPTS:
        settings, foreign = SCRIPTS[words[place]]
        monkeypatch.chdir(tmp_path)
        for value in _config_files(words):
            (tmp_path / value).write_text("{}" if value.endswith(".json") else _enough(settings), encoding="utf-8")
        parse(settings, words[place + 1:], prog=words[place], description="", foreign=foreign)


def _config_files(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == "--config_file"]


def _enough(settings: type[Section]) -> str:
    """A settings file with what the training script cannot do without."""
    return 'dataset_config = "a"\ndit = "a"\noutput_dir = "a"\nnetwork_module = "networks.lora_wan"\n' \
        if settings is TrainConfig else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_shows_the_five_commands() -> None:
    """Guards the search above: it must find what the README is known to hold."""
    found = " ".join(commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert [script for script in SCRIPTS if script not in found] == ["cache_conditions.py"]


def test_a_misspelt_flag_in_a_page_would_be_found() -> None:
    check: Callable[[str], list[str]] = commands
    assert check("```\npython a.py \\\n    --b c\n```\n`python d.py`") == ["python a.py      --b c", "python d.py"]
