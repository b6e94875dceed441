"""What a law comes to: in one stage, and over all of them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

CLOSE = 1e-4
"""Largest difference between float32 results that differ in the order of sums, as a part of the largest value."""


class Finding(NamedTuple):
    """What a law comes to in one stage."""

    passed: bool | None
    """None where it does not apply."""
    told: str
    """The figure in words where it passed; else what is wrong, or why it does not apply."""
    figure: float | None = None
    """How far off it is: a difference as a part of the whole, or how many of something are wrong. 0 is best."""


def absent(why: str) -> Finding:
    """The law does not apply."""
    return Finding(None, why)


def close(difference: float, where: str) -> Finding:
    """A relative difference, the largest of all; `where` says of what."""
    # Written so that NaN fails.
    return Finding(difference <= CLOSE, f"differs by {difference:.1e} ({where}); {CLOSE:.0e} is rounding", difference)


def largest(found: Iterable[tuple[float, str]]) -> tuple[float, str]:
    """The largest of some differences, each with what it is of; NaN is larger than all."""
    return max(found, key=lambda pair: (pair[0] != pair[0], pair[0]))


def none_of(wrong: list[str], number: int, what: str) -> Finding:
    """None of so many things may be wrong; `wrong` says which are, and how."""
    if not wrong:
        return Finding(True, f"{number:,} {what}", 0.0)
    more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
    return Finding(False, f"{len(wrong):,} of {number:,} {what}: {'; '.join(wrong[:2])}{more}", float(len(wrong)))


class Verdict(NamedTuple):
    """A law over all stages."""

    law: str
    says: str
    """The law in a sentence."""
    findings: Mapping[str, Finding]
    """By stage."""

    @property
    def passed(self) -> bool | None:
        """False where it fails in any stage, None where it applies to none."""
        told = {finding.passed for finding in self.findings.values()}
        return False if False in told else True if True in told else None

    @property
    def worst(self) -> tuple[str, Finding]:
        """The stage that decides, and what was found there: the first failure, else the largest figure."""
        for stage, finding in self.findings.items():
            if finding.passed is self.passed is False:
                return stage, finding
        decisive = [pair for pair in self.findings.items() if pair[1].passed is self.passed]
        return max(decisive, key=lambda pair: -math.inf if pair[1].figure is None else pair[1].figure)

    def __str__(self) -> str:
        word = {True: "ok  ", False: "FAIL", None: "n/a "}[self.passed]
        stage, finding = self.worst
        failing = [name for name, one in self.findings.items() if one.passed is False]
        holding = sum(one.passed is True for one in self.findings.values())
        if failing:
            where = f"stage {', '.join(failing)}"
        elif self.passed:
            where = f"{holding} of {len(self.findings)} stages" + (f", worst in {stage}" if finding.figure else "")
        else:
            where = f"{len(self.findings)} stages"
        return f"{word}  {self.law}: {finding.told}  [{where}]"

    def as_data(self) -> dict[str, Any]:
        """As plain data. A figure that is no number (NaN, of a difference) is null."""
        stage, finding = self.worst
        return {
            "law": self.law,
            "says": self.says,
            "passed": self.passed,
            "figure": _number(finding.figure),
            "stage": stage,
            "told": finding.told,
            "stages": {name: {**one._asdict(), "figure": _number(one.figure)} for name, one in self.findings.items()},
        }


def _number(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None
