"""What the page of a profile says of intervals that are known."""

from benchmarks.step_profile import by_kind, gaps_by_length, idle_of, kind_of, page

MS = 1_000_000
INTERVALS = [(0, 2 * MS, "triton_red_fused_1"), (2 * MS, 6 * MS, "nvjet_sm90_qqtst_128x128"),
             (3 * MS, 5 * MS, "Memcpy DtoD"), (8 * MS, 10 * MS, "cudnn_sdpa_sm90_flash_bprop")]


def test_overlapping_work_is_no_gap_and_a_gap_names_its_neighbours() -> None:
    idle, span, gaps = idle_of(INTERVALS)
    assert idle == 0.2 and span == 10.0
    assert gaps == [(2.0, "nvjet_sm90_qqtst_128x128 … cudnn_sdpa_sm90_flash_bprop")]


def test_gaps_are_sorted_by_length() -> None:
    short = [(10 * MS + 4_000, 10 * MS + 5_000, "_add"), (10 * MS + 6_000, 10 * MS + 7_000, "_add")]
    found = {name: (count, ms) for name, count, ms in gaps_by_length([*INTERVALS, *short])}
    assert found["to 5 us"] == (2, 0.005) and found["over 1000 us"] == (1, 2.0) and found["to 20 us"] == (0, 0.0)
    assert sum(ms for _, ms in found.values()) == 2.005


def test_kinds_are_told_by_name_and_summed_a_step() -> None:
    assert by_kind(INTERVALS, 2) == {"float8 products": 2.0, "passes between": 1.0, "copies": 1.0,
                                     "attention, backward": 1.0}
    assert kind_of("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90") == "attention, forward"
    assert kind_of("nvjet_sm90_tst_32x64") == "products" and kind_of("_add") == "low-rank sums"
    assert kind_of("triton_poi_fused_add") == "passes between"
    assert kind_of("_quantise") == kind_of("_gelu") == "norms and scaling by rows"


def test_the_page_holds_the_figures() -> None:
    text = page("a row", INTERVALS, 1)
    assert "10.0 ms a step under the profiler, 20.00 % of it idle" in text and "| over 1000 us | 1 | 2.00 |" in text
    assert "| `nvjet_sm90_qqtst_128x128` | 1 | 4.000 |" in text
