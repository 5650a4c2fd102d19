"""Face and mouth in the loss: the weights against closed forms, the draws, and whole runs."""

from collections import Counter
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file
import torch
from torch import Tensor

from common.errors import CacheError, ConfigError
from common.features import FeatureBatch
from common.tensorfile import load_tensors
from networks.metadata import Origin
from precompute import ModelFiles, run
from tests.demo_clips import copy_clips, toml_text
from tests.training.runs import losses, settings, validations
from tests.training.test_job import batch as job_batch
from tests.training.test_job import job, loss_of
from training import train
from training.config import TrainConfig
from training.regions import FEATURE, RegionWeights, chosen
from training.step import draw

FACE = torch.tensor([[0, 0.5, 1.0], [1.0, 0, 0]])
LIP = torch.tensor([[0, 0, 1.0], [0, 0, 0]])
STABLE_AVATAR = (0.4, 0.1, 0.5)


def features(face: Tensor = FACE, lip: Tensor = LIP, given: Tensor | None = None) -> FeatureBatch:
    """Two samples of one latent frame, 1 x 3 places."""
    def shaped(mask: Tensor) -> Tensor:
        return mask[:, None, None, None].half()

    return FeatureBatch(features={FEATURE: {"face": shaped(face), "lip": shaped(lip)}}, frames=1, fps=25.0,
                        given_mask=None if given is None else shaped(given).float())


def of(weights: RegionWeights, batch: FeatureBatch, positions: tuple[int, int] = (0, 1)) -> Tensor:
    result = weights.of(batch, positions, seed=3, epoch=1)
    assert result.shape == (2, 1, 1, 1, 3) and result.dtype == torch.float32
    return result[:, 0, 0, 0]


def test_weights_are_one_and_the_masks_times_theirs() -> None:
    assert of(RegionWeights(face=2, lip=4), features()).tolist() == [[1, 2, 7], [3, 1, 1]]
    assert of(RegionWeights(face=2), features(torch.zeros(2, 3))).tolist() == [[1] * 3] * 2, "a clip without masks"


def position_of(region: str | None, mixture: tuple[float, float, float] = STABLE_AVATAR) -> int:
    return next(place for place in range(1000) if chosen(mixture, 3, 1, place) == region)


def test_a_sample_learns_from_all_from_the_face_or_from_the_mouth() -> None:
    weights = RegionWeights(face=2, lip=4, mixture=STABLE_AVATAR)
    full, face, lip = position_of(None), position_of("face"), position_of("lip")
    assert of(weights, features(), (face, full)).tolist() == [[0, 0.5, 1], [3, 1, 1]]
    assert of(weights, features(), (lip, face)).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert of(weights, features(), (face, lip))[1].tolist() == [3, 1, 1], "a clip without a mouth keeps all"
    given = torch.tensor([[0, 0, 1.0], [0, 0, 0]])
    assert of(weights, features(given=given), (lip, face)).tolist() == [[1, 2, 7], [1, 0, 0]], (
        "the mouth is in given frames alone")


def test_the_mixture_is_drawn_by_place_in_its_shares() -> None:
    drawn = [chosen(STABLE_AVATAR, 3, 1, place) for place in range(4000)]
    counts = Counter(drawn)
    for region, share in zip((None, "face", "lip"), STABLE_AVATAR, strict=True):
        # Five standard deviations of a binomial count.
        assert abs(counts[region] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
    assert drawn[7:9] == [chosen(STABLE_AVATAR, 3, 1, 7), chosen(STABLE_AVATAR, 3, 1, 8)]
    assert drawn != [chosen(STABLE_AVATAR, 3, 2, place) for place in range(4000)], "another epoch draws anew"
    assert {chosen((0, 1, 0), 3, 1, place) for place in range(50)} == {"face"}
    weights, batch = RegionWeights(face=2, lip=4, mixture=STABLE_AVATAR), features()
    both = of(weights, batch, (5, 9))
    alone = [weights.of(FeatureBatch(features={FEATURE: {name: mask[row:row + 1] for name, mask
                                                         in batch.features[FEATURE].items()}}, frames=1, fps=25.0),
                        (place,), seed=3, epoch=1)[0, 0, 0, 0] for row, place in enumerate((5, 9))]
    assert torch.equal(both, torch.stack(alone)), "however the global batch is cut"


def masked(indices: list[int]) -> Any:
    """A batch of the job's tests with masks."""
    loaded = job_batch(indices)
    draws = torch.Generator().manual_seed(9)
    masks = {name: torch.rand(4, 1, *loaded.latents.shape[2:], generator=draws)[indices].half()
             for name in ("face", "lip")}
    loaded.features.features[FEATURE] = masks  # type: ignore[index]
    return loaded


def test_the_loss_is_the_weighted_mean_of_the_squared_error() -> None:
    one = job(regions=RegionWeights(face=2, lip=4))
    loaded = masked([0, 1])
    weighted = loss_of(one, loaded).per_sample
    latents, shown = one.shown(loaded)
    draws = draw(loaded.positions, loaded.latents.shape[1:], seed=1, epoch=1)
    # The error of each place, by asking the step for the loss there alone.
    masks = loaded.features.features[FEATURE]
    weight = 1 + 2 * masks["face"].float() + 4 * masks["lip"].float()
    places = [(t, y, x) for t in range(1, 3) for y in range(4) for x in range(6)]
    alone = []
    for place in places:
        here = torch.zeros(2, 1, 3, 4, 6)
        here[:, :, place[0], place[1], place[2]] = 1
        alone.append(here)
    results = one.steps(latents, shown, draws, one.settings.timesteps, alone)
    w = torch.stack([weight[:, 0, t, y, x] for t, y, x in places], dim=1)
    d2 = torch.stack([result.sample_losses for result in results], dim=1)
    torch.testing.assert_close(weighted, (w * d2).sum(1) / w.sum(1), rtol=1e-5, atol=0)


def test_without_the_flags_the_loss_is_bit_for_bit_what_it_was() -> None:
    plain, with_masks = job(), job()
    assert torch.equal(loss_of(plain, job_batch([0, 1])).per_sample, loss_of(with_masks, masked([0, 1])).per_sample)


@pytest.mark.parametrize(("mixture", "words"), [
    ((0.4, 0.1, 0.4), "--region_mixture 0.4 0.1 0.4: expected three shares of the samples"),
    ((1.4, 0.1, -0.5), "from 0 to 1 and together 1"),
])
def test_a_mixture_is_three_shares_of_one(mixture: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig.from_flags(dataset_config="a", dit="a", output_dir="a", region_mixture=mixture)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Three clips with a face mask each and a mouth mask, and an entry of two clips without."""
    folder = tmp_path_factory.mktemp("masks")
    general, entry = toml_text(folder).split("[[datasets]]")
    entries = []
    for name, numbers in (("clips", range(3)), ("plain", range(3, 5))):
        copy_clips(root, folder / name, numbers)
        entries.append(entry.replace('/clips"', f'/{name}"').replace('/cache"', f'/{name}-cache"'))
    for name, box in (("faces", (8, 4, 24, 28)), ("lips", (12, 18, 20, 24))):
        (folder / name).mkdir()
        picture = np.zeros((32, 32), np.uint8)
        picture[box[1]:box[3], box[0]:box[2]] = 255
        for number in range(3):
            Image.fromarray(picture).save(folder / name / f"head_{number:03d}.png")
    entries[0] += "".join(f'{kind}_mask_directory = "{folder.as_posix()}/{kind}s"\n' for kind in ("face", "lip"))
    (folder / "without.toml").write_text(general + "[[datasets]]" + entries[1], encoding="utf-8")
    data = folder / "data.toml"
    data.write_text(general + "".join("[[datasets]]" + entry for entry in entries), encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth")
    summary = run(["latents", "text"], data, models=models)
    assert not summary.failed and summary.encoded == 5 + 5 + 5 + 3  # latents, reference latents, text, masks of three
    again = run(["latents", "text"], data, models=models)
    assert (again.encoded, again.fresh) == (0, 18)
    return data


def test_a_run_with_weights_learns_otherwise_and_validates_unweighted(
        masks: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"validation_count": 1, "validation_sigmas": [0.5], "max_train_steps": 4}
    plain = load_file(train(settings(masks, weights, tmp_path / "plain", **more)) or "")
    zero = load_file(train(settings(masks, weights, tmp_path / "zero", face_weight=0.0, **more)) or "")
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    with caplog.at_level("INFO"):
        final = train(settings(masks, weights, tmp_path / "weighted", face_weight=1, lip_weight=4,
                               region_mixture=STABLE_AVATAR, **more))
    origins = [Origin.read(load_tensors(path)[1]) for path in (tmp_path / "plain" / "t.safetensors", final or "")]
    assert [one and one.showing.get("regions") for one in origins] == [
        None, {"face": 1.0, "lip": 4.0, "mixture": list(STABLE_AVATAR)}]
    assert "region weights: 1 + 1 x face + 4 x lip, whole picture, face and lip alone for shares of 0.4, 0.1, 0.5; " \
           "clips with masks, of 4: face: " in caplog.text
    assert losses(tmp_path / "plain") != losses(tmp_path / "weighted")
    assert (validations(tmp_path / "plain")[0]["held_out_loss"]
            == validations(tmp_path / "weighted")[0]["held_out_loss"]), "nothing is learned yet"


def test_weights_whose_masks_are_not_there_are_refused_before_weights_are_read(
        masks: Path, weights: Path, tmp_path: Path) -> None:
    without = masks.with_name("without.toml")
    with pytest.raises(ConfigError, match="--lip_weight needs masks of the lip, and no entry of .*without.toml names "
                                          "any. Set lip_mask_directory .*cache_latents.py"):
        train(settings(without, weights, tmp_path, lip_weight=1))
    with pytest.raises(ConfigError, match="--region_mixture needs masks of the face"):
        train(settings(without, weights, tmp_path, region_mixture=(0.5, 0.5, 0)))
    shutil.copytree(masks.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / "data.toml"
    copy.write_text(masks.read_text(encoding="utf-8").replace(masks.parent.as_posix(), copy.parent.as_posix()),
                    encoding="utf-8")
    next((copy.parent / "clips-cache").glob("head_001*region_masks*")).unlink()
    train(settings(copy, weights, tmp_path / "out", max_train_steps=1))
    with pytest.raises(CacheError, match=r"(?s)region_masks: 1 missing: head_001.mp4@0.*Run: python cache_latents.py"):
        train(settings(copy, weights, tmp_path / "out2", face_weight=1))
