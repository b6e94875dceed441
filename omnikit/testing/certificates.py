"""Certificates: every check of a component that is known by its class alone, in all its options."""

import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError

from omnikit.component import (
    BackboneConfig,
    BenchmarkConfig,
    Component,
    EncoderConfig,
    Input,
    Mel,
    Pixels,
    ProjectorConfig,
    ReaderConfig,
    SourceConfig,
)
from omnikit.testing.costs import tiny_is_tiny
from omnikit.testing.kinds import CHECKS, check_benchmark, check_source
from omnikit.testing.readers import ReaderTrial
from omnikit.testing.results import Fault, Result, reason, tried
from omnikit.testing.trials import BackboneTrial, EncoderTrial, ProjectorTrial, Trial

__all__ = ["Certificate", "certify", "variants"]

MADE = "is_made_by_name"
KNOWN: tuple[Input, ...] = (Pixels(size=32, patch=8), Mel(window=2.0))
"""What readers are checked with where no encoder of their Input is installed."""


class Certificate(NamedTuple):
    """What was found of a component: its checks' results over these variants of it."""

    kind: str
    type: str
    variants: tuple[str, ...]
    results: tuple[Result, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(result.passed for result in self.results)


def certify(component: type[Component], installed: Sequence[type[Component]]) -> Certificate:
    """The certificate of a class. `installed` are the other components: a reader needs some encoder's Input."""
    begin = time.monotonic()
    found: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(prefix="omnikit-check-") as folder:
        try:
            for number, (name, config, base) in enumerate(variants(component, Path(folder, "data"))):
                found[name] = _results(config, base, installed, Path(folder, str(number)))
            results = (Result(MADE, True, "; ".join(name for name in found if name)), *_joined(found))
        except (Exception, SystemExit) as error:
            results = (Result(MADE, False, str(error) if isinstance(error, Fault) else reason(error)),)
    names = tuple(name or "default" for name in found)
    return Certificate(str(component.kind), component.type, names, results, time.monotonic() - begin)


def variants(component: type[Component], folder: Path) -> Iterator[tuple[str, Component, Component]]:
    """(what is varied, Config of the size to check, Config that it is the tiny of).

    The first is as its defaults or its first preset say; each other has one boolean or Literal field of the tiny one at
    another value.
    """
    base = _made(component, folder)
    tiny = base.tiny()
    yield "", tiny, base
    fields = {name: value for name, value in tiny.model_dump().items() if name != "type"}
    for name, field in component.model_fields.items():
        for option in _options(field.annotation):
            if option != fields[name]:
                try:
                    config = component.model_validate({**fields, name: option})
                except ValidationError:  # an option that does not go with the others as they are
                    continue
                yield f"{name}={option}", config, config


def _made(component: type[Component], folder: Path) -> Component:
    if issubclass(component, SourceConfig):
        folder.mkdir()
        return component.specimen(folder)
    try:
        return component()
    except ValidationError as error:
        if "preset" in component.model_fields and component.presets:
            return component.model_validate({"preset": next(iter(component.presets))})
        missing = ", ".join(str(fault["loc"][0]) for fault in error.errors() if fault["loc"])
        raise Fault(f"cannot be made without {missing}; give the fields defaults, or the class presets") from error


def _options(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401  (a type, or what typing makes of several)
    if annotation is bool:
        return False, True
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(option for part in get_args(annotation) for option in _options(part))
    return ()


def _results(config: Component, base: Component, installed: Sequence[type[Component]], folder: Path) -> list[Result]:
    if isinstance(config, ReaderConfig):
        folder.mkdir()
        return tried(CHECKS["reader"], lambda: _reader_trial(config, installed, folder))
    if isinstance(config, SourceConfig):
        return check_source(config)
    if isinstance(config, BenchmarkConfig):
        return check_benchmark(config)
    # First of all, and of what it is the tiny of: the other checks would build what may fill the memory.
    size = tried([tiny_is_tiny], lambda: _module_trial(config, installed).with_config(base))
    if not size[0].passed:
        return size
    results = tried(CHECKS[config.kind], lambda: _module_trial(config, installed))
    return [size[0] if result.check == size[0].check else result for result in results]


def _module_trial(config: Component, installed: Sequence[type[Component]]) -> Trial:
    if isinstance(config, EncoderConfig):
        return EncoderTrial(config, _reader_for(config, installed))
    if isinstance(config, ProjectorConfig):
        return ProjectorTrial(config)
    assert isinstance(config, BackboneConfig)
    return BackboneTrial(config)


def _reader_trial(config: ReaderConfig, installed: Sequence[type[Component]], folder: Path) -> ReaderTrial:
    input = _input_for(config, installed)
    return ReaderTrial(config, input, config.specimens(folder, input))


def _input_for(reader: ReaderConfig, installed: Sequence[type[Component]]) -> Input:
    for encoder in _near(reader, installed, EncoderConfig):
        try:
            config = _made(encoder, Path()).tiny()
        except (ValueError, Fault):  # its own certificate says so
            continue
        assert isinstance(config, EncoderConfig)
        if isinstance(config.input, reader.makes):
            return config.input
    for input in KNOWN:
        if isinstance(input, reader.makes):
            return input
    raise Fault(f"no installed encoder eats {reader.makes.__name__}, which this reader makes; install one")


def _reader_for(encoder: EncoderConfig, installed: Sequence[type[Component]]) -> ReaderConfig | None:
    if isinstance(encoder.input, tuple(type(input) for input in KNOWN)):
        return None  # the kit draws its own items of these
    for reader in _near(encoder, installed, ReaderConfig):
        assert issubclass(reader, ReaderConfig)
        if isinstance(encoder.input, reader.makes):
            made = _made(reader, Path())
            assert isinstance(made, ReaderConfig)
            return made
    return None


def _near(config: Component, installed: Sequence[type[Component]], kind: type[Component]) -> list[type[Component]]:
    """The installed components of a kind, those of the same package first."""

    def package(component: type[Component]) -> str:
        return component.__module__.split(".")[0]

    found = [one for one in installed if issubclass(one, kind)]
    return sorted(found, key=lambda one: package(one) != package(type(config)))


def _joined(found: dict[str, list[Result]]) -> Iterator[Result]:
    """One result per check: it passes if it does in every variant; else the first failure, and in which variants."""
    names = dict.fromkeys(result.check for results in found.values() for result in results)
    for check in names:
        results = {name: one for name, all_of in found.items() for one in all_of if one.check == check}
        failed = [name for name, one in results.items() if not one.passed]
        if not failed:
            yield next(iter(results.values()))
            continue
        where = "" if len(failed) == len(found) else f" (with {', '.join(name or 'defaults' for name in failed)})"
        yield Result(check, False, results[failed[0]].detail + where)
