"""`preceptor train` as a process that signals end: what it says, what it saves, and that it goes on bit for bit."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.servers import RunningServer
from tests.integration.trainers import RunFiles, run_training, start_training, wait_for_steps, write_run
from tests.tiny import save_tiny, tiny_llama

NUM_STEPS = 24
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
STOP_SECONDS = 30.0
"""The machine is shared: alone it takes a fraction of a second."""
MOMENTS = [
    (signal.SIGINT, 2, 0.0),
    (signal.SIGTERM, 5, 0.013),
    (signal.SIGINT, 9, 0.027),
    (signal.SIGTERM, 14, 0.041),
]
"""Signal, steps that are done by then, and seconds after the last of them: somewhere in the next."""


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("student"), tiny_llama(seed=1))


@pytest.fixture(scope="module")
def undisturbed(hf_server: RunningServer, student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    files = _run_files(tmp_path_factory.mktemp("undisturbed"), student_folder, hf_server)
    status, output = run_training(files)
    assert status == 0, output
    return files


def _run_files(folder: Path, student: Path, server: RunningServer) -> RunFiles:
    """Checkpoints are far apart: what is there after a signal, the signal has saved."""
    files = write_run(folder, student=student, address=server.address, num_steps=NUM_STEPS)
    text = files.settings.read_text()
    files.settings.write_text(text.replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 1000"))
    return files


def _ended(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=STOP_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in output
    return output


def _assert_saved(files: RunFiles, output: str) -> None:
    step = len(files.steps())
    folder = files.directory / "checkpoints" / f"step-{step:06d}"
    assert f"step {step} of {NUM_STEPS} is saved in {folder}; the same command continues from there" in output
    assert (folder / "model.safetensors").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def _assert_same(files: RunFiles, undisturbed: RunFiles) -> None:
    assert [row["step"] for row in files.steps()] == list(range(1, NUM_STEPS + 1))
    assert files.losses() == undisturbed.losses()
    assert files.weights() == undisturbed.weights()


def test_stopped_again_and_again_a_run_ends_with_the_same_weights_bit_for_bit(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path, undisturbed: RunFiles
) -> None:
    files = _run_files(tmp_path, student_folder, hf_server)
    for number, num_done, seconds in MOMENTS:
        process = start_training(files)
        wait_for_steps(files, process, num_done)
        time.sleep(seconds)
        process.send_signal(number)
        output = _ended(process)
        assert process.returncode == STATUS[number], output
        _assert_saved(files, output)
    status, output = run_training(files)
    assert status == 0, output
    assert re.search(rf"resumed after step \d+ of {NUM_STEPS}", output)
    _assert_same(files, undisturbed)


def test_stopped_while_the_teacher_is_silent_and_nobody_reads_the_output_it_saves_all_the_same(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path, undisturbed: RunFiles
) -> None:
    files = _run_files(tmp_path, student_folder, hf_server)
    process = start_training(files)
    wait_for_steps(files, process, 3)
    hf_server.process.send_signal(signal.SIGSTOP)
    try:
        # As `| tee` at Ctrl-C: it is gone before the run has said a word.
        assert process.stdout
        process.stdout.close()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_SECONDS) == 130
    finally:
        process.kill()
        process.wait()
        hf_server.process.send_signal(signal.SIGCONT)
    step = len(files.steps())
    assert (files.directory / "checkpoints" / f"step-{step:06d}").is_dir()
    status, output = run_training(files)
    assert status == 0, output
    _assert_same(files, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_it_began_it_says_that_nothing_was_saved(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    files = _run_files(tmp_path, student_folder, hf_server)
    process = start_training(files)
    assert process.stdout
    while "[student]" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    output = _ended(process)
    assert process.returncode == STATUS[number], output
    assert re.search(
        r"preceptor train: (ended at once, and nothing was saved now: .* holds no checkpoint|stopped)", output
    )
    assert "the same command starts the run" in output
    assert not (files.directory / "checkpoints").exists()
