"""Every flag of musubi-tuner gets the answer that docs/coming-from-musubi.md promises."""

from pathlib import Path
from typing import Any

import pytest

from common.config import FlagField, flags_of, parse
from common.errors import ConfigError
from tools.coming_from_musubi import SCRIPTS, Answer, Script, answers, page
from tools.musubi_flags import MUSUBI_FLAGS
from training.config import TIMESTEP_RULES, WEIGHTINGS

VALUES: dict[str, list[str]] = {
    "task": ["t2v-14B"], "mixed_precision": ["bf16"], "network_args": ["rank_dropout=0.1"],
    "optimizer_args": ["weight_decay=0.01"], "lr_scheduler_args": ["T_max=3"], "network_module": ["networks.lora_wan"],
    "max_timestep": ["900"], "min_timestep": ["100"], "output_name": ["mine"],
    "metadata_reso": ["832,480"], "attn_mode": ["sdpa"],
    "network_dropout": ["0.1"], "num_timestep_buckets": ["4"], "save_path": ["out.mp4"], "video_length": ["81"],
    "cfg_skip_mode": ["early"],
}
"""Values for flags whose type alone does not give a good one."""
COMPANIONS: dict[str, list[str]] = {
    "dim_from_weights": ["--network_weights", "x.safetensors"],
    "base_weights_multiplier": ["--base_weights", "x.safetensors"],
    "save_last_n_epochs": ["--save_every_n_epochs", "1"],
    "save_last_n_steps": ["--save_every_n_steps", "1"],
    "sample_every_n_steps": ["--sample_prompts", "prompts.txt"],
    "sample_every_n_epochs": ["--sample_prompts", "prompts.txt"],
    "sample_at_first": ["--sample_prompts", "prompts.txt"],
    "lora_multiplier": ["--lora_weight", "x.safetensors"],
    "cfg_skip_mode": ["--cfg_apply_ratio", "0.7"],
    "cfg_apply_ratio": ["--cfg_skip_mode", "late"],
}
"""Flags that mean something only beside another."""


def cases() -> list[Any]:
    return [pytest.param(script, answer, id=f"{script.name}:{answer.flag}")
            for script in SCRIPTS for answer in answers(script)]


def words_for(field: FlagField) -> list[str]:
    """A command line that gives the flag one good value."""
    if field.is_switch:
        return [f"--{field.name}"]
    kind = str(field.annotation)
    plain = field.choices[0] if field.choices else "1" if "int" in kind or "float" in kind else "some"
    value = VALUES.get(field.name) or [str(plain)] * (field.count or 1)
    return [f"--{field.name}", *value]


def minimum(script: Script, without: str) -> list[str]:
    """The flags that a script cannot do without."""
    required = [field for field in flags_of(script.settings) if field.required and field.name != without]
    return [word for field in required for word in words_for(field)]


@pytest.mark.parametrize(("script", "answer"), cases())
def test_each_flag_of_musubi_gets_the_promised_answer(script: Script, answer: Answer, tmp_path: Path,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    fields = {name: field for field in flags_of(script.settings) for name in (field.name, field.alias) if name}
    argv = minimum(script, without=answer.flag)
    if answer.flag == "config_file":
        (tmp_path / "a.toml").write_text("", encoding="utf-8")
        argv += ["--config_file", str(tmp_path / "a.toml")]
    elif answer.flag in fields:
        words = words_for(fields[answer.flag])
        argv += [f"--{answer.flag}", *words[1:], *COMPANIONS.get(answer.flag, [])]
    else:
        argv += [f"--{answer.flag}", "1"]

    def read() -> Any:
        with caplog.at_level("INFO"):
            return parse(script.settings, argv, prog=script.name, description="", foreign=script.foreign)

    if answer.outcome in ("coming", "refused"):
        with pytest.raises(ConfigError, match=f"--{answer.flag} is not (here yet|offered)") as caught:
            read()
        assert answer.note in str(caught.value)
        return
    settings = read()
    told = " ".join(caplog.messages)
    if answer.outcome == "no effect":
        assert f"--{answer.flag} is accepted and changes nothing: {answer.note}" in told
    elif answer.flag in fields and fields[answer.flag].differs:
        assert f"note: --{fields[answer.flag].name}: {fields[answer.flag].differs}" in told
    assert settings is not None


def test_foreign_flags_are_flags_of_musubi() -> None:
    for script in SCRIPTS:
        known = {answer.flag for answer in answers(script)}
        own = {field.name for field in flags_of(script.settings)}
        names = [entry.name for entry in script.foreign]
        assert set(names) <= known and not set(names) & own and len(names) == len(set(names)), script.name


def test_no_flag_of_musubi_is_left_out(shared: Path) -> None:
    dump = (shared / "reference" / "musubi_flags.txt").read_text(encoding="utf-8")
    names = dict(zip(("cache_latents", "cache_te", "train", "generate"), MUSUBI_FLAGS, strict=True))
    found: dict[str, set[str]] = {}
    script = ""
    for line in dump.splitlines():
        if line.startswith("## "):
            script = names[line[3:]]
        elif line.startswith("--"):
            found.setdefault(script, set()).add(line[2:].split("|")[0])
    assert found == {name: {flag for flags in needs.values() for flag in flags} for name, needs in MUSUBI_FLAGS.items()}


def test_the_page_in_docs_is_written_from_the_programs(root: Path) -> None:
    text = (root / "docs" / "coming-from-musubi.md").read_text(encoding="utf-8")
    assert text == page(), "run: python tools/coming_from_musubi.py"


def test_every_flag_is_explained() -> None:
    for script in SCRIPTS:
        for field in flags_of(script.settings):
            assert len(field.help) > 8, (script.name, field.name)


def test_the_parser_knows_the_rules_of_the_training_code() -> None:
    from training.loss import WEIGHTS
    from training.timesteps import RULES

    assert set(TIMESTEP_RULES) == set(RULES)
    assert set(WEIGHTINGS) == set(WEIGHTS)
