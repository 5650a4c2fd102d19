"""Compiled blocks that multiply in float8: what makes a product's input writes it in eight bits at once.

torch takes operators of ours whole and joins nothing with them, so this pass over inductor's graphs does. It changes no
number on a CPU; on a GPU eight bits are rounded from float32 in place of 16 bits, so some are the next number.
"""

from collections.abc import Iterator
import operator
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

from wan.memory import fp8_rows
from wan.memory.fp8_rows import (
    gelu_and_eight_bits,
    gelu_to_eight_bits,
    norm_and_eight_bits,
    norm_to_eight_bits,
    quantise_rows,
)
from wan.modules.block import CUBIC, TWO_SQRT_2_BY_PI
from wan.modules.rows import layer_norm_rows

aten, convert = torch.ops.aten, torch.ops.prims.convert_element_type.default
VIEWS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)
WRITERS = (quantise_rows, norm_to_eight_bits, norm_and_eight_bits, gelu_to_eight_bits, gelu_and_eight_bits)
"""Operators whose first two results are values and their scales, and whose last argument is the scales' factor."""


class EightBitRows(CustomGraphPass):  # type: ignore[misc]
    """The pass: rows are scaled once for all products that take them, by the kernel that makes them.

    All are equal: torch gives one model the graphs of another only where what compiled them is.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EightBitRows)

    def __hash__(self) -> int:
        return hash(EightBitRows)

    def __call__(self, graph: Graph) -> None:
        """Change `graph`."""
        _share(graph)
        for node in _unscaled(graph):
            source = _behind_views(_input(node))
            if _is_normed(source) and _value(source).shape == _value(_input(node)).shape:
                _join_norm(graph, source, node)
            elif (x := _argument_of_gelu(source)) is not None:
                _join_gelu(graph, x, source, node)
        _take_in_factors(graph)
        graph.eliminate_dead_code()

    def uuid(self) -> Any:
        """What cached graphs are known by: this file's content and that of its operators."""
        return get_hash_for_files((__file__, fp8_rows.__file__))


def _share(graph: Graph) -> None:
    """Scale the same rows once; in graphs for training torch has done so, in those for generation not."""
    firsts: dict[Any, Node] = {}
    for node in _unscaled(graph):
        first = firsts.setdefault((_behind_views(_input(node)), _value(_input(node)).shape), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _join_norm(graph: Graph, normed: Node, scaled: Node) -> None:
    """One operator in the place of `normed`'s and of `scaled`."""
    norm = _input(normed)
    is_alone = set(norm.users) == {normed} and _users(normed) == {scaled}
    with graph.inserting_before(norm):
        joined = graph.call_function(norm_to_eight_bits if is_alone else norm_and_eight_bits, (*norm.args, None))
    joined.meta["val"] = (*_values(scaled), *(() if is_alone else _values(norm)))
    _note_arguments(joined)
    for result in list(norm.users) if not is_alone else ():
        result.args = (joined, _place(result) + 2)
    for result in list(scaled.users):
        result.args = (joined, _place(result))


def _join_gelu(graph: Graph, x: Node, active: Node, scaled: Node) -> None:
    """One operator in the place of `active`, GELU of `x`, and of `scaled`."""
    rows, is_alone = _value(_input(scaled)), _users(active) == {scaled}
    with graph.inserting_before(active):
        given = graph.call_function(aten.reshape.default, (x, list(rows.shape)))
        given.meta["val"] = rows
        joined = graph.call_function(gelu_to_eight_bits if is_alone else gelu_and_eight_bits, (given, None))
        joined.meta["val"] = (*_values(scaled), *(() if is_alone else (rows,)))
        _note_arguments(joined)
        if not is_alone:
            kept = graph.call_function(operator.getitem, (joined, 2))
            kept.meta["val"] = rows
            kept = graph.call_function(aten.reshape.default, (kept, list(_value(active).shape)))
            kept.meta["val"] = _value(active)
            active.replace_all_uses_with(kept, delete_user_cb=lambda user: user is not scaled)
    for result in list(scaled.users):
        result.args = (joined, _place(result))


def _take_in_factors(graph: Graph) -> None:
    """Where all that becomes of the scales is their product with a number that the graph is given: the weight's."""
    for writer in WRITERS:
        for node in _calls(graph, writer):
            if _factor(node) is not None:
                continue
            users = [(result, user) for result in node.users if _place(result) == 1 for user in result.users]
            if len(users) != 1 or users[0][1].target is not aten.mul.Tensor:
                continue
            scales, product = users[0]
            factor = next((one for one in product.args if one is not scales), None)
            if not isinstance(factor, Node) or factor.op != "placeholder":
                continue
            number = _value(factor)
            # A kernel cannot read a number of another device, as torch's product can.
            if number.ndim == 0 and number.dtype == torch.float32 and number.device == _value(scales).device:
                node.args = (*node.args[:len(writer._schema.arguments) - 1], factor)
                _note_arguments(node)
                product.replace_all_uses_with(scales)
                graph.erase_node(product)


def _argument_of_gelu(node: Node) -> Node | None:
    """x where `node` is `gelu_by_sigmoid` of it as torch writes that down, else None."""
    path = [node]
    for target, place in _GELU:
        inner = path[-1].args[place] if len(path[-1].args) > place else None
        if not isinstance(inner, Node) or inner.target is not target:
            return None
        path.append(inner)
    product, steep, total, cubic, power = (path[i] for i in (1, 3, 4, 5, 6))
    exact = product.args[0]
    is_gelu = (node.target is convert and total.args[0] is exact and power.args == (exact, 3)
               and steep.args[1] == TWO_SQRT_2_BY_PI and cubic.args[1] == CUBIC and not total.kwargs)
    if not is_gelu or not isinstance(exact, Node) or exact.target is not convert or exact.args[1] is not torch.float32:
        return None
    x = _input(exact)
    return x if _value(x).dtype == _value(node).dtype else None


_GELU = ((aten.mul.Tensor, 0), (aten.sigmoid.default, 1), (aten.mul.Tensor, 0), (aten.add.Tensor, 0),
         (aten.mul.Tensor, 1), (aten.pow.Tensor_Scalar, 0))
"""From its result inwards: the next operation, and which argument of the one before it is."""


def _is_normed(node: Node) -> bool:
    return node.target is operator.getitem and node.args[1] == 0 and _input(node).target is layer_norm_rows


def _note_arguments(node: Node) -> None:
    """As torch does for operators: inductor then lays them out alike, and computes what lies in no buffer yet once."""
    node.meta["eager_input_vals"] = (tuple(_value(one) if isinstance(one, Node) else one for one in node.args), {})


def _unscaled(graph: Graph) -> list[Node]:
    """Where rows are scaled and no factor is in their scales."""
    return [node for node in _calls(graph, quantise_rows) if _factor(node) is None]


def _factor(node: Node) -> Any:
    """The scales' factor that a writer is given."""
    place = len(node.target._schema.arguments) - 1  # type: ignore[union-attr]
    return node.args[place] if len(node.args) > place else None


def _calls(graph: Graph, target: Any) -> Iterator[Node]:
    return iter(list(graph.find_nodes(op="call_function", target=target)))


def _input(node: Node) -> Node:
    first = node.args[0]
    assert isinstance(first, Node)
    return first


def _value(node: Node) -> torch.Tensor:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


def _values(node: Node) -> tuple[torch.Tensor, ...]:
    return tuple(node.meta["val"])


def _place(result: Node) -> int:
    """Which result of an operator a node takes."""
    place = result.args[1]
    assert result.target is operator.getitem and isinstance(place, int)
    return place


def _behind_views(node: Node) -> Node:
    while node.target in VIEWS:
        node = _input(node)
    return node


def _users(node: Node) -> set[Node]:
    """Who takes a node's numbers, behind views of it."""
    return {one for user in node.users for one in (_users(user) if user.target in VIEWS else {user})}
