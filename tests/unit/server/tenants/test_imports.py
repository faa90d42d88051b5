from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import preceptor_server.tenants

FOLDER = Path(preceptor_server.tenants.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "tls"))
HEAVY = ("grpc", "google.protobuf", "fastapi", "starlette", "uvicorn", "torch", "transformers")


def loaded_after(program: str) -> list[str]:
    program += f"; import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_only_tls_knows_grpc_and_nothing_a_web_framework_or_a_model() -> None:
    assert "keys" in MODULES
    assert loaded_after("; ".join(f"import preceptor_server.tenants.{module}" for module in MODULES)) == []
    assert loaded_after("import preceptor_server.tenants.tls")[:1] == ["grpc"]
    assert not set(loaded_after("import preceptor_server.tenants.tls")) & {"fastapi", "uvicorn", "torch"}


def test_making_a_key_waits_for_no_model_library(tmp_path: Path) -> None:
    arguments = ["keys", "new", "--tenant", "a", "--file", str(tmp_path / "access.toml")]
    *key, loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from preceptor_server.cli import main; main({arguments!r}); import sys; "
            f"print([name for name in {HEAVY!r} if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(key) == 1
    assert loaded == "[]"
