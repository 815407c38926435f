"""A small training engine: tensors, gradients and layers in PyTorch's names, with kernels for
the CPU in Numba and for the GPU in CuPy. The functions here are the methods of ``Tensor``."""

from typing import TYPE_CHECKING

from . import amp, autograd, cuda, dtypes, jit, nn, onnx, optim, utils
from .amp import autocast
from .autograd import (
    GradientError,
    InPlaceError,
    enable_grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from .deploy.export import export
from .deploy.graph import ProgramError
from .deploy.runtime import load_program
from .device import device, get_default_backend, set_default_device
from .dtypes import bool_ as bool
from .dtypes import float16, float32, float64, int8, int16, int32, int64, result_type, uint8
from .gradcheck import gradcheck
from .kernels import (
    BackendError,
    get_float32_matmul_precision,
    get_num_threads,
    set_float32_matmul_precision,
    set_num_threads,
)
from .program import CompileError, compile
from .random import (
    Generator,
    get_rng_state,
    manual_seed,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    set_rng_state,
)
from .tensor import (
    Tensor,
    arange,
    as_tensor,
    cat,
    empty,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    stack,
    tensor,
    where,
    zeros,
    zeros_like,
)
from .tensor import function as _function
from .weights import WeightsError, load, save

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .dtypes import bfloat16 as bfloat16
else:

    def __getattr__(name):
        if name != "bfloat16":  # a package of its own, imported when it is asked for
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return dtypes.bfloat16


__all__ = [
    "abs", "add", "all", "allclose", "amax", "amin", "amp", "any", "arange", "argmax", "argmin",
    "as_tensor", "autocast", "autograd", "BackendError", "bool", "broadcast_to", "cat", "clamp",
    "clone", "compile", "CompileError", "cuda", "device", "div", "dot", "double", "empty",
    "enable_grad", "eq", "equal", "exp", "export", "eye", "flatten", "float", "float16", "float32",
    "float64", "floor_divide", "from_dlpack", "from_numpy", "full", "full_like", "gather", "ge",
    "Generator", "get_default_backend", "get_float32_matmul_precision", "get_num_threads",
    "get_rng_state", "gradcheck", "GradientError", "gt", "half", "index_select", "InPlaceError",
    "int", "int16", "int32", "int64", "int8", "is_grad_enabled", "isfinite", "isnan", "jit", "le",
    "linspace", "load", "load_program", "log", "log_softmax", "long", "lt", "manual_seed", "matmul",
    "max", "maximum", "mean", "min", "minimum", "mm", "mul", "ne", "neg", "nn", "no_grad", "numel",
    "ones", "ones_like", "onnx", "optim", "permute", "pow", "ProgramError", "rand", "rand_like",
    "randint", "randn", "randn_like", "randperm", "relu", "remainder", "reshape", "result_type",
    "save", "set_default_device", "set_float32_matmul_precision", "set_grad_enabled",
    "set_num_threads", "set_rng_state", "sigmoid", "softmax", "sqrt", "square", "squeeze", "stack",
    "std", "sub", "sum", "t", "tanh", "Tensor", "tensor", "transpose", "uint8", "unsqueeze",
    "utils", "var", "WeightsError", "where", "zeros", "zeros_like",
]  # fmt: skip

half, float, double = float16, float32, float64
int, long = int32, int64

abs = _function(Tensor.abs)
add = _function(Tensor.add)
all = _function(Tensor.all)
allclose = _function(Tensor.allclose)
amax = _function(Tensor.amax)
amin = _function(Tensor.amin)
any = _function(Tensor.any)
argmax = _function(Tensor.argmax)
argmin = _function(Tensor.argmin)
broadcast_to = _function(Tensor.broadcast_to)
clamp = _function(Tensor.clamp)
clone = _function(Tensor.clone)
div = _function(Tensor.div)
dot = _function(Tensor.dot)
eq = _function(Tensor.eq)
equal = _function(Tensor.equal)
exp = _function(Tensor.exp)
flatten = _function(Tensor.flatten)
floor_divide = _function(Tensor.floor_divide)
gather = _function(Tensor.gather)
ge = _function(Tensor.ge)
gt = _function(Tensor.gt)
index_select = _function(Tensor.index_select)
isfinite = _function(Tensor.isfinite)
isnan = _function(Tensor.isnan)
le = _function(Tensor.le)
log = _function(Tensor.log)
log_softmax = _function(Tensor.log_softmax)
lt = _function(Tensor.lt)
matmul = _function(Tensor.matmul)
max = _function(Tensor.max)
maximum = _function(Tensor.maximum)
mean = _function(Tensor.mean)
min = _function(Tensor.min)
minimum = _function(Tensor.minimum)
mm = _function(Tensor.mm)
mul = _function(Tensor.mul)
ne = _function(Tensor.ne)
neg = _function(Tensor.neg)
numel = _function(Tensor.numel)
permute = _function(Tensor.permute)
pow = _function(Tensor.pow)
relu = _function(Tensor.relu)
remainder = _function(Tensor.remainder)
reshape = _function(Tensor.reshape)
sigmoid = _function(Tensor.sigmoid)
softmax = _function(Tensor.softmax)
sqrt = _function(Tensor.sqrt)
square = _function(Tensor.square)
squeeze = _function(Tensor.squeeze)
std = _function(Tensor.std)
sub = _function(Tensor.sub)
sum = _function(Tensor.sum)
t = _function(Tensor.t)
tanh = _function(Tensor.tanh)
transpose = _function(Tensor.transpose)
unsqueeze = _function(Tensor.unsqueeze)
var = _function(Tensor.var)
