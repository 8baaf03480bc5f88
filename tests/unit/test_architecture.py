"""Imports follow the order of the folders: DESIGN.md, "The order of the folders"."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ALLOWED_FROM_MASTER = {"worker_service.contract", "worker_service.contract.patterns"}


def imports(path):
    """Return every module that a file imports, at the top or later, with the names that it takes from it."""
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


FOLDERS = {
    "worker_service": [
        "watcher",
        "api",
        "operations",
        "helper",
        "steps",
        "state",
        "hypervisor",
        "images",
        "transfer",
        "console",
        "fs",
        "guest_agent",
        "core",
        "contract",
    ],
    "master_service": [
        "cli",
        "cli/commands",
        "cli/common",
        "gate",
        "api",
        "api/routes",
        "api/protocol",
        "services",
        "reconciler",
        "runtime",
        "store",
        "policy",
        "planning",
        "db",
        "saltapi",
        "core",
    ],
}
"""The folders of each service, highest first. A folder imports only from itself and from folders below it."""


def modules(service):
    """Return each module of a service by its dotted name, a package by its folder's."""
    found = {}
    for path in sources(service):
        name = ".".join(path.relative_to(REPO).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def folder_of(module):
    """Return the folder of a module within its service: the longest of FOLDERS that contains it, "" for the root."""
    service, _, rest = module.partition(".")
    path = f"{rest.replace('.', '/')}/"
    return max((folder for folder in FOLDERS[service] if path.startswith(f"{folder}/")), key=len, default="")


def edges(service):
    """Return (module, imported module) of the service's own imports, lazy and type-only ones too."""
    known = modules(service)
    for module, path in known.items():
        names = {name for name in imports(path) if is_of(name, service)}
        for name in names & set(known):
            # `from a import b` names `a` too; it says nothing where b is a module of its own.
            if not any(other.startswith(f"{name}.") and other in known for other in names):
                yield module, name


@pytest.mark.parametrize("service", FOLDERS)
def test_folders_import_only_downward(service):
    order = ["", *FOLDERS[service]]
    upward = {
        (module, imported)
        for module, imported in edges(service)
        if order.index(folder_of(imported)) < order.index(folder_of(module)) and imported != service
    }
    assert upward == set()


@pytest.mark.parametrize("service", FOLDERS)
def test_every_folder_has_its_place_and_says_its_concern(service):
    folders = {path.parent.relative_to(REPO / service) for path in sources(service)} - {Path()}
    outside = {str(folder) for folder in folders if not any(folder.is_relative_to(known) for known in FOLDERS[service])}
    assert outside == set()
    for folder in FOLDERS[service]:
        text = (REPO / service / folder / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(text)), folder


@pytest.mark.parametrize("service", FOLDERS)
def test_folder_has_few_modules(service):
    sizes = {folder: len(list((REPO / service / folder).glob("[!_]*.py"))) for folder in FOLDERS[service]}
    assert {folder: size for folder, size in sizes.items() if size > 14} == {}
    assert {path.name for path in (REPO / service).glob("*.py")} <= {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("service", FOLDERS)
def test_no_files_import_each_other_in_a_circle(service):
    imported = {}
    for module, name in edges(service):
        imported.setdefault(module, set()).add(name)
    list(graphlib.TopologicalSorter(imported).static_order())  # raises CycleError, which names the circle


def test_worker_never_imports_the_master():
    paths = sources("worker_service", "modules", "states")
    assert offenders(paths, lambda name: is_of(name, "master_service")) == []


def test_master_knows_only_the_contract_of_the_worker():
    def forbidden(name):
        return is_of(name, "worker_service") and not is_of(name, "worker_service.contract")

    assert offenders(sources("master_service"), forbidden) == []


def test_only_the_hypervisor_folder_imports_libvirt():
    paths = [path for path in sources("worker_service", "modules", "states") if "hypervisor" not in path.parts]
    assert offenders(paths, lambda name: is_of(name, "libvirt")) == []


def test_only_the_hypervisor_folder_knows_its_drivers():
    """Others have the interface and the registry. A setting and a parameter have the names, which no code compares."""
    paths = [path for path in sources("worker_service", "modules", "states") if "hypervisor" not in path.parts]

    def is_driver(name):
        known = ("base", "registry")
        return name.startswith("worker_service.hypervisor.") and name.split(".")[2] not in known

    assert offenders(paths, is_driver) == []
    compared = [
        (str(path.relative_to(REPO)), node.lineno)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in ("kvm", "xen", "vbox")
    ]
    assert compared == []


def test_master_imports_neither_libvirt_nor_salt():
    assert offenders(sources("master_service"), lambda name: is_of(name, "libvirt") or is_of(name, "salt")) == []


def test_worker_imports_salt_only_in_its_loaders():
    apart = ("salt_loader.py", "salt_reader.py")  # the worker API, and a process that only reads files
    paths = [path for path in sources("worker_service") if path.name not in apart]
    assert offenders(paths, lambda name: is_of(name, "salt")) == []


def test_salt_modules_reach_only_the_worker():
    """Salt's own parts that they need are named here: `salt` is also a folder of this repository."""
    paths = sources("modules", "states")
    needed = {
        "salt.netapi.rest_cherrypy",
        "salt.utils.ctx",
        "salt.utils.ctx.get_request_context",
        "salt.utils.event",
    }
    assert offenders(paths, lambda name: is_of(name, "devstack") or (is_of(name, "salt") and name not in needed)) == []


def test_services_do_not_know_the_development_stack():
    assert offenders(sources("worker_service", "master_service"), lambda name: is_of(name, "devstack")) == []


@pytest.mark.parametrize("folder", ["web_assets", "http_bounds"])
def test_shared_folders_import_no_service(folder):
    def forbidden(name):
        return is_of(name, "worker_service") or is_of(name, "master_service") or is_of(name, "devstack")

    assert offenders(sources(folder), forbidden) == []


def test_contract_depends_on_nothing_but_msgspec():
    tops = {name.partition(".")[0] for path in sources("worker_service/contract") for name in imports(path)}
    assert tops - set(sys.stdlib_module_names) == {"msgspec", "worker_service"}
    own = offenders(sources("worker_service/contract"), lambda name: is_of(name, "worker_service"))
    assert all(is_of(name, "worker_service.contract") for _, name in own)


def test_no_package_hides_the_real_salt():
    assert not list((REPO / "salt").rglob("__init__.py"))


def test_qemu_img_is_called_in_one_place_with_the_format():
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
def test_idle_helper_stays_light(module):
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    heavy = {"libvirt", "httpx2", "salt", "fastapi", "oslo_utils", "pydantic"} & set(done.stdout.split())
    assert heavy == set()


@pytest.mark.parametrize("folder", ["worker_service", "master_service", "http_bounds", "modules", "states", "devstack"])
def test_files_stay_small(folder):
    long = {
        str(path.relative_to(REPO)): n for path in sources(folder) if (n := len(path.read_text().splitlines())) > 410
    }
    assert long == {}
