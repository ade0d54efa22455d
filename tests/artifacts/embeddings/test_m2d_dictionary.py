"""Pickled dictionaries: what numpy really writes is read; whatever asks for more is refused, and nothing of it runs."""

from __future__ import annotations

import errno
import io
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2dprep.artifacts.embeddings.m2d_dictionary import read_dictionary, read_items, write_dictionary
from m2dprep.artifacts.errors import UserError

pytestmark = pytest.mark.slow


def npy(pickled: bytes) -> bytes:
    """A ``.npy`` file of one Python object, as ``np.save`` lays it out, around any pickle."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + pickled


def save(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(npy(pickle.dumps(np.array(value, dtype=object), protocol=protocol)))
    return path


EXAMPLE = {
    "one": np.arange(4, dtype=np.float16),
    "several": np.linspace(0, 1, 12, dtype=np.float16).reshape(3, 4),
    "float32": np.arange(4, dtype=np.float32),
    "fortran": np.asfortranarray(np.arange(8, dtype=np.float16).reshape(2, 4)),
    "strided": np.arange(16, dtype=np.float16).reshape(2, 8)[:, ::2],
    "big-endian": np.arange(4, dtype=">f4"),
    "--dashes_and ünicode": np.zeros(4, dtype=np.float64),
}


def assert_same(read: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(read) == list(expected)
    for key, value in expected.items():
        native = value.astype(value.dtype.newbyteorder("="))
        assert (read[key].dtype, read[key].shape) == (native.dtype, native.shape), key
        assert read[key].tobytes() == native.tobytes(), key


def test_what_we_write_is_what_numpy_loads_and_what_we_read(tmp_path: Path) -> None:
    path = tmp_path / "capemb.npy"
    write_dictionary(path, EXAMPLE)
    loaded = np.load(path, allow_pickle=True).item()
    assert all(np.array_equal(loaded[key], value) for key, value in EXAMPLE.items())
    assert_same(read_dictionary(path), EXAMPLE)


def test_pairs_may_come_one_by_one_and_numpy_1_can_load_them(tmp_path: Path) -> None:
    path = tmp_path / "capemb.npy"
    pairs = ((f"clip {number}", np.full((number % 3 + 1, 2), number, np.float16)) for number in range(2500))
    assert write_dictionary(path, pairs) == 2500
    names = {argument for opcode, argument, _ in pickletools.genops(_pickle_in(path)) if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    loaded = np.load(path, allow_pickle=True).item()
    assert len(loaded) == 2500
    assert loaded["clip 2"].tolist() == [[2, 2], [2, 2], [2, 2]]
    assert loaded["clip 2"].flags.c_contiguous
    assert loaded["clip 2"].dtype == np.dtype(np.float16)
    assert list(read_dictionary(path)) == list(loaded)


def test_an_empty_dictionary_and_other_types(tmp_path: Path) -> None:
    write_dictionary(tmp_path / "empty.npy", {})
    assert np.load(tmp_path / "empty.npy", allow_pickle=True).item() == {}
    assert read_dictionary(tmp_path / "empty.npy") == {}
    with pytest.raises(TypeError, match="int64"):
        write_dictionary(tmp_path / "whole.npy", {"a": np.arange(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.npy"]


def _pickle_in(path: Path) -> bytes:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.read()


@given(
    st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(["f2", "f4", "f8"]), st.integers(0, 3)), max_size=5)
)
def test_what_is_written_is_what_numpy_and_we_read(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[str, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.npy"
    value = {key: np.arange(max(rows, 1) * 4, dtype=dtype) for key, (dtype, rows) in kinds.items()}
    value = {key: array.reshape(-1, 4) if kinds[key][1] else array for key, array in value.items()}
    write_dictionary(path, value)
    assert_same(np.load(path, allow_pickle=True).item(), value)
    assert_same(read_dictionary(path), value)


def test_what_np_save_writes_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "saved.npy", EXAMPLE)  # type: ignore[arg-type]
    assert_same(read_dictionary(tmp_path / "saved.npy"), EXAMPLE)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_that_numpy_has_used(tmp_path: Path, protocol: int) -> None:
    assert_same(read_dictionary(save(tmp_path / "p.npy", EXAMPLE, protocol)), EXAMPLE)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_1_names(tmp_path: Path, protocol: int) -> None:
    """numpy 1.x names the module ``numpy.core``; both spellings have their own length prefix in newer protocols."""
    value = {"a": np.arange(3, dtype=np.float16), "b": np.ones((2, 3), np.float16)}
    pickled = pickle.dumps(np.array(value, dtype=object), protocol=protocol)
    new = {b"numpy._core.multiarray": b"numpy.core.multiarray", b"numpy._core.numeric": b"numpy.core.numeric"}
    for name, old in new.items():
        framed = (lambda text: b"c" + text + b"\n") if protocol == 3 else (lambda text: bytes([0x8C, len(text)]) + text)
        pickled = pickled.replace(framed(name), framed(old))
    pickled = _without_frames(pickled) if protocol > 3 else pickled
    assert b"numpy.core" in pickled
    assert b"numpy._core" not in pickled
    (tmp_path / "old.npy").write_bytes(npy(pickled))
    assert_same(read_dictionary(tmp_path / "old.npy"), value)


def _without_frames(pickled: bytes) -> bytes:
    """The pickle without its FRAME opcode (0x95 and 8 bytes of length), which a changed length would break."""
    assert pickled[2] == 0x95
    return pickled[:2] + pickled[11:]


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def malicious(marker: Path) -> dict[str, Any]:
    """Values that would leave ``marker`` behind, or smuggle another type in, if anything in them were carried out."""
    touch = Call(os.system, f"touch {marker}")
    object_array = np.empty(1, dtype=object)
    object_array[0] = touch
    return {
        "a call for the dictionary": touch,
        "a call among the values": {"a": touch},
        "a call as a key": {touch: np.zeros(2, np.float16)},
        "a call inside an object array": {"a": object_array},
        "a call inside a nested dictionary": {"a": {"b": {"c": touch}}},
        "a call inside a list": {"a": [touch]},
        "builtins.eval": {"a": Call(eval, f"open({str(marker)!r}, 'w')")},
        "builtins.exec": {"a": Call(exec, f"open({str(marker)!r}, 'w')")},
        "builtins.getattr": {"a": Call(getattr, "text", "upper")},
        "builtins.open": {"a": Call(open, str(marker), "w")},
        "a class of ours": {"a": Path("x")},
        "a set": {"a": {1, 2}},
        "complex": {"a": 1j},
        "numpy's load": {"a": Call(np.load, str(marker))},
        "a numpy scalar": {"a": np.float16(1)},
        "an integer array": {"a": np.arange(3)},
        "a string array": {"a": np.array(["x"])},
        "a structured array": {"a": np.zeros(2, dtype=[("x", "f2"), ("y", "f2")])},
        "an object array of numbers": {"a": np.array([1, None], dtype=object)},
        "a datetime array": {"a": np.zeros(2, dtype="M8[s]")},
        "a subclass of arrays": {"a": np.ma.masked_array([1.0, 2.0])},
        "a record array": {"a": np.rec.array([(1.0,)], dtype=[("x", "f4")])},
        "a matrix of three axes": {"a": np.zeros((1, 2, 3), np.float16)},
        "a number": {"a": 3},
        "None": {"a": None},
        "a text": {"a": "x"},
        "integer keys": {1: np.zeros(2, np.float16)},
        "a list of arrays": [np.zeros(2, np.float16)],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", list(malicious(Path("x"))))
def test_anything_else_is_refused_and_nothing_runs(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(UserError, match=r"refused|not an array|not a string"):
        read_dictionary(save(tmp_path / "evil.npy", malicious(marker)[name], protocol))
    assert not marker.exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
HAND_WRITTEN = {
    "a call of os.system": b"cos\nsystem\n(S'touch marker'\ntR.",
    "the old INST opcode": b"(S'touch marker'\nios\nsystem\n.",
    "the OBJ opcode": b"(cos\nsystem\nS'touch marker'\no.",
    "state for a placeholder function": RECONSTRUCT + b"}S'x'\nI1\nsb.",
    "attributes set on a placeholder": RECONSTRUCT + b"(N}S'__new__'\nI1\nstb.",
    "attributes set on the array class": b"cnumpy\nndarray\n(N}S'__setstate__'\nI1\nstb.",
    "a reconstruction of another class": RECONSTRUCT + b"(cnumpy\ndtype\n(I0\ntC\x01btR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__class__.__x\x93.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pid\n.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "a length of an exabyte": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "a length of 2 TiB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 41) + b".",
    "half a pickle": pickle.dumps({"a": np.zeros(4, np.float16)})[:-20],
    "nothing": b"",
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("name", list(HAND_WRITTEN))
def test_hand_written_pickles_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.npy").write_bytes(npy(HAND_WRITTEN[name]))
    with pytest.raises(UserError, match="refused"):
        read_dictionary(tmp_path / "evil.npy")
    assert not (tmp_path / "marker").exists()
    np.save(tmp_path / "good.npy", EXAMPLE)  # type: ignore[arg-type]
    assert_same(read_dictionary(tmp_path / "good.npy"), EXAMPLE)  # the reader itself is unharmed


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00" + b"\0" * 64, b"text\n"],
    ids=["empty", "zip", "cut header", "unknown version", "text"],
)
def test_files_that_are_no_npy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match="refused"):
        read_dictionary(tmp_path / "x.npy")


def test_a_plain_array_is_no_dictionary(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float16))
    with pytest.raises(UserError, match="not a dictionary"):
        read_dictionary(tmp_path / "x.npy")
    with pytest.raises(UserError, match="no such file"):
        read_dictionary(tmp_path / "missing.npy")


def doubled(times: int) -> bytes:
    """Opcodes that leave ((((), ()), …), …): small as it is written, beyond all bounds when it is hashed or shown."""
    return b")q\x63" + b"h\x63h\x63\x86q\x63" * times


# Deep enough to overflow the stack of whoever hashes or shows it.
DEEP = b")" + b"\x85" * 150_000
ARRAY = pickle.dumps(np.ones(4, np.float16), protocol=2)[2:-1]
BOMBS = {
    f"{what} in {place}": opcodes
    for what, bomb in (("doubled tuples", doubled(100)), ("150,000 tuples", DEEP))
    for place, opcodes in {
        "a module's name": b"\x80\x04" + bomb + b"\x8c\x01x\x93.",
        "a name": b"\x80\x04\x8c\x05numpy" + bomb + b"\x93.",
        "a key": b"\x80\x02}" + bomb + ARRAY + b"s.",
        "one key of many": b"\x80\x02}(" + bomb + ARRAY + b"u.",
        "a value": b"\x80\x02}X\x01\0\0\0a" + bomb + b"s.",
        "a dtype": b"\x80\x02cnumpy\ndtype\n" + bomb + b"\x89\x88\x87R.",
        "what is called": b"\x80\x02" + bomb + b")R.",
        "the class of an array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + bomb + b"K\0\x85C\x01b\x87R.",
        "a shape": b"\x80\x02}X\x01\0\0\0acnumpy.core.numeric\n_frombuffer\n(C\x02xxcnumpy\ndtype\n"
        b"X\x02\0\0\0f2\x89\x88\x87R" + bomb + b"X\x01\0\0\0CtRs.",
        "an order": b"\x80\x02}X\x01\0\0\0acnumpy.core.numeric\n_frombuffer\n(C\x02xxcnumpy\ndtype\n"
        b"X\x02\0\0\0f2\x89\x88\x87RK\x01\x85" + bomb + b"tRs.",
        "the dictionary": b"\x80\x02" + bomb + b".",
    }.items()
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(BOMBS))
def test_what_takes_for_ever_to_hash_or_show_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "bomb.npy").write_bytes(npy(BOMBS[name]))
    with pytest.raises(UserError, match=r"refused|not an array|not a string") as raised:
        read_dictionary(tmp_path / "bomb.npy")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_array_named_again_and_again_is_refused_before_it_fills_the_memory(tmp_path: Path, protocol: int) -> None:
    """100 MB in a file of 1 MB would be 20 GB with a little more of it."""
    large = np.zeros((1000, 512), np.float16)
    value = {f"clip {number}": large for number in range(20_000)}
    given = 0
    with pytest.raises(UserError, match="names its arrays so often"):
        for _, array in read_items(save(tmp_path / "x.npy", value, protocol)):
            given += array.nbytes
    assert given < 200e6
    few = {f"clip {number}": np.ones(8, np.float16) for number in range(3)}
    few |= {f"again {number}": few["clip 1"] for number in range(1000)}
    assert_same(read_dictionary(save(tmp_path / "few.npy", few, protocol)), few)


MIXED = {
    f"{'ключ' if number % 3 else 'key'} {number}": (
        np.random.default_rng(number)
        .standard_normal((number % 4 + 1, 5) if number % 2 else 5)
        .astype(("f2", "f4", "f8", ">f4")[number % 7 % 4])
    )
    for number in range(2500)
}


@pytest.mark.parametrize("protocol", [3, 4, 5, "ours"])
def test_items_of_many_kinds_one_after_another(tmp_path: Path, protocol: Any) -> None:
    """Shapes, types, orders and keys change from item to item, frames end between them, and arrays come again."""
    value = dict(MIXED)
    value |= {f"fortran {n}": np.asfortranarray(MIXED[f"ключ {n}"]) for n in (1, 5, 7)}
    if protocol == "ours":
        write_dictionary(tmp_path / "x.npy", value)
    else:
        value |= {f"again {n}": value[f"ключ {n}"] for n in (1, 2, 4, 2498)}
        save(tmp_path / "x.npy", value, protocol)
    assert_same(read_dictionary(tmp_path / "x.npy"), value)


@pytest.mark.parametrize(("window", "ahead"), [(100, 64), (333, 64), (4096, 1000), (1 << 16, 1 << 12)])
@pytest.mark.parametrize("protocol", [3, 4, 5, "ours"])
def test_items_that_do_not_fit_in_what_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, ahead: int, protocol: Any
) -> None:
    """Keys and arrays across its borders, larger than it, and arrays that were named long before."""
    monkeypatch.setattr("m2dprep.artifacts.embeddings.file_window.WINDOW_BYTES", window)
    monkeypatch.setattr("m2dprep.artifacts.embeddings.file_window.AHEAD_BYTES", ahead)
    value = dict(list(MIXED.items())[:300])
    value |= {"long " * 1000: np.ones(4, np.float16), "large": np.random.default_rng(0).normal(size=(40, 500))}
    if protocol == "ours":
        write_dictionary(tmp_path / "x.npy", value)
    else:
        value |= {f"again {n}": value[f"ключ {n}"] for n in (1, 2, 4)} | {"large again": value["large"]}
        save(tmp_path / "x.npy", value, protocol)
    assert_same(read_dictionary(tmp_path / "x.npy"), value)


LARGE = {f"clip {number}": np.full(4096, number, np.float32) for number in range(1000)}  # 16 MB


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("at", [0, 3 << 20, 11 << 20])
def test_what_the_disk_cannot_read_is_an_error_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: int
) -> None:
    """A memory map would end the process there."""
    plain = os.preadv

    def fail_beyond(descriptor: int, buffers: list[Any], offset: int) -> int:
        if offset + len(buffers[0]) > at:
            raise OSError(error, os.strerror(error))
        return plain(descriptor, buffers, offset)

    path = save(tmp_path / "x.npy", LARGE, 4)
    monkeypatch.setattr("m2dprep.artifacts.reading.WAITS_SECONDS", (0.0,))
    monkeypatch.setattr(os, "preadv", fail_beyond)
    with pytest.raises(OSError, match=os.strerror(error)) as caught:
        read_dictionary(path)
    assert caught.value.filename == str(path)


def test_a_file_is_read_and_not_mapped_and_told_where_it_is_cut_meanwhile(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", LARGE, 4)
    items = read_items(path)
    for _ in range(300):
        next(items)
    assert str(path) not in Path("/proc/self/maps").read_text()
    os.truncate(path, 6 << 20)
    with pytest.raises(UserError, match=r"refused .*cut off"):
        list(items)


def test_an_array_with_payloads_that_look_like_opcodes(tmp_path: Path) -> None:
    payload = np.frombuffer((b"\x89B\x04\0\0\0tb\x94u(q\x01" * 6)[:64], np.float16)
    value = {f"{n} \u0249B\u0094tb": payload.copy() for n in range(400)}
    for protocol in (3, 4, 5):
        assert_same(read_dictionary(save(tmp_path / "x.npy", value, protocol)), value)


def test_a_number_that_is_given_to_another_thing_means_the_other_thing(tmp_path: Path) -> None:
    """References are to what was remembered last: here the dtype under a number changes between two items."""
    dtypes = {code: b"cnumpy\ndtype\nX\x02\0\0\0" + code + b"\x89\x88\x87R" for code in (b"f2", b"f4")}
    head = b"\x80\x02cnumpy.core.numeric\n_frombuffer\nq\x010X\x01\0\0\0Cq\x020"

    def item(key: bytes, size: int) -> bytes:
        data = bytes(range(4, 12))
        return b"X\x01\0\0\0" + key + b"h\x01(C\x08" + data + b"h\x03K" + bytes([size]) + b"\x85h\x02tR"

    pickled = head + dtypes[b"f2"] + b"q\x030}(" + item(b"a", 4) + item(b"b", 4) + b"u"
    pickled += dtypes[b"f4"] + b"q\x030(" + item(b"c", 2) + item(b"d", 2) + b"u."
    (tmp_path / "x.npy").write_bytes(npy(pickled))
    read = read_dictionary(tmp_path / "x.npy")
    assert {key: value.dtype.str for key, value in read.items()} == {"a": "<f2", "b": "<f2", "c": "<f4", "d": "<f4"}


DTYPE = b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R"
LITTLE, BIG = ((b"(K\x03X\x01\0\0\0" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb") for order in (b"<", b">"))
# Memo: 0 the function, 1 its class, 2 the type, 3 whether in Fortran's order, 4 a text, 5 a list.
HEAD = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x000cnumpy\nndarray\nq\x010"
    + DTYPE + LITTLE + b"q\x020" + b"\x89q\x030" + b"X\x03\0\0\0oldq\x040" + b"]q\x050" + b"}("
)  # fmt: skip


def item(number: int, *, before: bytes = b"", flag: bytes = b"h\x03", after: bytes = b"") -> bytes:
    """The opcodes of an item whose array is (2, 2), with others between its key and its array, and after that."""
    array = b"h\0h\x01K\0\x85C\x01b\x87R(K\x01K\x02K\x02\x86h\x02" + flag
    data = np.arange(4 * number, 4 * number + 4, dtype="<f4").tobytes()
    return b"X\x02\0\0\0" + b"%02d" % number + before + array + b"C\x10" + data + b"tb" + after


def items(*numbers: int, **opcodes: bytes) -> bytes:
    return b"".join(item(number, **opcodes) for number in numbers)


FIRST, LAST = range(20), range(20, 40)
# Between two rows of twenty items: what the pickle does to what they refer to.
CHANGES = {
    "nothing": b"",
    "another type under the number": b"u" + DTYPE + BIG + b"q\x020(",
    "another order of bytes for the same type": b"uh\x02" + BIG + b"0(",
    "Fortran's order under the number": b"u\x88q\x030(",
    "nothing under the number, then Fortran's order": b"uNq\x030(" + item(98) + b"u\x88q\x030(",
    "an item that gives the number of the type to its key": items(98, before=b"q\x02"),
}
# In each of forty items: what a layout must not be learned from, or what must be told apart.
ODD_ITEMS = {
    "an older key": {"before": b"0h\x04"},
    "its own key again": {"before": b"q\x070h\x07"},
    "an array that is thrown away": {"before": b"h\0h\x01K\0\x85C\x01b\x87R0"},
    "a number that all items use": {"after": b"q\x09"},
    "numbers for everything": {"before": b"q\x07", "after": b"q\x09"},
    "a dictionary of its own": {"before": b"}N0", "after": b""},
    "another item in between": {"after": b"uX\x01\0\0\0zh\x06s("},
    "the type made anew": {"before": DTYPE + BIG + b"q\x020"},
    "a list that grows": {"before": b"h\x05Na0"},
}


@pytest.mark.parametrize(
    "opcodes",
    [
        *(HEAD + items(*FIRST) + change + items(*LAST) + b"u." for change in CHANGES.values()),
        *(HEAD + items(99, after=b"q\x06") + items(*FIRST, *LAST, **odd) + b"u." for odd in ODD_ITEMS.values()),
    ],
    ids=[*CHANGES, *ODD_ITEMS],
)
def test_items_that_look_like_others_mean_what_the_pickle_says(tmp_path: Path, opcodes: bytes) -> None:
    """Later items are recognised by how earlier ones looked. They may only be read so if it means the same."""
    (tmp_path / "x.npy").write_bytes(npy(opcodes))
    try:
        read = read_dictionary(tmp_path / "x.npy")
    except UserError:
        return  # what nobody writes may be refused
    assert_same(read, pickle.loads(opcodes))


def test_what_picklers_write_is_not_refused_as_odd(tmp_path: Path) -> None:
    for change in ("nothing", "another type under the number", "Fortran's order under the number"):
        (tmp_path / "x.npy").write_bytes(npy(HEAD + items(*FIRST) + CHANGES[change] + items(*LAST) + b"u."))
        assert len(read_dictionary(tmp_path / "x.npy")) == 40


NUMBERS = np.random.default_rng(0).standard_normal((6, 40, 3, 4))


@pytest.mark.parametrize("protocol", [3, 4, 5, "ours"])
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3), st.sampled_from(["", "é", "long"])), max_size=6))
def test_rows_of_like_items_of_any_length(
    tmp_path_factory: pytest.TempPathFactory, protocol: Any, rows: list[tuple[int, int, str]]
) -> None:
    """Rows of items of one shape, with keys of one length or not, and arrays of earlier rows among them."""
    value: dict[str, np.ndarray] = {}
    for row, (count, height, word) in enumerate(rows):
        for number in range(count):
            array = NUMBERS[row, number, :height] if height else NUMBERS[row, number, 0]
            value[f"{word}{row:03d}{number:03d}"] = array.astype(np.float16 if row % 3 else ">f4")
        if value and protocol != "ours":
            value[f"again {row}"] = next(iter(value.values()))
            value[f"once more {row}"] = list(value.values())[-count // 2 - 1]
    path = tmp_path_factory.getbasetemp() / f"rows-{protocol}.npy"
    if protocol == "ours":
        write_dictionary(path, value)
    else:
        save(path, value, protocol)
    assert_same(read_dictionary(path), value)


def test_items_that_are_not_set_in_the_end_are_refused(tmp_path: Path) -> None:
    """What has been given out must be what the pickle means: a tuple of keys and values beside a dictionary is not."""
    begun = pickle.dumps({"a": np.ones(4, np.float16), "b": np.ones(4, np.float16)}, protocol=2)
    assert begun.endswith(b"u.")
    for end in (b"t.", b"l.", b"0u.", b"1}.", b"tb."):
        (tmp_path / "x.npy").write_bytes(npy(begun[:-2] + end))
        with pytest.raises(UserError, match="refused"):
            read_dictionary(tmp_path / "x.npy")


@given(st.binary(max_size=300))
def test_any_bytes_give_a_dictionary_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.npy"
    path.write_bytes(npy(content))
    try:
        value = read_dictionary(path)
    except UserError:
        return
    assert isinstance(value, dict)
