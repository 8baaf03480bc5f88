"""The folders say the architecture, and imports keep to it: DESIGN.md, "Imports point one way"."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ALLOWED_FROM_MASTER = {"worker_service.contract", "worker_service.contract.patterns"}


def imports(path):
    """Every module that a file imports, at the top or later, with the names it takes from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(*folders):
    return [path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))]


def offenders(paths, forbidden):
    found = {(str(path.relative_to(REPO)), name) for path in paths for name in imports(path) if forbidden(name)}
    return sorted(found)


def is_of(name, package):
    return name == package or name.startswith(f"{package}.")


def test_the_worker_never_imports_the_master():
    paths = sources("worker_service", "modules", "states")
    assert offenders(paths, lambda name: is_of(name, "master_service")) == []


def test_the_master_knows_only_the_contract_of_the_worker():
    def forbidden(name):
        return is_of(name, "worker_service") and not any(is_of(name, allowed) for allowed in ALLOWED_FROM_MASTER)

    wrong = offenders(sources("master_service"), forbidden)
    assert [(path, name) for path, name in wrong if name != "worker_service"] == []


def test_only_the_hypervisor_folder_imports_libvirt():
    paths = [path for path in sources("worker_service", "modules", "states") if "hypervisor" not in path.parts]
    assert offenders(paths, lambda name: is_of(name, "libvirt")) == []


def test_the_master_imports_neither_libvirt_nor_salt():
    assert offenders(sources("master_service"), lambda name: is_of(name, "libvirt") or is_of(name, "salt")) == []


def test_the_worker_reaches_salt_only_where_it_loads_its_modules():
    apart = ("salt_loader.py", "salt_reader.py")  # the facade, and a process that only reads files
    paths = [path for path in sources("worker_service") if path.name not in apart]
    assert offenders(paths, lambda name: is_of(name, "salt")) == []


def test_the_doors_reach_only_the_worker():
    paths = sources("modules", "states")
    assert offenders(paths, lambda name: is_of(name, "devstack") or is_of(name, "salt")) == []


def test_the_services_do_not_know_the_development_stack():
    assert offenders(sources("worker_service", "master_service"), lambda name: is_of(name, "devstack")) == []


def test_the_contract_depends_on_nothing_but_msgspec():
    third_party = {name.partition(".")[0] for name in imports(REPO / "worker_service/contract/messages.py")} - set(
        sys.stdlib_module_names
    )
    assert third_party == {"msgspec"}


def test_nothing_hides_the_real_salt():
    assert not list((REPO / "salt").rglob("__init__.py"))


def test_qemu_img_is_called_in_one_place_and_always_told_the_format():
    callers = [path for path in sources("worker_service") if '"qemu-img"' in path.read_text()]
    assert [path.name for path in callers] == ["qemu_img.py"]
    tree = ast.parse(callers[0].read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_run"]
    lists = [node for node in ast.walk(tree) if isinstance(node, ast.List) and "qemu-img" in ast.dump(node)]
    assert calls
    assert lists
    for node in (*calls, *lists):
        assert "Constant(value='-f')" in ast.dump(node)


@pytest.mark.parametrize("module", ["worker_service.helper.step_loop", "worker_service.operations.verbs"])
def test_an_idle_helper_stays_light(module):
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    heavy = {"libvirt", "httpx2", "salt", "fastapi", "oslo_utils", "pydantic"} & set(done.stdout.split())
    assert heavy == set()


@pytest.mark.parametrize("folder", ["worker_service", "master_service", "modules", "states", "devstack"])
def test_files_stay_small(folder):
    long = {
        str(path.relative_to(REPO)): n for path in sources(folder) if (n := len(path.read_text().splitlines())) > 410
    }
    assert long == {}
