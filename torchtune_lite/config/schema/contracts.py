"""A recipe's use of a component's result, checked as far as possible before the first call.

A contract is a class: its methods take what the recipe will pass, in its order, and the recipe reads its annotated
attributes. A static method `problem(built)` may say in words what else is wrong with a built object. The annotation
`Callable[[A, B], C]` of an argument is a contract, too.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args, get_origin

NOT_TOLD = (object, type(None))  # what a builder returns, as far as its annotation says


def calls(contract: Any) -> dict[str, Sequence[str]]:
    """Return the names of what is passed to each method of a contract."""
    if get_origin(contract) is Callable:
        arguments = get_args(contract)[0]
        return {} if arguments is ... else {"__call__": [_name(each) for each in arguments]}
    methods = {name: each for name, each in inspect.getmembers(contract, inspect.isfunction) if _is_public(name)}
    return {name: list(inspect.signature(each).parameters)[1:] for name, each in methods.items() if name != "problem"}


def misfit(target: Any, contract: Any) -> str:
    """Return why what `target` builds cannot be used as the contract says, by its class; "" where that does not tell.

    `target` is a class or a builder.
    """
    kind = _product(target)
    return _call_misfit(kind, contract, is_class=True) if kind is not None else ""


def built_misfit(built: Any, contract: Any) -> str:
    """Return why an object cannot be used as the contract says, or ""."""
    if problem := _call_misfit(built, contract, is_class=False):
        return problem
    attributes = {name for each in getattr(contract, "__mro__", ()) for name in inspect.get_annotations(each)}
    if missing := sorted(name for name in attributes if not hasattr(built, name)):
        return f"has no attribute {' or '.join(map(repr, missing))}, which the recipe reads"
    return contract.problem(built) if hasattr(contract, "problem") else ""


def function_misfit(function: Any, contract: Any) -> str:
    """Return why a function, or the object of a class that is made without arguments, cannot be called so, or ""."""
    return misfit(function, contract) if inspect.isclass(function) else built_misfit(function, contract)


def _name(annotation: Any) -> str:
    """Return what to call an argument of which only the annotation is known."""
    return getattr(get_origin(annotation) or annotation, "__name__", "argument").lower()


def _is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")


def _product(target: Any) -> type | None:
    """Return the class of what a call of `target` gives, where it is a class or says so."""
    if isinstance(target, partial):
        return _product(target.func)
    if inspect.isclass(target):
        return target
    try:
        returned = inspect.signature(target, eval_str=True).return_annotation
    except (NameError, TypeError, ValueError):
        return None
    told = inspect.isclass(returned) and returned not in NOT_TOLD and returned.__module__ not in ("typing", "inspect")
    return returned if told else None


def _call_misfit(found: Any, contract: Any, is_class: bool) -> str:
    for name, given in calls(contract).items():
        if inspect.isroutine(found) and name == "__call__":
            shown, method = found.__name__, found
        else:
            shown = "forward" if name == "__call__" and hasattr(found, "forward") else name  # of a torch module
            method = getattr(found, shown, None)
        call = f"{shown}({', '.join(given)})"
        if not callable(method) or (name == "__call__" and not (_defines_call(found) if is_class else callable(found))):
            return f"has no {call}, which the recipe calls"
        bound = not is_class or not inspect.isfunction(inspect.getattr_static(found, shown))
        taken = _parameters(method, bound)
        if taken is not None and not _take(taken, given):
            return f"has {shown}({', '.join(map(_written, taken.values()))}), and the recipe calls {call}"
    return ""


def _defines_call(kind: type) -> bool:
    return any("__call__" in vars(each) for each in kind.__mro__)


def _parameters(method: Any, bound: bool) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a method without the object itself; None for a builtin that does not tell them."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return None
    return {each.name: each for each in (parameters if bound else parameters[1:])}


def _take(parameters: Mapping[str, inspect.Parameter], given: Sequence[str]) -> bool:
    """Return whether a call with these arguments fits, none of them in the place of another."""
    try:
        bound = inspect.Signature(list(parameters.values())).bind(*given)
    except TypeError:
        return False
    return all(name not in given or value == name for name, value in bound.arguments.items())


def _written(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    return f"{stars}{parameter.name}" + ("" if parameter.default is parameter.empty else "=…")
