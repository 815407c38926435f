"""A small training engine: tensors, gradients and layers in PyTorch's names, with kernels for
the CPU in Numba and for the GPU in CuPy. The functions here are the methods of ``Tensor``."""

from . import cuda, nn, optim, utils
from .autograd import (
    GradientError,
    InPlaceError,
    enable_grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from .device import device, get_default_backend, set_default_device
from .dtypes import bool_ as bool
from .dtypes import float16, float32, float64, int8, int16, int32, int64, result_type, uint8
from .gradcheck import gradcheck
from .kernels import BackendError
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
from .weights import WeightsError, load, save

__version__ = "0.1.0"

half, float, double = float16, float32, float64
int, long = int32, int64

abs = Tensor.abs
add = Tensor.add
all = Tensor.all
amax = Tensor.amax
amin = Tensor.amin
any = Tensor.any
argmax = Tensor.argmax
argmin = Tensor.argmin
broadcast_to = Tensor.broadcast_to
clamp = Tensor.clamp
clone = Tensor.clone
div = Tensor.div
dot = Tensor.dot
eq = Tensor.eq
exp = Tensor.exp
flatten = Tensor.flatten
floor_divide = Tensor.floor_divide
gather = Tensor.gather
ge = Tensor.ge
gt = Tensor.gt
index_select = Tensor.index_select
isfinite = Tensor.isfinite
isnan = Tensor.isnan
le = Tensor.le
log = Tensor.log
log_softmax = Tensor.log_softmax
lt = Tensor.lt
matmul = Tensor.matmul
max = Tensor.max
maximum = Tensor.maximum
mean = Tensor.mean
min = Tensor.min
minimum = Tensor.minimum
mm = Tensor.mm
mul = Tensor.mul
ne = Tensor.ne
neg = Tensor.neg
numel = Tensor.numel
permute = Tensor.permute
pow = Tensor.pow
relu = Tensor.relu
remainder = Tensor.remainder
reshape = Tensor.reshape
sigmoid = Tensor.sigmoid
softmax = Tensor.softmax
sqrt = Tensor.sqrt
square = Tensor.square
squeeze = Tensor.squeeze
std = Tensor.std
sub = Tensor.sub
sum = Tensor.sum
t = Tensor.t
tanh = Tensor.tanh
transpose = Tensor.transpose
unsqueeze = Tensor.unsqueeze
var = Tensor.var
