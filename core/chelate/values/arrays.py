"""How objects of libraries are taken apart: numpy, pandas, torch, pydantic, scipy.

Every rule gets the loaded library as an argument, so none is imported here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Final

from .encoding import Chunk, Encoder, Unstable

__all__ = ["LIBRARIES"]

_BLOCK: Final = 8 << 20
# What else pydantic's objects hold follows, and names addresses and whole modules.
_VALIDATING: Final = {
    "TypeAdapter": ("_config", "_type"),
    "ValidateCallWrapper": ("config_wrapper", "function", "validate_return"),
}
_VECTORIZED: Final = {"cache", "excluded", "otypes", "pyfunc", "signature"}  # the rest follows
_MASKED: Final = {
    "_basedict", "_baseclass", "_fill_value", "_hardmask", "_isfield", "_mask", "_optinfo",
    "_sharedmask",
}  # fmt: skip
# What sparse matrices find out about their numbers when they are asked.
_SPARSE: Final = {"_has_canonical_format", "_has_sorted_indices"}


def _numpy(encoder: Encoder, np: Any, value: Any, package: str) -> list[Chunk] | None:
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        data = np.where(mask, np.zeros((), value.dtype), value.data)
        added = {k: item for k, item in value.__dict__.items() if k not in _MASKED}
        plain = type(value) is np.ma.MaskedArray and not added
        more = [] if plain else [encoder.class_of(value), added]
        return encoder.record("masked", data, mask, value.fill_value, *more)
    if isinstance(value, np.ndarray):
        return _array(encoder, np, value)
    if package != "numpy":
        return None
    if isinstance(value, np.generic):
        return encoder.record("scalar", np.asarray(value))
    if isinstance(value, np.dtype):
        told = [dict(value.metadata)] if value.metadata else []
        return encoder.record("dtype", value.str, value.descr if value.names else None, *told)
    if isinstance(value, np.random.Generator):
        return encoder.record("generator", value.bit_generator)
    if isinstance(value, np.random.BitGenerator):
        return encoder.record("bits", value.state)
    if value is np.random.mtrand._rand:  # numpy's own functions draw from it
        return encoder.record("random", "global")
    if isinstance(value, np.random.RandomState):
        return encoder.record("random", value.get_state(legacy=False))
    if isinstance(value, np.ufunc):
        made = [item for item in gc.get_referents(value) if callable(item)]  # by frompyfunc
        if not made and set("".join(value.types)) <= set("O->"):
            raise Unstable(f"{value.__name__} hides the function it was made of")
        return encoder.record("ufunc", value.__name__, *made)
    if isinstance(value, np.vectorize):
        fields = {name: item for name, item in vars(value).items() if name in _VECTORIZED}
        return encoder.fields("instance", type(value), fields)
    return None


def _array(encoder: Encoder, np: Any, value: Any) -> list[Chunk]:
    plain = type(value) in (np.ndarray, np.memmap)
    kind = "" if plain else encoder.class_of(value)
    added = {} if plain else getattr(value, "__dict__", {})
    head: tuple[Any, ...] = ("array", kind, value.dtype.str, value.shape)
    if added:  # such as a unit
        head = (*head, dict(added))
    if value.dtype.metadata:
        head = (*head, "metadata", dict(value.dtype.metadata))
    if value.dtype.names:
        fields = [np.asarray(value[name]) for name in value.dtype.names]
        return encoder.record("struct", head, value.dtype.names, fields)
    if value.dtype.kind in "OT":
        return encoder.record("objects", head, _strings(value.reshape(-1).tolist()))
    chunks: list[Chunk] = [b"A", *encoder.row(head)]
    if value.flags.c_contiguous or value.nbytes <= _BLOCK or value.ndim == 0:
        blocks = [value]
    else:
        step = max(1, len(value) * _BLOCK // value.nbytes)
        blocks = [value[start : start + step] for start in range(0, len(value), step)]
    if value.nbytes:
        chunks += (
            memoryview(np.ascontiguousarray(block).view(np.ndarray).reshape(-1).view(np.uint8))
            for block in blocks
        )
    return chunks


def _strings(values: list[Any]) -> Any:
    """A column of strings as lengths and one text, which is much faster than one by one."""
    if set(map(type, values)) != {str}:
        return values
    return (list(map(len, values)), "".join(values))


def _pandas(encoder: Encoder, pd: Any, value: Any, package: str) -> list[Chunk] | None:
    if isinstance(value, pd.DataFrame):
        columns = [value.iloc[:, number].array for number in range(value.shape[1])]
        kind = encoder.class_of(value)
        attrs = _added(value)
        return encoder.record("frame", kind, attrs, value.columns, value.index, columns)
    if isinstance(value, pd.Series):
        kind, attrs = encoder.class_of(value), _added(value)
        return encoder.record("series", kind, attrs, value.name, value.index, value.array)
    if isinstance(value, pd.MultiIndex):
        levels = [value.get_level_values(number) for number in range(value.nlevels)]
        return encoder.record("levels", list(value.names), levels)
    if isinstance(value, pd.RangeIndex):
        return encoder.record("rows", value.name, value.start, value.stop, value.step)
    if isinstance(value, pd.Index):
        kind, step = encoder.class_of(value), getattr(value, "freqstr", None)
        return encoder.record("index", kind, value.name, step, value.array)
    if not isinstance(value, pd.api.extensions.ExtensionArray):
        return None
    dtype = str(value.dtype)
    if isinstance(value, pd.Categorical):
        return encoder.record("categories", value.categories, bool(value.ordered), value.codes)
    if hasattr(value, "asi8"):
        return encoder.record("instants", dtype, value.asi8)
    if type(value).__name__ in ("NumpyExtensionArray", "PandasArray"):
        return encoder.record("column", value.to_numpy())
    missing = value.isna()
    numeric = getattr(value.dtype, "numpy_dtype", None)
    if numeric is not None and numeric.kind in "biuf":
        return encoder.record("nullable", dtype, value.to_numpy(numeric, na_value=0), missing)
    filled = [
        "" if gone else item for item, gone in zip(value.to_numpy(object), missing, strict=True)
    ]
    return encoder.record("column", dtype, _strings(filled), missing)


def _added(value: Any) -> Any:
    """What a frame or series carries besides its data; accessors such as ``.str`` follow."""
    kind = type(value)
    names = {name for name in vars(value) if name[:1] != "_" and not hasattr(kind, name)}
    names |= {name for name in kind._metadata if name not in ("_name", "name")}
    found = {name: getattr(value, name) for name in sorted(names) if hasattr(value, name)}
    attrs, repeated = dict(value.attrs), bool(value.flags.allows_duplicate_labels)
    return (attrs, repeated, found) if found or not repeated else attrs


def _scipy(encoder: Encoder, scipy: Any, value: Any, package: str) -> list[Chunk] | None:
    fields = getattr(value, "__dict__", {})
    if package == "scipy" and type(value).__name__ in (
        "rv_continuous_frozen",
        "rv_discrete_frozen",
    ):
        family, given = value.dist, (value.args, value.kwds)
        settings = family._updated_ctor_param()
        return encoder.record(
            "distribution", encoder.class_of(family), settings, family.random_state, *given
        )
    if not isinstance(fields, dict) or _SPARSE.isdisjoint(fields):
        return None
    return encoder.fields(
        "instance", type(value), {k: item for k, item in fields.items() if k not in _SPARSE}
    )


def _torch(encoder: Encoder, torch: Any, value: Any, package: str) -> list[Chunk] | None:
    if package == "torch" and isinstance(value, torch.dtype | torch.device):
        return encoder.record("torch", str(value))
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    head = (encoder.class_of(value), str(value.dtype), tuple(value.shape))
    return encoder.record("tensor", head, memoryview(flat))


def _pydantic(encoder: Encoder, pydantic: Any, value: Any, package: str) -> list[Chunk] | None:
    fields = _VALIDATING.get(type(value).__name__) if package == "pydantic" else None
    if fields is None:
        return None
    given = {name: getattr(value, name) for name in fields if hasattr(value, name)}
    return encoder.fields("instance", type(value), given)


LIBRARIES: Final[dict[str, Callable[[Encoder, Any, Any, str], list[Chunk] | None]]] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "pydantic": _pydantic,
    "scipy": _scipy,
    "torch": _torch,
}
