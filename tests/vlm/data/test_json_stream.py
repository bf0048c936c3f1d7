"""A JSON file read entry by entry against `json.loads` of the whole file."""

import hashlib
import io
import json
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from alignkd.vlm.data.json.index import index_entries
from alignkd.vlm.data.json.stream import JsonEntries
from alignkd.vlm.data.json.window import BrokenJsonError, JsonError, NotUtf8Error, WrongKindError, line_and_column
from alignkd.vlm.errors import InputError

TEXTS = st.text(st.sampled_from('aé\u2028🚀"\\/\n[]{},: \x7f\ud83d\udd25') | st.characters(), max_size=12)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -0.0, 1e-300])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
WINDOWS = st.sampled_from([1, 2, 3, 5, 8, 17, 64, 1 << 20])
STYLES: Any = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "separators": st.sampled_from([(", ", ": "), (",", ":"), (" ,\r\n\t", " : ")]),
    }
)
FEWER = settings(max_examples=150)


def utf8(text: str) -> bytes:
    """Surrogates that stand alone stay what they are: bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def outcome_of_loads(data: bytes) -> Any:
    """The list in `data`, or what `json.loads` says against it and where."""
    try:
        value = json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        return BrokenJsonError, error.msg, len(utf8(error.doc[: error.pos])), error.lineno, error.colno
    except UnicodeDecodeError as error:
        return NotUtf8Error, error.reason, error.start, None, None
    return value if isinstance(value, list) else (WrongKindError, None, None, None, None)


def outcome_of_index(data: bytes, window: int) -> Any:
    """The same from the streamed reader."""
    try:
        index = index_entries(io.BytesIO(data), lines=False, window=window)
    except NotUtf8Error as error:
        return NotUtf8Error, error.reason, error.position, None, None
    except BrokenJsonError as error:
        return BrokenJsonError, error.reason, error.position, *line_and_column(io.BytesIO(data), error.position)
    except WrongKindError:
        return WrongKindError, None, None, None, None
    assert index.sha256 == hashlib.sha256(data).hexdigest() and index.num_bytes == len(data)
    return [json.loads(data[start:end]) for start, end in zip(index.starts, index.ends, strict=True)]


@FEWER
@given(entries=st.lists(VALUES, max_size=5), style=STYLES, window=WINDOWS, around=st.sampled_from(["", " ", "\r\n\t"]))
def test_entries_equal_json_loads(entries: list[Any], style: Any, window: int, around: str) -> None:
    data = (around + json.dumps(entries, **style) + around).encode("utf-8", "backslashreplace")
    expected = outcome_of_loads(data)
    found = outcome_of_index(data, window)
    assert repr(found) == repr(expected) == repr(json.loads(data))  # repr: NaN is not equal to itself


@FEWER
@given(
    entries=st.lists(VALUES, max_size=4),
    style=STYLES,
    window=WINDOWS,
    at=st.floats(0, 1),
    cut=st.integers(0, 3) | st.just(10**9),
    garbage=st.binary(max_size=2)
    | st.sampled_from([b",", b"]", b"[", b'"', b"}", b"\\u12", b"\xe9", b"\xed\xa0\x80", b".5"]),
)
def test_damage_is_refused_exactly_when_json_loads_refuses_it(
    entries: list[Any], style: Any, window: int, at: float, cut: int, garbage: bytes
) -> None:
    data = utf8(json.dumps(entries, **style))
    place = round(at * len(data))
    data = data[:place] + garbage + data[place + cut :]
    expected, found = outcome_of_loads(data), outcome_of_index(data, window)
    if isinstance(expected, list) or isinstance(found, list):
        assert repr(found) == repr(expected)
    elif found[0] is expected[0] is BrokenJsonError and "Expecting '['" not in found:
        # Reason and place are json's own; sys.version_info 3.13 names trailing commas differently.
        assert found == expected or "trailing comma" in expected[1]
    elif found[0] is expected[0] is NotUtf8Error:
        assert found == expected


@FEWER
@given(
    entries=st.lists(VALUES, max_size=5),
    ensure_ascii=st.booleans(),
    window=WINDOWS,
    ends=st.lists(st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\n \t\r\n"]), min_size=5, max_size=5),
    last_end=st.booleans(),
)
def test_lines_equal_json_loads_of_each(
    entries: list[Any], ensure_ascii: bool, window: int, ends: list[str], last_end: bool
) -> None:
    if entries and isinstance(entries[0], list):
        entries[0] = {"list": entries[0]}  # a file that begins with a list is taken for a JSON list
    lines = [json.dumps(entry, ensure_ascii=ensure_ascii) + end for entry, end in zip(entries, ends, strict=False)]
    text = "".join(lines) if last_end else "".join(lines).rstrip("\r\n")
    data = text.encode("utf-8", "backslashreplace")
    index = index_entries(io.BytesIO(data), lines=True, window=window)
    found = [json.loads(data[start:end]) for start, end in zip(index.starts, index.ends, strict=True)]
    assert repr(found) == repr([json.loads(line) for line in data.decode().split("\n") if line.strip()])
    assert index.sha256 == hashlib.sha256(data).hexdigest()


@FEWER
@given(
    entries=st.lists(VALUES, min_size=1, max_size=4), window=WINDOWS, at=st.floats(0, 1), garbage=st.binary(max_size=2)
)
def test_a_damaged_line_is_refused_exactly_when_json_loads_refuses_it(
    entries: list[Any], window: int, at: float, garbage: bytes
) -> None:
    data = b"{}\n" + b"\n".join(utf8(json.dumps(entry)) for entry in entries)
    place = 3 + round(at * (len(data) - 3))
    data = data[:place] + garbage + data[place:]
    try:
        expected: Any = [json.loads(line.decode()) for line in data.split(b"\n") if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError):
        expected = None
    try:
        index = index_entries(io.BytesIO(data), lines=True, window=window)
        found: Any = [json.loads(data[start:end]) for start, end in zip(index.starts, index.ends, strict=True)]
    except JsonError:
        found = None
    assert repr(found) == repr(expected)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", '[{"é": 1,\n "ü" 2}]', r"a.json: broken JSON at line 2, column 6 \(Expecting ':' delimiter\)"),
        ("a.json", "[1, 2", r"line 1, column 6 \(Expecting ',' delimiter\)"),
        ("a.json", "[1,\n2] x", r"line 2, column 4 \(Extra data\)"),
        ("a.json", "[1,\n2,]", r"line 2, column 3 \("),
        ("a.json", '["a', r"line 1, column 2 \(Unterminated string"),
        ("a.json", b"\xef\xbb\xbf[nul", r"line 1, column 2 \(Expecting value\)"),
        ("a.json", b'["\xe9"]', r"a.json: not UTF-8 \(.* at byte 2\); re-encode"),
        ("a.json", '["a"]'.encode("utf-16"), r"a.json: UTF-16 text, expected"),
        ("a.json", b'["abc\xf0\x9f', r"not UTF-8 \(.* at byte 5\)"),
        ("a.json", '{"id": 1}', r"a JSON object, expected a list .*\.jsonl"),
        ("a.json", "<html>", r"a.json: an HTML page, expected"),
        ("a.json", "<a>", r"line 1, column 1 \(Expecting '\['\)"),
        ("a.json", "", r"a.json: the file is empty"),
        ("a.json", "[" * 100_000, r"nested too deeply"),
        ("a.json", f'[{"1" * 5000}, "x{"y" * 99}"]', r"Exceeds the limit"),
        ("a.jsonl", '{"a": 1}\n\n{"a"', r"a.jsonl: broken JSON at line 3, column 5"),
        ("a.jsonl", '{"a": 1} {"b": 2}', r"line 1, column 10 \(Extra data\)"),
        ("a.ndjson", b'{}\n{"a": "\xff"}', r"not UTF-8 \(.* at byte 10\)"),
        ("a.json", '{"id": 1}\n\n{"id"', r"a.json: broken JSON at line 3, column 6"),
        ("a.json", '{"id": 1}\n \n', r"a JSON object, expected a list .*\.jsonl"),
    ],
)
@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_what_is_wrong_is_one_line_with_the_place(
    tmp_path: Path, name: str, data: str | bytes, message: str, window: int
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        JsonEntries(write(tmp_path / name, data), window=window)
    assert "\n" not in str(caught.value)


LINES = b'\xef\xbb\xbf \n{"a": 1}\r\n\n{"a": [2]}\n'


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
def test_the_first_line_decides_between_a_list_and_lines(tmp_path: Path, name: str, window: int) -> None:
    assert list(JsonEntries(write(tmp_path / name, LINES), window=window)) == [{"a": 1}, {"a": [2]}]
    assert list(JsonEntries(write(tmp_path / name, b'[{"a": 1},\n2\n]'), window=window)) == [{"a": 1}, 2]
    entries = JsonEntries(write(tmp_path / name, b'[\n1,\n\n"x"]'), window=window)
    assert (entries.line_of(0), entries.line_of(-1)) == (2, 4)


def test_one_object_is_lines_by_the_suffix_alone(tmp_path: Path) -> None:
    for text in ('{"a": 1}', '{"a": 1}\n', '{"a":\n1}\n'):
        with pytest.raises(InputError, match="a JSON object, expected a list"):
            JsonEntries(write(tmp_path / "a.json", text))
    assert list(JsonEntries(write(tmp_path / "a.jsonl", '{"a": 1}\n'))) == [{"a": 1}]


def test_a_float_of_thousands_of_digits_is_no_integer(tmp_path: Path) -> None:
    data = f"[{'1' * 5000}.5, 2]"
    assert list(JsonEntries(write(tmp_path / "a.json", data), window=100)) == json.loads(data)


def test_a_byte_order_mark_is_skipped_and_hashed(tmp_path: Path) -> None:
    for name, text in {"a.json": "[1, 2]", "b.jsonl": "1\n2", "c.json": " []"}.items():
        plain = JsonEntries(write(tmp_path / name, text))
        marked = JsonEntries(write(tmp_path / f"marked-{name}", "\ufeff" + text))
        assert list(plain) == list(marked)
        assert marked.sha256 == hashlib.sha256(b"\xef\xbb\xbf" + text.encode()).hexdigest() != plain.sha256


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for a writer
    for path, said in (
        (tmp_path, "cannot be read .Is a directory.; it is a folder"),
        (tmp_path / "pipe.json", "but a pipe; give"),
    ):
        with pytest.raises(InputError, match=said):
            JsonEntries(path)


def test_numbers_count_from_both_ends(tmp_path: Path) -> None:
    entries = JsonEntries(write(tmp_path / "a.json", "[10, 11, 12]"))
    assert (len(entries), entries[0], entries[-1], entries[2]) == (3, 10, 12, 12)
    for number in (3, -4):
        with pytest.raises(IndexError):
            entries[number]


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("[10, 11, 1]", r"was 12 bytes of .*, now 11 bytes of .*; start again"),
        ("[10, 11, 13]", r"changed while in use"),
        (None, "can no longer be read"),
    ],
)
def test_a_file_that_changes_is_noticed(tmp_path: Path, after: str | None, message: str, pickled: bool) -> None:
    path = write(tmp_path / "a.json", "[10, 11, 12]")
    entries = JsonEntries(path)
    os.utime(path, ns=(1, entries._version.mtime_ns))
    if pickled:
        entries = pickle.loads(pickle.dumps(entries))
    if after is None:
        path.unlink()
    else:
        write(path, after)
        os.utime(path, ns=(1, entries._version.mtime_ns + 1))
    with pytest.raises(InputError, match=message):
        entries[2]


def test_a_change_that_hides_its_time_is_noticed_where_it_breaks_an_entry(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "[10, 11, 12]")
    entries = JsonEntries(path)
    write(path, "[10,11,12  ]")
    os.utime(path, ns=(1, entries._version.mtime_ns))
    assert entries[0] == 10  # nobody can tell
    with pytest.raises(InputError, match=r"a.json: changed while in use, .*entry 2 no longer parses; start again"):
        entries[2]


def test_a_file_replaced_by_another_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "[10, 11, 12]")
    entries = JsonEntries(path)
    assert entries[0] == 10
    write(tmp_path / "b.json", "[20, 21, 22]").rename(path)
    assert entries[2] == 12
    with pytest.raises(InputError, match="changed while in use"):
        pickle.loads(pickle.dumps(entries))[2]


def test_other_processes_read_the_same(tmp_path: Path) -> None:
    values = [{"number": number, "text": "x" * number} for number in range(200)]
    entries = JsonEntries(write(tmp_path / "a.json", json.dumps(values)))
    assert entries[3] == values[3]  # open before the others start
    forked = DataLoader(entries, batch_size=None, num_workers=2, shuffle=False)  # type: ignore[arg-type]
    assert list(forked) == values
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        numbers = [199, 0, 57]
        assert pool.starmap(operator.getitem, [(entries, number) for number in numbers]) == [values[n] for n in numbers]


PEAK_MEMORY = """
    import sys
    from pathlib import Path
    from alignkd.vlm.data.json.stream import JsonEntries

    def peak_bytes():
        # not ru_maxrss: that starts with what the process which started this one had
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

    before = peak_bytes()
    entries = JsonEntries(Path(sys.argv[1]))
    indexed = peak_bytes()
    total = sum(len(entry["conversations"]) for entry in entries)
    print(len(entries), total, indexed - before, peak_bytes() - before)
"""


@pytest.mark.parametrize(("name", "megabytes"), [("large.json", 150), ("large.jsonl", 60)])
def test_memory_is_the_index_whatever_the_file(tmp_path: Path, name: str, megabytes: int) -> None:
    turn = {"from": "gpt", "value": "The café in the picture is empty. " * 60}
    entry = json.dumps({"id": "1", "image": "a/b.jpg", "conversations": [turn] * 4}, ensure_ascii=False).encode()
    per_block = 1000
    blocks = megabytes * 10**6 // (len(entry) * per_block) + 1
    joint = b"\n" if name.endswith("l") else b",\n"
    with (tmp_path / name).open("wb") as stream:
        stream.write(b"" if name.endswith("l") else b"[")
        for block in range(blocks):
            stream.write((joint if block else b"") + joint.join([entry] * per_block))
        stream.write(b"" if name.endswith("l") else b"]")
    num_bytes = (tmp_path / name).stat().st_size
    assert num_bytes > megabytes * 10**6
    command = [sys.executable, "-c", textwrap.dedent(PEAK_MEMORY), str(tmp_path / name)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    num_entries, num_turns, indexed, iterated = map(int, printed.split())
    assert (num_entries, num_turns) == (blocks * per_block, 4 * blocks * per_block)
    # Read whole it would be the file's size at the least; here a window, its text, an entry, and 16 bytes per entry.
    assert indexed <= iterated < 12 * 10**6 < num_bytes / 4
