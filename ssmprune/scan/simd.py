"""SIMD values for numba: vectors of 16 channels, and how to compute with them.

The kernels treat 16 neighbouring channels at once. numba has no type for such a value, and its
automatic vectoriser gives up on a recurrence with many states, so this module adds the types:

- `Vector`: 16 float32 lanes, one channel each; an LLVM `<16 x float>`, that is one register with
  AVX-512, two with AVX2, four with NEON;
- `Vectors(n)`: n of them, such as the n states of 16 channels; an LLVM array that lives in
  registers as far as they last;
- `Mask`: which of the 16 lanes are channels that exist, for widths that are no multiple of 16.

`+`, `-`, `*`, `/` and the functions below work on each lane, and between a `Vectors` and a `Vector`
or a number as broadcasting does. `a * b + c` becomes one fused multiply-add (flag `contract`);
nothing else is reordered, for `exp2` relies on rounding.

`Static(n)` is an integer argument that is known when a kernel is compiled, so that loops over
states unroll. Its type also names the version of this folder's sources: numba checks its disk cache
against the file of the kernel alone, and an edit here must not leave old machine code in use.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_constant
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    models,
    overload_attribute,
    register_model,
    type_callable,
    unbox,
)

from ssmprune.compiled import cached_njit

LANES = 16
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES

# a kernel that is called from Python, and a part of one
kernel = cached_njit(nogil=True, error_model="numpy")
inline = numba.njit(forceinline=True, error_model="numpy")

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INT32S = ir.VectorType(_INT32, LANES)
_ADDRESSES = ir.VectorType(ir.IntType(64), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


def _has_avx512() -> bool:
    """Whether numba compiles for a CPU with AVX-512."""
    chosen = vars(numba.core.config)  # by the environment
    is_host = chosen["CPU_NAME"] is None and chosen["CPU_FEATURES"] is None
    features = llvmlite.binding.get_host_cpu_features() if is_host else {}
    return bool(features.get("avx512f") and features.get("avx512dq"))


# --- types ---------------------------------------------------------------------------------------


class _Lanes(types.Type):
    """What the arithmetic works on: a `Vector` or a `Vectors`."""


class _VectorType(_Lanes):
    def __init__(self) -> None:
        super().__init__(name="Vector")


class _VectorsType(_Lanes):
    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Vectors({count})")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Mask")


Vector = _VectorType()
Vectors = _VectorsType
Mask = _MaskType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: _VectorType) -> None:
        super().__init__(manager, numba_type, _FLOATS)


@register_model(_VectorsType)
class _VectorsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: _VectorsType) -> None:
        super().__init__(manager, numba_type, ir.ArrayType(_FLOATS, numba_type.count))


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: _MaskType) -> None:
        super().__init__(manager, numba_type, _BITS)


_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]


class _StaticType(types.Type):
    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(name=f"Static({value}, {_VERSION})")


register_model(_StaticType)(models.OpaqueModel)

_static_type = functools.cache(_StaticType)


class Static:
    """An integer known when a kernel is compiled; an argument of it or a module's constant."""

    def __init__(self, value: int) -> None:
        self.value = value
        self._numba_type_ = _static_type(value)


@unbox(_StaticType)
def _unbox_static(numba_type: _StaticType, static: Any, c: Any) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


@lower_constant(_StaticType)
def _lower_static(context: Any, builder: ir.IRBuilder, numba_type: types.Type, static: Any) -> Any:
    return context.get_dummy_value()


@overload_attribute(_StaticType, "value")
def _static_value(static):  # numba compares its names with the lambda's
    value = static.value
    return lambda static: value


# --- building LLVM instructions ------------------------------------------------------------------


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)


def _splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    vector_type = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INT32S, [0] * LANES))


def _pack(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    packed = ir.Constant(ir.ArrayType(_FLOATS, len(vectors)), ir.Undefined)
    for index, vector in enumerate(vectors):
        packed = builder.insert_value(packed, vector, index)
    return packed


def _unpack(
    context: Any, builder: ir.IRBuilder, numba_type: types.Type, value: ir.Value, count: int
) -> list[ir.Value]:
    """The `count` LLVM vectors of an operand; one vector or number stands for each of them."""
    if isinstance(numba_type, _VectorsType):
        return [builder.extract_value(value, index) for index in range(count)]
    if isinstance(numba_type, types.Number):
        value = _splat(builder, context.cast(builder, value, numba_type, types.float32))
    return [value] * count


def _result_type(*operands: types.Type) -> types.Type | None:
    """The type of a lane-wise function of the operands; None where there is no such function."""
    if not all(isinstance(operand, (_Lanes, types.Number)) for operand in operands):
        return None
    counts = {operand.count for operand in operands if isinstance(operand, _VectorsType)}
    if len(counts) > 1:
        return None
    return _VectorsType(counts.pop()) if counts else Vector


def primitive(typing_function: Callable[..., Any]) -> Any:
    """numba's `intrinsic`, whose own annotations do not describe what it makes."""
    return intrinsic(typing_function)


Emit = Callable[..., ir.Value]


def _lanewise(emit: Emit) -> Callable[..., ir.Value]:
    """Lowering of a function that `emit` builds for one LLVM vector per operand."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        result = signature.return_type
        count = result.count if isinstance(result, _VectorsType) else 1
        operands = [
            _unpack(context, builder, numba_type, value, count)
            for numba_type, value in zip(signature.args, arguments, strict=True)
        ]
        vectors = [emit(builder, *column) for column in zip(*operands, strict=True)]
        return _pack(builder, vectors) if isinstance(result, _VectorsType) else vectors[0]

    return lower


def _define_operator(function: Callable[..., Any], emit: Emit) -> None:
    """Give Python's operator `function` a meaning on lanes."""

    @type_callable(function)
    def type_binary(context: Any) -> Callable[[types.Type, types.Type], types.Type | None]:
        def typer(left: types.Type, right: types.Type) -> types.Type | None:
            if isinstance(left, _Lanes) or isinstance(right, _Lanes):
                return _result_type(left, right)
            return None

        return typer

    for operands in ((_Lanes, _Lanes), (_Lanes, types.Number), (types.Number, _Lanes)):
        lower_builtin(function, *operands)(_lanewise(emit))


for _operators, _emit in (
    ((operator.add, operator.iadd), lambda b, x, y: b.fadd(x, y, flags=("contract",))),
    ((operator.sub, operator.isub), lambda b, x, y: b.fsub(x, y, flags=("contract",))),
    ((operator.mul, operator.imul), lambda b, x, y: b.fmul(x, y, flags=("contract",))),
    (
        (operator.truediv, operator.itruediv),
        lambda b, x, y: b.fdiv(x, y, flags=("arcp", "ninf", "contract")),
    ),
):
    for _operator in _operators:
        _define_operator(_operator, _emit)


_ABREAST = 4


@primitive
def each(typingctx: Any, function: Any, operands: Any) -> Any:
    """`function` of a tuple of operands, for 4 of their vectors at a time.

    The same as an expression of the whole `Vectors`. Four chains of operations abreast keep the
    arithmetic units of a CPU busy; many more at a time would not fit into its registers.
    """
    result: Any = _result_type(*operands)
    starts = range(0, result.count, _ABREAST)
    parts = [slice(start, min(start + _ABREAST, result.count)) for start in starts]
    calls = [
        typingctx.resolve_function_type(function, [_part_type(x, part) for x in operands], {})
        for part in parts
    ]

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        values = cgutils.unpack_tuple(builder, arguments[1])
        vectors = []
        for part, call in zip(parts, calls, strict=True):
            count = part.stop - part.start
            inputs = [
                _pack(builder, _unpack(context, builder, numba_type, value, result.count)[part])
                if isinstance(numba_type, _VectorsType)
                else value
                for numba_type, value in zip(operands, values, strict=True)
            ]
            output = context.get_function(function, call)(builder, inputs)
            vectors += _unpack(context, builder, call.return_type, output, count)
        return _pack(builder, vectors)

    return result(function, operands), lower


@primitive
def unrolled(typingctx: Any, function: Any, arguments: Any, count: Any) -> Any:
    """The tuple of `function(*arguments, n)` for n from 0 to `count` - 1, kept in registers."""
    call = typingctx.resolve_function_type(function, [*arguments, types.int64], {})
    result = types.UniTuple(call.return_type, count.value)

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        values = cgutils.unpack_tuple(builder, arguments[1])
        compiled = context.get_function(function, call)
        numbers = [context.get_constant(types.int64, n) for n in range(count.value)]
        results = [compiled(builder, [*values, number]) for number in numbers]
        return context.make_tuple(builder, result, results)

    return result(function, arguments, count), lower


def _part_type(numba_type: types.Type, part: slice) -> types.Type:
    if isinstance(numba_type, _VectorsType):
        return _VectorsType(part.stop - part.start)
    return numba_type


# --- making and moving ---------------------------------------------------------------------------


def _pointer(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.inttoptr(address, kind.as_pointer())


@primitive
def align_stack(typingctx: Any) -> Any:
    """Have the kernel that calls this keep vectors on whole cache lines of its stack.

    LLVM only does so in a function that owns such a line when registers are given out. Without, a
    vector for which no register is left straddles two lines, and costs twice.
    """

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        line = cgutils.alloca_once(builder, _FLOATS)
        line.align = VECTOR_BYTES
        use = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [line.type]), "", "r", side_effect=True)
        builder.call(use, [line])
        return context.get_dummy_value()

    return types.none(), lower


@primitive
def zeros(typingctx: Any, count: Any) -> Any:
    """`count` vectors of zeros."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _pack(builder, [_constant(0.0)] * count.value)

    return _VectorsType(count.value)(count), lower


@primitive
def splat(typingctx: Any, number: Any) -> Any:
    """The vector with `number` in each lane."""
    return Vector(types.float32), _lanewise(lambda b, x: x)


@primitive
def first_lanes(typingctx: Any, count: Any) -> Any:
    """The mask of the first `count` lanes; all of them from 16 on."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        lanes = ir.Constant(_ADDRESSES, list(range(LANES)))
        return builder.icmp_signed("<", lanes, _splat(builder, arguments[0]))

    return Mask(types.int64), lower


@primitive
def load(typingctx: Any, address: Any, mask: Any) -> Any:
    """The 16 floats from `address` on; zeros outside the mask, where nothing is read."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        pointer = _pointer(builder, arguments[0], _FLOATS)
        return _masked_load(builder, pointer, arguments[1])

    return Vector(types.int64, Mask), lower


def _masked_load(builder: ir.IRBuilder, pointer: ir.Value, mask: ir.Value) -> ir.Value:
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(_FLOATS, [pointer.type, _INT32, _BITS, _FLOATS]),
        f"llvm.masked.load.v{LANES}f32.p0",
    )
    alignment = ir.Constant(_INT32, FLOAT_BYTES)
    return builder.call(function, [pointer, alignment, mask, _constant(0.0)])


def _prefetch(builder: ir.IRBuilder, address: ir.Value, writes: bool) -> None:
    pointer = _pointer(builder, address, ir.IntType(8))
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32]),
        "llvm.prefetch.p0",
    )
    keep, data = ir.Constant(_INT32, 3), ir.Constant(_INT32, 1)
    builder.call(function, [pointer, ir.Constant(_INT32, int(writes)), keep, data])


@primitive
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the memory at `address` ahead of its use; any address will do."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        _prefetch(builder, arguments[0], writes=False)
        return context.get_dummy_value()

    return types.none(types.int64), lower


@primitive
def prefetch_to_write(typingctx: Any, address: Any) -> Any:
    """`prefetch` for memory that is going to be written."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        _prefetch(builder, arguments[0], writes=True)
        return context.get_dummy_value()

    return types.none(types.int64), lower


@primitive
def store(typingctx: Any, address: Any, vector: Any, mask: Any) -> Any:
    """Write the lanes of `vector` that are in the mask to `address`."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, vector, mask = arguments
        pointer = _pointer(builder, address, _FLOATS)
        _masked_store(builder, vector, pointer, mask)
        return context.get_dummy_value()

    return types.none(types.int64, Vector, Mask), lower


def _masked_store(
    builder: ir.IRBuilder, vector: ir.Value, pointer: ir.Value, mask: ir.Value
) -> None:
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [_FLOATS, pointer.type, _INT32, _BITS]),
        f"llvm.masked.store.v{LANES}f32.p0",
    )
    builder.call(function, [vector, pointer, ir.Constant(_INT32, FLOAT_BYTES), mask])


@inline
def add_to(address, vector, mask):
    """Add the lanes of `vector` that are in the mask to the floats at `address`."""
    store(address, load(address, mask) + vector, mask)


@primitive
def load_number(typingctx: Any, address: Any) -> Any:
    """The float at `address`."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(_pointer(builder, arguments[0], _FLOAT))

    return types.float32(types.int64), lower


@primitive
def load_integer(typingctx: Any, address: Any) -> Any:
    """The 64-bit integer at `address`."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(_pointer(builder, arguments[0], ir.IntType(64)))

    return types.int64(types.int64), lower


@primitive
def load_numbers(typingctx: Any, address: Any, count: Any) -> Any:
    """`count` vectors; the n-th one holds the n-th float from `address` on in each lane."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        first = _pointer(builder, arguments[0], _FLOAT)
        pointers = [builder.gep(first, [ir.Constant(_INT32, n)]) for n in range(count.value)]
        return _pack(builder, [_splat(builder, builder.load(pointer)) for pointer in pointers])

    return _VectorsType(count.value)(types.int64, count), lower


@primitive
def load_table(
    typingctx: Any, address: Any, lane_stride: Any, vector_stride: Any, mask: Any, count: Any
) -> Any:
    """`count` vectors from a table: lane i of vector n is the float at
    `address + i * lane_stride + n * vector_stride` (bytes), and zero outside the mask."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, lane_stride, vector_stride, mask, _ = arguments
        lanes = ir.Constant(_ADDRESSES, list(range(LANES)))
        offsets = builder.mul(lanes, _splat(builder, lane_stride))
        addresses = builder.add(_splat(builder, address), offsets)
        pointers_type = ir.VectorType(ir.PointerType(_FLOAT), LANES)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_FLOATS, [pointers_type, _INT32, _BITS, _FLOATS]),
            f"llvm.masked.gather.v{LANES}f32.v{LANES}p0",
        )
        vectors = []
        for _ in range(count.value):
            pointers = builder.inttoptr(addresses, pointers_type)
            alignment = ir.Constant(_INT32, FLOAT_BYTES)
            vectors.append(builder.call(function, [pointers, alignment, mask, _constant(0.0)]))
            addresses = builder.add(addresses, _splat(builder, vector_stride))
        return _pack(builder, vectors)

    signature = (types.int64, types.int64, types.int64, Mask, count)
    return _VectorsType(count.value)(*signature), lower


@primitive
def load_vectors(typingctx: Any, address: Any, count: Any) -> Any:
    """`count` whole vectors that lie one after the other from `address` on."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        first = _pointer(builder, arguments[0], _FLOATS)
        vectors = []
        for n in range(count.value):
            vectors.append(builder.load(builder.gep(first, [ir.Constant(_INT32, n)])))
            vectors[-1].align = FLOAT_BYTES
        return _pack(builder, vectors)

    return _VectorsType(count.value)(types.int64, count), lower


@primitive
def store_vectors(typingctx: Any, address: Any, vectors: Any) -> Any:
    """Write whole vectors one after the other from `address` on."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        first = _pointer(builder, arguments[0], _FLOATS)
        for n in range(vectors.count):
            vector = builder.extract_value(arguments[1], n)
            builder.store(vector, builder.gep(first, [ir.Constant(_INT32, n)])).align = FLOAT_BYTES
        return context.get_dummy_value()

    return types.none(types.int64, vectors), lower


@primitive
def load_rows(typingctx: Any, address: Any, stride: Any, mask: Any, count: Any) -> Any:
    """`count` vectors; the n-th one as `load` gives it from `address + n * stride` (bytes)."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, stride, mask, _ = arguments
        vectors = []
        for _ in range(count.value):
            vectors.append(_masked_load(builder, _pointer(builder, address, _FLOATS), mask))
            address = builder.add(address, stride)
        return _pack(builder, vectors)

    return _VectorsType(count.value)(types.int64, types.int64, Mask, count), lower


@primitive
def load_column(typingctx: Any, address: Any, stride: Any, count: Any) -> Any:
    """`count` vectors; the n-th one holds the float at `address + n * stride` (bytes) in each
    lane."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, stride, _ = arguments
        vectors = []
        for _ in range(count.value):
            vectors.append(_splat(builder, builder.load(_pointer(builder, address, _FLOAT))))
            address = builder.add(address, stride)
        return _pack(builder, vectors)

    return _VectorsType(count.value)(types.int64, types.int64, count), lower


@primitive
def store_rows(typingctx: Any, address: Any, stride: Any, vectors: Any, mask: Any) -> Any:
    """Write the n-th of some vectors as `store` does to `address + n * stride` (bytes)."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, stride, vectors, mask = arguments
        numba_type = signature.args[2]
        for vector in _unpack(context, builder, numba_type, vectors, numba_type.count):
            _masked_store(builder, vector, _pointer(builder, address, _FLOATS), mask)
            address = builder.add(address, stride)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, vectors, Mask), lower


# --- sums ----------------------------------------------------------------------------------------


@primitive
def dot(typingctx: Any, left: Any, right: Any) -> Any:
    """The sum of `left * right` over their vectors: one number per lane."""

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        chains = [_constant(0.0), _constant(0.0)]  # two, so that additions overlap
        for n in range(left.count):
            x, y = (builder.extract_value(argument, n) for argument in arguments)
            product = builder.fmul(x, y, flags=("contract",))
            chains[n % 2] = builder.fadd(product, chains[n % 2], flags=("contract",))
        return builder.fadd(*chains)

    return Vector(left, right), lower


@primitive
def lane_sums(typingctx: Any, first: Any, second: Any) -> Any:
    """One vector of sums over lanes: lane n that of `first`'s vector n, lane 8 + n of `second`'s.

    Both have at most 8 vectors; the other lanes are zero. Each round adds the two halves of
    neighbouring lanes for two vectors at once and keeps the result of the first in one half, that
    of the second in the other, so that 16 vectors need 15 additions.
    """
    half = LANES // 2

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        columns = []
        for argument, numba_type in zip(arguments, signature.args, strict=True):
            columns += _unpack(context, builder, numba_type, argument, numba_type.count)
            columns += [_constant(0.0)] * (half - numba_type.count)
        bit = half
        while bit:
            columns = [
                _add_halves(builder, x, y, bit)
                for x, y in zip(columns[:bit], columns[bit:], strict=True)
            ]
            bit //= 2
        return columns[0]

    if max(first.count, second.count) > half:
        return None
    return Vector(first, second), lower


def _add_halves(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, bit: int) -> ir.Value:
    """Lane i is `x[i] + x[i ^ bit]` where i lacks the bit, else the same of `y`."""
    same = [i + LANES * bool(i & bit) for i in range(LANES)]
    other = [(i ^ bit) + LANES * bool(i & bit) for i in range(LANES)]
    return builder.fadd(
        builder.shuffle_vector(x, y, ir.Constant(_INT32S, same)),
        builder.shuffle_vector(x, y, ir.Constant(_INT32S, other)),
    )


# --- functions of each lane ----------------------------------------------------------------------


@primitive
def maximum(typingctx: Any, x: Any, y: Any) -> Any:
    """The larger of two; NaN where `x` is NaN."""

    def emit(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", x, y), y, x)

    result: Any = _result_type(x, y)
    return result(x, y), _lanewise(emit)


@primitive
def minimum(typingctx: Any, x: Any, y: Any) -> Any:
    """The smaller of two; NaN where `x` is NaN."""

    def emit(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        return builder.select(builder.fcmp_ordered(">", x, y), y, x)

    result: Any = _result_type(x, y)
    return result(x, y), _lanewise(emit)


@primitive
def absolute(typingctx: Any, x: Any) -> Any:
    """x without its sign."""

    def emit(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
        magnitude = ir.Constant(_INT32S, [0x7FFFFFFF] * LANES)
        return builder.bitcast(builder.and_(builder.bitcast(x, _INT32S), magnitude), _FLOATS)

    return x(x), _lanewise(emit)


@primitive
def _scale(typingctx: Any, x: Any, shifted: Any) -> Any:
    """x * 2**k for the integer k in the low bits of `shifted`; the result has to be normal."""

    def emit(builder: ir.IRBuilder, x: ir.Value, shifted: ir.Value) -> ir.Value:
        mantissa_bits = ir.Constant(_INT32S, [23] * LANES)
        exponent = builder.shl(builder.bitcast(shifted, _INT32S), mantissa_bits)
        return builder.bitcast(builder.add(builder.bitcast(x, _INT32S), exponent), _FLOATS)

    return x(x, shifted), _lanewise(emit)


# 1.5 * 2**23: a float of this size has no fraction, so adding it rounds to the nearest integer
# and leaves that integer in the low bits
_ROUND = 12582912.0
_LEAST_EXPONENT, _GREATEST_EXPONENT = -126.0, 126.0
LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first is short, so that its multiples by exponents are exact
_LN_2_HIGH, _LN_2_LOW = 0.693359375, -2.12194440054690583e-4


@inline
def _exp2_near_zero(x):
    """2**x for |x| <= 1/2: 1 + x p(x), p of degree 4 fitted to the least greatest relative error,
    which is 9e-8 before rounding."""
    p = 0.009671512991189957 + x * 0.001326472731307149
    p = 0.05550733581185341 + x * p
    p = 0.24022242426872253 + x * p
    p = 0.6931470036506653 + x * p
    return 1.0 + x * p


@inline
def _exp2_anywhere(x):
    """2**x for x < 127, to 2e-7 of its value; below -126 the least normal number, 1e-38."""
    x = maximum(x, _LEAST_EXPONENT)
    shifted = x + _ROUND
    return _scale(_exp2_near_zero(x - (shifted - _ROUND)), shifted)


def _avx512(name: str, *constants: int) -> Emit:
    """An instruction of AVX-512, without a mask, on operands of 16 floats."""

    def emit(builder: ir.IRBuilder, *operands: ir.Value) -> ir.Value:
        bits, no_mask = ir.IntType(16), 0xFFFF
        values = [
            *operands,
            *(ir.Constant(_INT32, constant) for constant in constants),
            _constant(0.0),
            ir.Constant(bits, no_mask),
            ir.Constant(_INT32, 4),  # the rounding that is set
        ]
        function_type = ir.FunctionType(_FLOATS, [value.type for value in values])
        function = cgutils.get_or_insert_function(
            builder.module, function_type, f"llvm.x86.avx512.mask.{name}.ps.512"
        )
        return builder.call(function, values)

    return emit


@primitive
def _fraction(typingctx: Any, x: Any) -> Any:
    """x less the integer below, with AVX-512 only."""
    downwards, quiet = 0b0001, 0b1000
    return x(x), _lanewise(_avx512("reduce", downwards | quiet))


@primitive
def _times_power(typingctx: Any, x: Any, exponent: Any) -> Any:
    """x * 2**k for the integer k below `exponent`, with AVX-512 only."""
    return x(x, exponent), _lanewise(_avx512("scalef"))


@inline
def _exp2_with_avx512(x):
    """2**x, to 2e-7 of its value; see `_exp2_anywhere`.

    2**f for the fraction f of x is 1 + f p(f), with p of degree 4 and p(1) = 1: exact for the
    slowest decays, whose errors add up over the most tokens. Fitted to the least greatest error
    relative to 1 - 2**x, which bounds that of a state after any number of equal steps, 6e-7.
    """
    f = _fraction(x)
    p = 0.00876878 + f * 0.00196827
    p = 0.05600953 + f * p
    p = 0.24009504 + f * p
    p = 0.69315838 + f * p
    return _times_power(1.0 + f * p, x)


exp2 = _exp2_with_avx512 if _has_avx512() else _exp2_anywhere


@primitive
def _rough_reciprocal(typingctx: Any, x: Any) -> Any:
    """1 / x to 2**-14 of its value, with AVX-512 only."""

    def emit(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
        mask = ir.Constant(ir.IntType(16), 0xFFFF)
        function_type = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, mask.type])
        function = cgutils.get_or_insert_function(
            builder.module, function_type, "llvm.x86.avx512.rcp14.ps.512"
        )
        return builder.call(function, [x, _constant(0.0), mask])

    return x(x), _lanewise(emit)


@inline
def _reciprocal_with_avx512(x):
    """1 / x to 2e-7 of its value, for 2**-125 < |x| < 2**126: a step of Newton's method."""
    y = _rough_reciprocal(x)
    return y + y * (1.0 - x * y)


@inline
def _reciprocal_anywhere(x):
    return 1.0 / x


reciprocal = _reciprocal_with_avx512 if _has_avx512() else _reciprocal_anywhere


@inline
def exp(x):
    """e**x for x < 88; accurate for large |x| too, where `exp2(x * LOG2_E)` is not."""
    x = maximum(x, _LEAST_EXPONENT / LOG2_E)
    shifted = x * LOG2_E + _ROUND
    exponent = shifted - _ROUND
    rest = (x - exponent * _LN_2_HIGH) - exponent * _LN_2_LOW
    return _scale(_exp2_near_zero(rest * LOG2_E), shifted)


@inline
def softplus(x):
    """log(1 + e**x), as max(x, 0) + log(1 + w) with w = e**-|x| and
    log(1 + w) = 2 artanh(s), s = w / (2 + w) <= 1/3: s times a polynomial in s**2, fitted to the
    least greatest relative error, 4e-9."""
    w = exp(absolute(x) * -1.0)
    s = w * reciprocal(w + 2.0)
    q = s * s
    p = 0.27960601449012756 + q * 0.2817833423614502
    p = 0.40024909377098083 + q * p
    p = 0.6666631698608398 + q * p
    return maximum(x, 0.0) + s * (2.0 + q * p)


@inline
def sigmoid(x):
    """1 / (1 + e**-x), which is also the slope of softplus."""
    return reciprocal(1.0 + exp2(minimum(x * -LOG2_E, _GREATEST_EXPONENT)))
