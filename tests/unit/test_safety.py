"""The code reads nothing that can run code, but DeepSpeed's checkpoints; nobody outside the host reaches its ranks."""

from __future__ import annotations

import ast
import multiprocessing
import os
from collections.abc import Iterator

import psutil
import pytest

from tests.support.models import model_directory
from tests.support.runs import ROOT
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import UserError
from tinybert_ds.launch.port import free_port

FORBIDDEN = ("eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load")
REQUIRED = {
    "torch.load": {"weights_only": True},
    "AutoTokenizer.from_pretrained": {"trust_remote_code": False, "local_files_only": True},
    "auto_class.from_pretrained": {"trust_remote_code": False, "local_files_only": True, "weights_only": True},
}
"""Calls, and the arguments that they must state."""


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield the dotted name of everything that is called, with the call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(source: str) -> list[str]:
    """Return what in a module could run code that comes with data, one sentence each."""
    found = []
    for name, call in calls(source):
        stated = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if name in FORBIDDEN:
            found.append(f"{name} is called")
        if stated.get("allow_pickle") or stated.get("trust_remote_code"):
            found.append(f"{name} is allowed to run code")
        if name == "yaml.load" and "BaseLoader" not in ast.unparse(call) and "SafeLoader" not in ast.unparse(call):
            found.append("yaml.load without a safe loader")
        missing = [word for word, value in REQUIRED.get(name, {}).items() if stated.get(word) is not value]
        if missing:
            found.append(f"{name} without {', '.join(missing)}")
    return found


def test_no_module_reads_what_can_run_code():
    files = [path for folder in ("tinybert_ds", "data_tools", "launchers") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): unsafe(path.read_text(encoding="utf-8")) for path in files}
    assert {name: sentences for name, sentences in found.items() if sentences} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(handle)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True, local_files_only=True)",
        "eval(text)",
    ],
)
def test_what_is_unsafe_is_found(source):
    assert unsafe(source) != []


def test_a_tokeniser_that_brings_code_is_refused_and_its_code_not_run(tmp_path):
    directory = model_directory(tmp_path / "model")
    for file in directory.glob("tokenizer*"):
        file.unlink()
    trace = tmp_path / "executed"
    (directory / "vocab.txt").unlink()
    (directory / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    (directory / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    with pytest.raises(UserError):
        load_tokenizer(str(directory), True)
    assert not trace.exists()


def _listening(connection, place: dict[str, str]) -> None:
    from tinybert_ds.engine.ranks.process_group import init_distributed  # noqa: PLC0415 - in the child alone

    os.environ.update(place)
    world = init_distributed()
    sockets = [found for found in psutil.Process().net_connections("inet") if found.status == psutil.CONN_LISTEN]
    connection.send((world.size, [str(found.laddr) for found in sockets]))
    connection.recv()  # until the other one has looked, too


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_the_processes_of_one_host_listen_on_no_address_but_loopback(size):
    context = multiprocessing.get_context("forkserver")
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {} for rank in range(size)]
    pipes = [context.Pipe() for _ in places]
    processes = [context.Process(target=_listening, args=(pipes[rank][1], place)) for rank, place in enumerate(places)]
    for process in processes:
        process.start()
    for connection, _ in pipes:
        assert connection.poll(timeout=120)
        found, addresses = connection.recv()
        assert found == size
        assert [address for address in addresses if "127.0.0.1" not in address] == []
    for (connection, _), process in zip(pipes, processes, strict=True):
        connection.send("done")
        process.join()
