"""Errors that mean "the caller must change something".

``UserError`` is what the command line turns into one sentence and exit code 2. Every message names the thing, the
value and the next move. Broken invariants of our own are ``assert``s, never one of these.
"""


class UserError(ValueError):
    """Something that the user can correct: a setting, a file, a row, a model."""


class ConfigError(UserError):
    """A setting is unknown, out of range or contradicts another."""


class ShapeError(UserError):
    """Two tensors that must agree in shape do not."""


class EmptyMaskError(UserError):
    """A mask selects no token, so a mean over it does not exist."""


class NonFiniteError(ArithmeticError):
    """A score, loss or gradient is NaN or infinite; going on would destroy the weights. Trying again gives the same."""
