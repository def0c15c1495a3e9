"""Ways in which a file gets damaged: bytes as a disk or a copy loses them, values as a hand or a fault changes them."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

STRANGE_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "auto", "\x00", "é" * 300, "../../x", "1.0", [], {}, [[]], {"a": {}}, [1, "a"]),
    *(0, -1, 1, 2, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
STRANGE_NUMBERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))
STRANGE_TEXTS = (
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\r\n", b"\xed\xb2\x80", b"[" * 50_000, b'{"a":' * 2_000, b"9" * 5_000),
    *(
        b"1e999",
        b"NaN",
        b"-",
        b'"',
        b"'",
        b"&a ",
        b"*a",
        b"!!python/name:os ",
        b"? ",
        b"- ",
        b"{}",
        b"[]",
        b"\t",
        b": ",
    ),
    *(b"%", b"@", b"`", b"|", b">", b"#", b"---\n", b"...\n", b"<<: ", b"null", b"true", b"0x10", b"\xc2\x85", b"\n"),
)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a file as a disk, a copy or an editor may leave it."""
    size = len(content)
    begin, end = sorted((rng.randrange(size + 1), rng.randrange(size + 1)))
    near = min(size, begin + rng.randint(1, 12))
    changed = bytearray(content)
    match rng.randrange(10):
        case 0 if size:
            changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case 1 if size:
            changed[rng.randrange(size)] = rng.randrange(256)
        case 2:
            del changed[begin:]
        case 3:
            del changed[begin:near]
        case 4:
            changed[begin:end] = bytes(end - begin)
        case 5:
            changed[begin:begin] = content[begin:near]
        case 6:
            changed[begin:begin] = rng.randbytes(rng.randint(1, 16))
        case 7:
            changed[begin:near] = rng.choice(STRANGE_TEXTS)
        case 8:
            changed = bytearray(content[end:] + content[:begin])
        case _:
            changed[begin:near] = rng.randbytes(near - begin)
    return bytes(changed)


def damage_numbers(content: bytes, rng: random.Random) -> bytes:
    """Return a binary file with one of its 4 or 8 byte numbers changed a little, or to something strange."""
    form = rng.choice(("<i", "<q"))
    width = struct.calcsize(form)
    place = rng.randrange(max(1, (len(content) - width) // 2)) * 2
    if place + width > len(content):
        return damage_bytes(content, rng)
    (value,) = struct.unpack_from(form, content, place)
    value = value + rng.choice((-2, -1, 1, 2, 256)) if rng.random() < 0.5 else rng.choice(STRANGE_NUMBERS)
    limit = 1 << (8 * width - 1)
    changed = bytearray(content)
    struct.pack_into(form, changed, place, (value + limit) % (2 * limit) - limit)
    return bytes(changed)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Return a JSON text with one value changed, or a key lost, renamed or there twice."""
    tree = json.loads(content)
    parents = [node for node in _nodes(tree) if isinstance(node, dict | list) and node]
    parent = rng.choice(parents) if parents else [tree]
    place = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    match rng.randrange(6):
        case 0:
            del parent[place]
        case 1 if isinstance(parent, dict):
            parent[place + rng.choice(("", " ", "s"))] = parent.pop(place)
        case 2 if isinstance(parent[place], bool | int | float):
            parent[place] = parent[place] * 2 + 1
        case 3 if isinstance(parent, dict):
            text = json.dumps(tree)
            return text.replace("{", f"{{{json.dumps(place)}: {json.dumps(rng.choice(STRANGE_VALUES))}, ", 1).encode()
        case _:
            parent[place] = rng.choice(STRANGE_VALUES)
    return json.dumps(tree).encode()


def damage_json_lines(content: bytes, rng: random.Random) -> bytes:
    """Return JSON lines with one of them changed."""
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = damage_json(lines[place], rng) + b"\n"
    return b"".join(lines)


def damage_words(content: bytes, rng: random.Random) -> bytes:
    """Return a text with one of its words replaced by another one of it, or by something strange."""
    words = content.split(b" ")
    place = rng.randrange(len(words))
    words[place] = rng.choice((*STRANGE_TEXTS, *words))
    return b" ".join(words)


def _nodes(tree: Any) -> list[Any]:
    children = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [tree, *(node for child in children for node in _nodes(child))]
