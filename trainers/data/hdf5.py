"""Anybody's arrays in a file of HDF5: ``hdf5:FILE``, read at arm's length as results are."""

from __future__ import annotations

from typing import Any

from landscape.errors import InputError
from landscape.registry import register
from landscape.results import hdf5_process
from landscape.results.hdf5_contents import ForeignContent
from trainers.data import Arrays, Source
from trainers.data.files import read_file
from trainers.data.forms import Form, file_of, require_parts


@register("hdf5", file="FILE", options="forms.Form")
def hdf5(source: Source, **options: Any) -> Arrays:
    """hdf5:FILE, arrays of HDF5 as those of npz:FILE, also in groups; packed by gzip, lzf and shuffle or not.

    Files of at most 512 MiB. No links, external or virtual storage, and no filters of others are followed.
    """
    path, form = file_of(source), Form(**options)
    if not path.exists():
        raise InputError(f"{path} does not exist: write hdf5:FILE with an existing file")
    try:
        root = hdf5_process.arrays(read_file(path), form.names)[""]
    except ForeignContent as error:
        why = str(error) or "truncated, damaged, or more than memory and time allow"
        raise InputError(f"{path} is not a readable HDF5 file of arrays: {why}") from None
    held = {name: values for name, (values, _, _) in root["arrays"].items()}
    require_parts(path, form, held, root["attributes"]["names"])
    return form.arrays(path, held)
