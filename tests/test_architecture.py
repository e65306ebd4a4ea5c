"""The house stands as it was drawn: who may import whom, and what no user byte may ever reach."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("regtrain", "service", "worker")
ALONE = {"torch": ("worker",), "fastapi": ("service",), "starlette": ("service",), "uvicorn": ("service",)}
"""Package → where it may be imported."""
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}
CONTRACT_MAY_IMPORT = {"regtrain", "pydantic", "pydantic_core", "numpy", *sys.stdlib_module_names}


def files(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names of all modules that a file imports, at its top or inside its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a call's function; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
        case _:
            return ""


def forbidden(tree: ast.AST) -> Iterator[str]:
    """What could run code that came as data."""
    for module in imports(tree):
        if module.split(".")[0] in LOADERS:
            yield f"import {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in CALLS:
                yield f"{dotted(node.func)}(…)"
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in ("allow_pickle", "shell") and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{keyword.arg}="


@pytest.mark.parametrize("path", files(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_can_run_code_that_came_as_data(path: Path) -> None:
    assert list(forbidden(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("code", ["import pickle", "from joblib import load", "torch.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f)", "eval('1')", "run(c, shell=True)"])
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(forbidden(ast.parse(code)))


@pytest.mark.parametrize("package", ALONE)
def test_a_package_is_imported_where_it_belongs(package: str) -> None:
    elsewhere = [p for p in PACKAGES if p not in ALONE[package]]
    found = [str(path.relative_to(ROOT)) for path in files(*elsewhere) if any(name.split(".")[0] == package for name in imports(ast.parse(path.read_text(encoding="utf-8"))))]
    assert found == []


def test_the_contract_needs_the_standard_library_pydantic_and_numpy_alone() -> None:
    names = {name.split(".")[0] for path in files("regtrain/contract") for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert names <= CONTRACT_MAY_IMPORT


def test_the_loop_and_its_attempt_are_the_only_part_of_the_worker_that_knows_the_store() -> None:
    found = {
        path.relative_to(ROOT).as_posix() for path in files("worker") if any(name.startswith("regtrain.store") for name in imports(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found <= {"worker/loop.py", "worker/attempt.py", "worker/__main__.py"}


def test_import_rules_hold() -> None:
    """All contracts of import-linter in pyproject.toml, indirect imports included."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_service_process_has_no_torch_and_nothing_of_the_worker() -> None:
    code = "import sys, service.app; print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'sklearn', 'worker')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
