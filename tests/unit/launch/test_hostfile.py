import socket

import pytest

from tests.support.runs import ROOT
from tinybert_ds.errors import ConfigError
from tinybert_ds.launch.hostfile import Host, is_local, read_hostfile


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
