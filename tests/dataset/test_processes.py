"""Several processes on one cache: nothing torn, nothing done twice, the same result as one."""

from pathlib import Path
import shutil
import subprocess
import sys

from common.tensorfile import load_tensors
from dataset.index import CacheIndex, update_index
from tests.dataset.toys import MakeVideo, ToyAudio, ToyLatents, ToyText, cache, opened, write_dataset

TOML = """
[[datasets]]
video_directory = "{d}/clips"
cache_directory = "{d}/cache"
resolution = [48, 32]
target_frames = [5]
frame_extraction = "chunk"
audio = "clip"
"""

WORKER = """
import sys
from pathlib import Path
from tests.dataset.toys import ToyAudio, ToyLatents, ToyText, cache, opened
toml, weights, rank, world = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
done = cache(opened(toml), [ToyLatents(weights), ToyText(weights), ToyAudio(weights)], rank=rank, world_size=world)
print(len(done))
"""


def run_together(root: Path, toml: Path, weights: Path, ranks: list[tuple[int, int]]) -> list[int]:
    processes = [subprocess.Popen([sys.executable, "-c", WORKER, str(toml), str(weights), str(rank), str(world)],
                                  cwd=root, stdout=subprocess.PIPE, text=True) for rank, world in ranks]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [int(output) for output in outputs]


def contents(folder: Path) -> dict[str, tuple[dict[str, list[float]], dict[str, str]]]:
    found = {}
    for path in folder.glob("*.safetensors"):
        tensors, header = load_tensors(path)
        found[path.name] = ({name: tensor.flatten().tolist() for name, tensor in tensors.items()}, header)
    return found


def test_two_processes_share_the_work_and_give_the_result_of_one(tmp_path: Path, make_video: MakeVideo, weights: Path,
                                                                 root: Path) -> None:
    for number in range(5):
        make_video(tmp_path / "clips" / f"{number}.mp4", frames=21, sound_s=0.84, seed=number, caption=str(number))
    toml = write_dataset(tmp_path, TOML)
    alone = len(cache(opened(toml), [ToyLatents(weights), ToyText(weights), ToyAudio(weights)]))
    expected = contents(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    counts = run_together(root, toml, weights, [(0, 2), (1, 2)])
    assert sum(counts) == alone
    assert min(counts) > 0
    assert contents(tmp_path / "cache") == expected
    assert sorted(CacheIndex.load(tmp_path / "cache").sources) == [f"{number}.mp4" for number in range(5)]
    assert not list((tmp_path / "cache").glob("*.tmp*"))


def test_two_runs_at_once_on_the_same_work_leave_whole_entries(tmp_path: Path, make_video: MakeVideo, weights: Path,
                                                              root: Path) -> None:
    for number in range(3):
        make_video(tmp_path / "clips" / f"{number}.mp4", frames=21, sound_s=0.84, seed=number)
    toml = write_dataset(tmp_path, TOML)
    run_together(root, toml, weights, [(0, 1), (0, 1)])
    assert cache(opened(toml), [ToyLatents(weights), ToyText(weights), ToyAudio(weights)]) == []


def test_index_loses_no_update_of_another_process(tmp_path: Path, root: Path) -> None:
    code = ("import sys; from pathlib import Path; from dataset.index import update_index\n"
            "for n in range(20): update_index(Path(sys.argv[1]), lambda data: "
            "data.setdefault('sources', {}).update({f'{sys.argv[2]}-{n}': {}}))")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=root) for name in "ab"]
    for number in range(20):
        update_index(tmp_path, lambda data, n=number: data.setdefault("sources", {}).update({f"c-{n}": {}}))
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert len(CacheIndex.load(tmp_path).sources) == 60
