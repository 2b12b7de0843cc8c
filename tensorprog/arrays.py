"""Numbers as users hand them over (lists, arrays of any kind, tables), made arrays that JAX holds as they were meant.

JAX wraps integers beyond its own without a word, and takes neither foreign byte orders nor objects; so what comes from
outside is looked at and cast by NumPy first.
"""

from __future__ import annotations

import decimal
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class NoNumbers(Exception):
    """What was given holds something else than real numbers: `why`, and the `remedy`."""

    def __init__(self, why: str, remedy: str):
        super().__init__(f"{why}; {remedy}")
        self.why, self.remedy = why, remedy


def real_array(value: Any) -> jax.Array | np.ndarray:
    """Real numbers: an array of JAX as it is, all else one of NumPy, of a floating, integer or boolean dtype of JAX's.

    Integers keep their own 64 bits here, whether JAX's have 32 or not: `floating` and `fits` are for what follows.

    **Raises:** `NoNumbers` for missing values, text, dates, complex numbers, sparse matrices and other objects.
    """
    array = value if isinstance(value, jax.Array) else _numpy(value)
    kind = array.dtype
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise NoNumbers("holds complex numbers", "give real numbers")
    letter = getattr(kind, "kind", "")  # JAX's random keys have none
    if letter == "O":
        return _of_objects(np.asarray(array))
    if letter in ("m", "M"):
        raise NoNumbers(
            f"holds {kind}, dates or times", "give numbers: (t - t[0]) / np.timedelta64(1, 's') are seconds since t[0]"
        )
    if letter in ("U", "S", "T"):
        raise NoNumbers("holds text, not numbers", "convert it to numbers first, x.astype(float)")
    if not any(jnp.issubdtype(kind, known) for known in (jnp.floating, jnp.integer, np.bool_)):
        raise NoNumbers(f"holds {kind}, not numbers", "convert it to floating point numbers first")
    if isinstance(array, jax.Array):
        return jnp.asarray(np.asarray(array)) if is_split(array) and is_concrete(array) else array
    if kind.type is np.longdouble:
        return _fit(array, np.dtype(np.float64))
    return array if kind.isnative else array.astype(kind.newbyteorder("="))


def floating(array: jax.Array | np.ndarray, dtype: Any) -> jax.Array:
    """The array in a floating dtype of JAX's.

    **Raises:** `NoNumbers` for concrete entries that are NaN or infinite, or become so.
    """
    if isinstance(array, jax.Array) and not is_concrete(array):
        return array.astype(dtype)
    given = np.asarray(array)
    bad = ~np.isfinite(given) if jnp.issubdtype(given.dtype, jnp.floating) else np.zeros(given.shape, bool)
    if bad.any():
        raise NoNumbers(f"NaN or infinite at {_first(bad)}", "remove or impute them first")
    if isinstance(array, jax.Array) and array.dtype == dtype:
        return array  # where it lives
    cast = _fit(given, np.dtype(dtype))
    # A copy, of what is the user's to change; `jnp.asarray` compiles a program for each shape.
    return array.astype(dtype) if isinstance(array, jax.Array) else jax.device_put(cast, may_alias=False)


def fits(array: jax.Array | np.ndarray) -> bool:
    """Whether JAX holds these integers as they are: without `jax_enable_x64` its own have 32 bits."""
    own = jnp.result_type(array)
    if isinstance(array, jax.Array) or array.dtype == own or not jnp.issubdtype(own, jnp.integer) or not array.size:
        return True
    limits = jnp.iinfo(own)
    return limits.min <= int(array.min()) and int(array.max()) <= limits.max


def is_concrete(value: Any) -> bool:
    """Whether a number or an array has values now, outside any JAX transformation."""
    if not isinstance(value, jax.Array):
        return True
    try:
        value.devices()
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def is_split(array: jax.Array) -> bool:
    """Whether an array lies split over a mesh with Explicit axes: operations must then say how their results lie."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    explicit = jax.sharding.AxisType.Explicit in getattr(getattr(sharding, "mesh", None), "axis_types", ())
    return explicit and any(part is not None for part in getattr(sharding, "spec", ()))


def _numpy(value: Any) -> Any:
    """What NumPy makes of a value; of lists with traced entries what JAX makes of them."""
    if hasattr(value, "toarray"):
        raise NoNumbers(f"is sparse ({type(value).__name__})", "give x.toarray()")
    masked = _masked(value)
    if masked is not None:
        raise NoNumbers(
            f"has masked entries, the first at {_first(np.ma.getmaskarray(masked))}",
            "fill or leave them out: x.filled(0.0), say",
        )
    try:
        return np.asarray(value)
    except jax.errors.JAXTypeError:
        return jnp.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise NoNumbers(f"not an array ({told})", "give numbers of one shape for each example") from None


def _masked(value: Any) -> np.ma.MaskedArray | None:
    """A masked array with masked entries that a value is or holds: NumPy would take what is behind the mask."""
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := _masked(item)) is not None), None)
    return value if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any() else None


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Python's own numbers, those of tables with missing values and integers beyond 64 bits among them, in float64."""
    found = np.empty(array.shape, np.float64)
    for place, item in np.ndenumerate(array):
        where = f" at [{', '.join(map(str, place))}]" if place else ""
        if isinstance(item, str | bytes):
            raise NoNumbers(f"holds text{where}, not numbers", "convert it to numbers first, x.astype(float)")
        if item is None or type(item).__name__ in ("NAType", "NaTType"):
            raise NoNumbers(f"holds {item}{where}: a value is missing", "remove or impute such examples first")
        if isinstance(item, complex | np.complexfloating):
            raise NoNumbers("holds complex numbers", "give real numbers")
        real = isinstance(item, numbers.Real | decimal.Decimal | np.bool_) and not isinstance(item, np.timedelta64)
        if not real:
            raise NoNumbers(
                f"holds an object of type {type(item).__name__}{where}, not numbers",
                "convert it to floating point numbers first",
            )
        try:
            found[place] = float(item)
        except OverflowError:
            raise NoNumbers(f"holds a number beyond float64{where}", "scale the numbers down first") from None
    return found


def _fit(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in another floating dtype, none of its numbers beyond that, and not all lost in its 0."""
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(cast) if array.dtype.kind == "f" else ~np.isfinite(cast)
    single = dtype == np.float32 and jnp.result_type(float) == np.float32
    wider = 'switch to double precision: jax.config.update("jax_enable_x64", True)' if single else "give float64"
    wider = "" if dtype == np.float64 else f", or {wider}"
    if lost.any():
        raise NoNumbers(f"holds numbers beyond {dtype}, at {_first(lost)}", f"scale them down{wider}")
    if array.any() and not cast.any():
        raise NoNumbers(f"holds numbers that are all 0 in {dtype}", f"scale them up{wider}")
    return cast


def _first(bad: np.ndarray) -> str:
    """Where the first is, and how many there are."""
    where = ", ".join(map(str, np.argwhere(bad)[0].tolist()))
    return f"[{where}] ({int(bad.sum())} such values)"
