"""Every kernel compiles for an H100 and reads and writes without gaps; no GPU is needed for that."""

from pathlib import Path
import re
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="needs Triton, which torch brings along for CUDA only")

HALF, FULL, EIGHT = "*bf16", "*fp32", "*fp8e4nv"
WIDTHS = [1536, 5120]
NORM = {"x": HALF, "out": HALF, "weight": FULL}


@pytest.fixture(autouse=True)
def compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken from earlier runs."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel: Any, arguments: dict[str, str], constants: dict[str, Any], warps: int) -> dict[str, Any]:
    """Forms of a kernel, down to PTX, for arguments of these types.

    Pointers, and numbers named in `columns`, are multiples of 16.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    assert set(names) == {*arguments, *constants}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in arguments.items()
                  if kind.startswith("*") or name == "columns"}
    source = ASTSource(kernel, {name: arguments.get(name, "constexpr") for name in names},
                       {(names.index(name),): value for name, value in constants.items()}, attributes)
    forms: dict[str, Any] = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm
    return forms


def neighbours(forms: dict[str, Any]) -> int:
    """Numbers of a row that lie side by side in a thread; all tensors of the kernel are laid out so."""
    plan = forms["ttgir"]
    (count,) = re.findall(r"sizePerThread = \[(\d+)\]", plan)[:1]
    assert "convert_layout" not in plan
    return int(count)


def is_wide(code: str) -> bool:
    """Whether rows are read and written by 16 bytes a thread, but for single numbers of a row."""
    reads, writes = (re.findall(rf"{way}\.global[\w.:]*", code) for way in ("ld", "st"))
    narrow = [one for one in (*reads, *writes) if ".v4" not in one]
    return len(narrow) <= 4 and any(".v4" in one for one in reads) and any(".v4" in one for one in writes)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "more", "constants"), [
    ("_layer_norm", {"shift": FULL, "means": FULL, "scales": FULL, "token_rows": "i32", "eps": "fp32"},
     {"has_shift": True}),
    ("_layer_norm_backward", {"gradient": HALF, "means": FULL, "scales": FULL, "token_rows": "i32"}, {}),
    ("_rms_norm", {"cos": FULL, "sin": FULL, "scales": FULL, "tokens": "i32", "eps": "fp32"},
     {"head": 128, "is_rotated": True}),
    ("_rms_norm_backward", {"gradient": HALF, "cos": FULL, "sin": FULL, "scales": FULL, "tokens": "i32"},
     {"head": 128, "is_rotated": True})])
def test_norms_by_rows(name: str, more: dict[str, str], constants: dict[str, Any], width: int) -> None:
    from wan.modules import rows_triton

    block = triton.next_power_of_2(width)
    forms = compiled(getattr(rows_triton, name), {**NORM, **more}, {"width": width, "block": block, **constants},
                     rows_triton.warps(block))
    assert neighbours(forms) == 4 and "ld.global.v4.b32" in forms["ptx"], "float32 weights by 16 bytes"


@pytest.mark.parametrize("width", [*WIDTHS, 8960, 13824])
@pytest.mark.parametrize(("name", "more", "constants", "together"), [
    ("_quantise", {}, {}, 8),
    ("_gelu", {"kept": HALF, "first": "fp32", "third": "fp32"}, {"keeps": True}, 8),
    ("_layer_norm", {"weight": FULL, "shift": FULL, "normed": HALF, "means": FULL, "deviations": FULL,
                     "token_rows": "i32", "eps": "fp32"}, {"has_shift": True, "keeps": True}, 4)])
def test_rows_in_eight_bits(name: str, more: dict[str, str], constants: dict[str, Any], together: int, width: int
                            ) -> None:
    from wan.memory import fp8_triton
    from wan.modules.rows_triton import warps

    block = triton.next_power_of_2(width)
    arguments = {"x": HALF, "out": EIGHT, "scales": FULL, "factor": FULL, "largest": "fp32", "smallest": "fp32"}
    forms = compiled(getattr(fp8_triton, name), {**arguments, **more},
                     {"width": width, "block": block, "has_factor": True, **constants}, warps(block))
    assert neighbours(forms) == together and "e4m3x2" in forms["ptx"] and "ld.global.v4.b32" in forms["ptx"]


@pytest.mark.parametrize("rank", [32, 256])
def test_low_rank_sums(rank: int) -> None:
    from common.low_rank_triton import COLUMNS, ROWS, _add

    code = compiled(_add, {"base": HALF, "low": HALF, "up": HALF, "out": HALF, "rows": "i32", "columns": "i32",
                           "strength": "fp32"}, {"rank": rank, "width": rank, "height": ROWS, "length": COLUMNS},
                    8)["ptx"]
    assert is_wide(code) and ("mma" in code)


def test_passes_of_the_vae() -> None:
    from wan.memory.vae_rows_triton import ELEMENTS, _finish

    constants = {"channels": 96, "width": 128, "height": ELEMENTS // 128, "has_bias": True, "has_skipped": True,
                 "has_gamma": True, "is_activated": True, "is_phased": False, "is_padded": False, "is_single": True,
                 "writes_total": True, "writes_copy": True}
    arguments = dict.fromkeys(("conv", "bias", "skipped", "gamma", "total", "copy"), HALF)
    numbers = dict.fromkeys(("rows", "clip_rows", "room_rows", "high", "wide"), "i32")
    assert is_wide(compiled(_finish, {**arguments, **numbers, "scale": "fp32"}, constants, 4)["ptx"])
