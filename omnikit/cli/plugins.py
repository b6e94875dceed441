"""`omnikit plugins`: what is installed, whether it conforms, and the start of a new one."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnikit.cli.options import JsonOption

if TYPE_CHECKING:
    from omnikit.component import Component
    from omnikit.registry import Plugin, Registry
    from omnikit.testing.certificates import Certificate

plugins = typer.Typer(no_args_is_help=False)


class Kind(StrEnum):
    """The kinds of component, as words of the command line."""

    READER = "reader"
    ENCODER = "encoder"
    PROJECTOR = "projector"
    BACKBONE = "backbone"
    SOURCE = "source"
    BENCHMARK = "benchmark"


@plugins.callback(invoke_without_command=True)
def listing(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the plugins; check them; begin a new one.

    A broken plugin is listed with its reason. The names are those that recipes use, as in `projector: mlp`.
    """
    if context.invoked_subcommand is not None:
        return
    from omnikit.registry import Registry

    registry = Registry.load()
    if as_json:
        found = [
            {
                "name": plugin.name,
                "package": plugin.distribution,
                "version": plugin.version,
                "components": _by_kind(plugin),
                "broken": plugin.broken,
            }
            for plugin in registry.plugins
        ]
        print(json.dumps({"plugins": found, "clashes": list(registry.clashes)}, indent=1))
        return
    for plugin in registry.plugins:
        print(f"{plugin.name}  ({plugin.distribution} {plugin.version})")
        for kind, types in _by_kind(plugin).items():
            print(f"  {kind}: {', '.join(types)}")
        if plugin.broken:
            print(f"  BROKEN: {plugin.broken}")
    for clash in registry.clashes:
        print(f"CLASH: {clash}")


def _by_kind(plugin: "Plugin") -> dict[str, list[str]]:
    kinds = sorted({str(component.kind) for component in plugin.components})
    return {kind: sorted(one.type for one in plugin.components if one.kind == kind) for kind in kinds}


@plugins.command()
def check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="A plugin, a package, or a component: its type, or kind/type. Repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  (typer wants the literal)
    everything: Annotated[bool, typer.Option("--all", help="Check every component that is installed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that components conform, with a certificate of each.

    Each is made as small as its tiny() says, in each of its options, and put through every check of its kind: counts,
    gradients, neighbours, precision, cost, sharding on two ranks, and more. The exit code is 1 when a check fails.
    """
    from omnikit.registry import Registry

    registry = Registry.load()
    if bool(names) == everything:
        raise ValueError("omnikit plugins check: give the names of plugins or components, or --all")
    broken = [plugin for plugin in registry.plugins if plugin.broken and (everything or _is_called(plugin, names))]
    chosen = _everything(registry) if everything else [one for name in names for one in _called(registry, name)]
    clashes = registry.clashes if everything else ()
    if not chosen and not broken:
        raise ValueError(f"omnikit plugins check: {' and '.join(names)} brings no component; its hook returns none")

    from omnikit.testing.certificates import certify

    certificates = []
    for owner, component in dict.fromkeys(chosen):
        with redirect_stdout(sys.stderr):  # what components print is no part of the certificate
            certificate = certify(component, [one for _, one in _everything(registry)])
        certificates.append((owner, certificate))
        if not as_json:
            _print_certificate(owner, certificate)
    passed = all(certificate.passed for _, certificate in certificates) and not broken and not clashes
    if as_json:
        found = [_as_data(owner, certificate) for owner, certificate in certificates]
        reasons = [{"name": plugin.name, "reason": plugin.broken} for plugin in broken]
        print(
            json.dumps({"passed": passed, "components": found, "broken": reasons, "clashes": list(clashes)}, indent=1)
        )
    else:
        for plugin in broken:
            print(f"BROKEN {plugin}: {plugin.broken}")
        for clash in clashes:
            print(f"CLASH: {clash}")
        good = sum(certificate.passed for _, certificate in certificates)
        print(f"{good} of {len(certificates)} components conform")
    if not passed:
        raise typer.Exit(1)


Found = tuple["Plugin", type["Component"]]


def _everything(registry: "Registry") -> list[Found]:
    return [(plugin, component) for plugin in registry.plugins for component in plugin.components]


def _is_called(plugin: "Plugin", names: Sequence[str]) -> bool:
    return plugin.name in names or plugin.distribution in names


def _called(registry: "Registry", name: str) -> list[Found]:
    """The components of a plugin or package of this name, or the one of this type or kind/type."""
    from omnikit.registry import did_you_mean

    owners = [plugin for plugin in registry.plugins if _is_called(plugin, [name])]
    if owners:
        return [(plugin, component) for plugin in owners for component in plugin.components]
    everything = _everything(registry)
    found = [one for one in everything if name in (one[1].type, f"{one[1].kind}/{one[1].type}")]
    if len(found) > 1:
        kinds = " or ".join(f"{component.kind}/{component.type}" for _, component in found)
        raise ValueError(f"omnikit plugins check: {name} is the name of {len(found)} components; write {kinds}")
    if not found:
        known = [word for plugin in registry.plugins for word in (plugin.name, plugin.distribution)]
        known += [component.type for _, component in everything]
        raise ValueError(f"omnikit plugins check: nothing is called {name[:60]!r}{did_you_mean(name, known)}")
    return found


def _print_certificate(owner: "Plugin", certificate: "Certificate") -> None:
    failed = sum(not result.passed for result in certificate.results)
    verdict = f"FAILS {failed} of {len(certificate.results)} checks" if failed else "conforms"
    number = len(certificate.variants)
    variants = f", {number} variants" if number > 1 else ""
    print(f"{certificate.kind} {certificate.type}  ({owner.distribution} {owner.version})  {verdict}", end="")
    print(f"  [{certificate.seconds:.1f} s{variants}]")
    for result in certificate.results:
        print(f"  {result}")
    print(flush=True)


def _as_data(owner: "Plugin", certificate: "Certificate") -> dict[str, Any]:
    return {
        "kind": certificate.kind,
        "type": certificate.type,
        "package": owner.distribution,
        "version": owner.version,
        "passed": certificate.passed,
        "variants": list(certificate.variants),
        "seconds": round(certificate.seconds, 2),
        "checks": [result._asdict() for result in certificate.results],
    }


@plugins.command()
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What recipes will call it, such as my_encoder.", show_default=False)
    ],
    kind: Annotated[Kind, typer.Option("--kind", help="What it is.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where to put the package's folder.", show_default=False)
    ] = Path(),
) -> None:
    """Write a small package that conforms, to change from there.

    Its README says how to install it; its test runs every check of `omnikit plugins check`. An encoder comes with an
    Input and a reader of its own, as a new modality needs them.
    """
    from omnikit.cli.skeleton import write_package

    folder = write_package(name, kind.value, out)
    print(f"{folder}: a package with the {kind.value} {name}; see its README.md")
