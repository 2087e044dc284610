"""The one error of this package."""


class BenchError(Exception):
    """A measurement could not be made; the message is for the person at the terminal."""
