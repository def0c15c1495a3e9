"""What the ranks of other hosts get of the launcher's environment, and what nobody gets unasked."""

from __future__ import annotations

import pytest

from tinybert_ds.errors import ConfigError
from tinybert_ds.launch.environment import launcher_environment, rank_variables, read_own_environment_file
from tinybert_ds.launch.remote import CHECKOUT

SECRETS = {
    "HF_TOKEN": "s1",
    "TORCH_api_key": "s2",
    "DS_SECRET": "s3",
    "HF_Password": "s4",
    "MLFLOW_TRACKING_CREDENTIALS": "s5",
    "AWS_SECRET_ACCESS_KEY": "s6",
}


def choose(environment, own_file=None, **more):
    return rank_variables(environment, own_file or {}, launch="id", master_port=7, **more)


def test_the_ranks_get_what_they_need_and_not_what_is_each_hosts_own():
    here = {
        "NCCL_SOCKET_IFNAME": "eth0",
        "CUDA_VISIBLE_DEVICES": "0",
        "HOME": "/root",
        "PATH": "/usr/bin",
        "MINE": "1",
        "PYTHONPATH": "/mine",
        "DS_ENV_FILE": "/x",
        "TINYBERT_DS_RANK": "of another launch",
    }
    there = choose(here, forward=["MINE"]).values
    assert there["NCCL_SOCKET_IFNAME"] == "eth0"
    assert there["MINE"] == "1"
    assert there["TINYBERT_DS_LAUNCH"] == "id"
    assert there["MASTER_PORT"] == "7"
    assert there["PYTHONPATH"] == f"{CHECKOUT}:/mine"
    assert not {"HOME", "CUDA_VISIBLE_DEVICES", "DS_ENV_FILE", "TINYBERT_DS_RANK"} & set(there)
    first, *rest = there["PATH"].split(":")
    assert first.endswith("/bin")
    assert rest[-1] == "/usr/bin"


@pytest.mark.parametrize("value", ['a "b"', "it's", "$HOME", "`x`", "a\\b", "two\nlines", "", "\udcff"])
def test_no_value_is_too_strange_to_be_handed_on(value):
    assert choose({"HF_X": value, "MINE": value}, forward=["MINE"]).values["HF_X"] == value
    assert choose({"MINE": value}, forward=["MINE"]).values["MINE"] == value


def test_what_looks_like_a_secret_stays_here_and_is_named():
    chosen = choose({**SECRETS, "HF_HOME": "/hub"})
    assert chosen.values["HF_HOME"] == "/hub"
    assert [value for value in chosen.values.values() if value in SECRETS.values()] == []
    assert chosen.withheld == sorted(set(SECRETS) - {"AWS_SECRET_ACCESS_KEY"})  # which nobody would expect to go
    assert chosen.exposed == []


@pytest.mark.parametrize(("name", "is_secret"), [("TOKENIZERS_PARALLELISM", False), ("TOKENIZERS_API_KEY", True)])
def test_the_settings_of_tokenizers_are_no_secrets_although_they_begin_with_token(name, is_secret):
    chosen = choose({name: "x"})
    assert (chosen.withheld == [name]) is (name not in chosen.values) is is_secret
    assert (name in launcher_environment({name: "x"}, {})) is not is_secret


def test_a_secret_that_is_named_is_handed_on_and_told_of():
    chosen = choose(SECRETS, forward=["HF_TOKEN", "AWS_SECRET_ACCESS_KEY"])
    assert chosen.values["HF_TOKEN"] == "s1"
    assert chosen.exposed == ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN"]
    assert "HF_TOKEN" not in chosen.withheld
    assert "DS_SECRET" in chosen.withheld


def test_the_users_file_hands_on_what_it_likes_but_no_secrets_unasked():
    own_file = {"FOO": "1", "HF_HOME": "/file", "WANDB_API_KEY": "s"}
    chosen = choose({"HF_HOME": "/here", "FOO": "2"}, own_file)
    assert (chosen.values["FOO"], chosen.values["HF_HOME"]) == ("1", "/here")
    assert chosen.withheld == ["WANDB_API_KEY"]
    assert choose({}, own_file, forward=["WANDB_API_KEY"]).values["WANDB_API_KEY"] == "s"


def test_ranks_of_this_host_keep_its_secrets():
    chosen = choose(SECRETS, all_here=True)
    assert {name: chosen.values.get(name) for name in SECRETS} == SECRETS
    assert (chosen.withheld, chosen.exposed) == ([], [])


def test_a_variable_that_is_not_set_or_that_the_launcher_sets_cannot_be_forwarded():
    with pytest.raises(ConfigError, match=r"--forward MINE: the variable is not set here"):
        choose({}, forward=["MINE"])
    with pytest.raises(ConfigError, match="RANK cannot be handed on"):
        choose({"RANK": "0"}, forward=["RANK"])
    with pytest.raises(ConfigError, match="MASTER_ADDR cannot be handed on"):
        choose({}, {"MASTER_ADDR": "a"})


def test_deepspeeds_launcher_sees_no_secrets_and_nothing_that_it_would_quote_wrongly():
    here = {**SECRETS, "NCCL_X": "a b", "UCX_Y": "$HOME", "NCCL_IFNAME": "^lo", "NCCL_DEBUG": "INFO", "HOME": "/a b"}
    there = launcher_environment(here, {"OURS": "1"})
    assert {name for name in there if name != "PATH"} == {"NCCL_DEBUG", "HOME", "OURS"}
    assert there["HOME"] == "/a b"


def test_the_users_own_environment_file_is_read_as_it_is_written(tmp_path):
    own = tmp_path / "own"
    own.write_bytes(b'\nA=1\n\n B=a "b" = $HOME\xff \nA=2\r\nC=\n')
    assert read_own_environment_file(own) == {"A": "2", "B": 'a "b" = $HOME\udcff', "C": ""}


@pytest.mark.parametrize("line", ["export A=s3cret", "A s3cret", "=s3cret"])
def test_a_line_of_the_users_file_that_is_none_is_named_without_what_it_says(tmp_path, line):
    own = tmp_path / "own"
    own.write_text(f"A=1\n{line}\n")
    with pytest.raises(ConfigError, match="line 2, is no NAME=VALUE") as caught:
        read_own_environment_file(own)
    assert "s3cret" not in str(caught.value)
