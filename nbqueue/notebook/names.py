"""Which names a cell uses, and which it binds: pure functions on its syntax.

A name that is bound before it is used, on every way to the use, need not come from the notebook: what it is there may
be large, or nothing that can be sent. In doubt it counts as used.
"""

from __future__ import annotations

import ast
import dis
import types
from typing import NamedTuple

__all__ = ["Names", "awaits", "names_of"]

Known = frozenset[str]


class Names(NamedTuple):
    """Names that a cell uses, and those that it binds, deletes, or changes a part of (``a[0] = …``, ``a.b = …``)."""

    used: frozenset[str]
    bound: frozenset[str]


def names_of(cell: ast.Module) -> Names:
    """Raises SyntaxError where the cell cannot be compiled.

    >>> names_of(ast.parse("total = sum(x * scale for x in data)"))
    Names(used=frozenset({'data', 'scale', 'sum'}), bound=frozenset({'total'}))
    """
    walk = _Walk()
    walk.block(cell.body, frozenset())
    # `def` and class bodies, lambdas and comprehensions were seen with the statements around them.
    return Names(frozenset(walk.used), frozenset(walk.bound))


def awaits(cell: ast.Module) -> ast.AST | None:
    """The first thing in a cell, outside of its functions, that needs a running event loop."""
    for node in cell.body:
        if (found := _awaits(node)) is not None:
            return found
    return None


def _awaits(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
        return None
    if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
        return node
    if isinstance(node, ast.comprehension) and node.is_async:
        return node.target
    return next((found for child in ast.iter_child_nodes(node) if (found := _awaits(child)) is not None), None)


class _Walk:
    """Follows the statements of a cell. `known`: names that were bound on the way here, for certain."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.bound: set[str] = set()

    def block(self, statements: list[ast.stmt], known: Known) -> Known:
        for statement in statements:
            known = self.statement(statement, known)
        return known

    def statement(self, node: ast.stmt, known: Known) -> Known:
        match node:
            case ast.If():
                known = self.expression(node.test, known)
                return self.block(node.body, known) & self.block(node.orelse, known)
            case ast.While():
                known = self.expression(node.test, known)
                self.block(node.body, known)
                self.block(node.orelse, known)
                return known
            case ast.For():
                known = self.expression(node.iter, known)
                self.block(node.body, self.target(node.target, known))
                self.block(node.orelse, known)
                return known
            case ast.With():
                for item in node.items:
                    known = self.expression(item.context_expr, known)
                    if item.optional_vars is not None:
                        known = self.target(item.optional_vars, known)
                return self.block(node.body, known)
            case ast.Try() | ast.TryStar():
                return self._try(node, known)
            case ast.Match():
                return self._match(node, known)
            case ast.Assign():
                known = self.expression(node.value, known)
                for target in node.targets:
                    known = self.target(target, known)
                return known
            case ast.AnnAssign():
                self.expression(node.annotation, known)
                if node.value is None:
                    return known
                return self.target(node.target, self.expression(node.value, known))
            case ast.AugAssign():
                known = self.expression(node.value, known)
                if isinstance(node.target, ast.Name):
                    self.used |= {node.target.id} - known
                return self.target(node.target, known)
            case ast.Delete():
                for target in node.targets:
                    gone = {target.id} if isinstance(target, ast.Name) else frozenset[str]()
                    self.used |= gone - known
                    known = self.target(target, known) - gone
                return known
            case ast.Expr():
                return self.expression(node.value, known)
            case ast.Break() | ast.Continue() | ast.Pass() | ast.Global():
                return known
            case _:
                # What is left binds its names at its end: def, class, import, type; or none.
                return known | self._note(ast.Module([node], []), known)

    def _try(self, node: ast.Try | ast.TryStar, known: Known) -> Known:
        ends = [self.block(node.orelse, self.block(node.body, known))]
        for handler in node.handlers:
            inner = known if handler.type is None else self.expression(handler.type, known)
            name = frozenset({handler.name} if handler.name else ())
            # It is deleted at the handler's end, so that it is nothing to bring back.
            ends.append(self.block(handler.body, inner | name) - name)
        return frozenset.intersection(*ends) | self.block(node.finalbody, known)

    def _match(self, node: ast.Match, known: Known) -> Known:
        known = self.expression(node.subject, known)
        for case in node.cases:
            names = set()
            for part in ast.walk(case.pattern):
                if isinstance(part, ast.MatchAs | ast.MatchStar) and part.name:
                    names.add(part.name)
                elif isinstance(part, ast.MatchMapping) and part.rest:
                    names.add(part.rest)
                elif isinstance(part, ast.expr):
                    self.expression(part, known)
            self.bound |= names
            inner = known | names
            if case.guard is not None:
                inner = self.expression(case.guard, inner)
            self.block(case.body, inner)
        return known

    def target(self, node: ast.expr, known: Known) -> Known:
        match node:
            case ast.Name():
                self.bound.add(node.id)
                return known | {node.id}
            case ast.Tuple() | ast.List():
                for part in node.elts:
                    known = self.target(part, known)
                return known
            case ast.Starred():
                return self.target(node.value, known)
            case ast.Subscript():
                self.expression(node.slice, known)
                self.expression(node.value, known)
                self._changes(node.value)
            case ast.Attribute():
                self.expression(node.value, known)
                self._changes(node.value)
        return known

    def _changes(self, node: ast.expr) -> None:
        """`node` is changed in a part: the name that it begins with shall come back."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        if isinstance(node, ast.Name):
            self.bound.add(node.id)

    def expression(self, node: ast.expr, known: Known) -> Known:
        self._note(ast.Expression(node), known)
        return known | _surely_bound(node)

    def _note(self, tree: ast.Module | ast.Expression, known: Known) -> Known:
        """Take down the names in a piece of code; those that it binds are returned."""
        mode = "exec" if isinstance(tree, ast.Module) else "eval"
        code = compile(tree, "<cell>", mode, dont_inherit=True)
        loads, stores = _names_in(code, outside=True)
        self.used |= loads - known
        self.bound |= stores
        return frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_NAME")


def _names_in(code: types.CodeType, *, outside: bool) -> tuple[set[str], set[str]]:
    """Names of the notebook that compiled code loads, and that it stores or deletes, its functions included."""
    loads: set[str] = set()
    stores: set[str] = set()
    for step in dis.get_instructions(code):
        kind = step.opname
        if not isinstance(step.argval, str):
            continue
        if kind.startswith("LOAD_") and ("GLOBAL" in kind or "NAME" in kind):
            loads.add(step.argval)
        elif kind in ("STORE_GLOBAL", "DELETE_GLOBAL") or (outside and kind in ("STORE_NAME", "DELETE_NAME")):
            stores.add(step.argval)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = _names_in(const, outside=False)
            loads |= inner[0]
            stores |= inner[1]
    return loads, stores


def _surely_bound(node: ast.expr) -> Known:
    """Names that an expression binds (``:=``) whatever way it goes."""
    match node:
        case ast.NamedExpr():
            return frozenset({node.target.id}) | _surely_bound(node.value)
        case ast.BoolOp():
            return _surely_bound(node.values[0])
        case ast.IfExp():
            return _surely_bound(node.test)
        case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return frozenset()
    children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    # What stands before it in the same expression was taken for a use.
    return frozenset[str]().union(*map(_surely_bound, children))
