import json
import random
import string
import time

import pytest
import yaml

from tinybert_ds.errors import ConfigError
from tinybert_ds.strict_formats import NoJsonError, parse_json, read_json, read_yaml

GOOD = """
# a comment
name: no
files: {train: "*.tsv", dev: [a, 'b c']}
aliases:
  "1": yes
  N: ~
empty:
text: >
  folded
  lines
pairs:
- [0, 1.50]
- {}
"""


def read(folder, content):
    path = folder / "task.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path, "--task_file")


def test_scalars_are_taken_as_they_are_written(tmp_path):
    assert read(tmp_path, GOOD) == {
        "name": "no",
        "files": {"train": "*.tsv", "dev": ["a", "b c"]},
        "aliases": {"1": "yes", "N": "~"},
        "empty": "",
        "text": "folded lines\n",
        "pairs": [["0", "1.50"], {}],
    }
    assert read(tmp_path, GOOD) == yaml.load(GOOD, Loader=yaml.BaseLoader)
    assert read(tmp_path, "") == read(tmp_path, "# nothing\n") == ""
    assert read(tmp_path, "a: !!str 5\n") == {"a": "5"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"task.yaml, line 3, column 1: the key 'a' stands twice"),
        ("a: {x: 1, x: 2}\n", r"line 1, column 11: the key 'x' stands twice"),
        ("a: &x [1]\nb: *x\n", r"line 1, column 4: an anchor or alias \(x\)"),
        ("b: *x\n", r"line 1, column 4: an anchor or alias \(x\)"),
        ("<<: *base\n", r"line 1, column 5: an anchor or alias"),
        ("files: {train: *.tsv}\n", r"line 1, column 17: not valid YAML: .*put a value that begins with \* into quot"),
        ("a: !!python/object/apply:os.system [id]\n", r"line 1, column 4: the tag tag:yaml.org,2002:python/object"),
        ("a: !!binary eA==\n", r"line 1, column 4: the tag tag:yaml.org,2002:binary"),
        ("? [a]\n: b\n", r"line 1, column 3: a list or map as a key"),
        ("a: b\n---\nc: d\n", r"line 2, column 1: a second document"),
        ("a: [\n", r"line 2, column 1: not valid YAML"),
        ("a: b: c\n", r"line 1, column 5: not valid YAML"),
        ("a: b\nc: \x01\n", r"line 2: not valid YAML"),
        ("\tx: y\n", r"line 1, column 1: not valid YAML"),
        ("[" * 100_000, r"line 1, column 17: more than 16 levels"),
        ("a:\n" + "".join(f"{' ' * level}- \n" for level in range(1, 500)), "more than 16 levels"),
        ("x" * 2_000_000, r"has 2,000,000 characters; at most 1,048,576"),
        (b"a: caf\xe9\n", r"line 1: byte 6 is not UTF-8"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said) as error:
        read(tmp_path, content)
    assert str(error.value).startswith("--task_file: ")
    assert len(str(error.value)) < 800


def test_an_alias_bomb_costs_nothing(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="anchor or alias"):
        read(tmp_path, "\n".join(levels))
    assert time.monotonic() - begin < 1


def test_damaged_yaml_is_read_or_refused_and_nothing_else(tmp_path):
    rng = random.Random(7)
    alphabet = string.printable + "é\u2028&*![]{}:-?|>\"'#%@`\x00"
    for _ in range(300):
        text = list(GOOD)
        for _ in range(rng.randint(1, 8)):
            text[rng.randrange(len(text))] = rng.choice(alphabet)
        content = "".join(text)[: rng.randint(1, len(text))]
        try:
            value = read(tmp_path, content)
        except ConfigError:
            continue
        assert value == (yaml.load(content, Loader=yaml.BaseLoader) or "")


def test_json_is_read_as_it_is():
    assert parse_json('{"a": [1, 2.5, null, true, "\\u00e9"], "b": {}}') == {"a": [1, 2.5, None, True, "é"], "b": {}}


@pytest.mark.parametrize(
    ("text", "said", "place"),
    [
        ('{"a": 1,\n "b": }', "Expecting value", (2, 7)),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice", (None, None)),
        ('{"a": ' + "1" * 5000 + "}", "a number of thousands of digits", (None, None)),
        ("[" * 100_000, "brackets within brackets", (None, None)),
        ('{"a":' * 100_000, "brackets within brackets", (None, None)),
        ("", "Expecting value", (1, 1)),
    ],
)
def test_what_is_no_json_of_one_meaning_is_refused(text, said, place):
    with pytest.raises(NoJsonError, match=said) as error:
        parse_json(text)
    assert (error.value.line, error.value.column) == place


def test_a_json_file_is_refused_with_file_line_and_column(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path, "--deepspeed_config") == {"a": 1}
    path.write_text('{\n "a": 1,\n}')
    with pytest.raises(ConfigError, match=r"--deepspeed_config: .*config.json, line 3, column 1: not valid JSON: "):
        read_json(path, "--deepspeed_config")
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(ConfigError, match=r"config.json: not valid JSON: the key 'a' stands twice"):
        read_json(path, "--deepspeed_config")
