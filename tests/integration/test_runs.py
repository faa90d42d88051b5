"""Whole runs: a real teacher process, a real trainer process, and what happens when one of them dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.servers import RunningServer, running_server, start_server
from tests.integration.trainers import RunFiles, TrainHere, run_training, start_training, wait_for_steps, write_run
from tests.tiny import save_tiny, tiny_llama

NUM_STEPS = 24


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with other weights than the teacher's."""
    return save_tiny(tmp_path_factory.mktemp("student"), tiny_llama(seed=1))


@pytest.fixture(scope="module")
def undisturbed(hf_server: RunningServer, student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A run that nothing interrupted: what the disturbed ones are compared with."""
    files = write_run(
        tmp_path_factory.mktemp("undisturbed"), student=student_folder, address=hf_server.address, num_steps=NUM_STEPS
    )
    status, output = run_training(files)
    assert status == 0, output
    return files


def test_a_run_learns_and_leaves_metrics_model_and_report(undisturbed: RunFiles) -> None:
    losses = undisturbed.losses()
    assert [row["step"] for row in undisturbed.steps()] == list(range(1, NUM_STEPS + 1))
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert "</html>" in (undisturbed.directory / "report.html").read_text()
    assert list(undisturbed.directory.rglob("events.out.tfevents.*"))


def test_a_run_against_the_fake_engine_ends_well(
    fake_server: RunningServer, student_folder: Path, tmp_path: Path
) -> None:
    files = write_run(tmp_path, student=student_folder, address=fake_server.address, num_steps=3)
    status, output = run_training(files)
    assert status == 0, output
    assert all(0 < loss < 20 for loss in files.losses())
    assert len(files.losses()) == 3


def test_killed_and_resumed_a_run_ends_with_the_same_weights_bit_for_bit(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path, undisturbed: RunFiles
) -> None:
    files = write_run(tmp_path, student=student_folder, address=hf_server.address, num_steps=NUM_STEPS)
    process = start_training(files)
    wait_for_steps(files, process, 10)  # two steps after a checkpoint: they are lost, and done again
    process.kill()
    process.communicate()
    assert len(files.steps()) < NUM_STEPS
    status, output = run_training(files)
    assert status == 0, output
    assert [row["step"] for row in files.steps()] == list(range(1, NUM_STEPS + 1))
    assert files.losses() == undisturbed.losses()
    assert files.weights() == undisturbed.weights()


def test_a_teacher_that_dies_and_comes_back_costs_no_sample(
    tiny_folder: Path, student_folder: Path, tmp_path: Path, undisturbed: RunFiles
) -> None:
    arguments = ["--engine.model", str(tiny_folder)]
    with running_server(tmp_path / "teacher", *arguments) as first:
        files = write_run(tmp_path, student=student_folder, address=first.address, num_steps=NUM_STEPS)
        process = start_training(files)
        wait_for_steps(files, process, 5)
        first.kill()
        second = start_server(tmp_path / "teacher", *arguments, port=int(first.address.split(":")[1]))
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            second.kill()
    assert process.returncode == 0, output
    assert f"teacher unreachable at {first.address}, waiting" in output
    assert [row["step"] for row in files.steps()] == list(range(1, NUM_STEPS + 1))
    assert [row["num_positions"] for row in files.steps()] == [row["num_positions"] for row in undisturbed.steps()]
    assert files.weights() == undisturbed.weights()


def test_a_teacher_that_stays_away_ends_the_run_with_a_checkpoint_and_a_way_to_go_on(
    tiny_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    with running_server(tmp_path / "teacher", "--engine.model", str(tiny_folder)) as server:
        files = write_run(tmp_path, student=student_folder, address=server.address, num_steps=NUM_STEPS)
        process = start_training(files, "--teacher.patience-seconds", "2")
        wait_for_steps(files, process, 6)
        server.kill()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "gave no answer" in output
    assert "Traceback" not in output
    done = len(files.steps())
    assert (files.directory / "checkpoints" / f"step-{done:06d}").is_dir()


def test_two_trainers_at_once_end_with_the_losses_that_each_has_alone(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path, undisturbed: RunFiles
) -> None:
    def files(name: str, question: str) -> RunFiles:
        return write_run(
            tmp_path / name, student=student_folder, address=hf_server.address, num_steps=NUM_STEPS, question=question
        )

    shared = ("--teacher.reproducible", "false")
    alone = files("alone", "Name a shade of {}")
    assert run_training(alone, *shared)[0] == 0
    together = [files("first", "Say {}"), files("second", "Name a shade of {}")]
    processes = [start_training(run, *shared) for run in together]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert together[0].losses() == pytest.approx(undisturbed.losses(), abs=1e-4)
    assert together[1].losses() == pytest.approx(alone.losses(), abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (lambda text: text.replace("top_k = 16", "top_k = 1"), 2, "must be 2 or more"),
        (lambda text: text.replace("top_k = 16", "top_k = 0"), 2, "must be 2 or more"),
        (lambda text: text.replace("top_k = 16", "top_k = 260"), 1, "259"),
        (lambda text: text.replace("top_k = 16", "topk = 16"), 2, "teacher.topk"),
        (lambda text: text.replace("num_steps = 3", 'num_steps = "three"'), 2, "run.num_steps"),
        (lambda text: text.replace("top_k = 16", "temperature = nan"), 2, "teacher.temperature"),
        (lambda text: text.replace("top_k = 16", 'name = "nobody"'), 1, "nobody"),
        (lambda text: text.replace('address = "', 'address = "http://'), 2, "has a scheme: write host:port"),
        (lambda text: text.replace("train.jsonl", "none.jsonl"), 1, "none.jsonl"),
        (lambda text: text.replace('model = "', 'model = "./nowhere'), 1, "nowhere"),
        (lambda text: text.replace("max_new_tokens = 12", "max_new_tokens = 600"), 1, "512"),
        (lambda text: text + "[", 2, "run.toml"),
    ],
    ids=[
        "K 1",
        "K 0",
        "K limit",
        "unknown key",
        "type",
        "NaN",
        "teacher",
        "address",
        "data",
        "student",
        "context",
        "TOML",
    ],
)
def test_a_run_that_cannot_work_is_refused_in_words_before_the_first_step(
    hf_server: RunningServer,
    student_folder: Path,
    train_here: TrainHere,
    tmp_path: Path,
    spoil: object,
    status: int,
    words: str,
) -> None:
    assert callable(spoil)
    files = write_run(tmp_path, student=student_folder, address=hf_server.address, num_steps=3)
    files.settings.write_text(spoil(files.settings.read_text()))
    seen, output = train_here(files.settings)
    assert (seen, words in output) == (status, True), output
    assert "Traceback" not in output
    assert files.steps() == []


def test_a_data_line_that_is_not_json_is_named_by_its_number(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path
) -> None:
    files = write_run(tmp_path, student=student_folder, address=hf_server.address, num_steps=3)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{not json\n")
    status, output = run_training(files)
    assert status == 1
    assert "train.jsonl" in output
    assert "train.jsonl:10: not JSON" in output
