"""Arguments and variables reach ranks on other hosts as they were given, whatever is in them.

The remote shells are stand-ins that do what real ones do: the words of a command are joined with spaces, and a shell
with a bare environment reads the line. The launchers of DeepSpeed and the mpirun of MPICH are the real ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import ROOT
from tinybert_ds.errors import ConfigError
from tinybert_ds.launch.rank import LIMIT_BYTES, VARIABLE, RankCommand, pack, unpack

SSH = """#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[1:] if words[0] in ("-x", "--") else words[2:]
host, command = words[0], " ".join(words[1:])
with open({log!r}, "a", errors="surrogateescape") as log:
    print("ssh", command, file=log)
if command.endswith("hostname -I"):
    command = "echo 127.0.0.1"
bare = {{"PATH": "/usr/bin:/bin", "HOME": "/", "FAKE_HOST": host, "USER": "nobody"}}
os.execve("/bin/sh", ["sh", "-c", command], bare)
"""
PDSH = """#!{python}
import subprocess, sys
words = sys.argv[1:]
assert words[:2] == ["-S", "-f"] and words[3] == "-w", words
hosts, command = words[4].split(","), " ".join(words[5:])
places = {{"%h": str, "%n": lambda host: str(hosts.index(host)), "%u": lambda host: "nobody"}}
remote = []
for host in hosts:
    line = command
    for mark, value in places.items():
        line = line.replace(mark, value(host))
    remote.append(subprocess.Popen(["ssh", host, line]))
sys.exit(max(process.wait() for process in remote))
"""
MPIRUN = """#!{python}
import subprocess, sys
if sys.argv[1:] == ["--version"]:
    print("mpirun (Open MPI) 5.0.0")
    sys.exit()
words, variables = sys.argv[1:], {{}}
lengths = {{"-n": 2, "-hostfile": 2, "--mca": 3, "--allow-run-as-root": 1, "-x": 2}}
size = int(words[words.index("-n") + 1])
while words[0] in lengths:
    if words[0] == "-x":
        name, _, value = words[1].partition("=")
        variables[name] = value
    words = words[lengths[words[0]]:]
ranks = []
for rank in range(size):
    place = {{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size), "PATH": "/usr/bin:/bin"}}
    ranks.append(subprocess.Popen(["/bin/sh", "-c", " ".join(words)], env={{**variables, **place}}))
sys.exit(max(process.wait() for process in ranks))
"""
STAGE = """
# prepare()
import json, os, sys
rank = os.environ.get("RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
variables = {name.hex(): value.hex() for name, value in os.environb.items()}
words = [os.fsencode(word).hex() for word in sys.argv[1:]]
with open(__file__ + "." + rank, "w") as file:
    json.dump([words, variables, os.getcwd()], file)
"""
KNOWN = ["R&D/teacher", "shards(v2)", "it's", "#t", "$HOME", "*", "", 'a "quoted" word', "two\nlines", "a\\b", "%h%n%u"]
KNOWN += [
    "`id`",
    "$(id)",
    "; exit 3",
    "| cat",
    "> /dev/null",
    "~",
    "{a,b}",
    "!!",
    "\t",
    " ",
    "--hostfile",
    "--",
    "-h",
    "=",
    "ü",
]
KNOWN += [":", "-n", "\r\n", "'\"'\"'", "\\", "x" * 5000]


def random_words(count: int, seed: int) -> list[bytes]:
    """Return byte strings of up to 40 bytes without the one that no argument can hold."""
    rng = random.Random(seed)
    return [bytes(rng.randint(1, 255) for _ in range(rng.randint(0, 40))) for _ in range(count)]


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what a host needs, with a stage that writes down what reaches it."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "tinybert_ds", folder / "tinybert_ds", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "launchers").mkdir()
    (folder / "launchers" / "probe.py").write_text(STAGE)
    binaries = tmp_path / "venv" / "bin"  # whose mpirun comes first
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    for name in ("pyvenv.cfg", "lib"):
        (binaries.parent / name).symlink_to(Path(sys.prefix) / name)
    for name, text in (("ssh", SSH), ("pdsh", PDSH), ("mpirun", MPIRUN), ("ompi_info", "#!/bin/sh\n")):
        (binaries / name).write_text(text.format(python=sys.executable, log=str(tmp_path / "ssh.log")))
        (binaries / name).chmod(0o755)
    (tmp_path / "hosts").write_text("nodeA slots=1\nnodeB slots=1\n")
    return folder


def start(checkout: Path, launcher: str, words, variables, *options: str) -> subprocess.CompletedProcess[bytes]:
    folder = checkout.parent
    own = folder / "venv" / "bin"
    if launcher != "openmpi":
        (own / "mpirun").unlink()
    (folder / "R&D (v2)").mkdir()
    command = [own / "python", "-m", "tinybert_ds.launch", "--launcher", launcher]
    command += ["--hostfile", "../hosts", "--master_port", "4000"]
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    environment |= {
        b"PYTHONPATH": os.fsencode(checkout),
        b"PATH": os.fsencode(f"{own}:{Path(sys.executable).parent}:{os.environ['PATH']}"),
    }
    return subprocess.run(
        [os.fsencode(str(word)) for word in (*command, *options, "probe")] + list(words),
        env={**environment, **variables},
        cwd=folder / "R&D (v2)",
        capture_output=True,
        timeout=240,
        check=False,
    )


def reached(checkout: Path, rank: int):
    """Return the arguments, variables and directory of a rank."""
    text = (checkout / "launchers" / f"probe.py.{rank}").read_text()
    words, variables, directory = json.loads(text)
    known = {bytes.fromhex(name): bytes.fromhex(value) for name, value in variables.items()}
    return [bytes.fromhex(word) for word in words], known, directory


def own_words(words: list[bytes]) -> list[bytes]:
    """Return a rank's arguments without the one that DeepSpeed's launcher puts before them."""
    return words[1:] if words and words[0].startswith(b"--local_rank=") else words


LAUNCHERS = [
    ("pdsh", ()),
    ("openmpi", ()),
    pytest.param(
        "mpich",
        ("--launcher_args=-launcher ssh -launcher-exec {bin}/ssh -localhost 127.0.0.1",),
        marks=pytest.mark.skipif(
            not Path(sys.executable).with_name("mpiexec.hydra").exists(), reason="mpirun is in the extra `mpi`"
        ),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "options"), LAUNCHERS)
def test_200_random_byte_strings_and_all_known_ones_reach_every_rank(checkout, launcher, options):
    words = [os.fsencode(word) for word in KNOWN] + random_words(200, seed=14)
    variables = {f"HF_V{number}".encode(): word for number, word in enumerate(words)}
    variables |= {b"MINE": b"a\xff'$x", b"HF_TOKEN": b"s3cr3t-one", b"WANDB_API_KEY": b"s3cr3t-two"}
    options = [option.format(bin=checkout.parent / "venv" / "bin") for option in options]
    result = start(checkout, launcher, words, variables, *options, "--forward", "MINE", "--forward", "WANDB_API_KEY")
    assert result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
    for rank in (0, 1):
        arguments, found, directory = reached(checkout, rank)
        assert own_words(arguments) == words
        assert {name: found.get(name) for name in variables if name != b"HF_TOKEN"} == {
            name: value for name, value in variables.items() if name != b"HF_TOKEN"
        }
        assert b"HF_TOKEN" not in found
        assert VARIABLE.encode() not in found
        assert directory.endswith("/R&D (v2)")
    said = result.stdout + result.stderr
    assert b"s3cr3t" not in said
    assert VARIABLE.encode() not in said, "the secret is in there"
    assert b"not handed on to the hosts: HF_TOKEN" in said
    assert b"warning: WANDB_API_KEY (--forward) may be seen by everyone" in said
    log = (checkout.parent / "ssh.log").read_bytes()
    assert {"pdsh": b"tinybert_ds.launch.rank", "mpich": b"hydra_pmi_proxy", "openmpi": b"hostname"}[launcher] in log
    assert b"s3cr3t" not in log


@pytest.mark.slow
def test_ranks_of_this_host_get_everything_as_it_is_and_its_secrets_unasked(checkout):
    (checkout.parent / "hosts").write_text("localhost slots=2\n")
    words = [os.fsencode(word) for word in KNOWN]
    variables = {b"HF_TOKEN": b"s3cr3t-one", b"MY_NCCL_KEY": b"s3cr3t-two", b"NCCL_X": b"a 'b'", b"OTHER": b"$x\n"}
    result = start(checkout, "pdsh", words, variables)
    assert result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
    for rank in (0, 1):
        arguments, found, _ = reached(checkout, rank)
        assert own_words(arguments) == words
        assert {name: found.get(name) for name in variables} == variables
    assert b"s3cr3t" not in result.stdout + result.stderr


def test_a_rank_whose_directory_is_not_on_its_host_is_told_so(tmp_path):
    word = pack(RankCommand([sys.executable, "x.py"], str(tmp_path / "gone"), {}))
    command = [sys.executable, "-m", "tinybert_ds.launch.rank"]
    environment = {**os.environ, VARIABLE: word}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"this host, {os.uname().nodename}, cannot start the stage" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("word", ["", "x", "eJw", "AAAA", "ü", pack(RankCommand(["a"], "b", {}))[:-4]])
def test_a_word_that_is_no_command_is_refused(word):
    with pytest.raises(ConfigError, match=f"{VARIABLE} is no command of a rank"):
        unpack(word)


def test_a_command_is_one_word_that_no_shell_changes():
    word = pack(RankCommand(KNOWN, "/a b", {"A": "\udcff", "B": "$(x)"}))
    assert set(word) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert unpack(word) == RankCommand(KNOWN, "/a b", {"A": "\udcff", "B": "$(x)"})


def test_what_is_too_long_to_be_handed_on_is_named():
    noise = os.urandom(LIMIT_BYTES).hex()
    with pytest.raises(ConfigError, match=r"longest variables: HF_LONG \(200,000\), A \(1\)"):
        pack(RankCommand(["x"], "/", {"A": "1", "HF_LONG": noise}))
