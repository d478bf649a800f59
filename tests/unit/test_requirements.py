"""What functions ask for: read from their files, made canonical, and nothing but names, versions, extras, markers and hashes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olsock.errors import SpecError
from olsock.packages import requirements
from olsock.packages.requirements import collect, parse, parse_all

pytestmark = pytest.mark.unit

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def files(**contents: str | bytes) -> Callable[[str], bytes | None]:
    """A folder; `requirements_txt` is the file requirements.txt."""
    named = {name.replace("_", "."): text for name, text in contents.items()}
    return lambda name: text.encode() if isinstance(text := named.get(name), str) else text


def test_lines_become_canonical():
    text = """
# a comment
Requests[Socks] >= 2.31   # why
python_DateUtil==2.9 ; python_version < "3.14"
numpy
numpy

"""
    assert collect(files(requirements_txt=text), "f.py") == (
        "numpy",
        'python-dateutil==2.9; python_version < "3.14"',
        "requests[socks]>=2.31",
    )


def test_hashes_stay_with_their_line():
    text = f"numpy==2.0.0 \\\n    --hash={TWO} \\\n    --hash={ONE}\r\nidna==3.0 --hash {ONE}\n"
    assert collect(files(requirements_txt=text), "f.py") == (
        f"idna==3.0 --hash={ONE}",
        f"numpy==2.0.0 --hash={ONE} --hash={TWO}",
    )
    assert parse(f"numpy==2.0.0 --hash={ONE}").hashes == {ONE}


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "--requirement=other.txt",
        "-c constraints.txt",
        "-e .",
        "-e git+https://example.org/x",
        "-i https://example.org/simple",
        "--index-url https://example.org/simple",
        "--extra-index-url=https://example.org",
        "--find-links /tmp",
        "--no-binary :all:",
        "--trusted-host example.org",
        "./package",
        "../package",
        "/etc/passwd",
        "package.whl",
        "file:///etc/passwd",
        "https://example.org/x.whl",
        "git+https://example.org/x",
        "name @ https://example.org/x.whl",
        "name @ file:///etc/passwd",
        "name/../../x",
        "../name==1.0",
        "name==1.0/../../x",
        "${HOME}",
        "name==${VERSION}",
        "name --config-settings x=y",
        "name; import os",
        "name==1.0 --hash=md5:00",
        "name==1.0 --hash=sha256:zz",
        "na me",
        "name\x00",
        "name\x1b[31m",
        "näme",
        "name>=",
        "name[",
        "." * 300,
    ],
)
def test_what_names_a_place_or_is_no_requirement_is_refused(line):
    with pytest.raises(SpecError) as refused:
        collect(files(requirements_txt=f"numpy\n{line}\n"), "f.py")
    assert "requirements.txt line 2" in str(refused.value)
    with pytest.raises(SpecError):
        parse_all(["numpy", line])


def test_one_requirement_with_different_hashes_is_refused():
    for lines in ([f"a==1 --hash={ONE}", f"a==1 --hash={TWO}"], [f"a==1 --hash={ONE}", "a==1"]):
        with pytest.raises(SpecError):
            parse_all(lines)
        with pytest.raises(SpecError):
            collect(files(requirements_txt="\n".join(lines)), "f.py")


def test_too_much_is_refused():
    for text in (b"\xff\xfe", b"#" * (requirements.MAX_FILE + 1), b"a" * (requirements.MAX_LINE + 1)):
        with pytest.raises(SpecError):
            collect(files(requirements_txt=text), "f.py")
    many = "\n".join(f"p{number}" for number in range(requirements.MAX_REQUIREMENTS + 1))
    with pytest.raises(SpecError):
        collect(files(requirements_txt=many), "f.py")
    with pytest.raises(SpecError):
        parse_all("numpy")


SCRIPT = """\
#!/usr/bin/env python
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "Rich",
#   "idna<4",
# ]
# ///
import rich
"""
PROJECT = '[project]\nname = "f"\nversion = "1"\ndependencies = ["flask"]\n'


def test_script_metadata():
    assert collect(files(f_py=SCRIPT), "f.py") == ("idna<4", "rich")
    assert collect(files(f_py=SCRIPT.replace("\n", "\r\n")), "f.py") == ("idna<4", "rich")
    assert collect(files(f_py="# /// script\n# x = 1\n# ///\n"), "f.py") == ()
    assert collect(files(f_py="# /// tool\n# x = 1\n# ///\n"), "f.py") == ()
    assert collect(files(f_py="import os\n"), "f.py") == ()


@pytest.mark.parametrize(
    "text",
    [
        SCRIPT + SCRIPT,
        SCRIPT.replace("idna<4", "idna @ https://example.org/x"),
        SCRIPT.replace("# ]", "#"),
        '# /// script\n# dependencies = "rich"\n# ///\n',
        "# /// script\n# dependencies = [1]\n# ///\n",
    ],
)
def test_script_metadata_that_is_wrong(text):
    with pytest.raises(SpecError):
        collect(files(f_py=text), "f.py")


def test_pyproject():
    assert collect(files(pyproject_toml=PROJECT), "f.py") == ("flask",)
    assert collect(files(pyproject_toml="[tool.x]\n"), "f.py") == ()
    assert collect(files(pyproject_toml='[project]\nname = "f"\n'), "f.py") == ()
    for text in ('[project]\ndynamic = ["dependencies"]', "[project", '[project]\ndependencies = ["./x"]'):
        with pytest.raises(SpecError):
            collect(files(pyproject_toml=text), "f.py")


def test_the_first_file_that_exists_counts_alone():
    everything = {"f_py": SCRIPT, "pyproject_toml": PROJECT}
    assert collect(files(requirements_txt="numpy", **everything), "f.py") == ("numpy",)
    assert collect(files(requirements_txt="", **everything), "f.py") == ()
    assert collect(files(**everything), "f.py") == ("idna<4", "rich")
    assert collect(files(f_py="import os", pyproject_toml=PROJECT), "f.py") == ("flask",)
    assert collect(files(), "f.py") == ()


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        found = collect(files(requirements_txt=text.encode("utf-8", "surrogatepass")), "f.py")
    except SpecError:
        return
    assert tuple(str(each) for each in parse_all(found)) == found, "what is canonical stays as it is"


@given(st.text(max_size=200))
def test_any_script_is_read_or_refused(text):
    try:
        collect(files(f_py=f"# /// script\n{text}\n# ///\n".encode("utf-8", "surrogatepass")), "f.py")
    except SpecError:
        pass
