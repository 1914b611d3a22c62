"""Names of the published checkpoints, declared beside the modules they belong to."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class PublishedNames(nn.Module):
    """A module that knows what the published code calls its parameters.

    `published_names` pairs a published prefix with ours, relative to the module. With it
    `load_state_dict` takes either layout, strictly, and `official_state_dict` gives the
    published one back.
    """

    published_names: ClassVar[tuple[tuple[str, str], ...]] = ()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            for published, ours in self.published_names:
                if name.startswith(published):
                    state_dict[prefix + ours + name[len(published) :]] = state_dict.pop(key)
                    break
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def official_state_dict(self) -> dict[str, Tensor]:
        """The weights under their published names, in the published order; no copies."""
        owners = self._owners()
        return {_official_name(key, owners): value for key, value in self.state_dict().items()}

    def official_name(self, key: str) -> str:
        """The published name of one entry of `state_dict()`."""
        return _official_name(key, self._owners())

    def _owners(self) -> list[tuple[str, PublishedNames]]:
        """The paths of modules with names to tell, innermost first: outer names are still ours then."""
        named = self.named_modules()
        owners = [(path, m) for path, m in named if isinstance(m, PublishedNames) and m.published_names]
        return owners[::-1]


def _official_name(key: str, owners: list[tuple[str, PublishedNames]]) -> str:
    for path, module in owners:
        if path and not key.startswith(path + "."):
            continue
        start = len(path) + 1 if path else 0
        name = key[start:]
        for published, ours in module.published_names:
            if name.startswith(ours):
                key = key[:start] + published + name[len(ours) :]
                break
    return key
