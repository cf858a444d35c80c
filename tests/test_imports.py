"""The house: which floor may import which. Parsed from the source, so that nothing lazy escapes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nbqueue

PACKAGE = Path(nbqueue.__path__[0])
ROOMS = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
GROUND = {"errors"}
# Room → rooms of ours that it may import besides itself.
ALLOWED = {
    "errors": set(),
    "context": GROUND,
    "stream": GROUND,
    "codec": GROUND,
    "progress": GROUND,
    "worker": GROUND | {"stream", "codec", "context", "__init__"},
    "client": GROUND | {"stream", "codec", "progress", "context", "__init__"},
    "notebook": GROUND | {"client", "progress", "context", "__init__"},
    "interop": GROUND | {"client", "progress", "context", "__init__"},
    "demo": GROUND | {"client", "__init__"},
    "cli": GROUND | {"client", "worker", "stream", "codec", "demo", "__init__"},
    "__init__": {"client", "context", "errors", "notebook"},
}
# File → rooms above it that it opens when somebody comes.
DOORS = {"client/queue.py": {"interop"}}
# Room inside a wing → what of that wing it may import besides itself.
INNER = {
    "client/sending": set(),
    "client/results": {"client.sending"},
    "worker/telling": {"worker.board"},
    "worker/coroutines": {
        *("worker.board", "worker.descriptors", "worker.loop", "worker.seeded", "worker.telling", "worker.turns"),
    },
}
NOTEBOOK_ONLY = {"IPython", "ipywidgets", "ipykernel", "comm"}
MAY_KNOW_NOTEBOOKS = {"progress/widget.py", "notebook/magics.py", "notebook/panel.py"}


def _modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere in it, relative ones resolved."""
    package = ["nbqueue", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_floor_imports_nothing_above_it(path: Path):
    room = _room(path)
    names = [name.split(".") for name in _imports(path)]
    imported = {parts[1] for parts in names if parts[0] == "nbqueue" and len(parts) > 1 and parts[1] in ROOMS}
    if _uses_front_door(path):
        imported.add("__init__")
    allowed = ALLOWED[room] | {room} | DOORS.get(str(path.relative_to(PACKAGE)), set())
    assert imported <= allowed, f"{path} may not import {sorted(imported - allowed)}"


@pytest.mark.parametrize("room", INNER)
def test_a_room_inside_a_wing_knows_nothing_of_what_is_built_on_it(room: str):
    wing, inner = room.split("/")
    allowed = [f"nbqueue.{name}" for name in INNER[room] | {f"{wing}.{inner}"}]
    for path in (PACKAGE / wing / inner).glob("*.py"):
        near = {name for name in _imports(path) if name.startswith(f"nbqueue.{wing}.")}
        above = {name for name in near if not any(f"{name}.".startswith(f"{ok}.") for ok in allowed)}
        assert not above, f"{path} may not import {sorted(above)}"


def _uses_front_door(path: Path) -> bool:
    """Whether a file imports the package itself or a public name from it, not only a room."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and any(alias.name == "nbqueue" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "nbqueue" and not node.level:
            return any(alias.name not in ROOMS for alias in node.names)
    return False


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_notebook_libraries_stay_in_the_rooms_that_draw(path: Path):
    known = {name.split(".")[0] for name in _imports(path)} & NOTEBOOK_ONLY
    assert not known or str(path.relative_to(PACKAGE)) in MAY_KNOW_NOTEBOOKS


def test_only_one_room_knows_cloudpickle_and_one_redis():
    users = {lib: {str(p.relative_to(PACKAGE)) for p in _modules() if lib in {n.split(".")[0] for n in _imports(p)}}
             for lib in ("cloudpickle", "redis", "hiredis")}  # fmt: skip
    assert users["cloudpickle"] == {"codec/functions.py"}
    assert users["redis"] == users["hiredis"] == {"stream/connect.py", "stream/connection.py"}


def test_the_front_door_opens_nothing_until_it_is_asked():
    code = "import sys, nbqueue; print(*sorted(m for m in sys.modules if m.split('.')[0] in sys.argv[1:]))"
    heavy = ["redis", "cloudpickle", "IPython", "ipywidgets", "rich", "psutil", "numpy"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_fresh_worker_has_loaded_no_library_that_it_may_not_need():
    # In a script of its own: a fork template that is born late has what its supervisor has needed for other servers.
    code = (
        "import sys; from nbqueue import TaskQueue\n"
        "queue = TaskQueue(workers=1)\n"
        "HEAVY = ['IPython', 'ipywidgets', 'rich', 'numpy', 'asyncio', 'redis']\n"
        "def loaded(): return sorted({name.split('.')[0] for name in sys.modules} & set(HEAVY))\n"
        "async def loaded_by_then(): return loaded()\n"
        "print(queue.submit(loaded).result(), queue.submit(loaded_by_then).result(), 'redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    # Async functions need asyncio, and they alone; redis is for servers that ask for more than a socket.
    assert done.stdout.split("\n")[0] == "[] ['asyncio'] False", done.stdout
