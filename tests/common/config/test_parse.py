"""The door: command line and settings file to one checked settings object."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from common.config import Foreign, Section, flag, from_values, parse, to_toml
from common.errors import ConfigError


class Network(Section):
    """Network."""

    network_dim: int = flag(4, "Rank of the two small matrices.", ge=1)
    network_args: list[str] = flag([], "Pairs key=value.")
    kind: Literal["plain", "double"] = flag("plain", "Which sort.")


class Everything(Section):
    """General."""

    dit: Path = flag(help="Base weights.", required=True)
    task: str = flag("t2v-14B", "Model and job.", choices=["t2v-14B", "i2v-14B"], alias="model_task")
    seed: int | None = flag(None, "Seed of all draws.")
    learning_rate: float = flag(2e-6, "Step size.", differs="it is counted otherwise here.")
    shuffle: bool = flag(True, "Mix the items.")
    verbose: bool = flag(False, "Say more.")
    video_size: tuple[int, int] = flag((256, 256), "Height and width.")
    lr_warmup_steps: int | float | str = flag(0, "Steps, or a share.")
    wandb_api_key: str | None = flag(None, "Key.", secret=True)
    network: Network

    def problems(self) -> Iterable[str]:
        if self.seed == 13:
            yield "--seed 13 is unlucky"
            yield "--seed 13 is also odd"

    @pydantic.model_validator(mode="after")
    def _refuse_seed_14(self) -> "Everything":
        if self.seed == 14:
            raise ValueError("--seed 14 is refused by a validator")
        return self


FOREIGN = [Foreign("xformers", "refused", "use --sdpa."), Foreign("resume", "coming", "start anew until then."),
           Foreign("persistent", "accepted", "workers always stay."),
           Foreign("old_dim", "renamed", "use --network_dim.")]


def read(*words: str) -> Everything:
    return parse(Everything, list(words), prog="train.py", description="Train.", foreign=FOREIGN)


def problem(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*words)
    return str(caught.value)


def test_every_kind_of_value_is_read_from_the_command_line() -> None:
    settings = read("--dit", "a b.safetensors", "--task=i2v-14B", "--seed", "7", "--learning-rate", "1e-4",
                    "--no_shuffle", "--verbose", "--video_size", "480", "832",
                    "--network_args", "a=1", "b=2", "--kind", "double")
    assert settings.dit == Path("a b.safetensors")
    assert (settings.task, settings.seed, settings.learning_rate) == ("i2v-14B", 7, 1e-4)
    assert (settings.shuffle, settings.verbose, settings.video_size) == (False, True, (480, 832))
    assert (settings.network.network_args, settings.network.kind) == (["a=1", "b=2"], "double")


class Sometimes(Section):
    """Sometimes."""

    compile: Literal["auto", "on", "off"] = flag("auto", "Make it fast.")
    seed: int = flag(1, "Seed.")


def test_on_and_off_may_be_given_as_a_switch_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, value in (([], "auto"), (["--compile"], "on"), (["--compile", "--seed", "3"], "on"),
                         (["--compile", "off"], "off"), (["--no_compile"], "off"), (["--compile=auto"], "auto")):
        assert parse(Sometimes, words, prog="t.py", description="T.").compile == value
    file = tmp_path / "musubi.toml"
    for text, value in (("true", "on"), ("false", "off"), ('"auto"', "auto")):
        file.write_text(f"compile = {text}\n", encoding="utf-8")
        assert parse(Sometimes, ["--config_file", str(file)], prog="t.py", description="T.").compile == value
    with pytest.raises(ConfigError, match="'yes' is none of auto, on, off"):
        parse(Sometimes, ["--compile", "yes"], prog="t.py", description="T.")
    with pytest.raises(SystemExit):
        parse(Sometimes, ["--help"], prog="t.py", description="T.")
    assert "--compile [{auto,on,off}]" in capsys.readouterr().out


def test_an_old_spelling_is_accepted() -> None:
    assert read("--dit", "x", "--model_task", "i2v-14B").task == "i2v-14B"


def test_a_value_may_be_negative_or_begin_with_a_dash() -> None:
    assert read("--dit", "x", "--seed", "-3").seed == -3
    assert read("--dit", "-x.safetensors").dit == Path("-x.safetensors")


def test_all_problems_are_told_at_once() -> None:
    text = problem("--sed", "3", "--task", "i3v-14B", "--learning_rate", "fast", "--verbose", "yes",
                   "--video_size", "4", "--network_dim", "0", "--kind", "doubel", "--xformers", "stray")
    for piece in ("9 problems", "unknown flag --sed (nearest: '--seed')", "--task: 'i3v-14B' is none of",
                  "(nearest: 'i2v-14B')", "--learning_rate: 'fast' is not a number", "--verbose is a switch",
                  "--video_size takes 2 values", "greater than or equal to 1", "(nearest: 'double')",
                  "--dit is required: Base weights", "--xformers is not offered: use --sdpa."):
        assert piece in text, piece


def test_a_stray_word_is_told() -> None:
    assert "unexpected 'train'" in problem("train", "--dit", "x")
    assert "quotes around a value that holds spaces" in problem("--dit", "my", "model.safetensors")


def test_rules_over_several_fields_are_told_line_by_line() -> None:
    text = problem("--dit", "x", "--seed", "13")
    assert "2 problems" in text and "unlucky" in text and "also odd" in text
    assert "refused by a validator" in problem("--dit", "x", "--seed", "14")


@pytest.mark.parametrize(("name", "words"), [("resume", "is not here yet"), ("old_dim", "has another name here")])
def test_a_foreign_flag_answers_with_its_reason(name: str, words: str) -> None:
    assert words in problem("--dit", "x", f"--{name}", "some", "values")


def test_an_accepted_foreign_flag_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        read("--dit", "x", "--persistent")
    assert caplog.messages == ["--persistent is accepted and changes nothing: workers always stay."]


def test_a_flag_that_differs_says_so_only_when_it_is_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        read("--dit", "x")
        assert caplog.messages == []
        read("--dit", "x", "--learning_rate", "1")
    assert caplog.messages == ["note: --learning_rate: it is counted otherwise here."]


def test_a_settings_file_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('\ufeffdit = "x"\nshuffle = false\n[anything]\nseed = 3\nvideo_size = [480, 832]\n[other.deep]\n'
                    'network_dim = 8\nverbose = true\nresume = ""\n', encoding="utf-8")
    settings = read("--config_file", str(file), "--seed", "4", "--no_verbose", "--shuffle")
    assert (settings.seed, settings.video_size, settings.network.network_dim) == (4, (480, 832), 8)
    assert (settings.verbose, settings.shuffle) == (False, True)
    assert read("--config_file", str(file.with_suffix(""))).seed == 3


def test_faults_of_a_settings_file_name_file_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('dit = "x"\n\nseeed = 3\n[a]\nlearning_rate = "fast"\nxformers = true\n', encoding="utf-8")
    text = problem("--config_file", str(file))
    assert f"{file} line 3: unknown key 'seeed' (nearest: 'seed')" in text
    assert f"{file} line 5: learning_rate: 'fast' is not a number" in text
    assert "--xformers is not offered" in text
    assert "no such file" in problem("--config_file", str(tmp_path / "absent.toml"), "--dit", "x")


def test_a_windows_path_that_toml_took_apart_is_told(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('dit = "C:\\new\\train.safetensors"\n', encoding="utf-8")
    assert "holds a control character" in problem("--config_file", str(file))


def test_printed_settings_reproduce_the_run(tmp_path: Path) -> None:
    settings = read("--dit", 'C:\\data\\"x" é\x7f.pth', "--seed", "5", "--lr_warmup_steps", "10%",
                    "--network_args", "a=b c", "--no_shuffle", "--wandb_api_key", "hidden", "--video_size", "1", "2")
    text = to_toml(settings)
    assert "hidden" not in text
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    again = read("--config_file", str(tmp_path / "again.toml"), "--wandb_api_key", "hidden")
    assert again == settings


def test_python_values_build_the_same_settings() -> None:
    assert from_values(Everything, {"dit": "x", "network_dim": 3}) == read("--dit", "x", "--network_dim", "3")
    assert Everything.from_flags(dit="x", seed=2).seed == 2
    with pytest.raises(ConfigError, match="unknown setting 'network_dimm'.*nearest: 'network_dim'"):
        Everything.from_flags(dit="x", network_dimm=3)


def test_settings_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        read("--dit", "x").seed = 3  # type: ignore[misc]


def test_help_explains_each_flag_and_ends_the_process(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        read("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for piece in ("General:", "Network:", "--no_shuffle", "Base weights (required)",
                  "(default: t2v-14B); also --model_task", "--config_file TOML",
                  "--video_size N N", "{plain,double}"):
        assert piece in text, piece
