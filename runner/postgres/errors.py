"""The one exception of the embedded PostgreSQL server."""


class PostgresError(Exception):
    """Something about the embedded server that its user should know.

    `message` is one clear sentence saying what is wrong; `hint` says what to do about it.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
