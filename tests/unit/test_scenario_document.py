"""YAML files as the loader reads them: places, and everything odd as a fault."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsim.core.errors import ScenarioError
from llmsim.scenario.document import (
    LARGEST_BYTES,
    dump_yaml,
    parse_document,
    parse_value,
    read_document,
)


def write(folder, text, name="s.yaml"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def only_fault(folder, text):
    with pytest.raises(ScenarioError) as caught:
        read_document(write(folder, text))
    assert len(caught.value.faults) == 1, caught.value
    return caught.value.faults[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        ("010", 10),
        ("1_000", 1000),
        ("0x10", 16),
        ("-3", -3),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("3.", 3.0),
        ("'3'", "3"),
        ("1.2.3", "1.2.3"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_values_mean_what_people_mean(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_every_key_has_its_line(tmp_path):
    found = read_document(write(tmp_path, "a: 1\nb:\n  c: 2\n  d:\n    - x\n    - {e: 3}\n"))
    assert found.data == {"a": 1, "b": {"c": 2, "d": ["x", {"e": 3}]}}
    assert found.places == {
        ("a",): "s.yaml:1",
        ("b",): "s.yaml:2",
        ("b", "c"): "s.yaml:3",
        ("b", "d"): "s.yaml:4",
        ("b", "d", "0"): "s.yaml:5",
        ("b", "d", "1"): "s.yaml:6",
        ("b", "d", "1", "e"): "s.yaml:6",
    }


@pytest.mark.parametrize(
    ("text", "where", "path", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "s.yaml:3", "a", "stands twice, first in line 1"),
        ("a:\n  b: 1\n  b: 2\n", "s.yaml:3", "a.b", "stands twice, first in line 2"),
        ("a: 1\n\tb: 2\n", "s.yaml:2", "", "tab"),
        ("a:\n  1: x\n", "s.yaml:2", "a", "a key must be text (got '1')."),
        ("a:\n  true: x\n", "s.yaml:2", "a", "a key must be text"),
        ("a:\n  [b, c]: x\n", "s.yaml:2", "a", "a list or a mapping"),
        ("base: &b {x: 1}\nc:\n  <<: *b\n", "s.yaml:3", "c", "merge keys"),
        ("a: 1\n---\nb: 2\n", "s.yaml:2", "", "a second document begins here"),
        ("", "s.yaml", "", "is empty"),
        ("# nothing\n", "s.yaml", "", "is empty"),
        ("- 1\n- 2\n", "s.yaml:1", "", "must be a mapping"),
        ("just text\n", "s.yaml:1", "", "must be a mapping"),
        ("a: !!python/object:os.system ls\n", "s.yaml:1", "a", "is not allowed"),
        ("a: !mine {b: 1}\n", "s.yaml:1", "a", "the tag '!mine' is not allowed"),
        ("a: !!int abc\n", "s.yaml:1", "a", "'abc' is no int"),
        ("a: !!binary aGk=\n", "s.yaml:1", "a", "is not allowed"),
        ("a: {b: 1\nc: 2\n", "s.yaml:2", "", "expected ','"),
        ("a: *nobody\n", "s.yaml:1", "", "undefined alias"),
        ("a: &x [1, *x]\n", "s.yaml:1", "a.1", "an alias contains itself"),
        ("a: b: c\n", "s.yaml:1", "", "mapping values are not allowed"),
        ("a: 1\nb: \x07\n", "s.yaml:2", "", "is not allowed in YAML"),
        (b"a: 1\nb: caf\xe9\n", "s.yaml:2", "", "is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "s.yaml:1", "", "is not UTF-8"),
        (b"\x00\x01\x02", "s.yaml:1", "", "is not allowed in YAML"),
    ],
)
def test_oddities_are_faults_with_their_line(tmp_path, text, where, path, words):
    fault = only_fault(tmp_path, text)
    assert (fault.where, fault.path) == (where, path)
    assert words in f"{fault.message} {fault.hint}"


def test_alias_bomb_is_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "aliases unfold to more than" in only_fault(tmp_path, "\n".join(lines)).message


@pytest.mark.slow
def test_huge_and_deep_files_are_refused(tmp_path):
    assert "not a scenario" in only_fault(tmp_path, "#" * (LARGEST_BYTES + 1)).message
    assert "nested too deeply" in only_fault(tmp_path, "[" * 20_000).message


def test_byte_order_mark_and_aliases_are_read(tmp_path):
    text = b"\xef\xbb\xbf" + b"a: &x {k: 1}\nb: *x\n"
    assert read_document(write(tmp_path, text)).data == {"a": {"k": 1}, "b": {"k": 1}}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
    | st.sampled_from(
        ["1e3", "010", "yes", "12:30", "null", "~", "<<", ".inf", "0x1", "- a", "a: b"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_.", min_size=1), inner)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["a", "1", "true", "null", "1e3", "<<"]), VALUES, min_size=1)
)
def test_what_is_dumped_reads_back(data):
    assert parse_document(dump_yaml(data)).data == data
