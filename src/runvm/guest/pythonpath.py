"""The guest's Python: which modules the agent can import there, and their bytecode.

The standard library is cut down to what the agent's modules import, found in their source, and to what those load,
found by importing them in the guest's own interpreter. It goes in as bytecode without source (less memory, a stat less
an import); runvm's own modules keep their source for tracebacks.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator

import runvm
from runvm.errors import HostError
from runvm.guest.programs import Root
from runvm.records import NamedTuple

# Loaded late or by name, where looking at imports can't see it: codecs, what tracebacks and a debug shell load.
ALWAYS = (
    *("encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_8", "codecs", "linecache", "traceback"),
    *("array", "base64", "binascii", "collections", "contextlib", "copy", "ctypes", "enum", "errno", "faulthandler"),
    *(
        "fcntl",
        "functools",
        "gc",
        "grp",
        "hashlib",
        "heapq",
        "io",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "operator",
    ),
    *("os", "pty", "pwd", "queue", "random", "re", "resource", "runpy", "select", "selectors", "shlex", "shutil"),
    *("signal", "site", "socket", "stat", "string", "struct", "subprocess", "sys", "termios", "textwrap", "threading"),
    *("time", "tokenize", "tty", "types", "typing", "warnings", "weakref", "zlib"),
)

# The standard library tries these and does without them; OpenSSL, bzip2 and lzma would bring 7 MB of libraries.
NEVER = ("_hashlib", "_ssl", "_bz2", "_lzma", "bz2", "lzma", "_sqlite3", "readline")

_COLLECT = """
import importlib, json, sys
names, never = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name in never:
    sys.modules[name] = None
missing = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.append(f"{name}: {error}")
files = set()
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    path = getattr(module, "__file__", None)
    if spec is not None and spec.origin == "frozen":
        path = getattr(spec.loader_state, "filename", None)
    if path:
        files.add(path)
print(json.dumps({"files": sorted(files), "missing": missing}))
"""

_COMPILE = """
import json, py_compile, sys
for source, target, name in json.load(open(sys.argv[1])):
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(source, target, name, doraise=True, invalidation_mode=mode)
"""


class AgentSources(NamedTuple):
    """runvm's part of the image: files, relative to the directory that holds the package, and what else they import."""

    files: tuple[str, ...]
    imports: tuple[str, ...]


def package_directory() -> str:
    """The directory that holds the package `runvm`, installed or in a checkout."""
    return os.path.dirname(os.path.dirname(os.path.abspath(runvm.__file__)))


def agent() -> AgentSources:
    """The agent's modules, and those of runvm that they import at whatever place in their source."""
    base = package_directory()
    entry = os.path.join(base, "runvm", "agent")
    todo = [f"runvm.agent.{name[:-3]}" for name in os.listdir(entry) if name.endswith(".py")]
    files: set[str] = set()
    imports: set[str] = set()
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _source(base, name)
        if path is None:
            continue  # `from module import function`: the function isn't a module
        files.add(path)
        parent = name.rpartition(".")[0]
        if parent:
            todo.append(parent)
        with open(os.path.join(base, path), "rb") as file:
            tree = ast.parse(file.read(), path)
        package = name if path.endswith("__init__.py") else parent
        for imported in imported_by(tree, package):
            if imported.split(".")[0] == "runvm":
                todo.append(imported)
            else:
                imports.add(imported)
    return AgentSources(tuple(sorted(files)), tuple(sorted(imports)))


def agent_hash(found: AgentSources) -> str:
    """A hash of *found*'s files, names included."""
    digest = hashlib.sha256()
    for name in found.files:
        with open(os.path.join(package_directory(), name), "rb") as file:
            digest.update(f"{name}\0{hashlib.sha256(file.read()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _source(base: str, name: str) -> str | None:
    stem = name.replace(".", "/")
    for path in (f"{stem}.py", f"{stem}/__init__.py"):
        if os.path.isfile(os.path.join(base, path)):
            return path
    return None


def imported_by(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that a syntax tree imports, by absolute names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            if module.split(".")[0] == "runvm":
                yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imported_by(ast.Module(node.orelse, []), package)
        else:
            yield from imported_by(node, package)


def interpreter(root: Root) -> str:
    """The path in *root* of its python3.N."""
    prefix = "python3."
    names = [name.removeprefix(prefix) for name in os.listdir(root.at("usr/bin")) if name.startswith(prefix)]
    minors = [int(name) for name in names if name.isdigit()]
    if not minors:
        raise HostError("the distribution's python3-minimal has no python3.N")
    return f"/usr/bin/{prefix}{max(minors)}"


def stdlib(root: Root, tools: Root, imports: tuple[str, ...]) -> list[str]:
    """Paths in *root* of the standard library's files (.py and .so) that ALWAYS and *imports* load, found out with the
    Python of *tools*. Raises HostError where the two aren't of one version."""
    if interpreter(root) != interpreter(tools):
        raise HostError(
            "the packages of the guest's architecture and of this host's have different versions of Python",
            do="run 'runvm image build --update' later, when the mirror has both alike",
        )
    names = [name for name in (*ALWAYS, *imports) if name not in NEVER]
    answer = tools.call(interpreter(tools), "-SIB", "-c", _COLLECT, json.dumps(names), json.dumps(NEVER))
    found = json.loads(answer)
    if found["missing"]:
        raise HostError("the guest's Python lacks modules that the agent imports", details="\n".join(found["missing"]))
    files = ["/" + os.path.relpath(path, tools.path) for path in found["files"]]
    # extension modules have their architecture in their names
    files = [path.replace(tools.triplet(), root.triplet()) for path in files]
    lacking = [path for path in files if not os.path.exists(root.at(path))]
    if lacking:
        raise HostError("the guest's Python lacks files that this host's has", details="\n".join(lacking))
    return files


def compile_all(tools: Root, jobs: list[tuple[str, str, str]], scratch: str) -> None:
    """Write bytecode by the Python of *tools*: *jobs* are (source, target, the file name that tracebacks show).

    Unchecked: the image never changes, so no import has to stat or read a source.
    """
    for _, target, _ in jobs:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    listing = os.path.join(scratch, "compile.json")
    with open(listing, "w") as file:
        json.dump(jobs, file)
    tools.call(interpreter(tools), "-SIB", "-c", _COMPILE, listing)
