"""What a store of functions has to offer, so that another than the one of a single host can take its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from olsock_worker.store.records import (
    Alias,
    Code,
    Configuration,
    EventInvoke,
    FunctionUrl,
    LayerVersion,
    Provision,
    Usage,
    Version,
)


class UrlStore(Protocol):
    """Function URLs; they go with their function, or with their alias. As `FunctionStore` in all else."""

    def create(self, url: FunctionUrl) -> None:
        """Add a URL of a function, or of an alias, that exists."""

    def change(self, url: FunctionUrl) -> None:
        """Put a URL in the place of the one that there is."""

    def delete(self, function: str, qualifier: str) -> None:
        """Remove a URL."""

    def get(self, function: str, qualifier: str) -> FunctionUrl:
        """Return a URL."""

    def all(self, function: str) -> list[FunctionUrl]:
        """Return the URLs of a function and of its aliases, by qualifier."""


class LayerStore(Protocol):
    """Versions of layers. As `FunctionStore` in all else."""

    def publish(self, version: LayerVersion) -> LayerVersion:
        """Add a version under the next number; return it with that."""

    def version(self, name: str, number: int) -> LayerVersion:
        """Return one version."""

    def versions(self, name: str, before: int, most: int) -> list[LayerVersion]:
        """Return versions of a layer with lower numbers than `before`, the newest first; 0: all of them."""

    def names(self, after: str, most: int) -> list[str]:
        """Return the names of layers that have a version, in their order."""

    def delete(self, name: str, number: int) -> None:
        """Remove a version if there is one. Functions that have it keep it."""


class ProvisionStore(Protocol):
    """Provisioned concurrency; it goes with its version, or with its alias. As `FunctionStore` in all else."""

    def put(self, provision: Provision) -> None:
        """Set how many there are to be for a version or an alias that exists."""

    def delete(self, function: str, qualifier: str) -> None:
        """Keep none any more, if any were to be kept."""

    def all(self, function: str) -> list[Provision]:
        """Return those of one function, by qualifier."""


class EventInvokeStore(Protocol):
    """Rules for events, at most one for each version and alias, with which they go. As `FunctionStore` in all else."""

    def put(self, rules: EventInvoke) -> None:
        """Set the rules of a version or an alias that exists."""

    def get(self, name: str, qualifier: str) -> EventInvoke:
        """Return the rules of one."""

    def delete(self, name: str, qualifier: str) -> None:
        """Remove the rules of one."""

    def list(self, name: str, after: str, most: int) -> list[EventInvoke]:
        """Return the rules of a function, by qualifier."""


class FunctionStore(Protocol):
    """Functions with their versions, aliases, tags and reservations.

    Every method blocks, and returns once what it changed is safe on the disk: whole, or not at all. Each raises `Absent` for
    what there is not, `Conflict` for what would clash, and `Stale` if a revision is given that is not the present one.
    Lists are in a fixed order and go on after the key given, "" for the beginning. To be used by one thread at a time.
    """

    @property
    def urls(self) -> UrlStore:
        """Function URLs."""

    @property
    def layers(self) -> LayerStore:
        """Layers."""

    @property
    def provisions(self) -> ProvisionStore:
        """Provisioned concurrency."""

    @property
    def event_invokes(self) -> EventInvokeStore:
        """Rules for events."""

    def create(self, version: Version, tags: Mapping[str, str], publish: bool) -> Version | None:
        """Add a function with its first version, LATEST; return version 1 if it is to be published at once."""

    def change(
        self,
        name: str,
        code: Code | None,
        configuration: Configuration | None,
        requirements: Sequence[str] | None,
        revision: str | None,
        publish: bool,
    ) -> tuple[Version, Version | None]:
        """Change LATEST in what is given; return it, and the published version if it is to be published at once."""

    def publish(self, name: str, description: str | None, sha256: str | None, revision: str | None) -> Version:
        """Make a version of LATEST as it is; return it, or the newest if that is the same. `sha256` has to be the code's."""

    def delete(self, name: str) -> None:
        """Remove a function with all that belongs to it."""

    def delete_version(self, name: str, number: str) -> None:
        """Remove one published version, unless an alias names it."""

    def version(self, name: str, number: str) -> Version:
        """Return one version."""

    def functions(self, after: str, most: int) -> list[Version]:
        """Return the LATEST version of functions, by name."""

    def versions(self, name: str, after: str, most: int) -> list[Version]:
        """Return versions of one function: LATEST, then those published, in their order."""

    def create_alias(self, alias: Alias) -> None:
        """Add an alias of versions that exist."""

    def change_alias(
        self,
        name: str,
        alias: str,
        version: str | None,
        weights: Mapping[str, float] | None,
        description: str | None,
        revision: str | None,
    ) -> Alias:
        """Change an alias in what is given, and return it."""

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias if there is one."""

    def alias(self, name: str, alias: str) -> Alias:
        """Return one alias."""

    def aliases(self, name: str, version: str | None, after: str, most: int) -> list[Alias]:
        """Return aliases of a function, by name; with `version` those that name it."""

    def reserve(self, name: str, calls: int | None) -> None:
        """Set how many calls of a function may run at one time; None: as many as the host takes."""

    def reserved(self, name: str) -> int | None:
        """Return what `reserve` has set."""

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a function."""

    def set_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Replace the tags of a function."""

    def keys(self) -> list[tuple[str, str]]:
        """Return (function, number) of every version."""

    def digests(self) -> set[str]:
        """Return the contents that any version of a function or of a layer refers to."""

    def usage(self) -> Usage:
        """Return what there is in all."""

    def close(self) -> None:
        """Let go of it. What was acknowledged is safe already."""
