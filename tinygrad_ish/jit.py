"""PyTorch's names for programs: ``tg.jit.trace(model, x).save(path)``, ``tg.jit.load(path)(x)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .deploy.export import export
from .deploy.graph import ProgramError
from .deploy.runtime import ExportedProgram, load_program
from .tensor import Tensor
from .weights import StrPath

__all__ = ["LoadedModule", "ScriptModule", "load", "save", "script", "trace"]


class ScriptModule:
    """A model with an example of its inputs: what ``save`` needs. Call it like the model."""

    def __init__(self, model: Callable[..., Any], example: tuple[Any, ...] | None) -> None:
        self.model = model
        self.example = example

    def __call__(self, *inputs: Any) -> Any:
        """The model's answer; the inputs are the example, if there was none."""
        self.example = self.example or inputs
        return self.model(*inputs)

    def save(self, path: StrPath, **settings: Any) -> None:
        """``tg.export`` the model; ``settings`` are its keywords (labels, metadata, …)."""
        if self.example is None:
            raise ProgramError(
                "jit: a program is recorded from an example of the inputs: call the scripted model "
                "once before save(), or use tg.jit.trace(model, example_inputs)"
            )
        export(self.model, self.example, path, **settings)


def trace(model: Callable[..., Any], example_inputs: Any) -> ScriptModule:
    """A model to be recorded with these inputs: a tensor, or a tuple of them, batch first."""
    example = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return ScriptModule(model, example)


def script(model: Callable[..., Any]) -> ScriptModule:
    """A model to be recorded with the inputs of its first call."""
    return ScriptModule(model, None)


def save(module: ScriptModule, path: StrPath) -> None:
    """``module.save(path)``."""
    module.save(path)


class LoadedModule:
    """A program that takes and gives tensors; ``program`` is the program itself."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program

    def __call__(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        """The output, or a tuple of them, as tensors on the program's device."""
        backend = self.program.backend
        results = self.program(*inputs)
        if isinstance(results, tuple):
            return tuple(Tensor(backend.asarray(r), backend) for r in results)
        return Tensor(backend.asarray(results), backend)

    def eval(self) -> LoadedModule:
        """Itself: a program is recorded in evaluation."""
        return self


def load(path: StrPath, map_location: Any = None) -> LoadedModule:
    """The program in a file, as a function of tensors on ``map_location`` (the default device).

    Raises what ``load_program`` raises.
    """
    return LoadedModule(load_program(path, map_location))
