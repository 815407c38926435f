"""The differentiable operations: one class per op, its gradient below its forward.

``elementwise``, ``reductions``, ``movement``, ``linalg``, ``normalization`` and ``losses`` mirror
the families of kernels. ``k`` is the backend whose kernels are used, ``g`` the gradient that comes
in.
"""
