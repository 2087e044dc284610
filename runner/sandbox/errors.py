"""The exception of a sandbox that cannot be set up."""


class SandboxError(Exception):
    """This host cannot confine a child, so none is started.

    `cause` is one clear sentence saying what is wrong; `cure` says what to do about it.
    """

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(cause, cure)
        self.cause = cause
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.cause}\n{self.cure}" if self.cure else self.cause
