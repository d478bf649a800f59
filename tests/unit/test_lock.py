"""Locks: written and read without loss, keyed by what is pinned, and a parser that believes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock.errors import SpecError
from olsock.packages.errors import QUOTED_BYTES, QUOTED_LINES, quote
from olsock.packages.lock import MAX_HASHES, Lock, Pin, parse_pins

pytestmark = pytest.mark.unit

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
IDNA, NUMPY = Pin("idna", "3.20", (ONE,)), Pin("numpy", "2.0.0+cpu", (ONE, TWO))
LOCK = Lock("cpython-311", ("idna", "numpy>=2"), (IDNA, NUMPY))


def test_text_and_back():
    assert Lock.parse(LOCK.text) == LOCK
    assert Lock.parse(Lock("cpython-39", (), ()).text) == Lock("cpython-39", (), ())
    assert LOCK.packages == {"idna==3.20", "numpy==2.0.0+cpu"}


def test_the_key_is_of_the_pins_and_the_interpreter():
    assert Lock("cpython-311", (), LOCK.pins).key == LOCK.key
    others = [
        Lock("cpython-312", (), LOCK.pins),
        Lock("cpython-311", (), (IDNA,)),
        Lock("cpython-311", (), (IDNA, Pin("numpy", "2.0.0+cpu", (TWO,)))),
        Lock("cpython-311", (), ()),
    ]
    assert len({LOCK.key, *(each.key for each in others)}) == 5


def test_what_the_resolver_prints():
    text = f"numpy==2.0.0 \\\n    --hash={TWO} \\\n    --hash={ONE}\nIdna_x==3.20.0rc1 \\\n    --hash={ONE}\n"
    assert parse_pins(text) == (Pin("idna-x", "3.20.0rc1", (ONE,)), Pin("numpy", "2.0.0", (ONE, TWO)))
    assert parse_pins("") == ()


@pytest.mark.parametrize(
    "line",
    [
        "idna",
        "idna>=3",
        f"idna==3 --hash={ONE} extra",
        f"idna==3 --hash={ONE}\nidna==4 --hash={ONE}",
        "idna==3",
        "idna==3 --hash=md5:00",
        f"idna==3 --hash={ONE[:-1]}",
        f"idna==3 --hash={ONE.upper()}",
        f"../idna==3 --hash={ONE}",
        f"idna==../3 --hash={ONE}",
        f"idna==3/4 --hash={ONE}",
        f"idna==3 ; python_version>'3' --hash={ONE}",
        f"idna[x]==3 --hash={ONE}",
        f"idna @ file:///x --hash={ONE}",
        f"--index-url x\nidna==3 --hash={ONE}",
        f"# idna\nidna==3 --hash={ONE}",
        f"idna==3.* --hash={ONE}",
        f"idna==latest --hash={ONE}",
        f"idna=={'1' * 200} --hash={ONE}",
        f"{'a' * 300}==1 --hash={ONE}",
        f"idna==3\t--hash={ONE}",
        f"idna==3\x00 --hash={ONE}",
        "idna==3" + "".join(f" --hash=sha256:{number:064x}" for number in range(MAX_HASHES + 1)),
    ],
)
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError):
        parse_pins(line + "\n")
    with pytest.raises(SpecError):
        Lock.parse(f"# olsock lock 1\n# python cpython-311\n{line}\n")


@pytest.mark.parametrize(
    "text",
    ["", "x", "# olsock lock 2\n# python cpython-311\n", "# olsock lock 1\n", "# olsock lock 1\n# python ../x\n"],
)
def test_a_head_that_is_wrong(text):
    with pytest.raises(SpecError):
        Lock.parse(text)


@given(st.text(max_size=300))
def test_any_text_is_pins_or_refused(text):
    for line in (text, f"idna=={text}", f"{text}==1 --hash={ONE}", f"idna==1 {text}"):
        try:
            pins = parse_pins(line)
        except ValueError:
            continue
        assert all(pin.name and "/" not in f"{pin.name}{pin.version}" for pin in pins)
        assert parse_pins("".join(pin.text for pin in pins)) == pins


def test_quoted_output_is_harmless_and_short():
    assert quote(b"\x1b[31mred\x1b[0m \x1b]0;title\x07text\n\n") == "red text"
    assert quote(b"a\x00b\x08\xff\r\nc\td") == "a\\x00b\\x08\ufffd\nc    d"
    many = quote(b"".join(b"line %d\n" % number for number in range(1000)))
    assert many.splitlines() == [f"line {number}" for number in range(1000 - QUOTED_LINES, 1000)]
    assert len(quote(b"x" * 100_000)) <= QUOTED_BYTES + 3
