r"""Optional: exact norms by a few lines of C, compiled on the spot, for CPU weights in float32 and float64.

torch needs a temporary of the kernel's size for |K|, which costs two to three times the reading of the kernel itself.
After :func:`build` the same sums are fused into one reading, with as many threads as torch uses, and calls on small
kernels lose little time in Python. The source below is all there is to it; the system's ``cc`` compiles it into a temporary
folder, for this process and this processor. Without a compiler everything works as before.
"""

import ctypes
import importlib.machinery
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, empty_like, get_num_threads, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

if TYPE_CHECKING:
    from opnorm.norms.exact.kernel_sums import Plan

__all__ = ["build", "built", "largest", "largest_of_all", "signs", "unload", "usable"]

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

/* weight (groups * rows, columns, taps); side 0 sums over rows, side 1 over columns; table (patterns, taps) or NULL */
typedef struct { int64_t side, groups, rows, columns, taps, patterns; const double *table; } plan;

#define MAKE(REAL, ABS, NAME)                                                                                          \
static REAL NAME##_fold(const plan *p, const REAL *S, int64_t *at) {                                                   \
    int64_t T = p->taps;                                                                                               \
    *at = 0;                                                                                                           \
    if (!p->table) { REAL s = 0; for (int64_t t = 0; t < T; t++) s += S[t]; return s; }                                \
    REAL best = -1;                                                                                                    \
    for (int64_t k = 0; k < p->patterns; k++) {                                                                        \
        REAL s = 0;                                                                                                    \
        for (int64_t t = 0; t < T; t++) s += (REAL)p->table[k * T + t] * S[t];                                         \
        if (s > best || (s != s && best == best)) { best = s; *at = k; }                                               \
    }                                                                                                                  \
    return best;                                                                                                       \
}                                                                                                                      \
static inline void NAME##_add(REAL *restrict a, const REAL *restrict x, int64_t n) {                                   \
    for (int64_t i = 0; i < n; i++) a[i] += ABS(x[i]);                                                                 \
}                                                                                                                      \
static inline void NAME##_add4(REAL *restrict a, const REAL *restrict x, int64_t step, int64_t n) {                    \
    const REAL *restrict y = x + step, *restrict z = y + step, *restrict w = z + step;                                 \
    for (int64_t i = 0; i < n; i++) a[i] += (ABS(x[i]) + ABS(y[i])) + (ABS(z[i]) + ABS(w[i]));                         \
}                                                                                                                      \
static REAL NAME##_sum(const REAL *restrict x, int64_t n) {                                                            \
    REAL a[64] = {0}, s = 0;                                                                                           \
    int64_t i = 0;                                                                                                     \
    for (; i + 64 <= n; i += 64) for (int j = 0; j < 64; j++) a[j] += ABS(x[i + j]);                                   \
    for (; i < n; i++) s += ABS(x[i]);                                                                                 \
    for (int j = 0; j < 64; j++) s += a[j];                                                                            \
    return s;                                                                                                          \
}                                                                                                                      \
/* the jobs from first to last: the largest sum and its index, of equal ones the first */                              \
static void NAME##_part(const REAL *K, const plan *p, int64_t block, int64_t first, int64_t last, REAL *best,          \
                        int64_t *best_at) {                                                                            \
    int64_t T = p->taps, wide = p->columns * T, lanes = 1 + 255 / T, per_group = (p->columns + block - 1) / block;     \
    REAL mine = -1, room[2048], *S = room;                                                                             \
    int64_t mine_at = 0, need = p->side ? lanes * T : block * T;                                                       \
    if (need > 2048) S = malloc(sizeof(REAL) * (size_t)need);                                                          \
    for (int64_t job = first; job < last; job++) {                                                                     \
        if (p->side) {                                                                                                 \
            const REAL *x = K + job * wide;                                                                            \
            int64_t at = 0;                                                                                            \
            REAL s;                                                                                                    \
            if (!p->table) s = NAME##_sum(x, wide);                                                                    \
            else {                                                                                                     \
                int64_t n = lanes * T, i = 0;                                                                          \
                if (n > wide) n = wide;                                                                                \
                memset(S, 0, sizeof(REAL) * (size_t)n);                                                                \
                for (; i + n <= wide; i += n) NAME##_add(S, x + i, n);                                                 \
                NAME##_add(S, x + i, wide - i);                                                                        \
                for (int64_t l = T; l < n; l += T) for (int64_t t = 0; t < T; t++) S[t] += S[l + t];                   \
                s = NAME##_fold(p, S, &at);                                                                            \
            }                                                                                                          \
            if (s > mine || (s != s && mine == mine)) { mine = s; mine_at = job * p->patterns + at; }                  \
        } else {                                                                                                       \
            int64_t g = job / per_group, from = (job % per_group) * block;                                             \
            int64_t count = p->columns - from < block ? p->columns - from : block, n = count * T, i = 0;               \
            const REAL *x = K + g * p->rows * wide + from * T;                                                         \
            memset(S, 0, sizeof(REAL) * (size_t)n);                                                                    \
            for (; i + 4 <= p->rows; i += 4) NAME##_add4(S, x + i * wide, wide, n);                                    \
            for (; i < p->rows; i++) NAME##_add(S, x + i * wide, n);                                                   \
            for (int64_t j = 0; j < count; j++) {                                                                      \
                int64_t at;                                                                                            \
                REAL s = NAME##_fold(p, S + j * T, &at);                                                               \
                if (s > mine || (s != s && mine == mine)) {                                                            \
                    mine = s;                                                                                          \
                    mine_at = (g * p->columns + from + j) * p->patterns + at;                                          \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    if (S != room) free(S);                                                                                            \
    *best = mine;                                                                                                      \
    *best_at = mine_at;                                                                                                \
}                                                                                                                      \
int64_t NAME(const REAL *K, const plan *p, int64_t threads, REAL *value) {                                             \
    int64_t wide = p->columns * p->taps, block = 1 + 8191 / p->taps, per_group = (p->columns + block - 1) / block;     \
    if (threads > 1 && p->groups * p->rows * wide < 32768) threads = 1;                                                \
    if (p->groups % threads) per_group = (per_group + threads - 1) / threads * threads; /* as much for each */         \
    block = (p->columns + per_group - 1) / per_group;                                                                  \
    per_group = (p->columns + block - 1) / block;                                                                      \
    int64_t jobs = p->side ? p->groups * p->rows : p->groups * per_group, best_at = 0;                                 \
    if (threads == 1) { /* no parallel region: entering one takes as long as a small kernel */                         \
        NAME##_part(K, p, block, 0, jobs, value, &best_at);                                                            \
        return best_at;                                                                                                \
    }                                                                                                                  \
    REAL best = -1;                                                                                                    \
    _Pragma("omp parallel for num_threads(threads) schedule(static, 1)")                                               \
    for (int64_t i = 0; i < threads; i++) {                                                                            \
        REAL mine;                                                                                                     \
        int64_t mine_at;                                                                                               \
        NAME##_part(K, p, block, jobs * i / threads, jobs * (i + 1) / threads, &mine, &mine_at);                       \
        _Pragma("omp critical")                                                                                        \
        if (mine > best || (mine != mine && best == best) || (mine == best && mine_at < best_at)) {                    \
            best = mine;                                                                                               \
            best_at = mine_at;                                                                                         \
        }                                                                                                              \
    }                                                                                                                  \
    *value = best;                                                                                                     \
    return best_at;                                                                                                    \
}                                                                                                                      \
void NAME##_all(int64_t n, const REAL **K, const plan **p, int64_t threads, REAL *values, int64_t *at) {               \
    for (int64_t i = 0; i < n; i++) at[i] = NAME(K[i], p[i], threads, values + i);                                     \
}                                                                                                                      \
void NAME##_signs(const REAL *K, const plan *p, int64_t index, REAL grad, REAL *out) {                                 \
    int64_t T = p->taps, channel = index / p->patterns, k = index % p->patterns;                                       \
    int64_t n = p->side ? p->columns : p->rows, step = p->side ? T : p->columns * T;                                   \
    int64_t from = p->side ? channel * p->columns * T                                                                  \
                           : (channel / p->columns * p->rows * p->columns + channel % p->columns) * T;                 \
    for (int64_t i = 0; i < n; i++)                                                                                    \
        for (int64_t t = 0; t < T; t++) {                                                                              \
            REAL x = K[from + i * step + t];                                                                           \
            out[from + i * step + t] =                                                                                 \
                (p->table ? (REAL)p->table[k * T + t] : 1) * grad * ((x > 0) - (x < 0));                               \
        }                                                                                                              \
}

MAKE(float, fabsf, largest_f32)
MAKE(double, fabs, largest_f64)

#ifdef PYTHON /* for Python to call directly: ctypes takes as long for its arguments as a small kernel for its sums */
#include <Python.h>

#define CALL(REAL, NAME)                                                                                               \
static PyObject *call_##NAME(PyObject *self, PyObject *const *args, Py_ssize_t n) {                                    \
    (void)self;                                                                                                        \
    if (n != 4) return PyErr_Format(PyExc_TypeError, "expected weight, plan, threads and value, got %zd arguments", n);\
    const REAL *K = PyLong_AsVoidPtr(args[0]);                                                                         \
    const plan *p = PyLong_AsVoidPtr(args[1]);                                                                         \
    int64_t threads = PyLong_AsLongLong(args[2]), at;                                                                  \
    REAL *value = PyLong_AsVoidPtr(args[3]);                                                                           \
    if (PyErr_Occurred()) return NULL;                                                                                 \
    Py_BEGIN_ALLOW_THREADS                                                                                             \
    at = NAME(K, p, threads, value);                                                                                   \
    Py_END_ALLOW_THREADS                                                                                               \
    return PyLong_FromLongLong(at);                                                                                    \
}

CALL(float, largest_f32)
CALL(double, largest_f64)

static PyMethodDef methods[] = {
    {"largest_f32", (PyCFunction)(void (*)(void))call_largest_f32, METH_FASTCALL, NULL},
    {"largest_f64", (PyCFunction)(void (*)(void))call_largest_f64, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "opnorm_native", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit_opnorm_native(void) { return PyModule_Create(&module); }
#endif
"""

FLAGS = (
    "-O3",
    "-march=native",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
)
_PLAIN = (Tensor, nn.Parameter)
_SCALARS = {  # quicker to copy than to make
    dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)
}


class _CPlan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("side", "groups", "rows", "columns", "taps", "patterns")),
        ("table", ctypes.c_void_p),
    )


_library: Any = None
# what has largest_f32 and largest_f64 at the least cost: the library as a module, or the library itself
_callable: Any = None


def built() -> bool:
    """Whether the native code is in use."""
    return _library is not None


def build(compiler: str | None = None) -> bool:
    """Compile the native code and use it from now on in this process; about half a second.

    Args:
        compiler: a C compiler that knows OpenMP; by default ``$CC`` or the first of cc, gcc and clang that is there.

    Returns:
        Whether it worked; where it did not, norms are computed by torch as before, with the same results up to rounding.
    """
    global _library, _callable
    if _library is not None:
        return True
    names = [compiler] if compiler else [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        return False
    with tempfile.TemporaryDirectory(prefix="opnorm-") as folder:
        source, target = os.path.join(folder, "norms.c"), os.path.join(folder, "norms.so")
        with open(source, "w", encoding="utf-8") as f:
            f.write(SOURCE)
        # without OpenMP the pragmas are comments, and one thread does the work; without Python's headers ctypes calls it
        for python, openmp in itertools.product((_python_flags(), ()), (("-fopenmp",), ())):
            command = [found, *FLAGS, *openmp, *python, "-shared", "-fPIC", "-o", target, source, "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                library = _declared(ctypes.CDLL(target))
                _callable = _as_module(target) if python else library
            except (OSError, ImportError, subprocess.SubprocessError):
                continue
            _library = library
            return True
    return False


def _python_flags() -> tuple[str, ...]:
    late = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    return "-DPYTHON", f"-I{sysconfig.get_path('include')}", *late


def _as_module(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("opnorm_native", path)
    spec = importlib.util.spec_from_file_location("opnorm_native", path, loader=loader)
    assert spec is not None  # there is a loader
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def unload() -> None:
    """Go back to torch."""
    global _library, _callable
    _library = _callable = None


def _declared(library: Any) -> Any:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, real in (("largest_f32", ctypes.c_float), ("largest_f64", ctypes.c_double)):
        one, many, signs = (getattr(library, name + end) for end in ("", "_all", "_signs"))
        one.argtypes, one.restype = (pointer, pointer, number, pointer), number
        many.argtypes, many.restype = (number, pointer, pointer, number, pointer, pointer), None
        signs.argtypes, signs.restype = (pointer, pointer, number, real, pointer), None
    return library


def usable(weight: Tensor, plan: "Plan") -> bool:
    """Whether the native code is built and knows this weight: float32 or float64, contiguous, on the CPU, not empty."""
    return (
        _library is not None
        and plan.fusable
        and type(weight) in _PLAIN
        and weight.dtype in _SCALARS
        and weight.is_cpu
        and weight.is_contiguous()
        and peek_interpreter_stack() is None  # torch.func wraps tensors in ones that have no address
        and forward_ad._current_level < 0
        and not is_compiling()
    )


def _c_plan(plan: "Plan") -> int:
    """The address of the plan as C reads it; both live as long as the plan."""
    if plan.address is None:
        table = None
        if not plan.whole:
            full = plan.table(torch.empty(0, dtype=torch.float64))
            assert full is not None, "usable() keeps large tables away"
            table = full.T.contiguous()
        struct = _CPlan(
            plan.side,
            plan.groups,
            plan.shape[0] // plan.groups,
            plan.shape[1],
            plan.taps,
            plan.patterns,
            table.data_ptr() if table is not None else None,
        )
        plan.keep("native", lambda: (struct, table))
        plan.address = ctypes.addressof(struct)
    return plan.address


def _function(dtype: torch.dtype, end: str = "") -> Any:
    return getattr(_library, ("largest_f32" if dtype == torch.float32 else "largest_f64") + end)


def largest(weight: Tensor, plan: "Plan") -> tuple[Tensor, int]:
    """The largest sum and its index; see :func:`opnorm.norms.exact.kernel_sums.largest`."""
    value = empty_like(_SCALARS[weight.dtype])
    call = _callable.largest_f32 if weight.dtype is torch.float32 else _callable.largest_f64
    return value, call(weight.data_ptr(), plan.address or _c_plan(plan), get_num_threads(), value.data_ptr())


def largest_of_all(weights: Sequence[Tensor], plans: Sequence["Plan"]) -> tuple[Tensor, list[int]]:
    """The same for many weights of one dtype, in one call."""
    count = len(weights)
    values = torch.empty(count, dtype=weights[0].dtype)
    pointers = (ctypes.c_void_p * count)(*[w.data_ptr() for w in weights])
    addresses = (ctypes.c_void_p * count)(*[_c_plan(p) for p in plans])
    at = (ctypes.c_int64 * count)()
    _function(weights[0].dtype, "_all")(count, pointers, addresses, get_num_threads(), values.data_ptr(), at)
    return values, list(at)


def signs(weight: Tensor, plan: "Plan", index: int, grad: float) -> Tensor:
    """``grad`` times the gradient of entry ``index``: zero but for one channel and one pattern."""
    out = torch.zeros_like(weight)
    _function(weight.dtype, "_signs")(weight.data_ptr(), _c_plan(plan), index, grad, out.data_ptr())
    return out
