"""What the demos conclude from mouths and sounds whose relation is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from common.media.image import read_image
from evaluation.sync import speech_envelope, sync_of
from tools.proof.inputs import Item
from tools.proof.measure import (
    Mouth,
    Stage,
    Summary,
    cross_correlation,
    envelope_correlation,
    gap_goals,
    measure,
    off_diagonal,
    read_gaps,
    summarise,
    sync_goals,
)
from tools.proof.recipe import FPS, FRAMES
from tools.proof.reference import render
from tools.proof.report import Proof, draw, gaps_markdown, goals_markdown, proof_markdown, write_report

RATE = 16_000


def speech(seed: int) -> np.ndarray:
    """Syllables of noise, each louder or softer, for the length of a clip; seeds 0 and 5 are unlike each other."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0, 1, 20), FRAMES * RATE // FPS // 20)
    return (loud * rng.normal(0, 0.2, len(loud))).astype(np.float32)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Two faces with two sounds."""
    folder = tmp_path_factory.mktemp("sounds")
    for k in (0, 1):
        soundfile.write(folder / f"speech_{k}.wav", speech(5 * k), RATE)
    return [Item(face, f"speech_{k}", "A talking head.", folder / "face.png", folder / f"speech_{k}.wav", 10 + i)
            for i, (face, k) in enumerate((face, k) for face in ("face_1000", "face_1003") for k in (0, 1))]


@pytest.fixture(scope="module")
def envelopes() -> dict[str, np.ndarray]:
    return {f"speech_{k}": speech_envelope(speech(5 * k), RATE, FRAMES, FPS) for k in (0, 1)}


def stage_of(items: list[Item], openings: dict[str, np.ndarray], envelopes: dict[str, np.ndarray]) -> Stage:
    """Mouths as `openings` by sound say."""
    mouths = []
    for item in items:
        opening = openings[item.sound].copy()
        opening[0] = np.nan
        mouths.append(Mouth(item, opening, sync_of(opening, envelopes[item.sound])))
    return mouths


def met(goals: Any) -> list[bool]:
    return [goal.is_met for goal in goals]


NOTHING = Summary(clips=4, measured=4, mean_r=0.05, least_r=-0.2, largest_lag=9, mean_other=0.0, mean_size_other=0.1)


def test_a_mouth_that_follows_its_sound_meets_every_goal(items: list[Item], envelopes: dict[str, np.ndarray]) -> None:
    perfect = stage_of(items, {name: 0.2 + 0.5 * envelope for name, envelope in envelopes.items()}, envelopes)
    summary = summarise(perfect, envelopes)
    assert summary.mean_r == pytest.approx(1) and summary.largest_lag == 0 and summary.measured == 4
    mutual = np.corrcoef(envelopes["speech_0"][1:], envelopes["speech_1"][1:])[0, 1]
    assert summary.mean_other == pytest.approx(mutual) and abs(mutual) < 0.2
    np.testing.assert_allclose(cross_correlation(perfect, envelopes), envelope_correlation(envelopes), atol=1e-9)
    assert met(sync_goals("Speech", NOTHING, summary)) == [True] * 5


def test_a_late_mouth_misses_the_goals_of_correlation_and_lag(items: list[Item], envelopes: dict[str, np.ndarray]
                                                              ) -> None:
    late = stage_of(items, {name: np.roll(envelope, 5) for name, envelope in envelopes.items()}, envelopes)
    summary = summarise(late, envelopes)
    assert summary.largest_lag == -5 and summary.mean_r is not None and summary.mean_r < 0.6
    assert met(sync_goals("Speech", NOTHING, summary))[:4] == [True, True, False, False]


def test_mouths_swapped_between_sounds_follow_another_sound(items: list[Item], envelopes: dict[str, np.ndarray]
                                                            ) -> None:
    swapped = stage_of(items, {"speech_0": envelopes["speech_1"], "speech_1": envelopes["speech_0"]}, envelopes)
    summary = summarise(swapped, envelopes)
    assert summary.mean_other == pytest.approx(1) and summary.mean_size_other == pytest.approx(1)
    assert met(sync_goals("Speech", NOTHING, summary))[4] is False


def test_an_unseen_mouth_is_told_and_not_counted(items: list[Item], envelopes: dict[str, np.ndarray]) -> None:
    blank = measure(items[0], np.full((FRAMES, 64, 64, 3), 90, np.uint8), envelopes["speech_0"])
    assert blank.sync.r is None and "no mouth" in str(blank.sync) and np.isnan(blank.opening).all()
    stage = [blank, *stage_of(items[1:], envelopes, envelopes)]
    summary = summarise(stage, envelopes)
    assert (summary.clips, summary.measured) == (4, 3) and summary.mean_r == pytest.approx(1)
    assert met(sync_goals("Speech", NOTHING, summary)) == [True, False, True, True, True]


def test_where_nothing_is_measured_no_goal_is_met(items: list[Item], envelopes: dict[str, np.ndarray]) -> None:
    still = stage_of(items, {name: np.full(FRAMES, 0.3) for name in envelopes}, envelopes)
    summary = summarise(still, envelopes)
    assert summary.mean_r is None and summary.largest_lag is None and summary.mean_other is None
    assert met(sync_goals("Speech", summary, summary)) == [False] * 4


def test_an_untrained_mouth_that_follows_misses_the_first_goal(items: list[Item], envelopes: dict[str, np.ndarray]
                                                               ) -> None:
    perfect = summarise(stage_of(items, envelopes, envelopes), envelopes)
    assert met(sync_goals("Speech", perfect, perfect))[0] is False


@pytest.mark.parametrize(("gaps", "expected"), [
    ([0.0, 0.004, 0.02], [True, True]), ([0.0, 0.01, -0.001], [True, False]), ([0.01, 0.02], [False, True]),
    ([None, None], [False, False]), ([], [False, False])])
def test_the_gap_must_be_none_at_first_and_positive_at_last(gaps: list[float | None], expected: list[bool]) -> None:
    assert met(gap_goals([{"audio_gap": gap} for gap in gaps])) == expected


def test_gaps_are_read_from_the_trainers_log(tmp_path: Path) -> None:
    rows = [{"event": "start"}, {"step": 1, "loss": 0.4}, {"event": "validation", "step": 1, "audio_gap": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_gaps(tmp_path / "metrics.jsonl") == rows[2:]


def test_pairs_off_the_diagonal_leave_out_what_is_unknown() -> None:
    assert off_diagonal(np.array([[9, 0.1], [np.nan, 9]])).tolist() == [0.1]


def test_a_rendered_clip_follows_its_sound_and_frame_0_is_not_measured(items: list[Item],
                                                                       envelopes: dict[str, np.ndarray]) -> None:
    mouth = measure(items[0], render(items[0]), envelopes["speech_0"])
    assert np.isnan(mouth.opening[0]) and np.isfinite(mouth.opening[1:]).mean() > 0.9
    assert mouth.sync.r is not None and mouth.sync.r > 0.95 and mouth.sync.best_lag == 0


def test_the_report_tells_tables_curves_and_goals(items: list[Item], tmp_path: Path) -> None:
    proof = Proof("Speech", items)
    right = {item.name: render(item) for item in items}
    wrong = {item.name: right[other.name] for item, other in
             zip(items, (items[1], items[0], items[3], items[2]), strict=True)}
    for stage, clips in (("rendered", right), ("before", wrong), ("after", right)):
        proof.add(stage, clips)
    validations = [{"step": 0, "held_out_loss": 0.5, "audio_gap": 0.0, "null_gap": None},
                   {"step": 9, "held_out_loss": 0.25, "audio_gap": 0.0125, "null_gap": 0.5}]
    text = proof_markdown(proof) + gaps_markdown(validations) + goals_markdown(proof.goals())
    assert text.count("| face_1003 | speech_1 | r ") == 1
    assert "| 9 | 0.2500 | +0.01250 | +0.50000 |" in text and "| 0 | 0.5000 | +0.00000 | – |" in text
    assert "| generated, after training | 4 of 4 | +0.9" in text
    written = write_report(tmp_path, text, [proof], {"validations": validations})
    told = json.loads(written[1].read_text())["proofs"][0]
    assert told["stages"]["after"]["summary"]["mean_r"] > 0.95 > 0.5 > told["stages"]["before"]["summary"]["mean_r"]
    assert told["stages"]["after"]["clips"][0]["opening"][0] is None
    pictures = draw(proof, tmp_path)
    assert [path.name for path in pictures] == ["strip.png", "sync.png", "cross.png"]
    assert all(read_image(path)[0].std() > 5 for path in pictures)
