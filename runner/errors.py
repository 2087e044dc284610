"""Errors that a person reads: one sentence and what to do about it."""

import psycopg


class TaskyardError(Exception):
    """A refusal or a failure, told in one sentence.

    `hint` names what to do; `code` is the SQLSTATE where the database said it, else None.
    """

    def __init__(self, message: str, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def from_database(error: psycopg.Error) -> TaskyardError:
    """Turn what the server said into a sentence and a hint; nothing of the connection string is in it."""
    diagnostic = error.diag
    message = diagnostic.message_primary or str(error).strip().split("\n")[0] or type(error).__name__
    hint = " ".join(part for part in (diagnostic.message_detail, diagnostic.message_hint) if part)
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and not hint:
        hint = "Ask an administrator for one of: taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin."
    elif isinstance(
        error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction | psycopg.errors.InvalidSchemaName
    ):
        hint = "If this database has no current Taskyard yet, run: taskyard install"
    return TaskyardError(message, hint, error.sqlstate)
