"""What accelerate's configuration asks for, and what the trainer makes of it."""

from collections.abc import Iterator
import json
import os
from pathlib import Path
import re

from tools.health.finding import Finding, Patient
from tools.health.gpu import cuda_devices

FP16_REASON = "Wan's activations overflow float16 and small gradients vanish in it"
"""The trainer's own words, which its settings cannot be asked for without pydantic."""
NAMES = ("default_config.yaml", "default_config.yml", "default_config.json")


def config_file() -> Path | None:
    """The file that `accelerate launch` reads unasked; None where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    folder = Path(os.environ.get("HF_HOME", cache)).expanduser() / "accelerate"
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_settings(path: Path) -> dict[str, str]:
    """The settings of the first level as text; a list or section below one is left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return {key: str(value) for key, value in json.loads(text).items()}
    found = re.findall(r"^([A-Za-z_]\w*):[ \t]*(.*?)[ \t]*(?:#.*)?$", text, re.MULTILINE)
    return {key: value.strip("'\"") for key, value in found}


def check_accelerate_config(patient: Patient) -> Iterator[Finding]:
    """One line where all is well, else one for each setting that the trainer refuses or passes over."""
    path = config_file()
    if path is None:
        yield Finding("ok", "accelerate's configuration", "none; accelerate launch uses its defaults, which will do")
        return
    settings = read_settings(path)
    problems = list(_problems(settings, patient, path))
    yield from problems
    if not problems:
        told = ", ".join(f"{key} {settings[key]}" for key in ("distributed_type", "num_processes", "mixed_precision")
                         if key in settings)
        yield Finding("ok", "accelerate's configuration", f"{path}: {told or 'nothing of note'}")


def _problems(settings: dict[str, str], patient: Patient, path: Path) -> Iterator[Finding]:
    again = f"run accelerate config again, or delete {path}"
    name = "accelerate's configuration"
    kind = settings.get("distributed_type", "NO").rpartition(".")[2].upper()
    for plugin in ("DEEPSPEED", "FSDP"):
        if kind == plugin:
            yield Finding("FAIL", name, f"distributed_type {kind}: the trainer refuses it (it comes later)",
                          f"accelerate launch --multi_gpu; {again}, choosing no distributed plugin")
    precision = settings.get("mixed_precision", "no").lower()
    if precision == "fp16":
        yield Finding("FAIL", name, f"mixed_precision fp16: the trainer refuses it ({FP16_REASON})",
                      f"give --mixed_precision bf16 to train_network.py; or {again}, choosing bf16")
    if precision == "fp8":
        yield Finding("warn", name, "mixed_precision fp8: it changes nothing here", "for less memory give --fp8_base "
                      "--fp8_scaled to train_network.py")
    if settings.get("dynamo_backend", "NO").rpartition(".")[2].upper() not in ("NO", "") or "dynamo_config" in settings:
        yield Finding("warn", name, "dynamo (torch.compile) is set: it changes nothing here", again)
    if settings.get("use_cpu", "false").lower() == "true" and patient.device.startswith("cuda"):
        yield Finding("warn", name, "use_cpu true on a machine with a GPU", again)
    count = settings.get("num_processes", "1")
    devices = cuda_devices()
    if kind == "MULTI_GPU" and count.isdigit() and devices < int(count):
        yield Finding("FAIL", name, f"num_processes {count} on {devices} GPUs", f"accelerate launch --num_processes "
                                                                               f"{max(devices, 1)}; or {again}")
