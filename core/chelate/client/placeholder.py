"""What an electron's call gives inside a lattice: the output of a task that has not run yet.

Items and attributes extend a path and cost no node; arithmetic and method calls record an
operator node; whatever needs the real value raises GraphError and says what to write instead.
"""

from __future__ import annotations

import builtins
import dis
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

from chelate.client.frames import current_line
from chelate.errors import ForeignPlaceholderError, GraphError

__all__ = ["CALL", "Placeholder", "Recorder", "StarredPart", "make_placeholder", "state_of"]

Step = list[Any]
State = tuple["Recorder", int, tuple[Step, ...]]


class Recorder(Protocol):
    """What a placeholder needs of the build that made it."""

    def check_active(self) -> None:
        """Raises ForeignPlaceholderError unless this build is the one going on here."""

    def foreign(self) -> ForeignPlaceholderError:
        """The error to raise when a placeholder of this build turns up elsewhere."""

    def label(self, node_id: int) -> str:
        """The task that a node's output goes back to, for names and messages."""

    def operate(
        self,
        function: Callable[..., Any],
        label: str,
        operation: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Placeholder:
        """Record an operator node, named ``label.operation``."""

    def holds(self, value: Any) -> bool:
        """Whether a value is, or is a container with, a placeholder."""

    def constant(self, value: Any, what: str) -> str:
        """Store a value and return its digest."""

    def add_ordering(self, node_id: int, parents: Iterable[Any]) -> None:
        """Let a node wait for others."""


class Placeholder:
    """The output of a node, or a part of it; see the module's text."""

    # Names with double underscores leave every other name to the attributes of the real value.
    __slots__ = ("__chelate__",)
    __chelate__: State

    # numpy and pandas would spread an operation over their elements; these make them step aside.
    __array_ufunc__: Final = None
    __pandas_priority__: Final = 1_000_000

    def wait_for(self, *parents: Any) -> Placeholder:
        """Run this task after ``parents`` (placeholders, or iterables of them) as well.

        Raises:
            GraphError: a parent that is no placeholder.
            ForeignPlaceholderError: a placeholder of another lattice.
        """
        recorder, node_id, _ = self.__chelate__
        recorder.check_active()
        recorder.add_ordering(node_id, parents)
        return self

    def __getattr__(self, name: str) -> Placeholder:
        # Libraries probe for these to find out what an object can do; nothing here answers them.
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(
                f"The output of a task has no attribute {name!r} while the lattice is built."
            )
        return _extend(self, ["a", name])

    def __getitem__(self, key: Any) -> Placeholder:
        recorder, _, _ = self.__chelate__
        recorder.check_active()
        kind = type(key)
        if kind is int or kind is bool or key is None or (kind is str and _is_text(key)):
            return _extend(self, ["i", key])
        if recorder.holds(key):
            return _operate(self, "__getitem__", operator.getitem, self, key)
        return _extend(self, ["c", recorder.constant(key, f"The key of {self!r}")])

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        path = self.__chelate__[2]
        name = path[-1][1] if path and path[-1][0] == "a" else "__call__"
        return _operate(self, name, CALL, self, *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        self.__chelate__[0].check_active()
        count, star = _unpacking(sys._getframe(1)) or (0, None)
        if not count:
            _refuse(self, *_LOOP)
        parts: list[Any] = []
        for index in range(count):
            part = _extend(self, ["u", index, count, star])
            if index != star:
                parts.append(part)
            else:
                parts.extend(StarredPart(part, place) for place in range(StarredPart.PLACES))
        return iter(parts)

    def __pow__(self, other: Any, modulus: Any = None) -> Placeholder:
        if modulus is None:
            return _operate(self, "__pow__", operator.pow, self, other)
        return _operate(self, "__pow__", builtins.pow, self, other, modulus)

    def __round__(self, digits: Any = None) -> Placeholder:
        digits = () if digits is None else (digits,)
        return _operate(self, "__round__", builtins.round, self, *digits)

    def __eq__(self, other: object) -> bool:
        # Sets and dicts compare what they hold.
        return True if self is other else _refuse(self, "compares", _COMPARE)

    def __ne__(self, other: object) -> bool:
        _refuse(self, "compares", _COMPARE)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse(self, *_CHANGE)

    def __delattr__(self, name: str) -> None:
        _refuse(self, *_CHANGE)

    def __repr__(self) -> str:
        recorder, node_id, path = self.__chelate__
        steps = "".join(_step_text(step) for step in path)
        return f"<output of {recorder.label(node_id)} (node {node_id}){steps}>"

    def __copy__(self) -> Placeholder:
        return self

    def __deepcopy__(self, memo: Any) -> Placeholder:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        _refuse(
            self,
            "pickles",
            "Pass it to an electron as an argument, or in a list, tuple, dict, set or named tuple.",
        )


class StarredPart:
    """Stands for the items of a starred target, of which nobody knows the number yet.

    Python puts whatever the iterator gives into a new list. The list is filled with this many of
    these, so that a list that was cut, sorted or added to is told from the untouched one.
    """

    __slots__ = ("place", "whole")
    PLACES: Final = 64

    def __init__(self, whole: Placeholder, place: int) -> None:
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "place", place)

    whole: Placeholder
    place: int

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(name)
        self.refuse()

    def __repr__(self) -> str:
        return f"<an item of the starred part of {self.whole!r}>"

    def __copy__(self) -> StarredPart:
        return self

    def __deepcopy__(self, memo: Any) -> StarredPart:
        return self

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return True if self is other else self.refuse()

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Raise the GraphError that says how to use a starred target."""
        raise GraphError(
            f"The lattice looks into the starred target of an unpacking of a task's output, whose "
            f"length nobody knows before the task has run{_place()}. Pass the starred list to an "
            f"electron as it is, or take a slice of the output instead: output[1:]."
        )


_set_state = Placeholder.__dict__["__chelate__"].__set__
_new = object.__new__


def make_placeholder(recorder: Recorder, node_id: int, path: tuple[Step, ...] = ()) -> Placeholder:
    """The output of a node, or the part of it at the end of ``path``."""
    placeholder = _new(Placeholder)
    _set_state(placeholder, (recorder, node_id, path))
    return placeholder


def state_of(placeholder: Placeholder) -> State:
    """The build, the node id and the path of a placeholder."""
    return placeholder.__chelate__


def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


# A worker without chelate runs this, so it must travel by value, as functions of __main__ do.
_call.__module__ = "__main__"
CALL: Final[Callable[..., Any]] = _call


def _extend(placeholder: Placeholder, step: Step) -> Placeholder:
    recorder, node_id, path = placeholder.__chelate__
    recorder.check_active()
    return make_placeholder(recorder, node_id, (*path, step))


def _operate(
    placeholder: Placeholder, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Placeholder:
    recorder, node_id, _ = placeholder.__chelate__
    recorder.check_active()
    return recorder.operate(function, recorder.label(node_id), name, args, kwargs)


def _is_text(key: str) -> bool:
    """Whether a key survives JSON; a lone surrogate does not."""
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)


def _step_text(step: Step) -> str:
    if step[0] == "a":
        return f".{step[1]}"
    if step[0] == "u":
        return f"[{'*' if step[1] == step[3] else ''}{step[1]} of {step[2]}]"
    return f"[{step[1]!r}]" if step[0] == "i" else "[…]"


def _unpacking(frame: FrameType) -> tuple[int, int | None] | None:
    """Targets and index of the starred one, if ``frame`` is unpacking; None for anything else."""
    code = frame.f_code.co_code
    place = frame.f_lasti
    argument = 0
    # Python 3.10 counts from the first prefix of a long argument, later ones from the instruction.
    while code[place] == dis.EXTENDED_ARG:
        argument = argument << 8 | code[place + 1]
        place += 2
    argument = argument << 8 | code[place + 1]
    shift, before = 8, frame.f_lasti - 2
    while before >= 0 and code[before] == dis.EXTENDED_ARG:
        argument |= code[before + 1] << shift
        shift, before = shift + 8, before - 2
    name = dis.opname[code[place]]
    if name == "UNPACK_SEQUENCE":
        return argument, None
    if name == "UNPACK_EX":
        first, last = argument & 0xFF, argument >> 8
        return first + 1 + last, first
    return None


def _place() -> str:
    line = current_line()
    return f" ({line})" if line else ""


_ELSEWHERE = "or in a sub-workflow (ct.electron on a lattice), which is built with real values"
_COMPARE = f"Compare inside an electron, as in ct.electron(operator.eq)(a, b), {_ELSEWHERE}."
_LOOP = (
    "loops over",
    f"Loop inside an electron, {_ELSEWHERE}; or unpack it into a known number of names, as in "
    f"a, b = output, or take items by index.",
)
_CHANGE = (
    "changes",
    "Make the change inside an electron that returns the changed value.",
)
_REFUSED: Final = {
    "takes the truth value of": (
        f"Decide inside an electron, {_ELSEWHERE}.",
        ("__bool__",),
    ),
    "converts to a number": (
        "Convert inside an electron, as in ct.electron(float)(output).",
        ("__int__", "__float__", "__complex__", "__index__"),
    ),
    "takes the length of": ("Use an electron, as in ct.electron(len)(output).", ("__len__",)),
    "searches in": (
        "Search inside an electron, as in ct.electron(operator.contains)(output, item).",
        ("__contains__",),
    ),
    "compares": (_COMPARE, ("__lt__", "__le__", "__gt__", "__ge__")),
    "formats as text": (
        "Format inside an electron, as in ct.electron(str)(output); repr() shows what it is.",
        ("__str__", "__format__", "__bytes__"),
    ),
    _LOOP[0]: (_LOOP[1], ("__reversed__",)),
    _CHANGE[0]: (_CHANGE[1], ("__setitem__", "__delitem__")),
    "enters with 'with'": (
        "Open and close it inside one electron.",
        ("__enter__", "__exit__"),
    ),
    "awaits": ("Nothing is awaited in a lattice; pass it on to the next electron.", ("__await__",)),
}


def _refuse(placeholder: Placeholder, deed: str, instead: str) -> NoReturn:
    recorder, node_id, _ = placeholder.__chelate__
    recorder.check_active()
    raise GraphError(
        f"The lattice {deed} the output of {recorder.label(node_id)!r}, which does not exist "
        f"before the task has run{_place()}. {instead}"
    )


def _refusal(deed: str, instead: str) -> Callable[..., Any]:
    def method(self: Placeholder, *_: Any) -> NoReturn:
        _refuse(self, deed, instead)

    return method


def _forward(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Placeholder, *others: Any) -> Placeholder:
        return _operate(self, name, function, self, *others)

    return method


def _reflected(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Placeholder, other: Any) -> Placeholder:
        return _operate(self, name, function, other, self)

    return method


def _add_operators() -> None:
    binary = "add sub mul truediv floordiv mod matmul pow lshift rshift and or xor"
    for word in binary.split():
        function = getattr(operator, word if hasattr(operator, word) else f"{word}_")
        if word != "pow":
            setattr(Placeholder, f"__{word}__", _forward(f"__{word}__", function))
        setattr(Placeholder, f"__r{word}__", _reflected(f"__r{word}__", function))
        # list += tuple works where list + tuple does not.
        in_place = getattr(operator, f"i{word}")
        setattr(Placeholder, f"__i{word}__", _forward(f"__i{word}__", in_place))
    setattr(Placeholder, "__divmod__", _forward("__divmod__", divmod))  # noqa: B010
    setattr(Placeholder, "__rdivmod__", _reflected("__rdivmod__", divmod))  # noqa: B010
    for word in ("neg", "pos", "invert", "abs"):
        setattr(Placeholder, f"__{word}__", _forward(f"__{word}__", getattr(operator, word)))
    for word in ("floor", "ceil", "trunc"):
        setattr(Placeholder, f"__{word}__", _forward(f"__{word}__", getattr(math, word)))
    for deed, (instead, names) in _REFUSED.items():
        for name in names:
            setattr(Placeholder, name, _refusal(deed, instead))
            if name not in ("__hash__", "__eq__"):
                setattr(StarredPart, name, StarredPart.refuse)
    for name in ("__getitem__", "__iter__", "__call__", "__add__", "__radd__", "__reduce_ex__"):
        setattr(StarredPart, name, StarredPart.refuse)


_add_operators()
