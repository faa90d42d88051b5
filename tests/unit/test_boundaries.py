from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "preceptor": ROOT / "proto" / "preceptor",
    "preceptor_server": ROOT / "server" / "preceptor_server",
    "preceptor_client": ROOT / "client" / "preceptor_client",
}
HEAVY = ("torch", "transformers", "vllm", "fastapi", "tokenizers")


def imports_of(path: Path) -> Iterator[str]:
    """The top-level package of every import, wherever it stands in the file, type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            assert node.module is not None
            yield node.module.partition(".")[0]


def loaded_after_importing(module: str, names: tuple[str, ...]) -> list[str]:
    program = f"import sys, {module}; print(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("preceptor", {"preceptor_server", "preceptor_client"}),
        ("preceptor_server", {"preceptor_client"}),
        ("preceptor_client", {"preceptor_server"}),
    ],
)
def test_dependencies_point_one_way(package: str, forbidden: set[str]) -> None:
    files = sorted(SOURCES[package].rglob("*.py"))
    assert files, "no sources found: the test would prove nothing"
    offenders = [str(path.relative_to(ROOT)) for path in files if forbidden & set(imports_of(path))]
    assert offenders == []


@pytest.mark.parametrize("package", SOURCES)
def test_imports_are_found_where_they_are(package: str) -> None:
    found = {name for path in SOURCES[package].rglob("*.py") for name in imports_of(path)}
    assert "numpy" in found


@pytest.mark.parametrize(
    "module", ["preceptor_client", "preceptor.wire", "preceptor.settings", "preceptor.v1.teacher_pb2"]
)
def test_light_side_imports_nothing_heavy(module: str) -> None:
    assert loaded_after_importing(module, (*HEAVY, "preceptor_server")) == []


def test_settings_and_queues_of_the_server_import_neither_a_model_library_nor_grpc() -> None:
    modules = ("config", "cli", "errors", "types", "callers", "scheduling.scheduler", "selftest", "engines.own")
    names = ", ".join(f"preceptor_server.{module}" for module in modules)
    assert loaded_after_importing(names, (*HEAVY, "grpc", "google.protobuf", "preceptor_client")) == []


def test_edges_of_the_server_import_no_model_library() -> None:
    modules = ("preparing", "scoring", "hosted", "teachers", "serving", "edges.grpc.server", "edges.readiness")
    names = ", ".join(f"preceptor_server.{module}" for module in modules)
    assert loaded_after_importing(names, (*HEAVY, "preceptor_client")) == []


def test_a_server_without_http_imports_none_of_its_libraries() -> None:
    names = ("fastapi", "starlette", "uvicorn", "orjson", "msgpack", "prometheus_client")
    assert loaded_after_importing("preceptor_server.app", names) == []


def test_packing_imports_no_torch() -> None:
    assert loaded_after_importing("preceptor_server.engines.hf.packing", HEAVY) == []


PROTOBUF_IN_THE_SERVER = ("edges/grpc/", "edges/failures.py", "edges/readiness.py", "edges/http/plain.py")
"""Where messages are read and written; /v1/info and msgpack answers are the wire's messages in other clothes."""


def test_protobuf_lives_in_the_edges_of_the_server() -> None:
    root = SOURCES["preceptor_server"]
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        imports = re.findall(r"^(?:from|import) (preceptor\.v1|google\.protobuf|google\.rpc)", file.read_text(), re.M)
        assert not imports or name.startswith(PROTOBUF_IN_THE_SERVER), f"{name} imports {imports[0]}"


def test_the_server_holds_no_stand_ins_for_tests() -> None:
    """The fake engines are engines of one's own, tests/engines, as a user's would be."""
    root = ROOT / "server"
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    assert any(path.name == "own.py" for path in files), "no sources found: the test would prove nothing"
    offenders = [str(path.relative_to(ROOT)) for path in files if b"fake" in path.read_bytes().lower()]
    assert offenders == []
