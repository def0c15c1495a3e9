import socket

import pytest

from tests.support.runs import ROOT
from tinybert_ds.errors import ConfigError
from tinybert_ds.launch.hostfile import Host, hostfile_text, is_local, name_problem, read_hostfile


def test_hosts_come_in_the_files_order_without_comments_and_blank_lines(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# ours\n\nnode2 slots=4\nnode1  slots=8 # the new one\n")
    assert read_hostfile(path) == (Host("node2", 4), Host("node1", 8))


def test_every_bad_line_is_named_with_its_number(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("node1\nnode2 slots=0\nnode3 slots=1\nnode3 slots=2\n")
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    assert "3 problems" in str(caught.value)
    assert "line 1: 'node1'" in str(caught.value)
    assert "line 2" in str(caught.value)
    assert "node3 is there twice" in str(caught.value)


@pytest.mark.parametrize("content", [None, "# nothing\n"])
def test_a_hostfile_without_hosts_is_refused_with_an_example(tmp_path, content):
    path = tmp_path / "hostfile"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="node1 slots=8"):
        read_hostfile(path)


def test_the_shipped_example_is_a_hostfile():
    assert read_hostfile(ROOT / "launchers" / "hostfile.example") == (Host("node1", 8), Host("node2", 8))


def test_only_names_of_this_machine_are_local():
    assert is_local("localhost")
    assert is_local(socket.gethostname())
    assert not is_local("node1.example.org")


@pytest.mark.parametrize(
    "name",
    ["node1", "Node-2.example.org.", "gpu_07", "10.0.0.1", "fe80::1", "::1", "user@node1", "a", "xn--nde1-5qa"],
)
def test_names_and_addresses_of_hosts_are_accepted(tmp_path, name):
    path = tmp_path / "hostfile"
    path.write_text(f"{name} slots=2\r\n")
    assert read_hostfile(path) == (Host(name, 2),)
    assert hostfile_text(read_hostfile(path)) == f"{name} slots=2\n"


@pytest.mark.parametrize(
    "name",
    [
        "-oProxyCommand=id",
        "node1,node2",
        "node[1-3]",
        "a;b",
        "a'b",
        "$HOST",
        "a|b",
        "nöde1",
        "node1-",
        "a@-b",
        "a\u200bb",
        "*",
        "x" * 300,
    ],
)
def test_what_ssh_pdsh_or_a_shell_would_take_for_something_else_is_no_name(tmp_path, name):
    path = tmp_path / "hostfile"
    path.write_text(f"node0 slots=1\n{name} slots=1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_hostfile(path)
    assert len(str(caught.value)) < 500
    assert name_problem(name) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbfnode1 slots=8\n", "UTF-8 with a byte-order mark"),
        ("node1 slots=8\n".encode("utf-16"), "UTF-16"),
        (b"node1 slots=8\n# caf\xe9\n", r"line 2, is not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_another_encoding_is_told(tmp_path, content, message):
    path = tmp_path / "hostfile"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(path)


@pytest.mark.parametrize("slots", ["0", "1025", "99999999999", "-1", "x", "٣"])
def test_numbers_of_ranks_that_are_none_are_refused(tmp_path, slots):
    path = tmp_path / "hostfile"
    path.write_text(f"node1 slots={slots}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1"):
        read_hostfile(path)


def test_a_host_in_capitals_is_the_same_host(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("node1 slots=1\nNODE1 slots=1\n")
    with pytest.raises(ConfigError, match="NODE1 is there twice"):
        read_hostfile(path)
