"""What the README tells people to type, typed: its commands and its Python, against a running server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from preceptor.settings import load_settings
from preceptor_client.cli import COMMANDS
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.run.config import RunConfig
from preceptor_server.config import ServerConfig
from preceptor_server.engines.config import HfConfig, VllmConfig

from deploy.local.data import write_examples
from tests.integration.servers import RunningServer
from tests.integration.trainers import run_training, write_run
from tests.integration.two_sided import TwoSided, two_sided

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
ADDRESS = "127.0.0.1:50051"
HTTP_URL = "http://127.0.0.1:8080"


def readme_commands(program: str) -> list[str]:
    """The lines `$ program ...` of the README, without their comments."""
    lines = re.findall(rf"^\$ ({program} .*)$", README, re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines]


def run(command: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    module = {"preceptor": "preceptor_client.cli", "preceptor-server": "preceptor_server.cli"}[program]
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def teacher(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSided]:
    folder = tmp_path_factory.mktemp("two-sided")
    with two_sided(folder, "--engine.model", str(tiny_folder), "--http.record", "100") as teacher:
        yield teacher


@pytest.mark.parametrize("command", readme_commands("preceptor"))
def test_every_client_command_of_the_readme_works(
    command: str, teacher: TwoSided, tiny_folder: Path, tmp_path: Path
) -> None:
    files = write_run(tmp_path, student=tiny_folder, address=teacher.server.address, num_steps=2)
    if " report " in command:
        for name in ("first", "second"):
            status, output = run_training(files, "--run.directory", str(tmp_path / "runs" / name))
            assert status == 0, output
    command = command.replace(ADDRESS, teacher.server.address).replace("path/to/student", str(tiny_folder))
    command = command.replace(HTTP_URL, teacher.url)
    if " tail " in command:
        command += " --no-follow"  # without it, it would go on for ever
    result = run(command, folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "comparison.html").is_file() == (" report " in command)


def test_the_readme_names_every_client_command() -> None:
    named = [command.split()[1] for command in readme_commands("preceptor")]
    assert list(dict.fromkeys(named)) == ["doctor", "score", "train", "eval", "report", "tail"]
    # The README sends to docs/weights.md for the last one; tests/integration/test_weights.py types it.
    assert set(COMMANDS) - set(named) == {"weights"}
    assert "`preceptor weights`" in README


@pytest.mark.parametrize(
    ("command", "engine"), list(zip(readme_commands("preceptor-server"), ["hf", "hf", "vllm"], strict=True))
)
def test_the_server_commands_of_the_readme_have_settings_that_load(command: str, engine: str) -> None:
    config = load_settings(ServerConfig, shlex.split(command)[1:], program="preceptor-server")
    settings = config.hosted["teacher"].engine
    assert isinstance(settings, HfConfig | VllmConfig)
    assert (settings.kind, settings.model) == (engine, "path/to/model")
    assert f"{config.listen.host}:{config.listen.port}" == ADDRESS


def test_the_python_of_the_readme_runs(fake_server: RunningServer) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {"prompt_ids": [1, 2, 3], "response_ids": [4, 5]}
    exec(code.replace(ADDRESS, fake_server.address), names)
    assert getattr(names["answer"], "positions_N").tolist() == [0, 1]  # noqa: B009  # its type is the README's business


def test_the_least_that_a_run_needs_is_enough(tmp_path: Path) -> None:
    settings, objective = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "run.toml").write_text(settings)
    config = load_settings(RunConfig, ["@", str(tmp_path / "run.toml")], program="preceptor train")
    assert (config.teacher.address, config.teacher.top_k) == (ADDRESS, 32)
    (tmp_path / "run.toml").write_text(settings + objective)
    config = load_settings(RunConfig, ["@", str(tmp_path / "run.toml")], program="preceptor train")
    assert (config.objective.kind, config.objective.support) == ("tail_bucket", "union")


def test_the_tables_of_a_run_are_those_of_its_settings() -> None:
    rows = re.findall(r"^\| (`\[.*?`) \|", README, re.MULTILINE)
    named = [re.sub(r"\.NAME|[\[\]]", "", table) for row in rows for table in re.findall(r"`(.*?)`", row)]
    assert sorted(named) == sorted(RunConfig.model_fields)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in DOCS)])
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    path = REPOSITORY / page
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("link", re.findall(r"\]\((docs/[^)#]+#[^)]+)\)", README))
def test_every_link_to_a_section_leads_to_one(link: str) -> None:
    page, _, anchor = link.partition("#")
    titles = re.findall(r"^#+ (.*)$", (REPOSITORY / page).read_text(), re.MULTILINE)
    assert anchor in [title.lower().replace(" ", "-").replace("'", "").replace(",", "") for title in titles]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^\$ make ([a-z-]+)", README, re.MULTILINE))))
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_the_settings_of_the_demo_load(tmp_path: Path) -> None:
    write_examples(tmp_path)
    added_by_demo = ["--student.model", "x", "--teacher.address", ADDRESS]
    settings = str(REPOSITORY / "deploy/local/train.toml")
    run_config = load_settings(RunConfig, ["@", settings, *added_by_demo], program="demo")
    server_config = load_settings(
        ServerConfig, ["@", str(REPOSITORY / "deploy/local/teacher.toml"), "--engine.model", "x"], program="demo"
    )
    assert run_config.teacher.name == server_config.teacher
    engine = server_config.hosted[server_config.teacher].engine
    assert isinstance(engine, HfConfig)
    assert run_config.student.gguf_file == engine.gguf_file
    assert len(load_examples(str(tmp_path / "train.jsonl"))) == 40
    heldout = load_examples(str(tmp_path / "heldout.jsonl"))
    assert [example.answer for example in heldout if "Norway" in str(example.prompt)] == ["Oslo"]
    assert len(heldout) == 19


def test_the_settings_of_the_study_across_tokenizers_load() -> None:
    added_by_study = ["--student.model", "x", "--teacher.address", ADDRESS]
    folder = REPOSITORY / "studies/other_tokenizer"
    run_config = load_settings(RunConfig, ["@", str(folder / "train.toml"), *added_by_study], program="study")
    server_config = load_settings(
        ServerConfig, ["@", str(folder / "teacher.toml"), "--engine.model", "x"], program="study"
    )
    assert run_config.teacher.name == server_config.teacher
    assert run_config.teacher.accept_other_tokenizer
    assert run_config.evaluation.loss
