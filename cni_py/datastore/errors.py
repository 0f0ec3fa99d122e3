"""Errors of every datastore: etcd, the Kubernetes API, a file."""


class StoreError(Exception):
    """What could not be done; ``hint`` is what a person does next."""

    def __init__(self, msg: str, hint: str = "") -> None:
        super().__init__(f"{msg}; {hint}" if hint else msg)
        self.msg, self.hint = msg, hint


class Unavailable(StoreError):
    """The datastore does not answer: come again."""


class Refused(StoreError):
    """It answers, and will not do it before a person has acted."""
