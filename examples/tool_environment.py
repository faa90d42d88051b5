"""A tool environment (no paper): the student may call a calculator until it answers, and a right answer is worth 1.

The functions' names, docstrings and annotations are what the chat template tells the student of them. What a call gives
back, or why it cannot be made, is read by the student and never trained on. `credit` is what learns from the reward.

Settings:
    environment.kind = "tool_environment:Calculator"
    rollout.max_turns = 4
"""

import ast
import operator
from collections.abc import Sequence

from preceptor_client.extend import Function, ToolEnvironment

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Calculator(ToolEnvironment):
    """Right is an answer that contains the example's, as in every ToolEnvironment without a reward of its own."""

    def functions(self) -> Sequence[Function]:
        return (self.calculate,)

    def calculate(self, expression: str) -> str:
        """The value of a sum such as 6 * 7 + 1."""
        return str(_value(ast.parse(expression, mode="eval").body))


def _value(node: ast.AST) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            value: float = OPERATORS[type(op)](_value(node.left), _value(node.right))
            return value
    raise ValueError("only numbers, + - * / and parentheses can be calculated")
