"""The checks in the order in which they are made: what the others rest on comes first."""

from collections.abc import Iterator

from tools.health.finding import Check, Finding, Patient, examine
from tools.health.folders import check_folders
from tools.health.gpu import check_devices, check_torch
from tools.health.kernels import check_attention, check_bitsandbytes
from tools.health.launching import check_accelerate_config
from tools.health.packages import check_cv2, check_trackers, check_transformers, check_versions
from tools.health.system import check_clock, check_encoding, check_processors, check_python
from tools.health.video import check_video

CHECKS: dict[str, Check] = {
    "python": check_python,
    "processors": check_processors,
    "encoding": check_encoding,
    "clock": check_clock,
    "packages": check_versions,
    "cv2": check_cv2,
    "torch": check_torch,
    "GPU": check_devices,
    "attention": check_attention,
    "bitsandbytes": check_bitsandbytes,
    "transformers": check_transformers,
    "video": check_video,
    "folders": check_folders,
    "trackers": check_trackers,
    "accelerate's configuration": check_accelerate_config,
}


def findings(patient: Patient) -> Iterator[Finding]:
    """Of all checks, each as soon as it is there."""
    for name, check in CHECKS.items():
        yield from examine(name, check, patient)
