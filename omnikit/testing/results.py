"""What a check gives back."""

import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

__all__ = ["Check", "Fault", "Result", "reason", "run", "tried"]

Subject = TypeVar("Subject")
Check = Callable[[Subject], str]
"""A check takes what it is of, raises a Fault (or anything) where that does not conform, and else says what it saw."""


class Fault(AssertionError):
    """What a component does wrong: what was seen, and what would be right."""


class Result(NamedTuple):
    """One check of one component: `detail` is a figure where it passed, the reason where it did not."""

    check: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.check}{f': {self.detail}' if self.detail else ''}"


def run(checks: Sequence[Check[Subject]], subject: Subject) -> list[Result]:
    """Every check's result, under the name of its function. Whatever a component raises is a result too."""
    return [_result(check, subject) for check in checks]


def tried(checks: Sequence[Check[Subject]], make: Callable[[], Subject]) -> list[Result]:
    """`run` of what `make` gives. What cannot even be made is the one result that there is."""
    try:
        subject = make()
    except (Exception, SystemExit) as error:
        return [Result("can_be_tried", False, str(error) if isinstance(error, Fault) else reason(error))]
    return run(checks, subject)


def _result(check: Check[Subject], subject: Subject) -> Result:
    name = getattr(check, "__name__", str(check))
    try:
        return Result(name, True, check(subject))
    except Fault as fault:
        return Result(name, False, str(fault))
    # A component may raise anything, and the other checks are still worth having. Who leaves by sys.exit(0) would pass.
    except (Exception, SystemExit) as error:
        return Result(name, False, reason(error))


def reason(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NotImplementedError) and not text:
        method = traceback.extract_tb(error.__traceback__)[-1].name
        text = f"{method}() is missing; omnikit.component says what it gives"
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__
