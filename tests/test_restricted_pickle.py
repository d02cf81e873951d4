"""The unpickler of arrays: numbers of every type come back, nothing that a pickle names is run."""

import functools
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from landscape.errors import InputError
from tests.data_file_cases import write_cifar
from trainers.data import restricted_pickle
from trainers.datasets import load_data


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    return {
        "system": pickle.dumps(Call(os.system, f"touch {marker}")),
        "eval": pickle.dumps({"data": Call(eval, f"open({str(marker)!r}, 'w')")}, protocol=2),
        "open": pickle.dumps(Call(open, str(marker), "w")),
        "getattr": pickle.dumps(Call(getattr, "x", "upper")),
        "partial": pickle.dumps(functools.partial(open, str(marker), "w")),
        "numpy load": b"cnumpy\nload\n(V" + str(marker).encode() + b"\ntR.",
        "ndarray called": b"cnumpy\nndarray\n(I10\ntR.",
        "constructor kept": b"cnumpy\ndtype\n.",
        "itself": b"\x80\x02]q\x00h\x00a.",
        "nested name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__class__\x93.",
        "object array": pickle.dumps(np.array([Call(os.system, f"touch {marker}")], dtype=object)),
    }


@pytest.mark.parametrize("kind", list(hostile(Path("x"))))
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, kind):
    marker = tmp_path / "it-ran"
    write_cifar(tmp_path, "cifar10", "python", packed=False)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(hostile(marker)[kind])
    with pytest.raises(InputError, match="data_batch_1"):
        load_data("cifar10", data_dir=tmp_path)
    assert not marker.exists()


def test_the_refusal_names_what_the_pickle_asks_for():
    with pytest.raises(InputError, match=r"x was refused: it is a pickle that names .*system.*fetch the official file"):
        restricted_pickle.loads(pickle.dumps(Call(os.system, "true")), "x")


def test_the_stand_ins_of_the_unpickler_have_nothing_to_overwrite():
    for stand_in in restricted_pickle._ALLOWED.values():
        for name in ("changed", "construct"):
            with pytest.raises(AttributeError):
                setattr(stand_in, name, 1)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_number_type_come_back(protocol, dtype, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (3, 4, 2)).astype(dtype), order=order)
    content = {"a": [array, (array[0, 0, 0], 1.5, None)], b"empty": b""}
    loaded = restricted_pickle.loads(pickle.dumps(content, protocol=protocol), "x")
    back, (scalar, number, nothing) = loaded["a"]
    np.testing.assert_array_equal(back, array)
    assert (scalar, number, nothing, loaded[b"empty"]) == (array[0, 0, 0], 1.5, None, b"")


def test_the_state_of_a_type_cannot_smuggle_records_or_change_numpy():
    state = (3, ">", None, None, None, -1, -1, 0)
    assert restricted_pickle.loads(pickle.dumps(np.arange(3, dtype=">i8"), protocol=2), "x").tolist() == [0, 1, 2]
    dtype = restricted_pickle._Dtype("i8")
    dtype.__setstate__(state)
    assert np.dtype("i8").isnative
    with pytest.raises(InputError, match="array of"):
        restricted_pickle.loads(pickle.dumps(np.zeros(2, [("a", "i4")])), "x")
    with pytest.raises(ValueError, match="records"):
        dtype.__setstate__((3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63))


def test_object_arrays_are_refused():
    with pytest.raises(InputError, match="array of object"):
        restricted_pickle.loads(pickle.dumps(np.array([1, None], dtype=object)), "x")


def test_lists_shared_within_a_pickle_are_converted_once():
    shared = [1]
    for _ in range(40):
        shared = [shared] * 10
    start = time.monotonic()
    loaded = restricted_pickle.loads(pickle.dumps(shared, 2), "x")
    assert loaded[0] is loaded[9]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("container", ["dict", "list of keys", "set", "frozenset"])
def test_keys_that_take_for_ever_to_hash_are_refused(container):
    """Forty tuples of twice the one before: 2^40 steps for a hash, whatever the container."""
    key = b"K\x01\x85q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40)
    )
    programs = {
        "dict": b"\x80\x04}(" + key + b"K\x01u.",
        "list of keys": b"\x80\x04}" + key + b"K\x01s.",
        "set": b"\x80\x04\x8f(" + key + b"\x90.",
        "frozenset": b"\x80\x04(" + key + b"\x91.",
    }
    with pytest.raises(InputError, match="x is corrupt"):
        restricted_pickle.loads(programs[container], "x")
