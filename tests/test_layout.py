"""The structure of docs/architecture.md: imports run down the floors, in no circle; folders and files are small.

What still breaks a rule is listed in this file; a list may only get shorter.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"nhl_fast": ROOT / "nhl_fast", "nhl_fast.kernels": ROOT / "kernels"}
FLOORS = [
    "core",
    "native kernels",
    "centers retrieval text",
    "losses data index pictures paper_table compat",
    "head",
    "steps",
    "training",
    "fit",
    "report",
    "cli",
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
MOST_FILES, MOST_LINES = 16, 450


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(module: str, path: Path):
    """(module imported, line), those inside functions and for type checkers too."""
    package = (module if path.name == "__init__.py" else module.rpartition(".")[0]).split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for name in node.names:  # `from . import x` is x where x is a module
                yield (f"{base}.{name.name}" if f"{base}.{name.name}" in MODULES else base), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)


EDGES = sorted(
    {(m, target, line) for m, path in MODULES.items() for target, line in imports(m, path) if target in MODULES}
)


def part(module: str) -> str:
    """The folder (or module) right below nhl_fast; "" for the root itself."""
    return ".".join(module.split(".")[1:2])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


def graph_of(edges) -> dict[str, set[str]]:
    graph = {module: set() for module in MODULES}
    for module, target, _ in edges:
        if module != target:
            graph[module].add(target)
    return graph


# Folders with more files, files with more lines.
LARGE_FOLDERS = {}
LONG_FILES: set[str] = set()


def test_every_part_has_a_floor():
    parts = {part(module) for module in MODULES} - {"", "__main__"}
    assert parts == set(FLOOR)


def test_imports_run_down():
    crossing = [(module, part(target)) for module, target, _ in EDGES if part(module) in FLOOR]
    up = {(m, to) for m, to in crossing if part(m) != to and FLOOR.get(to, 99) >= FLOOR[part(m)]}
    assert up == set()


def test_no_circles():
    # The root loads its names lazily; what a type checker reads there is no import.
    edges = [edge for edge in EDGES if edge[0] != "nhl_fast"]
    assert circles(graph_of(edges)) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def own_instances(tree: ast.AST) -> set[ast.AST]:
    """The names, where they are read, of instances of a class that its own methods have just made.

    Such are local variables whose every assignment in the method calls `cls`, `type(self)` or the class by name.
    """
    found = set()
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        makers = {"cls", "type(self)", owner.name}
        for method in (node for node in owner.body if isinstance(node, ast.FunctionDef)):
            names = [node for node in ast.walk(method) if isinstance(node, ast.Name)]
            bound = {node: None for node in names if isinstance(node.ctx, ast.Store)}
            for node in ast.walk(method):
                if isinstance(node, ast.Assign) and len(node.targets) == 1:
                    made = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in makers
                    bound |= {node.targets[0]: made} if isinstance(node.targets[0], ast.Name) else {}
            arguments = {argument.arg for argument in ast.walk(method) if isinstance(argument, ast.arg)}
            other = {name.id for name, made in bound.items() if not made} | arguments
            found |= {node for node in names if node.id in {name.id for name in bound} - other}
    return found


def reaches(tree: ast.AST):
    """Names with an underscore that are another's: `x._name` and `from another_package import _name`."""
    own = own_instances(tree)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            far = node.level != 1 and (node.level or (node.module or "").startswith("nhl_fast"))
            yield from (n.name for n in node.names if far and n.name.startswith("_") and n.name != "__version__")
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super":
                continue
            if owner in own:
                continue
            name = owner.id if isinstance(owner, ast.Name) else ast.unparse(owner)
            allowed = name in {"self", "cls", "torch", *defined} or name.startswith(("torch.", "sys", "os"))
            # A NamedTuple's methods, and a tensor's count of writes, which has no other name.
            if not allowed and node.attr not in ("_replace", "_fields", "_asdict", "_make", "_version"):
                yield f"{name}.{node.attr}"


def test_private_names_stay_at_home():
    found = {(m, name) for m, path in MODULES.items() for name in reaches(ast.parse(path.read_text()))}
    assert found == set()


def test_only_what_a_class_has_just_made_is_its_own():
    reached = """
class A:
    def copy(self, other):
        out, far = type(self)(), other
        near = A(self._x)
        near._x = other._x
        far._x = out._x
        return near
    @classmethod
    def load(cls, file):
        new = cls()
        new._x, file._x = 1, 2
        new = file
def outside(b):
    new = A()
    new._x = b._x
"""
    found = sorted(reaches(ast.parse(reached)))
    assert found == ["b._x", "far._x", "file._x", "new._x", "new._x", "other._x", "out._x"]


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda p: p.name)
def test_folders_are_small(folder):
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= LARGE_FOLDERS.get(folder.name, MOST_FILES)


def test_files_are_small():
    long = {str(p.relative_to(ROOT)) for p in MODULES.values() if len(p.read_text().splitlines()) > MOST_LINES}
    assert long == LONG_FILES
